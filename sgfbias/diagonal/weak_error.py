"""How closely do the modified equations follow SGD? Errors of means and variances of observables against the step size."""

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
from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.moments import LeastSquares
from sgfbias.core.noise import MeanLossNoise, MinibatchNoise, NoNoise, PerSampleNoise
from sgfbias.core.problem import Problem
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.weak_error_claims import CLOSED_STEPS, FLOWS, LAWS, NETWORK_FLOWS
from sgfbias.diagonal.weak_error_claims import claims as claims
from sgfbias.diagonal.weak_error_claims import plot as plot

QUADRATIC_TIME = 2.0
FINE = 4  # solver steps per iteration; means are extrapolated from this and half of it on the same paths


@dataclasses.dataclass(frozen=True)
class WeakErrorConfig:
    """Error of means and variances of observables against the step size: SGD and its modified equations."""

    seeds: int = 32_768
    """Seeds per algorithm and step size."""
    step_size: float = 0.08
    """The largest of three step sizes on the diagonal network, each half of the one before."""
    time: float = 4.0
    """Flow time at which the diagonal network is measured; a whole number of the largest steps."""
    alpha: float = 0.3
    """Initialisation of the diagonal network."""
    law_seeds: int = 512
    """Seeds of the comparison of log alpha, feature by feature."""
    law_step_size: float = 0.0025
    """Its step size."""
    law_steps: int = 8000
    """Its iterations."""
    problem_seed: int = 3
    """Seed of the drawn problem, n = 6, d = 12, 3 non-zeros."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "time", "alpha", "law_step_size"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        for name in ("seeds", "law_seeds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, but is {getattr(self, name)}")
        if self.law_steps < 1:
            raise ValueError(f"law_steps must be at least 1, but is {self.law_steps}")
        if abs(self.time / self.step_size - round(self.time / self.step_size)) > 1e-6:
            raise ValueError(f"time must be a whole number of steps of {self.step_size}, but is {self.time}")


Config = WeakErrorConfig
REFERENCES = {
    "li2019": "weak order of the modified equations, the closed forms",
    "li2017": "the second-order drift",
    "pesme2021": "the mean-loss model, eq. (3), and per-sample noise, appendix E.1",
    "even2023": "the product law of SGD",
}


class _Linear(eqx.Module):
    w: Array

    def __call__(self, x: Array) -> Array:
        return x @ self.w


def run(config: WeakErrorConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions flow, closed_step, step_size, seed, law and feature.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        out = Columns()
        say("least squares: closed forms of SGD and five flows")
        _closed_forms(out)
        say(f"least squares: {config.seeds:,} simulated seeds against the closed forms")
        _simulated(config, out)
        step_sizes = config.step_size / 2.0 ** np.arange(3)
        _network(config, step_sizes, out, say)
        say(f"log alpha feature by feature, {config.law_seeds} seeds x {config.law_steps:,} iterations at {config.law_step_size:g}")
        _laws(config, out)
        coords = {
            "flow": list(FLOWS),
            "closed_step": ("closed_step", CLOSED_STEPS, {"units": "gamma"}),
            "step_size": ("step_size", step_sizes, {"units": "gamma"}),
            "law": list(LAWS),
            "network_flow": list(NETWORK_FLOWS),
        }
        attrs = attributes({"study": "weak-error", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset(coords, attrs | {"study": "weak-error"})


def _quadratic() -> tuple[LeastSquares, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6, 2))
    y = X @ rng.normal(size=2) + 0.5 * rng.normal(size=6)
    return LeastSquares(X, y), X, y, np.array([2.0, -1.0])


def _spread(M: np.ndarray) -> float:
    """Total variance of the weights."""
    mean = M[:-1, -1]
    return float(np.trace(M[:-1, :-1] - np.outer(mean, mean)))


def _closed_forms(out: Columns) -> None:
    forms, _, _, start = _quadratic()
    begin = forms.start(start)
    sgd = [forms.sgd(begin, g, round(QUADRATIC_TIME / g)) for g in CLOSED_STEPS]
    flows = [[forms.flow(begin, g, QUADRATIC_TIME, noise=noise, order=order) for g in CLOSED_STEPS] for noise, order in FLOWS.values()]
    error = [[forms.risk(M) - forms.risk(S) for M, S in zip(row, sgd, strict=True)] for row in flows]
    out.add("closed_error", ("flow", "closed_step"), error, "loss")
    out.add("closed_sgd_variance", ("closed_step",), [_spread(M) / g for M, g in zip(sgd, CLOSED_STEPS, strict=True)], "weight^2 / gamma")
    variance = [[_spread(M) / g for M, g in zip(row, CLOSED_STEPS, strict=True)] for row in flows]
    out.add("closed_variance", ("flow", "closed_step"), variance, "weight^2 / gamma")


def _simulated(config: WeakErrorConfig, out: Columns) -> None:
    """Means over seeds at the largest step size, and the exact means of the same iteration and of the same Euler schemes."""
    forms, X, y, start = _quadratic()
    problem, model, gamma = Problem(X, y), _Linear(jnp.asarray(start)), float(CLOSED_STEPS[0])
    steps, begin = round(QUADRATIC_TIME / gamma), forms.start(start)
    runs, predicted = [], []
    for order in (0, 1, 2):
        dynamics: Any = (
            StochasticGradientDescent(gamma, integral="batch")
            if order == 0
            else StochasticGradientFlow(gamma, MinibatchNoise(1), order=order, dt=gamma / FINE)
        )
        count = steps if order == 0 else steps * FINE
        runs.append(simulate(dynamics, model, problem, keys=seeds(0, config.seeds), steps=count, record=Record(times=2)).final["loss"])
        moment = (
            forms.sgd(begin, gamma, steps) if order == 0 else forms.euler(begin, gamma, count, dt=gamma / FINE, noise="exact", order=order)
        )
        predicted.append(forms.risk(moment))
    out.add("simulated_mean", ("simulated",), [np.mean(r) for r in runs], "loss")
    out.add("simulated_error", ("simulated",), [np.std(r, ddof=1) / np.sqrt(len(r)) for r in runs], "loss")
    out.add("simulated_predicted", ("simulated",), predicted, "loss")


def _network(config: WeakErrorConfig, step_sizes: np.ndarray, out: Columns, say: Callable[[str], None]) -> None:
    problem = SparseRegression.sample(jax.random.key(config.problem_seed), n=6, d=12, sparsity=3, dtype=jnp.float64)
    network, keys = DiagonalNetwork.init(alpha=config.alpha, d=12, dtype=jnp.float64), seeds(0, config.seeds)

    def measure(dynamics: Any, steps: int) -> np.ndarray:
        runs = simulate(dynamics, network, problem, keys=keys, steps=steps, record=Record(times=2))
        values = jnp.stack([jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1), runs.final["validation_error"]])
        # Stalled seeds count: a run this short need not have left its plateau, and leaving them out would bias the mean.
        return np.where(runs.status == Status.NON_FINITE, np.nan, values)

    noises = {"exact": MinibatchNoise(1), "mean-loss": MeanLossNoise(), "none": NoNoise()}
    sgd, flows = [], []
    for gamma in step_sizes:
        say(f"diagonal network: SGD and three flows, {config.seeds:,} seeds, step size {gamma:g}")
        steps = round(config.time / gamma)
        sgd.append(measure(StochasticGradientDescent(gamma, integral="batch"), steps))
        row = []
        for name in NETWORK_FLOWS:
            noise, order = FLOWS[name]
            coarse, fine = (
                measure(StochasticGradientFlow(gamma, noises[noise], order=order, dt=gamma / m, brownian_dt=gamma / FINE), steps * m)
                for m in (FINE // 2, FINE)
            )
            row.append(2 * fine - coarse)  # Richardson: Euler's weak error is linear in dt
        flows.append(row)
    for k, (name, units) in enumerate((("shrinkage", "log weight"), ("validation_error", "(target / input)^2"))):
        out.add(f"network_sgd_{name}", ("step_size", "seed"), [v[k] for v in sgd], units)
        out.add(f"network_{name}", ("step_size", "network_flow", "seed"), [[v[k] for v in row] for row in flows], units)


def _laws(config: WeakErrorConfig, out: Columns) -> None:
    problem = SparseRegression.sample(jax.random.key(config.problem_seed), n=6, d=12, sparsity=3, dtype=jnp.float64)
    network, gamma = DiagonalNetwork.init(alpha=0.1, d=12, dtype=jnp.float64), config.law_step_size
    dynamics: dict[str, Any] = {
        "sgd": StochasticGradientDescent(gamma, integral="batch"),
        "per-sample": StochasticGradientFlow(gamma, PerSampleNoise()),
        "exact-2": StochasticGradientFlow(gamma, MinibatchNoise(1), order=2),
        "exact-1": StochasticGradientFlow(gamma, MinibatchNoise(1)),
        "mean-loss-1": StochasticGradientFlow(gamma),
    }
    means, errors = [], []
    for name in LAWS:
        runs = simulate(dynamics[name], network, problem, keys=seeds(0, config.law_seeds), steps=config.law_steps, record=Record(times=2))
        shrinkage = np.asarray(network.log_alpha - runs.final["log_alpha"]) / gamma
        means.append(shrinkage.mean(0))
        errors.append(shrinkage.std(0, ddof=1) / np.sqrt(config.law_seeds))
    out.add("law_shrinkage", ("law", "feature"), means, "log weight / gamma")
    out.add("law_error", ("law", "feature"), errors, "log weight / gamma")
    out.add("law_support", ("feature",), np.asarray(problem.beta_star) != 0, "1")
