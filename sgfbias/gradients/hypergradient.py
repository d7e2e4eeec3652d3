"""Gradients of an expected outcome with respect to hyperparameters.

They are computed seed by seed, and come with diagnostics that say whether the mean over
seeds can be trusted.
"""

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
from sgfbias.core.checks import as_numbers, is_concrete, numpy_for, shown
from sgfbias.core.stale import drop_stale_programs
from sgfbias.core.tiles import is_thread_safe, map_seeds, run_tiles, tile_index, tile_size
from sgfbias.gradients.growth import TangentGrowth

Mode = Literal["reverse", "forward"]
DOMINATED = 0.5
Growth = Callable[[Any, Array], TangentGrowth]


class Hypergradient(eqx.Module):
    """The mean outcome and its gradient, over the seeds for which both are finite.

    - `value`, `error`: the mean outcome and its standard error.
    - `gradient`, `gradient_error`: the mean gradient and its standard errors, PyTrees
      with the structure of the hyperparameters. All means are NaN if no seed is finite,
      and all standard errors are NaN if fewer than two seeds are.
    - `values`: (seeds,): the outcome of each seed.
    - `gradients`: PyTree of (seeds, ...): the gradient of each seed.
    - `finite`: (seeds,): whether the outcome and the gradient of a seed are finite.
    - `share`: the largest squared gradient of a seed divided by the sum over seeds, for
      the hyperparameter at which it is largest (an array counts as one hyperparameter).
      If the gradient has a finite variance, the share goes to 0 as the number of seeds
      grows. Near 1, one seed dominates the mean, and the standard error is meaningless.
    - `growth`: the `TangentGrowth` of all seeds, or None if it was not asked for.
    - `growth_share`: the largest squared tangent divided by the sum over seeds (norms
      below 1 count as 1). Near 1, one seed dominates. It is 0 if the growth was not
      asked for.
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
        """Number of seeds that are left out because their outcome or gradient is not
        finite.
        """
        return int(np.sum(~np.asarray(self.finite)))

    @property
    def dominated(self) -> bool:
        """Whether one seed makes up more than half of the sum of squared gradients, or
        of the sum of squared tangents. With fewer than 8 finite seeds it is False.
        """
        return (
            int(np.sum(np.asarray(self.finite))) >= 8
            and max(float(self.share), float(self.growth_share)) > DOMINATED
        )

    def __repr__(self) -> str:
        if not is_concrete(self.value):
            return "Hypergradient(traced)"
        lines = [
            f"Hypergradient over {self.finite.shape[0]} seeds, {self.excluded} excluded as not "
            "finite",
            f"  outcome  {float(self.value):.6g} +- {float(self.error):.1g}",
        ]
        flat, errors = (
            jax.tree.leaves_with_path(self.gradient),
            jax.tree.leaves(self.gradient_error),
        )
        for (path, g), e in zip(flat, errors, strict=True):
            name = jax.tree_util.keystr(path) or "gradient"
            if g.ndim == 0:
                lines.append(f"  {name}  {float(g):.6g} +- {float(e):.1g}")
            else:
                lines.append(
                    f"  {name}  {tuple(g.shape)}, norm {float(jnp.linalg.norm(g)):.6g}, norm of "
                    f"the errors {float(jnp.linalg.norm(e)):.1g}"
                )
        lines.append(
            "  largest seed's share of the squared gradient  "
            f"{float(self.share):.2f}{'  (dominated)' if self.dominated else ''}"
        )
        if self.growth is not None:
            factors = np.exp(np.asarray(self.growth.exponent) * np.asarray(self.growth.time))[
                np.asarray(self.finite)
            ]
            if factors.size:
                exponent = np.median(np.asarray(self.growth.exponent)[np.asarray(self.finite)])
                lines.append(
                    f"  tangents grew by a factor of {np.median(factors):.3g} (median; largest "
                    f"{factors.max():.3g}, with a share of {float(self.growth_share):.2f}), "
                    f"exponent {exponent:.3g} per unit of flow time"
                )
        return "\n".join(lines)


def hypergradient(
    outcome: Callable[[Any, Array], Array],
    hyper: Any,
    *,
    keys: Array,
    mode: Mode = "reverse",
    growth: Growth | None = None,
) -> Hypergradient:
    """Mean over seeds of `outcome(hyper, key)`, and the mean of its gradient in
    `hyper`.

    The gradients are pathwise: the random numbers of each seed are held fixed.

    **Arguments:**

    - `outcome`: `(hyper, key) -> scalar` for one seed, made for example with
      `simulate(..., keys=key)`, `land` or `select`. By default the number of steps is
      held fixed, so changing the step size also changes the final time. To hold the
      time fixed, give the flow a `dt` of its own, or give an algorithm the step size
      `UntilTime(gamma, t1=, steps=)`.
    - `hyper`: PyTree of real numbers and arrays.
    - `keys`: (seeds,): the random keys, such as `sgfbias.seeds(0, 256)`. The same keys
      give common random numbers.
    - `mode`: `"reverse"` or `"forward"`; they agree up to rounding. Reverse mode costs
      a few runs for any number of hyperparameters, and its memory grows like the square
      root of the number of steps. Forward mode costs about one more run for each number
      in `hyper`, and needs the memory of a run; for a single number it takes half the
      time of reverse mode. For an adaptive flow, forward mode needs
      `simulate(..., adjoint=diffrax.ForwardMode())`.
    - `growth`: `(hyper, key) -> tangent_growth(...)` for the run behind the outcome. If
      given, the growth of the tangents is measured and reported, and there is a warning
      if one seed dominates the squared tangents. It costs one more forward derivative.

    **Returns:** a `Hypergradient`.

    **Warns:** if seeds are excluded because their outcome or gradient is not finite,
    and if one seed dominates the mean gradient. The latter happens where tangents grow,
    near the edge of stability.

    **Raises:** `ValueError` for keys or hyperparameters that cannot be used, or for an
    outcome that is not a scalar.
    """
    if mode not in ("reverse", "forward"):
        raise ValueError(f"`mode` must be 'reverse' or 'forward', but is {mode!r}")
    keys = jnp.atleast_1d(check_keys(keys))
    hyper = as_hyper(hyper)
    if not callable(outcome):
        raise ValueError(
            f"`outcome` must be a function (hyper, key) -> scalar, but is {shown(outcome)}"
        )
    drop_stale_programs(outcome, growth)
    shape = jax.eval_shape(outcome, hyper, keys[0])
    if not isinstance(shape, jax.ShapeDtypeStruct) or shape.shape != ():
        got = shape.shape if isinstance(shape, jax.ShapeDtypeStruct) else type(shape).__name__
        raise ValueError(
            f"`outcome` must return a scalar for one key, but returns {got}; return the value of "
            "one seed, because the mean over seeds is taken here"
        )
    count, size = keys.shape[0], min(tile_size(0), keys.shape[0])
    tiles = [keys[row] for row in tile_index(count, size)]
    calls = (outcome,) if growth is None else (outcome, growth)
    threads = (
        len(tiles) > 1
        and is_concrete((hyper, keys))
        and all(is_thread_safe(call, hyper, keys[0]) for call in calls)
    )
    try:
        # The first tile is called here, so that the function is compiled once and not
        # in every thread. The tile still runs at the same time as the others.
        first = _tile(outcome, hyper, tiles[0], mode, growth)
    except (TypeError, ValueError) as error:
        if (why := _why_not(error, mode)) is None:
            raise
        raise ValueError(why) from error
    if not threads:
        jax.block_until_ready(first)
    parts = [
        first,
        *run_tiles(
            lambda tile: _tile(outcome, hyper, tile, mode, growth), tiles[1:], threads=threads
        ),
    ]
    # Tiles may lie on several devices, so they are joined on the host.
    report = summarise(
        *jax.tree.map(lambda *leaf: jnp.asarray(numpy_for(leaf).concatenate(leaf)[:count]), *parts)
    )
    if is_concrete(report.value):
        if report.excluded:
            warnings.warn(
                f"{report.excluded} of {count} seeds are not finite and are left out of the mean "
                "outcome and gradient",
                stacklevel=2,
            )
        if report.dominated:
            whole, part = max(
                ("gradient", float(report.share)),
                ("tangents", float(report.growth_share)),
                key=lambda pair: pair[1],
            )
            warnings.warn(
                f"one seed makes up {part:.0%} of the squared {whole}: tangents grow here, so the "
                "mean gradient and its error cannot be trusted; use a smaller step size, a "
                "shorter run, or the landed outcome",
                stacklevel=2,
            )
    return report


def _why_not(error: Exception, mode: str) -> str | None:
    """What to do if JAX has refused to differentiate an adaptive solver in this mode;
    None for any other error.
    """
    if mode == "forward" and "custom_vjp" in str(error):
        return (
            "the outcome has no forward derivative: for an adaptive flow use "
            "simulate(..., adjoint=diffrax.ForwardMode()), or use mode='reverse'"
        )
    if mode == "reverse" and "Reverse-mode differentiation does not work" in str(error):
        return (
            "the outcome has no reverse derivative: leave out simulate(..., "
            "adjoint=diffrax.ForwardMode()), or use mode='forward'"
        )
    return None


def as_hyper(hyper: Any) -> Any:
    """The PyTree of hyperparameters with floating-point arrays as leaves.

    **Raises:** `ValueError` if a leaf does not consist of real numbers, or if there are
    no leaves.
    """
    leaves = jax.tree.leaves(hyper)
    if not leaves:
        raise ValueError(
            "there is no hyperparameter to differentiate with respect to: `hyper` is empty"
        )

    def one(path: Any, leaf: Any) -> Array:
        if not hasattr(leaf, "dtype") and np.asarray(leaf).dtype.kind not in "fiubc":
            raise ValueError(
                f"hyperparameter {jax.tree_util.keystr(path)} must be real numbers, but is {leaf!r}"
            )
        array = as_numbers(leaf, f"hyperparameter {jax.tree_util.keystr(path)}")
        if jnp.issubdtype(array.dtype, jnp.integer):
            array = array.astype(jnp.result_type(float))
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"hyperparameter {jax.tree_util.keystr(path)} must be real numbers, but has "
                f"dtype {array.dtype}"
            )
        # This removes weak types, which would cause a second compilation.
        return array.astype(jnp.result_type(array.dtype))

    return jax.tree_util.tree_map_with_path(one, hyper)


@eqx.filter_jit
def _tile(
    outcome: Callable, hyper: Any, keys: Array, mode: str, growth: Callable | None
) -> tuple[Array, Any, TangentGrowth | None]:
    """Outcomes, gradients and tangent growths of the seeds `keys`."""

    def one(key: Array) -> tuple[Array, Any, TangentGrowth | None]:
        grown = None if growth is None else TangentGrowth(*growth(hyper, key))
        if mode == "reverse":
            return *jax.value_and_grad(outcome)(hyper, key), grown
        flat, unravel = jax.flatten_util.ravel_pytree(hyper)
        value, slopes = jax.vmap(
            lambda e: jax.jvp(lambda h: outcome(unravel(h), key), (flat,), (e,)), out_axes=(None, 0)
        )(jnp.eye(flat.size, dtype=flat.dtype))
        return value, unravel(slopes), grown

    return map_seeds(one, keys)


def summarise(values: Array, gradients: Any, growth: TangentGrowth | None = None) -> Hypergradient:
    """Means and standard errors over the seeds whose outcome and gradient are finite.

    **Arguments:**

    - `values`: (seeds,): the outcome of each seed.
    - `gradients`: PyTree of (seeds, ...): the gradient of each seed.
    - `growth`: the growth of each seed's tangent, or None.

    **Returns:** a `Hypergradient`.
    """
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
        return jnp.where(
            count > 1, jnp.sqrt(squares / jnp.maximum(count * (count - 1), 1)), jnp.nan
        )

    def share(leaf: Array) -> Array:
        squares = jnp.sum(jnp.square(kept(leaf)[1]), axis=tuple(range(1, leaf.ndim)))
        total = jnp.sum(squares)
        return jnp.max(squares) / jnp.where(total > 0, total, 1)

    grown = (
        jnp.zeros(()) if growth is None else _largest_part(growth.exponent * growth.time, finite)
    )
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
    """The largest squared factor exp(2 logs) divided by the sum over the finite seeds.

    Factors below 1 count as 1.
    """
    squares = jnp.where(finite & ~jnp.isnan(logs), 2 * jnp.maximum(logs, 0), -jnp.inf)
    largest = jnp.max(squares)
    return jnp.where(
        jnp.isfinite(largest),
        jnp.exp(largest - jax.nn.logsumexp(squares)),
        jnp.where(largest > 0, 1.0, 0.0),
    )
