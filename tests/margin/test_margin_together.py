"""Several runs at once, derivatives of a run, and single precision: against single
runs, difference quotients, and double precision.
"""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin

PAIR = np.array([[np.cos(np.pi / 8), np.sin(np.pi / 8)], [np.cos(np.pi / 20), np.sin(np.pi / 20)]])
START = jnp.asarray([0.3, -0.2])
RECORD = sgf.Record(dict.fromkeys(("nu", "gap_l2")), [2.0, 5.0])


def problem(X=PAIR, dtype=None):
    X = jnp.asarray(X, dtype)
    return sgf.Problem(X, jnp.ones(2, X.dtype), loss=margin.ExponentialLoss())


def follow(conditioner=None, start=START, data=None, **options):
    flow = margin.MarginFlow(conditioner, rtol=1e-8, atol=1e-10)
    return sgf.simulate(
        flow, margin.Linear(start), problem() if data is None else data, t1=5.0, record=RECORD,
        solver=dfx.Tsit5(), **options,
    )  # fmt: skip


@pytest.mark.slow
def test_several_eps_of_adagrad_in_one_program():
    def end(eps):
        run = follow(margin.AdaGrad(eps))
        return run.networks.w, run["gap_l2"], run.final["conditioner"]

    eps = jnp.asarray([1e-8, 1e-3, 1.0])
    together = jax.jit(jax.vmap(end))(eps)
    for k in range(3):
        for found, wanted in zip(together, end(eps[k]), strict=True):
            np.testing.assert_allclose(found[k], wanted, rtol=1e-6)
    # More eps is more like gradient flow, so that the directions differ.
    directions = together[0] / jnp.linalg.norm(together[0], axis=1, keepdims=True)
    assert float(jnp.abs(jnp.diff(directions, axis=0)).max(axis=1).min()) > 1e-3


@pytest.mark.slow
def test_several_starts():
    """Every seed has the weights that its key draws, as a run from there alone."""

    def drawn(key):
        return margin.Linear(0.1 * jax.random.normal(key, (2,)))

    keys = sgf.seeds(0, 3)
    flow = margin.MarginFlow(rtol=1e-8, atol=1e-10)
    runs = sgf.simulate(
        flow, sgf.Drawn(drawn), problem(), t1=5.0, record=RECORD, solver=dfx.Tsit5(), keys=keys
    )
    assert runs["nu"].shape == (3, 2)
    assert runs.final["conditioner"].shape == (3, 2)
    np.testing.assert_allclose(runs["nu"], [[2, 5]] * 3, rtol=1e-6)
    for k in range(3):
        alone = follow(start=runs.network.w[k])
        np.testing.assert_allclose(runs.networks.w[k], alone.networks.w, rtol=1e-6)
    assert float(jnp.abs(jnp.diff(runs.network.w, axis=0)).min()) > 1e-3
    with pytest.raises(ValueError, match="`certify` takes a single run"):
        margin.certify(runs)


@pytest.mark.slow
def test_the_end_is_differentiable_in_the_start_and_in_the_data():
    """Forward mode through the solver against a difference quotient, along a direction
    in the initial weights and along one in the examples.
    """

    def end(s):
        X = jnp.asarray(PAIR) + s[1] * jnp.asarray([[0.5, -1.0], [0.3, 0.2]])
        start = START + s[0] * jnp.asarray([1.0, 0.5])
        return follow(start=start, data=problem(X), adjoint=dfx.ForwardMode()).networks.w

    slope = jax.jacfwd(end)(jnp.zeros(2))
    for k in range(2):
        step = 1e-4 * jnp.eye(2)[k]
        difference = (end(step) - end(-step)) / 2e-4
        np.testing.assert_allclose(slope[:, k], difference, rtol=1e-4, atol=1e-6)
        assert float(jnp.abs(slope[:, k]).max()) > 1e-2


@pytest.mark.slow
def test_single_precision_is_double_precision_up_to_its_rounding():
    data, start = problem(dtype=jnp.float32), START.astype(jnp.float32)
    flow = margin.MarginFlow(margin.AdaGrad(1e-3), rtol=1e-5, atol=1e-6)
    single = sgf.simulate(
        flow, margin.Linear(start), data, t1=5.0, record=RECORD, solver=dfx.Tsit5()
    )
    assert single.networks.w.dtype == jnp.float32
    double = follow(margin.AdaGrad(1e-3))
    np.testing.assert_allclose(single.networks.w, double.networks.w, rtol=2e-4)
    np.testing.assert_allclose(single["nu"], double["nu"], rtol=1e-4)
    for name in ("conditioner", "margin_l2", "log_time", "gap_l2"):
        np.testing.assert_allclose(single.final[name], double.final[name], rtol=1e-3, atol=1e-6)
