"""The measurements of the main study: GD, SGD and the flow, the predictions of theory
for each of them, early predictions of the limit, and Theorem 1 in weights coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
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
    simulate,
)
from sgfbias.diagonal.files import load_problem
from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.main import LAW_STEPS, WIDTHS, Config
from sgfbias.diagonal.theory.effective import mean_loss_law, per_sample_law
from sgfbias.diagonal.theory.fibre import fibre_distance
from sgfbias.diagonal.theory.residual_bound import residual_bound
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log, counted

DISTANCE = "target / input"


def measure(config: Config, log: Log) -> Columns:
    """Simulate all runs, and compute their selected solutions and the predictions.

    **Returns:** columns by seed, time, feature, example, law_step, dt and weights_seed.

    **Raises:** `ValueError` for data that cannot be used, or if no step size converges.
    """
    problem = _problem(config, log)
    network = DiagonalNetwork.init(alpha=config.alpha, d=problem.d, dtype=jnp.float64)
    gamma = step_size(config, problem, network, log)
    last = config.first_seed + config.seeds
    keys = config.keys(config.first_seed, last)
    out = Columns(
        seed=np.arange(config.first_seed, last),
        weights_seed=np.arange(config.first_seed, config.first_seed + config.weights_seeds),
        dt=("dt", np.asarray(WIDTHS), {"units": "gamma"}),
        law_step=("law_step", np.asarray(LAW_STEPS), {"units": "gamma"}),
        key=(("seed", "key_word"), np.asarray(jax.random.key_data(keys))),
    )
    out.attrs["step_size"] = repr(gamma)
    out.add("X", ("example", "feature"), problem.X, "input")
    out.add("y", ("example",), problem.y, "target")
    if problem.beta_star is not None:
        out.add("beta_star", ("feature",), problem.beta_star, DISTANCE)

    log(f"gradient descent, {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    out.add_times(gd)
    _add_runs(out, "gd", gd)
    out.add(
        "gd_selected", ("feature",), select_many(problem, network.log_alpha[None]).beta[0], DISTANCE
    )

    log(f"SGD, {config.seeds} seeds x {config.steps:,} iterations")
    sgd = simulate(
        StochasticGradientDescent(gamma, integral="examples"),
        network,
        problem,
        keys=keys,
        steps=config.steps,
    )
    log(f"  {counted(sgd)}")
    _add_runs(out, "sgd", sgd)
    _sgd_law(out, problem, gamma, sgd)

    log(f"stochastic gradient flow, {config.seeds} seeds x {config.steps:,} steps")
    flow = StochasticGradientFlow(gamma)
    sgf = simulate(flow, network, problem, keys=keys, steps=config.steps)
    log(f"  {counted(sgf)}")
    _add_runs(out, "sgf", sgf)
    _flow_law(out, problem, sgf)

    early = min(config.early_steps, config.steps)
    log(f"predicting the flow's limit early, after {early:,} steps, and at the end")
    _landing(out, simulate(flow, network, problem, keys=keys, steps=early), sgf)

    log(f"predicting SGD's limit early, after {early:,} steps, and at the end")
    descent = StochasticGradientDescent(gamma)
    _landing_of_sgd(out, simulate(descent, network, problem, keys=keys, steps=early), sgd)

    compared = min(config.compare_steps, config.steps)
    log(
        "distributions of SGD, the mean-loss flow and the per-sample flow, "
        f"{compared:,} steps at gamma and {4 * compared:,} at gamma/4"
    )
    _laws(out, problem, network, gamma, keys, compared)

    log(
        f"Theorem 1 in weights coordinates, {config.weights_seeds} seeds, with the isotropic "
        "control"
    )
    _weights(out, problem, network, gamma, config)
    return out


def _problem(config: Config, log: Log) -> SparseRegression:
    if config.data is None:
        problem, _ = draw(config)
        log(
            f"problem: drawn, n = {problem.n}, d = {problem.d}, {config.sparsity} non-zeros, "
            f"problem seed {config.problem_seed}"
        )
    else:
        problem = load_problem(config.data)
        given = "given" if problem.beta_star is not None else "not given"
        log(f"problem: {config.data}, n = {problem.n}, d = {problem.d}, beta_star {given}")
    problem.require_interpolation()
    return problem


def _add_runs(out: Columns, name: str, runs: Trajectory) -> None:
    """Add the series of runs, the final values of observables without a series, and the
    status of the seeds, as `name_...` with the attributes that the runs give them.
    """
    for variable, column in runs.to_xarray().items():
        short = str(variable).removeprefix("final_")
        if short != "stop_time" and (short == variable or short not in runs.series):
            dims = tuple("example" if dim == "example_integral_0" else dim for dim in column.dims)
            out.data[f"{name}_{short}"] = (dims, column.values, dict(column.attrs))


def _kept(runs: Trajectory, value: Array, instead: Any = jnp.nan) -> Array:
    """`value` (seeds, ...) with `instead` in the place of every diverged seed.

    A program that is solved for all seeds together takes a harmless number as
    `instead`, so that a diverged seed does not disturb the others.
    """
    return jnp.where(runs.diverged.reshape(-1, *(1,) * (value.ndim - 1)), instead, value)


def _add(out: Columns, name: str, runs: Trajectory, value: Array, units: str) -> None:
    """Add a column by seed, or by seed and feature; a diverged seed has NaN."""
    out.add(name, ("seed", "feature")[: value.ndim], _kept(runs, value), units)


def _start(runs: Trajectory) -> Array:
    """log alpha of the initialisation, repeated for every seed: (seeds, d)."""
    return jnp.broadcast_to(runs.network.log_alpha, runs.final["log_alpha"].shape)


def _sgd_law(out: Columns, problem: SparseRegression, gamma: float, sgd: Trajectory) -> None:
    """Add the distances of SGD's iterate from the minimiser that its own evolution law
    gives, with and without the offset, and the distances of its selected solution from
    three predictions.
    """
    start = _start(sgd)
    exact = select_many(
        problem,
        _kept(sgd, sgd.final["log_alpha"], start),
        offset=_kept(sgd, sgd.final["offset"], sgd.network.offset),
    ).beta
    _add(out, "sgd_selected", sgd, exact, DISTANCE)
    _add(out, "sgd_gap", sgd, fibre_distance(problem, sgd).relative, "relative distance")
    _add(
        out,
        "sgd_gap_no_offset",
        sgd,
        fibre_distance(problem, sgd, with_offset=False).relative,
        "relative distance",
    )
    laws = {
        "mean_loss": mean_loss_law(
            problem, start, gamma, _kept(sgd, sgd.final["loss_integral"], 0.0)
        ),
        "per_sample": per_sample_law(
            problem, start, gamma, _kept(sgd, sgd.final["example_integral"], 0.0)
        ),
        "gradient_flow": start,
    }
    for name, effective in laws.items():
        _add(
            out,
            f"sgd_distance_{name}",
            sgd,
            jnp.linalg.norm(select_many(problem, effective).beta - exact, axis=-1),
            DISTANCE,
        )


def _flow_law(out: Columns, problem: SparseRegression, sgf: Trajectory) -> None:
    """Add the distances of the flow's iterate from the solutions that its final and its
    initial alpha select, the bounds on them, and the errors of the program's solver.
    """
    start, beta = _start(sgf), _kept(sgf, sgf.final["beta"], 1.0)
    log_alpha = _kept(sgf, sgf.final["log_alpha"], start)
    at_end, at_start = select_many(problem, log_alpha), select_many(problem, start)
    _add(out, "sgf_selected", sgf, at_end.beta, DISTANCE)
    for name, chosen in (("", at_end), ("_start", at_start)):
        distance, bound = residual_bound(problem, log_alpha, beta, chosen)
        _add(out, f"sgf_distance{name}", sgf, distance, "sqrt(potential)")
        _add(out, f"sgf_bound{name}", sgf, bound, "sqrt(potential)")
    _add(out, "sgf_distance_euclidean", sgf, jnp.linalg.norm(at_end.beta - beta, axis=-1), DISTANCE)
    for name in ("feasibility", "stationarity", "duality_gap"):
        _add(out, f"sgf_{name}", sgf, getattr(at_end, name), "relative")


def _landing(out: Columns, early: Trajectory, late: Trajectory) -> None:
    """Add the limits predicted from the ends of the `late` runs, and how far limits
    predicted from the `early` runs are from them, with and without correction.
    """
    end = land(late)
    out.add("sgf_landed", ("seed", "feature"), end.beta, "landed solution")
    out.add("sgf_landed_error", ("seed",), end.error, DISTANCE)
    if end.validation_error is not None:
        out.add(
            "sgf_landed_validation_error",
            ("seed",),
            end.validation_error,
            late.problem.units()["validation_error"],
        )
    out.add(
        "early_distance",
        ("seed",),
        jnp.linalg.norm(early.final["beta"] - end.beta, axis=-1),
        DISTANCE,
    )
    for name, landing in (("corrected", land(early)), ("landed", land(early, correct=False))):
        out.add(
            f"early_{name}_distance",
            ("seed",),
            jnp.linalg.norm(landing.beta - end.beta, axis=-1),
            DISTANCE,
        )
        out.add(f"early_{name}_estimate", ("seed",), landing.error, DISTANCE)


def _landing_of_sgd(out: Columns, early: Trajectory, late: Trajectory) -> None:
    """Add how far SGD's limits predicted from the `early` runs are from those predicted
    at the ends of the `late` runs, with and without the offset, their error estimates,
    and the errors of the certificate with which the limits are solved for.
    """
    end, landing = land(late), land(early)
    problem, start = early.problem, _start(early)
    bare = select_many(problem, _kept(early, landing.log_alpha, start)).beta
    for name, beta in (
        ("iterate", early.final["beta"]),
        ("corrected", landing.beta),
        ("no_offset", bare),
    ):
        apart = _kept(early, jnp.linalg.norm(beta - end.beta, axis=-1))
        out.add(f"early_sgd_{name}_distance", ("seed",), apart, DISTANCE)
    out.add("early_sgd_estimate", ("seed",), landing.error, DISTANCE)
    out.add("early_sgd_radius", ("seed",), landing.radius, "1")
    for name in ("feasibility", "stationarity", "duality_gap"):
        _add(out, f"early_sgd_{name}", early, getattr(landing.selection, name), "relative")


def _laws(
    out: Columns,
    problem: SparseRegression,
    network: DiagonalNetwork,
    gamma: float,
    keys: Array,
    steps: int,
) -> None:
    """Add final log alpha and validation error of SGD and of two flows at two step
    sizes, after the same flow time, and SGD's loss integral; a diverged seed has NaN.
    """
    dynamics: dict[str, Callable[[float], Any]] = {
        "sgd": lambda g: StochasticGradientDescent(g, integral="examples"),
        "mean_loss": StochasticGradientFlow,
        "per_sample": lambda g: StochasticGradientFlow(g, PerSampleNoise()),
    }
    for name, make in dynamics.items():
        runs = [
            simulate(make(gamma * factor), network, problem, keys=keys, steps=round(steps / factor))
            for factor in LAW_STEPS
        ]
        if name == "sgd":
            integral = jnp.stack([_kept(run, run.final["loss_integral"]) for run in runs])
            out.add(
                "law_sgd_loss_integral",
                ("law_step", "seed"),
                integral,
                "loss * flow time",
            )
        log_alpha = jnp.stack([_kept(run, run.final["log_alpha"]) for run in runs])
        out.add(f"law_{name}_log_alpha", ("law_step", "seed", "feature"), log_alpha, "log weight")
        if problem.measures_validation:
            error = jnp.stack([_kept(run, run.final["validation_error"]) for run in runs])
            out.add(
                f"law_{name}_validation_error",
                ("law_step", "seed"),
                error,
                problem.units()["validation_error"],
            )


def _weights(
    out: Columns, problem: SparseRegression, network: DiagonalNetwork, gamma: float, config: Config
) -> None:
    """Test Theorem 1 at a finite time where it can fail: with Euler steps in weights
    coordinates, at three values of dt on one Brownian path.
    """
    keys = config.keys(config.first_seed, config.first_seed + config.weights_seeds)
    for name, noise in (
        ("weights", MeanLossNoise()),
        ("isotropic", MeanLossNoise() + IsotropicNoise(jnp.asarray(config.isotropic))),
    ):
        gaps = []
        for width in WIDTHS:
            flow = StochasticGradientFlow(
                gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1]
            )
            steps = round(min(config.weights_steps, config.steps) / width)
            runs = simulate(
                flow,
                network,
                problem,
                keys=keys,
                steps=steps,
                coordinates="weights",
                record=Record(times=2),
            )
            effective = mean_loss_law(
                problem, network.log_alpha, gamma, _kept(runs, runs.final["loss_integral"], 0.0)
            )
            found = fibre_distance(problem, runs, log_alpha=effective, with_offset=False)
            gaps.append(found.relative)
        out.add(f"{name}_gap", ("dt", "weights_seed"), jnp.stack(gaps), "relative distance")
        for kind, value in (("beta", runs.final["beta"]), ("predicted", found.beta)):
            out.add(f"{name}_{kind}", ("weights_seed", "feature"), _kept(runs, value), DISTANCE)
