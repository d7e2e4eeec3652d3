"""Three coordinate systems for diagonal networks: weights, log weights and mirror
coordinates.

Let `c` (n,) be the accumulated cotangent on the outputs, `dc = -(l'/n) dt + noise`. The
weights move by `dw_+- = +-2 w_+- X^T dc` (Itô). Whatever the noise, Itô's formula then
gives, with `Q = diag(X^T Cov(c) X)` plus the variance of the feature channel,

    d log w_+- = +-2 X^T dc - 2 Q dt.

Integrated from `w_+ = w_- = alpha`, this reads

    log(w_+/w_-) = 4 X^T c,
    log(w_+ w_-)/2 = log alpha - 2 int Q dt.

The equation for `log(w_+/w_-)` is Lemma 1 of Pesme, Pillaud-Vivien, Flammarion 2021,
whose eta is `2 sqrt(n) c`. For the mean-loss model `Q = gamma h L`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.cached import shapes_of
from sgfbias.core.checks import is_concrete
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.noise import AbstractNoise, Covariance
from sgfbias.core.weights import modified_drift
from sgfbias.diagonal.potential import beta_from, xi_from


def covariance_shapes(noise: AbstractNoise, problem: Any) -> Covariance:
    """The shapes of the parts of the noise's covariance on this problem. A part that
    the noise does not have is None.
    """
    derivatives, step = (
        jax.ShapeDtypeStruct((problem.n,), problem.dtype),
        jax.ShapeDtypeStruct((), problem.dtype),
    )
    return shapes_of(_covariance, noise, derivatives, step)


def _covariance(noise: AbstractNoise, derivatives: Array, step: Array) -> Covariance:
    return noise.at(jnp.int32(0)).covariance(derivatives, step)


def quadratic_variation(inputs: Array, covariance: Covariance) -> Array:
    """`Q = diag(X^T Cov X)` plus the variance of the feature channel, shape (d,)."""
    total = jnp.zeros_like(inputs[0])
    if covariance.diagonal is not None:
        total = total + _diagonal_part(inputs, covariance.diagonal)
    if covariance.rank_one is not None:
        total = total - jnp.square(covariance.rank_one @ inputs)
    if covariance.features is not None:
        total = total + covariance.features
    return total


def _diagonal_part(inputs: Array, diagonal: Array) -> Array:
    squares = jnp.square(inputs)
    return diagonal * jnp.sum(squares, axis=0) if diagonal.ndim == 0 else diagonal @ squares


class _DiagonalCoordinates(AbstractCoordinates):
    """Base of the three coordinate systems, with the starting network and the data."""

    shares_inputs: ClassVar[bool] = True
    network: Any
    inputs: Array
    features: int | None = eqx.field(static=True)

    def __init__(self, network: Any, problem: Any, dynamics: Any):
        self.network = jax.tree.map(lambda leaf: leaf.astype(problem.dtype), network)
        self.inputs = problem.inputs
        self.features = network.d


class DiagonalWeights(_DiagonalCoordinates):
    """The weights `(w_+, w_-)` and the running sum `4 X^T c`, with `c` the cotangent
    that the steps have added up to. It tells how much of `log(w_+/w_-)` lies in the row
    space of X.

    For discrete algorithms these coordinates are exact. For flows every quantity
    carries the error of Euler's scheme, so use them as an independent check of the
    other two systems.
    """

    name: ClassVar[str] = "weights"

    def __init__(self, network: Any, problem: Any, dynamics: Any):
        super().__init__(network, problem, dynamics)
        floor = (math.log(float(jnp.finfo(problem.dtype).tiny)) + 10) / 2
        if is_concrete(network) and float(np.min(np.asarray(network.log_alpha))) < floor:
            raise ValueError(
                f"log alpha = {float(np.min(np.asarray(network.log_alpha))):.4g} is too small "
                f"for weights in {jnp.dtype(problem.dtype).name}: the smaller weight reaches "
                f"alpha^2, which needs log alpha >= {floor:.4g}; use a larger alpha, float64, "
                "or for flows coordinates='mirror'"
            )

    def encode(self, network):
        half = network.log_ratio / 2
        return {
            "plus": jnp.exp(network.log_alpha + half),
            "minus": jnp.exp(network.log_alpha - half),
            "slope": network.log_ratio - network.offset,
        }

    def decode(self, position):
        # A weight that underflows to 0 counts as the smallest normal number, so that
        # its logarithm stays finite.
        tiny = jnp.finfo(position["plus"].dtype).tiny
        plus, minus = (jnp.log(jnp.maximum(jnp.abs(position[k]), tiny)) for k in ("plus", "minus"))
        return type(self.network)(
            (plus + minus) / 2, plus - minus, plus - minus - position["slope"]
        )

    def split(self, position):
        return {"plus": position["plus"], "minus": position["minus"]}, position["slope"]

    def join(self, parameters, rest):
        return {**parameters, "slope": rest}

    def linearise(self, position, inputs):
        plus, minus = position["plus"], position["minus"]
        # With the inputs on the right, a batch of seeds stays in rows.
        outputs = (jnp.square(plus) - jnp.square(minus)) @ inputs.T

        def vjp(cotangent: Array) -> Any:
            move = 2 * (cotangent @ inputs)
            return {"plus": plus * move, "minus": -minus * move, "slope": 2 * move}

        return outputs, vjp

    def vjp_features(self, position, cotangent):
        move = 2 * cotangent
        return {
            "plus": position["plus"] * move,
            "minus": -position["minus"] * move,
            "slope": jnp.zeros_like(move),
        }

    def second_order_drift(self, position, problem, step_size):
        plus, minus = position["plus"], position["minus"]

        def risk(w: Any) -> Array:
            return jnp.mean(
                problem.loss(
                    problem.inputs @ (jnp.square(w[0]) - jnp.square(w[1])), problem.targets
                )
            )

        curved = modified_drift(risk, (plus, minus), step_size)
        _, extra = second_order_parts(
            position_xi=jnp.square(plus) + jnp.square(minus),
            problem=problem,
            beta=jnp.square(plus) - jnp.square(minus),
        )
        return {
            "plus": curved[0],
            "minus": curved[1],
            "slope": 4 * step_size * (extra @ problem.inputs),
        }


class LogWeights(_DiagonalCoordinates):
    """The log weights `(log w_+, log w_-)` and the running sum `4 X^T c`, so that
    `w > 0` at any step size.

    These coordinates add Itô's correction `-2 Q` explicitly, which makes them an
    independent check of mirror coordinates. Here `log_ratio` is a difference of
    logarithms: at alpha above 100 it loses digits that mirror coordinates keep.
    """

    name: ClassVar[str] = "log"
    curved: ClassVar[bool] = True

    def encode(self, network):
        half = network.log_ratio / 2
        return {
            "plus": network.log_alpha + half,
            "minus": network.log_alpha - half,
            "slope": network.log_ratio - network.offset,
        }

    def decode(self, position):
        plus, minus = position["plus"], position["minus"]
        return type(self.network)(
            (plus + minus) / 2, plus - minus, plus - minus - position["slope"]
        )

    def linearise(self, position, inputs):
        plus, minus = position["plus"], position["minus"]

        def vjp(cotangent: Array) -> Any:
            move = 2 * (cotangent @ inputs)
            return {"plus": move, "minus": -move, "slope": 2 * move}

        return beta_from((plus + minus) / 2, plus - minus) @ inputs.T, vjp

    def drift_correction(self, position, inputs, covariance):
        shrink = -2 * quadratic_variation(inputs, covariance)
        return {"plus": shrink, "minus": shrink, "slope": jnp.zeros_like(shrink)}

    def vjp_features(self, position, cotangent):
        return {"plus": 2 * cotangent, "minus": -2 * cotangent, "slope": jnp.zeros_like(cotangent)}

    def second_order_drift(self, position, problem, step_size):
        plus, minus = position["plus"], position["minus"]
        mean, ratio = (plus + minus) / 2, plus - minus
        shrink, extra = second_order_parts(
            position_xi=xi_from(mean, ratio), problem=problem, beta=beta_from(mean, ratio)
        )
        move = 2 * step_size * (extra @ problem.inputs)
        return {
            "plus": move + step_size * shrink,
            "minus": -move + step_size * shrink,
            "slope": 2 * move,
        }


class Mirror(_DiagonalCoordinates):
    """`c` in R^n and the accumulated covariance: an exact reduction of the mean-loss
    model from 2 d to n + 1 numbers.

    At any step size the weights stay positive, and two facts hold to rounding:
    `log(w_+/w_-)` moves in the span of the rows of X, and `w_+ w_-` follows its
    evolution law. Per-sample noise needs n accumulators instead of 1. Minibatch noise
    needs d more, and isotropic noise needs d more for the sum of its own increments.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "mirror coordinates, Lemma 1"}
    name: ClassVar[str] = "mirror"
    curved: ClassVar[bool] = True
    template: Covariance  # zeros in the shapes of the accumulators
    feature_sum: Array | None
    shrink_sum: Array | None

    def __init__(self, network: Any, problem: Any, dynamics: Any):
        super().__init__(network, problem, dynamics)
        shapes = covariance_shapes(dynamics.noise, problem)

        def zeros(shape: Any) -> Array | None:
            return None if shape is None else jnp.zeros(shape, problem.dtype)

        diagonal, rank_one, features = (
            None if part is None else part.shape
            for part in (shapes.diagonal, shapes.rank_one, shapes.features)
        )
        along_features = (network.d,)
        self.template = Covariance(
            zeros(diagonal), zeros(None if rank_one is None else along_features), zeros(features)
        )
        self.feature_sum = zeros(None if features is None else along_features)
        self.shrink_sum = zeros(along_features if getattr(dynamics, "order", 1) == 2 else None)

    def encode(self, network):
        return {
            "c": jnp.zeros_like(self.inputs[:, 0]),
            "law": self.template,
            "features": self.feature_sum,
            "shrink": self.shrink_sum,
        }

    def _log_alpha(self, position: Any) -> Array:
        law: Covariance = position["law"]
        total = jnp.zeros_like(self.inputs[0])
        if law.diagonal is not None:
            total = total + _diagonal_part(self.inputs, law.diagonal)
        if law.rank_one is not None:
            total = total - law.rank_one
        if law.features is not None:
            total = total + law.features
        log_alpha = self.network.log_alpha - 2 * total
        return log_alpha if position["shrink"] is None else log_alpha + position["shrink"]

    def _log_ratio(self, position: Any) -> Array:
        ratio = self.network.log_ratio + 4 * (position["c"] @ self.inputs)
        return ratio if position["features"] is None else ratio + 4 * position["features"]

    def decode(self, position):
        offset = (
            self.network.offset
            if position["features"] is None
            else self.network.offset + 4 * position["features"]
        )
        return type(self.network)(self._log_alpha(position), self._log_ratio(position), offset)

    def linearise(self, position, inputs):
        still = jax.tree.map(jnp.zeros_like, position)
        outputs = beta_from(self._log_alpha(position), self._log_ratio(position)) @ inputs.T
        return outputs, lambda cotangent: {**still, "c": cotangent}

    def drift_correction(self, position, inputs, covariance):
        rank_one = None if covariance.rank_one is None else jnp.square(covariance.rank_one @ inputs)
        law = Covariance(covariance.diagonal, rank_one, covariance.features)
        return {**jax.tree.map(jnp.zeros_like, position), "law": law}

    def vjp_features(self, position, cotangent):
        return {**jax.tree.map(jnp.zeros_like, position), "features": cotangent}

    def second_order_drift(self, position, problem, step_size):
        log_alpha, ratio = self._log_alpha(position), self._log_ratio(position)
        shrink, extra = second_order_parts(
            position_xi=xi_from(log_alpha, ratio), problem=problem, beta=beta_from(log_alpha, ratio)
        )
        return {
            **jax.tree.map(jnp.zeros_like, position),
            "c": step_size * extra,
            "shrink": step_size * shrink,
        }

    def fused(self, dynamics, problem, solver, keys, *, interpret):
        # Pallas is slow to import and never needed on a CPU.
        from sgfbias.diagonal.fused.launch import fused_mirror

        return fused_mirror(self.network, dynamics, problem, solver, keys, interpret=interpret)


def second_order_parts(*, position_xi: Array, problem: Any, beta: Array) -> tuple[Array, Array]:
    """The vector field `-grad(1/4 |grad L|^2)` in log coordinates, per unit of gamma.

    With `g = X^T l'/n`, so that `grad_{w_+-} L = +-2 w_+- g`, the penalty is
    `|grad L|^2 / 4 = <xi, g^2>`. Hence `d log w_+- = -2 g^2 -+ 4 X^T (l''/n) X (xi g)`,
    whose second part is `+-2 X^T dc`.

    **Returns:** the rates at which log alpha (d,) and the cotangent c (n,) change.
    """
    outputs = problem.inputs @ beta
    derivatives = problem.loss.derivative(outputs, problem.targets)
    slope = derivatives @ problem.inputs / problem.n
    along = problem.inputs @ (position_xi * slope)
    _, curvature = jax.jvp(
        lambda f: problem.loss.derivative(f, problem.targets), (outputs,), (along,)
    )
    return -2 * jnp.square(slope), -2 * curvature / problem.n


COORDINATES: dict[str, Any] = {"mirror": Mirror, "log": LogWeights, "weights": DiagonalWeights}
