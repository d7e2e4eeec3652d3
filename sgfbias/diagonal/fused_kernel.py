r"""The mirror system's whole time loop in one GPU kernel: `(c, S, I)` of 64 seeds stay in the registers of one warpgroup, the data in shared memory.

One program advances 64 seeds by any number of Euler steps of

    u = log(w_+/w_-)(0) + 4 X^T c,   beta = 2 exp(2 log alpha_t) sinh(u),   r = X beta - y,   log alpha_t = log alpha - 2 S diag(X^T X),
    c <- c - (2s/n) r dt + sqrt(dt gamma/n mean(2s r)^2) xi,   S <- S + dt gamma/n mean (2s r)^2,   I <- I + dt s mean r^2,

with loss `s/n sum r^2` and xi from the counter of the step: nothing is read or written between the first step and the last.

Tensor cores round what they multiply to 8 or 11 bits. Each float32 is therefore the sum of three bfloat16 numbers of 8 bits each, and of the
nine products the six that matter at 24 bits are summed in float32. Features go by in tiles, so that a tile's `u` and `beta` exist in registers only.
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
from sgfbias.diagonal.fused_random import normal, rotated, sign, square_root

SEEDS = 64  # of one program: the rows of a warpgroup's matrix instruction
GRAIN = 16  # n and d are rounded up to multiples of this, the depth of a matrix instruction
TILE = 64  # features at a time
SWIZZLE = 2 * GRAIN  # bytes of a row of a tile in shared memory
COPY = 128  # vectors are copied to shared memory in pieces of this many numbers, so that is what they are rounded up to
LARGEST_EXAMPLES = 64  # a thread holds half a number of c, and of r, per example: beyond, registers spill by kilobytes a step
LARGEST_SHARED = 200_000  # bytes of shared memory


class Data(NamedTuple):
    """What all seeds share, padded: rows and columns that are added are 0 and move nothing.

    `parts` (3, n, d) bfloat16 with sum X; `y` (n,); `masks` (n,), the bit of a random word that decides an example's sign; per feature (d,)
    `log_alpha` and `log_ratio` at the start, and `squares` = diag(X^T X).
    """

    parts: Any
    y: Any
    masks: Any
    log_alpha: Any
    log_ratio: Any
    squares: Any


class Plan(NamedTuple):
    """What is compiled for: sizes before and after padding, and the law of the increments."""

    n: int
    rows: int
    columns: int
    two_point: bool

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """First column and width of every tile of features."""
        return [(start, min(TILE, self.columns - start)) for start in range(0, self.columns, TILE)]


def padded(size: int, grain: int = GRAIN) -> int:
    """The size that a dimension is given in the kernel."""
    return -(-size // grain) * grain


def shared_bytes(n: int, d: int) -> int:
    """Shared memory that the data of a problem take."""
    return 6 * padded(n) * padded(d) + 4 * (3 * padded(padded(d), COPY) + 2 * padded(padded(n), COPY))


def prepare(X: Array, y: Array, log_alpha: Array, log_ratio: Array) -> Data:
    """The data of a problem as the kernel takes them."""
    n, d = X.shape
    rows, columns = padded(n), padded(d)

    def longer(v: Array, size: int) -> Array:
        return jnp.pad(v, (0, padded(size, COPY) - v.shape[0]))

    matrix = jnp.pad(X, ((0, rows - n), (0, columns - d)))
    masks = jnp.uint32(1) << (jnp.arange(rows, dtype=jnp.uint32) % 32)
    features = (longer(v, columns) for v in (log_alpha, log_ratio, jnp.sum(jnp.square(X), axis=0)))
    return Data(jnp.stack(split(matrix, rounded_bfloat16)), longer(y, rows), longer(masks, rows), *features)


def split(x: Array, rounded: Any) -> list[Array]:
    """Three bfloat16 arrays whose sum is `x` to 24 bits; `rounded` rounds to bfloat16."""
    parts = []
    for _ in range(3):
        parts.append(rounded(x))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def rounded_bfloat16(x: Array) -> Array:
    """Rounded to bfloat16 where XLA would keep the digits it had, as it may when a number is rounded and widened again."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


# Pairs of parts whose products matter at 24 bits, the smallest first.
PAIRS = ((0, 2), (2, 0), (1, 1), (0, 1), (1, 0), (0, 0))


class Interpreter:
    """What the kernel asks of its machine, through XLA on any device: slow, for tests."""

    rounded = staticmethod(rounded_bfloat16)

    def matrix(self, x: Array) -> Array:
        """`x` (seeds, k), laid out as a matrix instruction wants it."""
        return x

    def load(self, ref: Any, axis: int | None) -> Array:
        """A matrix (None), a number per seed (axis 1 of the matrix left out) or a number per column (axis 0 left out)."""
        return ref[...]

    def product(self, parts: list[Array], ref: Any, columns: Any, transposed: bool) -> Array:
        """`a X` for some columns of X, or `transposed`, for the same columns `a X^T`; a and X in parts."""
        total = jnp.zeros((SEEDS, ref.shape[1] if transposed else columns.size), jnp.float32)
        for i, j in PAIRS:
            b = ref[j, :, columns].astype(jnp.float32)
            total = total + jnp.dot(parts[i].astype(jnp.float32), b.T if transposed else b, precision="highest")
        return total

    def launch(self, body: Callable, plan: Plan, count: int, operands: tuple[Array, ...]) -> Any:
        """Run `body(block, *operands, *outputs)` for every block of seeds."""
        kernel = lambda *refs: body(pl.program_id(0), *refs)  # noqa: E731
        return pl.pallas_call(kernel, grid=(count // SEEDS,), out_shape=outputs(plan, count), interpret=True)(*operands)


class Hopper:
    """The same on NVIDIA's compute capability 9, by Pallas's Mosaic GPU backend, whose names are imported only here."""

    def __init__(self, interpret: Any = None) -> None:
        from jax.experimental.pallas import mosaic_gpu

        self.gpu, self.interpret = mosaic_gpu, interpret  # Mosaic's own interpreter, for tests; it knows matrix instructions from jax 0.12
        self.layout = mosaic_gpu.Layout.WGMMA

    def rounded(self, x: Array) -> Array:
        return x.astype(jnp.bfloat16)

    def matrix(self, x: Array) -> Array:
        return self.gpu.layout_cast(x, self.layout)

    def load(self, ref: Any, axis: int | None) -> Array:
        layout = self.layout if axis is None else self.layout.reduce(axis)
        index = ((),) if "idx" in inspect.signature(self.gpu.load).parameters else ()  # an argument until jax 0.10
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
        renamed = "out_type" in inspect.signature(gpu.kernel).parameters  # from jax 0.12
        named = {"out_type": shapes, "scratch_types": scratch} if renamed else {"out_shape": shapes, "scratch_shapes": scratch}
        semantics = gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup)
        return gpu.kernel(
            kernel, grid=(count // SEEDS,), grid_names=("block",), compiler_params=semantics, interpret=self.interpret, **named
        )(*operands)


def _pieces(shape: tuple[int, ...]) -> list[Any]:
    """Pieces of an array that one copy takes: at most 256 numbers along an axis, and contiguous also where the array is in tiles of 8 rows."""
    starts = range(0, shape[-1], COPY)
    columns = [pl.ds(k, min(COPY, shape[-1] - k)) for k in starts]
    if len(shape) == 1:
        return [(piece,) for piece in columns]
    if shape[-1] <= 2 * COPY:
        return [(slice(None), slice(None), slice(None))]
    return [(pl.ds(part, 1), pl.ds(row, 8), piece) for part in range(shape[0]) for row in range(0, shape[1], 8) for piece in columns]


def outputs(plan: Plan, count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of what the kernel writes: c, and the two sums."""
    return jax.ShapeDtypeStruct((count, plan.rows), jnp.float32), jax.ShapeDtypeStruct((2, count), jnp.float32)


def run(machine: Any, plan: Plan, data: Data, numbers: Array, keys: Array, start: Array, length: Array, c: Array, sums: Array) -> Any:
    """`length` steps from absolute step `start`: the new `c` (seeds, rows) and `sums` = (S, I), (2, seeds).

    `numbers` (3,): what a step adds to I, to c and to S per sum of squared residuals, per residual, and per sum of squared residuals.
    `keys` (2, seeds): the words of the keys of the Brownian stream. The number of seeds is a multiple of `SEEDS`.
    """
    counters = jnp.stack([start, length]).astype(jnp.int32)

    def body(block: Array, counters: Any, numbers: Any, keys: Any, c_in: Any, sums_in: Any, *refs: Any) -> None:
        *shared, c_out, sums_out = refs
        here, own = Data(*shared), pl.ds(block * SEEDS, SEEDS)
        here = here._replace(y=here.y.at[pl.ds(0, plan.rows)], masks=here.masks.at[pl.ds(0, plan.rows)])
        key = machine.load(keys.at[0, own], 1), machine.load(keys.at[1, own], 1)
        state = machine.load(c_in.at[own], None), machine.load(sums_in.at[0, own], 1), machine.load(sums_in.at[1, own], 1)
        first, count = counters[0], counters[1]
        rates = numbers[0], numbers[1], numbers[2]
        c, covariance, integral = jax.lax.fori_loop(
            0, count, lambda k, state: advance(machine, plan, here, rates, key, first + k, state), state
        )
        c_out[own, :] = c
        sums_out[0, own] = covariance
        sums_out[1, own] = integral

    return machine.launch(body, plan, c.shape[0], (counters, numbers, keys, c, sums, *data))


def advance(machine: Any, plan: Plan, data: Data, rates: Any, key: Any, step: Array, state: Any) -> Any:
    """One step of 64 seeds."""
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
        u = over_seeds(data.log_ratio.at[columns], width) + 4 * machine.product(parts, data.parts, columns, False)
        beta = beta_by_exponentials(log_alpha, u)
        r = r + machine.product(split(beta, machine.rounded), data.parts, columns, True)
    square = jnp.sum(r * r, axis=1)

    column = machine.matrix(jax.lax.broadcasted_iota(jnp.uint32, (SEEDS, plan.rows), 1))
    number = step.astype(jnp.uint32)
    if plan.two_point:  # of at most 64 examples: one block of two words
        block = threefry(key, jnp.full((SEEDS,), number), jnp.zeros((SEEDS,), jnp.uint32), rotated)
        words = [over_columns(word, plan.rows) for word in block]
        noise = sign(jnp.where(column < 32, *words), over_seeds(data.masks, plan.rows))
    else:
        wide = (over_columns(key[0], plan.rows), over_columns(key[1], plan.rows))
        noise = normal(threefry(wide, machine.matrix(jnp.full((SEEDS, plan.rows), number)), column, rotated)[0])
    root = over_columns(square_root(gain * square), plan.rows)
    return c + (force * r + root * noise), covariance + gain * square, integral + rate * square


def beta_by_exponentials(log_alpha: Array, u: Array) -> Array:
    """`2 alpha^2 sinh(u)` as `sign(u) exp(2 log alpha + |u|) (1 - exp(-2|u|))`, and at small u, where the bracket cancels, `2 exp(-|u|) sinh|u|` by
    its series. On a GPU an exponential is an instruction, where on a CPU `potential.beta_from` is faster; Mosaic shifts no bits to the left either.
    """
    size = jnp.abs(u)
    decay, square = jnp.exp(-size), jnp.square(size)
    series = jnp.ones_like(size)
    for k in range(6, 0, -1):
        series = 1 + square * (1 / (2 * k * (2 * k + 1))) * series
    bracket = jnp.where(size < 0.5, 2 * size * decay * series, (1 - decay) * (1 + decay))
    return jnp.sign(u) * jnp.exp(2 * log_alpha + size) * bracket
