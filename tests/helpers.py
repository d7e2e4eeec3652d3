"""Small problems and independent NumPy versions of formulas that the tests share."""

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import sgfbias as sgf
from sgfbias.study.claim import broken


def small_problem(seed=0, n=10, d=25, sparsity=3, **kwargs):
    return sgf.SparseRegression.sample(
        jax.random.key(seed), n=n, d=d, sparsity=sparsity, dtype=jnp.float64, **kwargs
    )


def network(alpha=0.1, d=25):
    return sgf.DiagonalNetwork.init(alpha=alpha, d=d, dtype=jnp.float64)


def outside_row_space(X, v):
    """`|(I - P) v|`, where P is the projector onto the row space of X."""
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
    """Assert that two PyTrees are equal bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def mutated(dataset, name, change):
    """A copy of a study's dataset with one variable changed."""
    copy = dataset.copy(deep=True)
    copy[name].values = change(copy[name].values)
    return copy


def failed(study, dataset):
    """The statements of the claims that must hold, but fail, as one text."""
    return " ".join(claim.statement for claim in broken(study.claims(dataset)))


def made_up(config, variables, coordinates=None, **attrs):
    """A made-up dataset of a study, on which its claims can be judged.

    `variables` and `coordinates` map a name to (dimensions, values).
    """
    return xr.Dataset(
        variables,
        coordinates or {},
        {"config": json.dumps(dataclasses.asdict(config), default=str), **attrs},
    )


def calls_at_once(function, *arguments):
    """Pairs of calls of LAPACK in the compiled `function`, neither of which needs the
    other. Two with batches can then wait forever on two cores (JAX 0.10.1).
    """
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = []
    for computation in re.split(r"\n(?=[%E][^\n]*\{\n)", text):
        lines = re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", computation, re.MULTILINE)
        reads = {name: set(re.findall(r"%([\w.\-]+)", rest)) for name, rest in lines}
        calls = [name for name, rest in lines if 'custom_call_target="lapack' in rest]
        for one, other in itertools.combinations(calls, 2):
            if one not in _behind(other, reads) and other not in _behind(one, reads):
                found.append((one, other))
    return found


def _behind(name, reads):
    """All that a value is computed from."""
    seen, left = set(), [name]
    while left:
        new = reads.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return seen
