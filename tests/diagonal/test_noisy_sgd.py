"""Tests of the study `noisy-sgd`: derivatives of the program in its offset, claims that
hold and fail on made-up data, and a small run.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, made_up, mutated, small_problem
from study_case import StudyCase, small_run

import sgfbias as sgf
from sgfbias.diagonal.studies.noisy_sgd import WIDTHS, Config
from sgfbias.diagonal.theory.isotropic import balance, mean_residual_square, noisy_law
from sgfbias.diagonal.theory.perturbation import response, response_many
from sgfbias.diagonal.theory.selection import select_many

SEEDS, WEIGHTS_SEEDS, OUTSIDE = 200, 64, 30
CONFIG = Config(seeds=SEEDS)


def theory():
    """A made-up dataset that agrees with theory, with the statistics of theory."""
    rng, gamma = np.random.default_rng(0), CONFIG.step_size
    sigma = np.asarray(CONFIG.sigmas)[:, None]
    integral = 0.9 + 0.1 * rng.random((len(sigma), SEEDS))
    variance = mean_residual_square(1, gamma, sigma, integral)
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
    data = {
        name: (("sigma", "seed"), np.broadcast_to(value, integral.shape).copy())
        for name, value in ladder.items()
    }
    data |= {"cost": (("seed",), cost), "gain": (("seed",), gain)}
    data |= {"gain_inside": (("seed",), 1.5 * gain)}
    width = np.asarray(WIDTHS)[None, :, None] * np.ones((3, 1, WEIGHTS_SEEDS))
    isotropic = np.array([0.0, 0.0, 1.0])[:, None, None]
    each = 0.9 + 0.1 * rng.random((1, 1, WEIGHTS_SEEDS)) + 0 * width
    strength = CONFIG.weights_sigma**2 * isotropic
    weights = {
        "residual_square": 16
        * gamma
        * strength
        * each
        * rng.chisquare(OUTSIDE, (1, 1, WEIGHTS_SEEDS))
        + 1e-2 * width,
        "loss_integral": each,
        "gap": 1e-2 * np.sqrt(width),
        "gap_without": 1e-2 * np.sqrt(width) + 0.5 * isotropic,
        "shrinkage": 2 * gamma * (1 + strength) * each + 1e-3 * width,
        "shrinkage_law": 2 * gamma * (1 + strength) * each,
    }
    data |= {
        f"weights_{name}": (("noise", "dt", "weights_seed"), value)
        for name, value in weights.items()
    }
    many = np.exp(0.1 * rng.normal(size=(len(CONFIG.alphas), CONFIG.problems)))
    data |= {
        "many_cost": (("alpha", "problem"), 3 * many),
        "many_gain": (("alpha", "problem"), many),
    }
    axes = {
        "sigma": sigma[:, 0],
        "noise": ["mean-loss", "label", "isotropic"],
        "dt": list(WIDTHS),
        "alpha": list(CONFIG.alphas),
    }
    return made_up(CONFIG, data, axes, outside=str(OUTSIDE))


@pytest.mark.slow
def test_response_is_the_derivative_of_the_programme():
    """The derivatives equal central differences of the program, solved in one batch."""
    problem, log_alpha, step = small_problem(n=5, d=9, sparsity=2), jnp.full(9, jnp.log(0.3)), 1e-3
    at = response(problem, log_alpha)
    moves = np.concatenate([step * np.eye(9), -step * np.eye(9), np.zeros((19, 9))])
    alphas = np.concatenate([np.zeros((19, 9)), step * np.eye(9), -step * np.eye(9)])
    beta = np.asarray(
        select_many(problem, log_alpha[None] + jnp.asarray(alphas), offset=jnp.asarray(moves)).beta
    )
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
    close(response_many(problem, log_alpha[None]).jacobian[0], at.jacobian)


@pytest.mark.slow
def test_the_balance_is_what_small_isotropic_noise_does_to_the_mean_error():
    """Each coordinate of the offset is normal with variance `16 gamma sigma^2 int L`,
    and alpha shrinks. The mean over the offset is a quadrature with one pair of points
    on every axis.
    """
    problem, log_alpha, step = small_problem(n=5, d=9, sparsity=2), jnp.full(9, jnp.log(0.3)), 1e-4
    moved, shrunk = (float(v) * 2 * step for v in balance(response(problem, log_alpha)))
    # The points at +-root on every axis, with weight 1 / 18 each, have the second
    # moments of the offset at gamma sigma^2 int L = step.
    root = np.sqrt(9 * 16 * step)
    offsets = jnp.asarray(np.concatenate([root * np.eye(9), -root * np.eye(9), np.zeros((2, 9))]))
    law = noisy_law(problem, log_alpha, 1.0, 1.0, jnp.asarray([step])) - noisy_law(
        problem, log_alpha, 1.0, 0.0, jnp.asarray([step])
    )
    alphas = log_alpha + jnp.concatenate([jnp.zeros((19, 9)), law])
    error = np.square(
        np.asarray(select_many(problem, alphas, offset=offsets).beta)
        - np.asarray(problem.beta_star)
    ).sum(axis=1)
    assert np.mean(error[:18]) - error[18] == pytest.approx(moved, rel=0.1)
    assert error[18] - error[19] == pytest.approx(shrunk, rel=0.01)


def test_response_wants_a_truth():
    with pytest.raises(ValueError, match="needs `beta_star`"):
        response(sgf.SparseRegression(jnp.ones((1, 2)), jnp.ones(1)), jnp.zeros(2))


def at_isotropic(change):
    return lambda v: np.stack([v[0], v[1], change(v[2])])


def at_own(change):
    return lambda v: np.stack([change(v[0]), change(v[1]), v[2]])


class TestNoisySGD(StudyCase):
    study = "noisy-sgd"
    small = (
        "--seeds 64 --steps 3000 --sigmas 0 .1 .4 1.2 --alpha .2 --n 8 --d 24 --weights-seeds 64 "
        "--weights-steps "
        "100 --alphas .1 --problems 8"
    )
    mutations = {
        "another strength": (
            "residual_square",
            lambda v: 1.2 * v,
            "has the mean square that theory predicts",
        ),
        "a residual without isotropic noise": (
            "residual_square",
            lambda v: v + 1e-12,
            "has the mean square that theory predicts",
        ),
        "no statistics": (
            "residual_square",
            lambda v: v * np.where(np.arange(SEEDS) < 2, 40.0, 0.6),
            "other constants",
        ),
        "another strength in weights": (
            "weights_residual_square",
            at_isotropic(lambda v: 1.5 * v),
            "has the same mean square in weights coordinates",
        ),
        "own noise off the rows": (
            "weights_residual_square",
            at_own(lambda v: v + 0.1),
            "(mean-loss) keeps the theorem",
        ),
        "label noise off the rows": (
            "weights_residual_square",
            at_own(lambda v: v + 0.1),
            "Label noise keeps the theorem",
        ),
        "isotropic noise in the rows": (
            "weights_residual_square",
            at_isotropic(lambda v: v[::-1] * 0 + [[1.0], [0.1], [0.01]]),
            "same residual stays",
        ),
        "no shrinkage by isotropic noise": (
            "weights_shrinkage",
            at_isotropic(lambda v: v - 0.02),
            "shrinks alpha on top",
        ),
        "another offset": ("weights_gap", lambda v: v + 0.1, "With the offset"),
        "an offset without effect": (
            "weights_gap_without",
            lambda v: v * 0 + 1e-3,
            "without the offset, the program does not predict",
        ),
        "another endpoint": ("gap", lambda v: 1e3 * v, "has converged is at the program"),
        "another response": ("distance_square", lambda v: 1.3 * v, "At small sigma"),
        "a distance that does not grow": (
            "distance_square",
            lambda v: v[[0, 1, 1, 1, 1, 1]],
            "The distance from the theorem",
        ),
        "a smaller alpha that does not help": (
            "error_without",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "smaller alpha alone changes",
        ),
        "an offset that helps": (
            "error",
            lambda v: v - 0.3,
            "The perturbed reference point changes",
        ),
        "own noise that does worse": (
            "error_inside",
            lambda v: v + 0.3,
            "own noise with as much shrinkage",
        ),
        "seeds that diverge": (
            "error",
            lambda v: np.where(np.arange(SEEDS) < 10, np.nan, v),
            "No seed is lost",
        ),
    }
    refusals = [
        ({"sigmas": (0.1, 0.2, 0.3, 0.4)}, "sigmas must be at least four"),
        ({"sigmas": (0.0, 0.2, 0.1, 0.4)}, "sigmas must be at least four"),
        ({"sigmas": (0.0, 0.2, 0.4)}, "sigmas must be at least four"),
        ({"alphas": ()}, "alphas must be at least one"),
        ({"n": 50}, "n must be below d"),
    ]

    @classmethod
    def make(cls):
        return theory()

    def test_all_that_is_claimed_holds_if_theory_does(self, made):
        claims = self.module.claims(made)
        assert [claim.statement for claim in claims if claim.verdict != "holds"] == []
        assert len(claims) == 18

    def test_informing_claims_and_what_does_not_apply(self, made):
        def found(name, change, **wanted):
            claims = self.module.claims(mutated(made, name, change))
            return [
                claim.statement[:10]
                for claim in claims
                if all(getattr(claim, key) == value for key, value in wanted.items())
            ]

        assert found("loss", lambda v: 0 * v + 1e-3, verdict="not applicable") == ["Every seed"]
        assert found("many_cost", lambda v: 0.1 * v, verdict="fails", must_hold=False) == [
            "On most pr"
        ]
        assert found("cost", lambda v: 0.1 * v, verdict="fails", must_hold=False) == ["Altogether"]

    @pytest.mark.release
    def test_what_does_not_need_many_seeds_holds_in_a_small_run(self):
        """The other claims need more seeds, or a problem on which they are true. They
        are left to the default size.
        """
        dataset = small_run(self.study)
        assert dataset["residual_square"].dims == ("sigma", "seed")
        broken = failed(self.module, dataset)
        expected = (
            "has the mean square",
            "other constants",
            "in weights coordinates",
            "keeps the theorem",
            "same residual",
            "has converged",
        )
        assert [words for words in expected if words in broken] == [], broken
