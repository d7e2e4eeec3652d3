"""The flow of the main problem by every contender: the cost of a step, side by side.

All contenders take the same steps of the same equation (mean-loss noise, n = 40, d =
100). Each is written as its own users would write it well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from measure import medians

GAMMA, ALPHA, SEEDS, STEPS = 0.02, 0.1, 256, 2000
# Calls of this package run more steps, because a call costs some 40 ms besides its
# steps (measured by compile_time).
LONG = 5 * STEPS


def contenders(dtype: str) -> dict[str, tuple[Callable[[], Any], int, int]]:
    """For every contender a function that runs the flow, its number of seeds, and of
    steps.
    """
    import diffrax as dfx
    import jax
    import jax.numpy as jnp
    import lineax as lx
    import numpy as np

    import sgfbias as sgf
    from sgfbias.core.tiles import run_tiles

    problem = sgf.SparseRegression.sample(
        jax.random.key(0), n=40, d=100, sparsity=5, dtype=jnp.dtype(dtype)
    )
    network = sgf.DiagonalNetwork.init(alpha=ALPHA, d=100, dtype=jnp.dtype(dtype))
    X, y, n, d = problem.X, problem.y, 40, 100
    keys, last = sgf.seeds(0, SEEDS), sgf.Record(times=2)
    start = jnp.full(d, ALPHA, X.dtype)
    scale, root = (
        2 / n * jnp.sqrt(jnp.asarray(GAMMA, X.dtype)),
        jnp.sqrt(jnp.asarray(GAMMA, X.dtype)),
    )

    def direction(w, dB, dt):
        """`X^T (-r dt / n + 2 sqrt(gamma L / n) dB)` for w = (w_+, w_-).

        It takes one pass over the data.
        """
        r = (w[0] ** 2 - w[1] ** 2) @ X.T - y
        loss = jnp.mean(r**2, axis=-1, keepdims=True) / 4
        return (-r * (dt / n) + scale * jnp.sqrt(n * loss) * dB) @ X

    @jax.jit
    def scan(keys):
        def one(key):
            def step(w, k):
                # float32 numbers are cheaper than float64 and random enough.
                z = jax.random.normal(jax.random.fold_in(key, k), (n,), jnp.float32)
                move = direction(w, z.astype(X.dtype) * root, GAMMA)
                return (w[0] * (1 + move), w[1] * (1 - move)), None

            return jax.lax.scan(step, (start, start), jnp.arange(STEPS))[0]

        return jax.vmap(one)(keys)

    def diffrax_in_w(path, steps):
        def split(w):
            return w[:d], w[d:]

        def drift(t, w, args):
            plus, minus = split(w)
            move = direction((plus, minus), jnp.zeros(n, X.dtype), 1.0)
            return jnp.concatenate([plus * move, -minus * move])

        def diffusion(t, w, args):
            plus, minus = split(w)
            size = scale * jnp.sqrt(jnp.sum(((plus**2 - minus**2) @ X.T - y) ** 2) / 4)

            def times(dB):
                move = size * (dB @ X)
                return jnp.concatenate([plus * move, -minus * move])

            return lx.FunctionLinearOperator(times, jax.ShapeDtypeStruct((n,), X.dtype))

        def one(key):
            control = dfx.ControlTerm(diffusion, path(key, steps))
            terms = dfx.MultiTerm(dfx.ODETerm(drift), control)
            return dfx.diffeqsolve(
                terms,
                dfx.Euler(),
                0.0,
                steps * GAMMA,
                GAMMA,
                jnp.concatenate([start, start]),
                max_steps=steps + 8,
                adjoint=dfx.ForwardMode(),
            ).ys

        return jax.jit(jax.vmap(one))

    def unsafe(key, steps):
        return dfx.UnsafeBrownianPath(jax.ShapeDtypeStruct((n,), X.dtype), key)

    def tree(key, steps):
        return dfx.VirtualBrownianTree(
            0.0, steps * GAMMA, GAMMA / 2, jax.ShapeDtypeStruct((n,), X.dtype), key
        )

    def numpy_loop(seeds, steps):
        rng, A, b = np.random.default_rng(0), np.asarray(X), np.asarray(y)
        shape = (seeds, d) if seeds > 1 else (d,)
        plus, minus = np.full(shape, ALPHA, A.dtype), np.full(shape, ALPHA, A.dtype)
        for _ in range(steps):
            r = (plus**2 - minus**2) @ A.T - b
            loss = np.mean(r**2, axis=-1, keepdims=True) / 4
            dB = rng.standard_normal(r.shape, A.dtype) * A.dtype.type(GAMMA**0.5)
            move = (-r * (GAMMA / n) + 2 * np.sqrt(GAMMA * loss / n) * dB) @ A
            plus, minus = plus * (1 + move), minus * (1 - move)
        return plus

    @jax.jit
    def products(v):
        def step(v, _):
            return (v @ X.T) @ (X * 1e-3), None

        return jax.lax.scan(step, v, None, length=STEPS)[0]

    def ours(coordinates, solver=None, increments="gaussian"):
        flow = sgf.StochasticGradientFlow(GAMMA, increments=increments)
        return lambda: sgf.simulate(
            flow,
            network,
            problem,
            keys=keys,
            steps=LONG,
            coordinates=coordinates,
            solver=solver,
            record=last,
        ).final["beta"]

    few = STEPS // 20
    slow, fast = diffrax_in_w(tree, few), diffrax_in_w(unsafe, STEPS)
    block = jnp.ones((SEEDS, d), X.dtype)

    def tiled(function, tree):
        """Run in tiles of 64 seeds, one per core at a time, as this package does."""
        tiles = [
            jax.tree.map(lambda leaf, k=k: leaf[k : k + 64], tree) for k in range(0, SEEDS, 64)
        ]
        return lambda: run_tiles(function, tiles, threads=True)

    runs = {
        "floor: the two matrix products, a tile per core": (tiled(products, block), SEEDS, STEPS),
        "floor: the two matrix products, one program": (lambda: products(block), SEEDS, STEPS),
        "lax.scan in w, a tile per core": (tiled(scan, keys), SEEDS, STEPS),
        "NumPy in w, one seed": (lambda: numpy_loop(1, STEPS), 1, STEPS),
        "NumPy in w, all seeds": (lambda: numpy_loop(SEEDS, STEPS // 4), SEEDS, STEPS // 4),
        "Diffrax in w, VirtualBrownianTree": (lambda: slow(keys), SEEDS, few),
        "Diffrax in w, UnsafeBrownianPath": (lambda: fast(keys), SEEDS, STEPS),
        "lax.scan in w": (lambda: scan(keys), SEEDS, STEPS),
        "sgfbias, weights": (ours("weights"), SEEDS, LONG),
        "sgfbias, log": (ours("log"), SEEDS, LONG),
        "sgfbias, mirror": (ours("mirror"), SEEDS, LONG),
        "sgfbias, mirror, two-point": (ours("mirror", increments="two-point"), SEEDS, LONG),
        "sgfbias, mirror, predictor-corrector": (
            ours("mirror", sgf.PredictorCorrector()),
            SEEDS,
            LONG,
        ),
        "sgfbias, mirror, Runge-Kutta-Chebyshev": (
            ours("mirror", sgf.RungeKuttaChebyshev()),
            SEEDS,
            LONG,
        ),
        "sgfbias, mirror, predictor-corrector, two-point": (
            ours("mirror", sgf.PredictorCorrector(), "two-point"),
            SEEDS,
            LONG,
        ),
    }
    with contextlib.suppress(ImportError):  # optional: pip install torch torchsde
        runs["torchsde in w, plain randn"] = (
            _torchsde(np.asarray(X), np.asarray(y), few),
            SEEDS,
            few,
        )
    return runs


def _torchsde(X: Any, y: Any, steps: int) -> Callable[[], Any]:
    """A function that runs the flow by torchsde with plain random increments."""
    import numpy as np
    import torch
    import torchsde

    torch.set_num_threads(2)
    A, b = torch.tensor(np.array(X)), torch.tensor(np.array(y))
    n, d = A.shape

    class Flow(torch.nn.Module):
        noise_type, sde_type = "general", "ito"

        def f(self, t, w):
            plus, minus = w[:, :d], w[:, d:]
            move = -(((plus**2 - minus**2) @ A.T - b) / n) @ A
            return torch.cat([plus * move, -minus * move], 1)

        def g_prod(self, t, w, v):
            plus, minus = w[:, :d], w[:, d:]
            r = (plus**2 - minus**2) @ A.T - b
            move = (2 * torch.sqrt(GAMMA * (r**2).mean(1, keepdim=True) / 4 / n) * v) @ A
            return torch.cat([plus * move, -minus * move], 1)

    class Plain(torchsde.BaseBrownian):
        dtype, device, shape, levy_area_approximation = A.dtype, A.device, (SEEDS, n), "none"

        def __call__(self, ta, tb=None, return_U=False, return_A=False):
            return torch.randn(SEEDS, n, dtype=A.dtype) * float(tb - ta) ** 0.5

        def __repr__(self):
            return "plain increments"

    start, times, flow = (
        torch.full((SEEDS, 2 * d), ALPHA, dtype=A.dtype),
        torch.tensor([0.0, steps * GAMMA]),
        Flow(),
    )

    def run() -> Any:
        with torch.no_grad():
            return torchsde.sdeint(flow, start, times, bm=Plain(), method="euler", dt=GAMMA)[
                -1
            ].numpy()

    return run


def rates(dtype: str, repeats: int = 5) -> dict[str, float]:
    """Million seed-steps per second of every contender; the contenders take turns."""
    runs = contenders(dtype)
    seconds = medians({name: run for name, (run, _, _) in runs.items()}, repeats)
    return {name: seeds * steps / seconds[name] / 1e6 for name, (_, seeds, steps) in runs.items()}


def step_cost() -> dict:
    """Million seed-steps per second of one equation by every contender, with n = 40, d
    = 100 and 256 seeds, in float32 and float64. The contenders take turns, and medians
    of 5 are kept without compilation. Slow contenders run fewer steps. The floor is the
    cost of the two matrix products of a step alone.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    table = {dtype: rates(dtype) for dtype in ("float32", "float64")}
    floor = "floor: the two matrix products, a tile per core"
    return {
        "million_seed_steps_per_second": table,
        "of_the_floor": {
            dtype: {name: rate / row[floor] for name, rate in row.items()}
            for dtype, row in table.items()
        },
        "target": {"of_the_floor": {"sgfbias, mirror, two-point": 0.45, "sgfbias, mirror": 0.3}},
    }
