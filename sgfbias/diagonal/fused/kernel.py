"""The whole time loop of the mirror system in one GPU kernel.

One program of the kernel advances 64 seeds by any number of Euler steps of

    u = log(w_+/w_-)(0) + 4 X^T c,
    log alpha_t = log alpha - 2 S diag(X^T X),
    beta = 2 exp(2 log alpha_t) sinh(u),
    r = X beta - y,
    c <- c - (2s/n) r dt + sqrt(dt gamma/n mean(2s r)^2) xi,
    S <- S + dt gamma/n mean (2s r)^2,
    I <- I + dt s mean r^2,

where the loss is `s/n sum r^2` and the counter of the step gives xi. The states
`(c, S, I)` stay in the registers of one warpgroup and the data in shared memory: no
global memory is read or written between the first step and the last.

Tensor cores round their factors to 8 or 11 bits. Each float32 is therefore written as
the sum of three bfloat16 numbers of 8 bits each. Of the nine products of such parts,
the six that matter at 24 bits are summed in float32. The features are processed in
tiles, so that the `u` and `beta` of a tile exist in registers only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from sgfbias.core.counter import threefry
from sgfbias.diagonal.fused.random import normal, rotated, sign, square_root

SEEDS = 64  # seeds per program: the rows of a matrix instruction of a warpgroup
# n and d are rounded up to multiples of this, the depth of a matrix instruction.
GRAIN = 16
TILE = 64  # features per tile
SWIZZLE = 2 * GRAIN  # bytes in a row of a tile in shared memory
# Vectors are copied to shared memory in pieces of this many numbers, so their lengths
# are rounded up to multiples of it.
COPY = 128
# A thread holds half a number of c, and half a number of r, per example. With more
# examples than this, registers spill by kilobytes per step.
LARGEST_EXAMPLES = 64
LARGEST_SHARED = 200_000  # bytes of shared memory that the data may take


class Data(NamedTuple):
    """The data that all seeds share. Rows and columns added by padding are 0 and have
    no effect.

    - `parts`: (3, n, d) bfloat16, whose sum is X.
    - `y`: (n,). The targets.
    - `masks`: (n,). The bit of a random word that decides the sign of an example.
    - `log_alpha`, `log_ratio`: (d,). Their values at the start.
    - `squares`: (d,). diag(X^T X).
    """

    parts: Any
    y: Any
    masks: Any
    log_alpha: Any
    log_ratio: Any
    squares: Any


class Plan(NamedTuple):
    """The parameters for which the kernel is compiled: the sizes before and after
    padding, and the distribution of the increments.
    """

    n: int
    rows: int
    columns: int
    two_point: bool

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The first column and the width of every tile of features."""
        return [(start, min(TILE, self.columns - start)) for start in range(0, self.columns, TILE)]


def padded(size: int, grain: int = GRAIN) -> int:
    """The padded size of a dimension in the kernel."""
    return -(-size // grain) * grain


def shared_bytes(n: int, d: int) -> int:
    """The bytes of shared memory that the data of a problem take."""
    return 6 * padded(n) * padded(d) + 4 * (
        3 * padded(padded(d), COPY) + 2 * padded(padded(n), COPY)
    )


def prepare(X: Array, y: Array, log_alpha: Array, log_ratio: Array) -> Data:
    """The data of a problem in the form that the kernel takes."""
    n, d = X.shape
    rows, columns = padded(n), padded(d)

    def longer(v: Array, size: int) -> Array:
        return jnp.pad(v, (0, padded(size, COPY) - v.shape[0]))

    matrix = jnp.pad(X, ((0, rows - n), (0, columns - d)))
    masks = jnp.uint32(1) << (jnp.arange(rows, dtype=jnp.uint32) % 32)
    features = (longer(v, columns) for v in (log_alpha, log_ratio, jnp.sum(jnp.square(X), axis=0)))
    return Data(
        jnp.stack(split(matrix, rounded_bfloat16)), longer(y, rows), longer(masks, rows), *features
    )


def split(x: Array, rounded: Any) -> list[Array]:
    """Three bfloat16 arrays whose sum is `x` to 24 bits. The function `rounded` rounds
    to bfloat16.
    """
    parts = []
    for _ in range(3):
        parts.append(rounded(x))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def rounded_bfloat16(x: Array) -> Array:
    """`x` rounded to bfloat16, even under XLA, which may keep the lost digits when a
    number is rounded and widened again.
    """
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


# Pairs of parts whose products matter at 24 bits, the smallest products first.
PAIRS = ((0, 2), (2, 0), (1, 1), (0, 1), (1, 0), (0, 0))


class Interpreter:
    """The operations of the kernel that depend on the machine, here through XLA on any
    device. It is slow and meant for tests.
    """

    rounded = staticmethod(rounded_bfloat16)

    def matrix(self, x: Array) -> Array:
        """`x` (seeds, k) in the layout that a matrix instruction needs."""
        return x

    def load(self, ref: Any, axis: int | None) -> Array:
        """A matrix (`axis` None), one number per seed (`axis` 1, the axis of the matrix
        that is left out) or one number per column (`axis` 0).
        """
        return ref[...]

    def product(self, parts: list[Array], ref: Any, columns: Any, transposed: bool) -> Array:
        """`a X` for some columns of X, or with `transposed` `a X^T` for the same
        columns; a and X are given in parts.
        """
        total = jnp.zeros((SEEDS, ref.shape[1] if transposed else columns.size), jnp.float32)
        for i, j in PAIRS:
            b = ref[j, :, columns].astype(jnp.float32)
            total = total + jnp.dot(
                parts[i].astype(jnp.float32), b.T if transposed else b, precision="highest"
            )
        return total

    def launch(self, body: Callable, plan: Plan, count: int, operands: tuple[Array, ...]) -> Any:
        """Run `body(block, *operands, *outputs)` for every block of seeds."""
        kernel = lambda *refs: body(pl.program_id(0), *refs)  # noqa: E731
        return pl.pallas_call(
            kernel, grid=(count // SEEDS,), out_shape=outputs(plan, count), interpret=True
        )(*operands)


class Hopper:
    """The same operations on NVIDIA's compute capability 9, by Pallas's Mosaic GPU
    backend. Its names are imported only here.
    """

    def __init__(self, interpret: Any = None) -> None:
        from jax.experimental.pallas import mosaic_gpu

        # Tests can set `interpret` to use Mosaic's own interpreter, which supports
        # matrix instructions from jax 0.12.
        self.gpu, self.interpret = mosaic_gpu, interpret
        self.layout = mosaic_gpu.Layout.WGMMA

    def rounded(self, x: Array) -> Array:
        return x.astype(jnp.bfloat16)

    def matrix(self, x: Array) -> Array:
        return self.gpu.layout_cast(x, self.layout)

    def load(self, ref: Any, axis: int | None) -> Array:
        layout = self.layout if axis is None else self.layout.reduce(axis)
        # Until jax 0.10 `load` takes an index.
        index = ((),) if "idx" in inspect.signature(self.gpu.load).parameters else ()
        return self.gpu.load(ref, *index, layout=layout, optimized=False)

    def product(self, parts: list[Array], ref: Any, columns: Any, transposed: bool) -> Array:
        def total(accumulator: Any) -> Array:
            for i, j in PAIRS:
                b = ref.at[j, :, columns]
                self.gpu.wgmma(accumulator, parts[i], b.transpose((1, 0)) if transposed else b)
            return accumulator[...]

        shape = SEEDS, ref.shape[1] if transposed else columns.size
        return pl.run_scoped(total, self.gpu.ACC(shape, jnp.float32))

    def launch(self, body: Callable, plan: Plan, count: int, operands: tuple[Array, ...]) -> Any:
        gpu, data = self.gpu, Data(*operands[-len(Data._fields) :])
        tiled = (gpu.TilingTransform((8, GRAIN)), gpu.SwizzleTransform(SWIZZLE))
        shared = [gpu.SMEM(v.shape, v.dtype, transforms=tiled if v.ndim > 1 else ()) for v in data]

        def kernel(*refs: Any) -> None:
            given, held, barrier = refs[: -len(shared) - 1], refs[-len(shared) - 1 : -1], refs[-1]
            sources = given[len(operands) - len(shared) : len(operands)]
            for source, target in zip(sources, held, strict=True):
                for piece in _pieces(source.shape):
                    gpu.copy_gmem_to_smem(source.at[piece], target.at[piece], barrier)
                    gpu.barrier_wait(barrier)
            own = given[: len(operands) - len(shared)]
            body(jax.lax.axis_index("block"), *own, *held, *given[len(operands) :])

        shapes, scratch = outputs(plan, count), (*shared, gpu.Barrier())
        # jax 0.12 renamed these arguments.
        renamed = "out_type" in inspect.signature(gpu.kernel).parameters
        named = (
            {"out_type": shapes, "scratch_types": scratch}
            if renamed
            else {"out_shape": shapes, "scratch_shapes": scratch}
        )
        semantics = gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup)
        return gpu.kernel(
            kernel,
            grid=(count // SEEDS,),
            grid_names=("block",),
            compiler_params=semantics,
            interpret=self.interpret,
            **named,
        )(*operands)


def _pieces(shape: tuple[int, ...]) -> list[Any]:
    """The pieces of an array that are copied one by one. A piece has at most 256
    numbers along an axis, and is contiguous even if the array is stored in tiles of 8
    rows.
    """
    starts = range(0, shape[-1], COPY)
    columns = [pl.ds(k, min(COPY, shape[-1] - k)) for k in starts]
    if len(shape) == 1:
        return [(piece,) for piece in columns]
    if shape[-1] <= 2 * COPY:
        return [(slice(None), slice(None), slice(None))]
    return [
        (pl.ds(part, 1), pl.ds(row, 8), piece)
        for part in range(shape[0])
        for row in range(0, shape[1], 8)
        for piece in columns
    ]


def outputs(plan: Plan, count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of the outputs of the kernel: c, and the two sums."""
    return jax.ShapeDtypeStruct((count, plan.rows), jnp.float32), jax.ShapeDtypeStruct(
        (2, count), jnp.float32
    )


def run(
    machine: Any,
    plan: Plan,
    data: Data,
    numbers: Array,
    keys: Array,
    start: Array,
    length: Array,
    c: Array,
    sums: Array,
) -> Any:
    """Take `length` steps from the absolute step `start`.

    **Arguments:**

    - `numbers`: (3,). A step adds to I the first times the sum of squared residuals, to
      c the second times the residual, and to S the third times the sum of squared
      residuals.
    - `keys`: (2, seeds). The words of the keys of the Brownian stream. The number of
      seeds is a multiple of `SEEDS`.
    - `c`: (seeds, rows). The state c at step `start`.
    - `sums`: (2, seeds). The sums (S, I) at step `start`.

    **Returns:** the new `c` and `sums`.
    """
    counters = jnp.stack([start, length]).astype(jnp.int32)

    def body(
        block: Array, counters: Any, numbers: Any, keys: Any, c_in: Any, sums_in: Any, *refs: Any
    ) -> None:
        *shared, c_out, sums_out = refs
        here, own = Data(*shared), pl.ds(block * SEEDS, SEEDS)
        here = here._replace(
            y=here.y.at[pl.ds(0, plan.rows)], masks=here.masks.at[pl.ds(0, plan.rows)]
        )
        key = machine.load(keys.at[0, own], 1), machine.load(keys.at[1, own], 1)
        state = (
            machine.load(c_in.at[own], None),
            machine.load(sums_in.at[0, own], 1),
            machine.load(sums_in.at[1, own], 1),
        )
        first, count = counters[0], counters[1]
        rates = numbers[0], numbers[1], numbers[2]
        c, covariance, integral = jax.lax.fori_loop(
            0,
            count,
            lambda k, state: advance(machine, plan, here, rates, key, first + k, state),
            state,
        )
        c_out[own, :] = c
        sums_out[0, own] = covariance
        sums_out[1, own] = integral

    return machine.launch(body, plan, c.shape[0], (counters, numbers, keys, c, sums, *data))


def advance(
    machine: Any, plan: Plan, data: Data, rates: Any, key: Any, step: Array, state: Any
) -> Any:
    """One Euler step of 64 seeds."""
    c, covariance, integral = state
    rate, force, gain = rates

    def over_columns(v: Array, width: int) -> Array:
        return machine.matrix(jax.lax.broadcast_in_dim(v, (SEEDS, width), (0,)))

    def over_seeds(ref: Any, width: int) -> Array:
        return machine.matrix(jax.lax.broadcast_in_dim(machine.load(ref, 0), (SEEDS, width), (1,)))

    parts = split(c, machine.rounded)
    r = -over_seeds(data.y, plan.rows)
    for first, width in plan.tiles:
        columns = pl.ds(first, width)
        shrink = 2 * (over_columns(covariance, width) * over_seeds(data.squares.at[columns], width))
        log_alpha = over_seeds(data.log_alpha.at[columns], width) - shrink
        u = over_seeds(data.log_ratio.at[columns], width) + 4 * machine.product(
            parts, data.parts, columns, False
        )
        beta = beta_by_exponentials(log_alpha, u)
        r = r + machine.product(split(beta, machine.rounded), data.parts, columns, True)
    square = jnp.sum(r * r, axis=1)

    column = machine.matrix(jax.lax.broadcasted_iota(jnp.uint32, (SEEDS, plan.rows), 1))
    number = step.astype(jnp.uint32)
    if plan.two_point:  # One block of two words has a bit for each of 64 examples.
        block = threefry(key, jnp.full((SEEDS,), number), jnp.zeros((SEEDS,), jnp.uint32), rotated)
        words = [over_columns(word, plan.rows) for word in block]
        noise = sign(jnp.where(column < 32, *words), over_seeds(data.masks, plan.rows))
    else:
        wide = (over_columns(key[0], plan.rows), over_columns(key[1], plan.rows))
        noise = normal(
            threefry(wide, machine.matrix(jnp.full((SEEDS, plan.rows), number)), column, rotated)[0]
        )
    root = over_columns(square_root(gain * square), plan.rows)
    return c + (force * r + root * noise), covariance + gain * square, integral + rate * square


def beta_by_exponentials(log_alpha: Array, u: Array) -> Array:
    """`beta = 2 alpha^2 sinh(u)`, computed as
    `sign(u) exp(2 log alpha + |u|) (1 - exp(-2|u|))`.

    At small u, where the bracket cancels, the bracket is `2 exp(-|u|) sinh|u|` with the
    series of sinh. On a GPU an exponential is a single instruction, while on a CPU
    `potential.beta_from` is faster. Mosaic also cannot shift bits to the left, which
    `beta_from` needs.
    """
    size = jnp.abs(u)
    decay, square = jnp.exp(-size), jnp.square(size)
    series = jnp.ones_like(size)
    for k in range(6, 0, -1):
        series = 1 + square * (1 / (2 * k * (2 * k + 1))) * series
    bracket = jnp.where(size < 0.5, 2 * size * decay * series, (1 - decay) * (1 + decay))
    return jnp.sign(u) * jnp.exp(2 * log_alpha + size) * bracket
