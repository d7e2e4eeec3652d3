r"""Noise models of the stochastic flow: Gaussian distributions of the cotangent.

Every algorithm here moves the parameters along `J^T c`, where J is the Jacobian of the
outputs on the n examples, and the cotangent `c` has one number per example and output.
A noise model defines the Gaussian distribution of the random part of `c` in two ways:
by a square root of the covariance applied to Brownian increments (`sqrt_covariance`),
and by the covariance rate (`covariance`). Coordinate systems need nothing else. The
square root moves the parameters, and on a diagonal network half the quadratic variation
of `X^T c` shrinks log alpha.

In the formulas below `l'` is the per-example derivative of the loss, and `gamma` is the
step size of the SGD that the flow models. With the loss of Pesme, Pillaud-Vivien,
Flammarion 2021 and residuals r, `l' = r/2` and `mean l'^2 = L`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_real, check_positive, is_concrete
from sgfbias.core.deprecated import accept_old_name, renamed_method, renamed_names
from sgfbias.core.references import merge
from sgfbias.core.schedule import as_scheduled, value_at

__getattr__ = renamed_names(__name__, {"Kick": "NoiseIncrement"})


def _number(name: str) -> Callable[[Any], Array]:
    """A converter of the hyperparameter `name` to an array, so that a change of it does
    not recompile.
    """
    return lambda value: as_real(value, name)


class Covariance(eqx.Module):
    """The covariance rate `diag(diagonal) - rank_one rank_one^T` of the cotangent on
    the examples, and `features * I` of the cotangent on the features.

    - `diagonal`: a scalar (a multiple of the identity) or (n,), or None if absent.
    - `rank_one`: (n,), or None if absent.
    - `features`: a scalar, or None if absent.
    """

    diagonal: Array | None = None
    rank_one: Array | None = None
    features: Array | None = None

    def plus(self, other: Covariance) -> Covariance:
        """The covariance of the sum of two independent noises.

        **Raises:** `ValueError` if both have a rank-one part.
        """
        if self.rank_one is not None and other.rank_one is not None:
            raise ValueError(
                "a sum of two minibatch noises is not supported: use one MinibatchNoise with the "
                "combined batch size"
            )
        diagonal = _plus(self.diagonal, other.diagonal)
        rank_one = self.rank_one if other.rank_one is None else other.rank_one
        return Covariance(diagonal, rank_one, _plus(self.features, other.features))


class NoiseIncrement(eqx.Module):
    """A random increment of the cotangent.

    - `examples`: the part on the outputs of the examples, or None if absent.
    - `features`: (features,), the part on the features, or None if absent. Only
      isotropic noise has one.
    """

    examples: Array | None = None
    features: Array | None = None

    def plus(self, other: NoiseIncrement) -> NoiseIncrement:
        """The sum of two increments."""
        return NoiseIncrement(
            _plus(self.examples, other.examples), _plus(self.features, other.features)
        )


def _plus(a: Array | None, b: Array | None) -> Array | None:
    """The sum of two parts, either of which may be absent."""
    if a is None or b is None:
        return b if a is None else a
    # A scalar stands for a multiple of the identity.
    if a.ndim != b.ndim:
        a, b = (a, jnp.full_like(a, b)) if a.ndim else (jnp.full_like(b, a), b)
    return a + b


def safe_sqrt(x: Array) -> Array:
    """The square root of `x`, with derivative 0 at 0 instead of infinity.

    At 0 the loss is 0, so there is no noise.
    """
    positive = x > 0
    return jnp.where(
        positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x)
    )


def _mean_square(derivatives: Array) -> Array:
    return jnp.mean(jnp.square(derivatives))


class AbstractNoise(eqx.Module):
    """A Gaussian distribution of the random part of the cotangent.

    Noise models can be added: `MeanLossNoise() + IsotropicNoise(0.1)` is the sum of two
    independent noises. A subclass defines `shapes`, `sqrt_covariance` and `covariance`.
    """

    # Keys of the bibliography -> what they are cited for.
    references: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def shapes(self, outputs: tuple[int, ...], features: int | None) -> Any:
        """The shapes, a PyTree, of the Brownian motion that this model needs.

        **Arguments:**

        - `outputs`: (n, ...), the shape of the outputs on the examples.
        - `features`: the number of input features on which isotropic noise can act, or
          None if there are none.
        """

    @abc.abstractmethod
    def sqrt_covariance(self, derivatives: Array, step_size: Array, dB: Any) -> NoiseIncrement:
        """The square root of the covariance, applied to Brownian increments.

        **Arguments:**

        - `derivatives`: (n, ...), the derivative `l'` of every example's loss.
        - `step_size`: gamma.
        - `dB`: Brownian increments with the shapes of `shapes`.
        """

    @renamed_method("sqrt_covariance")
    def root(self, derivatives: Array, step_size: Array, dB: Any) -> Any:
        """The deprecated name of `sqrt_covariance`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_old_name(cls, "root", "sqrt_covariance")

    @abc.abstractmethod
    def covariance(self, derivatives: Array, step_size: Array) -> Covariance:
        """The covariance `S S^T` per unit of flow time, where S is the square root that
        `sqrt_covariance` applies.
        """

    def at(self, iteration: Array) -> AbstractNoise:
        """This model with every schedule replaced by its value at `iteration`."""
        return self

    @property
    def is_scheduled(self) -> bool:
        """Whether a parameter of the model varies along the run."""
        return False

    def check(self, n: int) -> None:
        """Refuse a model that does not fit n examples.

        **Raises:** `ValueError` that says what fits.
        """
        return None

    def __add__(self, other: AbstractNoise) -> AbstractNoise:
        return SumOfNoises((*_parts(self), *_parts(other)))


def _parts(noise: AbstractNoise) -> tuple[AbstractNoise, ...]:
    """The summands of a sum of noises, or the noise itself."""
    return noise.parts if isinstance(noise, SumOfNoises) else (noise,)


class SumOfNoises(AbstractNoise):
    """A sum of independent noises, written `a + b`."""

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

    def sqrt_covariance(self, derivatives, step_size, dB):
        total = NoiseIncrement()
        for part, increment in zip(self.parts, dB, strict=True):
            total = total.plus(part.sqrt_covariance(derivatives, step_size, increment))
        return total

    def covariance(self, derivatives, step_size):
        total = Covariance()
        for part in self.parts:
            total = total.plus(part.covariance(derivatives, step_size))
        return total


class NoNoise(AbstractNoise):
    """No noise, with which the stochastic flow is the gradient flow in steps of dt."""

    def shapes(self, outputs, features):
        return ()

    def sqrt_covariance(self, derivatives, step_size, dB):
        return NoiseIncrement()

    def covariance(self, derivatives, step_size):
        return Covariance()


class MeanLossNoise(AbstractNoise):
    """`sqrt(gamma/n mean|l'|^2) I`: the loss sets its size, equal for all examples.

    This is the main model of Pesme et al. 2021, eq. (3). On a diagonal network
    `d log alpha = -2 gamma h L dt` with h = diag(X^T X / n).
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "mean-loss noise, eq. (3)"}

    def shapes(self, outputs, features):
        return outputs

    def sqrt_covariance(self, derivatives, step_size, dB):
        return NoiseIncrement(
            examples=safe_sqrt(step_size / derivatives.shape[0] * _mean_square(derivatives)) * dB
        )

    def covariance(self, derivatives, step_size):
        return Covariance(diagonal=step_size / derivatives.shape[0] * _mean_square(derivatives))


class PerSampleNoise(AbstractNoise):
    """`sqrt(gamma/n) diag(l')`: the residual of each example sets the size of its
    noise.

    Pesme et al. 2021, appendix E.1, who write |l'|, which has the same distribution. On
    a diagonal network `d log alpha = -(gamma/2n) (X^2)^T r^2 dt`.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "per-sample noise, appendix E.1"}

    def shapes(self, outputs, features):
        return outputs[:1]

    def sqrt_covariance(self, derivatives, step_size, dB):
        return NoiseIncrement(
            examples=safe_sqrt(step_size / derivatives.shape[0])
            * _per_example(dB, derivatives)
            * derivatives
        )

    def covariance(self, derivatives, step_size):
        _one_output(derivatives, self)
        return Covariance(diagonal=step_size / derivatives.shape[0] * jnp.square(derivatives))


class MinibatchNoise(AbstractNoise):
    """`sqrt(gamma c_b/n) diag(l') (I - 11^T/n)`: the exact covariance of a minibatch
    gradient.

    On a diagonal network
    `d log alpha = -(gamma c_b/2) [(X^2)^T r^2/n - (X^T r/n)^2] dt`. In the second-order
    flow at b = 1 the second term drops out, which gives the evolution law of log alpha
    under SGD itself. Pesme et al. 2021, section 2.2, and the finite-population
    correction.

    **Arguments:**

    - `batch_size`: b >= 1, which need not be whole. Default 1.
    - `replace`: True, the default, for batches drawn with replacement, `c_b = 1/b`.
      False for batches drawn without, `c_b = (n-b)/(b(n-1))`, or 0 at n = 1.

    **Raises:** `ValueError` for a batch size that is not positive, and in `simulate`
    for a batch drawn without replacement that is larger than n.
    """

    references: ClassVar[Mapping[str, str]] = {
        "pesme2021": "the covariance of a minibatch gradient, section 2.2"
    }
    batch_size: Array = eqx.field(converter=_number("batch_size"), default=1)
    replace: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        check_positive(self.batch_size, "batch_size")

    def check(self, n):
        if not self.replace and is_concrete(self.batch_size) and float(self.batch_size) > n:
            raise ValueError(
                f"a batch drawn without replacement has at most n = {n} examples, but batch_size "
                f"is {float(self.batch_size):g}; use a smaller batch, or replace=True"
            )

    def factor(self, n: int, dtype: Any) -> Array:
        """The factor `c_b` for n examples."""
        b = self.batch_size.astype(dtype)
        if self.replace:
            return 1 / b
        return (n - b) / (b * (n - 1)) if n > 1 else jnp.zeros((), dtype)

    def shapes(self, outputs, features):
        return outputs[:1]

    def sqrt_covariance(self, derivatives, step_size, dB):
        n = derivatives.shape[0]
        scale = safe_sqrt(step_size * self.factor(n, derivatives.dtype) / n)
        return NoiseIncrement(
            examples=scale * _per_example(dB - jnp.mean(dB), derivatives) * derivatives
        )

    def covariance(self, derivatives, step_size):
        _one_output(derivatives, self)
        n = derivatives.shape[0]
        rate = step_size * self.factor(n, derivatives.dtype) / n
        return Covariance(
            diagonal=rate * jnp.square(derivatives), rank_one=safe_sqrt(rate / n) * derivatives
        )


class LabelNoise(AbstractNoise):
    """`sqrt(gamma/n (mean|l'|^2 + delta^2)) I`: mean-loss noise plus label noise.

    It models SGD whose targets are perturbed at every step (Pesme et al. 2021, section
    5.3). The perturbation adds `+-delta` to every `l'_i`, which at loss scale 1/4 is
    `+-2 delta` on the target. The drift keeps the clean loss. On a diagonal network
    `d log alpha = -2 gamma h (L + delta^2) dt` with h = diag(X^T X / n).

    **Arguments:**

    - `delta`: a number >= 0, or a schedule: any function of the iteration.
    - `mean_loss`: False leaves only the part of the labels, `sqrt(gamma/n) delta I`, to
      be added to a model of the sampling noise. Label-noise SGD with independent labels
      per example is `MinibatchNoise(b) + LabelNoise(delta / sqrt(b), mean_loss=False)`.

    **Raises:** `ValueError` for a negative `delta`.
    """

    references: ClassVar[Mapping[str, str]] = {"pesme2021": "label noise, section 5.3"}
    delta: Any = eqx.field(converter=lambda value: as_scheduled(value, "delta", zero_allowed=True))
    mean_loss: bool = eqx.field(static=True, default=True, kw_only=True)

    def at(self, iteration):
        return LabelNoise(
            value_at(self.delta, iteration, jnp.result_type(float)), mean_loss=self.mean_loss
        )

    @property
    def is_scheduled(self):
        return callable(self.delta)

    def _level(self, derivatives: Array) -> Array:
        """The variance of the cotangent per example, in units of gamma/n."""
        added = jnp.square(self.delta.astype(derivatives.dtype))
        return _mean_square(derivatives) + added if self.mean_loss else added

    def shapes(self, outputs, features):
        return outputs

    def sqrt_covariance(self, derivatives, step_size, dB):
        return NoiseIncrement(
            examples=safe_sqrt(step_size / derivatives.shape[0] * self._level(derivatives)) * dB
        )

    def covariance(self, derivatives, step_size):
        return Covariance(diagonal=step_size / derivatives.shape[0] * self._level(derivatives))


class IsotropicNoise(AbstractNoise):
    """`sigma sqrt(gamma mean|l'|^2) dB'` on the features, with B' in R^d.

    This noise leaves the span of the examples and so breaks the bias theorem, which
    makes it a negative control (after Sander, Sylvestre, Durmus 2024). On a diagonal
    network `w_+-` gain `+-2 sigma sqrt(gamma L) w_+- dB'`, and log alpha gains
    `-2 gamma sigma^2 int L`.

    **Arguments:**

    - `sigma`: a number >= 0.

    **Raises:** `ValueError` for a negative `sigma`, and in `simulate` for a network
    that does not have one weight per feature.
    """

    references: ClassVar[Mapping[str, str]] = {"sander2024": "isotropic noise"}
    sigma: Array = eqx.field(converter=_number("sigma"))

    def __check_init__(self):
        check_positive(self.sigma, "sigma", zero_allowed=True)

    def shapes(self, outputs, features):
        if features is None:
            raise ValueError(
                "IsotropicNoise acts on the features of a diagonal network, but this network has "
                "none: use MeanLossNoise, PerSampleNoise or MinibatchNoise"
            )
        return (features,)

    def sqrt_covariance(self, derivatives, step_size, dB):
        sigma = self.sigma.astype(derivatives.dtype)
        return NoiseIncrement(
            features=sigma * safe_sqrt(step_size * _mean_square(derivatives)) * dB
        )

    def covariance(self, derivatives, step_size):
        sigma = self.sigma.astype(derivatives.dtype)
        return Covariance(features=jnp.square(sigma) * step_size * _mean_square(derivatives))


def _per_example(dB: Array, derivatives: Array) -> Array:
    """Brownian increments (n,), reshaped to multiply derivatives (n, ...)."""
    return dB.reshape(dB.shape + (1,) * (derivatives.ndim - 1))


def _one_output(derivatives: Array, noise: AbstractNoise) -> None:
    """Refuse several outputs per example, for which the covariance is not diagonal."""
    if math.prod(derivatives.shape[1:]) != 1:
        raise ValueError(
            f"the covariance of {type(noise).__name__} is only available for one output per "
            f"example, but the outputs of one example have shape {derivatives.shape[1:]}"
        )
