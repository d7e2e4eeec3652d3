"""Stabilised neurons: the same labels, at the largest mean distance from flips."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from sgfbias.core.checks import is_concrete
from sgfbias.fourier import coefficients
from sgfbias.fourier.examples import as_bits
from sgfbias.fourier.layers import Layers, first_layer

Scale = Literal["linf", "l2"]


def sign(z: Float[ArrayLike, "*z"]) -> Float[Array, "*z"]:
    """The label of a preactivation: +1 where it is at least 0, and otherwise -1."""
    z = jnp.asarray(z)
    return jnp.where(z >= 0, 1, -1).astype(z.dtype)


def stabilise(
    net: Any,
    neurons: Bool[ArrayLike, " m"] | None = None,
    p: float = 1.0,
    level: Float[ArrayLike, "*m"] | None = None,
    scale: Scale = "linf",
    *,
    refit_bias: Any = None,
    chow: Any = None,
    layer: Callable | None = None,
    activation: Callable | None = None,
) -> Any:
    """A network whose first layer has stabilised neurons.

    Among all v with `|v|_q = 1`, 1/p + 1/q = 1, the mean signed l_p distance
    `E[act(w.x + b) v.x]` from the hyperplane of v is largest, and is `|t|_p`, for

        v_i = sgn(t_i) |t_i|^(p-1) / |t|_p^(p-1),    t_i = E[act(w.x + b) x_i].

    For p = 1, where an attacker pays for each flip, v is sgn(t), which is sgn(w) for
    independent unbiased bits and a non-decreasing activation; for p = inf only the bit
    with the largest |t_i| is left.

    With a level, v is w clipped to `[-c, c]`, `c = level max|w|`: level = 1 is w, and
    level -> 0 is p = 1. For given `|v|_inf` and `|v|_2` no other v has a larger cosine
    with w.

    **Arguments:**

    - `net`: an Equinox module whose first `eqx.nn.Linear` sees the bits.
    - `neurons`: (m,), booleans: which neurons to stabilise. None for all.
    - `p`: at least 1, or `math.inf`: the norm in which the attacker pays.
    - `level`: one number or (m,), above 0 and at most 1, for p = 1 only. The result is
      differentiable in it.
    - `scale`: "linf" keeps the dual norm `|w|_q` of each neuron, which is max|w| for
      p = 1; "l2" keeps its 2-norm.
    - `refit_bias`: inputs (n, d), bits in {-1, +1}. The threshold of each stabilised
      neuron is chosen so that its labels on these inputs agree with the old ones as
      often as possible. By default biases stay as they are.
    - `chow`: a `Chow` or an array (m, d) of coefficients t. By default sgn(w) is taken
      for p = 1, and `chow(net)` for another p.
    - `layer`, `activation`: the first layer and the function that follows it, for
      modules in which they are not found, as `first_layer` takes them.

    **Returns:** the network with new weights. A weight of exactly 0 stays 0 for p = 1.

    **Raises:** `ValueError` for p < 1, a level outside (0, 1], a mask of another shape
    or type, and for combinations without a meaning.

    **Warns:** about selected neurons without a direction, which are returned
    unchanged: all their weights, or all their coefficients, are 0.

    Raviv et al. 2021, section 3, for p and both scales. Levels and refitted biases are
    our own.
    """
    cut = first_layer(net, layer=layer, activation=activation)
    _check(cut, p, level, scale, chow)
    mask = as_mask(neurons, cut.m)
    direction = None if level is not None else _direction(net, cut, p, chow, layer, activation)
    # As an array, so that another level compiles nothing anew.
    fraction = None if level is None else jnp.asarray(level).astype(cut.dtype)
    new, alive = _weights(cut.weight, direction, fraction, p, scale)
    if is_concrete(alive) and is_concrete(mask) and bool(jnp.any(mask & ~alive)):
        dead = ", ".join(map(str, np.flatnonzero(mask & ~alive)))
        warnings.warn(
            f"neurons without a direction, because all their weights or coefficients are 0, are "
            f"returned unchanged: {dead}",
            stacklevel=2,
        )
    changed = mask & alive
    weight = jnp.where(changed[:, None], new, cut.weight)
    if refit_bias is None:
        return cut.replace(weight)
    if cut.linear.bias is None:
        raise ValueError(
            "refit_bias= needs a first layer with biases, but that of the network has none"
        )
    bias = _refitted(cut, weight, as_bits(refit_bias, cut.dtype, "refit_bias"))
    return cut.replace(weight, jnp.where(changed, bias, cut.bias))


@eqx.filter_jit
def _weights(
    w: Array, direction: Array | None, level: Any, p: float, scale: Scale
) -> tuple[Array, Array]:
    """The new weights (m, d), and which neurons have a direction, (m,)."""
    if direction is None:
        return clipped(w, level, scale), jnp.any(w != 0, axis=1)
    alive = jnp.any(direction != 0, axis=1) & jnp.any(w != 0, axis=1)
    return _holder(w, direction, p, scale), alive


def as_mask(neurons: Any, m: int) -> Array:
    """The mask (m,) of the neurons; all of them for None."""
    if neurons is None:
        return jnp.ones(m, bool)
    mask = jnp.asarray(neurons)
    if mask.dtype != bool or mask.shape != (m,):
        raise ValueError(
            f"neurons must be a mask of {m} booleans, one for each neuron of the first layer, but "
            f"has type {mask.dtype} and shape {mask.shape}; for numbers of neurons write "
            f"jnp.zeros({m}, bool).at[jnp.array(NUMBERS)].set(True)"
        )
    return mask


def _check(cut: Layers, p: float, level: Any, scale: str, chow: Any) -> None:
    if not p >= 1:
        raise ValueError(
            f"p must be at least 1, since the l_p distance is no norm below, but is {p}"
        )
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be 'linf' or 'l2', but is {scale!r}")
    if level is None:
        return
    if p != 1 or chow is not None:
        raise ValueError(
            "a level clips the weights towards p = 1, so it goes with neither another p nor chow=: "
            "leave out one of them"
        )
    values = jnp.asarray(level)
    if values.shape not in ((), (cut.m,)):
        raise ValueError(
            f"level must be one number or have shape ({cut.m},), but has shape {values.shape}"
        )
    if is_concrete(values) and not bool(jnp.all((values > 0) & (values <= 1))):
        raise ValueError(
            f"level must be above 0 and at most 1, but is {level}: 1 leaves the network as it is, "
            "and level=None stabilises wholly"
        )


def _direction(net: Any, cut: Layers, p: float, chow: Any, layer: Any, activation: Any) -> Array:
    """The coefficients t, (m, d), or something of the same signs for p = 1."""
    if chow is None and p == 1:
        return cut.weight
    if chow is None:
        t = coefficients.chow(net, layer=layer, activation=activation).coefficients
        # A decreasing activation has the labels of -act.
        rising = jnp.sum(t * cut.weight, axis=1, keepdims=True) >= 0
        return jnp.where(rising, t, -t)
    t = chow.coefficients if isinstance(chow, coefficients.Chow) else jnp.asarray(chow)
    if t.shape != cut.weight.shape:
        raise ValueError(
            f"chow= must have the shape of the weights of the first layer, {cut.weight.shape}, but "
            f"has {t.shape}"
        )
    return t.astype(cut.dtype)


def _norm(v: Array, q: float) -> Array:
    """The l_q norm of every row, (m, 1); of a row of zeros it is 0."""
    size = jnp.max(jnp.abs(v), axis=1, keepdims=True)
    if math.isinf(q):
        return size
    safe = jnp.where(size > 0, size, 1)
    return safe * jnp.sum(jnp.abs(v / safe) ** q, axis=1, keepdims=True) ** (1 / q)


def _scaled(v: Array, w: Array, q: float) -> Array:
    """Rows of v with the l_q norms of the rows of w."""
    size = _norm(v, q)
    return v * (_norm(w, q) / jnp.where(size > 0, size, 1))


def _holder(w: Array, t: Array, p: float, scale: str) -> Array:
    """The v for which Hoelder's inequality is an equality, with the norm of w."""
    d = w.shape[1]
    if math.isinf(p):
        one_hot = jnp.argmax(jnp.abs(t), axis=1)[:, None] == jnp.arange(d)
        v, q = jnp.sign(t) * one_hot.astype(t.dtype), 1.0
    else:
        top = jnp.max(jnp.abs(t), axis=1, keepdims=True)
        # jnp.sign(t) is 0 where t is, whatever 0 ** (p - 1) is.
        v = jnp.sign(t) * (jnp.abs(t) / jnp.where(top > 0, top, 1)) ** (p - 1)
        q = math.inf if p == 1 else p / (p - 1)
    return _scaled(v, w, q if scale == "linf" else 2.0)


def clipped(w: Array, level: Any, scale: str) -> Array:
    """`clip(w, -c, c)` with c = level max|w|, scaled back to the norm of w.

    Clipping w / level at max|w| is the same after scaling, and has a limit as level
    goes to 0.
    """
    c = jnp.asarray(level, w.dtype)
    top = jnp.max(jnp.abs(w), axis=1, keepdims=True)
    v = jnp.clip(w / (c[:, None] if c.ndim else c), -top, top)
    return v if scale == "linf" else _scaled(v, w, 2.0)


@eqx.filter_jit
def _refitted(cut: Layers, weight: Array, inputs: Array) -> Array:
    """The biases (m,) with which new weights keep most of the old labels.

    Examples are sorted by `v.x`; a bias cuts them in two. Of the cuts with the largest
    agreement, the one nearest to the old bias is taken.
    """
    n = len(inputs)
    labels = sign(cut.preactivations(inputs))
    scores = inputs @ weight.T
    order = jnp.argsort(scores, axis=0)
    z, labels = (jnp.take_along_axis(v, order, axis=0) for v in (scores, labels))
    top = jnp.max(jnp.abs(weight), axis=1)
    # Cut k has k examples below it. Scores that differ by rounding are not cut apart.
    gaps = jnp.diff(z, axis=0) > 1e-5 * top
    zero, every = jnp.zeros((1, cut.m), z.dtype), jnp.ones((1, cut.m), bool)
    agreeing = jnp.concatenate([zero, -jnp.cumsum(labels, axis=0)])
    middle = jnp.concatenate([z[:1] - top, (z[1:] + z[:-1]) / 2, z[n - 1 :] + top])
    allowed = jnp.concatenate([every, gaps, every])
    agreeing = jnp.where(allowed, agreeing, -jnp.inf)
    best = agreeing >= jnp.max(agreeing, axis=0)
    away = jnp.where(best, jnp.abs(middle + cut.bias), jnp.inf)
    chosen = jnp.argmin(away, axis=0)
    return -jnp.take_along_axis(middle, chosen[None], axis=0)[0]
