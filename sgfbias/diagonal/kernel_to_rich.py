"""From the kernel to the rich regime: minimum l2 at large alpha, minimum l1 at small, and how small alpha must be at each depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.flow import GradientFlow
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.tiles import tile_map
from sgfbias.diagonal.curve import solution_curve
from sgfbias.diagonal.kernel_to_rich_claims import claims as claims
from sgfbias.diagonal.kernel_to_rich_claims import plot as plot
from sgfbias.diagonal.kernel_to_rich_theory import (
    fixed_exponent,
    kernel_shift,
    largest_certificate,
    peak,
    sufficient_alphas,
    worst_excess,
)
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.potential import potential
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import minimum_l1, minimum_l2, select

LAST = Record(times=2)
EPS = (0.1, 0.5)  # of the paper's sufficient alphas
TOLERANCES = (1e-9,)  # of the simulated flows; each is a program of its own to compile
TARGETS = np.geomspace(1e-3, 1e-8, 6)  # alpha^exponent on the fixed problems
SCALES = np.array([4.0, 8.0, 16.0, 32.0])  # alpha^p over max |beta_l2|, in the kernel regime
ORDERS = np.geomspace(0.1, 1e-3, 5)  # alpha^{p-2} of the worst case, or exp(-1/it) at depth 2
WINDOW = np.linspace(-0.6, 0.6, 41)  # log of delta around where theory has the worst one


@dataclasses.dataclass(frozen=True)
class KernelToRichConfig:
    """Minimum l2 at large alpha, minimum l1 at small: both limits with their rates, which at depth 2 need exponentially small alpha."""

    draws: int = 8
    """Drawn problems."""
    levels: int = 21
    """Alphas of the transition, log-spaced."""
    alpha_low: float = 1e-3
    """Smallest of them."""
    alpha_high: float = 20.0
    """Largest of them."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Depths p; 2 and one above must be among them."""
    flow_alphas: tuple[float, ...] = (0.1, 0.5, 2.0)
    """Alphas at which gradient flow is simulated at every depth."""
    flow_time: float = 1e7
    """Flow time of those, long enough to converge."""
    flow_n: int = 10
    """Examples of the problem that is simulated, smaller than the others: the flow is stiff."""
    flow_d: int = 20
    """Its features."""
    n: int = 20
    """Examples."""
    d: int = 40
    """Features; each is scaled to mean square 1, so that h = 1."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problems."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name, least in (("draws", 2), ("levels", 4)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not (np.isfinite(self.alpha_low) and self.alpha_low > 0):
            raise ValueError(f"alpha_low must be positive and finite, but is {self.alpha_low}")
        if not (np.isfinite(self.alpha_high) and self.alpha_high > self.alpha_low):
            raise ValueError(f"alpha_high must be finite and above alpha_low = {self.alpha_low}, but is {self.alpha_high}")
        for prefix in ("", "flow_"):
            n, d = getattr(self, f"{prefix}n"), getattr(self, f"{prefix}d")
            if not 2 <= n < d:
                raise ValueError(f"{prefix}n must be at least 2 and below {prefix}d = {d}, so that the data leave a choice, but is {n}")
            if not 1 <= self.sparsity <= d:
                raise ValueError(f"sparsity must be from 1 to {prefix}d = {d}, but is {self.sparsity}")
        if list(self.depths) != sorted(set(self.depths)) or len(self.depths) < 2 or self.depths[0] != 2:
            raise ValueError(f"depths must be increasing whole numbers that begin with 2 and go on, but are {self.depths}")
        if not self.flow_alphas or min(self.flow_alphas) <= 0:
            raise ValueError(f"flow_alphas must be positive, but are {self.flow_alphas}")
        if not (np.isfinite(self.flow_time) and self.flow_time > 0):
            raise ValueError(f"flow_time must be positive and finite, but is {self.flow_time}")


Config = KernelToRichConfig
PAPER = KernelToRichConfig(
    n=100, d=1000, sparsity=5, draws=4
)  # their figure 1 (sparse regression); its alphas are within the default range
REFERENCES = {
    "woodworth2020": "the kernel and the rich regime, and how small alpha must be at each depth",
}


def drawn(config: KernelToRichConfig, k: int, n: int, d: int) -> SparseRegression:
    """Problem number k: Gaussian inputs with every feature's mean square scaled to 1."""
    key = jax.random.fold_in(jax.random.key(config.problem_seed), k)
    problem = SparseRegression.sample(key, n=n, d=d, sparsity=config.sparsity, dtype=jnp.float64)
    X = problem.X / jnp.sqrt(problem.h)
    return SparseRegression(X, X @ jnp.asarray(problem.beta_star), problem.beta_star)


@eqx.filter_jit
def _selected(X: Array, y: Array, log_alpha: Array, depth: int) -> Array:
    return jax.vmap(lambda X, y, value: select(SparseRegression(X, y), value, depth=depth).beta)(X, y, log_alpha)


def selected(X: Any, y: Any, log_alpha: Any, depth: int) -> np.ndarray:
    """Selected solutions of many problems at many alphas: X (m, n, d), y (m, n), log_alpha (m, k) to (m, k, d)."""
    count = np.shape(log_alpha)[1]
    lanes = (
        np.repeat(X, count, axis=0),
        np.repeat(y, count, axis=0),
        np.ravel(log_alpha),
    )  # in tiles: one compiled program per depth and size
    beta = tile_map(lambda tile: _selected(*tile, depth), tuple(jnp.asarray(v, jnp.float64) for v in lanes))
    return np.asarray(beta).reshape(-1, count, np.shape(X)[2])


def run(config: KernelToRichConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions depth, draw, alpha, and those of the limits and of the flows.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        problems, out = [drawn(config, k, config.n, config.d) for k in range(config.draws)], Columns()
        say(f"minimum l1 and l2 of {config.draws} problems, n = {config.n}, d = {config.d}, {config.sparsity} non-zeros")
        ends = {name: np.stack([np.asarray(f(p)) for p in problems]) for name, f in (("l1", minimum_l1), ("l2", minimum_l2))}
        X, y, truth = (np.stack([np.asarray(getattr(p, name)) for p in problems]) for name in ("X", "y", "beta_star"))
        out.add("l1_least", ("draw",), np.abs(ends["l1"]).sum(axis=1), "target / input")
        out.add("l2_least", ("draw",), np.linalg.norm(ends["l2"], axis=1), "target / input")
        out.add("recovered", ("draw",), np.abs(ends["l1"] - truth).max(axis=1) < 1e-6, "1")
        say(f"{config.levels} alphas from {config.alpha_high:g} down to {config.alpha_low:g} at depths {config.depths}")
        alphas = _transition(config, problems, X, y, truth, out)
        say("the rich limit: its exponent on each problem, and the worst over problems of two features")
        _rich(config, X, y, ends["l1"], out)
        _worst(config, out)
        say("the kernel limit, and the paper's sufficient alphas")
        _kernel(config, X, y, ends["l2"], out)
        _sufficient(config, X, y, ends, out)
        say(f"gradient flow to time {config.flow_time:g} at alphas {config.flow_alphas} and each depth, in the weights")
        _flows(config, out)
        attrs = attributes({"study": "kernel-to-rich", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=jax.random.key(0))
        coords = {"alpha": alphas, "depth": np.array(config.depths), "draw": np.arange(config.draws), "eps": np.array(EPS)}
        coords |= {"target": TARGETS, "scale": SCALES, "order": ORDERS, "tolerance": np.array(TOLERANCES)}
        return out.dataset(coords | {"flow_alpha": np.array(config.flow_alphas)}, attrs | {"study": "kernel-to-rich"})


def _transition(config: KernelToRichConfig, problems: list, X: Any, y: Any, truth: np.ndarray, out: Columns) -> np.ndarray:
    alphas = np.geomspace(config.alpha_low, config.alpha_high, config.levels)
    # h = 1: the curve of the mean-loss model at gamma = 1/2 runs through alpha e^{-S}, whatever the problem.
    top, integrals = np.log(config.alpha_high), np.log(config.alpha_high / alphas[::-1])
    curves = [solution_curve(p, top, step_size=0.5, integrals=integrals) for p in problems]
    rows = [np.stack([np.asarray(c.beta)[::-1] for c in curves])]
    slopes = np.stack([-np.asarray(jnp.sum(jnp.sign(c.beta) * c.slope, axis=1))[::-1] for c in curves])  # d |beta|_1 / d log alpha
    for depth in config.depths[1:]:
        rows.append(selected(X, y, np.tile(np.log(alphas), (config.draws, 1)), depth))
    beta, dims = np.stack(rows), ("depth", "draw", "alpha")
    out.add("l1", dims, np.abs(beta).sum(axis=-1), "target / input")
    out.add("l2", dims, np.linalg.norm(beta, axis=-1), "target / input")
    out.add("error", dims, np.square(beta - truth[None, :, None]).sum(axis=-1), "(target / input)^2")
    out.add("l1_slope", dims[1:], slopes, "target / input per log alpha")
    return alphas


def _rich(config: KernelToRichConfig, X: Any, y: Any, least: np.ndarray, out: Columns) -> None:
    """Excess l1 norm on each problem, at alphas where theory has it fall along TARGETS."""
    certificate = np.array([largest_certificate(X[k], least[k]) for k in range(config.draws)])
    excess = []
    for depth in config.depths:
        exponent = np.maximum(np.array([fixed_exponent(depth, c) for c in certificate]), 0.05)  # else there is none to be seen
        beta = selected(X, y, np.log(TARGETS)[None] / exponent[:, None], depth)
        excess.append(np.abs(beta).sum(axis=-1) / np.abs(least).sum(axis=1, keepdims=True) - 1)
    out.add("certificate", ("draw",), certificate, "1")
    out.add("rich_excess", ("depth", "draw", "target"), np.stack(excess), "1")


def _worst(config: KernelToRichConfig, out: Columns) -> None:
    """The largest excess l1 norm over the problems beta_1 + (1 - delta) beta_2 = 1, whose least is 1."""
    rows = []
    for depth in config.depths:
        _, place = worst_excess(depth)
        log_alpha = -1 / (2 * ORDERS) if depth == 2 else np.log(ORDERS) / (depth - 2)
        delta = ORDERS[:, None] * place * np.exp(WINDOW)
        X = np.stack([np.ones_like(delta), 1 - delta], axis=-1).reshape(-1, 1, 2)
        beta = selected(X, np.ones((X.shape[0], 1)), np.repeat(log_alpha, WINDOW.size)[:, None], depth)
        excess = delta * beta[:, 0, 1].reshape(delta.shape)  # |beta|_1 - 1 without its cancellation
        rows.append([peak(WINDOW, row) for row in excess])
    out.add("worst_excess", ("depth", "order"), np.array(rows), "1")


def _kernel(config: KernelToRichConfig, X: Any, y: Any, least: np.ndarray, out: Columns) -> None:
    """How far theory's first correction is from the distance to the minimum l2 solution, relative to it."""
    largest = np.abs(least).max(axis=1)
    gaps, sizes = [], []
    for depth in config.depths:
        log_alpha = (np.log(SCALES)[None] + np.log(largest)[:, None]) / depth
        shift = np.stack([kernel_shift(X[k], least[k], depth) for k in range(config.draws)])
        predicted = shift[:, None] * np.exp(-2 * depth * log_alpha)[..., None]
        moved = selected(X, y, log_alpha, depth) - least[:, None]
        sizes.append(np.linalg.norm(moved, axis=-1) / np.linalg.norm(least, axis=1)[:, None])
        gaps.append(np.linalg.norm(moved - predicted, axis=-1) / np.linalg.norm(predicted, axis=-1))
    out.add("kernel_distance", ("depth", "draw", "scale"), np.stack(sizes), "1")
    out.add("kernel_gap", ("depth", "draw", "scale"), np.stack(gaps), "1")


def _sufficient(config: KernelToRichConfig, X: Any, y: Any, ends: dict[str, np.ndarray], out: Columns) -> None:
    least = {"rich": np.abs(ends["l1"]).sum(axis=1), "kernel": np.square(ends["l2"]).sum(axis=1)}
    bounds = np.array([[sufficient_alphas(e, config.d, a, np.sqrt(b)) for e in EPS] for a, b in zip(*least.values(), strict=True)])
    for k, (name, norm) in enumerate((("rich", np.abs), ("kernel", np.square))):
        value = norm(selected(X, y, bounds[..., k], 2)).sum(axis=-1)
        out.add(f"bound_{name}_log_alpha", ("draw", "eps"), bounds[..., k], "log weight")
        out.add(f"bound_{name}_excess", ("draw", "eps"), value / least[name][:, None] - 1, "1")


def _flows(config: KernelToRichConfig, out: Columns) -> None:
    problem = drawn(config, 0, config.flow_n, config.flow_d)
    simulated, predicted, losses = [], [], []
    for depth in config.depths:
        for alpha in config.flow_alphas:
            start = DiagonalNetwork.init(alpha=alpha, d=config.flow_d, depth=depth, dtype=jnp.float64)
            runs = [
                simulate(GradientFlow(rtol=t, atol=t * 1e-3), start, problem, t1=config.flow_time, coordinates="weights", record=LAST)
                for t in TOLERANCES
            ]
            simulated.append([np.asarray(r.networks.beta) for r in runs])
            losses.append([float(r.final["loss"]) for r in runs])
            predicted.append(np.asarray(select(problem, np.log(alpha), depth=depth).beta))
    shape = (len(config.depths), len(config.flow_alphas))
    out.add(
        "flow_beta", ("depth", "flow_alpha", "tolerance", "feature"), np.reshape(simulated, (*shape, -1, config.flow_d)), "target / input"
    )
    out.add("flow_predicted", ("depth", "flow_alpha", "feature"), np.reshape(predicted, (*shape, config.flow_d)), "target / input")
    out.add("flow_loss", ("depth", "flow_alpha", "tolerance"), np.reshape(losses, (*shape, -1)), "loss")
    # The same scale of beta, alpha^p = alpha_2^2, at another depth
    other = [[np.asarray(select(problem, np.log(alpha) * depth / 2).beta) for alpha in config.flow_alphas] for depth in config.depths]
    out.add("flow_as_two", ("depth", "flow_alpha", "feature"), other, "target / input")
    # Their loss is the sum of squares and their potential sum alpha^2 q(beta / alpha^2), q(z) = int_0^z arcsinh(t / 2) dt.
    alpha, time = config.flow_alphas[0], 1.0
    start = DiagonalNetwork.init(alpha=alpha, d=config.flow_d, dtype=jnp.float64)
    theirs = SparseRegression(problem.X, problem.y, problem.beta_star, loss_scale=float(problem.n))
    flow = GradientFlow(rtol=TOLERANCES[-1], atol=TOLERANCES[-1] * 1e-3)
    early = [
        np.asarray(simulate(flow, start, p, t1=t, coordinates="weights", record=LAST).networks.beta)
        for p, t in ((problem, time), (theirs, time / (4 * problem.n)), (theirs, time))
    ]
    out.add("convention_beta", ("convention", "feature"), early, "target / input")
    out.add("convention_potential", ("potential",), _potentials(predicted[0], alpha), "target / input")


def _potentials(beta: np.ndarray, alpha: float) -> tuple[float, float]:
    """`Q_alpha` by quadrature of its definition, and `4 phi_alpha + 2 sum alpha^2`."""
    from scipy.integrate import quad

    q = sum(quad(lambda t: np.arcsinh(t / 2), 0, float(b) / alpha**2, epsrel=1e-12, limit=500)[0] for b in beta)
    return alpha**2 * q, 4 * float(potential(jnp.asarray(beta), jnp.full(beta.size, np.log(alpha)))) + 2 * beta.size * alpha**2
