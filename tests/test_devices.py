"""One, two or four devices: the same numbers, bit for bit. Each count in a process of its own, with devices made of one CPU."""

import os
import subprocess
import sys

import pytest

CODE = """
import hashlib
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import sgfbias as sgf
problem = sgf.SparseRegression.sample(jax.random.key(0), n=10, d=25, sparsity=3)
network = sgf.DiagonalNetwork.init(alpha=0.1, d=25)
runs = sgf.simulate(sgf.StochasticGradientFlow(0.05), network, problem, keys=sgf.seeds(0, 5 * 64 - 7), steps=60)
landed = sgf.land(runs)
def outcome(h, key):
    return sgf.simulate(sgf.StochasticGradientDescent(h), network, problem, keys=key, steps=20, record=sgf.Record(times=2)).final["loss"]
slope = sgf.hypergradient(outcome, 0.05, keys=sgf.seeds(0, 130))
digest = hashlib.sha256()
for leaf in jax.tree.leaves((runs.series, runs.final, runs.status, runs.networks, landed.beta, slope.gradients)):
    digest.update(np.asarray(leaf).tobytes())
used = {d.id for d in jax.local_devices()}
print(len(used), digest.hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_devices_does_not_change_a_bit():
    def run(count):
        flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        out = subprocess.run(
            [sys.executable, "-c", CODE], env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300
        )
        assert out.returncode == 0, out.stderr[-2000:]
        return out.stdout.split()

    rows = [run(count) for count in (1, 2, 4)]
    assert [int(row[0]) for row in rows] == [1, 2, 4]
    assert len({row[1] for row in rows}) == 1
