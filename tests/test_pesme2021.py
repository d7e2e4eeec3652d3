"""The five figures of Pesme et al. 2021: small ones are run, drawn, and every claim is told right from wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers import failed, mutated, network, small_problem
from scipy.stats import spearmanr

import sgfbias as sgf
from sgfbias import store
from sgfbias.core.claim import broken
from sgfbias.diagonal.pesme2021 import common, fig1, fig2, fig3, fig4, fig5
from sgfbias.diagonal.stepsize import find_step_size
from sgfbias.studies import STUDIES, study_named

FIGURES = {1: fig1, 2: fig2, 3: fig3, 4: fig4, 5: fig5}
TINY = {"n": 20, "d": 50, "sparsity": 3, "step_size": 0.15}
SMALL = {
    1: fig1.Config(
        **(TINY | {"n": 30, "step_size": 0.2}),
        steps=4000,
        levels=3,
        alpha_low=0.003,
        alpha_high=0.05,
        sweep_steps=6000,
        problems=7,
        alpha=0.02,
    ),
    2: fig2.Config(**TINY, seeds=128, steps=3000, scheme_steps=1500),
    3: fig3.Config(**TINY, steps=4000, scheme_steps=300, path_steps=200, alpha=0.02),
    4: fig4.Config(**(TINY | {"step_size": 0.05}), steps=6000, noise_steps=1000, alpha=0.05),
    5: fig5.Config(**TINY, steps=4000, alpha=0.02),
}


def test_they_are_registered_each_with_the_papers_size():
    for k, module in FIGURES.items():
        assert STUDIES[f"pesme2021.fig{k}"] == module.__name__
        assert study_named(f"pesme2021.fig{k}") is module
        assert isinstance(module.PAPER, module.Config)
        assert module.PAPER.seeds >= 64
        module.PAPER.check()
    assert [FIGURES[k].PAPER.steps for k in FIGURES] == [1_000_000, 100_000, 100_000, 1_000_000, 100_000]
    assert [FIGURES[k].Config().alpha for k in FIGURES] == [0.005, 0.1, 0.01, 0.01, 0.01]


@pytest.mark.parametrize(
    ("k", "change", "message"),
    [
        (1, {"alpha": -1.0}, "alpha must be positive and finite, but is -1"),
        (1, {"problems": 2}, "problems must be at least 7"),
        (2, {"step_size": 0.0}, "step_size must be positive and finite, or auto"),
        (2, {"scheme_seeds": 1}, "scheme_seeds must be at least 8"),
        (3, {"seeds": 4}, "seeds must be at least 8"),
        (3, {"path_steps": 1}, "path_steps must be at least 8"),
        (4, {"delta": 0.0}, "delta must be positive"),
        (4, {"noise_steps": 10**7}, "noise_steps must be below steps"),
        (5, {"n": 100}, "n must be below d"),
    ],
)
def test_bad_values_are_refused(k, change, message):
    with pytest.raises(ValueError, match=message):
        FIGURES[k].run(dataclasses.replace(FIGURES[k].Config(), **change))


def test_overlap_is_the_probability_that_two_draws_meet():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(1.5, size=20)
    x, y = rng.choice(a, (40_000, 5)), rng.choice(b, (40_000, 5))
    met = np.mean((x.min(axis=1) <= y.max(axis=1)) & (y.min(axis=1) <= x.max(axis=1)))
    assert fig3.overlap(a, b) == pytest.approx(met, abs=0.01)
    assert fig3.overlap(a, a + 100) == pytest.approx(0, abs=1e-12)
    long = rng.normal(size=(2, 20_000))
    assert fig3.overlap(*long) == pytest.approx(1 - 2 / 252, abs=1e-3)  # one law: two of the 252 ways to split ten values in halves


def test_rank_correlation_is_spearmans():
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    assert float(fig2.spearman(a, b)) == pytest.approx(spearmanr(a, b)[0])


def test_a_step_of_euler_scatters_as_the_break_of_the_law_says():
    """One Euler step in w from the start, in NumPy: log(w_+ w_-) leaves its law by a scatter of sqrt(2) 4 gamma h L dt."""
    rng, n, d, alpha, gamma, dt = np.random.default_rng(0), 10, 6, 0.1, 0.02, 0.001
    X = rng.normal(size=(n, d))
    residual = -X @ rng.normal(size=d)  # beta is 0
    loss, h = np.mean(residual**2) / 4, np.mean(X**2, axis=0)
    noise = 2 * np.sqrt(gamma * loss / n) * rng.normal(0, np.sqrt(dt), (20_000, n)) @ X
    move = noise - X.T @ residual / n * dt
    plus, minus = alpha * (1 + move), alpha * (1 - move)
    broken_by = np.log(plus * minus) - (2 * np.log(alpha) - 4 * gamma * h * loss * dt)
    np.testing.assert_allclose(np.std(broken_by, axis=0) / h, np.sqrt(2) * 4 * gamma * loss * dt, rtol=0.05)


@pytest.mark.slow
def test_a_step_size_for_label_noise_is_smaller():
    problem, start = small_problem(), network()
    short = {"probes": 16, "steps": 600, "candidates": [0.03, 0.14, 0.6]}
    clean, _ = find_step_size(problem, start, **short)
    noisy, tried = find_step_size(problem, start, label_noise=lambda k: jnp.where(k < 300, 1.5, 0.0), **short)
    assert noisy < clean
    assert not tried[0].converged


def made(**finals):
    """A dataset as the figures write it, of 64 seeds, with these final errors and statuses that converged."""
    rng = np.random.default_rng(0)
    data = {}
    for name, value in finals.items():
        sample = value * np.exp(0.3 * rng.normal(size=64)) if name != "gd" else np.array(value)
        data[f"{name}_final_validation_error"] = (("seed",) if name != "gd" else (), sample)
        data[f"{name}_status"] = (("seed",), np.zeros(64, int)) if name != "gd" else ((), np.array(0))
    return xr.Dataset(data, attrs={"step_size": "0.1"})


def test_shared_claims_can_fail():
    good = made(gd=1.0, sgd=0.1, sgf=0.12)
    assert common.below(good, "sgd", "SGD", "").verdict == "holds"
    assert common.alike(good, "").verdict == "holds"
    assert common.none_lost(good, {"sgd": "SGD"}).verdict == "holds"
    ratio = 1 / common.final(good, "sgd")
    assert common.printed("", "", said=20.0, sample=ratio, ours="").verdict == "holds"
    assert common.printed("", "", said=80.0, sample=ratio, ours="").verdict == "fails"
    assert common.below(made(gd=1.0, sgd=1.5), "sgd", "SGD", "").broken
    assert common.alike(made(gd=1.0, sgd=0.1, sgf=0.6), "").broken
    lost = mutated(good, "sgd_status", lambda v: np.where(np.arange(64) < 8, 3, v))
    assert common.none_lost(lost, {"sgd": "SGD"}).broken


@pytest.fixture(scope="module")
def datasets():
    """Each figure's small dataset, made once, when it is first asked for."""
    kept = {}

    def get(k):
        if k not in kept:
            kept[k] = FIGURES[k].run(SMALL[k])
        return kept[k]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("k", FIGURES)
def test_a_small_one_runs_is_drawn_and_survives_the_disk(k, datasets, tmp_path):
    dataset = datasets(k)
    rows = FIGURES[k].claims(dataset)
    assert [row.statement for row in broken(rows)] == []
    assert any(row.control for row in rows)
    assert all(row.verdict != "not applicable" for row in rows)
    assert FIGURES[k].plot(dataset) is not None
    assert dataset.attrs["study"] == f"pesme2021.fig{k}"
    store.save(dataset, tmp_path / "study.zarr")
    assert FIGURES[k].claims(store.load(tmp_path / "study.zarr")) == rows


MUTATIONS = {
    "1 SGD no better": (1, "left_sgd_final_validation_error", lambda v: 50 * v, "final error of SGD is below"),
    "1 a flow that is not SGD's": (1, "left_sgf_final_validation_error", lambda v: 50 * v, "rather than gradient descent's"),
    "1 other problems without an effect": (1, "problem_gd", lambda v: v * 1e-3, "On other problems"),
    "2 a smaller integral": (2, "sgd_final_loss_integral", lambda v: v / 100, "loss integral of SGD is larger"),
    "2 no order along the curve": (2, "weights_loss_integral", lambda v: v[::-1], "Larger integral, smaller error"),
    "2 off the curve": (2, "weights_curve_distance", lambda v: 0 * v + 0.1, "ends on the theorem's curve"),
    "2 half the exponent does as well": (2, "weights_half_distance", lambda v: v * np.array([1, 0.01])[:, None], "Control: with half"),
    "2 another law": (2, "sgd_own_error", lambda v: v[::-1], "what its own law selects"),
    "2 the printed identity": (2, "flow_integral", lambda v: 2 * v, "half of what the potential gains"),
    "3 bundles apart": (3, "sgf_final_validation_error", lambda v: 1e-3 * v, "The bundles overlap"),
    "3 a law kept": (3, "path_break", lambda v: v / 3, "breaks log"),
    "3 an error that does not fall": (3, "path_break", lambda v: v[[1, 1, 1]], "falls as the root"),
    "3 a mirror system no better": (3, "path_distance", lambda v: v[[1, 1, 1, 1, 1]], "nearer to the fine solution"),
    "4 a small integral": (4, "label_final_shrinkage", lambda v: v / 20, "several times SGD's"),
    "4 a large error": (4, "label_selected_error", lambda v: v * 0 + 1.0, "SGD with label noise at the beginning"),
    "4 another rate": (4, "law_excess", lambda v: v + 0.5, "Under label noise SGD shrinks alpha"),
    "4 full batches do as well": (4, "label_gd_final_shrinkage", lambda v: 10 * v, "Control: the same label noise"),
    "5 no nearer": (5, "again_distance", lambda v: 10 * v, "ends where SGD ended"),
    "5 something else": (5, "again_predicted", lambda v: 1.01 * v, "their laws' offsets"),
    "5 any initialisation": (5, "rule_distance", lambda v: v[[0, 0, 0, 0, 0, 0]], "Control"),
    "5 another error": (5, "again_final_validation_error", lambda v: 20 * v, "Its error is SGD's"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(name, datasets):
    k, variable, change, words = MUTATIONS[name]
    assert words in failed(FIGURES[k], mutated(datasets(k), variable, change))


@pytest.mark.slow
def test_gradient_descent_from_alpha_inf_is_gradient_descent(datasets):
    """The vmapped restarts of figure 5 are those of `simulate` alone."""
    dataset, config = datasets(5), SMALL[5]
    problem, _ = common.draw(config)
    log_alpha = np.log(config.alpha) - dataset["shrinkage"].values[3]
    with jax.enable_x64(True):
        start = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=config.d, dtype=jnp.float64)
        runs = sgf.simulate(sgf.GradientDescent(config.step_size), start, problem, steps=config.steps)
    np.testing.assert_allclose(runs["validation_error"], dataset["again_validation_error"].values[3], rtol=1e-6)
