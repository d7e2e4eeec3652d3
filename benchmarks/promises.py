"""What the project promises about its own time and memory.

The benchmarks measure the main job, landing, a step of any model's flow, gradients,
sweeps and importing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import peak_gb


def main_job() -> dict:
    """Seconds of exactly 1e5 steps of gradient descent, SGD and the stochastic gradient
    flow for 256 seeds, at n = 40 and d = 100 in float64, with certificates and a
    picture, compilation included.
    """
    import dataclasses
    import tempfile

    import jax

    from sgfbias.study import plotting, study_named

    study = study_named("diagonal")
    # Two parts of the study are not in the main job, so they get a single step: the
    # comparison of distributions and the check of the weights.
    config = dataclasses.replace(
        study.Config(), step_size=0.12, compare_steps=1, weights_steps=1, weights_seeds=1
    )
    stages: list[tuple[str, float]] = []
    start = time.perf_counter()
    dataset = study.run(config, log=lambda line: stages.append((line, time.perf_counter() - start)))
    drawn = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        plotting.save(study.plot(dataset), Path(folder) / "picture.png")
    del jax
    total = time.perf_counter() - start
    began = {line.split(" ")[0]: seconds for line, seconds in stages}
    # The time up to the landing, and that of the picture. The two short stages between
    # them compile programs of their own, so they are not counted.
    return {
        "seconds": began["laws"] + total - drawn,
        "peak_gb": peak_gb(),
        "stages": stages,
        "target": {"seconds": 90, "peak_gb": 2},
    }


def landed() -> dict:
    """Seconds to the landed and corrected answers of 256 seeds at alpha = 0.001 after
    1,000 steps: of the first call, compilation included, and of later ones.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    import sgfbias as sgf

    problem = sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5)
    network = sgf.DiagonalNetwork.init(alpha=0.001, d=100)

    def answer() -> float:
        start = time.perf_counter()
        runs = sgf.simulate(
            sgf.StochasticGradientFlow(0.1), network, problem, keys=sgf.seeds(0, 256), steps=1000
        )
        jax.block_until_ready(sgf.land(runs).beta)
        return time.perf_counter() - start

    cold = answer()
    return {
        "cold_seconds": cold,
        "warm_seconds": statistics.median(answer() for _ in range(5)),
        "target": {"cold_seconds": 5},
    }


def against_scan() -> dict:
    """Time of `simulate` divided by that of a hand-written, vmapped `lax.scan` of the
    same mirror step with the same random numbers. One tile of 64 seeds is run, the two
    take turns, and medians are kept without compilation.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import sgfbias as sgf
    from sgfbias.core.brownian import BROWNIAN_STREAM
    from sgfbias.core.counter import normals
    from sgfbias.diagonal.potential import beta_from

    gamma, steps, seeds = 0.05, 10_000, 64
    problem = sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5)
    network = sgf.DiagonalNetwork.init(alpha=0.01, d=100)
    X, y, n, start = problem.X, problem.y, problem.n, network.log_alpha
    squares = jnp.sum(X**2, axis=0)
    keys = sgf.seeds(0, seeds)

    @jax.jit
    def scan(keys):
        def one(key):
            key = jax.random.fold_in(key, BROWNIAN_STREAM)

            def step(state, k):
                c, law, integral = state
                slopes = (X @ beta_from(start - 2 * law * squares, 4 * (c @ X)) - y) / 2
                rate = gamma / n * jnp.mean(slopes**2)
                dB = normals(key, k, (n,)).astype(X.dtype) * jnp.sqrt(gamma)
                new = (
                    c - slopes * (gamma / n) + jnp.sqrt(rate) * dB,
                    law + rate * gamma,
                    integral + jnp.mean(slopes**2) * gamma,
                )
                return new, None

            zero = jnp.zeros(())
            (c, law, _), _ = jax.lax.scan(step, (jnp.zeros(n), zero, zero), jnp.arange(steps))
            return beta_from(start - 2 * law * squares, 4 * (c @ X))

        return jax.vmap(one)(keys)

    def ours():
        return sgf.simulate(
            sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=steps
        ).final["beta"]

    difference = float(jnp.max(jnp.abs(ours() - scan(keys))))
    times: dict[str, list[float]] = {"simulate": [], "scan": []}
    for _ in range(7):
        for name, run in (("simulate", ours), ("scan", lambda: scan(keys))):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(times["simulate"], times["scan"], strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "ratio": statistics.median(ratios),
        "seconds": medians,
        "largest_difference": difference,
        "target": {"ratio": 1.1},
    }


def flow_step() -> dict:
    """Time of one step of the flow with exact minibatch noise, divided by that of one
    full-batch gradient step in a hand-written scan. The model is an MLP 64-320-20 with
    softmax cross-entropy, n = 1,024, in float32, with one seed and with 8 seeds (the
    scan is vmapped). They take turns, and medians are kept without compilation.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import sgfbias as sgf

    rng = np.random.default_rng(0)
    inputs, labels = (
        rng.normal(size=(1024, 64)).astype(np.float32),
        rng.integers(0, 20, 1024).astype(np.int32),
    )
    problem = sgf.Problem(inputs, labels, loss=sgf.SoftmaxCrossEntropyLoss())
    model, gamma, steps = eqx.nn.MLP(64, 20, 320, 1, key=jax.random.key(0)), 0.05, 300
    moving, still = eqx.partition(model, eqx.is_inexact_array)
    flow = sgf.StochasticGradientFlow(gamma, sgf.MinibatchNoise(32))
    record = sgf.Record(times=2)

    def loss(p):
        logits = jax.vmap(eqx.combine(p, still))(problem.inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, problem.targets))

    def descend(p):
        return jax.lax.scan(
            lambda w, _: (jax.tree.map(lambda a, g: a - gamma * g, w, jax.grad(loss)(w)), None),
            p,
            None,
            length=steps,
        )[0]

    one = jax.jit(descend)
    many = jax.jit(jax.vmap(descend))
    starts = jax.tree.map(lambda a: jnp.stack([a * (1 + 1e-3 * k) for k in range(8)]), moving)
    runs = {
        "flow, one seed": lambda: sgf.simulate(
            flow, model, problem, keys=sgf.seeds(0, 1)[0], steps=steps, record=record
        ).final["loss"],
        "gradient, one seed": lambda: one(moving),
        "flow, 8 seeds": lambda: sgf.simulate(
            flow, model, problem, keys=sgf.seeds(0, 8), steps=steps, record=record
        ).final["loss"],
        "gradient, 8 seeds": lambda: many(starts),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(6):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:  # the first turn compiles
                times[name].append((time.perf_counter() - begin) / steps)

    def ratio(seeds: str) -> float:
        return statistics.median(
            a / b for a, b in zip(times[f"flow, {seeds}"], times[f"gradient, {seeds}"], strict=True)
        )

    return {
        "ratio": {seeds: ratio(seeds) for seeds in ("one seed", "8 seeds")},
        "seconds_per_step": {name: statistics.median(values) for name, values in times.items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(moving)),
        "target": {"ratio": 1.3},
    }


def gradients() -> dict:
    """Times of gradients for the main problem (n = 40, d = 100, float64); the
    contenders take turns, and medians are kept without compilation. For the validation
    error after 1,000 steps and 64 seeds: the time of reverse mode in 100 alphas and of
    forward mode in the step size, divided by that of `simulate` for the same seeds; and
    that of reverse mode with Diffrax's default adjoint on the same terms and path, at
    1,000 and 10,000 steps. For the landed validation error after 300 steps: the time
    for 256 seeds in 100 alphas. The memory is the temporary memory of reverse mode for
    one seed, as the compiler counts it, at 1e3 to 1e5 steps.
    """
    import diffrax as dfx
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np
    from unit_step import UnitStep

    import sgfbias as sgf
    from sgfbias.core.weights import coordinates_for

    problem, record = (
        sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5),
        sgf.Record(times=2),
    )
    log_alpha, keys = jnp.full(100, jnp.log(0.01)), sgf.seeds(0, 64)

    def run(h, key, steps):
        network = sgf.DiagonalNetwork.init(log_alpha=h.get("log_alpha", log_alpha))
        flow = sgf.StochasticGradientFlow(h.get("gamma", 0.05))
        return sgf.simulate(flow, network, problem, keys=key, steps=steps, record=record)

    def outcome(h, key):
        return run(h, key, 1000).final["validation_error"]

    def by_default_adjoint(steps):
        """The gradient, (seeds, d), of the same outcome by the default adjoint of
        `diffeqsolve`.
        """

        def end(la, key):
            network = sgf.DiagonalNetwork.init(log_alpha=la)
            flow, coordinates = (
                sgf.StochasticGradientFlow(0.05),
                coordinates_for(network, problem, sgf.StochasticGradientFlow(0.05), None),
            )
            start = (coordinates.encode(network), jnp.zeros(()))
            terms = flow.build(coordinates, problem, start[0], key, jnp.int32(0), dfx.Euler())
            solution = dfx.diffeqsolve(
                terms,
                dfx.Euler(),
                0.0,
                float(steps),
                1.0,
                start,
                stepsize_controller=UnitStep(),
                max_steps=steps,
            )
            beta = coordinates.decode(jax.tree.map(lambda leaf: leaf[-1], solution.ys)[0]).beta
            return problem.validation_error(beta)

        return jax.jit(jax.vmap(jax.grad(end), in_axes=(None, 0)))

    def long(h, key):
        return run(h, key, 10_000).final["validation_error"]

    default, default_long = by_default_adjoint(1_000), by_default_adjoint(10_000)
    alphas = {"log_alpha": log_alpha}
    contenders = {
        "simulate": lambda: run({}, keys, 1000).final["validation_error"],
        "reverse, Diffrax's default": lambda: default(log_alpha, keys),
        "simulate, 10,000 steps": lambda: run({}, keys, 10_000).final["validation_error"],
        "reverse, 10,000 steps": lambda: sgf.hypergradient(long, alphas, keys=keys).gradient,
        "reverse, 10,000 steps, Diffrax's default": lambda: default_long(log_alpha, keys),
        "reverse, 100 alphas": lambda: sgf.hypergradient(outcome, alphas, keys=keys).gradient,
        "forward, step size": lambda: (
            sgf.hypergradient(outcome, {"gamma": 0.05}, keys=keys, mode="forward").gradient
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(8):
        for name, contender in contenders.items():
            begin = time.perf_counter()
            jax.block_until_ready(contender())
            if repeat:  # the first turn compiles
                times[name].append(time.perf_counter() - begin)

    def over_simulate(name: str, peer: str = "simulate") -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[peer], strict=True))

    ours = sgf.hypergradient(outcome, alphas, keys=keys).gradients["log_alpha"]
    gap = float(jnp.max(jnp.abs(ours - default(log_alpha, keys))) / jnp.max(jnp.abs(ours)))

    def landed(h, key):
        return sgf.land(run(h, key, 300)).validation_error

    spans = []
    for _ in range(4):
        begin = time.perf_counter()
        jax.block_until_ready(
            sgf.hypergradient(landed, {"log_alpha": log_alpha}, keys=sgf.seeds(0, 256)).gradient
        )
        spans.append(time.perf_counter() - begin)

    def memory(steps: int) -> int:
        slope = jax.grad(
            lambda la, key: run({"log_alpha": la}, key, steps).final["validation_error"]
        )
        return (
            jax.jit(slope).lower(log_alpha, keys[0]).compile().memory_analysis().temp_size_in_bytes
        )

    sizes = {steps: memory(steps) for steps in (1_000, 10_000, 100_000)}
    growth = float(np.polyfit(np.log(list(sizes)), np.log(list(sizes.values())), 1)[0])
    return {
        "reverse_over_simulate": over_simulate("reverse, 100 alphas"),
        "forward_tangent_over_simulate": over_simulate("forward, step size") - 1,
        "default_adjoint": {
            "reverse_over_simulate": over_simulate("reverse, Diffrax's default"),
            "10,000 steps": {
                "ours": over_simulate("reverse, 10,000 steps", "simulate, 10,000 steps"),
                "default": over_simulate(
                    "reverse, 10,000 steps, Diffrax's default", "simulate, 10,000 steps"
                ),
            },
            "largest_relative_difference": gap,
        },
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "landed_gradient": {"cold_seconds": spans[0], "warm_seconds": statistics.median(spans[1:])},
        "reverse_memory_bytes": sizes,
        "reverse_memory_exponent": growth,
        "target": {
            "reverse_over_simulate": 3,
            "forward_tangent_over_simulate": 1.2,
            "cold_seconds": 10,
            "reverse_memory_exponent": 0.5,
        },
    }


def sweep() -> dict:
    """Time of a sweep divided by that of plain `simulate` for the same work: n = 40, d
    = 100, float64, 4 alphas x 256 seeds, 10,000 steps and also 1,000, with default
    records and a fresh store each time. They take turns, and the median of the ratios
    is kept without compilation. The peak memory is that of a process that sweeps 1e5
    seeds x 200 times x 5 observables.
    """
    import shutil
    import tempfile

    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np

    import sgfbias as sgf

    problem, alphas, keys = (
        sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5),
        [0.003, 0.01, 0.03, 0.1],
        sgf.seeds(0, 256),
    )

    def experiment(keys, *, alpha, steps=10_000):
        network = sgf.DiagonalNetwork.init(alpha=alpha, d=100)
        return sgf.simulate(
            sgf.StochasticGradientFlow(0.05), network, problem, keys=keys, steps=steps
        )

    folder = Path(tempfile.mkdtemp())
    ratios: dict[int, list[float]] = {10_000: [], 1_000: []}
    seconds: dict[str, list[float]] = {}
    for steps, found in ratios.items():
        swept = sgf.Sweep(
            lambda keys, *, alpha, steps=steps: experiment(keys, alpha=alpha, steps=steps),
            {"alpha": alphas},
            seeds=256,
        )
        for repeat in range(6):
            spans = {}
            begin = time.perf_counter()
            for alpha in alphas:
                jax.block_until_ready(experiment(keys, alpha=alpha, steps=steps).series)
            spans["simulate"] = time.perf_counter() - begin
            begin = time.perf_counter()
            swept.run(folder / f"{steps}-{repeat}.zarr")
            spans["sweep"] = time.perf_counter() - begin
            if repeat:  # the first turn compiles
                found.append(spans["sweep"] / spans["simulate"])
                for name, span in spans.items():
                    seconds.setdefault(f"{name}, {steps} steps", []).append(span)
    shutil.rmtree(folder)

    code = (
        "import jax, resource, tempfile, numpy as np; jax.config.update('jax_enable_x64', True)\n"
        "import sgfbias as sgf\n"
        "def experiment(keys):\n"
        "    base = np.sin(np.asarray(jax.random.key_data(keys)).astype(np.float64).sum(1))[:, "
        "None] * np.linspace(0, 1, 200)\n"
        "    return {f'observable_{k}': base + k for k in range(5)}\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    sgf.Sweep(experiment, {}, seeds=100_000, chunk=2048).run(folder + '/large.zarr')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
    )
    peak = float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    return {
        "ratio": {f"{steps} steps": float(np.median(found)) for steps, found in ratios.items()},
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "peak_gb": peak,
        "target": {"ratio": 1.05, "peak_gb": 2},
    }


def import_time() -> dict:
    """Seconds that `import sgfbias` adds to importing jax, diffrax and equinox; the
    median of 5 fresh processes, which have imported those first.
    """
    code = (
        "import time; import jax, diffrax, equinox, jax.numpy; t = time.perf_counter(); "
        "import sgfbias; print(time.perf_counter() - t)"
    )
    runs = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(5)
    ]
    return {"added_seconds": statistics.median(runs), "target": {"added_seconds": 0.3}}
