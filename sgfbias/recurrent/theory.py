"""What is known in closed form about gradient flow on the population risk.

The network is `h_j = C A^j B`, the error `e_j = h_j - h*_j`, and the risk
`L = 1/2 sum_{j<k} |e_j|^2`. Statements without a source are derived in the tests.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_whole, check_positive
from sgfbias.recurrent.linear import LinearRNN, check_linear
from sgfbias.recurrent.teacher import as_teacher, check_fits, first_lags


def conserved(network: LinearRNN) -> Array:
    """`Q = A A^T - A^T A + B B^T - C^T C`, (d, d), which gradient flow conserves.

    This holds for any teacher, any number of inputs and outputs, and any weights of the
    lags, as the risk depends on `C A^j B` only: a change of the basis of the state
    leaves it unchanged. Descent changes Q in proportion to its step size.

    **Raises:** `ValueError` for a network that is not a `LinearRNN`.
    """
    check_linear(network)
    A, B, C = network.A, network.B, network.C
    return A @ A.T - A.T @ A + B @ B.T - C.T @ C


def norm_rates(network: LinearRNN, teacher: Any, length: int) -> tuple[Array, Array]:
    """The rates of `|A|_F^2` and of `|B|_F^2` along gradient flow on the risk.

    `d|A|^2/dt = -2 sum_j j <e_j, h_j>` and `d|B|^2/dt = d|C|^2/dt =
    -2 sum_j <e_j, h_j>`. With a teacher without memory the first is never positive, so
    `|h_j| <= |C| |B| |A(0)|^j` for ever: a small transition at the start forces
    geometric forgetting.

    **Arguments:** those of `PopulationRisk`, with white inputs and the last output.

    **Raises:** `ValueError` for a teacher or length that does not fit.
    """
    check_linear(network)
    teacher = as_teacher(teacher)
    check_fits(network, teacher)
    length = as_whole(length, "length")
    h = network.impulse_response(length)
    products = jnp.sum((h - first_lags(teacher, length)) * h, axis=(1, 2))
    lags = jnp.arange(length, dtype=products.dtype)
    return -2 * jnp.sum(lags * products), -2 * jnp.sum(products)


def sufficient_length(order: int) -> int:
    """`2 m + 1`: the length at which zero risk means perfect extrapolation, for a
    teacher `h*_j = sum_i p_i lambda_i^j` of m distinct atoms with positive weights and
    a student with `A = A^T`, `C = B^T`.

    The student is then a positive measure of its eigenvalues, too, and its integral of
    `prod (x - lambda_i)^2`, of degree 2 m, is 0. A teacher without memory has one atom,
    at 0. A length of 2 m does not suffice, see `two_lag_interpolator`.

    **Arguments:**

    - `order`: m, at least 1.

    **Raises:** `ValueError` for another number.
    """
    return 2 * as_whole(order, "order") + 1


def bad_interpolator(
    length: int, *, state: int | None = None, scale: Any = 1.0, gain: Any = 1.0
) -> LinearRNN:
    """A network of zero risk that does not extrapolate: a scaled cyclic shift.

    `A = c P` with the shift P of d states, `B = g e_1`, `C = B^T`. Then `h_j = g^2 c^j`
    where d divides j, and 0 elsewhere. With a teacher without memory, `w = g^2`, the
    risk at any length up to d is 0 with zero gradient, and the error at lag d is
    `w c^d`.

    **Arguments:**

    - `length`: the length of training.
    - `state`: d, at least `length`. Default `length`.
    - `scale`: c, positive.
    - `gain`: g, positive, the root of w.

    **Raises:** `ValueError` for fewer states than `length`.
    """
    length = as_whole(length, "length")
    d = length if state is None else as_whole(state, "state")
    if d < length:
        raise ValueError(
            f"a cyclic shift of state = {d} states comes back after {d} lags, within the length "
            f"{length}: take state={length} or more"
        )
    c, g = as_float(scale, "scale"), as_float(gain, "gain")
    check_positive(c, "scale")
    check_positive(g, "gain")
    B = np.zeros((d, 1))
    B[0] = g
    return LinearRNN(c * np.roll(np.eye(d), 1, axis=0), B, B.T)


def two_lag_interpolator(w: Any = 1.0) -> LinearRNN:
    """`A = diag(1, -1)`, `B = C^T = sqrt(w/2) (1, 1)`, so `h = w, 0, w, 0, ...`.

    It is symmetric and has zero risk at length 2 for the teacher w without memory, of
    one atom, but does not extrapolate: a length of 2 m does not suffice.

    **Raises:** `ValueError` for a w that is not positive.
    """
    w = as_float(w, "w")
    check_positive(w, "w")
    B = np.full((2, 1), math.sqrt(w / 2))
    return LinearRNN(np.diag([1.0, -1.0]), B, B.T)


def late_error(w: Any, time: Any) -> Array:
    """`e_2 = 1 / (2 w t)`: how the error at lag 2 falls at late times from a symmetric
    start, for a teacher w > 0 without memory and a length of 3 or more.

    The risk is then `e_2^2 / 2 = 1 / (8 w^2 t^2)`. With `s = |A u|^2` for the direction
    u of B, the flow has `ds/dt = -2 w^2 s^2`, up to a relative correction of order
    `|A|^2`. So the convergence is algebraic, and perfect extrapolation is a limit that
    no finite time reaches.

    **Raises:** `ValueError` for numbers that are not positive.
    """
    check_positive(w, "w")
    check_positive(time, "time")
    return 1 / (2 * jnp.asarray(w) * jnp.asarray(time))


def scalar_rates(a: Array, b: Array, w: Any, length: int) -> tuple[Array, Array]:
    """The rates of a and b along the flow from `A = a I`, `B = C^T = b u`, for a
    teacher w without memory.

    `da/dt = -b^4 sum_{1<=j<k} j a^(2j-1)` is the rate of the component of A along u
    u^T; the rest of A stays. `db/dt = -b [(b^2 - w) + b^2 sum_{1<=j<k} a^(2j)]`.

    **Arguments:**

    - `a`, `b`: numbers.
    - `w`: the teacher.
    - `length`: k, the length of the sequences.
    """
    a = jnp.asarray(a, jnp.result_type(float))
    j = jnp.arange(1, as_whole(length, "length"), dtype=a.dtype)
    powers = jnp.sum(jnp.square(a) ** j)
    slopes = a * jnp.sum(j * jnp.square(a) ** (j - 1))
    return -(b**4) * slopes, -b * ((b**2 - w) + b**2 * powers)
