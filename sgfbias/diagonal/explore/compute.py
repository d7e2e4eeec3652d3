"""The computations of the explorer: a short run, landed, beside the prediction of the
theory. After compilation each takes under two seconds.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.descent import StochasticGradientDescent
from sgfbias.core.flow import GradientFlow, StochasticGradientFlow
from sgfbias.core.noise import LabelNoise, MeanLossNoise
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.explore.config import ExploreConfig
from sgfbias.diagonal.explore.edges import edges
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import u_from
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.theory.curve import solution_curve
from sgfbias.diagonal.theory.fibre import outside_row_space
from sgfbias.diagonal.theory.landing import Landing, land
from sgfbias.diagonal.theory.minimum_norm import minimum_l1, minimum_l2
from sgfbias.diagonal.theory.selection import select, select_many

TIMES = 60
CURVE_POINTS = 50
# The run in weights: number of seeds, number of steps of gamma, solver step / gamma.
CHECK_SEEDS, CHECK_STEPS, CHECK_WIDTH = 16, 100, 1 / 8
_ONE_AT_A_TIME = threading.Lock()  # All pages share the cores and the compiled programs.


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs and where they land, in NumPy with a leading axis of seeds.

    - `times`: (times,). Flow times of the records.
    - `loss`, `validation`: (seeds, times). The series of the loss and of the validation
      error. NaN for a seed that diverged.
    - `iterate`: (seeds, d). The iterate at the end. NaN for a seed that diverged.
    - `beta`, `log_alpha`: (seeds, d). The landed solution and the effective
      initialisation.
    - `integral`: (seeds,). The expected int L dt to infinity, plus int delta^2 dt of
      label noise.
    - `validation_error`, `error`: (seeds,). The validation error of the landed
      solution, and the estimate of its distance from the limit.
    - `diverged`, `landed`: (seeds,), of bool.

    The landed quantities are NaN for a seed without an estimate: it diverged, or it is
    too close to the stability edge to say that it will settle.
    """

    times: np.ndarray
    loss: np.ndarray
    validation: np.ndarray
    iterate: np.ndarray
    beta: np.ndarray
    log_alpha: np.ndarray
    integral: np.ndarray
    validation_error: np.ndarray
    error: np.ndarray
    diverged: np.ndarray

    @property
    def landed(self) -> np.ndarray:
        """Which seeds landed with an error estimate, (seeds,)."""
        return np.isfinite(self.error)


@dataclasses.dataclass(frozen=True)
class Explored:
    """Everything that is shown for one config, in NumPy.

    - `runs`: the runs of the seeds (one run without noise).
    - `sgd`: SGD itself and its own limits, with as many seeds; None where no batch size
      has the noise of the config, see `batch_size`.
    - `descent`: the gradient flow.
    - `predicted`: (seeds, d). The solution of the selection program at the alpha that
      the theorem gives for the loss integral of each seed.
    - `curve_integral`, `curve_error`: (points,). Loss integrals, and the validation
      errors of the solutions that the mean-loss model can select there.
    - `effective_alpha`: the median of alpha_inf, at which the unit ball of phi_alpha is
      drawn besides the alpha of the start.
    - `gap`, `gap_start`: see `weights_gap`.
    - `edges`: the predicted edges of stability, by the name of the curve.
    - `seconds`: the time that the computation took.
    """

    config: ExploreConfig
    runs: Runs
    sgd: Runs | None
    descent: Runs
    predicted: np.ndarray
    beta_star: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    ceiling: float
    curve_integral: np.ndarray
    curve_error: np.ndarray
    effective_alpha: float
    gap: float
    gap_start: float
    seconds: float
    edges: dict[str, float]

    @property
    def shown(self) -> int:
        """The seed whose landed error is the median. The picture of coordinates shows
        this seed.
        """
        errors, kept = self.runs.validation_error, np.flatnonzero(self.runs.landed)
        return int(kept[np.argsort(errors[kept])[(kept.size - 1) // 2]]) if kept.size else 0


def explore(config: ExploreConfig) -> Explored:
    """Simulate and land the runs of a config, and predict their limits.

    **Raises:** `ValueError` for values that make no sense. Seeds that diverge are no
    error: they are marked, and `notes` counts them.
    """
    config.check()
    started = time.perf_counter()
    with _ONE_AT_A_TIME, jax.enable_x64(True):
        problem = SparseRegression.sample(
            jax.random.key(config.problem_seed),
            n=config.n,
            d=config.d,
            sparsity=config.sparsity,
            dtype=jnp.float64,
        )
        network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
        descent = _descent(config, problem, network)
        runs = {"mean-loss": _mean_loss, "label": _label, "none": lambda *_: descent}[config.noise](
            config, problem, network
        )

        h, start = np.asarray(problem.h), np.asarray(network.log_alpha)
        rate = 2 * (0.0 if config.noise == "none" else config.noise_step_size)
        known = runs.landed
        law = start - rate * np.where(known, runs.integral, 0)[:, None] * h
        predicted = np.asarray(select_many(problem, jnp.asarray(law)).beta)
        top = 1.1 * float(np.max(runs.integral[known], initial=0)) or 1.0
        integrals = np.linspace(0, top, CURVE_POINTS)
        curve = np.asarray(
            solution_curve(
                problem,
                network.log_alpha,
                step_size=config.noise_step_size,
                integrals=jnp.asarray(integrals),
            ).beta
        )
        beta_star = np.asarray(problem.beta_star)
        gap, gap_start = weights_gap(config, problem, network)
        alive = runs.log_alpha[known]
        least = np.asarray(minimum_l1(problem))
        return Explored(
            config=config,
            runs=runs,
            sgd=_sgd(config, problem, network),
            descent=descent,
            predicted=np.where(known[:, None], predicted, np.nan),
            beta_star=beta_star,
            l1=least,
            l2=np.asarray(minimum_l2(problem)),
            ceiling=float(1 / np.sum(h * np.abs(beta_star))),
            curve_integral=integrals,
            curve_error=np.sum(np.square(curve - beta_star), axis=1),
            effective_alpha=float(np.exp(np.median(alive))) if alive.size else float("nan"),
            gap=gap,
            gap_start=gap_start,
            edges=edges(config, problem, batch_size(config), least),
            seconds=time.perf_counter() - started,
        )


def batch_size(config: ExploreConfig) -> int | None:
    """The batch size b for which SGD has the noise of the config, whose variance is 1/b
    of that of batches of 1. None with label noise, without noise, or if there is none.
    """
    b = round(1 / config.strength)
    fits = config.noise == "mean-loss" and b >= 1 and abs(b * config.strength - 1) < 1e-9
    return b if fits and b <= config.n else None


def notes(explored: Explored) -> list[str]:
    """What went wrong, one sentence or more for each problem; empty if nothing did."""
    config, runs, count = explored.config, explored.runs, explored.runs.diverged.size

    def who(lost: int) -> str:
        return (
            "The run"
            if count == 1
            else f"All {count} seeds"
            if lost == count
            else f"{lost} of {count} seeds"
        )

    found = []
    lost, blind = int(runs.diverged.sum()), int(np.sum(~runs.diverged & ~runs.landed))
    if lost:
        plateau = ", or a longer run to leave the plateau of a small alpha"
        found.append(
            f"{who(lost)} diverged at gamma = {config.step_size:g} and "
            f"{'is' if lost == 1 else 'are'} left out: the loss became NaN or stayed high. "
            f"Take a smaller gamma{plateau if config.alpha < 1e-3 else ''}. Near the truth the "
            "noise is stable if gamma times its strength is below about "
            f"{explored.ceiling:.2g}."
        )
    if blind:
        found.append(
            f"{who(blind)} could not be landed, being too close to the stability edge to say that "
            f"{'it' if blind == 1 else 'they'} will settle."
        )
    if not explored.descent.landed[0] and config.noise != "none":
        found.append("Gradient flow diverged at this step size and is left out.")
    return found


def weights_gap(
    config: ExploreConfig, problem: SparseRegression, network: DiagonalNetwork
) -> tuple[float, float]:
    """How far a run in weights violates the theorem, which says that
    `arcsinh(beta / 2 alpha_t^2)` is in the row space of X at any time.

    The runs that are shown are in mirror coordinates, where this holds by construction.
    In weights it can fail; if the theorem is right, it fails only by the solver's error
    at the step gamma/8.

    **Returns:** the norm of the part outside the row space over the norm of the whole
    vector, the median over 16 seeds; and the same with the alpha of the start in place
    of alpha_t. Both are NaN if every seed diverges.
    """
    gamma, dt = config.noise_step_size, config.step_size * CHECK_WIDTH
    flow: Any = GradientFlow(dt=dt)
    if config.noise != "none":
        flow = StochasticGradientFlow(
            gamma,
            LabelNoise(config.strength) if config.noise == "label" else MeanLossNoise(),
            dt=dt,
        )
    keys = None if config.noise == "none" else seeds(0, CHECK_SEEDS)
    steps = round(CHECK_STEPS / CHECK_WIDTH)
    runs = simulate(
        flow,
        network,
        problem,
        keys=keys,
        steps=steps,
        coordinates="weights",
        record=Record(times=2),
    )
    bad = np.atleast_1d(np.asarray(runs.diverged))
    if bad.all():
        return float("nan"), float("nan")
    beta = np.where(bad[:, None], 1.0, np.atleast_2d(runs.final["beta"]))
    integral = np.where(bad, 0.0, np.atleast_1d(runs.final["loss_integral"]))
    if config.noise == "label":
        integral = integral + config.strength**2 * dt * steps
    start = np.broadcast_to(np.asarray(network.log_alpha), beta.shape)
    effective = start - 2 * (0.0 if config.noise == "none" else gamma) * integral[
        :, None
    ] * np.asarray(problem.h)
    rows = np.linalg.qr(np.asarray(problem.X).T)[0].T

    def outside(log_alpha: np.ndarray) -> float:
        return float(
            np.median(
                outside_row_space(rows, u_from(jnp.asarray(beta), jnp.asarray(log_alpha)))[~bad]
            )
        )

    return outside(effective), outside(start)


def _descent(config: ExploreConfig, problem: SparseRegression, network: DiagonalNetwork) -> Runs:
    """The gradient flow. Its alpha does not change, so one solve gives its limit."""
    runs = simulate(
        GradientFlow(dt=config.step_size),
        network,
        problem,
        steps=config.steps,
        record=Record(times=TIMES),
    )
    chosen = select(problem, network.log_alpha)
    landing = Landing(
        beta=chosen.beta,
        log_alpha=network.log_alpha,
        error=jnp.where(chosen.converged, 0.0, jnp.inf),
        remaining=jnp.zeros(()),
        radius=jnp.zeros(()),
        validation_error=problem.validation_error(chosen.beta),
        selection=chosen,
    )
    one = jax.tree.map(
        lambda leaf: np.asarray(leaf)[None], (runs.series, runs.final, runs.diverged, landing)
    )
    return _runs(np.asarray(runs.times), *one)


def _mean_loss(config: ExploreConfig, problem: SparseRegression, network: DiagonalNetwork) -> Runs:
    flow = StochasticGradientFlow(config.noise_step_size, dt=config.step_size)
    runs = simulate(
        flow,
        network,
        problem,
        keys=seeds(0, config.seeds),
        steps=config.steps,
        record=Record(times=TIMES),
    )
    return _runs(np.asarray(runs.times), runs.series, runs.final, runs.diverged, land(runs))


def _sgd(config: ExploreConfig, problem: SparseRegression, network: DiagonalNetwork) -> Runs | None:
    batch = batch_size(config)
    if batch is None:
        return None
    runs = simulate(
        StochasticGradientDescent(config.step_size, batch),
        network,
        problem,
        keys=seeds(0, config.seeds),
        steps=config.steps,
        record=Record(times=TIMES),
    )
    return _runs(np.asarray(runs.times), runs.series, runs.final, runs.diverged, land(runs))


def _label(config: ExploreConfig, problem: SparseRegression, network: DiagonalNetwork) -> Runs:
    gamma, count = config.step_size, config.seeds
    noisy = StochasticGradientFlow(gamma, LabelNoise(config.strength), dt=gamma)
    on = simulate(
        noisy,
        network,
        problem,
        keys=seeds(0, count),
        steps=config.label_steps,
        record=Record(times=TIMES),
    )
    quiet = StochasticGradientFlow(gamma, dt=gamma)
    # A seed that diverged continues from the start, so that it does not hold up the
    # others, and is marked afterwards.
    bad = on.status == Status.NON_FINITE
    networks = jax.tree.map(
        lambda end, start: jnp.where(bad[:, None], start[None], end), on.networks, network
    )
    times, series, final, diverged, landing = _follow(
        quiet, networks, network, problem, seeds(count, 2 * count), config.steps
    )
    end = float(on.times[-1])
    series = {
        name: np.concatenate([on.series[name], series[name][:, 1:]], axis=1)
        for name in ("loss", "validation_error")
    }
    final = final | {
        "loss_integral": on.final["loss_integral"]
        + config.strength**2 * end
        + final["loss_integral"]
    }
    return _runs(
        np.concatenate([on.times, end + np.asarray(times[0, 1:])]),
        series,
        final,
        diverged | bad,
        landing,
    )


@eqx.filter_jit
def _follow(
    flow: StochasticGradientFlow,
    networks: DiagonalNetwork,
    start: DiagonalNetwork,
    problem: SparseRegression,
    keys: Array,
    steps: int,
) -> Any:
    """Run and land every seed from its own network."""

    def one(network: DiagonalNetwork, key: Array) -> Any:
        runs = simulate(flow, network, problem, keys=key, steps=steps, record=Record(times=TIMES))
        # For a seed that diverged, `land` solves the program of `runs.network`. The
        # program of the start is easy, that of the seed's own network may not be.
        landing = land(eqx.tree_at(lambda r: r.network, runs, start))
        return runs.times, runs.series, runs.final, runs.diverged, landing

    return jax.vmap(one)(networks, keys)


def _runs(times: np.ndarray, series: Any, final: Any, diverged: Any, landing: Landing) -> Runs:
    """The results in NumPy, with NaN where a seed diverged or did not land."""
    bad = np.asarray(diverged)

    def kept(values: Any) -> np.ndarray:
        values = np.asarray(values, np.float64)
        return np.where(bad.reshape(bad.shape + (1,) * (values.ndim - 1)), np.nan, values)

    error = np.where(bad, np.nan, landing.error)
    blind = ~np.isfinite(error)
    beta, log_alpha = (
        np.where(blind[:, None], np.nan, values) for values in (landing.beta, landing.log_alpha)
    )
    return Runs(
        times=times,
        loss=kept(series["loss"]),
        validation=kept(series["validation_error"]),
        iterate=kept(final["beta"]),
        beta=beta,
        log_alpha=log_alpha,
        integral=np.where(blind, np.nan, final["loss_integral"] + landing.remaining),
        validation_error=np.where(blind, np.nan, landing.validation_error),
        error=np.where(blind, np.nan, error),
        diverged=bad,
    )
