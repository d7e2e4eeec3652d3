"""How time and memory grow with seeds, size and steps.

Further benchmarks measure what compiling costs, and which random numbers are the
fastest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import medians, peak_gb

HERE = str(Path(__file__).parent)


def _main_problem(n: int = 40, d: int = 100, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """The package, the main problem of this size, and its network."""
    import jax
    import jax.numpy as jnp

    import sgfbias as sgf

    problem = sgf.SparseRegression.sample(
        jax.random.key(0), n=n, d=d, sparsity=5, dtype=jnp.dtype(dtype)
    )
    return sgf, problem, sgf.DiagonalNetwork.init(alpha=0.1, d=d, dtype=jnp.dtype(dtype))


def _fresh(code: str) -> Any:
    """Run code in a fresh process beside this file, and return the JSON that it prints
    last.
    """
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {HERE!r}); import json, scaling\n{code}",
    ]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[
            -1
        ]
    )


def scaling() -> dict:
    """Million seed-steps per second of the mean-loss flow in mirror coordinates, with
    Gaussian increments and gamma = 0.02, in float32; each call is timed once it is
    compiled. The number of seeds goes from 16 to 65,536 at n = 40, d = 100 and 1,000
    steps, and a `lax.scan` in w of all seeds is measured beside it. The size n x d goes
    from 40 x 100 to 1,000 x 10,000 with 64 seeds, and the rate is also given as a share
    of that of the two matrix products. The number of steps goes from 1e3 to 1e5 with
    256 seeds. The peak memory is that of a fresh process with 65,536 seeds, and of one
    with n x d = 1,000 x 10,000.
    """
    import jax
    import jax.numpy as jnp

    from sgfbias.core.tiles import run_tiles

    sgf, problem, network = _main_problem()
    last, flow = sgf.Record(times=2), sgf.StochasticGradientFlow(0.02)

    def ours(
        problem: Any, network: Any, seeds: int, steps: int, step_size: float = 0.02
    ) -> Callable[[], Any]:
        dynamics = flow if step_size == 0.02 else sgf.StochasticGradientFlow(step_size)
        return lambda: sgf.simulate(
            dynamics, network, problem, keys=sgf.seeds(0, seeds), steps=steps, record=last
        ).final["beta"]

    def scan(seeds: int, steps: int) -> Callable[[], Any]:
        X, y, n = problem.X, problem.y, problem.n

        @jax.jit
        def all_seeds(keys: Any) -> Any:
            def one(key: Any) -> Any:
                def step(w: Any, k: Any) -> Any:
                    r = (w[0] ** 2 - w[1] ** 2) @ X.T - y
                    z = jax.random.normal(jax.random.fold_in(key, k), (n,), jnp.float32)
                    move = (-r * (0.02 / n) + 0.02 / n * jnp.linalg.norm(r) * z) @ X
                    return (w[0] * (1 + move), w[1] * (1 - move)), None

                start = jnp.full(problem.d, 0.1, X.dtype)
                return jax.lax.scan(step, (start, start), jnp.arange(steps))[0]

            return jax.vmap(one)(keys)

        keys = sgf.seeds(0, seeds)
        return lambda: all_seeds(keys)

    by_seeds: dict[str, dict[str, float]] = {"sgfbias": {}, "lax.scan in w": {}}
    for seeds in (16, 64, 256, 1024, 4096, 16384, 65536):
        steps = 1000
        runs = {
            "sgfbias": ours(problem, network, seeds, steps),
            "lax.scan in w": scan(seeds, steps),
        }
        for name, seconds in medians(runs, 3 if seeds <= 4096 else 1).items():
            by_seeds[name][str(seeds)] = seeds * steps / seconds / 1e6
    by_size = {}
    for n, d, steps in ((40, 100, 4000), (100, 300, 1000), (300, 1000, 200), (1000, 10_000, 8)):
        _, large, start = _main_problem(n, d)
        X, block = large.X, jnp.ones((64, d), jnp.float32)
        products = jax.jit(
            lambda v, X=X, steps=steps: jax.lax.scan(
                lambda v, _: ((v @ X.T) @ (X * 1e-4), None), v, None, length=steps
            )[0]
        )
        # This step size is stable at every size: the largest curvature grows as d / n.
        runs = {
            "sgfbias": ours(large, start, 64, steps, 0.002),
            "two matrix products": lambda products=products, block=block: run_tiles(
                products, [block], threads=True
            ),
        }
        seconds = medians(runs, 3)
        by_size[f"{n} x {d}"] = {
            "million_seed_steps_per_second": 64 * steps / seconds["sgfbias"] / 1e6,
            "of_the_products": seconds["two matrix products"] / seconds["sgfbias"],
        }
    by_steps = {}
    for steps in (1000, 10_000, 100_000):
        seconds = medians({"": ours(problem, network, 256, steps)}, 3 if steps < 100_000 else 1)[""]
        by_steps[str(steps)] = {
            "seconds": seconds,
            "million_seed_steps_per_second": 256 * steps / seconds / 1e6,
        }
    return {
        "million_seed_steps_per_second_by_seeds": by_seeds,
        "by_n_x_d": by_size,
        "by_steps": by_steps,
        "peak_gb": {
            "65,536 seeds, 200 times": _fresh("print(json.dumps(scaling.peak_of_seeds(65_536)))"),
            "1,000 x 10,000, 64 seeds": _fresh(
                "print(json.dumps(scaling.peak_of_size(1000, 10_000)))"
            ),
        },
    }


def peak_of_seeds(seeds: int) -> float:
    """Peak memory in GB of a process that runs many seeds with the default record."""
    sgf, problem, network = _main_problem()
    sgf.simulate(
        sgf.StochasticGradientFlow(0.02), network, problem, keys=sgf.seeds(0, seeds), steps=200
    )
    return peak_gb()


def peak_of_size(n: int, d: int) -> float:
    """Peak memory in GB of a process that runs 64 seeds of a large problem."""
    sgf, problem, network = _main_problem(n, d)
    sgf.simulate(
        sgf.StochasticGradientFlow(0.002),
        network,
        problem,
        keys=sgf.seeds(0, 64),
        steps=4,
        record=sgf.Record(times=2),
    )
    return peak_gb()


CASES = {
    "flow, mirror": ("sgf.StochasticGradientFlow(0.02)", ""),
    "flow, mirror, two-point, predictor-corrector": (
        "sgf.StochasticGradientFlow(0.02, increments='two-point')",
        ", solver=sgf.PredictorCorrector()",
    ),
    "flow, weights": ("sgf.StochasticGradientFlow(0.02)", ", coordinates='weights'"),
    "SGD": ("sgf.StochasticGradientDescent(0.02)", ""),
}


def compile_time() -> dict:
    """Seconds by which a first call is longer than a later one, and seconds of that
    later call, in a fresh process each; medians of 3. The calls are `simulate` of 64
    seeds with 10 steps, at n = 40 and d = 100 in float64, and landing those seeds.
    """
    import statistics

    first: dict[str, float] = {}
    warm: dict[str, float] = {}
    for name in (*CASES, "landing"):
        found = [_fresh(f"print(json.dumps(scaling.first_and_warm({name!r})))") for _ in range(3)]
        first[name] = statistics.median(a - b for a, b in found)
        warm[name] = statistics.median(b for _, b in found)
    return {
        "first_call_beyond_warm_seconds": first,
        "warm_call_seconds": warm,
        "target": {"first_call_beyond_warm_seconds": 2},
    }


def first_and_warm(name: str) -> tuple[float, float]:
    """Seconds of a first call and of a later call in this process."""
    import jax

    jax.config.update("jax_enable_x64", True)
    sgf, problem, network = _main_problem(dtype="float64")
    dynamics, options = CASES.get(name, CASES["flow, mirror"])
    code = (
        f"sgf.simulate({dynamics}, network, problem, keys=sgf.seeds(0, 64), steps=10, "
        f"record=sgf.Record(times=2){options})"
    )
    names = {"sgf": sgf, "network": network, "problem": problem}

    def simulate() -> Any:
        return eval(code, names)

    def land(runs: Any) -> Any:
        return jax.block_until_ready(sgf.land(runs).beta)

    # The start of JAX itself must not count as compiling.
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    if name != "landing":
        call: Callable[[], Any] = simulate
    else:
        runs = simulate()

        def call() -> Any:
            return land(runs)

    times = []
    for _ in range(4):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times[0], sorted(times[1:])[1]


def random_numbers() -> dict:
    """Nanoseconds per random number on one core, for 64 keys x 40 numbers x 2,000 steps
    inside a `lax.scan`; medians of 5 in turns. Compared are normals by `jax.random`
    from a key per step, for every cipher of this JAX; normals by this package's
    counter; uniform bits; and two-point increments by either.
    """
    import jax
    import jax.numpy as jnp

    import sgfbias as sgf
    from sgfbias.core.counter import fair_signs, normals

    def loop(draw: Callable[[Any, Any], Any], keys: Any) -> Callable[[], Any]:
        @jax.jit
        def run(keys: Any) -> Any:
            def step(total: Any, k: Any) -> Any:
                return total + jax.vmap(lambda key: draw(key, k))(keys).astype(jnp.float32), None

            return jax.lax.scan(step, jnp.zeros((64, 40), jnp.float32), jnp.arange(2000))[0]

        return lambda: run(keys)

    own = sgf.seeds(0, 64)
    runs = {
        "normals by counter (ours)": loop(lambda key, k: normals(key, k, (40,)), own),
        "two-point by counter (ours)": loop(
            lambda key, k: fair_signs(key, k, (40,), jnp.float32), own
        ),
        "bits, jax.random, threefry2x32": loop(
            lambda key, k: jax.random.bits(jax.random.fold_in(key, k), (40,)), own
        ),
        "two-point, jax.random.rademacher": loop(
            lambda key, k: jax.random.rademacher(jax.random.fold_in(key, k), (40,), jnp.float32),
            own,
        ),
    }
    for cipher in ("threefry2x32", "threefry4x32", "philox2x32", "philox4x32", "rbg", "unsafe_rbg"):
        try:
            keys = jax.random.split(jax.random.key(0, impl=cipher), 64)
        except ValueError:
            continue  # this version of JAX does not have the cipher
        runs[f"normals, jax.random, {cipher}"] = loop(
            lambda key, k: jax.random.normal(jax.random.fold_in(key, k), (40,), jnp.float32), keys
        )
    seconds = medians(runs, 5)
    return {
        "nanoseconds": {name: value / (64 * 40 * 2000) * 1e9 for name, value in seconds.items()},
        "refused": "rbg and unsafe_rbg, because under vmap they use the first key for all seeds",
    }


_RATE = 0.1  # What the user's functions of the next measurement read.
_TABLE = np.zeros(1_310_720)  # 10 MiB


def stale_programs() -> dict:
    """Milliseconds that a call spends on the question whether the user's functions read
    anything that has changed; the median of 200 warm calls.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from sgfbias.core.stale import drop_stale_programs

    table = jnp.asarray(_TABLE)
    sgf, problem, network = _main_problem()
    model = eqx.nn.MLP(64, 10, 256, 4, key=jax.random.key(0))
    flow = sgf.StochasticGradientFlow(lambda k: _RATE / (1 + k))

    def reads_a_jax_array(network: Any) -> Any:
        return jnp.sum(table[:100] * network.beta)

    def reads_a_numpy_array(network: Any) -> Any:
        return jnp.sum(_TABLE[:100] * network.beta)

    cases = {
        "nothing of the user's": (sgf.StochasticGradientFlow(_RATE), network, problem),
        "a schedule that reads a global": (flow, network, problem),
        "an MLP of five layers": (flow, model, problem),
        "an observable that reads 10 MiB in JAX": (flow, network, problem, reads_a_jax_array),
        "an observable that reads 10 MiB in NumPy": (flow, network, problem, reads_a_numpy_array),
    }
    found = {}
    for name, trees in cases.items():
        drop_stale_programs(trees)
        seconds = []
        for _ in range(200):
            start = time.perf_counter()
            drop_stale_programs(trees)
            seconds.append(time.perf_counter() - start)
        found[name] = 1e3 * statistics.median(seconds)
    return {"milliseconds": found, "target": {"milliseconds": dict.fromkeys(found, 1.0)}}
