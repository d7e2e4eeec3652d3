"""The diagonal linear network of depth p >= 3, `beta = w_+^p - w_-^p`, in two
coordinate systems.

Let `c` be the accumulated cotangent on the outputs. The weights move by
`dw_+- = +-p w_+-^{p-1} X^T dc` (Itô), so with `Q = diag(X^T Cov(c) X)`

    d w_+-^{2-p} = -+p (p-2) X^T dc
                   + (p^2/2) (p-1)(p-2) w_+-^{p-2} Q dt.

The integral of the first term lies in the row space of X. The second term is what the
noise adds to `A_+- = alpha_+-^{2-p}`, separately for each sign. The drift of the
second-order modified equation, `-grad(gamma/4 |grad L|^2)`, is with `g = X^T l'/n` a
motion along `dc = -(gamma/2) p^2 (l''/n) X ((w_+^{2p-2} + w_-^{2p-2}) g) dt` and a
growth of `A_+-` by `(gamma/2) p^2 (p-1)(p-2) w_+-^{p-2} g^2 dt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.weights import modified_drift
from sgfbias.diagonal.coordinates import covariance_shapes, quadratic_variation
from sgfbias.diagonal.initial import check_features, initial_log_alpha, positive_weights
from sgfbias.diagonal.linear import AbstractLinearNetwork


class DeepDiagonalNetwork(AbstractLinearNetwork):
    """`f(x) = <beta, x>` with `beta = w_+^p - w_-^p`, p >= 3 (Pesme, Pillaud-Vivien,
    Flammarion 2021, appendix on depth p).

    - `plus`, `minus`: (d,), positive. The weights.
    - `log_alpha_plus`, `log_alpha_minus`: (d,). Logarithms of the two effective
      initialisations. At the start these are the logarithms of the weights. The limit
      depends on them: it is
      `select(problem, (log_alpha_plus, log_alpha_minus), depth=p)`.
    - `depth`: p.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the diagonal network of depth p, appendix"
    }
    logs: ClassVar[dict[str, str]] = {
        "log_alpha_plus": "log weight",
        "log_alpha_minus": "log weight",
    }
    plus: Float[Array, " d"]
    minus: Float[Array, " d"]
    log_alpha_plus: Float[Array, " d"]
    log_alpha_minus: Float[Array, " d"]
    depth: int = eqx.field(static=True)

    @classmethod
    def init(
        cls,
        *,
        depth: int,
        alpha: Any = None,
        log_alpha: Any = None,
        d: int | None = None,
        dtype: Any = None,
    ) -> DeepDiagonalNetwork:
        """The network at `w_+ = w_- = alpha`; the arguments are those of
        `DiagonalNetwork.init`.

        **Raises:** `ValueError` as `DiagonalNetwork.init` does, and for a depth that is
        not a whole number >= 3.
        """
        value = initial_log_alpha(alpha, log_alpha, d, dtype)
        return cls._at(jnp.exp(value), jnp.exp(value), depth)

    @classmethod
    def from_weights(cls, plus: Any, minus: Any, *, depth: int) -> DeepDiagonalNetwork:
        """The network at positive weights `w_+`, `w_-`, each (d,).

        **Raises:** `ValueError` for weights that are not positive and finite, or that
        differ in shape.
        """
        return cls._at(*positive_weights(plus, minus), depth)

    @classmethod
    def _at(cls, plus: Array, minus: Array, depth: int) -> DeepDiagonalNetwork:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 3:
            raise ValueError(
                f"`depth` must be a whole number >= 3 here, but is {depth!r}; for depth 2 use "
                "DiagonalNetwork"
            )
        return cls(plus, minus, jnp.log(plus), jnp.log(minus), depth)

    @property
    def d(self) -> int:
        """Number of features."""
        return self.plus.shape[-1]

    @property
    def beta(self) -> Float[Array, " d"]:
        """The linear predictor, (d,)."""
        return self.plus**self.depth - self.minus**self.depth

    def coordinates(self, name: str | None, problem: Any, dynamics: Any) -> AbstractCoordinates:
        """The coordinates called `name`: `"mirror"`, the default for flows, or
        `"weights"`, the only choice for discrete algorithms.

        **Raises:** `ValueError` for another name, and for mirror coordinates with
        dynamics that are defined in the weights.
        """
        check_features(self, problem)
        if dynamics.weights_only:
            if name not in (None, "weights"):
                raise ValueError(
                    f"{type(dynamics).__name__} moves the weights themselves: coordinates must be "
                    f"'weights', but are {name!r}; mirror coordinates belong to first-order flows"
                )
            return DeepWeights(self, problem, dynamics)
        if name not in (None, "mirror", "weights"):
            raise ValueError(
                f"at depth {self.depth} coordinates must be 'mirror' or 'weights', but are {name!r}"
            )
        return (
            DeepWeights(self, problem, dynamics)
            if name == "weights"
            else DeepMirror(self, problem, dynamics)
        )


class _DeepCoordinates(AbstractCoordinates):
    """Base of both coordinate systems: it holds the starting network and computes how
    `A_+-` grows.
    """

    curved: ClassVar[bool] = True
    shares_inputs: ClassVar[bool] = True
    network: DeepDiagonalNetwork
    features: int | None = eqx.field(static=True)

    def __init__(self, network: DeepDiagonalNetwork, problem: Any, dynamics: Any):
        self.network = jax.tree.map(lambda leaf: leaf.astype(problem.dtype), network)
        self.features = network.d

    @property
    def _start(self) -> tuple[Array, Array]:
        power = 2 - self.network.depth
        return jnp.exp(power * self.network.log_alpha_plus), jnp.exp(
            power * self.network.log_alpha_minus
        )

    def _growth(
        self, weights: tuple[Array, Array], inputs: Array, covariance: Any
    ) -> tuple[Array, Array]:
        """The rates `d A_+- / dt` that the noise causes, A as in the module's
        docstring.
        """
        p = self.network.depth
        rate = p**2 / 2 * (p - 1) * (p - 2) * quadratic_variation(inputs, covariance)
        return rate * weights[0] ** (p - 2), rate * weights[1] ** (p - 2)

    def _second_order(
        self, weights: tuple[Array, Array], problem: Any, step_size: Array
    ) -> tuple[Array, Array, Array]:
        """The rates `(dc, growth of A_+, growth of A_-)` of the second-order drift, per
        unit of time.
        """
        p = self.network.depth
        outputs = problem.inputs @ (weights[0] ** p - weights[1] ** p)
        slope = problem.loss.derivative(outputs, problem.targets) @ problem.inputs / problem.n
        along = problem.inputs @ ((weights[0] ** (2 * p - 2) + weights[1] ** (2 * p - 2)) * slope)
        _, curvature = jax.jvp(
            lambda f: problem.loss.derivative(f, problem.targets), (outputs,), (along,)
        )
        rate = step_size * p**2 / 2 * (p - 1) * (p - 2) * jnp.square(slope)
        cotangent = curvature * (-step_size * p**2 / (2 * problem.n))
        return cotangent, rate * weights[0] ** (p - 2), rate * weights[1] ** (p - 2)

    def _network(
        self, weights: tuple[Array, Array], barriers: tuple[Array, Array]
    ) -> DeepDiagonalNetwork:
        p = self.network.depth
        return DeepDiagonalNetwork(
            *weights, jnp.log(barriers[0]) / (2 - p), jnp.log(barriers[1]) / (2 - p), p
        )


class DeepMirror(_DeepCoordinates):
    """`c` in R^n and what the noise has added to `A_+-`.

    At any step size two facts hold to rounding: the weights move in the span of the
    rows of X, and `A_+-` follows its evolution law. A step that leaves the box,
    `w_+-^{2-p} <= 0`, gives NaN: the step size is too large there.
    """

    name: ClassVar[str] = "mirror"
    data: Array
    isotropic: bool = eqx.field(static=True)

    def __init__(self, network: DeepDiagonalNetwork, problem: Any, dynamics: Any):
        super().__init__(network, problem, dynamics)
        self.data = problem.inputs
        self.isotropic = covariance_shapes(dynamics.noise, problem).features is not None

    def encode(self, network):
        zero = jnp.zeros_like(self.network.plus)
        return {
            "c": jnp.zeros_like(self.data[:, 0]),
            "plus": zero,
            "minus": zero,
            "features": zero if self.isotropic else None,
        }

    def _weights(self, position: Any) -> tuple[Array, Array]:
        p, (plus, minus) = self.network.depth, self._start
        along = position["c"] @ self.data
        along = (
            p * (p - 2) * (along if position["features"] is None else along + position["features"])
        )
        power = 1 / (2 - p)
        return self._root(plus + position["plus"] - along, power), self._root(
            minus + position["minus"] + along, power
        )

    @staticmethod
    def _root(value: Array, power: float) -> Array:
        inside = value > 0
        return jnp.where(inside, jnp.where(inside, value, 1) ** power, jnp.nan)

    def decode(self, position):
        plus, minus = self._start
        return self._network(
            self._weights(position), (plus + position["plus"], minus + position["minus"])
        )

    def linearise(self, position, inputs):
        plus, minus = self._weights(position)
        still = jax.tree.map(jnp.zeros_like, position)
        return inputs @ (plus**self.network.depth - minus**self.network.depth), lambda cotangent: {
            **still,
            "c": cotangent,
        }

    def drift_correction(self, position, inputs, covariance):
        plus, minus = self._growth(self._weights(position), inputs, covariance)
        return {**jax.tree.map(jnp.zeros_like, position), "plus": plus, "minus": minus}

    def vjp_features(self, position, cotangent):
        return {**jax.tree.map(jnp.zeros_like, position), "features": cotangent}

    def second_order_drift(self, position, problem, step_size):
        cotangent, plus, minus = self._second_order(self._weights(position), problem, step_size)
        return {
            **jax.tree.map(jnp.zeros_like, position),
            "c": cotangent,
            "plus": plus,
            "minus": minus,
        }


class DeepWeights(_DeepCoordinates):
    """The weights `(w_+, w_-)`, with what is needed to know `A_+-`.

    - For a flow, the growth of `A_+-` is integrated from its evolution law. Every
      quantity carries the error of Euler's scheme.
    - A discrete algorithm has no covariance to integrate. There
      `A_+- = w_+-^{2-p} +- p (p-2) X^T c` with the c that the algorithm has moved
      along, and its limit depends on this `A_+-`.
    - An Optax transformation, or another rule that is not linear in the gradients,
      does not move along any c. There `A_+- = w_+-^{2-p}`, as for a network that starts
      at the present weights.
    """

    name: ClassVar[str] = "weights"
    # name of the sum kept besides the weights
    book: str | None = eqx.field(static=True)

    def __init__(self, network: DeepDiagonalNetwork, problem: Any, dynamics: Any):
        super().__init__(network, problem, dynamics)
        moves_along_c = dynamics.moves_along_gradients
        self.book = ("slope" if moves_along_c else None) if dynamics.weights_only else "grown"

    def encode(self, network):
        zero = jnp.zeros_like(self.network.plus)
        book: dict[str | None, Any] = {
            "grown": {"grown_plus": zero, "grown_minus": zero},
            "slope": {"slope": zero},
            None: {},
        }
        return {"plus": self.network.plus, "minus": self.network.minus, **book[self.book]}

    def decode(self, position):
        weights, p = (position["plus"], position["minus"]), self.network.depth
        plus, minus = self._start
        if self.book == "grown":
            return self._network(
                weights, (plus + position["grown_plus"], minus + position["grown_minus"])
            )
        now = weights[0] ** (2 - p), weights[1] ** (2 - p)
        # The starting weights enter as a difference, so that A does not change by
        # rounding as long as the weights do not move.
        began = self.network.plus ** (2 - p), self.network.minus ** (2 - p)
        slope = position.get("slope", 0)
        return self._network(
            weights, (plus + (now[0] - began[0] + slope), minus + (now[1] - began[1] - slope))
        )

    def split(self, position):
        moving = {"plus": position["plus"], "minus": position["minus"]}
        return moving, {key: value for key, value in position.items() if key not in moving}

    def join(self, parameters, rest):
        return {**parameters, **rest}

    def _move(self, position: Any, along: Array, slope: Array) -> Any:
        p = self.network.depth
        moved = {
            "plus": p * position["plus"] ** (p - 1) * along,
            "minus": -p * position["minus"] ** (p - 1) * along,
        }
        still = jax.tree.map(jnp.zeros_like, position)
        return {
            **still,
            **moved,
            **({"slope": p * (p - 2) * slope} if self.book == "slope" else {}),
        }

    def linearise(self, position, inputs):
        p = self.network.depth

        def vjp(cotangent: Array) -> Any:
            along = cotangent @ inputs
            return self._move(position, along, along)

        return inputs @ (position["plus"] ** p - position["minus"] ** p), vjp

    def vjp_features(self, position, cotangent):
        return self._move(position, cotangent, jnp.zeros_like(cotangent))

    def drift_correction(self, position, inputs, covariance):
        plus, minus = self._growth((position["plus"], position["minus"]), inputs, covariance)
        return {**jax.tree.map(jnp.zeros_like, position), "grown_plus": plus, "grown_minus": minus}

    def second_order_drift(self, position, problem, step_size):
        p, weights = self.network.depth, (position["plus"], position["minus"])
        curved = modified_drift(
            lambda w: jnp.mean(
                problem.loss(problem.inputs @ (w[0] ** p - w[1] ** p), problem.targets)
            ),
            weights,
            step_size,
        )
        _, plus, minus = self._second_order(weights, problem, step_size)
        return {"plus": curved[0], "minus": curved[1], "grown_plus": plus, "grown_minus": minus}
