r"""Noise models of the stochastic flow: each is a law of the cotangent.

Every algorithm here moves parameters along `J^T c`, J the Jacobian of the outputs on the n examples and `c` one number per example and
output. A noise model says which Gaussian law the random part of `c` has: a structured square root applied to Brownian increments
(`root`), and the covariance rate that root generates (`covariance`). Coordinate systems need nothing else: the square root moves the
parameters, and half the quadratic variation of `X^T c` is what shrinks log alpha.

Below `l'` is the per-example derivative of the loss, `gamma` the step size the flow models; with the loss of Pesme, Pillaud-Vivien,
Flammarion 2021 `l' = r/2` and `mean l'^2 = L`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import check_positive, is_concrete
from sgfbias.core.references import merge
from sgfbias.core.schedule import as_scheduled, value_at


def _number(value: Any) -> Array:
    """A hyperparameter as an array: changing it does not recompile."""
    return jnp.asarray(value, jnp.result_type(float))


class Covariance(eqx.Module):
    """Covariance rate of the cotangent, `diag(diagonal) - rank_one rank_one^T`, plus `features * I` on the feature channel.

    A part that is absent is None. `diagonal` is a scalar (a multiple of the identity) or (n,).
    """

    diagonal: Array | None = None
    rank_one: Array | None = None
    features: Array | None = None

    def plus(self, other: Covariance) -> Covariance:
        """Covariance of a sum of two independent noises; at most one may have a rank-one part."""
        if self.rank_one is not None and other.rank_one is not None:
            raise ValueError("a sum of two minibatch noises is not supported: use one MinibatchNoise with the combined batch size")
        diagonal = _plus(self.diagonal, other.diagonal)
        rank_one = self.rank_one if other.rank_one is None else other.rank_one
        return Covariance(diagonal, rank_one, _plus(self.features, other.features))


class Kick(eqx.Module):
    """One random increment: of the cotangent on the examples, and on the features (isotropic noise only); None where absent."""

    examples: Array | None = None
    features: Array | None = None

    def plus(self, other: Kick) -> Kick:
        """Sum of two increments."""
        return Kick(_plus(self.examples, other.examples), _plus(self.features, other.features))


def _plus(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    if a.ndim != b.ndim:  # a scalar stands for a multiple of the identity
        a, b = (a, jnp.full_like(a, b)) if a.ndim else (jnp.full_like(b, a), b)
    return a + b


def safe_sqrt(x: Array) -> Array:
    """Square root whose derivative at 0 is 0 instead of infinite: the noise dies there with its loss."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def _mean_square(derivatives: Array) -> Array:
    return jnp.mean(jnp.square(derivatives))


class AbstractNoise(eqx.Module):
    """A law of the random cotangent. Models add: `MeanLossNoise() + IsotropicNoise(0.1)` are independent of each other."""

    references: ClassVar[Mapping[str, str]] = {}  # keys of the bibliography -> what they are cited for

    @abc.abstractmethod
    def shapes(self, outputs: tuple[int, ...], features: int | None) -> Any:
        """PyTree of shapes of the Brownian motion this model needs, for outputs of shape (n, ...) and `features` input features."""

    @abc.abstractmethod
    def root(self, derivatives: Array, step_size: Array, dB: Any) -> Kick:
        """The square root of the covariance applied to Brownian increments `dB`."""

    @abc.abstractmethod
    def covariance(self, derivatives: Array, step_size: Array) -> Covariance:
        """`root root^T`, per unit of flow time."""

    def at(self, iteration: Array) -> AbstractNoise:
        """This model with its schedules at their values of one iteration."""
        return self

    @property
    def is_scheduled(self) -> bool:
        """Whether the law varies along the run."""
        return False

    def check(self, n: int) -> None:
        """Refuse a law that does not fit n examples.

        **Raises:** `ValueError` with what does.
        """
        return None

    def __add__(self, other: AbstractNoise) -> AbstractNoise:
        return SumOfNoises((*_parts(self), *_parts(other)))


def _parts(noise: AbstractNoise) -> tuple[AbstractNoise, ...]:
    return noise.parts if isinstance(noise, SumOfNoises) else (noise,)


class SumOfNoises(AbstractNoise):
    """A sum of independent noises; written `a + b`."""

    parts: tuple[AbstractNoise, ...]

    @property
    def references(self):
        return merge(*(part.references for part in self.parts))

    def at(self, iteration):
        return SumOfNoises(tuple(part.at(iteration) for part in self.parts))

    @property
    def is_scheduled(self):
        return any(part.is_scheduled for part in self.parts)

    def check(self, n):
        for part in self.parts:
            part.check(n)

    def shapes(self, outputs, features):
        return tuple(part.shapes(outputs, features) for part in self.parts)

    def root(self, derivatives, step_size, dB):
        total = Kick()
        for part, increment in zip(self.parts, dB, strict=True):
            total = total.plus(part.root(derivatives, step_size, increment))
        return total

    def covariance(self, derivatives, step_size):
        total = Covariance()
        for part in self.parts:
            total = total.plus(part.covariance(derivatives, step_size))
        return total


class NoNoise(AbstractNoise):
    """No noise: the stochastic flow becomes the gradient flow, in steps of dt."""

    def shapes(self, outputs, features):
        return ()

    def root(self, derivatives, step_size, dB):
        return Kick()

    def covariance(self, derivatives, step_size):
        return Covariance()


class MeanLossNoise(AbstractNoise):
    """`sqrt(gamma/n mean|l'|^2) I`: scaled by the loss, the same for every example. Pesme et al. 2021, eq. (3), the main model.

    On a diagonal network `d log alpha = -2 gamma h L dt`, h = diag(X^T X / n).
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "mean-loss noise, eq. (3)"}

    def shapes(self, outputs, features):
        return outputs

    def root(self, derivatives, step_size, dB):
        return Kick(examples=safe_sqrt(step_size / derivatives.shape[0] * _mean_square(derivatives)) * dB)

    def covariance(self, derivatives, step_size):
        return Covariance(diagonal=step_size / derivatives.shape[0] * _mean_square(derivatives))


class PerSampleNoise(AbstractNoise):
    """`sqrt(gamma/n) diag(l')`: each example with its own residual. Pesme et al. 2021, appendix E.1 (there with |l'|: the same law).

    On a diagonal network `d log alpha = -(gamma/2n) (X^2)^T r^2 dt`.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "per-sample noise, appendix E.1"}

    def shapes(self, outputs, features):
        return outputs[:1]

    def root(self, derivatives, step_size, dB):
        return Kick(examples=safe_sqrt(step_size / derivatives.shape[0]) * _per_example(dB, derivatives) * derivatives)

    def covariance(self, derivatives, step_size):
        _one_output(derivatives, self)
        return Covariance(diagonal=step_size / derivatives.shape[0] * jnp.square(derivatives))


class MinibatchNoise(AbstractNoise):
    """Exact covariance of a minibatch gradient: `sqrt(gamma c_b/n) diag(l') (I - 11^T/n)`.

    On a diagonal network `d log alpha = -(gamma c_b/2) [(X^2)^T r^2/n - (X^T r/n)^2] dt`; in the second-order flow at b = 1 the second term
    goes, and that is SGD's own law.

    **Arguments:** `batch_size` b >= 1 (a real number is allowed), `replace`: drawn with replacement, `c_b = 1/b`, or without,
    `c_b = (n-b)/(b(n-1))`, 0 at n = 1 (Pesme et al. 2021, section 2.2 and the finite-population correction).
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "the covariance of a minibatch gradient, section 2.2"}
    batch_size: Array = eqx.field(converter=_number, default=1)
    replace: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_positive(self.batch_size, "batch_size")

    def check(self, n):
        if not self.replace and is_concrete(self.batch_size) and float(self.batch_size) > n:
            raise ValueError(
                f"a batch drawn without replacement has at most n = {n} examples, but batch_size is {float(self.batch_size):g}; "
                "use a smaller batch, or replace=True"
            )

    def factor(self, n: int, dtype: Any) -> Array:
        """`c_b` for n examples."""
        b = self.batch_size.astype(dtype)
        if self.replace:
            return 1 / b
        return (n - b) / (b * (n - 1)) if n > 1 else jnp.zeros((), dtype)

    def shapes(self, outputs, features):
        return outputs[:1]

    def root(self, derivatives, step_size, dB):
        n = derivatives.shape[0]
        scale = safe_sqrt(step_size * self.factor(n, derivatives.dtype) / n)
        return Kick(examples=scale * _per_example(dB - jnp.mean(dB), derivatives) * derivatives)

    def covariance(self, derivatives, step_size):
        _one_output(derivatives, self)
        n = derivatives.shape[0]
        rate = step_size * self.factor(n, derivatives.dtype) / n
        return Covariance(diagonal=rate * jnp.square(derivatives), rank_one=safe_sqrt(rate / n) * derivatives)


class LabelNoise(AbstractNoise):
    """`sqrt(gamma/n (mean|l'|^2 + delta^2)) I`: the mean-loss model for targets perturbed at every step, Pesme et al. 2021, section 5.3.

    The perturbation adds `+-delta` to every `l'_i`; with loss scale 1/4 that is `+-2 delta` on the target. The drift keeps the clean loss.
    On a diagonal network `d log alpha = -2 gamma h (L + delta^2) dt`.

    **Arguments:**

    - `delta`: a number >= 0, or a schedule, any function of the iteration.
    - `mean_loss`: False leaves only what the labels add, `sqrt(gamma/n) delta I`, to be summed with the noise of the sampling:
      `MinibatchNoise(b) + LabelNoise(delta / sqrt(b), mean_loss=False)` is label-noise SGD with independent labels per example.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "label noise, section 5.3"}
    delta: Any = eqx.field(converter=lambda value: as_scheduled(value, "delta", zero_allowed=True))
    mean_loss: bool = eqx.field(static=True, default=True, kw_only=True)

    def at(self, iteration):
        return LabelNoise(value_at(self.delta, iteration, jnp.result_type(float)), mean_loss=self.mean_loss)

    @property
    def is_scheduled(self):
        return callable(self.delta)

    def _level(self, derivatives: Array) -> Array:
        added = jnp.square(self.delta.astype(derivatives.dtype))
        return _mean_square(derivatives) + added if self.mean_loss else added

    def shapes(self, outputs, features):
        return outputs

    def root(self, derivatives, step_size, dB):
        return Kick(examples=safe_sqrt(step_size / derivatives.shape[0] * self._level(derivatives)) * dB)

    def covariance(self, derivatives, step_size):
        return Covariance(diagonal=step_size / derivatives.shape[0] * self._level(derivatives))


class IsotropicNoise(AbstractNoise):
    """`sigma sqrt(gamma mean|l'|^2) dB'` with B' in R^d on the features, outside the span of the examples.

    On a diagonal network `w_+-` gain `+-2 sigma sqrt(gamma L) w_+- dB'` and log alpha gains `-2 gamma sigma^2 int L`. It breaks the
    bias theorem: the negative control (after Sander, Sylvestre, Durmus 2024). Needs a network with one weight per feature.
    """

    references: ClassVar[Mapping[str, str]] = {"sander2024": "isotropic noise"}
    sigma: Array = eqx.field(converter=_number)

    def __check_init__(self):
        check_positive(self.sigma, "sigma", zero_allowed=True)

    def shapes(self, outputs, features):
        if features is None:
            raise ValueError(
                "IsotropicNoise acts on the features of a diagonal network; this network has none. "
                "Use MeanLossNoise, PerSampleNoise or MinibatchNoise"
            )
        return (features,)

    def root(self, derivatives, step_size, dB):
        sigma = self.sigma.astype(derivatives.dtype)
        return Kick(features=sigma * safe_sqrt(step_size * _mean_square(derivatives)) * dB)

    def covariance(self, derivatives, step_size):
        sigma = self.sigma.astype(derivatives.dtype)
        return Covariance(features=jnp.square(sigma) * step_size * _mean_square(derivatives))


def _per_example(dB: Array, derivatives: Array) -> Array:
    return dB.reshape(dB.shape + (1,) * (derivatives.ndim - 1))


def _one_output(derivatives: Array, noise: AbstractNoise) -> None:
    if math.prod(derivatives.shape[1:]) != 1:
        raise ValueError(f"the covariance of {type(noise).__name__} is only available for one output per example")
