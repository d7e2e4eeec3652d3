"""The study measures the terms of the identity along paths, the quantities that the
guarantee bounds, and the shares of seeds that converge around the predicted edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias import (
    DiagonalNetwork,
    GradientDescent,
    GradientFlow,
    MeanLossNoise,
    PerSampleNoise,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    StochasticGradientFlow,
    guarantee,
    lyapunov_identity,
    minimum_l1,
    simulate,
    stability_edge,
)
from sgfbias.diagonal.studies.convergence import (
    BEYOND,
    FALL,
    NOISES,
    OTHERS,
    SAFE,
    SHOWN,
    WIDTHS,
    Config,
)
from sgfbias.diagonal.theory.effective import gradient_flow_integral
from sgfbias.study import Columns, Log

V = "target / input"
TIMES = 60
TILE = 512  # seeds whose paths are in memory at a time
WRONG = 1.1  # the factor by which beta* is off in a control
DT = 0.05  # solver step at the guaranteed step size, over the edge
LONG = 500.0  # length of the runs at the guaranteed step size, over the edge
VERY_LONG = 1e5  # the same for gradient flow, which takes adaptive steps


def measure(config: Config, log: Log) -> Columns:
    """Measure the identity, the bounds and the shares. All problems are drawn from one
    key, each with a start whose alpha is small against its truth.
    """
    problems = [_problem(config, k) for k in range(len(config.sizes))]
    out = Columns(
        problem=[f"n={n}, d={d}, s={s}" for n, d, s in config.sizes],
        noise=list(NOISES),
        fraction=("fraction", np.asarray(config.fractions), {"units": "predicted edge"}),
        other=list(OTHERS),
        batch=np.asarray(config.batches),
        width=("width", np.asarray(WIDTHS), {"units": "gamma"}),
        side=("side", np.array([SAFE, BEYOND]), {"units": "predicted edge"}),
    )
    first = problems[0]
    flow_edge = stability_edge(first[0], MeanLossNoise(), first[2]).step_size
    log("running the identity at three widths")
    _identity(config, first, flow_edge, out)
    log(f"running the martingale of {config.event_seeds} seeds")
    _event(config, first, flow_edge, out)
    log("running at the guaranteed step size, and gradient flow")
    _bounds(config, first, flow_edge, out)
    _shares(config, problems, out, log)
    log("running SGD in batches of several sizes")
    _batches(config, problems[-1], out)
    return out


Problem = tuple[SparseRegression, DiagonalNetwork, np.ndarray]


def _problem(config: Config, k: int) -> Problem:
    """Problem number k, its start, and its solution of smallest l1 norm."""
    n, d, sparsity = config.sizes[k]
    key = jax.random.fold_in(jax.random.key(config.data_seed()), k)
    drawn = SparseRegression.sample(key, n=n, d=d, sparsity=sparsity, dtype=jnp.float64)
    problem = SparseRegression(drawn.X, config.scales[k] * drawn.y)
    least = np.asarray(minimum_l1(problem))
    alpha = config.alpha * float(np.sqrt(np.abs(least).sum()))
    return problem, DiagonalNetwork.init(alpha=alpha, d=d, dtype=jnp.float64), least


def _identity(config: Config, chosen: Problem, edge: float, out: Columns) -> None:
    """The gap of the identity at three widths on shared Brownian paths, with two wrong
    identities, and some paths of its terms.
    """
    problem, network, least = chosen
    gamma = config.identity_fraction * edge
    rows: dict[str, list[Any]] = {"gap": [], "gap_sign": [], "gap_beta": []}
    for width in WIDTHS:
        flow = StochasticGradientFlow(
            gamma, per_iteration=round(1 / width), brownian_dt=gamma * WIDTHS[-1]
        )
        runs = simulate(
            flow,
            network,
            problem,
            keys=config.keys(0, config.identity_seeds),
            t1=gamma * round(config.identity_time * edge / gamma),
            record=Record((), TIMES, path_sums=True),
        )
        terms = lyapunov_identity(runs, interpolator=least)
        wrong = lyapunov_identity(runs, interpolator=WRONG * least)
        rows["gap"].append(terms.difference[:, -1])
        rows["gap_sign"].append(terms.difference[:, -1] + 2 * terms.martingale[:, -1])
        rows["gap_beta"].append(wrong.difference[:, -1])
    for name, row in rows.items():
        out.add(name, ("width", "identity_seed"), np.stack([np.asarray(v) for v in row]), V)
    out.axes["time"] = ("time", np.asarray(terms.times), {"units": "time"})
    for name, values in (
        ("value", terms.value),
        ("drift", terms.drift),
        ("martingale", terms.martingale),
    ):
        out.add(f"path_{name}", ("path", "time"), np.asarray(values[:SHOWN]), V)
    out.add("pilot", ("identity_seed",), terms.quadratic_variation[:, -1], f"({V})^2")


def _event(config: Config, chosen: Problem, edge: float, out: Columns) -> None:
    """The end of the martingale and of its quadratic variation, and the largest ratio
    of |S| to its bound along the path, seed by seed.

    In steps of dt = gamma the sums are a martingale and its quadratic variation too, so
    that the bound holds without an error of the scheme. Its level is chosen on other
    seeds, such that it is tight.
    """
    problem, network, least = chosen
    gamma, chance = config.identity_fraction * edge, np.log(4 / config.event)
    level = float(np.sqrt(chance * out.data["pilot"][1].mean() / 2))
    start, stop = config.identity_seeds, config.identity_seeds + config.event_seeds
    ends = []
    for at in range(start, stop, TILE):
        runs = simulate(
            StochasticGradientFlow(gamma),
            network,
            problem,
            keys=config.keys(at, min(at + TILE, stop)),
            t1=gamma * round(config.identity_time * edge / gamma),
            record=Record((), TIMES, path_sums=True),
        )
        terms = lyapunov_identity(runs, interpolator=least)
        S, variation = np.asarray(terms.martingale), np.asarray(terms.quadratic_variation)
        bound = level + chance / (2 * level) * variation
        ends.append((S[:, -1], variation[:, -1], np.max(np.abs(S) / bound, axis=1)))
    S, variation, ratio = (np.concatenate(row) for row in zip(*ends, strict=True))
    out.add("martingale", ("event_seed",), S, V)
    out.add("variation", ("event_seed",), variation, f"({V})^2")
    out.add("bound_ratio", ("event_seed",), ratio, "1")


def _total(network: Any) -> Any:
    return jnp.sum(network.xi)


def _bounds(config: Config, chosen: Problem, edge: float, out: Columns) -> None:
    """What the guarantee bounds, at the guaranteed step size, and its bounds. The noise
    is so weak there that the solver's step may be far larger than gamma.
    """
    problem, network, _ = chosen
    found = guarantee(problem, network, config.probability)
    flow = StochasticGradientFlow(float(found.step_size), dt=DT * edge)
    runs = simulate(
        flow,
        network,
        problem,
        keys=config.keys(0, config.bound_seeds),
        t1=LONG * edge,
        record=Record({"xi": _total}, 100),
    )
    out.add("bound_l1", (), found.l1_bound, V)
    out.add("bound_integral", ("end",), jnp.stack(found.integral), "loss time")
    out.add("bound_log_alpha", ("end", "feature"), jnp.stack(found.log_alpha), "log weight")
    out.add("reached_l1", ("bound_seed",), jnp.max(runs["xi"], axis=1), V)
    out.add("reached_integral", ("bound_seed",), runs.final["loss_integral"], "loss time")
    out.add("reached_log_alpha", ("bound_seed", "feature"), runs.final["log_alpha"], "log weight")
    fall = runs.final["loss"] / runs["loss"][:, 0]
    out.add("reached_loss", ("bound_seed",), fall, "loss at the start")
    out.add("guaranteed", (), found.step_size, "time")
    out.add("flow_edge", (), edge, "time")
    exact = simulate(GradientFlow(), network, problem, t1=VERY_LONG * edge, record=Record((), 2))
    out.add("quiet_integral", (), exact.final["loss_integral"], "loss time")
    law = gradient_flow_integral(problem, network.log_alpha)
    out.add("quiet_law", (), law, "loss time")


def _dynamics(config: Config) -> dict[str, Callable[[float], Any]]:
    """By noise, the dynamics at a step size."""
    return {
        "SGD": lambda g: StochasticGradientDescent(g, 1, integral="batch"),
        "SGD in batches of 4": lambda g: StochasticGradientDescent(g, 4, integral="batch"),
        "per-sample flow": lambda g: StochasticGradientFlow(
            g, PerSampleNoise(), per_iteration=config.per_iteration
        ),
        "mean-loss flow": lambda g: StochasticGradientFlow(g, per_iteration=config.per_iteration),
    }


def _share(config: Config, chosen: Problem, dynamics: Any) -> float:
    """The share of seeds whose loss falls by the factor `FALL`."""
    problem, network, least = chosen
    time = config.horizon / float(np.asarray(problem.h) @ np.abs(least))
    keys = config.keys(0, config.edge_seeds)
    runs = simulate(dynamics, network, problem, keys=keys, t1=time, record=Record((), 2))
    return float(np.mean(np.asarray(runs.final["loss"] < runs["loss"][:, 0] / FALL)))


def _shares(config: Config, problems: list[Problem], out: Columns, log: Log) -> None:
    shape = len(problems), len(NOISES), len(config.fractions)
    edges, shares = np.zeros(shape[:2]), np.zeros(shape)
    others, wrong = np.zeros((len(problems), 2)), np.zeros((len(problems), 2))
    for p, chosen in enumerate(problems):
        problem, _, least = chosen
        log(f"running {', '.join(NOISES)} around the edges of problem {p + 1}")
        for k, make in enumerate(_dynamics(config).values()):
            edges[p, k] = stability_edge(problem, make(1.0), least).step_size
            for f, fraction in enumerate(config.fractions):
                shares[p, k, f] = _share(config, chosen, make(fraction * edges[p, k]))
        for k, other in enumerate((MeanLossNoise(), GradientDescent(1.0))):
            others[p, k] = stability_edge(problem, other, least).step_size
            wrong[p, k] = _share(config, chosen, _dynamics(config)["SGD"](SAFE * others[p, k]))
    out.add("edge", ("problem", "noise"), edges, "time")
    out.add("share", ("problem", "noise", "fraction"), shares, "share of seeds")
    out.add("other_edge", ("problem", "other"), others, "time")
    out.add("other_share", ("problem", "other"), wrong, "share of seeds")


def _batches(config: Config, chosen: Problem, out: Columns) -> None:
    """SGD's edge by batch size, the shares on its two sides, and the share at the step
    size that the linear scaling rule gives for the largest batch.
    """

    def sgd(gamma: float, b: int) -> Any:
        return StochasticGradientDescent(gamma, b, integral="batch")

    problem, _, least = chosen
    edges = [stability_edge(problem, sgd(1.0, b), least).step_size for b in config.batches]
    shares = [
        [_share(config, chosen, sgd(fraction * edge, b)) for fraction in (SAFE, BEYOND)]
        for b, edge in zip(config.batches, edges, strict=True)
    ]
    last = config.batches[-1]
    out.add("batch_edge", ("batch",), edges, "time")
    out.add("batch_share", ("batch", "side"), shares, "share of seeds")
    linear = _share(config, chosen, sgd(SAFE * last * edges[0], last))
    out.add("linear_share", (), linear, "share of seeds")
