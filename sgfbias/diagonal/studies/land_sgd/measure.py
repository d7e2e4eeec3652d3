"""The measurements of the study: every run is landed at three times, and followed until
nothing is left that could move its limit.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    DiagonalNetwork,
    GradientDescent,
    IsotropicNoise,
    MeanLossNoise,
    PerSampleNoise,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    StochasticGradientFlow,
    Trajectory,
    land,
    select,
    simulate,
)
from sgfbias.diagonal.potential import xi_from
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.land_sgd import DISCRETE, DYNAMICS, LADDER, Config
from sgfbias.diagonal.theory.landing_rest import expected_fall
from sgfbias.diagonal.theory.moments import NoiseLaw, remaining_moments
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log, counted

DISTANCE = "target / input"
FALL = "fall of log weight"
ENDS = Record(times=2)


def measure(config: Config, log: Log) -> Columns:
    """Simulate and land all runs, and follow them to their limits.

    **Returns:** columns by dynamics, rung (of the ladder of lengths), seed and feature.
    """
    problem, network = draw(config)
    gamma = config.share * _edge(problem, network)
    log(f"gamma = {gamma:.4g}, {config.share:g} of the edge of mean-square stability")
    steps = [config.steps * k for k in LADDER]
    out = Columns(
        dynamics=list(DYNAMICS),
        steps=("rung", np.asarray(steps), {"units": "iterations"}),
        seed=np.arange(config.seeds),
    )
    out.attrs["step_size"] = repr(gamma)
    keys = config.keys(0, config.seeds)

    def simulated(dynamics: Any, steps: int) -> Trajectory:
        options = {"keys": keys} if dynamics.is_stochastic else {}
        return simulate(dynamics, network, problem, steps=steps, record=ENDS, **options)

    rows = []
    for name, dynamics in made(gamma, config.batch_size).items():
        log(f"{DYNAMICS[name]}, {config.seeds} seeds x {config.long_steps:,} iterations")
        end = simulated(dynamics, config.long_steps)
        log(f"  {counted(end)}")
        early = [simulated(dynamics, k) for k in steps]
        rows.append(_landed(problem, early, end, offsets=name in DISCRETE))
        if name == "per_sample":
            _features(out, early, end, StochasticGradientFlow(gamma))
    for name, units in UNITS.items():
        dims = ("dynamics", "seed") if name in PER_SEED else ("dynamics", "rung", "seed")
        out.add(name, dims, np.stack([row[name] for row in rows]), units)

    log(f"gradient descent, {config.long_steps:,} iterations")
    descent = GradientDescent(gamma)
    end = simulated(descent, config.long_steps)
    row = _landed(problem, [simulated(descent, k) for k in steps], end, offsets=True)
    for name, units in UNITS.items():
        out.add(f"gd_{name}", ("rung",)[name in PER_SEED :], row[name][..., 0], units)

    log("the control with isotropic noise")
    _isotropic(out, simulated, gamma, config, steps)
    return out


def made(gamma: float, batch_size: int) -> dict[str, Any]:
    """The random dynamics, in the order of `DYNAMICS`."""
    return {
        "sgd": StochasticGradientDescent(gamma),
        "replaced": StochasticGradientDescent(gamma, batch_size),
        "distinct": StochasticGradientDescent(gamma, batch_size, sampling="without_replacement"),
        "mean_loss": StochasticGradientFlow(gamma),
        "per_sample": StochasticGradientFlow(gamma, PerSampleNoise()),
    }


# Variable -> units. Those of PER_SEED do not depend on the rung.
UNITS = {
    "iterate": DISTANCE,
    "selected": DISTANCE,
    "landed": DISTANCE,
    "corrected": DISTANCE,
    "estimate": DISTANCE,
    "shift": DISTANCE,
    "step_left": DISTANCE,
    "radius": "1",
    "left": "1",
    "fell": FALL,
    "expected": FALL,
    "unfed": FALL,
    "size": DISTANCE,
    "end_gap": DISTANCE,
    "status": "1",
}
PER_SEED = ("size", "end_gap", "status")


def _edge(problem: SparseRegression, network: DiagonalNetwork) -> float:
    """The step size at which the radius of per-sample noise is 1. The radius is
    proportional to the step size.
    """
    chosen = select(problem, network.log_alpha)
    xi = xi_from(network.log_alpha, jnp.arcsinh(chosen.beta * jnp.exp(-2 * network.log_alpha) / 2))
    zero, tried = jnp.zeros((), problem.dtype), 1e-4
    law = NoiseLaw(jnp.asarray(tried / (4 * problem.n), problem.dtype), zero, zero, zero, zero)
    A = (problem.X * xi) @ problem.X.T
    return tried / float(remaining_moments(A, problem.y, law, differentiable=False).radius)


def _landed(
    problem: SparseRegression, early: list[Trajectory], end: Trajectory, *, offsets: bool
) -> dict[str, np.ndarray]:
    """The variables of `UNITS` for one kind of runs: (rungs, seeds), or (seeds,). A
    single run is a run of one seed. A seed that has diverged, or whose loss is so high
    at a rung that it counts as diverged there, has NaN.
    """
    limit = _selected(problem, end, offsets)
    gone = np.atleast_1d(np.asarray(end.diverged))

    def off(beta: Any) -> np.ndarray:
        return np.where(gone, np.nan, np.linalg.norm(np.atleast_2d(beta) - limit, axis=1))

    columns: dict[str, list[np.ndarray]] = {}
    for runs in early:
        corrected, landed = land(runs), land(runs, correct=False)
        batch = runs if runs.status.ndim else _batch(runs)
        raw = jnp.atleast_2d(landed.beta)
        fed, unfed = (expected_fall(batch, raw, feedback=on) for on in (True, False))
        fell = batch.final["log_alpha"] - jnp.atleast_2d(end.final["log_alpha"])
        row = {
            "iterate": off(batch.final["beta"]),
            "selected": off(_selected(problem, runs, False)),
            "landed": off(landed.beta),
            "corrected": off(corrected.beta),
            "estimate": np.atleast_1d(corrected.error),
            "shift": np.linalg.norm(np.atleast_2d(corrected.beta - landed.beta), axis=1),
            "step_left": np.linalg.norm(np.asarray(batch.final["beta"] - raw), axis=1),
            "radius": np.atleast_1d(corrected.radius),
            "left": np.atleast_1d(end.final["loss"] / runs.final["loss"]),
            "fell": np.mean(np.asarray(fell), axis=1),
            "expected": np.mean(np.asarray(fed), axis=1),
            "unfed": np.mean(np.asarray(unfed), axis=1),
        }
        lost = gone | np.atleast_1d(np.asarray(runs.diverged))
        for name, value in row.items():
            columns.setdefault(name, []).append(np.where(lost, np.nan, value))
    last = np.atleast_2d(end.final["beta"])
    return {name: np.stack(values) for name, values in columns.items()} | {
        "size": np.where(gone, np.nan, np.linalg.norm(limit, axis=1)),
        "end_gap": off(last),
        "status": np.atleast_1d(np.asarray(end.status)),
    }


def _batch(runs: Trajectory) -> Trajectory:
    """A single run as the runs of one seed."""
    final = {name: jnp.asarray(value)[None] for name, value in runs.final.items()}
    return eqx.tree_at(lambda r: r.final, runs, final)


def _selected(problem: SparseRegression, runs: Trajectory, offsets: bool) -> np.ndarray:
    """The solutions that the log alpha of the runs selects, with or without their
    offset: (seeds, d). A diverged seed has that of the start.
    """
    bad = jnp.atleast_1d(runs.diverged)[:, None]
    start = runs.network

    def kept(value: Array, instead: Array) -> Array:
        return jnp.where(bad, instead, jnp.atleast_2d(value))

    offset = kept(runs.final["offset"], start.offset) if offsets else None
    log_alpha = kept(runs.final["log_alpha"], start.log_alpha)
    return np.asarray(select_many(problem, log_alpha, offset=offset).beta)


def _features(
    out: Columns, early: list[Trajectory], end: Trajectory, other: StochasticGradientFlow
) -> None:
    """Add how log alpha falls feature by feature, and the predictions by the runs' own
    law and by that of the flow `other`. Each is a mean over the seeds, relative to the
    seed's expected fall, so that all seeds count alike.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for runs in early:
        kept = ~np.asarray(end.diverged | runs.diverged)
        raw = land(runs, correct=False).beta
        disguised = eqx.tree_at(lambda r: r.dynamics, runs, other)
        expected = np.asarray(expected_fall(runs, raw))[kept]
        of_seed = expected.mean(axis=1, keepdims=True)
        moved = np.asarray(runs.final["log_alpha"] - end.final["log_alpha"])[kept]
        other_law = np.asarray(expected_fall(disguised, raw))[kept]
        row = {
            "fell": np.mean(moved / of_seed, axis=0),
            "own_law": np.mean(expected / of_seed, axis=0),
            "mean_loss_law": np.mean(other_law / of_seed, axis=0),
            "error": np.std(moved / of_seed, axis=0) / np.sqrt(kept.sum()),
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        out.add(f"feature_{name}", ("rung", "feature"), np.stack(values), "1")


def _isotropic(
    out: Columns, simulated: Any, gamma: float, config: Config, steps: list[int]
) -> None:
    """Add what `land` says to runs with isotropic noise, and how far it is off if it is
    told that the noise was the mean-loss flow's.
    """
    noise = MeanLossNoise() + IsotropicNoise(config.isotropic)
    dynamics = StochasticGradientFlow(gamma, noise)
    end = simulated(dynamics, config.long_steps)
    limit, lost = np.asarray(end.final["beta"]), np.asarray(end.diverged)
    rows = []
    for count in steps:
        runs = simulated(dynamics, count)
        disguised = eqx.tree_at(lambda r: r.dynamics, runs, StochasticGradientFlow(gamma))
        apart = np.linalg.norm(np.asarray(land(disguised).beta) - limit, axis=1)
        rows.append(np.where(lost, np.nan, apart))
    out.add("isotropic_forced", ("rung", "seed"), np.stack(rows), DISTANCE)
    out.add("isotropic_status", ("seed",), np.asarray(end.status), "1")
    try:
        land(runs)
        out.attrs["isotropic_refusal"] = ""
    except ValueError as refusal:
        out.attrs["isotropic_refusal"] = str(refusal)
