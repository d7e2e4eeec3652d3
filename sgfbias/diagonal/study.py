"""The main study: which solution do SGD and its flow select on one problem, and did theory predict it?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import IsotropicNoise, MeanLossNoise, PerSampleNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.trajectory import Trajectory
from sgfbias.diagonal import claims as diagonal_claims
from sgfbias.diagonal import figures
from sgfbias.diagonal.data import load_problem
from sgfbias.diagonal.landing import land
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import u_from, xi_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many
from sgfbias.diagonal.stepsize import find_step_size

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DiagonalConfig:
    """Which solution SGD and its flow select on a diagonal linear network, held against the theorem."""

    seeds: int = 256
    """Number of seeds of SGD and of each flow."""
    alpha: float = 0.01
    """Scale of the initialisation, w_+ = w_- = alpha."""
    step_size: float | Literal["auto"] = "auto"
    """gamma; auto finds the largest for which SGD and its flow converge, by trying."""
    steps: int = 100_000
    """Iterations of GD and SGD, and steps of the flow at dt = gamma."""
    n: int = 40
    """Examples of a drawn problem."""
    d: int = 100
    """Features of a drawn problem."""
    sparsity: int = 5
    """Non-zero entries of a drawn truth."""
    problem_seed: int = 0
    """Seed of a drawn problem."""
    data: Path | None = None
    """A .npz file with X (n, d), y (n,) and optionally beta_star (d,), instead of a drawn problem."""
    first_seed: int = 0
    """Absolute number of the first seed."""
    weights_seeds: int = 64
    """Seeds of the check in weights coordinates."""
    weights_steps: int = 500
    """Length of that check, in SGD steps."""
    early_steps: int = 1000
    """SGD steps after which runs are landed early, to test the error estimate."""
    compare_steps: int = 2500
    """SGD steps after which the laws of SGD, the mean-loss and the per-sample flow are compared; four times as many at gamma/4."""
    isotropic: float = 0.5
    """Strength of the isotropic noise of the negative control."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive and finite, but is {self.alpha}")
        if self.step_size != "auto" and not (np.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, or auto, but is {self.step_size}")
        for name in ("seeds", "steps", "weights_seeds", "weights_steps", "early_steps", "compare_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must not be negative, but is {self.first_seed}")


def run(config: DiagonalConfig, *, say: Say = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions seed, time, feature, example, dt and weights_seed, units, and provenance.

    **Raises:** `ValueError` for data that cannot be used, or if no step size converges.
    """
    config.check()
    with jax.enable_x64(True):
        return _run(config, say)


def claims(dataset: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    return diagonal_claims.claims(dataset)


def plot(dataset: Any) -> Any:
    """Loss, loss integral, validation error, and predicted against simulated solutions, as a Matplotlib figure."""
    return figures.plot(dataset)


def _run(config: DiagonalConfig, say: Say) -> Any:
    if config.data is None:
        key = jax.random.key(config.problem_seed)
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        say(f"problem: drawn, n = {problem.n}, d = {problem.d}, {config.sparsity} non-zeros, problem seed {config.problem_seed}")
    else:
        problem = load_problem(config.data)
        say(
            f"problem: {config.data}, n = {problem.n}, d = {problem.d}, beta_star {'given' if problem.beta_star is not None else 'not given'}"
        )
    problem.require_interpolation()
    network = DiagonalNetwork.init(alpha=config.alpha, d=problem.d, dtype=jnp.float64)
    out = _Columns(problem)

    gamma, tried = config.step_size, []
    if gamma == "auto":
        say("step size: trying, from the largest down")
        gamma, probes = find_step_size(problem, network)
        tried = [str(probe) for probe in probes]
        for line in tried:
            say(f"  {line}")
        say(f"step size: {gamma:.4g}, the largest tried at which all probes of SGD and SGF settle")
    gamma = float(gamma)
    keys = seeds(config.first_seed, config.first_seed + config.seeds)

    say(f"gradient descent, {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    out.trajectory("gd", gd)
    out.feature("gd_selected", select_many(problem, network.log_alpha[None]).beta[0], "target / input")

    say(f"SGD, {config.seeds} seeds x {config.steps:,} iterations")
    sgd = simulate(StochasticGradientDescent(gamma, integral="examples"), network, problem, keys=keys, steps=config.steps)
    say(f"  {_counts(sgd)}")
    out.trajectory("sgd", sgd)
    _sgd_law(problem, network, gamma, sgd, out)

    say(f"stochastic gradient flow, {config.seeds} seeds x {config.steps:,} steps")
    flow = StochasticGradientFlow(gamma)
    sgf = simulate(flow, network, problem, keys=keys, steps=config.steps)
    say(f"  {_counts(sgf)}")
    out.trajectory("sgf", sgf)
    _flow_law(problem, network, sgf, out)

    early = simulate(flow, network, problem, keys=keys, steps=min(config.early_steps, config.steps))
    say(f"landing early, after {min(config.early_steps, config.steps):,} steps, and at the end")
    _landing(problem, early, sgf, out)

    compared = min(config.compare_steps, config.steps)
    say(f"laws of SGD, the mean-loss and the per-sample flow, {compared:,} steps at gamma and {4 * compared:,} at gamma/4")
    _laws(problem, network, gamma, keys, compared, out)

    say(f"Theorem 1 in weights coordinates, {config.weights_seeds} seeds, with the isotropic control")
    _weights(config, problem, network, gamma, out)

    stored = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    attrs = attributes({"study": "diagonal", **stored}, dtype=jnp.float64, keys=keys)
    attrs |= {"study": "diagonal", "step_size": repr(gamma), "step_sizes_tried": json.dumps(tried)}
    return out.dataset(gd, keys, config, attrs)


def _counts(runs: Trajectory) -> str:
    return ", ".join(f"{count} {word}" for word, count in runs.statuses().items())


def _sane(runs: Trajectory, network: DiagonalNetwork) -> tuple[Array, ...]:
    """`(diverged, beta, log_alpha, offset)` with harmless values in place of a diverged seed's."""
    bad = runs.diverged
    fill = {"beta": jnp.ones(network.d), "log_alpha": network.log_alpha, "offset": network.offset}
    values = (jnp.where(bad[:, None], fill[name][None], runs.final[name]) for name in ("beta", "log_alpha", "offset"))
    return (bad, *values)


def _start(network: DiagonalNetwork, count: int) -> Array:
    return jnp.broadcast_to(network.log_alpha, (count, network.d))


def _norm(v: Array) -> Array:
    return jnp.linalg.norm(v, axis=-1)


def _sgd_law(problem: SparseRegression, network: DiagonalNetwork, gamma: float, sgd: Trajectory, out: _Columns) -> None:
    bad, beta, log_alpha, offset = _sane(sgd, network)
    fibre = beta @ problem.X.T
    exact = select_many(problem, log_alpha, offset=offset).beta
    out.seeds("sgd_selected", jnp.where(bad[:, None], jnp.nan, exact), "target / input", ("feature",))

    def keep(name: str, value: Array, units: str) -> None:
        out.seeds(f"sgd_{name}", jnp.where(bad, jnp.nan, value), units)

    with_offset = select_many(problem, log_alpha, offset=offset, targets=fibre).beta
    without = select_many(problem, log_alpha, targets=fibre).beta
    keep("gap", _norm(beta - with_offset) / _norm(beta), "relative distance")
    keep("gap_no_offset", _norm(beta - without) / _norm(beta), "relative distance")
    loss_integral = jnp.where(bad, 0.0, sgd.final["loss_integral"])
    each = jnp.where(bad[:, None], 0.0, sgd.final["example_integral"])
    start = _start(network, beta.shape[0])
    # int r_i^2 dt = 4 int l_i dt, so (gamma/2n) (X^2)^T int r^2 = (2 gamma/n) (X^2)^T int l
    laws = {
        "mean_loss": start - 2 * gamma * loss_integral[:, None] * problem.h[None],
        "per_sample": start - 2 * gamma / problem.n * (each @ jnp.square(problem.X)),
        "gradient_flow": start,
    }
    for name, effective in laws.items():
        keep(f"distance_{name}", _norm(select_many(problem, effective).beta - exact), "target / input")


def _flow_law(problem: SparseRegression, network: DiagonalNetwork, sgf: Trajectory, out: _Columns) -> None:
    bad, beta, log_alpha, _ = _sane(sgf, network)
    at_end, at_start = select_many(problem, log_alpha), select_many(problem, _start(network, beta.shape[0]))
    out.seeds("sgf_selected", jnp.where(bad[:, None], jnp.nan, at_end.beta), "target / input", ("feature",))

    def keep(name: str, value: Array, units: str) -> None:
        out.seeds(f"sgf_{name}", jnp.where(bad, jnp.nan, value), units)

    for name, chosen in (("", at_end), ("_start", at_start)):
        distance, bound = _bregman_bound(problem, log_alpha, beta, chosen)
        keep(f"distance{name}", distance, "sqrt(potential)")
        keep(f"bound{name}", bound, "sqrt(potential)")
    keep("distance_euclidean", _norm(at_end.beta - beta), "target / input")
    for name in ("feasibility", "stationarity", "duality_gap"):
        keep(name, getattr(at_end, name), "relative")


@jax.jit
def _bregman_bound(problem: SparseRegression, log_alpha: Array, beta: Array, chosen: Any) -> tuple[Array, Array]:
    """Distance of an iterate from a solution in the metric of phi's Hessian, and the bound its residual sets if theory is right.

    With `u_T = 4 X^T nu_T` (Lemma 1) the symmetric Bregman divergence is `<nu_T - nu_L, r_T>`, and it is at least
    `sum (beta_L - beta_T)^2 / (4 max xi)` by convexity, coordinate by coordinate.
    """
    u = u_from(beta, log_alpha)
    nu = jnp.linalg.lstsq(problem.X.T, u.T / 4)[0].T
    residual = beta @ problem.X.T - problem.y[None]
    bound = jnp.sqrt(jnp.abs(jnp.sum((chosen.multipliers - nu) * residual, axis=1)))
    xi = jnp.maximum(xi_from(log_alpha, u), xi_from(log_alpha, u_from(chosen.beta, log_alpha)))
    return jnp.sqrt(jnp.sum(jnp.square(chosen.beta - beta) / (4 * xi), axis=1)), bound


def _landing(problem: SparseRegression, early: Trajectory, late: Trajectory, out: _Columns) -> None:
    end, corrected, raw = land(late), land(early), land(early, correct=False)
    out.seeds("sgf_landed", end.beta, "landed solution", ("feature",))
    out.seeds("sgf_landed_error", end.error, "target / input")
    if end.validation_error is not None:
        out.seeds("sgf_landed_validation_error", end.validation_error, problem.units()["validation_error"])

    def distance(beta: Array) -> Array:
        return jnp.linalg.norm(beta - end.beta, axis=-1)

    out.seeds("early_distance", distance(early.final["beta"]), "target / input")
    for name, landing in (("corrected", corrected), ("landed", raw)):
        out.seeds(f"early_{name}_distance", distance(landing.beta), "target / input")
        out.seeds(f"early_{name}_estimate", landing.error, "target / input")


LAW_STEPS = (1.0, 0.25)


def _laws(problem: SparseRegression, network: DiagonalNetwork, gamma: float, keys: Array, steps: int, out: _Columns) -> None:
    """Final log alpha and validation error of SGD and two flows after one flow time, at two step sizes; NaN for a diverged seed."""
    dynamics: dict[str, Callable[[float], Any]] = {
        "sgd": lambda g: StochasticGradientDescent(g, integral="examples"),
        "mean_loss": StochasticGradientFlow,
        "per_sample": lambda g: StochasticGradientFlow(g, PerSampleNoise()),
    }
    for name, make in dynamics.items():
        runs = [simulate(make(gamma * factor), network, problem, keys=keys, steps=round(steps / factor)) for factor in LAW_STEPS]
        log_alpha = [jnp.where(r.diverged[:, None], jnp.nan, r.final["log_alpha"]) for r in runs]
        out.add(f"law_{name}_log_alpha", ("law_step", "seed", "feature"), jnp.stack(log_alpha), "log weight")
        if problem.measures_validation:
            error = [jnp.where(r.diverged, jnp.nan, r.final["validation_error"]) for r in runs]
            out.add(f"law_{name}_validation_error", ("law_step", "seed"), jnp.stack(error), problem.units()["validation_error"])


WIDTHS = (1.0, 0.25, 0.0625)


def _weights(config: DiagonalConfig, problem: SparseRegression, network: DiagonalNetwork, gamma: float, out: _Columns) -> None:
    """The finite-time form of Theorem 1 where it can fail: Euler in the weights, one Brownian path at three widths."""
    keys = seeds(config.first_seed, config.first_seed + config.weights_seeds)
    steps = min(config.weights_steps, config.steps)

    for name, noise in (("weights", MeanLossNoise()), ("isotropic", MeanLossNoise() + IsotropicNoise(jnp.asarray(config.isotropic)))):
        gaps = []
        for width in WIDTHS:
            flow = StochasticGradientFlow(gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1])
            count = round(steps / width)
            runs = simulate(flow, network, problem, keys=keys, steps=count, coordinates="weights", record=Record(times=2))
            bad, beta, _, _ = _sane(runs, network)
            integral = jnp.where(bad, 0.0, runs.final["loss_integral"])
            effective = network.log_alpha[None] - 2 * gamma * integral[:, None] * problem.h[None]
            predicted = select_many(problem, effective, targets=beta @ problem.X.T).beta
            gaps.append(np.where(bad, np.nan, _norm(beta - predicted) / _norm(beta)))
        out.add(f"{name}_gap", ("dt", "weights_seed"), np.stack(gaps), "relative distance")
        for kind, value in (("beta", beta), ("predicted", predicted)):
            out.add(f"{name}_{kind}", ("weights_seed", "feature"), jnp.where(bad[:, None], jnp.nan, value), "target / input")


class _Columns:
    """Collects the variables of the dataset, each with dimensions and units."""

    def __init__(self, problem: SparseRegression):
        self.problem = problem
        self.data: dict[str, Any] = {}
        self.add("X", ("example", "feature"), problem.X, "input")
        self.add("y", ("example",), problem.y, "target")
        if problem.beta_star is not None:
            self.add("beta_star", ("feature",), problem.beta_star, "target / input")

    def add(self, name: str, dims: tuple[str, ...], value: Any, units: str) -> None:
        self.data[name] = (dims, np.asarray(value), {"units": units})

    def feature(self, name: str, value: Array, units: str) -> None:
        self.add(name, ("feature",), value, units)

    def seeds(self, name: str, value: Array, units: str, rest: tuple[str, ...] = ()) -> None:
        self.add(name, ("seed", *rest), value, units)

    def trajectory(self, name: str, runs: Trajectory) -> None:
        table = runs.to_xarray()
        keep = [v for v in table.data_vars if v not in ("final_loss", "final_loss_integral", "final_validation_error", "stop_time")]
        for variable in keep:
            column = table[variable]
            dims = tuple("example" if dim == "example_integral_0" else dim for dim in column.dims)
            self.data[f"{name}_{str(variable).removeprefix('final_')}"] = (dims, column.values, dict(column.attrs))

    def dataset(self, runs: Trajectory, keys: Array, config: DiagonalConfig, attrs: dict[str, str]) -> Any:
        import xarray as xr

        coords = {
            "time": ("time", np.asarray(runs.times), {"units": "flow time, gamma per SGD step"}),
            "step": ("time", np.asarray(runs.steps), {"units": "SGD steps"}),
            "seed": np.arange(config.first_seed, config.first_seed + config.seeds),
            "weights_seed": np.arange(config.first_seed, config.first_seed + config.weights_seeds),
            "dt": ("dt", np.asarray(WIDTHS), {"units": "gamma"}),
            "law_step": ("law_step", np.asarray(LAW_STEPS), {"units": "gamma"}),
            "key": (("seed", "key_word"), np.asarray(jax.random.key_data(keys))),
        }
        return xr.Dataset(self.data, coords, attrs)


Config = DiagonalConfig
REFERENCES = {
    "pesme2021": "the stochastic flow, its theorem 1 and figures 1 to 3",
    "even2023": "SGD's own law, with its offset",
    "sander2024": "isotropic noise, the negative control",
    "li2017": "the stochastic modified equation of SGD",
}
