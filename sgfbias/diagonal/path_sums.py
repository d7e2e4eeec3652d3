"""Sums along the path of a diagonal network, accumulated step by step in any
coordinates: the terms of the identity of `theory.lyapunov`.

A step moves the cotangent by dc, and its noise has the covariance rate C. With the
residuals r, `Q = diag(X^T C X)` and xi = w_+^2 + w_-^2, the sums are of `<r, dc>`,
`r^T C r dt`, `<Q, xi> dt` and `Q dt`. They are part of the position, so that every
solver takes them along with the weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.diagonal.coordinates import quadratic_variation

SCALARS = {
    "residual_work": "target / input",
    "residual_variation": "(target / input)^2",
    "xi_variation": "target / input",
}


class PathSums(AbstractCoordinates):
    """Coordinates with the sums of a `SummedNetwork` beside them. A cotangent c adds
    `<r, c>` to the work, and the covariance of the noise adds to the other sums.
    """

    curved: ClassVar[bool] = True
    shares_inputs: ClassVar[bool] = True
    features: None
    base: AbstractCoordinates
    network: Any  # a `SummedNetwork`
    targets: Array

    @property
    def name(self) -> str:
        """The name of the coordinates without sums."""
        return self.base.name

    @property
    def references(self):
        """What the coordinates without sums cite."""
        return self.base.references

    def encode(self, network):
        sums = getattr(network, "sums", self.network.sums)
        return {"base": self.base.encode(network), "sums": sums}

    def decode(self, position):
        plain = self.base.decode(position["base"])
        sums = position["sums"]
        return type(self.network)(
            plain.log_alpha,
            plain.log_ratio,
            plain.offset,
            *(sums[name] for name in SCALARS),
            sums["shrinkage"],
        )

    def linearise(self, position, inputs):
        outputs, vjp = self.base.linearise(position["base"], inputs)
        residuals = outputs - self.targets
        still = jax.tree.map(jnp.zeros_like, position["sums"])

        def both(cotangent: Array) -> Any:
            work = jnp.sum(residuals * cotangent)
            return {"base": vjp(cotangent), "sums": {**still, "residual_work": work}}

        return outputs, both

    def drift_correction(self, position, inputs, covariance):
        base = (
            self.base.drift_correction(position["base"], inputs, covariance)
            if self.base.curved
            else jax.tree.map(jnp.zeros_like, position["base"])
        )
        residuals = self.base.linearise(position["base"], inputs)[0] - self.targets
        rate = quadratic_variation(inputs, covariance)
        square = jnp.zeros_like(residuals[0])
        if covariance.diagonal is not None:
            square = square + jnp.sum(covariance.diagonal * jnp.square(residuals))
        if covariance.rank_one is not None:
            square = square - jnp.square(jnp.sum(covariance.rank_one * residuals))
        sums = {
            "residual_work": jnp.zeros_like(square),
            "residual_variation": square,
            "xi_variation": jnp.sum(rate * self.base.decode(position["base"]).xi),
            "shrinkage": rate,
        }
        return {"base": base, "sums": sums}
