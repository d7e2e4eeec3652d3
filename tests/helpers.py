"""Small problems and independent NumPy versions of the formulas, shared by the tests."""

import jax
import jax.numpy as jnp
import numpy as np

import sgfbias as sgf
from sgfbias.core.claim import broken


def small_problem(seed=0, n=10, d=25, sparsity=3, **kwargs):
    return sgf.SparseRegression.sample(jax.random.key(seed), n=n, d=d, sparsity=sparsity, dtype=jnp.float64, **kwargs)


def network(alpha=0.1, d=25):
    return sgf.DiagonalNetwork.init(alpha=alpha, d=d, dtype=jnp.float64)


def outside_row_space(X, v):
    """`|(I - P) v|` with P the projector on the row space of X."""
    _, s, rows = np.linalg.svd(np.asarray(X), full_matrices=False)
    rows = rows[s > 1e-12 * s[0]]
    v = np.asarray(v)
    return np.linalg.norm(v - v @ rows.T @ rows, axis=-1)


def slope(widths, errors):
    """Least-squares slope of log error against log width."""
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


def rms(v):
    return float(np.sqrt(np.mean(np.square(np.asarray(v)))))


def same(a, b):
    """Equal bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def mutated(dataset, name, change):
    """A copy of a study's dataset with one variable changed."""
    copy = dataset.copy(deep=True)
    copy[name].values = change(copy[name].values)
    return copy


def failed(study, dataset):
    """Statements of the claims that must hold and fail."""
    return " ".join(claim.statement for claim in broken(study.claims(dataset)))
