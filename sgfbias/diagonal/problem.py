"""Linear regression with more features than examples, the data of the diagonal network."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sgfbias.core.checks import as_float_array, check_finite, check_shape, is_concrete
from sgfbias.core.loss import SquaredLoss
from sgfbias.core.network import evaluate
from sgfbias.core.problem import Problem
from sgfbias.diagonal.linear import AbstractLinearNetwork


class SparseRegression(Problem):
    """`L(beta) = 1/(4n) sum_i (<beta, x_i> - y_i)^2` (Pesme, Pillaud-Vivien, Flammarion 2021, eq. 1).

    **Arguments:**

    - `X` (n, d), `y` (n,). `beta_star` (d,): the truth, if known.
    - `covariance` (d, d): of the inputs, for the risk; default the identity.
    - `validation`: `(X_val (m, d), y_val (m,))`; then the validation error is measured on it.
    - `loss_scale`: s in `L = s/n sum_i r_i^2`; 1/2 for papers that write 1/(2n). The flow at scale s and step size gamma is that at 1/4 and
      `4 s gamma`, in `4 s` times the flow time: the loss integral is the same, and log alpha loses `8 s gamma h int L`.

    `validation_error` of a predictor is the mean squared error on the validation set if there is one, else
    `(beta - beta*)^T covariance (beta - beta*)`, which is `|beta - beta*|_2^2` for standard inputs; without either it is not declared.

    **Raises:** `ValueError` for shapes that disagree, no examples, NaN or infinity, or a covariance that is not symmetric and positive.
    """

    loss_scale: float = eqx.field(static=True)
    beta_star: Float[Array, " d"] | None
    covariance: Float[Array, "d d"] | None
    validation: tuple[Float[Array, "m d"], Float[Array, " m"]] | None

    def __init__(self, X: Any, y: Any, beta_star: Any = None, *, covariance: Any = None, validation: Any = None, loss_scale: float = 0.25):
        X = as_float_array(X, "X")
        if X.ndim != 2:
            raise ValueError(f"`X` must have shape (n, d), but has shape {X.shape}")
        n, d = X.shape
        if n == 0 or d == 0:
            raise ValueError(f"`X` needs at least one example and one feature, but has shape {X.shape}")
        y = as_float_array(y, "y").astype(X.dtype)
        check_shape(y, "y", (n,))
        check_finite(X, "X")
        check_finite(y, "y")
        if not (np.isfinite(loss_scale) and loss_scale > 0):
            raise ValueError(f"`loss_scale` must be positive and finite, but is {loss_scale}")
        super().__init__(X, y, loss=SquaredLoss(float(loss_scale)))
        self.loss_scale = float(loss_scale)
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
            X_val, y_val = (as_float_array(a, f"validation[{k}]").astype(X.dtype) for k, a in enumerate(validation))
            check_shape(X_val, "validation[0]", (X_val.shape[0] if X_val.ndim else 0, d))
            check_shape(y_val, "validation[1]", (X_val.shape[0],))
            check_finite(X_val, "validation[0]")
            check_finite(y_val, "validation[1]")
            validation = (X_val, y_val)
        self.beta_star, self.covariance, self.validation = beta_star, covariance, validation

    @classmethod
    def sample(
        cls, key: Array, *, n: int, d: int, sparsity: int, noise: float = 0.0, covariance: Any = None, dtype: Any = None
    ) -> SparseRegression:
        """Gaussian inputs `x ~ N(0, covariance)` and `y = X beta* + noise * N(0, 1)`, beta* with `sparsity` standard normal entries.

        **Raises:** `ValueError` unless n, d >= 1 and 1 <= sparsity <= d.
        """
        if n < 1 or d < 1:
            raise ValueError(f"a problem needs n >= 1 examples and d >= 1 features, but n={n}, d={d}")
        if not 1 <= sparsity <= d:
            raise ValueError(f"`sparsity` must be between 1 and d={d}, but is {sparsity}")
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"`noise` must be non-negative and finite, but is {noise}")
        inputs_key, support_key, value_key, noise_key = jax.random.split(key, 4)
        X = jax.random.normal(inputs_key, (n, d), dtype or jnp.result_type(float))
        if covariance is not None:
            covariance = as_float_array(covariance, "covariance").astype(X.dtype)
            check_shape(covariance, "covariance", (d, d))
            _check_covariance(covariance)
            X = X @ jnp.linalg.cholesky(covariance).T
        support = jax.random.choice(support_key, d, (sparsity,), replace=False)
        beta_star = jnp.zeros(d, X.dtype).at[support].set(jax.random.normal(value_key, (sparsity,), X.dtype))
        y = X @ beta_star + noise * jax.random.normal(noise_key, (n,), X.dtype)
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
    def pace(self) -> float:
        """`4 s` for the loss `s/n sum_i r_i^2`: step sizes and flow times of the formulas, which have s = 1/4, are this much larger."""
        return 4 * self.loss_scale

    @property
    def h(self) -> Float[Array, " d"]:
        """Diagonal of `H = X^T X / n`."""
        return jnp.mean(jnp.square(self.inputs), axis=0)

    def validation_error(self, beta: Float[Array, " d"]) -> Float[Array, ""]:
        """The validation error of a predictor, see the class.

        **Raises:** `ValueError` if the problem has neither `beta_star` nor a validation set.
        """
        if self.validation is not None:
            X_val, y_val = self.validation
            return jnp.mean(jnp.square(X_val @ beta - y_val))
        if self.beta_star is None:
            raise ValueError("a validation error needs `beta_star` or `validation=(X_val, y_val)`; this problem has neither")
        error = beta - self.beta_star
        return error @ error if self.covariance is None else error @ (self.covariance @ error)

    @property
    def measures_validation(self) -> bool:
        """Whether a validation error exists."""
        return self.validation is not None or self.beta_star is not None

    def interpolation_gap(self) -> float:
        """`min_beta |X beta - y|_2 / |y|_2`: 0, up to rounding, iff some beta fits every example. Concrete data only."""
        X, y = np.asarray(self.inputs, np.float64), np.asarray(self.targets, np.float64)
        scale = float(np.linalg.norm(y))
        if scale == 0:
            return 0.0
        # Rows of unit length: a row with small entries counts as much as the others.
        rows = np.linalg.norm(X, axis=1)
        rows = np.where(rows > 0, rows, 1)
        best = np.linalg.lstsq(X / rows[:, None], y / rows, rcond=None)[0]
        return float(np.linalg.norm(X @ best - y)) / scale

    @property
    def interpolates(self) -> bool:
        """Whether some beta fits every example, up to rounding; assumed of data that are being traced."""
        if not is_concrete((self.inputs, self.targets)) or _remembered_independent(self.inputs):
            return True
        return self.interpolation_gap() <= 50 * float(jnp.finfo(self.dtype).eps) * max(self.inputs.shape) ** 0.5

    def least_loss(self, network: Any) -> float | None:
        """0 if the data can be interpolated, else the loss of least squares; for linear networks, which reach any beta."""
        if not isinstance(network, AbstractLinearNetwork):
            return None
        if self.interpolates:
            return 0.0
        X, y = np.asarray(self.inputs, np.float64), np.asarray(self.targets, np.float64)
        best = np.linalg.lstsq(X, y, rcond=None)[0]
        return self.loss_scale * float(np.mean(np.square(X @ best - y)))

    def require_interpolation(self) -> None:
        """Refuse a system without an interpolating solution, on which the bias theorem says nothing.

        **Raises:** `ValueError` that says how far from solvable the system is and what still holds.
        """
        if not self.interpolates:
            raise ValueError(
                f"no beta satisfies X beta = y: the best fit leaves a relative residual of {self.interpolation_gap():.2e} (n = {self.n}, d = {self.d}). "
                "The bias theorem is about interpolating solutions, so there is none to select. What still holds: simulate() and its "
                "loss, the law of log alpha, and at any time t select(problem with y = X beta_t, log_alpha_t) = beta_t. To get an "
                "interpolating problem use more features than examples, drop contradictory rows, or replace y by its fit"
            )

    def observables(self, network: Any) -> dict[str, Callable[[Any], Array]]:
        """`validation_error`, where it exists; of a network without a `beta` only on a validation set."""
        linear = isinstance(network, AbstractLinearNetwork)
        exists = self.measures_validation if linear else self.validation is not None
        return {"validation_error": _ValidationError(self)} if exists else {}

    def units(self) -> dict[str, str]:
        """Units of the observables."""
        return {"validation_error": "target^2" if self.validation is not None or self.covariance is not None else "(target / input)^2"}


class _ValidationError(eqx.Module):
    problem: SparseRegression

    def __call__(self, network: Any) -> Array:
        if isinstance(network, AbstractLinearNetwork):
            return self.problem.validation_error(network.beta)
        inputs, targets = self.problem.validation
        return jnp.mean(jnp.square(evaluate(network, inputs) - targets))


_INDEPENDENT: dict[int, tuple[weakref.ref, bool]] = {}


def _remembered_independent(inputs: Array) -> bool:
    """`_independent_rows`, asked once of each array, which cannot change: on 1,000 x 10,000 inputs it takes as long as five steps of 64 seeds."""
    known = _INDEPENDENT.get(id(inputs))
    if known is None or known[0]() is not inputs:
        forget = weakref.ref(inputs, lambda _, key=id(inputs): _INDEPENDENT.pop(key, None))
        known = _INDEPENDENT[id(inputs)] = forget, _independent_rows(np.asarray(inputs, np.float64))
    return known[1]


def _independent_rows(X: np.ndarray) -> bool:
    """Whether the rows are clearly independent: any targets can be fitted then. Far cheaper than a least-squares fit."""
    if X.shape[0] > X.shape[1]:
        return False
    rows = np.linalg.norm(X, axis=1)
    if rows.min() == 0:
        return False
    unit = X / rows[:, None]
    try:
        return bool(np.diagonal(np.linalg.cholesky(unit @ unit.T)).min() > 1e-3)
    except np.linalg.LinAlgError:
        return False


def _check_covariance(covariance: Array) -> None:
    if not is_concrete(covariance):
        return
    matrix = np.asarray(covariance, np.float64)
    scale = np.abs(matrix).max()
    if not np.allclose(matrix, matrix.T, atol=1e-6 * scale) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ValueError("`covariance` must be symmetric and positive definite")
