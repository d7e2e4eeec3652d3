"""The Lasso by its optimality conditions and certificate, the mean loss by an exact law, and the study `label-noise-lasso`."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import failed, mutated, small_problem

import sgfbias as sgf
from sgfbias.core.claim import broken
from sgfbias.diagonal import label_noise_lasso as study
from sgfbias.diagonal.lasso import label_noise_lasso, lasso


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
    """n = d = 1: under label noise in a gradient flow's place beta is gamma-distributed with mean `c - 2 lambda`."""
    problem = sgf.SparseRegression(np.ones((1, 1)), np.array([1.5]))
    assert lasso(problem, 0.2).beta[0] == pytest.approx(1.5 - 2 * 0.2)
    solution, loss = label_noise_lasso(problem, 0.05, 1.0)
    penalty, b = 0.05 * (1 + loss), solution.beta[0]
    assert b == pytest.approx(1.5 - 2 * penalty)
    assert loss == pytest.approx(((b - 1.5) ** 2 / 4 + 0.05 * b) / (1 - 0.05 * b))
    assert label_noise_lasso(problem, 0.05, 1.0, dt=0.1)[1] > loss


def test_what_has_no_solution_is_refused():
    problem = small_problem()
    with pytest.raises(ValueError, match="positive and finite"):
        lasso(problem, 0.0)
    with pytest.raises(ValueError, match="loss_scale = 0.25"):
        label_noise_lasso(sgf.SparseRegression(problem.X, problem.y, loss_scale=0.5), 0.01, 1.0)
    with pytest.raises(RuntimeError, match="must be below 1"):
        label_noise_lasso(problem, 5.0, 0.1)


def synthetic(seeds=16):
    """A dataset as the law says it, of one problem, with scatter of known size along the support."""
    import xarray as xr

    problem, rng = small_problem(1), np.random.default_rng(0)
    X, h = np.asarray(problem.X), np.asarray(problem.h)
    gram, pull = X.T @ X / problem.n, X.T @ np.asarray(problem.y) / problem.n
    cells = [(False, 0.04, 1.0), (False, 0.01, 1.5), (True, 0.04, 1.0), (True, 0.01, 2.0)]
    rows = []
    for discrete, gamma, delta in cells:
        predicted, loss = label_noise_lasso(problem, gamma, delta)
        penalty = gamma * (delta**2 + loss)
        tilt = 1 + 2 * gamma * discrete  # SGD's own penalty
        fourth = np.mean(X**4, axis=0)
        b = predicted.beta
        order = 1 + 2 * gamma**2 * delta**2 * (fourth @ abs(b)) / (h @ abs(b)) if discrete else 1.0
        centre = lasso(problem, penalty * tilt * order * h).beta
        noise = rng.normal(size=(3, seeds, problem.d)) * (b != 0) * 0.002 * np.array([4.0, 2.0, 1.0])[:, None, None]
        noise -= noise.mean(axis=1, keepdims=True) * 0.9
        rows.append(
            {
                "beta": centre + noise,
                "loss": np.full((3, seeds), loss),
                "lost": np.zeros(seeds),
                "lasso": np.stack([lasso(problem, f * penalty * h).beta for f in study.FACTORS]),
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
    data = {name: (("run", *dims), np.stack([np.asarray(row[name]) for row in rows])) for name, (dims, _) in study.VARIABLES.items()}
    truth = np.asarray(problem.beta_star)
    data |= {
        "quiet_beta": (("seed", "feature"), np.tile(truth, (seeds, 1))),
        "truth": (("feature",), truth),
        "h": (("feature",), h),
        "fourth": (("feature",), np.mean(X**4, axis=0)),
        "gram": (("feature", "other"), gram),
        "pull": (("feature",), pull),
    }
    columns = list(zip(*cells, strict=True))
    coords = {name: ("run", np.array(v)) for name, v in zip(("discrete", "gamma", "delta"), columns, strict=True)}
    names = np.array([f"run {k}" for k in range(len(cells))], dtype=object)
    return xr.Dataset(data, coords | {"run": names, "window": np.asarray(study.WINDOWS), "factor": np.asarray(study.FACTORS)})


@pytest.fixture(scope="module")
def dataset():
    with jax.enable_x64(True):
        return synthetic()


def test_what_the_law_says_passes(dataset):
    assert [(c.statement, c.measured, c.tolerance) for c in broken(study.claims(dataset))] == []
    assert study.plot(dataset) is not None


MUTATIONS = {
    "lost runs": ("lost", lambda v: v + 1, "No run is lost"),
    "a gap": ("gap", lambda v: v + 1e-6, "No run is lost"),
    "another constant": ("loss", lambda v: v + 0.3, "Flow: on the support"),
    "slopes beyond the bound": ("pull", lambda v: 1.5 * v, "Flow: off the support"),
    "another solution": ("lasso", lambda v: v[:, [0, 0, 2]], "Flow: the time average is"),
    "no fall": ("beta", lambda v: v[:, ::-1], "Flow: a single seed"),
    "another mean loss": ("predicted_loss", lambda v: 1.2 * v, "The mean loss"),
    "half the penalty fits as well": ("lasso", lambda v: v[:, [1, 1, 2]], "Control: half and twice"),
    "no mean loss needed": ("delta", lambda v: 1.3 * v, "Control: without the mean loss"),
    "the same without noise": ("quiet_beta", lambda v: 0 * v, "Control: without label noise"),
    "another penalty of SGD": ("sample_h", lambda v: 1.2 * v, "SGD: the same law"),
    "a constant that stays": ("loss", lambda v: v + np.array([0, 0, 0, 2.0])[:, None, None], "SGD: the mean-loss Lasso"),
    "weights that do not matter": ("sample_lasso", lambda v: -v, "Control: at the largest gamma"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(dataset, name):
    variable, change, words = MUTATIONS[name]
    if words == "Control: without label noise":
        solution = dataset["lasso"].values[0, 1]
        change = lambda v: v * 0 + solution  # noqa: E731
    assert words in failed(study, mutated(dataset, variable, change))


@pytest.mark.slow
def test_a_small_one_runs_and_its_constants_are_near_two():
    config = dataclasses.replace(
        study.Config(), seeds=8, time=600.0, sgd_time=400.0, points=800, n=10, d=20, sparsity=2, flows=((0.04, 1.0), (0.02, 1.0))
    )
    dataset = study.run(config)
    claims = study.claims(dataset)
    assert len(claims) == 12
    assert claims[0].verdict == "holds"
    assert claims[1].verdict == "holds", claims[1].measured
    assert study.plot(dataset) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": -1.0}, "time must be positive"),
        ({"seeds": 4}, "seeds must be at least 8"),
        ({"points": 10}, "points must be at least"),
        ({"flows": ((0.1, 1.0),)}, "flows must be at least 2"),
        ({"descents": ((0.01, 1.0), (0.04, 1.0))}, "descents must have falling gamma"),
        ({"n": 50}, "n must be below"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))
