"""The contenders in pytest-benchmark, for comparisons between commits.

They are run by

    pytest benchmarks -m benchmark --benchmark-autosave

They are not part of the tests. The published numbers come from `sgfbias bench`, in
which the contenders take turns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import peers

pytestmark = pytest.mark.benchmark
NAMES = [
    "floor: the two matrix products, a tile per core",
    "lax.scan in w, a tile per core",
    "sgfbias, weights",
    "sgfbias, log",
    "sgfbias, mirror",
    "sgfbias, mirror, two-point",
    "sgfbias, mirror, predictor-corrector",
]


@pytest.fixture(scope="module", params=["float32", "float64"])
def runs(request):
    with jax.enable_x64(True):
        yield peers.contenders(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_steps(benchmark, runs, name):
    run, seeds, steps = runs[name]
    benchmark.extra_info["million_seed_steps"] = seeds * steps / 1e6
    jax.block_until_ready(run())  # the first call compiles
    benchmark.pedantic(lambda: jax.block_until_ready(run()), rounds=3)
