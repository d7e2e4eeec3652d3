"""Gradients of an expected outcome with respect to hyperparameters, seed by seed, with what tells whether to trust them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import is_concrete, numpy_for
from sgfbias.core.growth import TangentGrowth
from sgfbias.core.tiles import may_share, over_members, run_tiles, tile_index, tile_size

Mode = Literal["reverse", "forward"]
DOMINATED = 0.5
Growth = Callable[[Any, Array], TangentGrowth]


class Hypergradient(eqx.Module):
    """Outcome and gradient over the seeds that are finite.

    - `value`, `error`: mean outcome and its standard error. `gradient`, `gradient_error`: the same of the gradient, PyTrees as the
      hyperparameters. NaN if no seed is finite; the standard errors also if only one is.
    - `values` (seeds,), `gradients`: PyTree of (seeds, ...): each seed's own; `finite` (seeds,): whether outcome and gradient are.
    - `share`: the largest seed's part of the sum of squared gradients, at the worst hyperparameter (an array counts as one). As the number
      of seeds grows it goes to 0 if the gradient has a variance; near 1 a single seed is the mean, and the standard error means nothing.
    - `growth`: every seed's `TangentGrowth`, if asked for, else None. `growth_share`: the part of the most grown tangent in the sum of squared
      tangents, none counted as less than 1: near 1 a single seed's tangent outgrew all others'. 0 if not asked for.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    gradient: Any
    gradient_error: Any
    values: Float[Array, " seeds"]
    gradients: Any
    finite: Bool[Array, " seeds"]
    share: Float[Array, ""]
    growth: TangentGrowth | None
    growth_share: Float[Array, ""]

    @property
    def excluded(self) -> int:
        """How many seeds are left out because outcome or gradient is not finite."""
        return int(np.sum(~np.asarray(self.finite)))

    @property
    def dominated(self) -> bool:
        """Whether a single seed makes up more than half of the squared gradient, or of the squared tangents, among at least 8."""
        return int(np.sum(np.asarray(self.finite))) >= 8 and max(float(self.share), float(self.growth_share)) > DOMINATED

    def __repr__(self) -> str:
        if not is_concrete(self.value):
            return "Hypergradient(traced)"
        lines = [
            f"Hypergradient over {self.finite.shape[0]} seeds, {self.excluded} excluded as not finite",
            f"  outcome  {float(self.value):.6g} +- {float(self.error):.1g}",
        ]
        flat, errors = jax.tree.leaves_with_path(self.gradient), jax.tree.leaves(self.gradient_error)
        for (path, g), e in zip(flat, errors, strict=True):
            name = jax.tree_util.keystr(path) or "gradient"
            if g.ndim == 0:
                lines.append(f"  {name}  {float(g):.6g} +- {float(e):.1g}")
            else:
                lines.append(
                    f"  {name}  {tuple(g.shape)}, norm {float(jnp.linalg.norm(g)):.6g}, norm of the errors {float(jnp.linalg.norm(e)):.1g}"
                )
        lines.append(f"  largest seed's share of the squared gradient  {float(self.share):.2f}{'  (dominated)' if self.dominated else ''}")
        if self.growth is not None:
            factors = np.exp(np.asarray(self.growth.exponent) * np.asarray(self.growth.time))[np.asarray(self.finite)]
            if factors.size:
                exponent = np.median(np.asarray(self.growth.exponent)[np.asarray(self.finite)])
                lines.append(
                    f"  tangents grew {np.median(factors):.3g} times (median; largest {factors.max():.3g}, its share {float(self.growth_share):.2f}), "
                    f"exponent {exponent:.3g} per unit of flow time"
                )
        return "\n".join(lines)


def hypergradient(
    outcome: Callable[[Any, Array], Array], hyper: Any, *, keys: Array, mode: Mode = "reverse", growth: Growth | None = None
) -> Hypergradient:
    """Mean over seeds of `outcome(hyper, key)` and of its gradient in `hyper`, pathwise: each seed keeps its random numbers.

    **Arguments:**

    - `outcome`: `(hyper, key) -> scalar`, anything made with `simulate(..., keys=key)`, `land` and `select` for one seed. A derivative in a
      step size is at fixed `steps`, so that the flow time moves along; for one at fixed time give the flow a `dt` of its own, or an algorithm
      the step size `UntilTime(gamma, t1=, steps=)`.
    - `hyper`: PyTree of real numbers and arrays. `keys` (seeds,): `sgfbias.seeds(0, 256)`; the same keys give common random numbers.
    - `mode`: `"reverse"`, any number of hyperparameters at the cost of a few runs, memory as the square root of the steps; or `"forward"`,
      about one run more per number, memory as the run's. They agree to rounding. An adaptive flow takes the second one with
      `simulate(..., adjoint=diffrax.ForwardMode())`.
    - `growth`: `(hyper, key) -> tangent_growth(...)` of the run behind the outcome: how fast tangents grow is then measured, reported and warned
      of where one seed's outgrew all others'. Costs one more forward derivative.

    **Returns:** a `Hypergradient`. A seed whose outcome or gradient is not finite is excluded, counted and warned of; so is a gradient that a
    single seed dominates, which happens where tangents grow, near the stability edge.

    **Raises:** `ValueError` for keys or hyperparameters that cannot be used, or an outcome that is not a scalar.
    """
    if mode not in ("reverse", "forward"):
        raise ValueError(f"`mode` must be 'reverse' or 'forward', but is {mode!r}")
    keys = jnp.atleast_1d(check_keys(keys))
    hyper = as_hyper(hyper)
    shape = jax.eval_shape(outcome, hyper, keys[0])
    if not isinstance(shape, jax.ShapeDtypeStruct) or shape.shape != ():
        got = shape.shape if isinstance(shape, jax.ShapeDtypeStruct) else type(shape).__name__
        raise ValueError(
            f"`outcome` must return a scalar for one key, but returns {got}; take one seed's value, the mean over seeds is taken here"
        )
    count, size = keys.shape[0], min(tile_size(0), keys.shape[0])
    tiles = [keys[row] for row in tile_index(count, size)]
    calls = (outcome,) if growth is None else (outcome, growth)
    threads = len(tiles) > 1 and is_concrete((hyper, keys)) and all(may_share(call, hyper, keys[0]) for call in calls)
    try:
        first = _tile(outcome, hyper, tiles[0], mode, growth)  # compiles here, not once per thread, and runs beside the others
    except (TypeError, ValueError) as error:
        if (why := _why_not(error, mode)) is None:
            raise
        raise ValueError(why) from error
    if not threads:
        jax.block_until_ready(first)
    parts = [first, *run_tiles(lambda tile: _tile(outcome, hyper, tile, mode, growth), tiles[1:], threads=threads)]
    # Tiles may lie on several devices: joined on the host.
    report = summarise(*jax.tree.map(lambda *leaf: jnp.asarray(numpy_for(leaf).concatenate(leaf)[:count]), *parts))
    if is_concrete(report.value):
        if report.excluded:
            warnings.warn(f"{report.excluded} of {count} seeds are not finite and left out of outcome and gradient", stacklevel=2)
        if report.dominated:
            whole, part = max(("gradient", float(report.share)), ("tangents", float(report.growth_share)), key=lambda pair: pair[1])
            warnings.warn(
                f"one seed makes up {part:.0%} of the squared {whole}: tangents grow here, and the mean gradient and its error "
                "cannot be trusted; use a smaller step size, a shorter run, or the landed outcome",
                stacklevel=2,
            )
    return report


def _why_not(error: Exception, mode: str) -> str | None:
    """What to do where JAX says that an adaptive solver has no derivative in this mode; None for any other error."""
    if mode == "forward" and "custom_vjp" in str(error):
        return "the outcome has no forward derivative: an adaptive flow has one with simulate(..., adjoint=diffrax.ForwardMode()), or use mode='reverse'"
    if mode == "reverse" and "Reverse-mode differentiation does not work" in str(error):
        return "the outcome has no reverse derivative: leave out simulate(..., adjoint=diffrax.ForwardMode()), or use mode='forward'"
    return None


def as_hyper(hyper: Any) -> Any:
    """Hyperparameters as floating-point arrays.

    **Raises:** `ValueError` for a leaf that is not made of real numbers, or if there is none.
    """
    leaves = jax.tree.leaves(hyper)
    if not leaves:
        raise ValueError("there is no hyperparameter to differentiate with respect to: `hyper` is empty")

    def one(path: Any, leaf: Any) -> Array:
        if not hasattr(leaf, "dtype") and np.asarray(leaf).dtype.kind not in "fiubc":
            raise ValueError(f"hyperparameter {jax.tree_util.keystr(path)} must be real numbers, but is {leaf!r}")
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.integer):
            array = array.astype(jnp.result_type(float))
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"hyperparameter {jax.tree_util.keystr(path)} must be real numbers, but has dtype {array.dtype}")
        return array.astype(jnp.result_type(array.dtype))  # no weak types, which would compile a second time

    return jax.tree_util.tree_map_with_path(one, hyper)


@eqx.filter_jit
def _tile(outcome: Callable, hyper: Any, keys: Array, mode: str, growth: Callable | None) -> tuple[Array, Any, TangentGrowth | None]:
    def one(key: Array) -> tuple[Array, Any, TangentGrowth | None]:
        grown = None if growth is None else TangentGrowth(*growth(hyper, key))
        if mode == "reverse":
            return *jax.value_and_grad(outcome)(hyper, key), grown
        flat, unravel = jax.flatten_util.ravel_pytree(hyper)
        value, slopes = jax.vmap(lambda e: jax.jvp(lambda h: outcome(unravel(h), key), (flat,), (e,)), out_axes=(None, 0))(
            jnp.eye(flat.size, dtype=flat.dtype)
        )
        return value, unravel(slopes), grown

    return over_members(one, keys)


def summarise(values: Array, gradients: Any, growth: TangentGrowth | None = None) -> Hypergradient:
    """Means and standard errors over the seeds whose outcome and gradient are finite."""
    finite = jnp.isfinite(values)
    for leaf in jax.tree.leaves(gradients):
        finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    count = jnp.sum(finite).astype(values.dtype)

    def kept(leaf: Array) -> tuple[Array, Array]:
        mask = finite.reshape(-1, *(1,) * (leaf.ndim - 1))
        return mask, jnp.where(mask, leaf, 0)

    def mean(leaf: Array) -> Array:
        return jnp.where(count > 0, jnp.sum(kept(leaf)[1], axis=0) / jnp.maximum(count, 1), jnp.nan)

    def error(leaf: Array) -> Array:
        mask, values = kept(leaf)
        squares = jnp.sum(jnp.where(mask, jnp.square(values - mean(leaf)), 0), axis=0)
        return jnp.where(count > 1, jnp.sqrt(squares / jnp.maximum(count * (count - 1), 1)), jnp.nan)

    def share(leaf: Array) -> Array:
        squares = jnp.sum(jnp.square(kept(leaf)[1]), axis=tuple(range(1, leaf.ndim)))
        total = jnp.sum(squares)
        return jnp.max(squares) / jnp.where(total > 0, total, 1)

    grown = jnp.zeros(()) if growth is None else _largest_part(growth.exponent * growth.time, finite)
    return Hypergradient(
        value=mean(values),
        error=error(values),
        gradient=jax.tree.map(mean, gradients),
        gradient_error=jax.tree.map(error, gradients),
        values=values,
        gradients=gradients,
        finite=finite,
        share=jnp.max(jnp.stack([share(leaf) for leaf in jax.tree.leaves(gradients)])),
        growth=growth,
        growth_share=grown,
    )


def _largest_part(logs: Array, finite: Array) -> Array:
    """Part of the largest among the squared factors exp(logs), none of them counted as less than 1, over finite seeds."""
    squares = jnp.where(finite & ~jnp.isnan(logs), 2 * jnp.maximum(logs, 0), -jnp.inf)
    largest = jnp.max(squares)
    return jnp.where(jnp.isfinite(largest), jnp.exp(largest - jax.nn.logsumexp(squares)), jnp.where(largest > 0, 1.0, 0.0))
