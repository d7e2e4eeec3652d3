"""Ill-conditioned data: raw units, Hilbert-like designs, duplicated rows and columns.

The ground truths are exact: rational arithmetic on the numbers that the floats are, and
Newton's method in 60 decimal digits. Solutions are judged by their backward error, and
against the exact ones by the condition number times a unit of rounding.
"""

import decimal
from decimal import Decimal
from fractions import Fraction

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from hypothesis import strategies as st
from sklearn import datasets

import sgfbias as sgf
from sgfbias.diagonal.rows import backward_error
from sgfbias.diagonal.theory.selection import select_many

EPS = 2.0**-52


def raw(name, n):
    return getattr(datasets, f"load_{name}")(return_X_y=True)[0][:n]


def hilbert(n, d):
    return 1 / (np.arange(n)[:, None] + np.arange(d)[None] + 1.0)


def condition(X):
    """Of X with its rows scaled to unit length."""
    return np.linalg.cond(X / np.linalg.norm(X, axis=1, keepdims=True))


def targets(X, kind):
    if kind == "arbitrary":
        return np.arange(len(X)) + 0.0
    rng = np.random.default_rng(3)
    return X @ (rng.normal(size=X.shape[1]) * (rng.random(X.shape[1]) < 0.3))


RAW = [("breast_cancer", 10), ("breast_cancer", 25), ("wine", 8), ("diabetes", 8), ("digits", 30)]
ILL = [raw(*which) for which in RAW] + [hilbert(5, 10), hilbert(8, 20), hilbert(12, 30)]
FAST = ("breast_cancer-25-fitted", "hilbert-12-arbitrary")
IDS = [f"{name}-{n}" for name, n in RAW] + ["hilbert-5", "hilbert-8", "hilbert-12"]


# Every shape is compiled anew, so most are left to the slow tests and a release.
CASES = [
    pytest.param(
        X,
        kind,
        id=f"{name}-{kind}",
        marks=() if f"{name}-{kind}" in FAST else pytest.mark.slow(cases=3),
    )
    for X, name in zip(ILL, IDS, strict=True)
    for kind in ("arbitrary", "fitted")
]


@pytest.mark.slow
@pytest.mark.parametrize(("X", "kind"), CASES)
def test_data_in_raw_units_and_hilbert_like_designs_are_solved_to_rounding(X, kind):
    problem = sgf.SparseRegression(X, targets(X, kind))
    assert problem.interpolates
    log_alpha = jnp.array([2.0, -1.0, -5.0, -20.0, -100.0])
    for value in log_alpha:
        chosen = sgf.select(problem, value)
        assert bool(chosen.converged)
        assert float(chosen.feasibility) < 3e-13
        assert float(chosen.stationarity) < 1e-14
        assert float(chosen.duality_gap) < 1e-12
    many = select_many(problem, jnp.broadcast_to(log_alpha[:, None], (5, problem.d)))
    assert bool(many.converged.all())
    deep = sgf.select(problem, -1.0, depth=3)
    assert bool(deep.converged)
    assert float(deep.duality_gap) < 1e-12
    smallest = [sgf.minimum_l1(problem), sgf.minimum_l2(problem)]
    for beta in smallest:
        assert backward_error(problem.X, problem.y, beta) < 1e-13
    np.testing.assert_allclose(
        jnp.abs(sgf.select(problem, -300.0).beta).sum(), jnp.abs(smallest[0]).sum(), rtol=1e-2
    )
    # The norm of any other solution is larger.
    assert float(jnp.linalg.norm(smallest[1])) <= float(jnp.linalg.norm(smallest[0]))


@pytest.mark.slow
@pytest.mark.parametrize("X", [ILL[0], ILL[2], ILL[5], ILL[7]], ids=["cancer", "wine", "h5", "h12"])
def test_float32_data_reach_the_rounding_of_float32(X):
    X = X.astype(np.float32)
    problem = sgf.SparseRegression(X, targets(X, "arbitrary").astype(np.float32))
    for value in (2.0, -1.0, -5.0, -20.0):
        chosen = sgf.select(problem, value)
        assert chosen.beta.dtype == jnp.float32
        assert bool(chosen.converged)
        assert float(chosen.stationarity) < 1e-5


def solve_exactly(A, b):
    """Gaussian elimination with the largest pivot, in the arithmetic of the entries."""
    rows = [[*row, value] for row, value in zip(A, b, strict=True)]
    n = len(rows)
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [a - factor * c for a, c in zip(rows[i], rows[k], strict=True)]
    x = [rows[k][n] for k in range(n)]
    for k in reversed(range(n)):
        x[k] = (x[k] - sum(rows[k][j] * x[j] for j in range(k + 1, n))) / rows[k][k]
    return x


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), start=type(a[0])(0))


SMALL = [raw("breast_cancer", 5), raw("wine", 5), hilbert(4, 9), hilbert(6, 12)]


@pytest.mark.parametrize("X", SMALL, ids=["cancer", "wine", "hilbert-4", "hilbert-6"])
def test_smallest_norms_against_rational_arithmetic(X):
    y = targets(X, "arbitrary")
    problem = sgf.SparseRegression(X, y)
    exact_X = [[Fraction(value) for value in row] for row in X.tolist()]
    exact_y = [Fraction(value) for value in y.tolist()]
    gram = [[dot(a, b) for b in exact_X] for a in exact_X]
    nu = solve_exactly(gram, exact_y)
    least = np.array([float(dot(column, nu)) for column in zip(*exact_X, strict=True)])
    error = np.linalg.norm(sgf.minimum_l2(problem) - least) / np.linalg.norm(least)
    assert error < 20 * condition(X) * EPS

    # The support of the l1 solution is a basis. Its exact solution is optimal, as its
    # exact multipliers show, and the rounded one is near it.
    beta = np.asarray(sgf.minimum_l1(problem))
    support = np.flatnonzero(beta)
    assert len(support) == len(X)
    basis = [[row[j] for j in support] for row in exact_X]
    exact = solve_exactly(basis, exact_y)
    assert all((value > 0) == (beta[j] > 0) for value, j in zip(exact, support, strict=True))
    signs = [Fraction(int(np.sign(beta[j]))) for j in support]
    nu = solve_exactly([list(column) for column in zip(*basis, strict=True)], signs)
    assert all(abs(dot(column, nu)) <= 1 for column in zip(*exact_X, strict=True))
    exact = np.array([float(value) for value in exact])
    error = np.linalg.norm(beta[support] - exact) / np.linalg.norm(exact)
    assert error < 20 * condition(X[:, support]) * EPS


def decimal_selection(X, y, log_alpha, multipliers):
    """`2 alpha^2 sinh(4 X^T nu)` with `X beta = y`, by Newton's method in 60 digits."""
    with decimal.localcontext(prec=60):
        rows = [[Decimal(value) for value in row] for row in X.tolist()]
        columns = list(zip(*rows, strict=True))
        goal = [Decimal(value) for value in y.tolist()]
        nu = [Decimal(value) for value in np.asarray(multipliers).tolist()]
        scale = (2 * Decimal(log_alpha)).exp()
        for _ in range(30):
            grown = [(4 * dot(column, nu)).exp() for column in columns]
            beta = [scale * (g - 1 / g) for g in grown]
            xi = [scale * (g + 1 / g) for g in grown]
            rest = [dot(row, beta) - value for row, value in zip(rows, goal, strict=True)]
            hessian = [
                [4 * sum(a * b * x for a, b, x in zip(one, two, xi, strict=True)) for two in rows]
                for one in rows
            ]
            step = solve_exactly(hessian, rest)
            nu = [a - b for a, b in zip(nu, step, strict=True)]
            if max(map(abs, rest)) < Decimal("1e-40"):
                return np.array([float(value) for value in beta])
    raise AssertionError("Newton's method has not converged")


@pytest.mark.parametrize("log_alpha", [0.0, -2.0, -8.0])
@pytest.mark.parametrize("X", SMALL, ids=["cancer", "wine", "hilbert-4", "hilbert-6"])
def test_selected_solution_against_sixty_digits(X, log_alpha):
    y = targets(X, "arbitrary")
    chosen = sgf.select(sgf.SparseRegression(X, y), log_alpha)
    exact = decimal_selection(X, y, log_alpha, chosen.multipliers)
    error = np.linalg.norm(chosen.beta - exact) / np.linalg.norm(exact)
    assert error < 100 * condition(X) * EPS


@pytest.mark.slow
def test_duplicated_columns_share_and_duplicated_rows_change_nothing():
    X, wide = np.random.default_rng(0).normal(size=(5, 20)), hilbert(5, 10)
    y = np.arange(5.0)
    for design in (X, wide):
        twice = np.hstack([design, design])
        both = sgf.select(sgf.SparseRegression(twice, y), -2.0).beta
        half = design.shape[1]
        # Of two equal columns each does half of the work: alpha^2 counts twice.
        alone = sgf.select(sgf.SparseRegression(design, y), -2.0 + np.log(2) / 2).beta
        np.testing.assert_allclose(both[:half], both[half:], rtol=1e-9)
        error = 100 * condition(design) * EPS * float(jnp.abs(alone).max())
        np.testing.assert_allclose(both[:half] + both[half:], alone, atol=error, rtol=0)
        rows = sgf.SparseRegression(np.vstack([design, design[:3]]), np.append(y, y[:3]))
        more = sgf.select(rows, -2.0 + np.log(2) / 2)
        assert bool(more.converged)
        np.testing.assert_allclose(more.beta, alone, atol=error, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_of_examples_and_targets_do_not_matter(scale):
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=5, d=20, sparsity=3)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    rows = np.array([1, scale, 1, 1 / scale, 1])
    other = sgf.SparseRegression(X * rows[:, None], y * rows)
    small = sgf.SparseRegression(X, y * scale)
    for solve in (sgf.minimum_l1, sgf.minimum_l2, lambda p: sgf.select(p, -3.0).beta):
        np.testing.assert_allclose(solve(other), solve(problem), rtol=1e-7, atol=1e-12)
    for solve in (sgf.minimum_l1, sgf.minimum_l2):
        np.testing.assert_allclose(solve(small), scale * solve(problem), rtol=1e-7)


def test_what_has_no_solution_is_refused_also_if_an_enormous_beta_would_hide_it():
    rng = np.random.default_rng(0)
    powers = np.linspace(0, 1, 200)[:, None] ** np.arange(20)[None]  # condition 1e15
    assert condition(powers) > 1e13
    for X, y in (
        (np.vstack([hilbert(5, 10), hilbert(5, 10)[:1]]), np.arange(6.0) + 1),
        (powers, rng.normal(size=200)),
        (np.zeros((2, 3)), np.ones(2)),
    ):
        problem = sgf.SparseRegression(X, y)
        assert not problem.interpolates
        with pytest.raises(ValueError, match="no beta satisfies X beta = y"):
            sgf.select(problem, -1.0)
    assert sgf.SparseRegression(powers, powers @ rng.normal(size=20)).interpolates
    nothing = sgf.select(sgf.SparseRegression(np.zeros((2, 3)), np.zeros(2)), -1.0)
    assert bool(nothing.converged)
    assert not np.any(nothing.beta)


@pytest.mark.slow
def test_land_and_curve_agree_with_select_at_nearly_repeated_examples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(10, 25))
    X[5:] = X[:5] + 1e-5 * rng.normal(size=(5, 25))
    problem = sgf.SparseRegression(X, targets(X, "fitted"))
    assert condition(X) > 1e5
    start, step_size = network(), 0.05
    flow = sgf.StochasticGradientFlow(step_size)
    keys = jax.random.split(jax.random.key(0), 3)
    runs = sgf.simulate(flow, start, problem, t1=50.0, keys=keys)
    assert not np.any(runs.diverged)
    landed = sgf.land(runs)
    assert bool(landed.selection.converged.all())
    assert np.all(np.isfinite(landed.error))
    for k in range(3):
        again = sgf.select(problem, landed.log_alpha[k])
        np.testing.assert_allclose(landed.beta[k], again.beta, rtol=1e-8, atol=1e-10)
    S = np.linspace(0.0, 1.0, 5) * float(runs.final["loss_integral"].max())
    curve = sgf.solution_curve(problem, jnp.log(0.1), step_size=step_size, integrals=S)
    for k in (0, 4):
        there = jnp.log(0.1) - 2 * step_size * problem.h * S[k]
        np.testing.assert_allclose(
            curve.beta[k], sgf.select(problem, there).beta, rtol=1e-8, atol=1e-10
        )


@pytest.mark.slow
def test_derivatives_at_ill_conditioned_data():
    """In log alpha and in y, against central differences."""
    X = raw("breast_cancer", 10)
    problem = sgf.SparseRegression(X, targets(X, "fitted"))

    def size(log_alpha, y):
        return jnp.sum(sgf.select(sgf.SparseRegression(X, y), log_alpha).beta ** 2)

    for argument in (0, 1):
        place = (jnp.asarray(-1.0), problem.y)
        along = jnp.ones_like(place[argument])
        slope = float(jnp.vdot(jax.grad(size, argument)(*place), along))
        h = 1e-4
        shifted = [
            size(*(p + s * h * along if k == argument else p for k, p in enumerate(place)))
            for s in (1, -1)
        ]
        np.testing.assert_allclose(slope, (shifted[0] - shifted[1]) / (2 * h), rtol=1e-5)


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(2, 8),
    st.integers(0, 2**32 - 1),
    st.floats(0, 13),
    st.floats(0, 3),
    st.floats(-30, 1),
)
def test_any_spectrum_and_any_units_are_solved(n, seed, digits, spread, log_alpha):
    """The condition number is up to 1e13, and units differ by factors of up to 1e6."""
    rng = np.random.default_rng(seed)
    d = 12
    left, right = (np.linalg.qr(rng.normal(size=(k, n)))[0] for k in (n, d))
    X = left * np.logspace(0, -digits, n) @ right.T * 10 ** rng.uniform(-spread, spread, d)
    problem = sgf.SparseRegression(X, X @ (rng.normal(size=d) * (rng.random(d) < 0.5)))
    chosen = sgf.select(problem, log_alpha)
    assert bool(chosen.converged)
    assert float(chosen.stationarity) < 1e-12
    assert float(chosen.duality_gap) < 1e-10
