"""The fused kernel: its random numbers are the engine's, and run by the interpreter its
results agree with the engine's up to float32 rounding.
"""

import dataclasses
import functools
import logging

import diffrax as dfx
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import sgfbias as sgf
from sgfbias.core import fused as choice
from sgfbias.core.brownian import BROWNIAN_STREAM
from sgfbias.core.counter import fair_signs, normals, threefry
from sgfbias.core.record import Record
from sgfbias.core.run import Run
from sgfbias.core.weights import coordinates_for
from sgfbias.diagonal.fused import kernel as fused_kernel
from sgfbias.diagonal.fused.launch import FusedMirror, fused_mirror
from sgfbias.diagonal.fused.random import normal, sign

STEPS = 100
EPS = float(np.finfo(np.float32).eps)
KEYS = sgf.seeds(3, 11)


def problem_of(dtype=jnp.float32, n=10, d=25):
    problem = sgf.SparseRegression.sample(
        jax.random.key(0), n=n, d=d, sparsity=3, dtype=jnp.float32
    )
    return sgf.SparseRegression(
        problem.X.astype(dtype), problem.y.astype(dtype), problem.beta_star.astype(dtype)
    )


def network_of(d=25, alpha=0.1):
    """A network with unequal weights, so that log_ratio is not 0 at the start."""
    plus = alpha * (1 + 0.1 * jnp.cos(jnp.arange(d, dtype=jnp.float32)))
    return sgf.DiagonalNetwork.from_weights(plus, jnp.full(d, alpha, jnp.float32))


def simulated(problem, flow, fused=False, steps=STEPS, keys=KEYS, **options):
    network = network_of(problem.d)
    return sgf.simulate(
        flow, network, problem, keys=keys, steps=steps, record=Record([], 2), fused=fused, **options
    )


def kernel_of(problem, flow, solver=None, keys=KEYS):
    found = fused_mirror(
        network_of(problem.d), flow, problem, solver or dfx.Euler(), keys, interpret=True
    )
    assert isinstance(found, FusedMirror), found
    return found


@jax.jit
def advanced(kernel, y, keys, start, length):
    return kernel(y, keys, start, length)


def state_of(problem, flow, count):
    coordinates = coordinates_for(network_of(problem.d), problem, flow, None)
    one = coordinates.encode(coordinates.network), jnp.zeros((), problem.dtype)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), one)


def reference(problem, flow, keys, dtype):
    """`(c, S, I)` of all seeds after `STEPS` steps, computed in NumPy."""

    def increments(key):
        stream, signed = jax.random.fold_in(key, BROWNIAN_STREAM), flow.increments == "two-point"
        draw = functools.partial(fair_signs, dtype=jnp.float32) if signed else normals
        return jax.vmap(lambda k: draw(stream, k, (problem.n,)))(jnp.arange(STEPS))

    noise = np.asarray(jax.jit(jax.vmap(increments))(keys)).astype(dtype)
    X, y, n = np.asarray(problem.X, dtype), np.asarray(problem.y, dtype), problem.n
    network, gamma = network_of(problem.d), dtype(float(flow.step_size))
    log_alpha, log_ratio = (
        np.asarray(network.log_alpha, dtype),
        np.asarray(network.log_ratio, dtype),
    )
    squares = np.sum(X**2, axis=0)
    c, covariance, integral = (
        np.zeros((len(keys), n), dtype),
        np.zeros(len(keys), dtype),
        np.zeros(len(keys), dtype),
    )
    for k in range(STEPS):
        now = log_alpha - 2 * covariance[:, None] * squares
        r = (2 * np.exp(2 * now) * np.sinh(log_ratio + 4 * c @ X)) @ X.T - y
        loss = np.mean(r**2, axis=1) / 4
        c = c - gamma * r / (2 * n) + np.sqrt(gamma * gamma * loss / n)[:, None] * noise[:, k]
        covariance, integral = covariance + gamma * gamma * loss / n, integral + gamma * loss
    return c, covariance, integral


def test_normals_are_those_of_the_path_on_their_whole_grid():
    # A normal uses the upper 25 of 32 bits. The grid has the 2^14 extreme values of
    # either tail, where 1 - x^2 cancels, and every 32nd of all values.
    grid = (
        jnp.concatenate(
            [2**24 + jnp.arange(2**14), 2**24 - 1 - jnp.arange(2**14), jnp.arange(0, 2**25, 32)]
        ).astype(jnp.uint32)
        << 7
    )
    odd = (jax.lax.bitcast_convert_type(grid, jnp.int32) >> 7) | 1
    exact = np.sqrt(np.float32(2)) * jax.lax.erf_inv(odd.astype(jnp.float32) * jnp.float32(2**-24))
    # A compiler may fuse operations that another one does not.
    for function in (normal, jax.jit(normal)):
        np.testing.assert_allclose(function(grid), exact, rtol=4 * EPS)


@pytest.mark.slow
def test_numbers_are_those_of_the_path():
    key, index = jax.random.key(2), jnp.arange(64, dtype=jnp.uint32)
    own, step = tuple(jax.random.key_data(key)), jnp.full(64, 77, jnp.uint32)
    np.testing.assert_allclose(
        normal(threefry(own, step, index)[0]), normals(key, jnp.int32(77), (64,)), rtol=4 * EPS
    )
    first, second = threefry(own, step, jnp.zeros(64, jnp.uint32))
    signs = sign(jnp.where(index < 32, first, second), jnp.uint32(1) << (index % 32))
    np.testing.assert_array_equal(signs, fair_signs(key, jnp.int32(77), (64,), jnp.float32))


def test_three_parts_hold_24_bits():
    x = jax.random.normal(jax.random.key(0), (1000,), jnp.float32) * jnp.exp(
        20 * jax.random.normal(jax.random.key(1), (1000,), jnp.float32)
    )
    parts = jax.jit(lambda x: fused_kernel.split(x, fused_kernel.rounded_bfloat16))(x)
    np.testing.assert_allclose(
        sum(np.asarray(p, np.float64) for p in parts), np.asarray(x, np.float64), rtol=2.0**-24
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "increments"), [(10, 25, "gaussian"), (10, 25, "two-point"), (40, 100, "gaussian")]
)
def test_kernel_is_eulers_scheme_to_rounding(n, d, increments):
    problem, flow = problem_of(n=n, d=d), sgf.StochasticGradientFlow(0.05, increments=increments)
    keys = sgf.seeds(0, 64)
    exact, single = (reference(problem, flow, keys, dtype) for dtype in (np.float64, np.float32))
    position, integral = advanced(
        kernel_of(problem, flow), state_of(problem, flow, 64), keys, jnp.int32(0), jnp.int32(STEPS)
    )
    fused = (np.asarray(v, np.float64) for v in (position["c"], position["law"].diagonal, integral))
    for ours, theirs, true in zip(fused, single, exact, strict=True):
        # The yardstick is NumPy's rounding error in float32 on the same increments. In
        # every step both computations make errors of a few units in the last place of
        # sums of n and d terms, and the flow transports these errors in the same way.
        # On average a step does not expand them, so neither error exceeds steps x terms
        # x eps.
        rounding = np.max(np.abs(theirs - true))
        assert rounding < STEPS * (n + d) * EPS * np.max(np.abs(true))
        assert np.max(np.abs(ours - true)) < 4 * rounding


@pytest.mark.slow
def test_simulate_with_the_kernel_is_simulate():
    problem, flow = problem_of(), sgf.StochasticGradientFlow(0.1)
    same_runs(problem, flow)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "increments"), [(10, 25, "two-point"), (40, 100, "gaussian")])
def test_simulate_with_the_kernel_is_simulate_in_other_cases(n, d, increments):
    same_runs(problem_of(n=n, d=d), sgf.StochasticGradientFlow(0.05, increments=increments))


def same_runs(problem, flow):
    fused, single = (simulated(problem, flow, fused=f) for f in ("interpret", False))
    for name in ("beta", "log_alpha", "loss_integral"):
        scale = float(np.max(np.abs(single.final[name])))
        np.testing.assert_allclose(
            fused.final[name],
            single.final[name],
            rtol=0,
            atol=STEPS * (problem.n + problem.d) * EPS * scale,
        )
    np.testing.assert_array_equal(fused.status, single.status)
    np.testing.assert_array_equal(fused.times, single.times)


@pytest.mark.parametrize("fault", ["counter", "parts", "masks"])
def test_a_fault_is_far_above_rounding(fault, monkeypatch):
    flow = sgf.StochasticGradientFlow(
        0.1, increments="two-point" if fault == "masks" else "gaussian"
    )
    problem = problem_of()
    kernel = kernel_of(problem, flow)
    y, keys, whole = state_of(problem, flow, 64), sgf.seeds(0, 64), jnp.int32(30)
    right = advanced(kernel, y, keys, jnp.int32(0), whole)
    if fault == "counter":
        wrong = advanced(kernel, y, keys, jnp.int32(1), whole)
    elif fault == "parts":  # as a tensor core would round float32 by itself
        monkeypatch.setattr(fused_kernel, "PAIRS", ((0, 0),))
        wrong = jax.jit(lambda *a: kernel(*a))(y, keys, jnp.int32(0), whole)
    else:
        masks = kernel.data.masks.at[3].set(kernel.data.masks[2])
        wrong = advanced(
            dataclasses.replace(kernel, data=kernel.data._replace(masks=masks)),
            y,
            keys,
            jnp.int32(0),
            whole,
        )
    difference = np.max(np.abs(right[0]["c"] - wrong[0]["c"]))
    assert difference > 100 * 30 * EPS * float(np.max(np.abs(right[0]["c"])))


def test_pieces_and_neighbours_change_nothing():
    problem, flow = problem_of(), sgf.StochasticGradientFlow(0.1)
    kernel = kernel_of(problem, flow)
    keys = sgf.seeds(0, 128)
    y = state_of(problem, flow, 128)
    whole = advanced(kernel, y, keys, jnp.int32(5), jnp.int32(30))
    pieces = y
    for start, length in ((5, 1), (6, 0), (6, 22), (28, 7)):
        pieces = advanced(kernel, pieces, keys, jnp.int32(start), jnp.int32(length))
    helpers.same(whole, pieces)
    half = advanced(
        kernel, jax.tree.map(lambda leaf: leaf[64:], y), keys[64:], jnp.int32(5), jnp.int32(30)
    )
    helpers.same(jax.tree.map(lambda leaf: leaf[64:], whole), half)


@pytest.mark.slow
def test_seeds_stop_where_the_engine_stops_them():
    # 70 seeds are two of the interpreter's tiles, so they run as a group of two.
    problem, flow, keys = problem_of(), sgf.StochasticGradientFlow(0.1), sgf.seeds(0, 70)
    runs = [
        simulated(problem, flow, fused=f, stop=1e-3, keys=keys, steps=1200)
        for f in ("interpret", False)
    ]
    fused, single = runs
    assert np.isfinite(single.stop_time).any()
    np.testing.assert_array_equal(fused.stop_time, single.stop_time)
    np.testing.assert_array_equal(fused.status, single.status)


FLOW = sgf.StochasticGradientFlow
CASES = {
    "float64": dict(problem=problem_of(jnp.float64)),
    "there is no kernel for LogWeights": dict(coordinates="log"),
    "this is GradientFlow": dict(flow=sgf.GradientFlow(dt=0.1)),
    "MeanLossNoise, and the noise is LabelNoise": dict(flow=FLOW(0.1, sgf.LabelNoise(0.5))),
    "solver is Heun": dict(solver=dfx.Heun()),
    "step_size is a schedule": dict(flow=FLOW(lambda k: 0.1 / (1 + k))),
    "order=2": dict(flow=FLOW(0.1, order=2)),
    "brownian_dt": dict(flow=FLOW(0.1, brownian_dt=0.05)),
    "at most 64 examples": dict(problem=problem_of(n=70, d=80)),
    "shared memory": dict(problem=problem_of(n=60, d=700)),
    "keys are of": dict(keys=jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 2)),
}


def run_of(coordinates, flow, problem, solver, keys):
    return Run(flow, coordinates, None, problem, solver, None, None, keys, 2, None)


@pytest.mark.parametrize("reason", CASES)
def test_every_case_that_does_not_apply_says_why(reason, caplog, monkeypatch):
    case = {
        "flow": FLOW(0.1),
        "problem": problem_of(),
        "solver": dfx.Euler(),
        "keys": KEYS,
        "coordinates": None,
    } | CASES[reason]
    coordinates = coordinates_for(
        network_of(case["problem"].d), case["problem"], case["flow"], case["coordinates"]
    )
    given = run_of(coordinates, case["flow"], case["problem"], case["solver"], case["keys"])
    with pytest.raises(ValueError, match=reason):
        choice.choose_fused("interpret", given, plain=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level(logging.INFO, logger="sgfbias"):
        assert choice.choose_fused("auto", given, plain=True) is None
    assert len(caplog.records) == 1
    assert reason in caplog.text


def test_other_refusals():
    problem = problem_of()
    with pytest.raises(ValueError, match="compute capability 9"):
        simulated(problem, FLOW(0.1), fused=True)
    with pytest.raises(ValueError, match="DiagonalWeights"):
        simulated(problem, sgf.StochasticGradientDescent(0.1), fused="interpret")
    with pytest.raises(ValueError, match="stochastic flows"):
        sgf.simulate(sgf.GradientFlow(), network_of(), problem, t1=1.0, fused=True)
    with pytest.raises(ValueError, match="'auto' or 'interpret', but is 'yes'"):
        simulated(problem, FLOW(0.1), fused="yes")
    with pytest.raises(ValueError, match="differentiated"):
        jax.grad(
            lambda gamma: simulated(problem, FLOW(gamma), fused="interpret", steps=4).final["loss"][
                0
            ]
        )(jnp.float32(0.1))
        simulated(problem, FLOW(0.1), fused="interpret")


def test_auto_is_the_engine_on_a_cpu(caplog):
    assert choice.choose_fused("auto", run_of(None, None, None, None, KEYS), plain=True) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("n", "d", "two_point"),
    [
        (40, 100, False),
        pytest.param(40, 100, True, marks=pytest.mark.slow),
        pytest.param(64, 300, False, marks=pytest.mark.slow),
    ],
)
def test_lowers_for_a_gpu_without_one(n, d, two_point):
    pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
    plan = fused_kernel.Plan(n, fused_kernel.padded(n), fused_kernel.padded(d), two_point)
    data = fused_kernel.prepare(*(jnp.ones(s, jnp.float32) for s in ((n, d), (n,), (d,), (d,))))
    shapes = [
        ((3,), jnp.float32),
        ((2, 128), jnp.uint32),
        ((), jnp.int32),
        ((), jnp.int32),
        ((128, plan.rows), jnp.float32),
        ((2, 128), jnp.float32),
    ]
    arguments = [jax.ShapeDtypeStruct(*s) for s in shapes]
    function = jax.jit(lambda *a: fused_kernel.run(fused_kernel.Hopper(), plan, data, *a))
    text = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(
    ("n", "d", "two_point"), [(10, 25, False), (40, 100, True), (20, 300, False)]
)
def test_mosaics_own_interpreter_agrees(n, d, two_point):
    """The copies, barriers, slices and the grid are those of the GPU kernel. Mosaic's
    interpreter takes left factors from shared memory only.
    """
    gpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12):
        pytest.skip("before jax 0.12 the interpreter does not know matrix instructions")

    class ByShared(fused_kernel.Hopper):
        def product(self, parts, ref, columns, transposed):
            def total(accumulator, *shared):
                for part, held in zip(parts, shared, strict=True):
                    held[...] = part
                gpu.commit_smem()
                for i, j in fused_kernel.PAIRS:
                    b = ref.at[j, :, columns]
                    gpu.wgmma(accumulator, shared[i], b.transpose((1, 0)) if transposed else b)
                return accumulator[...]

            shape = fused_kernel.SEEDS, ref.shape[1] if transposed else columns.size
            held = [gpu.SMEM(part.shape, part.dtype) for part in parts]
            return pl.run_scoped(
                lambda *a: pl.run_scoped(lambda acc: total(acc, *a), gpu.ACC(shape, jnp.float32)),
                *held,
            )

    problem = problem_of(n=n, d=d)
    kernel = kernel_of(
        problem,
        sgf.StochasticGradientFlow(0.1, increments="two-point" if two_point else "gaussian"),
    )
    numbers = jnp.asarray([1e-3, -2e-3, 1e-5], jnp.float32)
    keys = jax.vmap(jax.random.key_data)(sgf.seeds(0, 128)).T
    y = jnp.zeros((128, kernel.plan.rows), jnp.float32), jnp.zeros((2, 128), jnp.float32)
    runs = [
        jax.jit(lambda *a: fused_kernel.run(machine, kernel.plan, kernel.data, *a))(
            numbers, keys, jnp.int32(3), jnp.int32(4), *y
        )
        for machine in (
            fused_kernel.Interpreter(),
            ByShared(gpu.InterpretGPUParams(detect_races=True)),
        )
    ]
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * (n + d) * EPS * float(np.max(np.abs(a))))
