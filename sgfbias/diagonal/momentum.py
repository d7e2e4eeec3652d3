"""Momentum as a flow: which solution does it select, and is one number, lambda, all that the step size and the momentum say?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.interpolate import CubicSpline

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import GradientFlow, MomentumFlow
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal.momentum_claims import claims as claims
from sgfbias.diagonal.momentum_figures import plot as plot
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.perturbation import response
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many

LAST = Record(times=2)
BETA = "target / input"
GENTLE = 0.02  # step size of gradient descent on centred inputs; shifted ones have a direction in which it must be smaller
METHODS = {"heavy ball": False, "nesterov": True}


@dataclasses.dataclass(frozen=True)
class MomentumConfig:
    """Momentum as a flow: the law of the weights, lambda as the one parameter, its right value, and which solutions it selects."""

    lams: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
    """lambda of the flows, in flow time. The first three are also those of the discrete methods."""
    momenta: tuple[float, ...] = (0.0, 0.5, 0.8)
    """Momentum of the discrete methods; the step size is the one that lambda asks for."""
    time: float = 100.0
    """Flow time of every run."""
    dt: float = 0.001
    """Width of the flows' steps (Heun)."""
    records: int = 1000
    """Times at which the flows are looked at, log-spaced, for the integrals of their law."""
    alpha: float = 0.1
    """Scale of the initialisation."""
    n: int = 10
    """Examples."""
    d: int = 25
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 2
    """Seed of the drawn problem."""
    problems: int = 48
    """Problems of each kind, centred and shifted, on which the effect on sparsity is looked at to first order in lambda."""
    many_n: int = 20
    """Their examples."""
    many_d: int = 30
    """Their features."""
    many_alpha: float = 0.01
    """Their initialisation."""
    shift: float = 1.0
    """Mean of the shifted inputs."""
    seeds: int = 128
    """Seeds of SGD with momentum."""
    sgd_rates: tuple[float, float] = (0.02, 0.01)
    """Its step size over 1 - momentum, the second half of the first."""
    sgd_momentum: float = 0.8
    """Its momentum."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("time", "dt", "alpha", "many_alpha"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        lams = list(self.lams)
        if len(lams) < 5 or not np.all(np.isfinite(lams)) or lams[0] <= 0 or lams != sorted(set(lams)):
            raise ValueError(f"lams must be at least five increasing positive numbers, but are {self.lams}")
        if self.dt > lams[0] / 5:
            raise ValueError(f"dt must be at most a fifth of the smallest lambda, {lams[0] / 5:g}, but is {self.dt}")
        if len(self.momenta) < 2 or self.momenta[0] != 0 or not all(0 <= b < 1 for b in self.momenta):
            raise ValueError(f"momenta must be at least two numbers from 0 to below 1, the first one 0, but are {self.momenta}")
        if not 0 < self.sgd_momentum < 1:
            raise ValueError(f"sgd_momentum must be above 0 and below 1, but is {self.sgd_momentum}")
        if not (self.sgd_rates[0] > 0 and np.isclose(self.sgd_rates[0], 2 * self.sgd_rates[1])):
            raise ValueError(f"sgd_rates must be a positive number and its half, but are {self.sgd_rates}")
        for name, least in (("records", 50), ("problems", 8), ("seeds", 16), ("n", 1), ("many_n", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        for n, d in ((self.n, self.d), (self.many_n, self.many_d)):
            if n >= d:
                raise ValueError(f"examples must be fewer than features, so that the data leave a choice, but are {n} and {d}")


Config = MomentumConfig
PAPER = Config(problems=256, many_n=40, many_d=100, seeds=1024, records=2000)
REFERENCES = {
    "papazov2024": "the momentum flow and its law",
    "even2023": "where the gradient of gradient descent is large",
    "woodworth2020": "the limit of small alpha",
}


def step_size(lam: float, b: float, *, nesterov: bool, printed: bool = False) -> float:
    """The gamma of which lambda is the flow's, by `MomentumFlow.following`, or by the printed `gamma / (1 - b)^2`."""
    return lam * (1 - b) ** 2 if printed else lam / float(MomentumFlow.following(1.0, b, nesterov=nesterov).lam)


def run(config: MomentumConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions lam, feature, method, momentum, level, kind, problem, rate and seed.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        key = jax.random.key(config.problem_seed)
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        network, out = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64), Columns()
        say(f"momentum flows at {len(config.lams)} lambdas, and the gradient flow, to time {config.time:g}")
        squares = _flows(config, problem, network, out)
        say("heavy ball and Nesterov's method, and the flows at our lambda and at the printed one")
        _discrete(config, problem, network, out)
        for kind, shift in (("centred", 0.0), ("shifted", config.shift)):
            say(f"effect on sparsity to first order in lambda, {config.problems} problems with {kind} inputs")
            for name, (dims, value, units) in _many(config, shift).items():
                out.add(f"{kind}_{name}", dims, value, units)
        say(f"SGD with momentum, {config.seeds} seeds at two step sizes")
        _stochastic(config, problem, network, squares, out)
        coords = {
            "lam": np.asarray(config.lams),
            "method": list(METHODS),
            "momentum": np.asarray(config.momenta),
            "rate": np.asarray(config.sgd_rates),
        }
        attrs = attributes({"study": "momentum", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset(coords, attrs | {"study": "momentum"})


def _logs(network: DiagonalNetwork) -> Array:
    """`(log|w_+|, log|w_-|)`, (2, d)."""
    return jnp.stack([network.log_alpha + network.log_ratio / 2, network.log_alpha - network.log_ratio / 2])


def _landed(problem: SparseRegression, log_alpha: Array, offset: Array) -> np.ndarray:
    """The solutions that effective alphas and offsets select, (..., d)."""
    shape = log_alpha.shape
    return np.asarray(select_many(problem, log_alpha.reshape(-1, shape[-1]), offset=offset.reshape(-1, shape[-1])).beta).reshape(shape)


def law(times: np.ndarray, logs: np.ndarray, lam: float) -> dict[str, np.ndarray]:
    """The law of the momentum flow along a run, from its weights alone.

    With `s = w'/w`, `log w(t) = log w(0) + int force dt - lambda int s^2 dt - lambda s(t)` for each weight, the forces of the two signs being
    opposite and in the row space. So `log(w_+ w_-)` has no force in it, and what leaves the row space in `log(w_+/w_-)` is the offset.

    **Arguments:** `times` (times,) from 0, at which s = 0; `logs` (times, 2, d): `log|w_+|` and `log|w_-|`.

    **Returns:** `log_alpha` and `offset` (d,) that the law gives at the end; `gap` (d,): the largest difference of `log(w_+ w_-)` from the
    law at any time; `crossings` (d,): whether a weight goes through 0, where the law ends.
    """
    # Records are log-spaced in time, with a first scale of about lambda.
    clock = np.log(times + lam / 2)
    speed = CubicSpline(clock, logs, axis=0)(clock, 1) / (times + lam / 2)[:, None, None]
    squares = CubicSpline(times, np.square(speed), axis=0).antiderivative()(times)
    lost = lam * (squares + speed)
    mean = logs[0].mean(axis=0)[None] - lost.mean(axis=1)
    # Beside a zero |w| changes by a factor of 3 from one record to the next, wherever between two records it lies.
    jumps = np.max(np.abs(np.diff(logs, axis=0)), axis=(0, 1))
    return {
        "log_alpha": mean[-1],
        "offset": lost[-1, 1] - lost[-1, 0],
        "gap": np.max(np.abs(logs.sum(axis=1) - 2 * mean), axis=0),
        "crossings": jumps > 0.5,
    }


def _flows(config: MomentumConfig, problem: SparseRegression, network: DiagonalNetwork, out: Columns) -> np.ndarray:
    """The flows of every lambda, with their law along the way; returns `int (X^T r / n)^2 dt` of the gradient flow, (d,)."""
    record = Record({"logs": _logs, "slope": _Slope(problem)}, config.records)
    steps, heun = round(config.time / config.dt), dfx.Heun()

    def one(lam: Array) -> Any:
        runs = simulate(MomentumFlow(lam, dt=config.dt), network, problem, steps=steps, solver=heun, record=record)
        return {name: runs.final[name] for name in ("beta", "log_alpha", "offset", "loss")} | {"logs": runs["logs"]}

    flows = eqx.filter_jit(jax.vmap(one))(jnp.asarray(config.lams))
    still = simulate(GradientFlow(dt=config.dt), network, problem, steps=steps, solver=heun, record=record)
    times, logs = np.asarray(still.times), np.asarray(flows["logs"])
    squares = np.trapezoid(np.square(np.asarray(still["slope"])), times, axis=0)
    laws = [law(times, row, lam) for row, lam in zip(logs, config.lams, strict=True)]
    for name, units in (("log_alpha", "log weight"), ("offset", "1"), ("gap", "log weight"), ("crossings", "1")):
        out.add(f"law_{name}", ("lam", "feature"), np.stack([row[name] for row in laws]), units)
    predicted, tilt = (jnp.asarray(np.stack([row[name] for row in laws])) for name in ("log_alpha", "offset"))
    fibre = flows["beta"] @ problem.X.T
    start = jnp.broadcast_to(network.log_alpha, predicted.shape)
    for name, log_alpha, offset in (("law", predicted, tilt), ("law_no_offset", predicted, 0 * tilt), ("start", start, 0 * tilt)):
        chosen = select_many(problem, log_alpha, offset=offset, targets=fibre).beta
        out.add(f"{name}_distance", ("lam",), jnp.linalg.norm(chosen - flows["beta"], axis=1), BETA)
    out.add("flow_loss", ("lam",), flows["loss"], "target^2")
    out.add("flow_log_alpha", ("lam", "feature"), flows["log_alpha"], "log weight")
    out.add("flow_selected", ("lam", "feature"), _landed(problem, flows["log_alpha"], flows["offset"]), BETA)
    at = response(problem, network.log_alpha)
    out.add("still_squares", ("feature",), squares, "(target / input)^2 time")
    out.add("still_selected", ("feature",), at.beta, BETA)
    # log alpha falls by lambda int (X^T r / n)^2 to first order
    out.add("still_derivative", ("feature",), at.tangent @ (-2 * at.beta * squares), BETA + " per time")
    out.add("beta_star", ("feature",), problem.beta_star, BETA)
    return squares


class _Slope(eqx.Module):
    """`X^T r / n` of a network, (d,): the gradient in beta, up to its factor."""

    problem: SparseRegression

    def __call__(self, network: DiagonalNetwork) -> Array:
        return (self.problem.X @ network.beta - self.problem.y) @ self.problem.X / self.problem.n


def _discrete(config: MomentumConfig, problem: SparseRegression, network: DiagonalNetwork, out: Columns) -> None:
    """Discrete methods at the three smallest lambdas, and at one step size; the flows at our lambda and at the printed one."""
    levels = config.lams[:3]
    ends: dict[str, list[Any]] = {"log_alpha": [], "offset": [], "printed": []}
    for nesterov in METHODS.values():
        for b in config.momenta:
            for lam in levels:
                gamma = step_size(lam, b, nesterov=nesterov)
                final = _descend(config, problem, network, gamma, b, nesterov)
                ends["log_alpha"].append(final["log_alpha"])
                ends["offset"].append(final["offset"])
                ends["printed"].append(gamma / (1 - b) ** 2)

    count, heun = round(config.time / config.dt), dfx.Heun()

    def flow(lam: Array) -> Any:
        runs = simulate(MomentumFlow(lam, dt=config.dt), network, problem, steps=count, solver=heun, record=LAST)
        return runs.final["log_alpha"], runs.final["offset"]

    shape = (len(METHODS), len(config.momenta), len(levels), problem.d)
    dims = ("method", "momentum", "level", "feature")
    printed = np.asarray(ends["printed"])
    log_alpha, offset = eqx.filter_jit(jax.vmap(flow))(jnp.asarray(printed))
    for name, (value, tilt) in {
        "discrete": (jnp.stack(ends["log_alpha"]), jnp.stack(ends["offset"])),
        "printed": (log_alpha, offset),
    }.items():
        out.add(f"{name}_log_alpha", dims, value.reshape(shape), "log weight")
        out.add(f"{name}_selected", dims, _landed(problem, value, tilt).reshape(shape), BETA)
    out.add("printed_lam", dims[:-1], printed.reshape(shape[:-1]), "flow time")
    # One step size, that of the middle momentum at the largest of the three lambdas, with every momentum.
    gamma = step_size(levels[-1], config.momenta[len(config.momenta) // 2], nesterov=False)
    same = [_descend(config, problem, network, gamma, b, False) for b in config.momenta]
    log_alpha, offset = (jnp.stack([final[name] for final in same]) for name in ("log_alpha", "offset"))
    out.add("same_log_alpha", ("momentum", "feature"), log_alpha, "log weight")
    out.add("same_selected", ("momentum", "feature"), _landed(problem, log_alpha, offset), BETA)
    lams = [float(MomentumFlow.following(gamma, b).lam) for b in config.momenta]
    out.add("same_lam", ("momentum",), lams, "flow time")


def _descend(config: MomentumConfig, problem: SparseRegression, network: DiagonalNetwork, gamma: float, b: float, nesterov: bool) -> Any:
    steps = round(config.time * (1 - b) / gamma)
    return simulate(GradientDescent(gamma, momentum=b, nesterov=nesterov), network, problem, steps=steps, record=LAST).final


def _many(config: MomentumConfig, shift: float) -> dict[str, Any]:
    """Derivatives in lambda at 0 on many problems: of the error and the l1 norm, and with the same mean shrinkage spread evenly."""
    gamma = GENTLE if shift == 0 else GENTLE / (1 + shift**2 * config.many_d / 4)
    steps = round(60 / gamma)

    def one(key: Array) -> dict[str, Array]:
        drawn = SparseRegression.sample(key, n=config.many_n, d=config.many_d, sparsity=config.sparsity, dtype=jnp.float64)
        X, truth = drawn.X + shift, jnp.asarray(drawn.beta_star)
        problem = SparseRegression(X, X @ truth, truth)
        network = DiagonalNetwork.init(alpha=config.many_alpha, d=problem.d, dtype=jnp.float64)
        # Plain gradient descent has lambda = gamma / 2.
        runs = simulate(GradientDescent(gamma), network, problem, steps=steps, record=LAST)
        squares = (network.log_alpha - runs.final["log_alpha"]) * 2 / gamma
        at = response(problem, network.log_alpha)

        def moved(shrinkage: Array) -> Array:
            return at.tangent @ (-2 * at.beta * shrinkage)

        away = at.beta - truth
        error, on = away @ away, truth != 0
        return {
            "error_slope": 2 * (away @ moved(squares)) / error,
            "l1_slope": jnp.sign(at.beta) @ moved(squares),
            "even_slope": 2 * (away @ moved(jnp.full_like(squares, jnp.mean(squares)))) / error,
            "share": jnp.sum(jnp.where(on, squares, 0)) / jnp.sum(squares),
            "shrinkage": jnp.mean(squares),
        }

    values = eqx.filter_jit(jax.vmap(one))(seeds(0, config.problems, root=config.problem_seed + 1))
    units = {"error_slope": "1 / time", "l1_slope": BETA + " per time", "even_slope": "1 / time", "share": "1", "shrinkage": "1 / time"}
    return {name: (("problem",), np.asarray(values[name]), unit) for name, unit in units.items()}


def _stochastic(config: MomentumConfig, problem: SparseRegression, network: DiagonalNetwork, squares: np.ndarray, out: Columns) -> None:
    """SGD with momentum b and step size gamma: shrinkage of log alpha, mean over the features, with what first order predicts."""
    keys, b = seeds(0, config.seeds), config.sgd_momentum
    found: dict[str, list[np.ndarray]] = {"shrinkage": [], "noise": [], "inertia": [], "plain": []}
    for rate in config.sgd_rates:
        for name, dynamics in (
            ("shrinkage", StochasticGradientDescent(rate * (1 - b), momentum=b, integral="examples")),
            ("plain", StochasticGradientDescent(rate, integral="examples")),
        ):
            runs = simulate(dynamics, network, problem, keys=keys, steps=round(config.time / rate), record=LAST)
            lost = jnp.where(runs.diverged, jnp.nan, jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1))
            found[name].append(np.asarray(lost))
            if name == "shrinkage":
                # (rate / 2 n) (X^2)^T int r^2, and int r_i^2 = 4 int l_i
                noise = 2 * rate / problem.n * (runs.final["example_integral"] @ jnp.square(problem.X))
                found["noise"].append(np.asarray(jnp.mean(noise, axis=1)))
        found["inertia"].append(np.full(config.seeds, rate * b / (1 - b) * np.mean(squares)))
    for name, value in found.items():
        out.add(f"sgd_{name}", ("rate", "seed"), np.stack(value), "log weight")
