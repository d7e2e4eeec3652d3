"""The study `noisy-sgd`: derivatives of the programme in its offset, claims told right from wrong on made data, and a small run."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers import failed, mutated, small_problem

import sgfbias as sgf
from sgfbias.diagonal import noisy_sgd as study
from sgfbias.diagonal.perturbation import response
from sgfbias.diagonal.selection import select_many

SEEDS, WEIGHTS_SEEDS, OUTSIDE = 200, 64, 30
CONFIG = study.Config(seeds=SEEDS)


@pytest.fixture(scope="module")
def made():
    """A dataset as theory says, with the statistics of theory."""
    rng, gamma = np.random.default_rng(0), CONFIG.step_size
    sigma = np.asarray(CONFIG.sigmas)[:, None]
    integral = 0.9 + 0.1 * rng.random((len(sigma), SEEDS))
    variance = 16 * gamma * sigma**2 * integral
    chi = rng.chisquare(OUTSIDE, (1, SEEDS))
    start = 0.35 * (1 + 0.01 * rng.normal(size=(1, SEEDS)))
    first = 0.05 * sigma * rng.normal(size=(1, SEEDS))
    cost, gain = np.full(SEEDS, 0.28 * 0.35), np.full(SEEDS, 0.09 * 0.35)
    ladder = {
        "residual_square": variance * chi + 1e-28,
        "loss": np.full_like(integral, 1e-16),
        "loss_integral": integral,
        "gap": np.full_like(integral, 1e-8),
        "distance_square": 0.05 * variance * chi / OUTSIDE,
        "response_square": 0.05 * variance,
        "error": start + first + (cost - gain) * sigma**2,
        "error_without": start - gain * sigma**2,
        "error_inside": start - 1.5 * gain * sigma**2,
        "shrinkage": 2 * gamma * (1 + sigma**2) * integral,
        "first_order": first,
    }
    data = {name: (("sigma", "seed"), np.broadcast_to(value, integral.shape).copy()) for name, value in ladder.items()}
    data |= {"cost": (("seed",), cost), "gain": (("seed",), gain)}
    width = np.asarray(study.WIDTHS)[None, :, None] * np.ones((3, 1, WEIGHTS_SEEDS))
    isotropic = np.array([0.0, 0.0, 1.0])[:, None, None]
    each = 0.9 + 0.1 * rng.random((1, 1, WEIGHTS_SEEDS)) + 0 * width
    strength = CONFIG.weights_sigma**2 * isotropic
    weights = {
        "residual_square": 16 * gamma * strength * each * rng.chisquare(OUTSIDE, (1, 1, WEIGHTS_SEEDS)) + 1e-2 * width,
        "loss_integral": each,
        "gap": 1e-2 * np.sqrt(width),
        "gap_without": 1e-2 * np.sqrt(width) + 0.5 * isotropic,
        "shrinkage": 2 * gamma * (1 + strength) * each + 1e-3 * width,
        "shrinkage_law": 2 * gamma * (1 + strength) * each,
    }
    data |= {f"weights_{name}": (("noise", "dt", "weights_seed"), value) for name, value in weights.items()}
    many = np.exp(0.1 * rng.normal(size=(len(CONFIG.alphas), CONFIG.problems)))
    data |= {"many_cost": (("alpha", "problem"), 3 * many), "many_gain": (("alpha", "problem"), many)}
    coords = {"sigma": sigma[:, 0], "noise": ["mean-loss", "label", "isotropic"], "dt": list(study.WIDTHS), "alpha": list(CONFIG.alphas)}
    return xr.Dataset(data, coords, {"config": json.dumps(dataclasses.asdict(CONFIG)), "outside": str(OUTSIDE)})


def test_response_is_the_derivative_of_the_programme():
    """Against central differences of the programme, all of them in one batch."""
    problem, log_alpha, step = small_problem(n=5, d=9, sparsity=2), jnp.full(9, jnp.log(0.3)), 1e-3
    at = response(problem, log_alpha)
    moves = np.concatenate([step * np.eye(9), -step * np.eye(9), np.zeros((19, 9))])
    alphas = np.concatenate([np.zeros((19, 9)), step * np.eye(9), -step * np.eye(9)])
    beta = np.asarray(select_many(problem, log_alpha[None] + jnp.asarray(alphas), offset=jnp.asarray(moves)).beta)
    error = np.square(beta - np.asarray(problem.beta_star)).sum(axis=1)

    def close(found, differences):
        np.testing.assert_allclose(found, differences, rtol=1e-4, atol=1e-6)

    by_offset, by_alpha = ((beta[k : k + 9] - beta[k + 9 : k + 18]).T / (2 * step) for k in (0, 19))
    close(at.jacobian, by_offset)
    close(at.tangent * 2 * at.beta[None], by_alpha)
    close(at.spread, np.sum(np.square(by_offset)))
    close(at.gradient, (error[:9] - error[9:18]) / (2 * step))
    close(at.shrinkage, np.sum(error[19:28] - error[28:]) / (2 * step))
    close(at.laplacian, np.sum(error[:9] + error[9:18] - 2 * error[18]) / step**2)


def test_response_wants_a_truth():
    with pytest.raises(ValueError, match="needs `beta_star`"):
        response(sgf.SparseRegression(jnp.ones((1, 2)), jnp.ones(1)), jnp.zeros(2))


def test_what_theory_says_holds_and_is_drawn(made):
    claims = study.claims(made)
    assert [claim.statement for claim in claims if claim.verdict != "holds"] == []
    assert len(claims) == 18
    assert study.plot(made) is not None


def at_isotropic(change):
    return lambda v: np.stack([v[0], v[1], change(v[2])])


def at_own(change):
    return lambda v: np.stack([change(v[0]), change(v[1]), v[2]])


MUTATIONS = {
    "another strength": ("residual_square", lambda v: 1.2 * v, "has the mean square that theory says"),
    "a residual without isotropic noise": ("residual_square", lambda v: v + 1e-12, "has the mean square that theory says"),
    "no statistics": ("residual_square", lambda v: v * np.where(np.arange(SEEDS) < 2, 40.0, 0.6), "other constants"),
    "another strength in weights": ("weights_residual_square", at_isotropic(lambda v: 1.5 * v), "The same in weights coordinates"),
    "own noise off the rows": ("weights_residual_square", at_own(lambda v: v + 0.1), "(mean-loss) keeps the theorem"),
    "label noise off the rows": ("weights_residual_square", at_own(lambda v: v + 0.1), "Label noise keeps the theorem"),
    "isotropic noise in the rows": ("weights_residual_square", at_isotropic(lambda v: v[::-1] * 0 + [[1.0], [0.1], [0.01]]), "same residual stays"),
    "no shrinkage by isotropic noise": ("weights_shrinkage", at_isotropic(lambda v: v - 0.02), "shrinks alpha on top"),
    "another offset": ("weights_gap", lambda v: v + 0.1, "With the offset"),
    "an offset without effect": ("weights_gap_without", lambda v: v * 0 + 1e-3, "without the offset it does not"),
    "another endpoint": ("gap", lambda v: 1e3 * v, "has converged is at the programme"),
    "another response": ("distance_square", lambda v: 1.3 * v, "At small sigma"),
    "a distance that does not grow": ("distance_square", lambda v: v[[0, 1, 1, 1, 1, 1]], "The distance from the theorem"),
    "a smaller alpha that does not help": ("error_without", lambda v: np.broadcast_to(v[:1], v.shape), "smaller alpha alone"),
    "an offset that helps": ("error", lambda v: v - 0.3, "The perturbed reference point raises"),
    "own noise that does worse": ("error_inside", lambda v: v + 0.3, "own noise does better"),
    "seeds that diverge": ("error", lambda v: np.where(np.arange(SEEDS) < 10, np.nan, v), "No seed diverges"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(made, name):
    variable, change, words = MUTATIONS[name]
    assert words in failed(study, mutated(made, variable, change))


def test_informing_claims_and_what_does_not_apply(made):
    unsettled = study.claims(mutated(made, "loss", lambda v: 0 * v + 1e-3))
    assert [c.statement[:10] for c in unsettled if c.verdict == "not applicable"] == ["Every seed"]
    free = mutated(made, "many_cost", lambda v: 0.1 * v)
    assert [c.statement[:10] for c in study.claims(free) if c.verdict == "fails" and not c.must_hold] == ["It does on"]
    gentle = mutated(made, "cost", lambda v: 0.1 * v)
    assert [c.statement[:10] for c in study.claims(gentle) if c.verdict == "fails" and not c.must_hold] == ["Altogether"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be positive"),
        ({"step_size": np.inf}, "step_size must be positive"),
        ({"sigmas": (0.1, 0.2, 0.3, 0.4)}, "sigmas must be at least four"),
        ({"sigmas": (0.0, 0.2, 0.1, 0.4)}, "sigmas must be at least four"),
        ({"alphas": (0.0,)}, "alphas must be positive"),
        ({"seeds": 3}, "seeds must be at least 16"),
        ({"n": 50}, "n must be below d"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))


@pytest.mark.slow
def test_a_small_run_holds():
    small = study.Config(
        seeds=64, steps=3000, sigmas=(0.0, 0.1, 0.4, 1.2), alpha=0.2, n=8, d=24, weights_seeds=64, weights_steps=100, alphas=(0.1,), problems=8
    )  # fmt: skip
    dataset = study.run(small)
    assert dataset["residual_square"].dims == ("sigma", "seed")
    assert all(dataset[name].attrs["units"] for name in dataset.data_vars)
    # What needs many seeds, or a problem on which it is so, is left to the default size.
    broken = failed(study, dataset)
    expected = (
        "has the mean square",
        "other constants",
        "in weights coordinates",
        "keeps the theorem",
        "same residual",
        "has converged",
    )
    assert [words for words in expected if words in broken] == [], broken
    assert study.plot(dataset) is not None


def test_the_paper_size_is_sound():
    study.PAPER.check()
