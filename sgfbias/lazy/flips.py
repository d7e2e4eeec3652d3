"""Which units of a model switch: the signs of pre-activations at two networks."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.taps import Call, reported, run_tapped

# Examples and units on which the slopes on both sides of 0 are compared, and how far
# from 0, in units of the size of the pre-activations.
EXAMPLES, UNITS, NEAR = 4, 8, 1e-3
# Slopes differ if they differ by this share.
DIFFERENT = 0.1


class Switches(eqx.Module):
    """The pre-activations of a model that have a kink at 0, such as those before ReLU.

    **Fields:**

    - `allowed`: the arrays whose layers are tapped.
    - `calls`: all calls of these layers.
    - `kinked`: which of them are followed by a kink at 0.
    """

    allowed: frozenset[int] = eqx.field(static=True)
    calls: tuple[Call, ...] = eqx.field(static=True)
    kinked: tuple[int, ...] = eqx.field(static=True)

    def active(self, network: Any, inputs: Array) -> list[Array]:
        """For every kinked call, whether each unit is active: (n, ...), booleans."""
        return _active(self, network, inputs)

    def flips(self, active: list[Array], now: list[Array], weight: int) -> Array:
        """The share of units of the layer with the given weight that differ between two
        results of `active`; NaN if it has no kink.
        """
        changed = [
            jnp.ravel(a != b)
            for a, b, k in zip(active, now, self.kinked, strict=True)
            if self.calls[k].weight == weight
        ]
        if not changed:
            return jnp.asarray(jnp.nan)
        together = jnp.concatenate(changed)
        return jnp.sum(together, dtype=jnp.int32) / together.size


def switches(network: Any, inputs: Array) -> Switches:
    """Find the pre-activations with a kink at 0, by the slopes on both sides of it.

    A unit's pre-activation is set to slightly above and below 0, while all others stay
    what they are, and the derivatives of the outputs in it are compared.

    **Arguments:**

    - `network`: an Equinox module whose arrays have values.
    - `inputs`: (n, ...), examples.
    """
    example = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    allowed, calls = reported(network, example)
    few = inputs[:EXAMPLES]
    kinked = tuple(
        k for k in range(len(calls)) if _has_kink(np.asarray(_slopes(network, few, allowed, k)))
    )
    return Switches(allowed, calls, kinked)


def _has_kink(slopes: np.ndarray) -> bool:
    """Whether slopes (2, units) below and above 0 differ, where there are any."""
    size = np.max(np.abs(slopes), axis=0)
    seen = size > 1e-6 * max(size.max(), 1e-30)
    jump = np.abs(slopes[1] - slopes[0]) > DIFFERENT * size
    return bool(np.mean(jump[seen]) >= 0.5) if seen.any() else False


@eqx.filter_jit
def _slopes(network: Any, inputs: Array, allowed: frozenset[int], which: int) -> Array:
    """The derivatives of the sum of squared outputs in some units of a call below and
    above 0, (2, examples x units).
    """

    def one(x: Any) -> Array:
        plain = run_tapped(network, x, allowed)
        z = plain.outputs[which]
        near = NEAR * (jnp.sqrt(jnp.mean(jnp.square(z))) + jnp.finfo(z.dtype).tiny)
        zeros = [jnp.zeros_like(output) for output in plain.outputs]

        def total(moved: Array) -> Array:
            tangents = [*zeros[:which], moved, *zeros[which + 1 :]]
            output = run_tapped(network, x, allowed, tangents).output.reshape(-1)
            weights = 1 + jnp.arange(output.size, dtype=output.dtype) / output.size
            return jnp.sum(weights * output)

        def slope(unit: Array, side: Array) -> Array:
            to = side * near - z.reshape(-1)[unit]
            moved = jnp.zeros(z.size, z.dtype).at[unit].set(to).reshape(z.shape)
            return jax.grad(total)(moved).reshape(-1)[unit]

        units = np.unique(np.linspace(0, z.size - 1, UNITS).astype(np.int32))
        sides = jnp.asarray([-1, 1], z.dtype)
        return jax.vmap(lambda s: jax.vmap(lambda u: slope(u, s))(jnp.asarray(units)))(sides)

    found = jax.vmap(one)(inputs)
    return jnp.swapaxes(found, 0, 1).reshape(2, -1)


@eqx.filter_jit
def _active(of: Switches, network: Any, inputs: Array) -> list[Array]:
    def one(x: Any) -> list[Array]:
        outputs = run_tapped(network, x, of.allowed).outputs
        return [outputs[k] > 0 for k in of.kinked]

    return jax.vmap(one)(inputs)
