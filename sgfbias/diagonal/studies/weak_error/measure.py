"""The measurements of the study: closed forms and simulations on least squares, and
SGD against its flows on a diagonal network.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    MeanLossNoise,
    MinibatchNoise,
    Problem,
    Record,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.weak_error import CLOSED_STEPS, FLOWS, LAWS, NETWORK_FLOWS, Config
from sgfbias.diagonal.theory.least_squares import LeastSquares
from sgfbias.study import Columns, Log, finals

CLOSED_TIME = 2.0
# Largest |x_j|^2 on least squares with `relative`. At the largest step size, 0.2, the
# steps on a single example are then at a quarter of the edge of stability.
LARGEST = 2.6
PROBLEM = {"n": 6, "d": 12, "sparsity": 3}
# Solver steps per iteration of SGD. On the network, means are extrapolated from runs
# with this many steps and with half as many on the same Brownian paths.
FINE = 4
LAST = Record(times=2)


def measure(config: Config, log: Log) -> Columns:
    """Compare SGD with its modified equations: on least squares in closed form and by
    simulation, on a diagonal network by the final values of every seed and by the mean
    shrinkage of log alpha at every feature.
    """
    largest = _largest(config)
    size = largest if config.relative else 1.0
    step_sizes = config.step_size / size / 2.0 ** np.arange(3)
    out = Columns(
        flow=list(FLOWS),
        closed_step=("closed_step", CLOSED_STEPS, {"units": "gamma"}),
        step_size=("step_size", step_sizes, {"units": "gamma"}),
        law=list(LAWS),
        network_flow=list(NETWORK_FLOWS),
    )
    out.attrs["largest"] = str(largest)
    _least_squares(out, config, log)
    _network(out, config, step_sizes, config.time / size, log)
    log(
        f"log alpha is compared feature by feature: {config.law_seeds} seeds x "
        f"{config.law_steps:,} iterations at step size {config.law_step_size / size:g}"
    )
    _laws(out, config, config.law_step_size / size)
    return out


def _largest(config: Config) -> float:
    """The largest <x_j^2, |beta*|> of an example j of the network's problem. Times the
    step size it says how near steps on a single example are to the edge of stability.
    """
    problem, _ = draw(config, **PROBLEM)
    return float(jnp.max(jnp.square(problem.X) @ jnp.abs(problem.beta_star)))


class _Linear(eqx.Module):
    """The linear model `x -> x . w`."""

    w: Array

    def __call__(self, x: Array) -> Array:
        return x @ self.w


def _least_squares(out: Columns, config: Config, log: Log) -> None:
    """Add the closed forms of SGD and of the flows on least squares; and, at the
    largest step size, the simulated means beside the exact means of the same SGD
    iteration and of the same Euler schemes.
    """
    rng, start = np.random.default_rng(config.root_seed), np.array([2.0, -1.0])
    X = rng.normal(size=(6, 2))
    if config.relative:
        X *= np.sqrt(LARGEST / np.square(X).sum(axis=1).max())
    y = X @ rng.normal(size=2) + 0.5 * rng.normal(size=6)
    forms = LeastSquares(X, y)
    begin = forms.start(start)

    def variances(moments: list[np.ndarray]) -> list[float]:
        return [forms.variance(M) / g for M, g in zip(moments, CLOSED_STEPS, strict=True)]

    log("least squares: closed forms of SGD and of five flows are evaluated")
    sgd = [forms.sgd(begin, g, round(CLOSED_TIME / g)) for g in CLOSED_STEPS]
    flows = [
        [forms.flow(begin, g, CLOSED_TIME, noise=noise, order=order) for g in CLOSED_STEPS]
        for noise, order in FLOWS.values()
    ]
    error = [
        [forms.risk(M) - forms.risk(S) for M, S in zip(row, sgd, strict=True)] for row in flows
    ]
    out.add("closed_error", ("flow", "closed_step"), error, "loss")
    out.add("closed_sgd_variance", ("closed_step",), variances(sgd), "weight^2 / gamma")
    out.add(
        "closed_variance",
        ("flow", "closed_step"),
        [variances(row) for row in flows],
        "weight^2 / gamma",
    )

    log(f"least squares: {config.seeds:,} seeds are simulated to check the closed forms")
    model, problem, keys = _Linear(jnp.asarray(start)), Problem(X, y), config.keys(0, config.seeds)
    gamma = float(CLOSED_STEPS[0])
    steps, dt = round(CLOSED_TIME / gamma), gamma / FINE

    def end(dynamics: Any, count: int) -> Array:
        return simulate(dynamics, model, problem, keys=keys, steps=count, record=LAST).final["loss"]

    runs, moments = [end(StochasticGradientDescent(gamma, integral="batch"), steps)], [sgd[0]]
    for order in (1, 2):
        runs.append(
            end(StochasticGradientFlow(gamma, MinibatchNoise(1), order=order, dt=dt), steps * FINE)
        )
        moments.append(forms.euler(begin, gamma, steps * FINE, dt=dt, noise="exact", order=order))
    out.add("simulated_mean", ("simulated",), [np.mean(r) for r in runs], "loss")
    out.add(
        "simulated_error",
        ("simulated",),
        [np.std(r, ddof=1) / np.sqrt(len(r)) for r in runs],
        "loss",
    )
    out.add(
        "simulated_predicted", ("simulated",), [forms.risk(moment) for moment in moments], "loss"
    )


def _network(out: Columns, config: Config, step_sizes: np.ndarray, time: float, log: Log) -> None:
    """Add the final shrinkage of log alpha, averaged over the features, and the final
    validation error of every seed, for SGD and three flows at three step sizes.
    """
    problem, network = draw(config, **PROBLEM)
    keys, noises = (
        config.keys(0, config.seeds),
        {"exact": MinibatchNoise(1), "mean-loss": MeanLossNoise()},
    )

    def end(dynamics: Any, steps: int) -> np.ndarray:
        # Stalled seeds are kept: a run this short need not have left its plateau, and
        # without them the mean would be biased.
        runs = simulate(dynamics, network, problem, keys=keys, steps=steps, record=LAST)
        return finals(
            runs,
            jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1),
            runs.final["validation_error"],
        )

    def flow(name: str, gamma: float, steps: int) -> np.ndarray:
        noise, order = FLOWS[name]
        coarse, fine = (
            end(
                StochasticGradientFlow(
                    gamma, noises[noise], order=order, dt=gamma / m, brownian_dt=gamma / FINE
                ),
                steps * m,
            )
            for m in (FINE // 2, FINE)
        )
        # Richardson extrapolation: the weak error of Euler's scheme is linear in dt.
        return 2 * fine - coarse

    sgd, flows = [], []
    for gamma in step_sizes:
        log(
            f"diagonal network: SGD and three flows run at step size {gamma:g} with "
            f"{config.seeds:,} seeds"
        )
        steps = round(time / gamma)
        sgd.append(end(StochasticGradientDescent(gamma, integral="batch"), steps))
        flows.append([flow(name, gamma, steps) for name in NETWORK_FLOWS])
    for k, (name, units) in enumerate(
        (("shrinkage", "log weight"), ("validation_error", "(target / input)^2"))
    ):
        out.add(f"network_sgd_{name}", ("step_size", "seed"), [v[k] for v in sgd], units)
        out.add(
            f"network_{name}",
            ("step_size", "network_flow", "seed"),
            [[v[k] for v in row] for row in flows],
            units,
        )


def _laws(out: Columns, config: Config, gamma: float) -> None:
    """Add the mean shrinkage of log alpha at every feature, divided by gamma, and its
    standard error, for every algorithm in `LAWS`.
    """
    problem, network = draw(config, **PROBLEM, alpha=0.1)
    keys = config.keys(0, config.law_seeds)
    runs = [
        simulate(make(gamma), network, problem, keys=keys, steps=config.law_steps, record=LAST)
        for make in LAWS.values()
    ]
    shrinkage = [np.asarray(network.log_alpha - each.final["log_alpha"]) / gamma for each in runs]
    error = [each.std(0, ddof=1) / np.sqrt(config.law_seeds) for each in shrinkage]
    out.add(
        "law_shrinkage",
        ("law", "feature"),
        [each.mean(0) for each in shrinkage],
        "log weight / gamma",
    )
    out.add("law_error", ("law", "feature"), error, "log weight / gamma")
    out.add("law_support", ("feature",), np.asarray(problem.beta_star) != 0, "1")
