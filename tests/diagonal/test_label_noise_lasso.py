"""Tests of the Lasso solver by its optimality conditions and its certificate, of the
mean loss by a case that is known exactly, and of the study `label-noise-lasso`.
"""

import jax
import numpy as np
import pytest
from helpers import made_up, small_problem
from study_case import StudyCase, small_run

import sgfbias as sgf
from sgfbias.diagonal.studies.label_noise_lasso import FACTORS, WINDOWS, Config
from sgfbias.diagonal.studies.label_noise_lasso.measure import VARIABLES
from sgfbias.diagonal.theory.lasso import descent_constant, label_noise_lasso, lasso, sample_weights
from sgfbias.study import study_named


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.005, 0.02, 10.0])
def test_the_lasso_is_optimal_and_certified(seed, scale):
    problem = small_problem(seed)
    penalties = scale * np.asarray(problem.h)
    solution = lasso(problem, penalties)
    slope = np.asarray((problem.X @ solution.beta - problem.y) @ problem.X) / (2 * problem.n)
    on = solution.beta != 0
    np.testing.assert_allclose(slope[on], -(penalties * np.sign(solution.beta))[on], atol=1e-10)
    assert np.all(np.abs(slope) <= penalties + 1e-10)
    assert -1e-12 < solution.gap < 1e-10
    assert on.any() == (scale < 1)


def test_alone_a_coordinate_is_soft_thresholded_and_the_mean_loss_is_known():
    """For n = d = 1 and in continuous time, beta under label noise has a gamma
    distribution with mean `c - 2 lambda`.
    """
    problem = sgf.SparseRegression(np.ones((1, 1)), np.array([1.5]))
    assert lasso(problem, 0.2).beta[0] == pytest.approx(1.5 - 2 * 0.2)
    solution, loss = label_noise_lasso(problem, 0.05, 1.0)
    penalty, b = 0.05 * (1 + loss), solution.beta[0]
    assert b == pytest.approx(1.5 - 2 * penalty)
    assert loss == pytest.approx(((b - 1.5) ** 2 / 4 + 0.05 * b) / (1 - 0.05 * b))
    assert label_noise_lasso(problem, 0.05, 1.0, dt=0.1)[1] > loss


def test_of_a_single_example_sgd_has_the_penalty_of_the_flow():
    problem = sgf.SparseRegression(np.array([[1.0, -2.0]]), np.array([1.5]))
    path = np.array([[[0.5, 0.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, 0.0]]])
    loss = np.mean((path @ problem.X.T - problem.y) ** 2) / 4
    np.testing.assert_allclose(sample_weights(problem, path, 0.3), (0.3**2 + loss) * problem.h)
    assert descent_constant([2.0], [1.0], [3.0], step_size=0.1, delta=2.0) == pytest.approx(
        2 * (1 + 2 * 0.01 * 4 * 3)
    )


def test_what_has_no_solution_is_refused():
    problem = small_problem()
    with pytest.raises(ValueError, match="positive and finite"):
        lasso(problem, 0.0)
    with pytest.raises(ValueError, match="loss_scale = 0.25"):
        label_noise_lasso(sgf.SparseRegression(problem.X, problem.y, loss_scale=0.5), 0.01, 1.0)
    with pytest.raises(RuntimeError, match="must be below 1"):
        label_noise_lasso(problem, 5.0, 0.1)


def synthetic(seeds=16):
    """A dataset of one problem that agrees with the theory. Its seeds scatter on the
    support by a known amount.
    """
    problem, rng = small_problem(1), np.random.default_rng(0)
    X, h, truth = (np.asarray(v) for v in (problem.X, problem.h, problem.beta_star))
    fourth = np.mean(X**4, axis=0)
    cells = [(False, 0.04, 1.0), (False, 0.01, 1.5), (True, 0.04, 1.0), (True, 0.01, 2.0)]
    rows = []
    for discrete, gamma, delta in cells:
        predicted, loss = label_noise_lasso(problem, gamma, delta)
        b, penalty = predicted.beta, gamma * (delta**2 + loss)
        tilt = 1 + 2 * gamma * discrete  # SGD's own penalty over the flow's
        order = (
            descent_constant(b, h, fourth, step_size=gamma, delta=delta) / 2 if discrete else 1.0
        )
        noise = (
            rng.normal(size=(3, seeds, problem.d))
            * (b != 0)
            * 0.002
            * np.array([4.0, 2.0, 1.0])[:, None, None]
        )
        noise -= noise.mean(axis=1, keepdims=True) * 0.9
        rows.append(
            {
                "beta": lasso(problem, penalty * tilt * order * h).beta + noise,
                "loss": np.full((3, seeds), loss),
                "lost": np.zeros(seeds),
                "lasso": np.stack([lasso(problem, f * penalty * h).beta for f in FACTORS]),
                "own_lasso": np.stack([b] * 3),
                "sample_lasso": lasso(problem, penalty * tilt * h).beta,
                "sample_h": penalty * tilt * h / gamma,
                "predicted_lasso": b,
                "predicted_loss": loss,
                "gap": 0.0,
                "path": np.zeros((5, problem.d)),
                "running": np.zeros((5, problem.d)),
            }
        )
    variables = {
        name: (("run", *dims), np.stack([row[name] for row in rows]))
        for name, (dims, _) in VARIABLES.items()
    }
    variables |= {
        "quiet_beta": (("seed", "feature"), np.tile(truth, (seeds, 1))),
        "truth": (("feature",), truth),
        "h": (("feature",), h),
        "fourth": (("feature",), fourth),
        "gram": (("feature", "other"), X.T @ X / problem.n),
        "pull": (("feature",), X.T @ np.asarray(problem.y) / problem.n),
    }
    columns = zip(("discrete", "gamma", "delta"), zip(*cells, strict=True), strict=True)
    columns = (*columns, ("length", np.full(len(cells), 1e5)))
    names = np.array([f"run {k}" for k in range(len(cells))], dtype=object)
    axes = {
        "run": names,
        "window": np.asarray(WINDOWS),
        "factor": np.asarray(FACTORS),
    }
    return made_up(
        Config(),
        variables,
        {name: ("run", np.array(column)) for name, column in columns} | axes,
    )


def at_factor(dataset, factor):
    """The dataset with time averages whose means over the seeds are the Lasso solutions
    at a multiple of the flow's penalty.
    """
    beta, solutions = dataset["beta"], dataset["lasso"].isel(factor=factor, drop=True)
    return dataset.assign(beta=beta + (solutions - beta.mean("seed")))


class TestLabelNoiseLasso(StudyCase):
    study = "label-noise-lasso"
    small = (
        "--seeds 8 --time 600 --sgd-time 400 --points 800 --n 10 --d 20 --sparsity 2 --flows "
        ".04 1 .02 1"
    )
    mutations = {
        "lost runs": ("lost", lambda v: v + 1, "No run diverges"),
        "a gap": ("gap", lambda v: v + 1e-6, "No run diverges"),
        "another constant": ("loss", lambda v: v + 0.3, "Flow: on the support"),
        "slopes beyond the bound": ("pull", lambda v: 1.5 * v, "Flow: off the support"),
        "another solution": ("lasso", lambda v: v[:, [0, 0, 2]], "Flow: the time average is"),
        "no fall": ("beta", lambda v: v[:, ::-1], "Flow: the time average of a single seed"),
        "another mean loss": ("predicted_loss", lambda v: 1.2 * v, "The mean loss"),
        "half the penalty fits as well": (
            lambda ds: at_factor(ds, 0),
            "Control: half and twice",
        ),
        "no mean loss needed": ("delta", lambda v: 1.3 * v, "Control: without the mean loss"),
        "the same without noise": (
            lambda ds: ds.assign(quiet_beta=ds["quiet_beta"] * 0 + ds["lasso"].values[0, 1]),
            "Control: without label noise",
        ),
        "another penalty of SGD": ("sample_h", lambda v: 1.2 * v, "SGD: the time average"),
        "a constant that stays": (
            lambda ds: at_factor(ds, 1),
            "SGD: as gamma falls",
        ),
        "weights that do not matter": (
            lambda ds: at_factor(ds, 1),
            "Control: at the largest gamma",
        ),
    }
    refusals = [
        ({"flows": ((0.1, 1.0),)}, "flows must be at least 2"),
        ({"descents": ((0.01, 1.0),)}, "descents must be at least 2"),
        ({"flows": ((0.1, 1.0), (0.1, 0.0))}, "flows must be positive"),
        (
            {"descents": ((0.01, 1.0), (0.04, 1.0))},
            r"descents must be pairs \(gamma, delta\) with falling gamma",
        ),
        ({"descents": ((0.04, 1.0), (0.01, 1.0))}, "the same gamma delta"),
        ({"n": 50}, "n must be below"),
    ]

    @classmethod
    def make(cls):
        with jax.enable_x64(True):
            return synthetic()

    @pytest.mark.slow
    def test_of_a_small_run_the_constants_are_near_two(self):
        claims = study_named(self.study).claims(small_run(self.study))
        assert [claim.verdict for claim in claims[:2]] == ["holds", "holds"], claims[1].measured
        assert len(claims) == 12
