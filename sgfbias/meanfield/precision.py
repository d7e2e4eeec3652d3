"""Double precision, in which kernels are computed whatever the user's setting is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sgfbias.core.checks import is_concrete


def is_double() -> bool:
    """Whether JAX computes in float64 now."""
    return bool(jnp.result_type(float) == jnp.float64)


def double(parts: Any, *, needed: bool = True) -> Any:
    """A context with float64, in which numbers of the parts have values.

    **Arguments:**

    - `parts`: what enters the computation.
    - `needed`: whether to refuse parts that are being traced in float32. Otherwise
      their precision stays.

    **Raises:** `ValueError` that says what to write.
    """
    concrete = is_concrete(parts)
    if needed and not concrete and not is_double():
        raise ValueError(
            "inside jit, vmap or grad the theory needs float64 from the outside: write "
            "jax.config.update('jax_enable_x64', True) first"
        )
    return jax.enable_x64(is_double() or concrete)
