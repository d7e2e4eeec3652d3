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
from jaxtyping import Array, Float

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.diagonal.coordinates import covariance_shapes, quadratic_variation
from sgfbias.diagonal.linear import Read
from sgfbias.diagonal.network import DiagonalNetwork

SCALARS = {
    "residual_work": "target / input",
    "residual_variation": "(target / input)^2",
    "xi_variation": "target / input",
}


class SummedNetwork(DiagonalNetwork):
    """A `DiagonalNetwork` with sums along its path.

    - `residual_work`: the sum of `<r, dc>`.
    - `residual_variation`: the integral of `r^T C r`, the quadratic variation of the
      noise's part of `residual_work`.
    - `xi_variation`: the integral of `<Q, xi>`.
    - `shrinkage`: (d,). The integral of Q, which is half of what log alpha has lost.
    """

    logs: ClassVar[dict[str, str]] = {
        **DiagonalNetwork.logs,
        "log_ratio": "1",
        "shrinkage": "log weight",
    }
    residual_work: Float[Array, ""]
    residual_variation: Float[Array, ""]
    xi_variation: Float[Array, ""]
    shrinkage: Float[Array, " d"]

    @classmethod
    def of(cls, network: DiagonalNetwork) -> SummedNetwork:
        """The network with all sums at 0."""
        logs = (network.log_alpha, network.log_ratio, network.offset)
        zero = jnp.zeros((), logs[0].dtype)
        return cls(*logs, zero, zero, zero, jnp.zeros_like(logs[0]))

    @property
    def plain(self) -> DiagonalNetwork:
        """The network without its sums."""
        return DiagonalNetwork(self.log_alpha, self.log_ratio, self.offset)

    @property
    def sums(self) -> dict[str, Array]:
        """The sums by name."""
        return {name: getattr(self, name) for name in (*SCALARS, "shrinkage")}

    def observables(self):
        """The observables of the network, and its sums."""
        names = {name: Read(name) for name in SCALARS}
        return {**super().observables(), **names}

    def units(self):
        """The units of the observables."""
        return {**super().units(), **SCALARS}

    def with_path_sums(self):
        """The network with all sums at 0."""
        return SummedNetwork.of(self.plain)

    def always_recorded(self):
        """All that the identity needs."""
        return ("log_alpha", "log_ratio", "shrinkage", *SCALARS)

    def coordinates(self, name: str | None, problem: Any, dynamics: Any) -> AbstractCoordinates:
        """The coordinates called `name` with the sums beside them.

        **Raises:** `ValueError` for dynamics whose sums are not those of the identity.
        """
        if not isinstance(dynamics, StochasticGradientFlow) or dynamics.order != 1:
            raise ValueError(
                "`path_sums` of Record are those of a first-order stochastic flow, but the "
                f"dynamics are {type(dynamics).__name__}"
                f"{' of order 2' if isinstance(dynamics, StochasticGradientFlow) else ''}: use "
                "StochasticGradientFlow(step_size), or leave out `path_sums`"
            )
        base = self.plain.coordinates(name, problem, dynamics)
        if covariance_shapes(dynamics.noise, problem).features is not None:
            raise ValueError(
                "`path_sums` of Record need noise on the examples, but isotropic noise acts on the "
                "features: use another noise, or leave out `path_sums`"
            )
        return PathSums(None, base, self, problem.targets)


class PathSums(AbstractCoordinates):
    """Coordinates with the sums of a `SummedNetwork` beside them. A cotangent c adds
    `<r, c>` to the work, and the covariance of the noise adds to the other sums.
    """

    curved: ClassVar[bool] = True
    shares_inputs: ClassVar[bool] = True
    features: None
    base: AbstractCoordinates
    network: SummedNetwork
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
        return SummedNetwork(
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
