"""The measurements of the kernel-to-rich study: norms and errors against alpha, the
rates of both limits, and the ends of simulated flows.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias import (
    DiagonalNetwork,
    GradientFlow,
    Record,
    SparseRegression,
    minimum_l1,
    minimum_l2,
    select,
    simulate,
    solution_curve,
)
from sgfbias.diagonal.potential import potential
from sgfbias.diagonal.studies.kernel_to_rich import EPS, ORDERS, SCALES, TARGETS, TOLERANCES, Config
from sgfbias.diagonal.theory import limits
from sgfbias.diagonal.theory.selection_each import select_each
from sgfbias.study import Columns, Log

LAST = Record(times=2)
# Values of log(delta / delta_worst), where theory predicts the worst delta_worst.
WINDOW = np.linspace(-0.6, 0.6, 41)
# A problem is drawn again if the largest certificate off the support of its minimum l1
# solution is above this. At 1 the solution is not unique; just below 1, alpha would
# have to be extremely small at depth 2.
CLEAR = 0.95
# The drawing gives up when more than this many problems per draw are passed over.
PASSED = 20


def drawn(config: Config, k: int, n: int, d: int) -> SparseRegression:
    """Problem number k, with n Gaussian inputs whose d features are scaled to mean
    square 1.
    """
    key = jax.random.fold_in(jax.random.key(config.data_seed()), k)
    problem = SparseRegression.sample(key, n=n, d=d, sparsity=config.sparsity, dtype=jnp.float64)
    X = problem.X / jnp.sqrt(problem.h)
    return SparseRegression(X, X @ jnp.asarray(problem.beta_star), problem.beta_star)


def clear_problems(
    config: Config,
) -> tuple[list[SparseRegression], np.ndarray, np.ndarray, int]:
    """The drawn problems, each with a clearly unique minimum l1 solution.

    **Returns:** the problems; their minimum l1 solutions (draws, d); their largest
    certificates (draws,); and the number of problems that were passed over.

    **Raises:** `ValueError` if hardly any problem has a unique solution.
    """
    kept: list[tuple[SparseRegression, np.ndarray, float]] = []
    for k in itertools.count():
        if len(kept) == config.draws:
            break
        if k - len(kept) > PASSED * config.draws:
            raise ValueError(
                f"only {len(kept)} of {k} drawn problems have a unique minimum l1 solution; take "
                "n larger, or d or sparsity smaller"
            )
        problem = drawn(config, k, config.n, config.d)
        least = np.asarray(minimum_l1(problem))
        certificate = limits.largest_certificate(np.asarray(problem.X), least)
        if certificate <= CLEAR:
            kept.append((problem, least, certificate))
    problems = [problem for problem, _, _ in kept]
    minima = np.stack([least for _, least, _ in kept])
    certificates = np.array([certificate for _, _, certificate in kept])
    return problems, minima, certificates, k - config.draws


def selected(X: np.ndarray, y: np.ndarray, log_alpha: np.ndarray, depth: int) -> np.ndarray:
    """Selected solutions (m, k, d) of m problems at k alphas each; NaN where the solver
    did not find them.

    **Arguments:** `X`: (m, n, d). `y`: (m, n). `log_alpha`: (m, k). `depth`: the depth
    p of the network.
    """
    count = log_alpha.shape[1]
    beta, solved = select_each(
        np.repeat(X, count, axis=0), np.repeat(y, count, axis=0), log_alpha.ravel(), depth=depth
    )
    return np.where(solved[:, None], beta, np.nan).reshape(-1, count, X.shape[2])


def measure(config: Config, log: Log) -> Columns:
    """Compute the selected solutions in both limits and between them, by depth and
    drawn problem, the worst case, and the ends of simulated flows.
    """
    alphas = np.geomspace(config.alpha_low, config.alpha_high, config.levels)
    limits_axes = {"target": TARGETS, "scale": SCALES, "order": ORDERS, "eps": np.array(EPS)}
    flow_axes = {"tolerance": np.array(TOLERANCES), "flow_alpha": np.array(config.flow_alphas)}
    out = Columns(
        alpha=alphas,
        depth=np.array(config.depths),
        draw=np.arange(config.draws),
        **limits_axes,
        **flow_axes,
    )
    problems, l1, certificate, passed_over = clear_problems(config)
    X, y, truth = (
        np.stack([np.asarray(getattr(p, name)) for p in problems])
        for name in ("X", "y", "beta_star")
    )
    log(
        f"minimum l2 solutions of {config.draws} problems, n = {config.n}, d = {config.d}, "
        f"{config.sparsity} non-zeros; {passed_over} problems without a clearly unique minimum l1 "
        "solution were drawn again"
    )
    l2 = np.stack([np.asarray(minimum_l2(problem)) for problem in problems])
    out.add("passed_over", (), passed_over, "problems")
    out.add("certificate", ("draw",), certificate, "1")
    out.add("l1_least", ("draw",), np.abs(l1).sum(axis=1), "target / input")
    out.add("l2_least", ("draw",), np.linalg.norm(l2, axis=1), "target / input")
    out.add("recovered", ("draw",), np.abs(l1 - truth).max(axis=1) < 1e-6, "1")
    log(
        f"{config.levels} alphas from {config.alpha_high:g} down to {config.alpha_low:g} at "
        f"depths {config.depths}"
    )
    # As h = 1, the curve of Theorem 1 at gamma = 1/2 has effective initialisation
    # alpha e^{-S} at loss integral S on every problem.
    integrals = np.log(config.alpha_high / alphas[::-1])
    curves = [
        solution_curve(p, np.log(config.alpha_high), step_size=0.5, integrals=integrals)
        for p in problems
    ]
    rows = [np.stack([np.asarray(c.beta)[::-1] for c in curves])]
    rows += [
        selected(X, y, np.tile(np.log(alphas), (config.draws, 1)), depth)
        for depth in config.depths[1:]
    ]
    beta, dims = np.stack(rows), ("depth", "draw", "alpha")
    out.add("l1", dims, np.abs(beta).sum(axis=-1), "target / input")
    out.add("l2", dims, np.linalg.norm(beta, axis=-1), "target / input")
    out.add(
        "error", dims, np.square(beta - truth[None, :, None]).sum(axis=-1), "(target / input)^2"
    )
    # d |beta|_1 / d log alpha
    slopes = [-np.asarray(jnp.sum(jnp.sign(c.beta) * c.slope, axis=1))[::-1] for c in curves]
    out.add("l1_slope", dims[1:], slopes, "target / input per log alpha")
    log("the rich limit: exponents on each problem, and the worst problem of two features")
    _rich(config, X, y, l1, certificate, out)
    log("the kernel limit, and the paper's sufficient alphas")
    _kernel(config, X, y, l2, out)
    _sufficient(config, X, y, np.abs(l1).sum(axis=1), np.square(l2).sum(axis=1), out)
    log(
        f"gradient flow in the weights to time {config.flow_time:g}, at alphas "
        f"{config.flow_alphas} and each depth"
    )
    _flows(config, out)
    return out


def _rich(
    config: Config,
    X: np.ndarray,
    y: np.ndarray,
    least: np.ndarray,
    certificate: np.ndarray,
    out: Columns,
) -> None:
    """Add the excess l1 norm on each problem, at alphas where theory predicts the
    values TARGETS up to a constant, and the largest excess over the problems `beta_1 +
    (1 - delta) beta_2 = 1`, whose least l1 norm is 1.
    """
    rich, worst = [], []
    for depth in config.depths:
        exponent = np.array([limits.fixed_exponent(depth, c) for c in certificate])
        beta = selected(X, y, np.log(TARGETS)[None] / exponent[:, None], depth)
        rich.append(np.abs(beta).sum(axis=-1) / np.abs(least).sum(axis=1, keepdims=True) - 1)
        delta = ORDERS[:, None] * limits.worst_excess(depth)[1] * np.exp(WINDOW)
        pairs = np.stack([np.ones_like(delta), 1 - delta], axis=-1).reshape(-1, 1, 2)
        log_alpha = np.repeat(limits.log_alpha_of(ORDERS, depth), WINDOW.size)[:, None]
        second = selected(pairs, np.ones((delta.size, 1)), log_alpha, depth)[:, 0, 1]
        # On the constraint |beta|_1 - 1 = delta beta_2, which avoids cancellation.
        worst.append([limits.peak(WINDOW, row) for row in delta * second.reshape(delta.shape)])
    out.add("rich_excess", ("depth", "draw", "target"), rich, "1")
    out.add("worst_excess", ("depth", "order"), worst, "1")


def _kernel(config: Config, X: np.ndarray, y: np.ndarray, least: np.ndarray, out: Columns) -> None:
    """Add the relative distance from the minimum l2 solution, and the part of it that
    the predicted first correction does not explain, relative to that correction.
    """
    gaps, sizes = [], []
    for depth in config.depths:
        log_alpha = (np.log(SCALES)[None] + np.log(np.abs(least).max(axis=1))[:, None]) / depth
        shift = np.stack([limits.kernel_shift(*pair, depth) for pair in zip(X, least, strict=True)])
        predicted = shift[:, None] * np.exp(-2 * depth * log_alpha)[..., None]
        moved = selected(X, y, log_alpha, depth) - least[:, None]
        sizes.append(np.linalg.norm(moved, axis=-1) / np.linalg.norm(least, axis=1)[:, None])
        gaps.append(np.linalg.norm(moved - predicted, axis=-1) / np.linalg.norm(predicted, axis=-1))
    out.add("kernel_distance", ("depth", "draw", "scale"), sizes, "1")
    out.add("kernel_gap", ("depth", "draw", "scale"), gaps, "1")


def _sufficient(
    config: Config,
    X: np.ndarray,
    y: np.ndarray,
    l1: np.ndarray,
    l2_squared: np.ndarray,
    out: Columns,
) -> None:
    """Add the logarithms of the paper's sufficient alphas, and the excess of the norms
    over the least ones at these alphas.
    """
    least = {"rich": (np.abs, l1), "kernel": (np.square, l2_squared)}
    bounds = np.array(
        [
            [limits.sufficient_alphas(e, config.d, a, np.sqrt(b)) for e in EPS]
            for a, b in zip(l1, l2_squared, strict=True)
        ]
    )
    for k, (name, (norm, value)) in enumerate(least.items()):
        found = norm(selected(X, y, bounds[..., k], 2)).sum(axis=-1)
        out.add(f"bound_{name}_log_alpha", ("draw", "eps"), bounds[..., k], "log weight")
        out.add(f"bound_{name}_excess", ("draw", "eps"), found / value[:, None] - 1, "1")


def _flows(config: Config, out: Columns) -> None:
    """Add the ends of flows in the weights and the program's solutions, by depth and
    alpha, and a comparison of the paper's loss and potential with ours.
    """
    problem = drawn(config, 0, config.flow_n, config.flow_d)
    cases = list(itertools.product(config.depths, config.flow_alphas))
    shape, dims, units = (
        (len(config.depths), len(config.flow_alphas)),
        ("depth", "flow_alpha"),
        "target / input",
    )

    def flow(
        problem: SparseRegression,
        time: float,
        alpha: float,
        depth: int = 2,
        rtol: float = TOLERANCES[-1],
    ) -> Any:
        start = DiagonalNetwork.init(alpha=alpha, d=config.flow_d, depth=depth, dtype=jnp.float64)
        return simulate(
            GradientFlow(rtol=rtol, atol=rtol * 1e-3),
            start,
            problem,
            t1=time,
            coordinates="weights",
            record=LAST,
        )

    runs = [
        flow(problem, config.flow_time, alpha, depth, rtol)
        for depth, alpha in cases
        for rtol in TOLERANCES
    ]
    simulated = np.reshape([run.networks.beta for run in runs], (*shape, -1, config.flow_d))
    predicted = np.reshape(
        [select(problem, np.log(alpha), depth=depth).beta for depth, alpha in cases],
        (*shape, config.flow_d),
    )
    # Depth 2 at the alpha_2 with the same scale of beta, alpha_2^2 = alpha^p.
    as_two = np.reshape(
        [select(problem, np.log(alpha) * depth / 2).beta for depth, alpha in cases],
        (*shape, config.flow_d),
    )
    out.add("flow_beta", (*dims, "tolerance", "feature"), simulated, units)
    out.add(
        "flow_loss",
        (*dims, "tolerance"),
        np.reshape([run.final["loss"] for run in runs], (*shape, -1)),
        "loss",
    )
    out.add("flow_predicted", (*dims, "feature"), predicted, units)
    out.add("flow_as_two", (*dims, "feature"), as_two, units)
    # The paper's loss is the sum of squares, and an integral defines its potential.
    alpha, time, beta = config.flow_alphas[0], 1.0, predicted[0, 0]
    theirs = SparseRegression(problem.X, problem.y, problem.beta_star, loss_scale=float(problem.n))
    early = [
        flow(p, t, alpha).networks.beta
        for p, t in ((problem, time), (theirs, time / (4 * problem.n)), (theirs, time))
    ]
    ours = (
        4 * float(potential(jnp.asarray(beta), jnp.full(beta.size, np.log(alpha))))
        + 2 * beta.size * alpha**2
    )
    out.add("convention_beta", ("convention", "feature"), early, units)
    out.add(
        "convention_potential",
        ("potential",),
        (limits.defining_potential(beta, alpha), ours),
        units,
    )
