"""A public protocol that compares libraries on a linear equation of three states.

It takes 256 Euler steps in float32, keeps the final state only, and runs 2^13 to 2^20
trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from measure import medians

DRIFT, NOISE, STEPS = 1.5, 0.01, 256


def linear_three() -> dict:
    """Million trajectories per second of `dx = 1.5 x dt + 0.01 x dB` from (0.1, 0.1,
    0.1) to t = 1, by 256 Euler steps in float32 with final states only, against the
    number of trajectories. The contenders take turns in one process, and medians of 3
    are kept without compilation. This is the protocol of DiffEqGPU.jl's benchmark of
    SDEs, whose own kernels were not run here.
    """
    import diffrax as dfx
    import jax
    import jax.numpy as jnp
    import lineax as lx
    import numpy as np
    from unit_step import UnitStep

    import sgfbias as sgf
    from sgfbias.core.brownian import StepBrownianPath
    from sgfbias.core.counter import normals

    dt = 1 / STEPS
    start = jnp.full(3, 0.1, jnp.float32)
    diagonal = lx.DiagonalLinearOperator

    def by_diffrax(path: Callable[[Any], Any], unit: bool) -> Callable[[Any], Any]:
        h = dt if unit else 1.0

        def one(key: Any) -> Any:
            drift = dfx.ODETerm(lambda t, x, args: DRIFT * h * x)
            noise = dfx.ControlTerm(lambda t, x, args: diagonal(NOISE * x), path(key))
            controller = {"stepsize_controller": UnitStep()} if unit else {}
            end, step = (float(STEPS), 1.0) if unit else (1.0, dt)
            return dfx.diffeqsolve(
                dfx.MultiTerm(drift, noise),
                dfx.Euler(),
                0.0,
                end,
                step,
                start,
                max_steps=STEPS + 8,
                adjoint=dfx.ForwardMode(),
                **controller,
            ).ys[-1]

        return jax.jit(jax.vmap(one))

    def unsafe(key: Any) -> Any:
        return dfx.UnsafeBrownianPath(jax.ShapeDtypeStruct((3,), jnp.float32), key)

    def counted(key: Any) -> Any:
        return StepBrownianPath(key, jnp.int32(0), jnp.float32(dt), (3,), jnp.float32)

    def scan(draw: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        def one(key: Any) -> Any:
            def step(x: Any, k: Any) -> Any:
                return x + DRIFT * dt * x + NOISE * x * draw(key, k) * dt**0.5, None

            return jax.lax.scan(step, start, jnp.arange(STEPS))[0]

        return jax.jit(jax.vmap(one))

    def scalars(key: Any) -> Any:
        """Three numbers instead of a vector of three.

        The trajectories alone then fill the vector units.
        """

        def step(x: Any, k: Any) -> Any:
            draws = [normals(key, 3 * k + j, ()) * dt**0.5 for j in range(3)]
            return tuple(
                v + DRIFT * dt * v + NOISE * v * z for v, z in zip(x, draws, strict=True)
            ), None

        return jnp.stack(jax.lax.scan(step, (start[0], start[1], start[2]), jnp.arange(STEPS))[0])

    def numpy_batched(count: int) -> Any:
        rng, x = np.random.default_rng(0), np.full((count, 3), 0.1, np.float32)
        for _ in range(STEPS):
            x = (
                x
                + np.float32(DRIFT * dt) * x
                + np.float32(NOISE * dt**0.5) * x * rng.standard_normal((count, 3), np.float32)
            )
        return x

    programs = {
        "Diffrax, UnsafeBrownianPath": by_diffrax(unsafe, False),
        "Diffrax, sgfbias's path": by_diffrax(counted, True),
        "lax.scan, jax.random": scan(
            lambda key, k: jax.random.normal(jax.random.fold_in(key, k), (3,), jnp.float32)
        ),
        "lax.scan, sgfbias's normals": scan(lambda key, k: normals(key, k, (3,))),
        "lax.scan of three scalars, sgfbias's normals": jax.jit(jax.vmap(scalars)),
    }
    rates: dict[str, dict[str, float]] = {name: {} for name in ("NumPy, batched", *programs)}
    for power in (13, 15, 17, 20):
        count = 2**power
        keys = sgf.seeds(0, count)
        runs = {name: (lambda f=f, keys=keys: f(keys)) for name, f in programs.items()}
        runs["NumPy, batched"] = lambda count=count: numpy_batched(count)
        for name, seconds in medians(runs, 3 if power < 20 else 1).items():
            rates[name][f"2^{power}"] = count / seconds / 1e6
    # The exact mean; Euler's mean 0.1 (1 + 1.5/256)^256 is 0.4% smaller.
    exact = 0.1 * np.exp(DRIFT)
    found = float(jnp.mean(programs["Diffrax, sgfbias's path"](sgf.seeds(0, 2**13))))
    return {
        "million_trajectories_per_second": rates,
        "mean": {"found": found, "exact": exact, "of_euler": 0.1 * (1 + DRIFT * dt) ** STEPS},
    }
