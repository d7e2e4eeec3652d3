"""The study measures every noise model in weights and in mirror coordinates."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import sgfbias as sgf
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.noise_anatomy import LABELS, OUTSIDE, WIDTHS, Config
from sgfbias.diagonal.theory.fibre import minimisers_on_fibres
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log

LONG = sgf.Record(times=120)
ERROR = "(target / input)^2"


class Pulse(eqx.Module):
    """A schedule of label noise: `delta` for the first `steps` iterations, then 0.

    Equal pulses share compiled programs.
    """

    delta: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __call__(self, iteration: Any) -> Array:
        return jnp.where(iteration < self.steps, self.delta, 0.0)


def models(config: Config) -> dict[str, sgf.AbstractNoise]:
    """The noise models by the names of `LABELS`."""
    pulse = Pulse(config.delta, config.delta_steps)
    return {
        "none": sgf.NoNoise(),
        "mean-loss": sgf.MeanLossNoise(),
        "per-sample": sgf.PerSampleNoise(),
        "minibatch": sgf.MinibatchNoise(1),
        "minibatch-4": sgf.MinibatchNoise(4, replace=False),
        "label": sgf.LabelNoise(pulse),
        "sum": sgf.MinibatchNoise(1) + sgf.LabelNoise(pulse, mean_loss=False),
        OUTSIDE: sgf.MeanLossNoise() + sgf.IsotropicNoise(config.isotropic),
    }


def measure(config: Config, log: Log) -> Columns:
    """Run every noise model for a short time in weights coordinates, where the theorem
    and the evolution equation of log alpha can fail, and for a long time in mirror
    coordinates.
    """
    problem, network = draw(config)
    rows = []
    for name, noise in models(config).items():
        log(
            f"running {LABELS[name]}: {config.weights_seeds} seeds in weights coordinates, and "
            f"{config.seeds} seeds x {config.steps:,} iterations in mirror coordinates"
        )
        # `brownian_dt` is given as in the short runs, so that one compiled program
        # serves both.
        flow = sgf.StochasticGradientFlow(
            config.step_size, noise, dt=config.step_size, brownian_dt=config.step_size
        )
        runs = sgf.simulate(
            flow,
            network,
            problem,
            keys=config.keys(0, config.seeds),
            steps=config.steps,
            record=LONG,
        )
        rows.append([*_short(config, problem, network, noise), *_long(problem, runs)])
    times = ("time", np.asarray(runs.times), {"units": "flow time"})
    out = Columns(
        noise=list(LABELS),
        dt=("dt", np.asarray(WIDTHS), {"units": "gamma"}),
        time=times,
        seed=np.arange(config.seeds),
    )
    for row in zip(*rows, strict=True):
        name, dims, units, _ = row[0]
        out.add(name, ("noise", *dims), np.stack([values for *_, values in row]), units)
    return out


# The name, the dimensions, the units and the values of a column.
Column = tuple[str, tuple[str, ...], str, Any]


def _short(
    config: Config,
    problem: sgf.SparseRegression,
    network: sgf.DiagonalNetwork,
    noise: sgf.AbstractNoise,
) -> list[Column]:
    """Test Theorem 1 at finite time where it can fail: Euler's scheme in weights
    coordinates, at three step widths on one Brownian path. The shrinkage of log alpha
    is measured in these runs and by its evolution equation in mirror coordinates.
    """
    keys, gamma, gaps = config.keys(0, config.weights_seeds), config.step_size, []
    for width in WIDTHS:
        flow = sgf.StochasticGradientFlow(
            gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1]
        )
        steps = round(config.weights_steps / width)
        runs = sgf.simulate(
            flow,
            network,
            problem,
            keys=keys,
            steps=steps,
            coordinates="weights",
            record=sgf.Record(times=2),
        )
        lost, _, gap = _fibre_gap(problem, runs)
        gaps.append(gap)
    law = sgf.simulate(flow, network, problem, keys=keys, steps=steps, record=LONG)
    weights, mirror = (
        jnp.mean(network.log_alpha - each.final["log_alpha"], axis=1) for each in (runs, law)
    )
    return [
        ("gap", ("dt", "weights_seed"), "relative distance", np.stack(gaps)),
        ("weights_shrinkage", ("weights_seed",), "log weight", jnp.where(lost, jnp.nan, weights)),
        ("law_shrinkage", ("weights_seed",), "log weight", mirror),
    ]


def _long(problem: sgf.SparseRegression, runs: sgf.Trajectory) -> list[Column]:
    """The columns of the long runs: the effective alpha, the error of the solution that
    it selects, and the distance of the iterate from the minimiser on its fibre.
    """
    lost, log_alpha, gap = _fibre_gap(problem, runs)
    error = jax.vmap(problem.validation_error)(select_many(problem, log_alpha).beta)
    return [
        ("status", ("seed",), "1", runs.status),
        (
            "log_alpha",
            ("seed", "feature"),
            "log weight",
            jnp.where(lost[:, None], jnp.nan, log_alpha),
        ),
        ("landed_error", ("seed",), ERROR, jnp.where(lost, jnp.nan, error)),
        ("fibre_gap", ("seed",), "relative distance", gap),
        ("validation_error", ("seed", "time"), ERROR, runs["validation_error"]),
    ]


def _fibre_gap(problem: sgf.SparseRegression, runs: sgf.Trajectory) -> tuple[Array, Array, Array]:
    """Which seeds diverged (seeds,), their final log alpha (seeds, d), and the relative
    distance (seeds,) of the iterate from the minimiser on its fibre, without an offset.

    Only seeds that are not finite count as diverged. A loss that label noise keeps high
    is no reason to exclude a seed, since the theory holds there as well. A diverged
    seed has a harmless finite log alpha and a distance of NaN.
    """
    lost = jnp.asarray(runs.status == sgf.Status.NON_FINITE)
    harmless = {"beta": 1.0, "log_alpha": runs.network.log_alpha}
    beta, log_alpha = (
        jnp.where(lost[:, None], value, runs.final[name]) for name, value in harmless.items()
    )
    return (
        lost,
        log_alpha,
        jnp.where(lost, jnp.nan, minimisers_on_fibres(problem, beta, log_alpha).relative),
    )
