"""Maximal margins of linear models: against solutions by hand, against each other, and
against the bounds that the multipliers prove.
"""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin

PAIR = np.array([[np.cos(np.pi / 8), np.sin(np.pi / 8)], [np.cos(np.pi / 20), np.sin(np.pi / 20)]])


def data(n, d, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.where(np.arange(n) % 2, -1.0, 1.0) if classes == 2 else np.arange(n) % classes
    return X, y


def test_the_pair_of_qian():
    """Two support vectors: the weights are the solution of `X w = 1`."""
    svm = margin.max_margin(PAIR, np.ones(2))
    np.testing.assert_allclose(svm.weights, [0.9691731, 0.27333508], atol=1e-8)
    np.testing.assert_allclose(svm.weights, np.linalg.solve(PAIR, np.ones(2)), rtol=1e-13)
    np.testing.assert_allclose(svm.multipliers, 0.50700428, atol=1e-8)
    np.testing.assert_allclose(svm.margin, 0.99306846, atol=1e-8)
    assert abs(svm.gap) < 1e-12
    largest = margin.max_margin(PAIR, np.ones(2), norm="linf")
    np.testing.assert_allclose(largest.weights * largest.margin, [1, 1], rtol=1e-12)
    np.testing.assert_allclose(largest.margin, 1.14412281, atol=1e-8)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "metric"])
@pytest.mark.parametrize("classes", [2, 3])
def test_duality_feasibility_and_complementarity(norm, classes):
    X, y = data(12, 20, classes)
    metric = np.random.default_rng(1).uniform(0.1, 10, size=20)
    found = margin.max_margin(X, y, norm=metric if norm == "metric" else norm)
    if classes == 2:
        q = y * (X @ found.weights)
    else:
        f = X @ found.weights.T
        q = np.array([[f[i, y[i]] - f[i, j] for j in range(3) if j != y[i]] for i in range(12)])
    assert q.shape == found.multipliers.shape
    assert np.all(found.multipliers >= 0)
    np.testing.assert_allclose(q.min(), 1, rtol=1e-12)
    assert abs(found.gap) < 1e-12
    assert abs(np.sum(found.multipliers * (q - 1))) < 1e-11 * found.multipliers.sum()
    power = 1 if norm in ("l1", "linf") else 2
    np.testing.assert_allclose(found.multipliers.sum(), found.margin**-power, rtol=1e-10)
    # No other classifier has a larger margin.
    rng = np.random.default_rng(2)
    sizes = {
        "l2": np.linalg.norm,
        "l1": lambda w: np.abs(w).sum(),
        "linf": lambda w: np.abs(w).max(),
        "metric": lambda w: np.sqrt(np.sum(metric * w**2)),
    }
    for _ in range(100):
        other = found.weights + 0.1 * rng.normal(size=found.weights.shape)
        f = X @ other.T if classes == 3 else y * (X @ other)
        least = (
            f.min()
            if classes == 2
            else min(f[i, y[i]] - f[i, j] for i in range(12) for j in range(3) if j != y[i])
        )
        assert least / sizes[norm](other) < found.margin


def test_the_margin_in_linf_is_the_absolute_sum_of_the_mixed_examples():
    """Duality: `max_w min_i q_i / |w|_inf = min_lambda |Z^T lambda|_1`."""
    X, y = data(6, 9, seed=3)
    found = margin.max_margin(X, y, norm="linf")
    mixture = found.multipliers / found.multipliers.sum()
    np.testing.assert_allclose(np.abs((y * mixture) @ X).sum(), found.margin, rtol=1e-12)


def test_least_distance_at_size():
    X, y = data(400, 600)
    found = margin.max_margin(X, y)
    assert abs(found.gap) < 1e-12
    assert (y * (X @ found.weights)).min() > 1 - 1e-12


def test_two_classes_as_labels_are_the_binary_problem():
    """With labels 0 and 1 the weights are w/2 and -w/2, of norm |w| / sqrt(2)."""
    X, y = data(8, 12, seed=4)
    binary, labels = margin.max_margin(X, y), margin.max_margin(X, (y > 0).astype(int))
    np.testing.assert_allclose(labels.weights[1], binary.weights / 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(labels.margin, binary.margin * np.sqrt(2), rtol=1e-12)


def test_what_cannot_be_solved_is_refused():
    X, y = data(4, 6)
    twice = np.concatenate([X[:1], X[:1]])
    for norm in ("l2", "l1", "linf"):
        with pytest.raises(ValueError, match="the data are not separable"):
            margin.max_margin(twice, [1, -1], norm=norm)
    with pytest.raises(ValueError, match="must be 'l2', 'l1', 'linf' or a metric"):
        margin.max_margin(X, y, norm="l3")
    with pytest.raises(ValueError, match=r"positive numbers of shape \(6,\)"):
        margin.max_margin(X, y, norm=np.zeros(6))
    with pytest.raises(ValueError, match="labels -1 and 1, or class labels from 0"):
        margin.max_margin(X, [0.5, 1, 2, 3])
    with pytest.raises(ValueError, match=r"`X` must have shape \(n, d\)"):
        margin.max_margin(X[0], y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        margin.max_margin(X * np.nan, y)


def test_a_certificate_in_linf_of_many_weights_takes_little_memory():
    """A dense matrix of the linear program would take 8 (2 d) (d + n) bytes, 64 MB."""
    d = 2000
    X, y = data(3, d)
    problem = sgf.Problem(jnp.asarray(X), jnp.asarray(y), loss=margin.ExponentialLoss())
    best = margin.max_margin(X, y, norm="linf")
    tracemalloc.start()
    found = margin.certify(margin.Linear(best.weights), problem, geometry="linf")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8e6
    assert abs(found.stationarity) < 1e-9
