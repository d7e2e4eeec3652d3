"""The parametrisation `beta = u v`, which has the trajectories of the diagonal network
in other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, check_finite, check_shape
from sgfbias.diagonal.initial import initial_log_alpha
from sgfbias.diagonal.linear import AbstractLinearNetwork
from sgfbias.diagonal.network import DiagonalNetwork


class ProductNetwork(AbstractLinearNetwork):
    """`f(x) = <u v, x>`, simulated in its own weights u, v (d,) (Even, Pesme,
    Gunasekar, Flammarion 2023; Pesme, Flammarion 2023).

    With `w_+- = (u +- v)/2` the predictor is `beta = w_+^2 - w_-^2`. Under the loss
    `1/(2n) sum r_i^2` (`SparseRegression(..., loss_scale=1/2)`) this network moves
    exactly as the `DiagonalNetwork` does under `1/(4n) sum r_i^2`, with the same step
    size and the same recursion. This holds for every algorithm and flow that does not
    single out coordinates. The initialisation of these papers,
    `u_0 = sqrt(2) alpha_E, v_0 = 0`, is `w_+- = alpha_E / sqrt(2)`.

    **Raises:** `ValueError` for weights that are not finite, or not of one shape (d,).
    """

    references: ClassVar[Mapping[str, str]] = {
        "even2023": "the parametrisation u v",
        "pesme2023": "the parametrisation u v",
    }
    logs: ClassVar[dict[str, str]] = {"log_alpha": "log weight"}
    u: Float[Array, " d"]
    v: Float[Array, " d"]

    def __init__(self, u: Any, v: Any):
        self.u, self.v = as_float_array(u, "u"), as_float_array(v, "v")
        if self.u.ndim != 1:
            raise ValueError(f"`u` must have shape (d,), but has shape {self.u.shape}")
        check_shape(self.v, "v", self.u.shape)
        check_finite(self.u, "u")
        check_finite(self.v, "v")

    @classmethod
    def init(
        cls, *, alpha: Any = None, log_alpha: Any = None, d: int | None = None, dtype: Any = None
    ) -> ProductNetwork:
        """The network at `u = sqrt(2) alpha`, `v = 0`, with alpha in the convention of
        the papers cited above. The arguments are those of `DiagonalNetwork.init`; the
        same network there has an alpha smaller by a factor of `sqrt(2)`.
        """
        scale = jnp.exp(initial_log_alpha(alpha, log_alpha, d, dtype))
        return cls(2**0.5 * scale, jnp.zeros_like(scale))

    @property
    def d(self) -> int:
        """Number of features."""
        return self.u.shape[-1]

    @property
    def beta(self) -> Float[Array, " d"]:
        """The linear predictor, (d,)."""
        return self.u * self.v

    @property
    def log_alpha(self) -> Float[Array, " d"]:
        """The logarithm of the effective initialisation in the convention of
        `DiagonalNetwork` and `select`, `log(|u^2 - v^2| / 4) / 2`, shape (d,).
        """
        plus, minus = jnp.abs(self.u + self.v), jnp.abs(self.u - self.v)
        return (jnp.log(plus) + jnp.log(minus)) / 2 - jnp.log(2.0).astype(plus.dtype)

    def diagonal(self) -> DiagonalNetwork:
        """The same network in the form `w_+^2 - w_-^2`, which has mirror coordinates.

        **Raises:** `ValueError` where `u = +-v`, because one of the weights `w_+`,
        `w_-` is 0 there.
        """
        return DiagonalNetwork.from_weights((self.u + self.v) / 2, (self.u - self.v) / 2)
