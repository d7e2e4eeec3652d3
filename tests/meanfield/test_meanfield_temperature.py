"""Temperatures against closed forms, the stationary point, and the study
`meanfield-temperature` on made-up data.
"""

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.studies.temperature import Config, masks

CONFIG = Config(seeds=8)


def setting(k, change):
    def changed(values):
        values = values.copy()
        values[k] = change(values[k])
        return values

    return changed


class TestTemperature(StudyCase):
    study = "meanfield-temperature"
    small = "--steps 48 --waiting 24 --lags 21 --samples 300 --solves 4 --d 40 --seeds 4"
    mutations = {
        "hotter theory": ("drop", setting(1, lambda v: 1.2 * v), "closed form at four lags"),
        "other shares": ("drop", setting(0, lambda v: 1.2 * v), "At other shares"),
        "hotter runs": ("runs", lambda v: 1.3 * v, "Runs have the temperature"),
        "one temperature": (
            "drop",
            setting(1, lambda v: 0.2 * np.arange(1, v.shape[1] + 1) / v.shape[1] + 0 * v),
            "no single temperature",
        ),
        "heat without noise": ("drop", setting(4, lambda v: v + 0.01), "falls as the share"),
        "memory that does nothing": (
            "drop",
            setting(8, lambda v: 0.1 * v),
            "rises with the memory",
        ),
        "coloured noise that is right": ("coloured", lambda v: 0.6 * v, "coloured noise"),
        "a state that is always stationary": (
            "early_stationary",
            lambda v: np.ones_like(v),
            "is said not to be stationary",
        ),
    }
    refusals = [
        ({"waiting": 120}, "waiting must leave lags = 40 of 140 steps"),
        ({"alpha": 4.001}, "must be a whole number of examples"),
        ({"step": 0.1}, "step must be below 0.075"),
    ]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        count, lags = CONFIG.solves, CONFIG.lags
        closed = [
            mf.least_squares_temperature(CONFIG.alpha, CONFIG.step, b, lags=lags)
            for b in (0.15, 0.3, 0.6, 0.9, 1.0)
        ]
        base = closed[1]
        hot = [0.25, 0.45, 0.67, 0.86]
        own = [np.asarray(c.drop) for c in closed]
        own += [np.asarray(base.drop) * t / float(base.slope(lags)) for t in hot]
        near = 1 + 0.01 * rng.normal(size=(len(own), count, 1))
        near /= near.mean(axis=1, keepdims=True)
        chi = np.asarray(base.response)
        run_lags = np.array([1, 3, 10, lags])
        scatter = 1 + 0.01 * rng.normal(size=(CONFIG.seeds, 1))
        rows = {
            "drop": (("setting", "solve", "lag"), np.stack(own)[:, None] * near),
            "response": (("setting", "solve", "lag"), np.tile(chi, (len(own), count, 1))),
            "stationary": (("setting",), np.ones(len(own), bool)),
            "early_stationary": ((), np.asarray(False)),
            "closed_drop": (("fraction", "lag"), np.stack([c.drop for c in closed])),
            "closed_response": (("fraction", "lag"), np.stack([c.response for c in closed])),
            "coloured": (("tau",), np.array([0.3, 0.62, 1.09, 1.71])),
            "runs": (
                ("seed", "runs_lag"),
                np.array([float(base.slope(int(k))) for k in run_lags]) * scatter,
            ),
        }
        names = [f"b={b:g} q={q:.3g}" for b, q in masks(CONFIG)]
        return made_up(CONFIG, rows, {"setting": names, "runs_lag": run_lags})


def test_temperatures_of_least_squares():
    """Numbers that an independent program found, and two limits for small steps."""
    heat = mf.least_squares_temperature(4.0, 0.05, 0.3, label_noise=1.0)
    assert abs(float(heat.temperature) - 0.15679) < 1e-4
    found = [float(heat.slope(lag)) for lag in (1, 5, 20, 59)]
    np.testing.assert_allclose(found, [0.2150, 0.1932, 0.1655, 0.1573], atol=1e-4)
    assert heat.stationary
    assert "0.1568 at long lags" in repr(heat)
    ridge = mf.least_squares_temperature(3.0, 0.08, 0.4, label_noise=0.7, ridge=0.4)
    assert abs(2 * float(ridge.loss) - 0.3729) < 1e-4
    assert abs(float(ridge.temperature) - 0.0566) < 1e-4
    eta, g, alpha = 1e-6, 7 / 3, 4.0
    small = mf.least_squares_temperature(alpha, eta, 0.3)
    v = 2 * float(small.loss)
    assert abs(v - (1 - 1 / alpha)) < 1e-4
    np.testing.assert_allclose(small.slope(1), eta * g * v * alpha / 2, rtol=1e-4)
    np.testing.assert_allclose(small.temperature, eta * g * v * (alpha - 1) / 2, rtol=1e-4)
    assert float(mf.least_squares_temperature(4.0, 0.05, 1.0).temperature) == 0


@pytest.mark.slow
def test_temperatures_of_theory_and_of_finite_systems_are_the_closed_ones():
    """At four lags, from a start that is nearly stationary."""
    alpha, eta, b, waiting, steps, lags = 4.0, 0.05, 0.3, 40, 99, [1, 5, 20, 59]
    exact = mf.least_squares_temperature(alpha, eta, b)
    law = mf.LinearTeacher(alpha, label_noise=1.0)
    rule = mf.MaskedDescent(eta, sgf.BernoulliMask(b))
    options = {"steps": steps, "start": mf.Start(1.0, 1 / 3)}
    loss = sgf.SquaredLoss(0.5)
    theory = mf.solve(law, loss, rule, samples=1000, keys=sgf.seeds(0, 12), **options)
    heat = mf.effective_temperature(theory, waiting=waiting)
    slopes = np.stack([heat.slope(lag) for lag in lags], axis=1)
    runs = mf.simulate(law, loss, rule, d=200, keys=sgf.seeds(0, 12), **options)
    C = np.asarray(runs.correlation)
    drops = np.stack([drop(C, waiting, lag) for lag in lags], axis=1)
    for found, closed in (
        (slopes, [exact.slope(lag) for lag in lags]),
        (drops, np.asarray(exact.drop)[np.asarray(lags)]),
    ):
        error = found.std(axis=0, ddof=1) / np.sqrt(12)
        assert np.all(error < 0.05 * np.asarray(closed)), error
        assert np.all(np.abs(found.mean(axis=0) - closed) < 4 * error), (found.mean(axis=0), closed)


def drop(C, waiting, lag):
    """Half the mean squared distance over a lag, averaged over starts from `waiting`
    on.
    """
    first = np.arange(waiting, C.shape[-1] - lag)
    last = first + lag
    return np.mean((C[:, last, last] + C[:, first, first]) / 2 - C[:, last, first], axis=1)


def test_closed_forms_refuse_what_has_none():
    with pytest.raises(ValueError, match=r"SGD diverges at the step size 0.9: take .* below 0.22"):
        mf.least_squares_temperature(4.0, 0.9, 0.3)
    with pytest.raises(ValueError, match="needs alpha above 1"):
        mf.least_squares_temperature(0.5, 0.05, 0.3)
    with pytest.raises(ValueError, match="`fraction` must be above 0 and at most 1, but is 1.5"):
        mf.least_squares_temperature(4.0, 0.05, 1.5)
    with pytest.raises(ValueError, match="`lag` must be a whole number"):
        mf.least_squares_temperature(4.0, 0.05, 0.3, lags=10).slope(11)
    with pytest.raises(ValueError, match="`margin` must be at least 0"):
        mf.gardner_capacity(-1.0)


def test_the_capacity_of_a_perceptron():
    found = [mf.gardner_capacity(k) for k in (0, 0.5, 1.0)]
    np.testing.assert_allclose(found, [2, 0.961205, 0.519572], atol=1e-6)


@pytest.mark.slow
def test_the_stationary_point_of_logistic_regression():
    point = mf.stationary_point(
        mf.GaussianMixture(2.0, spectrum=0.5), sgf.LogisticLoss(), ridge=0.1
    )
    names = ("overlap", "variance", "susceptibility", "loss", "test_error")
    found = [float(getattr(point, name)) for name in names]
    listed = [1.666886, 1.131553, 5.529789, 0.175196, 0.116602]
    np.testing.assert_allclose(found, listed, atol=1e-5)


@pytest.mark.slow
def test_the_stationary_point_of_ridge_regression_is_that_of_the_spectral_law():
    """`m = E[x/k]` and V = E[1/k], for the loss `(y - r)^2 / 2`."""
    point = mf.stationary_point(mf.LinearTeacher(3.0), sgf.SquaredLoss(0.5), ridge=0.5)
    law = mf.marchenko_pastur(3.0)
    k = law.nodes + 0.5
    np.testing.assert_allclose(point.overlap, law.mean(law.nodes / k), atol=1e-8)
    np.testing.assert_allclose(point.susceptibility, law.mean(1 / k), atol=1e-8)


@pytest.mark.slow
def test_stationary_points_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="give ridge=0.1"):
        mf.stationary_point(mf.RandomLabels(1.0), sgf.LogisticLoss())
    with pytest.raises(ValueError, match="these data have 2 eigenvalues"):
        mf.stationary_point(mf.GaussianMixture(2.0, spectrum=[0.5, 1.0]), sgf.LogisticLoss())
