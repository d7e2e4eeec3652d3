"""Are gradients through the dynamics right, and does the implicit function theorem give those of the limit?"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import GradientFlow, StochasticGradientFlow
from sgfbias.core.hypergradient import as_hyper, hypergradient
from sgfbias.core.noise import IsotropicNoise, LabelNoise, MinibatchNoise, PerSampleNoise
from sgfbias.core.problem import Problem
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.schedule import UntilTime
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal.hyper_gradient_claims import LEVELS
from sgfbias.diagonal.hyper_gradient_claims import claims as claims
from sgfbias.diagonal.hyper_gradient_claims import plot as plot
from sgfbias.diagonal.landing import land
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select

LAST = Record(times=2)
STEP = 2.0**-11  # of the central differences, relative to the hyperparameter where that is a number; their error is of fourth order


@dataclasses.dataclass(frozen=True)
class HyperGradientConfig:
    """Gradients of every kind of outcome against central differences, both modes, and the limit's by the implicit function theorem."""

    seeds: int = 16
    """Seeds of every comparison."""
    steps: int = 200
    """Iterations of the runs that are held against differences."""
    step_size: float = 0.05
    """gamma."""
    alpha: float = 0.3
    """Scale of the initialisation."""
    n: int = 10
    """Examples."""
    d: int = 25
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""
    landing_steps: tuple[int, ...] = (100, 300, 1000)
    """Iterations after which a run is landed and the landed solution differentiated."""
    limit_steps: int = 20_000
    """Iterations that are differentiated step by step, to convergence."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "alpha"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        if self.seeds < 4:
            raise ValueError(f"seeds must be at least 4, but is {self.seeds}")
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, but is {self.steps}")
        if not self.landing_steps or min(self.landing_steps) < 1 or list(self.landing_steps) != sorted(set(self.landing_steps)):
            raise ValueError(f"landing_steps must be increasing whole numbers, but are {self.landing_steps}")
        if self.limit_steps <= self.landing_steps[-1]:
            raise ValueError(f"limit_steps must be above the last of landing_steps, {self.landing_steps[-1]}, but is {self.limit_steps}")


Config = HyperGradientConfig
REFERENCES = {
    "pesme2021": "Theorem 1; mean-loss, per-sample and label noise",
    "li2017": "the stochastic modified equation of SGD",
    "sander2024": "isotropic noise",
    "kvaerno2004": "the solver of the gradient flow",
    "optimistix2024": "its implicit stages",
    "lineax2023": "the linear systems in them",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One outcome: `outcome(hyper, key)`, the hyperparameters by name, and the same outcome with a forward derivative where it differs."""

    outcome: Callable[[dict[str, Any], Array], Any]
    hyper: dict[str, Any]
    forward: Callable[[dict[str, Any], Array], Any] | None = None


def cases(config: HyperGradientConfig) -> dict[str, Case]:
    """What is held against differences, by name: every dynamics, chart, outcome and kind of hyperparameter."""
    problem, network, gamma, steps = _problem(config), _network(config), config.step_size, config.steps
    log_alpha, time = np.asarray(network.log_alpha), gamma * (steps - 0.3)

    def flow_end(h: dict[str, Any], key: Array) -> Array:
        flow = StochasticGradientFlow(h["step size"])
        return simulate(flow, DiagonalNetwork.init(log_alpha=h["log alpha"]), problem, keys=key, steps=steps, record=LAST).final[
            "validation_error"
        ]

    def noise_only(h: dict[str, Any], key: Array) -> Array:
        flow = StochasticGradientFlow(h["step size, fixed time"], dt=gamma)
        return simulate(flow, network, problem, keys=key, steps=steps, record=LAST).final["loss_integral"]

    def scheduled(h: dict[str, Any], key: Array) -> Array:
        flow = StochasticGradientFlow(lambda k: h["peak"] * jnp.minimum(k, 8) / 8 / (1 + h["decay"] * k), PerSampleNoise())
        return jnp.mean(simulate(flow, network, problem, keys=key, steps=steps, coordinates="log", record=LAST).final["log_alpha"])

    def in_weights(h: dict[str, Any], key: Array) -> Array:
        label = LabelNoise(lambda k: h["delta"] * jnp.exp(-h["rate"] * k), mean_loss=False)
        flow = StochasticGradientFlow(gamma, MinibatchNoise(h["batch size"]) + label + IsotropicNoise(h["sigma"]))
        data = SparseRegression(problem.X, h["targets"], problem.beta_star)
        return simulate(flow, network, data, keys=key, steps=steps, coordinates="weights", record=LAST).final["validation_error"]

    def algorithm(h: dict[str, Any], key: Array) -> Array:
        sgd = StochasticGradientDescent(h["step size"] * (1 - h["momentum"]), momentum=h["momentum"], label_noise=h["label noise"])
        return simulate(sgd, network, problem, keys=key, steps=steps, record=LAST).final["validation_error"]

    def plain(step_size: Any, key: Array) -> Array:
        return simulate(StochasticGradientDescent(step_size), network, problem, keys=key, steps=steps, record=LAST).final[
            "validation_error"
        ]

    model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(1))
    rng = np.random.default_rng(config.problem_seed)
    inputs, targets = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))

    def of_a_model(h: dict[str, Any], key: Array) -> Array:
        start = jax.tree.map(lambda leaf: leaf * h["initial scale"] if eqx.is_inexact_array(leaf) else leaf, model)
        flow = StochasticGradientFlow(gamma, MinibatchNoise(2))
        return simulate(flow, start, Problem(h["inputs"], targets), keys=key, steps=steps, record=LAST).final["loss"]

    def landed(h: dict[str, Any], key: Array) -> Any:
        return land(_flow(problem, h["log alpha"], h["step size"], steps, key)).validation_error

    def adaptive(adjoint: Any) -> Callable[[dict[str, Any], Array], Any]:
        def one(h: dict[str, Any], key: Array) -> Array:
            start, flow = DiagonalNetwork.init(log_alpha=h["log alpha"]), GradientFlow(rtol=1e-12, atol=1e-14)
            return simulate(flow, start, problem, t1=float(time), record=LAST, adjoint=adjoint).final["loss_integral"]

        return one

    def selected(h: dict[str, Any], key: Array) -> Array:
        return problem.validation_error(select(problem, h["log alpha"]).beta)

    def curvature(h: dict[str, Any], key: Array) -> Array:
        tangent = {"log alpha": jnp.ones(config.d), "step size": jnp.ones(())}
        return jax.jvp(lambda g: flow_end(g, key), (h,), (tangent,))[1]

    both = {"log alpha": log_alpha, "step size": gamma}
    return {
        "flow, mirror: error": Case(flow_end, both),
        "flow, mirror: int L": Case(noise_only, {"step size, fixed time": gamma}),
        "flow, log, schedule: effective log alpha": Case(scheduled, {"peak": gamma, "decay": 0.01}),
        "flow, weights, three noises: error": Case(
            in_weights, {"batch size": 4.5, "delta": 0.1, "rate": 0.02, "sigma": 0.1, "targets": np.asarray(problem.y)}
        ),
        "SGD, momentum: error": Case(algorithm, {"step size": gamma, "momentum": 0.5, "label noise": 0.1}),
        "SGD, fixed steps: error": Case(lambda h, key: plain(h["step size"], key), {"step size": gamma}),
        "SGD, fixed time: error": Case(lambda h, key: plain(UntilTime(h["step size"], t1=time, steps=steps), key), {"step size": gamma}),
        "flow of an MLP: loss": Case(of_a_model, {"initial scale": 1.0, "inputs": inputs}),
        "flow, landed: error": Case(landed, both),
        "gradient flow, adaptive: int L": Case(adaptive(None), {"log alpha": log_alpha}, adaptive(dfx.ForwardMode())),
        "programme: error": Case(selected, {"log alpha": log_alpha}),
        "second derivative, flow: error": Case(curvature, both),
    }


def run(config: HyperGradientConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions row (a case and one of its hyperparameters), seed, level, steps and feature.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        keys, out = seeds(0, config.seeds), Columns()
        other = seeds(config.seeds, 2 * config.seeds)
        names: list[str] = []
        rows: list[dict[str, Any]] = []
        for name, case in cases(config).items():
            say(f"{name}, in {', '.join(case.hyper)}")
            for parameter, row in _compare(case, keys, other):
                names.append(f"{name} in {parameter}")
                rows.append(row)
        units = {"slope": "outcome", "difference": "outcome", "unpaired": "outcome", "mode_gap": "1", "share": "1"}
        for column, unit in units.items():
            value = np.stack([np.asarray(row[column]) for row in rows])
            out.add(column, ("row", *{3: ("level", "seed"), 2: ("seed",), 1: ()}[value.ndim]), value, unit)
        for column, (dims, value) in _limits(config, keys, say).items():
            out.add(column, dims, value, "outcome per direction" if "gradient" in column else "1")
        attrs = attributes({"study": "hyper-gradient", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=keys)
        coords = {"row": names, "seed": np.arange(config.seeds), "steps": np.asarray(config.landing_steps)}
        return out.dataset(coords, attrs | {"study": "hyper-gradient"})


def _problem(config: HyperGradientConfig) -> SparseRegression:
    key = jax.random.key(config.problem_seed)
    return SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)


def _network(config: HyperGradientConfig) -> DiagonalNetwork:
    return DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)


def _flow(problem: SparseRegression, log_alpha: Any, gamma: Any, steps: int, key: Array) -> Any:
    return simulate(StochasticGradientFlow(gamma), DiagonalNetwork.init(log_alpha=log_alpha), problem, keys=key, steps=steps, record=LAST)


def _compare(case: Case, keys: Array, other: Array) -> Any:
    """Per hyperparameter: its name; derivatives (seeds,) along a random direction of signs, central differences (levels, seeds) with common
    random numbers, the difference of means with other random numbers on one side, the largest relative gap between the two modes, and the
    largest seed's share of the squared gradient."""
    hyper = as_hyper(case.hyper)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the shares are stored and shown
        report = hypergradient(case.outcome, hyper, keys=keys)
        reverse = report.gradients
        forward = hypergradient(case.forward or case.outcome, hyper, keys=keys, mode="forward").gradients
    rng = np.random.default_rng(0)
    directions = {name: jnp.asarray(rng.choice([-1.0, 1.0], np.shape(value))) for name, value in hyper.items()}
    widths = {name: STEP * jnp.maximum(jnp.max(jnp.abs(value)), 0.1) for name, value in hyper.items()}

    def moved(name: str, factor: float) -> dict[str, Array]:
        return {**hyper, name: hyper[name] + factor * widths[name] * directions[name]}

    points = [moved(name, sign * factor) for name in hyper for factor in LEVELS for sign in (1, -1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    values = eqx.filter_jit(jax.vmap(jax.vmap(case.outcome, in_axes=(None, 0)), in_axes=(0, None)))
    paired = values(stacked, keys).reshape(len(hyper), len(LEVELS), 2, -1)
    apart = values(stacked, other).reshape(len(hyper), len(LEVELS), 2, -1)
    for k, name in enumerate(hyper):
        slope = jnp.sum((reverse[name] * directions[name]).reshape(keys.shape[0], -1), axis=1)
        spans = 2 * widths[name] * jnp.asarray(LEVELS)
        difference = (paired[k, :, 0] - paired[k, :, 1]) / spans[:, None]
        unpaired = (jnp.mean(paired[k, 0, 0]) - jnp.mean(apart[k, 0, 1])) / spans[0]
        gap = jnp.max(jnp.abs(forward[name] - reverse[name])) / jnp.max(jnp.abs(reverse[name]))
        yield name, {"slope": slope, "difference": difference, "unpaired": unpaired, "mode_gap": gap, "share": report.share}


def _limits(config: HyperGradientConfig, keys: Array, say: Callable[[str], None]) -> dict[str, Any]:
    """Gradients of the limit's validation error in (log alpha, gamma): unrolled to convergence, unrolled to where the runs are landed, and
    landed: corrected, uncorrected, and with the path's own dependence on the hyperparameters left out."""
    problem, network = _problem(config), _network(config)
    start = (network.log_alpha, jnp.asarray(config.step_size))

    def gradients(outcomes: Callable) -> dict[str, np.ndarray]:
        slopes = jax.jit(jax.vmap(jax.jacrev(outcomes), in_axes=(None, 0)))(start, keys)
        return {name: np.concatenate([alpha, gamma[:, None]], axis=1) for name, (alpha, gamma) in slopes.items()}

    def unrolled(hyper: Any, key: Array) -> dict[str, Array]:
        return {"limit": _flow(problem, *hyper, config.limit_steps, key).final["validation_error"]}

    def landed(hyper: Any, key: Array, steps: int) -> dict[str, Array]:
        runs = _flow(problem, *hyper, steps, key)
        shrunk = jax.lax.stop_gradient(runs.final["log_alpha"] - hyper[0])
        return {
            "unrolled": runs.final["validation_error"],
            "landed": land(runs).validation_error,
            "uncorrected": land(runs, correct=False).validation_error,
            "frozen": problem.validation_error(select(problem, hyper[0] + shrunk).beta),
        }

    say(f"limit: {config.limit_steps:,} steps unrolled, {config.seeds} seeds")
    end = _flow(problem, *start, config.limit_steps, keys)
    rows = []
    for steps in config.landing_steps:
        say(f"limit: landed after {steps:,} steps")
        rows.append(gradients(lambda hyper, key, steps=steps: landed(hyper, key, steps)))
    return {
        "limit_gradient": (("seed", "hyper"), gradients(unrolled)["limit"]),
        "limit_loss": (("seed",), end.final["loss"]),
        **{f"{name}_gradient": (("steps", "seed", "hyper"), np.stack([row[name] for row in rows])) for name in rows[0]},
    }
