"""Chow parameters of the neurons of a first layer: their correlations with the bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from sgfbias.core.checks import is_concrete
from sgfbias.core.names import did_you_mean
from sgfbias.fourier.cube import BLOCK, cube_moments
from sgfbias.fourier.examples import as_bits
from sgfbias.fourier.layers import Activation, Layers, first_layer
from sgfbias.fourier.quadrature import tanh_moments

Chowing = Literal["enumerate", "quadrature", "sample", "data"]
ENUMERATED = 16  # up to so many bits `chow` enumerates unless it is told otherwise
LARGEST = 22  # enumeration of more bits is refused


class Chow(eqx.Module):
    """The Chow parameters of m neurons of d bits. Made by `chow`.

    - `coefficients`: (m, d). `E[act(w.x + b) x_i]`.
    - `mean`: (m,). `E[act(w.x + b)]`.
    - `coefficients_error`, `mean_error`: standard errors, (m, d) and (m,), of the
      method "sample"; None for the others.
    - `method`: how they were computed.
    """

    coefficients: Float[Array, "m d"]
    mean: Float[Array, " m"]
    coefficients_error: Float[Array, "m d"] | None = None
    mean_error: Float[Array, " m"] | None = None
    method: str = eqx.field(static=True, default="enumerate")


def chow(
    net: Any,
    means: Float[ArrayLike, "*d"] | None = None,
    *,
    method: Chowing | None = None,
    inputs: Any = None,
    samples: int = 100_000,
    key: Array | None = None,
    layer: Callable | None = None,
    activation: Callable | None = None,
) -> Chow:
    """`E[act(w.x + b) x_i]` and `E[act(w.x + b)]` of every neuron of the first layer.

    For unbiased bits these are the Fourier coefficients of degree one and zero; those
    of degree one are also called Chow parameters.

    | method | bits | activation | error |
    |---|---|---|---|
    | "enumerate" | at most 22 | any | rounding |
    | "quadrature" | any number | a + b tanh(c z), such as the sigmoid | rounding |
    | "sample" | any number | any | standard errors in the result |
    | "data" | any number | any | none under the law of the data |

    The quadrature takes 320 nodes for a neuron with `2 c (|w|_1 + |b|)` up to 40, and
    in proportion to this number above.

    **Arguments:**

    - `net`: an Equinox module whose first `eqx.nn.Linear` sees the bits.
    - `means`: (d,), or one number for all. The means of independent bits, from -1 to
      1; None for 0.
    - `method`: None enumerates up to 16 bits. With more it takes the quadrature if the
      activation, tried on a grid, is a + b tanh(c z), and otherwise samples, with a
      warning. With `inputs` it is "data".
    - `inputs`: (n, d), bits in {-1, +1}: the data of the method "data", each row with
      the probability 1/n. The bits need not be independent.
    - `samples`: number of inputs of the method "sample".
    - `key`: random key of the method "sample"; by default `jax.random.key(0)`.
    - `layer`, `activation`: the first layer and the function that follows it, for
      modules in which they are not found, as `first_layer` takes them.

    **Returns:** a `Chow`.

    **Raises:** `ValueError` if the method does not fit, if means are not in [-1, 1], or
    if inputs are not bits.

    The coefficients decide which neuron is stabilised how: Raviv et al. 2021, section
    3. The quadrature is our own.
    """
    bits = np.shape(inputs)[1] if np.ndim(inputs) == 2 else None
    cut = first_layer(net, bits, layer=layer, activation=activation)
    act = activation_of(cut)
    if method is not None and method not in get_args(Chowing):
        raise ValueError(
            f"there is no method {method!r}; {did_you_mean(str(method), get_args(Chowing))}the "
            f"methods are {', '.join(get_args(Chowing))}"
        )
    if inputs is not None and (means is not None or method not in (None, "data")):
        raise ValueError(
            "`inputs` are for the method 'data', which takes the law of the bits from them: leave "
            "out `means`, and any other method"
        )
    if method == "data" and inputs is None:
        raise ValueError("the method 'data' needs inputs=, an array (n, d) of bits in {-1, +1}")
    if inputs is not None:
        return _from_data(cut, act, as_bits(inputs, cut.dtype))
    law = _means(means, cut)
    if method is None and cut.d > ENUMERATED:
        method = "quadrature" if _as_tanh(act, cut) is not None else "sample"
        if method == "sample":
            warnings.warn(
                f"the Chow parameters of the activation {act.name} with {cut.d} bits are estimated "
                f"from {samples:,} random inputs, and have standard errors: up to {LARGEST} bits "
                "can be enumerated (method='enumerate'), and a + b tanh(c z) has a formula for any "
                "number; method='sample' does not warn",
                stacklevel=2,
            )
    if method in (None, "enumerate"):
        if cut.d > LARGEST:
            raise ValueError(
                f"enumeration takes at most {LARGEST} bits, but there are {cut.d}: use "
                "method='quadrature' for a + b tanh(c z), or 'sample'"
            )
        return Chow(*_enumerate(cut.weight, cut.bias, law, act), method="enumerate")
    if method == "quadrature":
        return _by_quadrature(cut, act, law)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, but is {samples}")
    return _sample(cut, act, law, samples, jax.random.key(0) if key is None else key)


def activation_of(cut: Layers) -> Activation:
    """The activation of the first layer.

    **Raises:** `ValueError` if none is known.
    """
    if cut.activation is None:
        raise ValueError(
            "no activation is known to follow the first layer of the network; name it by "
            "activation=, for example activation=jnp.tanh"
        )
    return cut.activation


def _means(means: Any, cut: Layers) -> Array:
    """The means of the bits, (d,)."""
    if means is None:
        return jnp.zeros(cut.d, cut.dtype)
    law = jnp.asarray(means).astype(cut.dtype)
    if law.shape not in ((), (cut.d,)):
        raise ValueError(
            f"means must be one number or have shape ({cut.d},), one mean for each bit, but have "
            f"shape {law.shape}"
        )
    if is_concrete(law) and not bool(jnp.all(jnp.abs(law) <= 1)):
        raise ValueError(
            "means must be from -1 to 1, since bits are -1 or +1, but "
            f"{float(law.ravel()[jnp.argmax(jnp.abs(law))]):g} occurs"
        )
    return jnp.broadcast_to(law, (cut.d,))


_enumerate = eqx.filter_jit(cube_moments)
_integrate = eqx.filter_jit(tanh_moments)


def _by_quadrature(cut: Layers, act: Activation, means: Array) -> Chow:
    """Chow parameters from those of tanh."""
    found = _as_tanh(act, cut)
    if found is None:
        raise ValueError(
            "the method 'quadrature' needs an activation a + b tanh(c z), such as tanh or the "
            f"sigmoid, but {act.name} is another: use 'enumerate' for at most {LARGEST} bits, or "
            "'sample'"
        )
    shift, scale, slope = (jnp.asarray(v, cut.dtype) for v in found)
    bits, whole = _integrate(2 * slope[:, None] * cut.weight, 2 * slope * cut.bias, means)
    return Chow(
        scale[:, None] * bits + shift[:, None] * means, shift + scale * whole, method="quadrature"
    )


def _as_tanh(act: Activation, cut: Layers) -> tuple[np.ndarray, ...] | None:
    """The numbers a, b, c of every unit for which its activation is a + b tanh(c z), or
    None if it is another function, or has parameters that are traced.
    """
    far, tries = 1e8, np.geomspace(1e-4, 1e4, 65)
    values = _tried(act, np.concatenate([[0.0, far, -far], tries]), cut)
    if values is None:
        return None
    with np.errstate(all="ignore"):
        shift, scale = values[0], (values[1] - values[2]) / 2
        part = (values[3:] - shift) / scale
        best = np.argmin(np.abs(part - 0.5), axis=0)
        units = np.arange(cut.m)
        slope = np.arctanh(part[best, units]) / tries[best]
        # Each unit sees the grid in another order, since it must not see its
        # neighbours.
        grid = np.linspace(-6, 6, 49)[(np.arange(49)[:, None] + units) % 49] / slope
        known = np.isfinite(grid).all() and (scale != 0).all()
        tested = _tried(act, grid, cut) if known else None
        if tested is None:
            return None
        error = np.abs(tested - shift - scale * np.tanh(slope * grid)) / np.abs(scale)
    close = error.max() < 1000 * np.finfo(np.dtype(cut.dtype)).eps
    return (shift, scale, slope) if close else None


def _tried(act: Activation, grid: np.ndarray, cut: Layers) -> np.ndarray | None:
    """The activation at known preactivations, (k, m), also inside of a traced function;
    None if the activation itself is traced.
    """
    with jax.ensure_compile_time_eval():
        z = jnp.asarray(grid if grid.ndim == 2 else np.tile(grid[:, None], cut.m), cut.dtype)
        values = act(z)
    return np.asarray(values, np.float64) if is_concrete(values) else None


@eqx.filter_jit
def _from_data(cut: Layers, act: Activation, inputs: Array) -> Chow:
    """Means over the examples."""
    values = act(cut.preactivations(inputs))
    return Chow(values.T @ inputs / len(inputs), values.mean(axis=0), method="data")


@eqx.filter_jit
def _sample(cut: Layers, act: Activation, means: Array, samples: int, key: Array) -> Chow:
    """Means over random inputs, drawn in blocks, with their standard errors."""
    size = max(1, min(samples, BLOCK // (cut.d + cut.m)))
    blocks = -(-samples // size)

    def add(sums: tuple[Array, ...], k: Array) -> tuple[tuple[Array, ...], None]:
        uniform = jax.random.uniform(jax.random.fold_in(key, k), (size, cut.d), cut.dtype)
        x = jnp.where(uniform < (1 + means) / 2, 1, -1).astype(cut.dtype)
        used = (k * size + jnp.arange(size) < samples).astype(cut.dtype)
        values = act(cut.preactivations(x)) * used[:, None]
        parts = (values.T @ x, values.sum(axis=0), (values**2).sum(axis=0))
        return tuple(a + b for a, b in zip(sums, parts, strict=True)), None

    zero = jnp.zeros(cut.m, cut.dtype)
    sums, _ = jax.lax.scan(add, (jnp.zeros_like(cut.weight), zero, zero), jnp.arange(blocks))
    # (act x_i)^2 is act^2, because x_i^2 = 1.
    bits, mean, square = (v / samples for v in sums)
    errors = (
        jnp.sqrt(jnp.maximum(second - first**2, 0) / (samples - 1))
        for first, second in ((bits, square[:, None]), (mean, square))
    )
    return Chow(bits, mean, *errors, method="sample")
