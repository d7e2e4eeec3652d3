"""Tests of the study `edge-of-stability`: the recursion equals the package, every claim
holds and fails on made-up datasets, and a small run is sound.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, made_up, outside_row_space, small_problem
from study_case import StudyCase, small_run

import sgfbias as sgf
from sgfbias.diagonal.studies import edge_of_stability as study
from sgfbias.diagonal.studies.edge_of_stability.family import edges, families
from sgfbias.diagonal.theory.large_steps import first_unevenness, recursion
from sgfbias.diagonal.theory.selection_each import select_each

DRAWS, SEEDS, FEATURES = 8, 2, 30
LEVEL = np.arange(8, -17, -1) / 4
LEVELS, ON = LEVEL.size, np.arange(FEATURES) < 3
CONFIG = study.Config(draws=DRAWS, seeds=SEEDS)


def ideal():
    """A made-up dataset that agrees with theory: gains gamma (G + V/b) (1 + c gamma),
    edges, and errors that follow the shape of the gain.
    """
    rng = np.random.default_rng(0)
    gamma, draw = 2.0**LEVEL, np.exp(0.05 * rng.normal(size=DRAWS))
    full, each = np.where(ON, 0.8, 0.1), np.where(ON, 1.6, 1.0)

    def gain(shape, extra=()):
        total = (gamma * (1 + 0.8 * gamma))[None, :, None] * draw[:, None, None] * shape
        return np.broadcast_to(
            total.reshape(DRAWS, LEVELS, *(1,) * len(extra), FEATURES),
            (DRAWS, LEVELS, *extra, FEATURES),
        ).copy()

    def loss(edge, extra=()):
        return np.broadcast_to(
            np.where(edge >= LEVEL, 1e-6, np.inf).reshape(LEVELS, *(1,) * len(extra)),
            (DRAWS, LEVELS, *extra),
        ).copy()

    def error(edge, sign, extra=()):
        below = edge - LEVEL
        logs = sign * (0.3 * gamma / 2.0**edge + np.where(below < 0.45, 4.0 * (0.5 - below), 0.0))
        values = np.exp(
            logs.reshape(LEVELS, *(1,) * len(extra)) * draw.reshape(-1, *(1,) * (1 + len(extra)))
        )
        return np.broadcast_to(values, (DRAWS, LEVELS, *extra)).copy()

    columns = {
        "gamma": (("draw", "level"), np.tile(gamma, (DRAWS, 1))),
        "truth": (("draw", "feature"), np.tile(1.0 * ON, (DRAWS, 1))),
        "flat_error": (("draw", "level"), error(1.0, -1)),
    }
    columns |= dict.fromkeys(
        ("start_loss", "shifted_start_loss", "flow_error", "shifted_flow_error"),
        (("draw",), np.ones(DRAWS)),
    )
    for name, edge, sign, shape in (
        ("gd", 1.0, 1, full),
        ("shifted", -1.0, -1, np.where(ON, 0.42, 0.4)),
    ):
        columns |= {
            f"{name}_loss": (("draw", "level"), loss(edge)),
            f"{name}_error": (("draw", "level"), error(edge, sign)),
        }
        columns |= {
            f"{name}_{v}": (("draw", "level", "feature"), gain(shape))
            for v in ("gain", "half_gain")
        }
    dims, limits = ("batch", "draw", "level", "seed"), (-1.0, -0.5, 0.25)
    columns["sgd_loss"] = (dims, np.stack([loss(e, (SEEDS,)) for e in limits]))
    columns["sgd_error"] = (dims, np.stack([error(e, -1, (SEEDS,)) for e in limits]))
    gains = np.stack([gain(full + each / b, (SEEDS,)) for b in CONFIG.batch_sizes])
    columns |= {f"sgd_{v}": ((*dims, "feature"), gains.copy()) for v in ("gain", "half_gain")}
    law = ("law", "draw", "law_level")
    columns["law_loss"] = (law, np.stack([loss(e)[:, ::2] for e in (1.0, -1.0)]))
    for name, value in (
        ("stationarity", 1e-14),
        ("distance", 1e-13),
        ("no_offset", 0.1),
        ("no_gain", 0.5),
    ):
        columns[f"law_{name}"] = (law, np.full(columns["law_loss"][1].shape, value))
    columns["law_gain"] = ((*law, "feature"), np.stack([gain(full)[:, ::2]] * 2))
    squares = (
        rng.exponential(size=(2, 2, 2000))
        * np.array([[(CONFIG.n + 1) / 3 + 1, 1.0], [5.0, 3.0]])[..., None]
    )
    columns["first_square"] = (("law", "part", "first_draw"), squares)
    return made_up(CONFIG, columns, {"level": LEVEL, "batch": np.array(CONFIG.batch_sizes)})


def _even(v):
    return np.broadcast_to(v.mean(axis=-1, keepdims=True), v.shape)


class TestEdgeOfStability(StudyCase):
    study = "edge-of-stability"
    small = "--draws 8 --seeds 2 --steps 8000 --batch-sizes 1 2"
    mutations = {
        "a wrong gain": ("law_stationarity", lambda v: v + 1e-6, "Exact law"),
        "an endpoint elsewhere": ("law_distance", lambda v: v + 1e-6, "Exact law"),
        "solutions not found": (
            "law_distance",
            lambda v: np.where(np.arange(v.shape[1])[None, :, None] < 2, np.nan, v),
            "Exact law",
        ),
        "an offset of no consequence": (
            "law_no_offset",
            lambda v: v * 1e-9,
            "Control: without the offset",
        ),
        "another convention": ("law_gain", lambda v: 2 * v, "gain at the same step size"),
        "an edge beyond the grid": ("gd_loss", np.zeros_like, "beyond the edge of stability"),
        "edges too near the end of the grid": (
            "shifted_loss",
            lambda v: np.where(np.arange(LEVELS) > 16, v, 1.0),
            "beyond the edge of stability",
        ),
        "gains still growing": ("gd_half_gain", lambda v: 0.9 * v, "gain has settled"),
        "even gradients at the start": (
            "first_square",
            lambda v: np.stack([v[1], v[1]]),
            "At the start",
        ),
        "an even gain of gradient descent": ("gd_gain", _even, "Over whole runs"),
        "an uneven gain of SGD": ("sgd_gain", lambda v: v * np.where(ON, 5, 1), "Over whole runs"),
        "an uneven gain on uncentred inputs": (
            "shifted_gain",
            lambda v: v * np.where(ON, 8, 1),
            "far more even",
        ),
        "gradient descent that recovers": (
            "gd_error",
            lambda v: 1 / v,
            "gradient descent recovers the truth worse",
        ),
        "SGD that does not": (
            "sgd_error",
            lambda v: 1 / v,
            "SGD with batch 4 recovers the truth better",
        ),
        "solutions that were not found": (
            "sgd_error",
            lambda v: np.where(np.arange(DRAWS)[:, None, None] == 0, v * [1, np.nan], v),
            "SGD with batch 2 recovers",
        ),
        "no trend of SGD": (
            "sgd_error",
            lambda v: np.where(np.arange(LEVELS)[:, None] > 13, 1.0, v),
            "SGD with batch 1 gets better",
        ),
        "no window of SGD": (
            "sgd_error",
            lambda v: np.exp(-np.broadcast_to(2.0 ** (-np.arange(LEVELS) / 4)[:, None], v.shape)),
            "effect of the step size on SGD with batch 1 is largest",
        ),
        "uncentred inputs that harm": (
            "shifted_error",
            lambda v: 1 / v,
            "Control: where its gain is even",
        ),
        "an even gain that harms": ("flat_error", lambda v: 1 / v, "spread evenly"),
        "no scaling rule": (
            "sgd_gain",
            lambda v: v * np.array([1, 1.5, 3])[:, None, None, None, None],
            "Linear scaling rule: 4",
        ),
        "a gain that does not grow": (
            "sgd_gain",
            lambda v: np.broadcast_to(v[:, :, -1:], v.shape),
            "Control: twice the step size",
        ),
    }
    refusals = [
        ({"steps": 101}, "steps must be even"),
        ({"n": 30}, "n must be below d = 30"),
        ({"sparsity": 30}, "d must be finite and above sparsity = 30"),
        ({"batch_sizes": (1, 3)}, "batch_sizes must be 1, 2, 4"),
        ({"batch_sizes": (1,)}, "at least two of them"),
        ({"batch_sizes": (1, 2, 4, 8, 16, 32)}, "batch_sizes must be at most n"),
    ]

    @classmethod
    def make(cls):
        return ideal()

    def test_all_that_theory_predicts_passes(self, made):
        assert all(claim.verdict == "holds" for claim in self.module.claims(made))

    @pytest.mark.slow
    def test_a_small_run_passes_where_it_is_large_enough(self):
        dataset = small_run(self.study)
        words = failed(self.module, dataset)
        for must in (
            "Exact law",
            "Control: without the offset",
            "gain at the same step size",
            "At the start",
            "SGD with batch 1 recovers",
        ):
            assert must not in words
        # The intervals of the other claims need more draws. The shapes of the gain
        # differ all the same.
        gd, _, sgd = families(dataset)
        assert np.mean(gd.unevenness(4) - sgd[0].unevenness(4)) > np.log(2)
        assert dataset["sgd_gain"].dims == ("batch", "draw", "level", "seed", "feature")


def test_an_edge_is_inside_the_grid_and_has_only_convergence_just_below_it():
    converged = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]], bool)[..., None]
    np.testing.assert_array_equal(edges(converged, 1), [2, 1, 4])
    np.testing.assert_array_equal(edges(converged, 2), [4, 4, 4])


def test_the_recursion_is_the_packages_gradient_descent_and_obeys_its_law():
    problem, alpha, gamma, steps = small_problem(), 0.2, 0.1, 300
    beta, gain, offset = (
        v[0]
        for v in recursion(
            np.asarray(problem.X)[None],
            np.asarray(problem.y)[None],
            np.array([gamma]),
            alpha,
            steps,
        )
    )
    network = sgf.DiagonalNetwork.init(alpha=alpha / 2**0.5, d=problem.d, dtype=jnp.float64)
    runs = sgf.simulate(
        sgf.GradientDescent(gamma), network, problem, steps=steps, record=sgf.Record(times=2)
    )
    np.testing.assert_allclose(beta, runs.networks.beta, atol=1e-12)
    np.testing.assert_allclose(gain, 2 * (network.log_alpha - runs.networks.log_alpha), atol=1e-12)
    np.testing.assert_allclose(offset, runs.networks.offset, atol=1e-11)
    slope = np.arcsinh(beta / (2 * (alpha**2 / 2) * np.exp(-gain)))
    assert outside_row_space(problem.X, slope - offset) < 1e-10
    assert outside_row_space(problem.X, slope) > 1e-3


def test_the_first_unevenness_is_that_of_drawn_gradients():
    rng, n, s = np.random.default_rng(0), 4, 2
    X = rng.normal(size=(200_000, n, 6))
    each = X * (X[..., :s] @ rng.normal(size=(200_000, s, 1)))
    for found, predicted in zip(
        (each.mean(axis=1), each[:, 0]), first_unevenness(n, s), strict=True
    ):
        square = np.square(found).mean(axis=0)
        assert square[:s].mean() / square[s:].mean() == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize("depth", [2, 3])
def test_many_problems_are_solved_as_each_alone(depth):
    problems = [small_problem(seed) for seed in range(3)]
    X, y = (np.stack([np.asarray(getattr(p, name)) for p in problems]) for name in ("X", "y"))
    log_alpha = np.array([-1.0, np.nan, -2.0])
    beta, solved = select_each(X, y, log_alpha, depth=depth)
    np.testing.assert_array_equal(solved, [True, False, True])
    for k in (0, 2):
        np.testing.assert_allclose(
            beta[k], sgf.select(problems[k], log_alpha[k], depth=depth).beta, atol=1e-9
        )
