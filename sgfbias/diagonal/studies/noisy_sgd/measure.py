"""The study measures the theorem's residual, the selected solutions and their errors at
every sigma, and the same residual in weights coordinates.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    IsotropicNoise,
    LabelNoise,
    MeanLossNoise,
    Record,
    SparseRegression,
    Status,
    StochasticGradientFlow,
    Trajectory,
    seeds,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.noisy_sgd import WIDTHS, Config
from sgfbias.diagonal.theory.fibre import minimisers_on_fibres
from sgfbias.diagonal.theory.isotropic import balance, noisy_law, residual_square
from sgfbias.diagonal.theory.perturbation import response, response_many
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log

LAST = Record(times=2)
ERROR = "(target / input)^2"
# Variable of the runs in mirror coordinates, by sigma and seed -> its units.
LADDER = {
    "residual_square": "1",
    "loss": "target^2",
    "loss_integral": "target^2 time",
    "gap": "target / input",
    "shrinkage": "log weight",
}
LADDER |= dict.fromkeys(
    ("distance_square", "response_square", "error", "error_without", "error_inside"), ERROR
)
# Variable of the runs in weights coordinates, without its prefix -> its units.
WEIGHTS = {"residual_square": "1", "loss_integral": "target^2 time"}
WEIGHTS |= {
    "gap": "relative distance",
    "gap_without": "relative distance",
    "shrinkage": "log weight",
    "shrinkage_law": "log weight",
}


def measure(config: Config, log: Log) -> Columns:
    """Measure, by seed at every sigma, the theorem's residual, the solutions selected
    with and without the offset that the noise leaves, and their errors. The residual is
    also measured in weights coordinates, and theory's cost and gain in error are
    computed on many problems.
    """
    (problem, _), gamma, dt = (
        draw(config),
        config.step_size,
        ("dt", np.asarray(WIDTHS), {"units": "gamma"}),
    )
    noises = {
        "mean-loss": (MeanLossNoise(), 0.0, 0.0),
        "label": (LabelNoise(config.delta), 0.0, config.delta),
        "isotropic": (
            MeanLossNoise() + IsotropicNoise(config.weights_sigma),
            config.weights_sigma,
            0.0,
        ),
    }
    out = Columns(
        sigma=np.asarray(config.sigmas), noise=list(noises), dt=dt, alpha=np.asarray(config.alphas)
    )
    out.attrs["outside"] = str(problem.d - int(np.linalg.matrix_rank(np.asarray(problem.X))))
    rows = []
    for sigma in config.sigmas:
        log(
            f"running sigma = {sigma:g}: {config.seeds} seeds x {config.steps:,} steps, and again "
            "with as much noise in the span of the rows"
        )
        rows.append(_at_sigma(config, sigma))
    for name, units in LADDER.items():
        out.add(name, ("sigma", "seed"), np.stack([row[name] for row in rows]), units)
    log("computing derivatives of the error at the runs without isotropic noise")
    start = jnp.nan_to_num(jnp.asarray(rows[0]["law"]), nan=float(np.log(config.alpha)))
    # The gradient is one vector for all seeds and independent of the isotropic noise,
    # so that its product with the offset has mean 0 exactly.
    gradient = np.asarray(response(problem, jnp.mean(start, axis=0)).gradient)
    out.add("first_order", ("sigma", "seed"), [row["offset"] @ gradient for row in rows], ERROR)
    at = response_many(problem, start)
    # With the noise in the span of the rows, log alpha shrinks in proportion to h.
    weight = problem.h / jnp.mean(problem.h)
    inside = 4 * jnp.einsum(
        "si,sij,sj->s", at.beta - np.asarray(problem.beta_star), at.tangent, at.beta * weight
    )
    for name, value in zip(("cost", "gain", "gain_inside"), (*balance(at), inside), strict=True):
        out.add(name, ("seed",), 2 * gamma * rows[0]["loss_integral"] * np.asarray(value), ERROR)
    ladders = []
    for name, (noise, sigma, delta) in noises.items():
        log(
            f"running {name} noise in weights coordinates: {config.weights_seeds} seeds at three "
            "step widths"
        )
        ladders.append(_in_weights(config, noise, sigma, delta))
    for name, units in WEIGHTS.items():
        out.add(
            f"weights_{name}",
            ("noise", "dt", "weights_seed"),
            [[row[name] for row in rows] for rows in ladders],
            units,
        )
    log(f"computing theory's cost and gain in error on {config.problems} problems")
    for name, value in zip(("many_cost", "many_gain"), _balances(config), strict=True):
        out.add(name, ("alpha", "problem"), value, ERROR + " per 2 gamma int L")
    return out


def _known(bad: Array, row: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of a row by seed, with NaN for a seed that is lost according to
    `bad`, (seeds,).
    """
    lost = np.asarray(bad)
    return {
        name: np.where(lost.reshape(-1, *(1,) * (np.ndim(value) - 1)), np.nan, np.asarray(value))
        for name, value in row.items()
    }


def _tame(runs: Trajectory, bad: Array) -> dict[str, Array]:
    """The final values, in which a lost seed has its values at the start."""
    fill = {
        "beta": 0.0,
        "loss_integral": 0.0,
        "loss": 0.0,
        "log_alpha": runs.network.log_alpha,
        "offset": 0.0,
    }
    return {
        name: jnp.where(bad[:, None] if runs.final[name].ndim == 2 else bad, v, runs.final[name])
        for name, v in fill.items()
    }


def _at_sigma(config: Config, sigma: float) -> dict[str, np.ndarray]:
    """Run one sigma in mirror coordinates. The result has the variables of `LADDER` by
    seed, and (seeds, features) the log alpha that follows from int L and the offset
    that the noise left.
    """
    (problem, network), gamma = draw(config), config.step_size
    error = jax.vmap(problem.validation_error)

    def flow(rate: float, strength: float) -> Trajectory:
        # The structure of the noise and the step width are always the same, so that
        # there is one compiled program and one Brownian path per seed.
        dynamics = StochasticGradientFlow(
            gamma * rate, MeanLossNoise() + IsotropicNoise(strength), dt=gamma
        )
        return simulate(
            dynamics,
            network,
            problem,
            keys=config.keys(0, config.seeds),
            steps=config.steps,
            record=LAST,
        )

    def norm_square(v: Array) -> Array:
        return jnp.sum(jnp.square(v), axis=1)

    runs = flow(1.0, sigma)
    end = _tame(runs, runs.diverged)
    law = noisy_law(problem, network.log_alpha, gamma, sigma, end["loss_integral"])
    chosen, without = (
        select_many(problem, law, offset=end["offset"]).beta,
        select_many(problem, law).beta,
    )
    # Noise in the span of the rows that shrinks log alpha by as much per unit of loss,
    # on average over the features.
    inside = flow(1 + sigma**2 / float(jnp.mean(problem.h)), 0.0) if sigma else runs
    row = {
        "residual_square": residual_square(problem, end["beta"], law),
        "loss": end["loss"],
        "loss_integral": end["loss_integral"],
        "gap": jnp.sqrt(norm_square(end["beta"] - chosen)),
        "distance_square": norm_square(chosen - without),
        "response_square": 16
        * gamma
        * sigma**2
        * end["loss_integral"]
        * response_many(problem, law).spread,
        "error": error(chosen),
        "error_without": error(without),
        "shrinkage": jnp.mean(network.log_alpha[None] - end["log_alpha"], axis=1),
        "law": law,
        "offset": end["offset"],
    }
    ended = _tame(inside, inside.diverged)["log_alpha"]
    return _known(runs.diverged, row) | _known(
        inside.diverged, {"error_inside": error(select_many(problem, ended).beta)}
    )


def _in_weights(
    config: Config, noise: Any, sigma: float, delta: float
) -> list[dict[str, np.ndarray]]:
    """Run Euler's scheme in weights coordinates at three step widths on one Brownian
    path.

    log alpha is computed from int L. The offset that the path leaves is taken from a
    run in mirror coordinates, where it is the sum of the noise itself. What is
    measured has a prediction at any time, also under label noise, with which no run
    converges. Therefore only a seed that is not finite is lost.
    """
    (problem, network), gamma, rows = draw(config), config.step_size, []
    keys, labels = (
        config.keys(0, config.weights_seeds),
        2 * gamma * problem.h[None] * delta**2 * (gamma * config.weights_steps),
    )

    def simulated(width: float, coordinates: str) -> Trajectory:
        flow = StochasticGradientFlow(
            gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1]
        )
        steps = round(config.weights_steps / width)
        return simulate(
            flow, network, problem, keys=keys, steps=steps, coordinates=coordinates, record=LAST
        )

    def lost(runs: Trajectory) -> Array:
        return jnp.asarray(runs.status) == int(Status.NON_FINITE)

    exact = simulated(WIDTHS[-1], "mirror")
    offset = _tame(exact, lost(exact))["offset"]
    for width in WIDTHS:
        runs = simulated(width, "weights")
        end = _tame(runs, lost(runs))
        law = noisy_law(problem, network.log_alpha, gamma, sigma, end["loss_integral"]) - labels
        row = {
            "residual_square": residual_square(problem, end["beta"], law),
            "loss_integral": end["loss_integral"],
            "gap": minimisers_on_fibres(problem, end["beta"], law, offset).relative,
            "gap_without": minimisers_on_fibres(problem, end["beta"], law).relative,
            "shrinkage": jnp.mean(network.log_alpha[None] - end["log_alpha"], axis=1),
            "shrinkage_law": jnp.mean(network.log_alpha[None] - law, axis=1),
        }
        rows.append(_known(lost(runs) | lost(exact), row))
    return rows


def _balances(config: Config) -> np.ndarray:
    """The error that the perturbed reference point costs and the error that the smaller
    alpha gains, per `2 gamma sigma^2 int L`, to first order at the solution selected at
    the initial alpha, (2, alphas, problems).
    """

    def one(key: Array, log_alpha: Array) -> Array:
        problem = SparseRegression.sample(
            key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64
        )
        return jnp.stack(balance(response(problem, jnp.full(config.d, log_alpha))))

    keys = seeds(0, config.problems, root=config.data_seed() + 1)
    many = eqx.filter_jit(jax.vmap(one, in_axes=(0, None)))
    return np.stack([np.asarray(many(keys, jnp.log(alpha))).T for alpha in config.alphas], axis=1)
