"""The population risk of a linear recurrent network, as least squares on impulses."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_whole, check_finite, is_concrete
from sgfbias.core.loss import SquaredLoss
from sgfbias.core.network import evaluate
from sgfbias.core.problem import Problem
from sgfbias.recurrent.cell import check_outputs
from sgfbias.recurrent.horizon import TailPenalty
from sgfbias.recurrent.linear import LinearRNN, check_stable
from sgfbias.recurrent.teacher import as_teacher, first_lags


class PopulationRisk(Problem):
    """`L = 1/2 E |y_T - y*_T|^2` over random sequences of length T = k.

    A network that is linear in its inputs has the output `y_T = sum_j h_j x_{T-j}`.
    With the error `e_j = h_j - h*_j` and white inputs of unit variance the risk is `L_k
    = 1/2 sum_{j<k} |e_j|^2`. It is the least-squares loss of finitely many inputs,
    single impulses, so it is an ordinary problem without noise.

    **Arguments:**

    - `teacher`: h*, either a number w (one input, one output, no memory: h*_0 = w), or
      lags (K, o, i) with K >= k, of which a single one stands for a teacher without
      memory, too, or a `LinearRNN`.
    - `length`: k, the length of the sequences.
    - `outputs`: "last", or "all" for the sum of the risks of the outputs at all times.
      With white inputs lag j then has the weight k - j. The network has
      `outputs="last"` in both cases.
    - `covariance`: (k, k), the covariance S of the inputs over time, equal in all
      channels, which are independent. Then
      `L = 1/2 sum_ab S_ab <e_{k-1-a}, e_{k-1-b}>`. Default: the identity.
    - `penalty`: as in `Problem`, such as a `TailPenalty`.

    **Raises:** `ValueError` for a length below 1, for fewer lags than that, for a
    covariance that is not symmetric and positive semidefinite, and in `simulate` for
    noise and minibatches, and for a network that is not linear in its inputs.
    """

    sampled: ClassVar[bool] = False
    teacher: Any
    length: int = eqx.field(static=True)

    def __init__(
        self,
        teacher: Any,
        length: int,
        *,
        outputs: str = "last",
        covariance: Any = None,
        penalty: Any = None,
    ):
        self.length = length = as_whole(length, "length")
        self.teacher = as_teacher(teacher)
        lags = first_lags(self.teacher, length)
        check_outputs(outputs)
        sizes = lags.shape[2]
        waves = _waves(length, outputs, covariance).astype(lags.dtype)
        # Every wave in every channel is an example, (waves, channels, length,
        # channels).
        inputs = jnp.einsum("nt,ic->nitc", waves, jnp.eye(sizes, dtype=lags.dtype))
        inputs = inputs.reshape(-1, length, sizes)
        targets = jnp.einsum("joi,nji->no", lags, inputs[:, ::-1])
        loss = SquaredLoss(scale=inputs.shape[0] / 2)
        super().__init__(inputs, targets, loss=loss, penalty=penalty)

    def check_network(self, network: Any) -> None:
        """Refuse a network that is not linear in its inputs, by three random sequences,
        and a penalty on the tail that is infinite.

        **Raises:** `ValueError` that says what to do.
        """
        if getattr(network, "outputs", "last") != "last":
            raise ValueError(
                "PopulationRisk reads the last output of a network, also with outputs='all' of "
                "the risk, so the network must have outputs='last'"
            )
        if isinstance(self.penalty, TailPenalty) and isinstance(network, LinearRNN):
            check_stable(network.A, "a penalty on the tail")
        if isinstance(network, LinearRNN) or not is_concrete(network):
            return
        x, z = jax.random.normal(jax.random.key(0), (2, *self.inputs.shape[1:]), self.dtype)
        values = np.asarray(evaluate(network, jnp.stack([x, z, x - 2 * z, 0 * x])))
        gap = np.abs(values[0] - 2 * values[1] - values[2]).max() + np.abs(values[3]).max()
        size = np.abs(values).max()
        if not gap <= 1e3 * float(jnp.finfo(self.dtype).eps) * size:
            raise ValueError(
                f"PopulationRisk is for networks that are linear in their inputs, but "
                f"{type(network).__name__} is not: f(x - 2 z) differs from f(x) - 2 f(z) by "
                f"{gap:.2g}; sample sequences and use Problem"
            )


def _waves(length: int, outputs: str, covariance: Any) -> Array:
    """The sequences (n, length) of one channel whose mean square error is the risk.

    Of two sequences of size a and b at one time the risk sees a^2 + b^2 only.
    """
    if covariance is None:
        sizes = np.ones(length) if outputs == "last" else np.sqrt(np.arange(1, length + 1))
        # The impulse at time t has the lag length - 1 - t, which t + 1 outputs see.
        return jnp.asarray(np.diag(sizes))
    S = np.asarray(as_float_array(covariance, "covariance"), dtype=np.float64)
    if S.shape != (length, length):
        raise ValueError(
            f"`covariance` must be (k, k) = ({length}, {length}), as the sequences have length "
            f"{length}, but has shape {S.shape}"
        )
    check_finite(S, "covariance")
    if not np.allclose(S, S.T, rtol=1e-6, atol=1e-9 * np.abs(S).max()):
        raise ValueError(
            "`covariance` must be symmetric, but differs from its transpose by "
            f"{np.abs(S - S.T).max():.3g}"
        )
    least = float(np.linalg.eigvalsh(S)[0])
    if least < -1e-6 * np.abs(S).max():
        raise ValueError(
            f"`covariance` must be positive semidefinite, but its least eigenvalue is {least:.3g}"
        )
    if outputs == "last":
        return jnp.asarray(_root(S))
    # The output at time T - 1 sees the first T inputs; zeros in front of them leave
    # the last output of the longer sequence what it was.
    rows = []
    for T in range(1, length + 1):
        rows.append(np.pad(_root(S[:T, :T]), ((0, 0), (length - T, 0))))
    return jnp.asarray(np.concatenate(rows))


def _root(S: np.ndarray) -> np.ndarray:
    """A symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(S)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
