"""Linear regression with more features than examples: the data of diagonal networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.brownian import check_key
from sgfbias.core.checks import (
    as_float,
    as_float_array,
    as_real,
    as_whole,
    check_finite,
    check_positive,
    check_shape,
    is_concrete,
    shown,
)
from sgfbias.core.deprecated import warn_renamed
from sgfbias.core.loss import SquaredLoss
from sgfbias.core.network import evaluate
from sgfbias.core.problem import Problem
from sgfbias.diagonal.linear import AbstractLinearNetwork
from sgfbias.diagonal.rows import solvable


def check_regression(problem: Any) -> None:
    """Refuse what is no `SparseRegression`.

    **Raises:** `ValueError` that says what to write.
    """
    if not isinstance(problem, SparseRegression):
        raise ValueError(
            f"`problem` must be a SparseRegression, but is {shown(problem)}; wrap the data: "
            "SparseRegression(X, y)"
        )


class SparseRegression(Problem):
    """`L(beta) = 1/(4n) sum_i (<beta, x_i> - y_i)^2` (Pesme, Pillaud-Vivien, Flammarion
    2021, eq. 1).

    **Arguments:**

    - `X`: (n, d). The inputs, one example per row.
    - `y`: (n,). The targets.
    - `beta_star`: (d,). The truth, if it is known.
    - `covariance`: (d, d). The covariance of the inputs, used by the validation error.
      The default is the identity.
    - `validation`: `(X_val, y_val)` of shapes (m, d) and (m,). If it is given, the
      validation error is measured on it.
    - `loss_scale`: s in `L = s/n sum_i r_i^2`; use 1/2 for papers that write 1/(2n).
      The flow at scale s and step size gamma is the flow at scale 1/4 and step size
      `4 s gamma`, run for `4 s` times the flow time: the loss integral is the same, and
      log alpha loses `8 s gamma h int L`.

    The `validation_error` of a predictor is the mean squared error on the validation
    set if there is one. Otherwise it is `(beta - beta*)^T covariance (beta - beta*)`,
    which is `|beta - beta*|_2^2` for standard inputs. Without a validation set and
    without `beta_star` there is no such observable.

    **Raises:** `ValueError` for shapes that disagree, for data without examples, for
    NaN or infinity, and for a covariance that is not symmetric and positive definite.
    """

    loss_scale: float = eqx.field(static=True)
    beta_star: Float[Array, " d"] | None
    covariance: Float[Array, "d d"] | None
    validation: tuple[Float[Array, "m d"], Float[Array, " m"]] | None

    def __init__(
        self,
        X: Any,
        y: Any,
        beta_star: Any = None,
        *,
        covariance: Any = None,
        validation: Any = None,
        loss_scale: float = 0.25,
    ):
        X = as_float_array(X, "X")
        if X.ndim != 2:
            raise ValueError(f"`X` must have shape (n, d), but has shape {X.shape}")
        n, d = X.shape
        if n == 0 or d == 0:
            raise ValueError(
                f"`X` needs at least one example and one feature, but has shape {X.shape}"
            )
        y = as_float_array(y, "y").astype(X.dtype)
        check_shape(y, "y", (n,), more=f", as X has {n} rows, one for each example")
        check_finite(X, "X")
        check_finite(y, "y")
        loss_scale = as_float(loss_scale, "loss_scale")
        check_positive(loss_scale, "loss_scale")
        super().__init__(X, y, loss=SquaredLoss(loss_scale))
        self.loss_scale = loss_scale
        if beta_star is not None:
            beta_star = as_float_array(beta_star, "beta_star").astype(X.dtype)
            check_shape(beta_star, "beta_star", (d,))
            check_finite(beta_star, "beta_star")
        if covariance is not None:
            covariance = as_float_array(covariance, "covariance").astype(X.dtype)
            check_shape(covariance, "covariance", (d, d))
            check_finite(covariance, "covariance")
            _check_covariance(covariance)
        if validation is not None:
            X_val, y_val = (
                as_float_array(a, f"validation[{k}]").astype(X.dtype)
                for k, a in enumerate(validation)
            )
            check_shape(X_val, "validation[0]", (X_val.shape[0] if X_val.ndim else 0, d))
            check_shape(y_val, "validation[1]", (X_val.shape[0],))
            check_finite(X_val, "validation[0]")
            check_finite(y_val, "validation[1]")
            validation = (X_val, y_val)
        self.beta_star, self.covariance, self.validation = beta_star, covariance, validation

    @classmethod
    def sample(
        cls,
        key: Array,
        *,
        n: int,
        d: int,
        sparsity: int,
        noise: float = 0.0,
        covariance: Any = None,
        dtype: Any = None,
    ) -> SparseRegression:
        """Draw Gaussian inputs `x ~ N(0, covariance)` and targets
        `y = X beta* + noise * N(0, 1)`.

        **Arguments:**

        - `key`: a JAX random key.
        - `n`, `d`: the numbers of examples and of features.
        - `sparsity`: the number of entries of beta* that are not zero; they are
          standard normal.
        - `noise`: the standard deviation of the noise on the targets.
        - `covariance`: (d, d). By default the identity.
        - `dtype`: by default the float type of the session.

        **Raises:** `ValueError` unless n, d >= 1, 1 <= sparsity <= d and noise is
        finite and >= 0, and for a covariance that is not symmetric and positive
        definite.
        """
        n, d = as_whole(n, "n", least=0), as_whole(d, "d", least=0)
        if n < 1 or d < 1:
            raise ValueError(
                f"a problem needs n >= 1 examples and d >= 1 features, but n={n}, d={d}"
            )
        sparsity = as_whole(sparsity, "sparsity", least=-(2**63))
        if not 1 <= sparsity <= d:
            raise ValueError(f"`sparsity` must be between 1 and d={d}, but is {sparsity}")
        scatter = as_real(noise, "noise")
        check_positive(scatter, "noise", zero_allowed=True)
        key = check_key(key)
        inputs_key, support_key, value_key, noise_key = jax.random.split(key, 4)
        X = jax.random.normal(inputs_key, (n, d), dtype or jnp.result_type(float))
        if covariance is not None:
            covariance = as_float_array(covariance, "covariance").astype(X.dtype)
            check_shape(covariance, "covariance", (d, d))
            _check_covariance(covariance)
            X = X @ jnp.linalg.cholesky(covariance).T
        support = jax.random.choice(support_key, d, (sparsity,), replace=False)
        beta_star = (
            jnp.zeros(d, X.dtype)
            .at[support]
            .set(jax.random.normal(value_key, (sparsity,), X.dtype))
        )
        y = X @ beta_star + scatter.astype(X.dtype) * jax.random.normal(noise_key, (n,), X.dtype)
        return cls(X, y, beta_star, covariance=covariance)

    @property
    def X(self) -> Float[Array, "n d"]:
        """Inputs."""
        return self.inputs

    @property
    def y(self) -> Float[Array, " n"]:
        """Targets."""
        return self.targets

    @property
    def d(self) -> int:
        """Number of features."""
        return self.inputs.shape[1]

    @property
    def time_scale(self) -> float:
        """`4 s` for the loss `s/n sum_i r_i^2`. The formulas are written for s = 1/4;
        in them, step sizes and flow times of this problem are multiplied by this
        factor.
        """
        return 4 * self.loss_scale

    @property
    def pace(self) -> float:
        """The old name of `time_scale`."""
        warn_renamed("SparseRegression.pace", "SparseRegression.time_scale")
        return self.time_scale

    @property
    def h(self) -> Float[Array, " d"]:
        """Diagonal of `H = X^T X / n`."""
        return jnp.mean(jnp.square(self.inputs), axis=0)

    def validation_error(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The validation error of a predictor, as the docstring of the class defines
        it.

        **Raises:** `ValueError` if the problem has neither `beta_star` nor a validation
        set.
        """
        if self.validation is not None:
            X_val, y_val = self.validation
            return jnp.mean(jnp.square(X_val @ beta - y_val))
        if self.beta_star is None:
            raise ValueError(
                "a validation error needs `beta_star` or `validation=(X_val, y_val)`; this "
                "problem has neither"
            )
        error = beta - self.beta_star
        return error @ error if self.covariance is None else error @ (self.covariance @ error)

    @property
    def measures_validation(self) -> bool:
        """Whether the problem has a validation error."""
        return self.validation is not None or self.beta_star is not None

    def interpolation_gap(self) -> float:
        """`min_beta |X beta - y|_2 / |y|_2`. Up to rounding it is 0 if and only if some
        beta fits every example. It cannot be computed inside `jax.jit` or `jax.grad`.
        """
        X, y = np.asarray(self.inputs, np.float64), np.asarray(self.targets, np.float64)
        scale = float(np.linalg.norm(y))
        if scale == 0:
            return 0.0
        # Rows are scaled to unit length, so that a row with small entries counts as
        # much as the others.
        rows = np.linalg.norm(X, axis=1)
        rows = np.where(rows > 0, rows, 1)
        best = np.linalg.lstsq(X / rows[:, None], y / rows, rcond=None)[0]
        return float(np.linalg.norm(X @ best - y)) / scale

    @property
    def interpolates(self) -> bool:
        """Whether some beta fits every example, up to rounding of the data (see
        `diagonal/rows.py`). Data that are being traced are assumed to be fitted by some
        beta.
        """
        return solvable(self.inputs, self.targets)

    def least_loss(self, network: Any) -> float | None:
        """The smallest loss that the network can reach: 0 if the data can be
        interpolated, otherwise the loss of least squares. It is None for networks that
        are not linear predictors.
        """
        if not isinstance(network, AbstractLinearNetwork):
            return None
        if self.interpolates:
            return 0.0
        X, y = np.asarray(self.inputs, np.float64), np.asarray(self.targets, np.float64)
        best = np.linalg.lstsq(X, y, rcond=None)[0]
        return self.loss_scale * float(np.mean(np.square(X @ best - y)))

    def require_interpolation(self) -> None:
        """Check that an interpolating solution exists, since the theorem on the
        implicit bias says nothing about other problems.

        **Raises:** `ValueError` if there is none. The message says how far the system
        is from solvable and which statements still hold.
        """
        if not self.interpolates:
            raise ValueError(
                "no beta satisfies X beta = y: the best fit leaves a relative residual of "
                f"{self.interpolation_gap():.2e} (n = {self.n}, d = {self.d}). The theorem on "
                "the implicit bias is about interpolating solutions, and there is none to select. "
                "What still holds: simulate() and its loss, the evolution law of log alpha, and "
                "at any time t select(problem with y = X beta_t, log_alpha_t) = beta_t. To get "
                "an interpolating problem use more features than examples, drop contradictory "
                "rows, or replace y by its fit"
            )

    def observables(self, network: Any) -> dict[str, Callable[[Any], Array]]:
        """`validation_error`, if the problem has one. A network without a `beta` has it
        only on a validation set.
        """
        linear = isinstance(network, AbstractLinearNetwork)
        exists = self.measures_validation if linear else self.validation is not None
        return {"validation_error": _ValidationError(self)} if exists else {}

    def units(self) -> dict[str, str]:
        """Units of the observables."""
        return {
            "validation_error": "target^2"
            if self.validation is not None or self.covariance is not None
            else "(target / input)^2"
        }


class _ValidationError(eqx.Module):
    problem: SparseRegression

    def __call__(self, network: Any) -> Array:
        if isinstance(network, AbstractLinearNetwork):
            return self.problem.validation_error(network.beta)
        inputs, targets = self.problem.validation
        return jnp.mean(jnp.square(evaluate(network, inputs) - targets))


def _check_covariance(covariance: Array) -> None:
    if not is_concrete(covariance):
        return
    matrix = np.asarray(covariance, np.float64)
    scale = np.abs(matrix).max()
    if not np.allclose(matrix, matrix.T, atol=1e-6 * scale) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError("`covariance` must be symmetric and positive definite")
