"""The measurements of the momentum study: momentum flows with their evolution law,
discrete methods, many problems to first order in lambda, and SGD with momentum.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import sgfbias as sgf
from sgfbias import DiagonalNetwork, Record, SparseRegression, simulate
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.momentum import KINDS, LEVELS, METHODS, Config
from sgfbias.diagonal.theory.fibre import minimisers_on_fibres
from sgfbias.diagonal.theory.momentum_law import momentum_law, step_size_following
from sgfbias.diagonal.theory.perturbation import Response, response
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log

LAST = Record(times=2)
HEUN = dfx.Heun()
BETA = "target / input"
# Step size of gradient descent on centred inputs. Shifted inputs need a smaller one,
# since the curvature in the direction of their mean is larger.
GENTLE = 0.02
MANY = {
    "error_slope": "1 / time",
    "l1_slope": BETA + " per time",
    "even_slope": "1 / time",
    "share": "1",
    "shrinkage": "1 / time",
}


def measure(config: Config, log: Log) -> Columns:
    """Simulate everything that the claims need.

    **Returns:** final log alpha and selected solutions of the flows and the discrete
    methods, derivatives in lambda on many problems, and SGD's decrease of log alpha by
    seed.
    """
    problem, network = draw(config)
    out = Columns(
        lam=np.asarray(config.lams),
        method=list(METHODS),
        momentum=np.asarray(config.momenta),
        rate=np.asarray(config.sgd_rates),
    )
    log(
        f"momentum flows at {len(config.lams)} lambdas, and the gradient flow, to time "
        f"{config.time:g}"
    )
    squares = _flows(config, problem, network, out)
    log("heavy ball, Nesterov's method, and the flows at the printed lambdas")
    _discrete(config, problem, network, out)
    for kind, shift in zip(KINDS, (0.0, config.shift), strict=True):
        log(
            f"effect on sparsity to first order in lambda, {config.problems} problems with "
            f"{kind} inputs"
        )
        for name, values in _many(config, shift).items():
            out.add(f"{kind}_{name}", ("problem",), values, MANY[name])
    log(f"SGD with momentum, {config.seeds} seeds at two step sizes")
    _stochastic(config, problem, network, squares, out)
    return out


def _add_ends(
    out: Columns,
    name: str,
    runs: dict[str, int],
    problem: SparseRegression,
    log_alpha: Array,
    offset: Array,
) -> None:
    """Add `log_alpha` (runs, d) at the end of some runs, and the solutions that it and
    `offset` (runs, d) select; `runs` maps the axes of the runs to their lengths.
    """
    selected = select_many(problem, log_alpha, offset=offset).beta
    for quantity, values, units in (
        ("log_alpha", log_alpha, "log weight"),
        ("selected", selected, BETA),
    ):
        out.add(
            f"{name}_{quantity}",
            (*runs, "feature"),
            values.reshape(*runs.values(), problem.d),
            units,
        )


def _logs(network: DiagonalNetwork) -> Array:
    """`(log|w_+|, log|w_-|)`, (2, d)."""
    return jnp.stack(
        [network.log_alpha + network.log_ratio / 2, network.log_alpha - network.log_ratio / 2]
    )


class _Slope(eqx.Module):
    """`X^T r / n` of a network, (d,): twice the gradient of the loss in beta."""

    problem: SparseRegression

    def __call__(self, network: DiagonalNetwork) -> Array:
        return (self.problem.X @ network.beta - self.problem.y) @ self.problem.X / self.problem.n


def _moved(at: Response, squares: Any) -> Array:
    """The derivative of the selected solution in lambda, where log alpha falls by
    lambda times `squares`, `int (X^T r / n)^2 dt`, to first order.
    """
    return at.tangent @ (-2 * at.beta * squares)


def _flow(
    config: Config,
    problem: SparseRegression,
    network: DiagonalNetwork,
    lams: Any,
    record: Record,
    *series: str,
) -> dict[str, Array]:
    """Final values and series of the momentum flows at some lambdas, (lams, ...)."""

    def one(lam: Array) -> dict[str, Array]:
        flow, steps = sgf.MomentumFlow(lam, dt=config.dt), round(config.time / config.dt)
        runs = simulate(flow, network, problem, steps=steps, solver=HEUN, record=record)
        return {name: runs.final[name] for name in ("beta", "log_alpha", "offset", "loss")} | {
            name: runs[name] for name in series
        }

    return eqx.filter_jit(jax.vmap(one))(jnp.asarray(lams))


def _flows(
    config: Config, problem: SparseRegression, network: DiagonalNetwork, out: Columns
) -> np.ndarray:
    """Add the flows at every lambda with their evolution law, and gradient flow.

    **Returns:** `int (X^T r / n)^2 dt` along gradient flow, (d,).
    """
    record = Record({"logs": _logs, "slope": _Slope(problem)}, config.records)
    flows = _flow(config, problem, network, config.lams, record, "logs")
    still = simulate(
        sgf.GradientFlow(dt=config.dt),
        network,
        problem,
        steps=round(config.time / config.dt),
        solver=HEUN,
        record=record,
    )
    times = np.asarray(still.times)
    squares = np.trapezoid(np.square(np.asarray(still["slope"])), times, axis=0)
    laws = [
        momentum_law(times, logs, lam)
        for logs, lam in zip(np.asarray(flows["logs"]), config.lams, strict=True)
    ]
    law = {name: np.stack([getattr(row, name) for row in laws]) for name in laws[0]._fields}
    for name, values in law.items():
        out.add(
            f"law_{name}",
            ("lam", "feature"),
            values,
            "log weight" if name in ("log_alpha", "gap") else "1",
        )
    log_alpha, offset = jnp.asarray(law["log_alpha"]), jnp.asarray(law["offset"])
    start, zero = jnp.broadcast_to(network.log_alpha, log_alpha.shape), jnp.zeros_like(offset)
    for name, given in {
        "law": (log_alpha, offset),
        "law_no_offset": (log_alpha, zero),
        "start": (start, zero),
    }.items():
        out.add(
            f"{name}_distance",
            ("lam",),
            minimisers_on_fibres(problem, flows["beta"], *given).distance,
            BETA,
        )
    out.add("flow_loss", ("lam",), flows["loss"], "target^2")
    _add_ends(out, "flow", {"lam": len(config.lams)}, problem, flows["log_alpha"], flows["offset"])
    at = response(problem, network.log_alpha)
    out.add("still_squares", ("feature",), squares, "(target / input)^2 time")
    out.add("still_selected", ("feature",), at.beta, BETA)
    out.add("still_derivative", ("feature",), _moved(at, squares), BETA + " per time")
    out.add("beta_star", ("feature",), problem.beta_star, BETA)
    return squares


def _discrete(
    config: Config, problem: SparseRegression, network: DiagonalNetwork, out: Columns
) -> None:
    """Add the discrete methods at the three smallest lambdas, the flows at the lambdas
    printed for the same methods, and heavy ball with every momentum at one step size.
    """

    def descend(gamma: float, b: float, nesterov: bool) -> tuple[Array, Array]:
        method, steps = (
            sgf.GradientDescent(gamma, momentum=b, nesterov=nesterov),
            round(config.time * (1 - b) / gamma),
        )
        final = simulate(method, network, problem, steps=steps, record=LAST).final
        return final["log_alpha"], final["offset"]

    dims = {"method": len(METHODS), "momentum": len(config.momenta), "level": LEVELS}
    cells = [
        (step_size_following(lam, b, nesterov=nesterov), b, nesterov)
        for nesterov, b, lam in product(METHODS.values(), config.momenta, config.lams[:LEVELS])
    ]
    _add_ends(
        out,
        "discrete",
        dims,
        problem,
        *map(jnp.stack, zip(*(descend(*cell) for cell in cells), strict=True)),
    )
    printed = np.asarray([gamma / (1 - b) ** 2 for gamma, b, _ in cells])
    flows = _flow(config, problem, network, printed, LAST)
    _add_ends(out, "printed", dims, problem, flows["log_alpha"], flows["offset"])
    out.add("printed_lam", tuple(dims), printed.reshape(*dims.values()), "flow time")
    # Every momentum with one step size: the one that gives the middle momentum the
    # largest of the three lambdas.
    gamma = step_size_following(
        config.lams[LEVELS - 1], config.momenta[len(config.momenta) // 2], nesterov=False
    )
    same = zip(*(descend(gamma, b, False) for b in config.momenta), strict=True)
    _add_ends(out, "same", {"momentum": len(config.momenta)}, problem, *map(jnp.stack, same))
    out.add(
        "same_lam",
        ("momentum",),
        [float(sgf.MomentumFlow.following(gamma, b).lam) for b in config.momenta],
        "flow time",
    )


def _many(config: Config, shift: float) -> dict[str, Array]:
    """Derivatives at lambda = 0 on many problems, by name, (problems,): of the log
    error and the l1 norm, and of the log error if the same mean shrinkage is spread
    evenly; the shrinkage's share on the truth's support, and its mean.
    """
    gamma = GENTLE if shift == 0 else GENTLE / (1 + shift**2 * config.many_d / 4)

    def one(key: Array) -> dict[str, Array]:
        drawn = SparseRegression.sample(
            key, n=config.many_n, d=config.many_d, sparsity=config.sparsity, dtype=jnp.float64
        )
        X, truth = drawn.X + shift, jnp.asarray(drawn.beta_star)
        problem = SparseRegression(X, X @ truth, truth)
        network = DiagonalNetwork.init(alpha=config.many_alpha, d=problem.d, dtype=jnp.float64)
        # Gradient descent without momentum has lambda = gamma / 2.
        runs = simulate(
            sgf.GradientDescent(gamma), network, problem, steps=round(60 / gamma), record=LAST
        )
        squares = (network.log_alpha - runs.final["log_alpha"]) * 2 / gamma
        at = response(problem, network.log_alpha)
        away = at.beta - truth
        error, mean = away @ away, jnp.mean(squares)
        return {
            "error_slope": 2 * (away @ _moved(at, squares)) / error,
            "l1_slope": jnp.sign(at.beta) @ _moved(at, squares),
            "even_slope": 2 * (away @ _moved(at, jnp.full_like(squares, mean))) / error,
            "share": jnp.sum(jnp.where(truth != 0, squares, 0)) / jnp.sum(squares),
            "shrinkage": mean,
        }

    return eqx.filter_jit(jax.vmap(one))(sgf.seeds(0, config.problems, root=config.data_seed() + 1))


def _stochastic(
    config: Config,
    problem: SparseRegression,
    network: DiagonalNetwork,
    squares: np.ndarray,
    out: Columns,
) -> None:
    """Add the decrease of log alpha, averaged over the features, of SGD with and
    without momentum, and its predictions to first order in the step size.
    """
    keys, b = config.keys(0, config.seeds), config.sgd_momentum
    found: dict[str, list[Any]] = {"shrinkage": [], "plain": [], "noise": [], "inertia": []}
    for rate in config.sgd_rates:
        for name, method in (
            ("plain", sgf.StochasticGradientDescent(rate, integral="examples")),
            (
                "shrinkage",
                sgf.StochasticGradientDescent(rate * (1 - b), momentum=b, integral="examples"),
            ),
        ):
            runs = simulate(
                method, network, problem, keys=keys, steps=round(config.time / rate), record=LAST
            )
            found[name].append(
                jnp.where(
                    runs.diverged,
                    jnp.nan,
                    jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1),
                )
            )
        # The noise term of the runs with momentum is (rate / 2 n) (X^2)^T int r^2, and
        # int r_i^2 = 4 int l_i.
        noise = 2 * rate / problem.n * (runs.final["example_integral"] @ jnp.square(problem.X))
        found["noise"].append(jnp.mean(noise, axis=1))
        found["inertia"].append(np.full(config.seeds, rate * b / (1 - b) * np.mean(squares)))
    for name, rows in found.items():
        out.add(f"sgd_{name}", ("rate", "seed"), np.stack(rows), "log weight")
