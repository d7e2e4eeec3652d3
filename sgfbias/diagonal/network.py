"""The diagonal linear network `beta = w_+^2 - w_-^2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.diagonal.coordinates import COORDINATES, covariance_shapes
from sgfbias.diagonal.deep import DeepDiagonalNetwork
from sgfbias.diagonal.initial import check_features, initial_log_alpha, positive_weights
from sgfbias.diagonal.linear import AbstractLinearNetwork, Read
from sgfbias.diagonal.path_sums import SCALARS, PathSums
from sgfbias.diagonal.potential import beta_from, xi_from


class DiagonalNetwork(AbstractLinearNetwork):
    """`f(x) = <beta, x>` with `beta = w_+^2 - w_-^2`, without a factor in front (Pesme,
    Pillaud-Vivien, Flammarion 2021, section 2.1).

    The network stores logarithms, which represent any scale. `beta` and the future of a
    run depend on nothing else.

    - `log_alpha`: (d,). `log|w_+ w_-| / 2`.
    - `log_ratio`: (d,). `log|w_+ / w_-|`.
    - `offset`: (d,). The part of `log_ratio` that is not in the row space of the data.
      It stays 0 along a flow from `w_+ = w_-`; the discrete steps of SGD make it
      non-zero (Even, Pesme, Gunasekar, Flammarion 2023).
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the diagonal linear network, section 2.1"
    }
    logs: ClassVar[dict[str, str]] = {"log_alpha": "log weight", "offset": "1"}
    log_alpha: Float[Array, " d"]
    log_ratio: Float[Array, " d"]
    offset: Float[Array, " d"]

    @classmethod
    def init(
        cls,
        *,
        alpha: Any = None,
        log_alpha: Any = None,
        d: int | None = None,
        depth: int = 2,
        dtype: Any = None,
    ) -> Any:
        """The network at `w_+ = w_- = alpha`, so that `beta = 0`.

        **Arguments:**

        - `alpha`: > 0, a scalar or (d,). The scale of the initialisation.
        - `log_alpha`: given instead of `alpha`, any real numbers, a scalar or (d,). It
          allows an alpha below the smallest float.
        - `d`: the number of features, needed with a scalar.
        - `depth`: p. Above 2 the result is a `DeepDiagonalNetwork` with
          `beta = w_+^p - w_-^p`.
        - `dtype`: by default the float type of the session.

        **Raises:** `ValueError` if neither or both of `alpha` and `log_alpha` are
        given, if alpha <= 0, or if shapes disagree.
        """
        if depth != 2:
            return DeepDiagonalNetwork.init(
                depth=depth, alpha=alpha, log_alpha=log_alpha, d=d, dtype=dtype
            )
        value = initial_log_alpha(alpha, log_alpha, d, dtype)
        return cls(value, jnp.zeros_like(value), jnp.zeros_like(value))

    @classmethod
    def from_weights(cls, plus: Any, minus: Any) -> DiagonalNetwork:
        """The network at weights `w_+`, `w_-`, each (d,), which may differ. Only their
        squares matter.

        Gradient flow from this network converges to
        `select(problem, network.log_alpha, offset=network.offset)`.

        **Raises:** `ValueError` for weights that are 0, not finite, or different in
        shape.
        """
        plus, minus = positive_weights(plus, minus, signed=True)
        ratio = jnp.log(plus) - jnp.log(minus)
        return cls((jnp.log(plus) + jnp.log(minus)) / 2, ratio, ratio)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.log_alpha.shape[-1]

    @property
    def beta(self) -> Float[Array, " d"]:
        """The linear predictor, (d,)."""
        return beta_from(self.log_alpha, self.log_ratio)

    @property
    def xi(self) -> Float[Array, " d"]:
        """`w_+^2 + w_-^2`, (d,)."""
        return xi_from(self.log_alpha, self.log_ratio)

    def with_path_sums(self) -> Any:
        """The network with sums along its path, from which `lyapunov_identity` is
        computed.
        """
        return SummedNetwork.of(self)

    def coordinates(self, name: str | None, problem: Any, dynamics: Any) -> AbstractCoordinates:
        """The coordinates called `name` for this problem. The default is `"mirror"` for
        flows and `"weights"` for discrete algorithms.

        **Raises:** `ValueError` if there are no coordinates of that name, or for a
        discrete algorithm in coordinates other than weights.
        """
        check_features(self, problem)
        if dynamics.weights_only:
            if name not in (None, "weights"):
                raise ValueError(
                    f"{type(dynamics).__name__} moves the weights themselves: coordinates must be "
                    f"'weights', but are {name!r}; mirror and log coordinates belong to "
                    "first-order flows"
                )
            return COORDINATES["weights"](self, problem, dynamics)
        name = "mirror" if name is None else name
        if name not in COORDINATES:
            raise ValueError(
                f"coordinates must be one of {', '.join(map(repr, COORDINATES))}, but are {name!r}"
            )
        return COORDINATES[name](self, problem, dynamics)


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
