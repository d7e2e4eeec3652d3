"""Timing and storing for all benchmarks.

The contenders take turns, medians of repeats are kept, compilation is timed separately,
and the hardware and versions are stored with every result.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def in_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, in turns; the first turn, which compiles, is left out."""
    return {name: values[1:] for name, values in with_first(runs, repeats).items()}


def with_first(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, in turns, with the first turn, which compiles, in front."""
    import jax

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - begin)
    return times


def medians(runs: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of every run, without compilation."""
    return {name: statistics.median(values) for name, values in in_turns(runs, repeats).items()}


def peak_gb() -> float:
    """The largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# The package's own dependencies, and the peers, as far as they are installed.
PACKAGES = (
    *("jax", "jaxlib", "diffrax", "equinox", "numpy", "scipy", "scikit-learn"),
    *("torch", "torchsde", "control", "cvxpy", "clarabel", "neural-tangents"),
    *("adversarial-robustness-toolbox", "foolbox"),
)


def hardware() -> dict:
    """The hardware and the versions that the numbers are measured with."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    wide = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "vectors": wide,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def store(name: str, result: dict, folder: Path = RESULTS) -> dict:
    """Write a result together with its hardware and versions, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"name": name, **result, **hardware()}
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    return whole
