"""How hot is SGD? The fluctuations of w over its response, at every lag."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.stats import t as student

from sgfbias.core.checks import as_real, as_whole, check_positive, is_concrete
from sgfbias.meanfield.curves import Curves
from sgfbias.meanfield.precision import double, returned

# A state is called stationary if the temperatures of two halves of a window differ by
# less than this share, and if the drift is less than this share of the mean squared
# distance.
AGREEMENT = 0.1
LEVEL = 0.99


class Temperature(eqx.Module):
    """Fluctuations against response, for lags 0, 1, ... after a waiting time.

    - `drop`: (keys, lags), `(C(t,t) + C(w,w))/2 - C(t,w)`, half of the mean squared
      distance per coordinate after a lag t - w.
    - `response`: (keys, lags), chi, the response of w to a unit force from w on.
    - `temperature`: (keys,), `drop / response` at the longest lag. A system in
      equilibrium has the same ratio at every lag.
    - `drift`: (keys,), `C(t,t) - C(w,w)` with its sign, from the waiting time w to the
      last time t, whose mean over keys is 0 in a stationary state. None for a closed
      form.
    - `halves`: (keys, 2), the temperatures of the first and of the second half of all
      times from the waiting time on, each over its whole length. None for a closed
      form.
    - `loss`: the stationary training loss of a closed form, or None.
    """

    drop: Array
    response: Array
    temperature: Array
    drift: Array | None = None
    halves: Array | None = None
    loss: Array | None = None

    @property
    def lags(self) -> Array:
        """The lags 0, 1, ..."""
        return jnp.arange(self.drop.shape[-1])

    def slope(self, lag: int) -> Array:
        """`drop / response` at one lag, (keys,).

        **Raises:** `ValueError` for a lag that is not among those measured.
        """
        lag = as_whole(lag, "lag", most=self.drop.shape[-1] - 1)
        return self.drop[..., lag] / self.response[..., lag]

    @property
    def stationary(self) -> bool:
        """Whether nothing shows that the state still changes: the temperatures of the
        two halves of the window, as means over keys, differ by less than 10%, and the
        absolute value of the mean drift is less than 10% of the mean squared distance
        at the longest lag, which is twice the drop. Either may be larger by the
        99% interval of its mean over keys. A closed form is stationary.
        """
        if self.halves is None or self.drift is None:
            return True
        early, late = np.moveaxis(np.asarray(self.halves), -1, 0)
        drop = np.abs(np.asarray(self.drop)[..., -1])
        drift = np.asarray(self.drift)
        least = np.mean(np.maximum(early, late))
        return may_be_small(early - late, AGREEMENT * least) and may_be_small(
            drift, AGREEMENT * 2 * np.mean(drop)
        )

    def __repr__(self) -> str:
        if not is_concrete(self.temperature):
            return "Temperature, traced"
        rows = np.atleast_1d(np.asarray(self.temperature))
        spread = f" +- {rows.std(ddof=1) / rows.size**0.5:.2g}" if rows.size > 1 else ""
        last = self.drop.shape[-1] - 1
        short = float(np.mean(np.asarray(self.slope(1))))
        found = "stationary" if self.stationary else "not stationary"
        return (
            f"Temperature {rows.mean():.4g}{spread} at long lags, {short:.4g} at lag 1, from lags "
            f"up to {last}; {found}"
        )


def may_be_small(values: Any, scale: float) -> bool:
    """Whether the absolute mean of values over keys may be below a scale, by its 99%
    interval of Student's t, which allows for few keys.
    """
    values = np.atleast_1d(values)
    error = 0.0
    if values.size > 1:
        width = student.ppf((1 + LEVEL) / 2, values.size - 1)
        error = width * values.std(ddof=1) / values.size**0.5
    return bool(abs(values.mean()) <= scale + error)


def effective_temperature(curves: Curves, waiting: Any, *, lags: Any = None) -> Temperature:
    """The effective temperature of training from a waiting time on.

    With C the correlation and R the response, `drop = (C(t,t) + C(w,w))/2 - C(t,w)` and
    `chi = eta sum_{u=w}^{t-1} R(t,u)`; the temperature is `drop / chi`. On the sphere
    the response is that of w as it is projected. With several outputs C and R are means
    over the outputs of their diagonals.

    **Arguments:**

    - `curves`: from `solve`, or from `simulate` with `probes`.
    - `waiting`: w, a whole number of steps below the number of steps.
    - `lags`: the longest lag. Drops and responses are averaged over all beginnings from
      w on that leave this lag, which lowers the error of a stationary state. Default:
      the longest lag of all, from w alone.

    **Returns:** a `Temperature`, which also says whether the state is stationary. A
    system that ages can look hot without noise.

    **Raises:** `ValueError` for curves without a response, and for a waiting time that
    leaves fewer than two lags.
    """
    if curves.response is None:
        raise ValueError(
            "these curves have no response, which a temperature needs: write "
            "simulate(..., probes=4)"
        )
    waiting = as_whole(waiting, "waiting", least=0)
    if waiting > curves.steps - 2:
        raise ValueError(
            f"`waiting` must leave two lags or more, but is {waiting} of {curves.steps} steps: "
            "wait for less, or solve for more steps"
        )
    most = curves.steps - waiting
    lags = most if lags is None else as_whole(lags, "lags", least=2, most=most)
    with double((curves.correlation, curves.response, curves.rule), needed=False):
        found = _measured(curves, waiting, lags)
    return returned(found)


def _measured(curves: Curves, waiting: int, lags: int) -> Temperature:
    assert curves.response is not None
    correlation, response = curves.correlation, curves.response
    if curves.outputs is not None:  # the mean over outputs
        correlation, response = (
            jnp.trace(matrix, axis1=-2, axis2=-1) / curves.outputs
            for matrix in (correlation, response)
        )
    eta = jnp.asarray(curves.rule.step_size).astype(response.dtype)
    begins = range(waiting, curves.steps - lags + 1)
    rows = [from_kernels(correlation, response, eta, w) for w in begins]
    drop, chi = (
        jnp.mean(jnp.stack([row[k][..., : lags + 1] for row in rows]), axis=0) for k in (0, 1)
    )
    # The halves are those of all times, however short the lags are.
    half = (curves.steps - waiting) // 2
    parts = [from_kernels(correlation, response, eta, w) for w in (waiting, waiting + half)]
    halves = [part[..., half] / chi_part[..., half] for part, chi_part in parts]
    drift = correlation[..., -1, -1] - correlation[..., waiting, waiting]
    return Temperature(drop, chi, drop[..., -1] / chi[..., -1], drift, jnp.stack(halves, axis=-1))


def from_kernels(
    correlation: Array, response: Array, eta: Any, waiting: int
) -> tuple[Array, Array]:
    """The drop and chi at the lags 0, ..., steps - waiting."""
    equal = jnp.diagonal(correlation, axis1=-2, axis2=-1)[..., waiting:]
    drop = (equal + equal[..., :1]) / 2 - correlation[..., waiting:, waiting]
    # At time t only kicks before t count, where the response is not 0.
    return drop, eta * jnp.sum(response[..., waiting:, waiting:], axis=-1)


class SpectralLaw(eqx.Module):
    """Nodes and weights of the Marchenko-Pastur law of `X^T X`, whose mean is alpha.

    - `nodes`, `weights`: (nodes,). Below alpha = 1 the last node is 0, with weight
      1 - alpha.
    """

    nodes: Array
    weights: Array

    def mean(self, values: Any) -> Array:
        """The mean of a function, given by its values at the nodes in the last axis."""
        return jnp.sum(self.weights * values, axis=-1)


def marchenko_pastur(alpha: Any, *, nodes: int = 2000) -> SpectralLaw:
    """The spectral law of `X^T X` with `n = alpha d` examples of d independent entries
    of variance 1/d, as d grows.

    With `x = 1 + alpha + 2 sqrt(alpha) cos(theta)` integrals of smooth functions
    converge exponentially in the number of nodes, and algebraically at alpha = 1.

    **Arguments:**

    - `alpha`: n / d > 0.
    - `nodes`: the number of nodes.

    **Raises:** `ValueError` for an `alpha` that is not positive.
    """
    alpha = as_real(alpha, "alpha")
    check_positive(alpha, "alpha")
    theta = jnp.arange(1, nodes + 1, dtype=alpha.dtype) * (np.pi / (nodes + 1))
    x = 1 + alpha + 2 * jnp.sqrt(alpha) * jnp.cos(theta)
    weights = 2 * alpha / (nodes + 1) * jnp.square(jnp.sin(theta)) / x
    atom = jnp.maximum(1 - alpha, 0)
    return SpectralLaw(jnp.append(x, jnp.zeros((), x.dtype)), jnp.append(weights, atom))


def least_squares_temperature(
    alpha: Any,
    step_size: Any,
    fraction: Any,
    *,
    label_noise: Any = 1.0,
    ridge: Any = 0.0,
    lags: Any = 200,
) -> Temperature:
    """The temperature of SGD on least squares with a linear teacher, in closed form and
    exact for any step size, as d grows.

    The loss is `sgfbias.SquaredLoss(0.5)`, that is `(y - r)^2 / 2`, summed over
    examples. The masks are independent, and `|v|^2 = d`. With the Marchenko-Pastur law
    of x, `k = x + lambda` and `g = (1-b)/b`, the mean squared residual v is that of the
    ridge solution divided by `1 - (g/alpha) E[eta x^2/(k (2 - eta k))]`, and

        drop(lag) = E[eta g v x / (k (2 - eta k)) (1 - (1 - eta k)^lag)]
        chi(lag) = E[(1 - (1 - eta k)^lag) / k]

    **Arguments:**

    - `alpha`: n / d, above 1, or any positive number with a ridge.
    - `step_size`: eta.
    - `fraction`: b, in (0, 1].
    - `label_noise`: the standard deviation of the noise of the targets.
    - `ridge`: lambda >= 0.
    - `lags`: the longest lag of `drop` and `response`.

    **Returns:** a `Temperature`, whose `temperature` is at infinite lag, and whose
    `loss` is v/2.

    **Raises:** `ValueError` for numbers outside these ranges, and for a step size at
    which SGD diverges.
    """
    values = {"step_size": step_size, "fraction": fraction, "label_noise": label_noise}
    eta, b, noise = (as_real(v, name) for name, v in values.items())
    lam, lags = as_real(ridge, "ridge"), as_whole(lags, "lags", least=2)
    check_positive(eta, "step_size")
    check_positive(noise, "label_noise", zero_allowed=True)
    check_positive(lam, "ridge", zero_allowed=True)
    if is_concrete(b) and not 0 < float(b) <= 1:
        raise ValueError(f"`fraction` must be above 0 and at most 1, but is {float(b):g}")
    with double((alpha, eta, b, noise, lam), needed=False):
        found = _closed_form(alpha, eta, b, noise, lam, lags)
    return returned(found)


def _closed_form(alpha: Any, eta: Any, b: Any, noise: Any, lam: Any, lags: int) -> Temperature:
    law = marchenko_pastur(alpha)
    eta, b, noise, lam, alpha = (
        jnp.asarray(v).astype(law.nodes.dtype) for v in (eta, b, noise, lam, alpha)
    )
    x, g = law.nodes, (1 - b) / b
    k = x + lam
    if is_concrete(k) and float(alpha) <= 1 and float(lam) == 0:
        raise ValueError(
            "without a ridge the closed form needs alpha above 1, more examples than "
            f"dimensions, but alpha is {float(alpha):g}: give ridge=0.1"
        )
    k = jnp.where(k > 0, k, 1)  # the node 0 has no weight then
    shrunk = jnp.square(lam / k)
    rest = law.mean(x * shrunk) / alpha
    least = rest + jnp.square(noise) * (1 - 1 / alpha + law.mean(shrunk) / alpha)
    mixing = x / (k * (2 - eta * k))
    bracket = 1 - g / alpha * law.mean(eta * x * mixing)
    if is_concrete(bracket):
        edge = 2 / float(jnp.max(k))
        if float(eta) >= edge or float(bracket) <= 0:
            raise ValueError(
                f"SGD diverges at the step size {float(eta):g}: take a step size below "
                f"{_largest(law, float(alpha), float(lam), float(g)):.4g}"
            )
    v = least / bracket
    decay = 1 - (1 - eta * k) ** jnp.arange(lags + 1, dtype=k.dtype)[:, None]
    hot = eta * g * v * mixing
    return Temperature(
        law.mean(hot * decay),
        law.mean(decay / k),
        law.mean(hot) / law.mean(1 / k),
        loss=v / 2,
    )


def _largest(law: SpectralLaw, alpha: float, lam: float, g: float) -> float:
    """The step size at which SGD begins to diverge, by bisection."""
    x, w = np.asarray(law.nodes), np.asarray(law.weights)
    k = np.where(x + lam > 0, x + lam, 1)
    low, high = 0.0, 2 / k.max()
    for _ in range(60):
        eta = (low + high) / 2
        stable = g / alpha * np.sum(w * eta * x**2 / (k * (2 - eta * k))) < 1
        low, high = (eta, high) if stable else (low, eta)
    return low
