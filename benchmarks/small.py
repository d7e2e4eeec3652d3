"""Runs of few seeds, as most first runs and cells of a notebook are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from measure import medians

GAMMA, COUNTS = 0.02, (1, 2, 4, 8, 16, 32, 64, 256)
STEPS = {"flow": 4000, "SGD": 4000, "MLP": 100}


def _scans(problem: Any, steps: dict[str, int]) -> dict[str, Callable[[Any], Any]]:
    """A `lax.scan` in the weights for the flow and for SGD, each mapped over seeds."""
    import jax
    import jax.numpy as jnp

    X, y, n, d = problem.X, problem.y, problem.n, problem.d
    start = (jnp.full(d, 0.1, X.dtype),) * 2
    root = jnp.sqrt(jnp.asarray(GAMMA, X.dtype))

    def flow(w: Any, key: Any) -> Any:
        r = (w[0] ** 2 - w[1] ** 2) @ X.T - y
        z = jax.random.normal(key, (n,), jnp.float32).astype(X.dtype) * root
        noise = 2 / n * root * jnp.sqrt(n * jnp.mean(r**2) / 4) * z
        return (-r * (GAMMA / n) + noise) @ X

    def sgd(w: Any, key: Any) -> Any:
        i = jax.random.randint(key, (), 0, n)
        return (-GAMMA * (X[i] @ (w[0] ** 2 - w[1] ** 2) - y[i])) * X[i]

    def scan(direction: Callable[[Any, Any], Any], length: int) -> Callable[[Any], Any]:
        def one(key: Any) -> Any:
            def step(w: Any, k: Any) -> Any:
                move = direction(w, jax.random.fold_in(key, k))
                return (w[0] * (1 + move), w[1] * (1 - move)), None

            return jax.lax.scan(step, start, jnp.arange(length))[0]

        return jax.jit(jax.vmap(one))

    return {"flow": scan(flow, steps["flow"]), "SGD": scan(sgd, steps["SGD"])}


def _model(dtype: str, steps: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """An MLP of 2,035 weights, 512 examples of digits, and the scan of its flow."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
    from sklearn.datasets import load_digits

    import sgfbias as sgf

    images, labels = load_digits(return_X_y=True)
    x, y = (images[:512] / 16).astype(dtype), np.eye(10)[labels[:512]].astype(dtype)
    network = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf,
        eqx.nn.MLP(64, 10, 27, 1, key=jax.random.key(1)),
    )
    weights, rest = eqx.partition(network, eqx.is_inexact_array)

    def scan(keys: Any) -> Any:
        def one(key: Any) -> Any:
            def step(w: Any, k: Any) -> Any:
                outputs, pull = jax.vjp(lambda w: jax.vmap(eqx.combine(w, rest))(x), w)
                r = outputs - y
                z = jax.random.normal(jax.random.fold_in(key, k), r.shape, jnp.float32)
                loss = jnp.mean(jnp.sum(r**2, axis=-1)) / 4
                noise = GAMMA * jnp.sqrt(loss / 512) * z.astype(r.dtype)
                (move,) = pull(r * (GAMMA / 1024) + noise)
                return jax.tree.map(jnp.subtract, w, move), None

            return jax.lax.scan(step, weights, jnp.arange(steps))[0]

        return jax.vmap(one)(keys)

    return sgf.Problem(x, y), network, jax.jit(scan)


def small() -> dict:
    """Runs of 1 to 256 seeds beside a tuned `lax.scan` in the weights, mapped over the
    same seeds: how many times faster `simulate` is. Whole calls of 4,000 steps (100 for
    the MLP) once they are compiled, in turns, medians of 5; a second number is for the
    steps alone, from runs five times as long. n = 40, d = 100, gamma = 0.02; SGD in
    batches of one, and an MLP of 2,035 weights on 512 images of digits.
    """
    import jax
    import jax.numpy as jnp

    import sgfbias as sgf

    jax.config.update("jax_enable_x64", True)
    record = sgf.Record(times=2)
    flow = sgf.StochasticGradientFlow(GAMMA)
    found: dict[str, Any] = {}
    for dtype in ("float32", "float64"):
        problem = sgf.SparseRegression.sample(
            jax.random.key(0), n=40, d=100, sparsity=5, dtype=jnp.dtype(dtype)
        )
        network = sgf.DiagonalNetwork.init(alpha=0.1, d=100, dtype=jnp.dtype(dtype))
        scans = _scans(problem, STEPS)
        data, model, scan = _model(dtype, STEPS["MLP"])
        descent = sgf.StochasticGradientDescent(GAMMA, integral="batch")
        cases = {
            "flow, mirror": ("flow", flow, network, problem, "mirror", scans["flow"]),
            "flow, weights": ("flow", flow, network, problem, "weights", scans["flow"]),
            "SGD": ("SGD", descent, network, problem, None, scans["SGD"]),
            "flow of an MLP": ("MLP", flow, model, data, None, scan),
        }
        for name, (kind, dynamics, start, problem_, coordinates, peer) in cases.items():
            row = found.setdefault(name, {}).setdefault(dtype, {})
            for count in COUNTS if kind != "MLP" else COUNTS[:-1]:
                keys = sgf.seeds(0, count)

                def run(times: int = 1, exact: bool = True) -> Any:
                    return sgf.simulate(
                        dynamics,
                        start,
                        problem_,
                        keys=keys,
                        steps=times * STEPS[kind],
                        coordinates=coordinates,
                        record=record,
                        exact=exact,
                    ).final["loss"]

                runs = {
                    "scan": lambda: peer(keys),
                    "ours": run,
                    "long": lambda: run(5),
                    **(
                        {"inexact": lambda: run(exact=False), "long inexact": lambda: run(5, False)}
                        if count <= 2
                        else {}
                    ),
                }
                seconds = medians(runs, 5)
                row[str(count)] = {
                    "call": seconds["scan"] / seconds["ours"],
                    "steps": 4 * seconds["scan"] / (seconds["long"] - seconds["ours"]),
                }
                if count <= 2:
                    row[f"{count}, exact=False"] = {
                        "call": seconds["scan"] / seconds["inexact"],
                        "steps": 4
                        * seconds["scan"]
                        / (seconds["long inexact"] - seconds["inexact"]),
                    }
    return {"times_the_scan": found, "milliseconds_of_a_call_of_one_step": _fixed()}


def _fixed() -> float:
    """Milliseconds of a warm call of one seed and one step; the median of 100."""
    import jax

    import sgfbias as sgf

    problem = sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5)
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=100)
    seconds = []
    for _ in range(105):
        start = time.perf_counter()
        runs = sgf.simulate(
            sgf.StochasticGradientFlow(GAMMA),
            network,
            problem,
            keys=sgf.seeds(0, 1),
            steps=1,
            record=sgf.Record(times=2),
        )
        jax.block_until_ready(runs.final["beta"])
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[5:])
