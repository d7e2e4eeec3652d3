"""Measure the fused kernel on a GPU: its speed, figure 3, and equality with the engine.

The script is run in one of these two ways:

    python benchmarks/gpu.py               # on one H100 or H200
    python benchmarks/gpu.py --interpret   # on any machine

The first writes benchmarks/results/gpu.json. It measures the rates of kernel and
engine, figure 3 at 1e5 seeds, and the distance of both from float64. Kernel and engine
take turns, the medians are kept, and compilation is timed separately.

The second runs the same code at token sizes through Pallas's interpreter; its times
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measure import RESULTS, hardware

import sgfbias as sgf
from sgfbias.core.record import Record

# The kernel may be this many times as far from float64 as the engine in float32, as in
# the tests of the fused kernel.
FACTOR = 4


class Sizes(NamedTuple):
    """The numbers of seeds and steps of every measurement, and of its repeats."""

    against: tuple[int, int] = (4_096, 20_000)
    rate: tuple[int, int] = (65_536, 20_000)
    figure: tuple[int, int] = (100_000, 100_000)
    equal: tuple[int, tuple[int, ...]] = (4_096, (10, 100, 1_000))
    repeats: int = 5


TOKEN = Sizes((64, 20), (128, 20), (70, 20), (64, (10,)), 2)


def job(dtype: type = jnp.float32, alpha: float = 0.01) -> tuple:
    """Figure 3's problem, with n = 40, d = 100 and the flow at step size 0.1.

    The data are drawn in float32 for either precision. Returns the flow, the network
    and the problem.
    """
    drawn = sgf.SparseRegression.sample(
        jax.random.key(0), n=40, d=100, sparsity=5, dtype=jnp.float32
    )
    problem = sgf.SparseRegression(*(v.astype(dtype) for v in (drawn.X, drawn.y, drawn.beta_star)))
    return sgf.StochasticGradientFlow(0.1), sgf.DiagonalNetwork.init(alpha=alpha, d=100), problem


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call, until its results are finished on the device."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def taking_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict:
    """The times of every call, in seconds; the calls take turns.

    `first` is the first call, which compiles, and `seconds` the median of `repeats`
    others.
    """
    first = {name: timed(call) for name, call in calls.items()}
    spans: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            spans[name].append(timed(call))
    return {
        name: {"first": first[name], "seconds": statistics.median(spans[name]), "all": spans[name]}
        for name in calls
    }


def runner(
    seeds: int, steps: int, fused: object, precision: str | None = None
) -> Callable[[], object]:
    """A run that records only its end."""
    parts, keys = job(), sgf.seeds(0, seeds)

    def call() -> object:
        with jax.default_matmul_precision(precision):
            return sgf.simulate(
                *parts, keys=keys, steps=steps, record=Record([], 2), fused=fused
            ).final

    return call


def against(sizes: Sizes, kernel: object) -> dict:
    """Compare the kernel with the vmapped Diffrax engine.

    The engine's matrix products have XLA's default precision, and in another run full
    float32.
    """
    seeds, steps = sizes.against
    calls = {
        "kernel": runner(seeds, steps, kernel),
        "engine": runner(seeds, steps, False),
        "engine, highest precision": runner(seeds, steps, False, "highest"),
    }
    found = taking_turns(calls, sizes.repeats)
    ratio = found["engine"]["seconds"] / found["kernel"]["seconds"]
    return {
        "seeds": seeds,
        "steps": steps,
        **found,
        "ratio": ratio,
        "target": {"ratio": 10},
        "reached": ratio >= 10,
    }


def rate(sizes: Sizes, kernel: object) -> dict:
    """Seed-steps per second of the kernel, from whole calls of `simulate`."""
    seeds, steps = sizes.rate
    found = taking_turns({"kernel": runner(seeds, steps, kernel)}, sizes.repeats)
    per_second = seeds * steps / found["kernel"]["seconds"]
    return {
        "seeds": seeds,
        "steps": steps,
        **found,
        "seed_steps_per_second": per_second,
        "target": {"seed_steps_per_second": 5e8},
        "reached": per_second >= 5e8,
    }


def figure(sizes: Sizes, kernel: object) -> dict:
    """The time of figure 3's stochastic flow at alpha = 0.01.

    It includes the recorded curves, the statuses and compilation.
    """
    seeds, steps = sizes.figure
    results: list[sgf.Trajectory] = []

    def call() -> object:
        results.append(sgf.simulate(*job(), keys=sgf.seeds(0, seeds), steps=steps, fused=kernel))
        return results[-1].series

    seconds = timed(call)
    runs = results[-1]
    return {
        "seeds": seeds,
        "steps": steps,
        "seconds": seconds,
        "diverged": int(np.sum(runs.diverged)),
        "median_loss": float(np.median(runs["loss"][:, -1])),
        "median_validation_error": float(np.median(runs["validation_error"][:, -1])),
        "target": {"seconds": 120},
        "reached": seconds < 120,
    }


def equal(sizes: Sizes, kernel: object) -> dict:
    """Distances of the kernel and of the engine from the engine in float64.

    A seed's distance is the largest error of beta relative to the largest entry of beta
    over all seeds. The largest and the median distance over seeds are kept.
    """
    seeds, lengths = sizes.equal
    table, within = {}, True
    for steps in lengths:
        ends = {
            name: np.asarray(runner(seeds, steps, fused, "highest")()["beta"], np.float64)
            for name, fused in (("kernel", kernel), ("engine", False))
        }
        with jax.enable_x64(True):
            runs = sgf.simulate(
                *job(jnp.float64),
                keys=sgf.seeds(0, seeds),
                steps=steps,
                record=Record([], 2),
                fused=False,
            )
            exact = np.asarray(runs.final["beta"])
        scale = np.max(np.abs(exact))
        gaps = {name: np.max(np.abs(end - exact), axis=1) / scale for name, end in ends.items()}
        table[str(steps)] = {
            name: {"largest": float(gap.max()), "median": float(np.median(gap))}
            for name, gap in gaps.items()
        }
        within &= bool(
            np.median(gaps["kernel"]) <= FACTOR * np.median(gaps["engine"])
            and gaps["kernel"].max() <= FACTOR * gaps["engine"].max()
        )
    return {
        "seeds": seeds,
        "gap to float64": table,
        "target": {"factor": FACTOR},
        "reached": within,
    }


def card() -> dict:
    """The device and its driver."""
    device = jax.devices()[0]
    found = {
        "device": device.device_kind,
        "compute_capability": str(getattr(device, "compute_capability", "none")),
    }
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ]
        found["nvidia_smi"] = subprocess.run(
            query, capture_output=True, text=True, check=False
        ).stdout.strip()
    return found


def main() -> int:
    """Measure and store; returns 2 without a suitable GPU, and 1 if a target is
    missed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="run token sizes through the interpreter; this tests the script but measures nothing",
    )
    options = parser.parse_args()
    capability = str(getattr(jax.devices()[0], "compute_capability", "none"))
    if not options.interpret and (
        jax.default_backend() != "gpu" or not capability.startswith("9.")
    ):
        print(
            "this script needs one NVIDIA GPU of compute capability 9 (H100 or H200) and jax "
            "with CUDA, for example by pip install -U 'jax[cuda13]', but it found "
            f"{jax.devices()[0].device_kind} on the backend {jax.default_backend()!r}; "
            "--interpret runs the script at token sizes on any machine",
            file=sys.stderr,
        )
        return 2
    sizes, kernel = (TOKEN, "interpret") if options.interpret else (Sizes(), True)
    result = {
        "name": "gpu",
        "what": __doc__.splitlines()[0],
        "interpreted": options.interpret,
        **card(),
        **hardware(),
    }
    for measure in (equal, against, rate, figure):
        result[measure.__name__] = measure(sizes, kernel)
        print(json.dumps({measure.__name__: result[measure.__name__]}), flush=True)
    if options.interpret:
        return 0 if result["equal"]["reached"] else 1
    RESULTS.mkdir(exist_ok=True)
    Path(RESULTS / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(result[m.__name__]["reached"] for m in (equal, against, rate, figure)) else 1


if __name__ == "__main__":
    sys.exit(main())
