"""Isotropic noise on the gradient, as differential privacy adds: by how much does it break the bias theorem, and does it help?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import AbstractNoise, IsotropicNoise, LabelNoise, MeanLossNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal.certificate import row_space
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.noisy_sgd_claims import claims as claims
from sgfbias.diagonal.noisy_sgd_figures import plot as plot
from sgfbias.diagonal.perturbation import Response, response
from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many

LAST = Record(times=2)
WIDTHS = (1.0, 0.25, 0.0625)
ERROR = "(target / input)^2"


@dataclasses.dataclass(frozen=True)
class NoisySGDConfig:
    """Isotropic noise added to the gradient: how far the solution leaves the theorem's, what is selected instead, and at what error."""

    seeds: int = 192
    """Seeds of every sigma, each with one Brownian path for all of them."""
    steps: int = 7_000
    """Steps of the runs in mirror coordinates, dt = gamma."""
    step_size: float = 0.05
    """gamma."""
    sigmas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2)
    """Strengths of the isotropic noise, the first one 0. At 1 it shrinks log alpha as much as SGD's own noise on standard features."""
    alpha: float = 0.1
    """Scale of the initialisation."""
    n: int = 20
    """Examples."""
    d: int = 50
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""
    weights_seeds: int = 64
    """Seeds of the runs in weights coordinates, where nothing holds by construction."""
    weights_steps: int = 300
    """Their length, in iterations."""
    weights_sigma: float = 0.5
    """Their isotropic noise."""
    delta: float = 0.3
    """Label noise of the control in weights coordinates, on all the time; added to every derivative of the loss."""
    alphas: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.001)
    """Initialisations at which the theory's balance of gain and loss is looked at over many problems."""
    problems: int = 64
    """Number of those problems."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "alpha", "weights_sigma", "delta"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        sigmas = list(self.sigmas)
        if len(sigmas) < 4 or sigmas[0] != 0 or not np.all(np.isfinite(sigmas)) or sigmas != sorted(set(sigmas)):
            raise ValueError(f"sigmas must be at least four increasing numbers from 0, but are {self.sigmas}")
        if not self.alphas or not (np.all(np.isfinite(self.alphas)) and min(self.alphas) > 0):
            raise ValueError(f"alphas must be positive and finite, but are {self.alphas}")
        for name, least in (("seeds", 16), ("weights_seeds", 16), ("problems", 8), ("steps", 4), ("weights_steps", 4), ("n", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that the data leave a choice, but is {self.n}")


Config = NoisySGDConfig
PAPER = Config(seeds=1024, steps=40_000, step_size=0.02, n=40, d=100, sparsity=5, weights_seeds=256, weights_steps=1000)
REFERENCES = {
    "sander2024": "isotropic noise and what it does to the bias",
    "pesme2021": "the theorem that it breaks",
}


def run(config: NoisySGDConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions sigma, seed, noise, dt, weights_seed, alpha and problem.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        problem, network, out = _problem(config), DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64), Columns()
        rows = []
        for sigma in config.sigmas:
            say(f"sigma = {sigma:g}: {config.seeds} seeds x {config.steps:,} steps, and as much noise in the span of the rows")
            rows.append(_ladder(config, problem, network, sigma))
        for name, units in LADDER.items():
            out.add(name, ("sigma", "seed"), np.stack([row[name] for row in rows]), units)
        say("derivatives of the error around the runs without isotropic noise")
        start = jnp.nan_to_num(jnp.asarray(rows[0]["log_alpha_end"]), nan=float(np.log(config.alpha)))
        # One vector for all seeds, which the isotropic noise does not know of: its product with the offset has mean 0 exactly.
        gradient = np.asarray(response(problem, jnp.mean(start, axis=0)).gradient)
        out.add("first_order", ("sigma", "seed"), np.stack([row["offset"] @ gradient for row in rows]), ERROR)
        at = _responses(problem, start)
        for name, value in (("cost", 4 * at.laplacian), ("gain", at.shrinkage)):
            out.add(name, ("seed",), 2 * config.step_size * rows[0]["loss_integral"] * np.asarray(value), ERROR)
        noises = {
            "mean-loss": (MeanLossNoise(), 0.0, 0.0),
            "label": (LabelNoise(config.delta), 0.0, config.delta),
            "isotropic": (MeanLossNoise() + IsotropicNoise(config.weights_sigma), config.weights_sigma, 0.0),
        }
        columns = []
        for name, (noise, sigma, delta) in noises.items():
            say(f"{name} noise in weights coordinates, {config.weights_seeds} seeds at three widths")
            columns.append(_weights(config, problem, network, noise, sigma, delta))
        for name, units in WEIGHTS.items():
            out.add(name, ("noise", "dt", "weights_seed"), np.stack([column[name] for column in columns]), units)
        say(f"balance of gain and loss on {config.problems} problems")
        for name, value in zip(("many_cost", "many_gain"), _balances(config), strict=True):
            out.add(name, ("alpha", "problem"), value, ERROR + " per 2 gamma int L")
        coords = {
            "sigma": np.asarray(config.sigmas),
            "noise": list(noises),
            "dt": ("dt", np.asarray(WIDTHS), {"units": "gamma"}),
            "alpha": np.asarray(config.alphas),
        }
        attrs = attributes({"study": "noisy-sgd", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        outside = problem.d - int(np.linalg.matrix_rank(np.asarray(problem.X)))
        return out.dataset(coords, attrs | {"study": "noisy-sgd", "outside": str(outside)})


LADDER = {
    "residual_square": "1",
    "loss": "target^2",
    "loss_integral": "target^2 time",
    "gap": "target / input",
    "distance_square": ERROR,
    "response_square": ERROR,
    "error": ERROR,
    "error_without": ERROR,
    "error_inside": ERROR,
    "shrinkage": "log weight",
}
WEIGHTS = {
    "residual_square": "1",
    "loss_integral": "target^2 time",
    "gap": "relative distance",
    "gap_without": "relative distance",
    "shrinkage": "log weight",
    "shrinkage_law": "log weight",
}
WEIGHTS = {f"weights_{name}": units for name, units in WEIGHTS.items()}


def _problem(config: NoisySGDConfig) -> SparseRegression:
    key = jax.random.key(config.problem_seed)
    return SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)


def _residual_square(problem: SparseRegression, beta: Array, log_alpha: Array) -> Array:
    """`|(I - P) arcsinh(beta / 2 alpha^2)|^2`, P the projector on the row space of X; 0 where Theorem 1 holds."""
    u, basis = u_from(beta, log_alpha), row_space(problem.X)
    return jnp.sum(jnp.square(u - (u @ basis.T) @ basis), axis=1)


def _law(network: DiagonalNetwork, problem: SparseRegression, gamma: float, sigma: float, integral: Array) -> Array:
    """log alpha of the law, `log alpha - 2 gamma (h + sigma^2) int L`, from the loss integral alone, (seeds, d)."""
    return network.log_alpha[None] - 2 * gamma * (problem.h + sigma**2)[None] * integral[:, None]


@eqx.filter_jit
def _responses(problem: SparseRegression, log_alpha: Array) -> Response:
    return jax.vmap(lambda la: response(problem, la))(log_alpha)


def _finite(runs: Trajectory, value: Any) -> np.ndarray:
    return np.where(np.asarray(runs.diverged).reshape(-1, *(1,) * (np.ndim(value) - 1)), np.nan, np.asarray(value))


def _tame(runs: Trajectory) -> dict[str, Array]:
    """Final values, with those of the start in place of a diverged seed's."""
    fill = {"beta": 0.0, "loss_integral": 0.0, "loss": 0.0, "log_alpha": runs.network.log_alpha, "offset": 0.0}
    bad = runs.diverged
    return {name: jnp.where(bad[:, None] if runs.final[name].ndim == 2 else bad, v, runs.final[name]) for name, v in fill.items()}


def _ladder(config: NoisySGDConfig, problem: SparseRegression, network: DiagonalNetwork, sigma: float) -> dict[str, np.ndarray]:
    """One sigma in mirror coordinates: the residual, the solutions selected with and without the offset the noise left, and their errors."""
    keys, gamma = seeds(0, config.seeds), config.step_size

    def flow(rate: float, strength: float) -> Trajectory:
        # One structure of noise and widths throughout: one compiled program, one Brownian path per seed.
        noise = MeanLossNoise() + IsotropicNoise(strength)
        runs = StochasticGradientFlow(gamma * rate, noise, dt=gamma)
        return simulate(runs, network, problem, keys=keys, steps=config.steps, record=LAST)

    runs = flow(1.0, sigma)
    end = _tame(runs)
    law = _law(network, problem, gamma, sigma, end["loss_integral"])
    chosen = select_many(problem, law, offset=end["offset"]).beta
    without = select_many(problem, law).beta
    spread = _responses(problem, law).spread
    # As much shrinkage per unit of loss, on average over the features, by noise in the span of the rows.
    inside = flow(1 + sigma**2 / float(jnp.mean(problem.h)), 0.0) if sigma else runs
    error = jax.vmap(problem.validation_error)

    def norm_square(v: Array) -> Array:
        return jnp.sum(jnp.square(v), axis=1)

    row = {
        "residual_square": _residual_square(problem, end["beta"], law),
        "loss": end["loss"],
        "loss_integral": end["loss_integral"],
        "gap": jnp.sqrt(norm_square(end["beta"] - chosen)),
        "distance_square": norm_square(chosen - without),
        "response_square": 16 * gamma * sigma**2 * end["loss_integral"] * spread,
        "error": error(chosen),
        "error_without": error(without),
        "shrinkage": jnp.mean(network.log_alpha[None] - end["log_alpha"], axis=1),
        "log_alpha_end": law,
    }
    kept = {name: _finite(runs, value) for name, value in row.items()}
    kept["error_inside"] = _finite(inside, error(select_many(problem, _tame(inside)["log_alpha"]).beta))
    return kept | {"offset": _finite(runs, end["offset"])}


def _weights(
    config: NoisySGDConfig, problem: SparseRegression, network: DiagonalNetwork, noise: AbstractNoise, sigma: float, delta: float
) -> dict[str, np.ndarray]:
    """Euler in the weights at three widths on one Brownian path, log alpha from the law; the offset that the same path leaves is taken from
    mirror coordinates, where it is the sum of the noise itself."""
    keys, gamma, rows = seeds(0, config.weights_seeds), config.step_size, []

    def simulated(width: float, coordinates: str) -> Trajectory:
        flow = StochasticGradientFlow(gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1])
        steps = round(config.weights_steps / width)
        return simulate(flow, network, problem, keys=keys, steps=steps, coordinates=coordinates, record=LAST)

    offset = _tame(simulated(WIDTHS[-1], "mirror"))["offset"]
    for width in WIDTHS:
        runs = simulated(width, "weights")
        end = _tame(runs)
        time = gamma * config.weights_steps
        law = _law(network, problem, gamma, sigma, end["loss_integral"]) - 2 * gamma * problem.h[None] * delta**2 * time
        targets, size = end["beta"] @ problem.X.T, jnp.linalg.norm(end["beta"], axis=1)

        def gap(chosen: Array, beta: Array = end["beta"], size: Array = size) -> Array:
            return jnp.linalg.norm(chosen - beta, axis=1) / size

        row = {
            "residual_square": _residual_square(problem, end["beta"], law),
            "loss_integral": end["loss_integral"],
            "gap": gap(select_many(problem, law, offset=offset, targets=targets).beta),
            "gap_without": gap(select_many(problem, law, targets=targets).beta),
            "shrinkage": jnp.mean(network.log_alpha[None] - end["log_alpha"], axis=1),
            "shrinkage_law": jnp.mean(network.log_alpha[None] - law, axis=1),
        }
        rows.append({f"weights_{name}": _finite(runs, value) for name, value in row.items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _balances(config: NoisySGDConfig) -> np.ndarray:
    """What the perturbation costs and what the shrinkage gains, to first order in sigma^2, at the noiseless limit: (2, alphas, problems)."""

    def one(key: Array, log_alpha: Array) -> Array:
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        at = response(problem, jnp.full(config.d, log_alpha))
        return jnp.stack([4 * at.laplacian, at.shrinkage])

    keys = seeds(0, config.problems, root=config.problem_seed + 1)
    many = eqx.filter_jit(jax.vmap(one, in_axes=(0, None)))
    return np.stack([np.asarray(many(keys, jnp.log(alpha))).T for alpha in config.alphas], axis=1)
