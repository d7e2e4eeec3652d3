"""Runs on one, two or four devices give the same numbers, bit for bit.

Each number of devices has its own process, in which one CPU acts as several devices.
Several processes that `jax.distributed` joins are tested, too.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias.ensemble.status import open_sweep

CODE = """
import hashlib
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import sgfbias as sgf
problem = sgf.SparseRegression.sample(jax.random.key(0), n=10, d=25, sparsity=3)
network = sgf.DiagonalNetwork.init(alpha=0.1, d=25)
keys = sgf.seeds(0, 5 * 64 - 7)
runs = sgf.simulate(sgf.StochasticGradientFlow(0.05), network, problem, keys=keys, steps=60)
landed = sgf.land(runs)
ends = sgf.Record(times=2)
def outcome(h, key):
    sgd = sgf.StochasticGradientDescent(h)
    return sgf.simulate(sgd, network, problem, keys=key, steps=20, record=ends).final["loss"]
slope = sgf.hypergradient(outcome, 0.05, keys=sgf.seeds(0, 130))
digest = hashlib.sha256()
found = runs.series, runs.final, runs.status, runs.networks, landed.beta, slope.gradients
for leaf in jax.tree.leaves(found):
    digest.update(np.asarray(leaf).tobytes())
used = {d.id for d in jax.local_devices()}
print(len(used), digest.hexdigest())
"""


@pytest.mark.slow
def test_the_number_of_devices_does_not_change_a_bit():
    def run(count):
        flags = (
            f"--xla_force_host_platform_device_count={count} "
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
        out = subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert out.returncode == 0, out.stderr[-2000:]
        return out.stdout.split()

    rows = [run(count) for count in (1, 2, 4)]
    assert [int(row[0]) for row in rows] == [1, 2, 4]
    assert len({row[1] for row in rows}) == 1


SHARED = """
import sys
import jax, numpy as np
index, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
jax.config.update("jax_enable_x64", True)
import sgfbias as sgf
def experiment(keys, *, scale):
    return {"x": scale * np.asarray(jax.random.key_data(keys)).astype(np.float64).sum(axis=1)}
sgf.Sweep(experiment, {"scale": [1.0, 2.0, 3.0]}, seeds=128, chunk=64).run(path)
"""


@pytest.mark.slow
def test_processes_of_jax_distributed_take_their_shares(tmp_path):
    """Two processes, each with its own device, differ only in their index. Together
    they run every chunk, and each runs half of them.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = tmp_path / "shared.zarr"
    command = [sys.executable, "-c", SHARED]
    both = [
        subprocess.Popen(
            [*command, str(k), str(port), str(path)], stderr=subprocess.PIPE, text=True
        )
        for k in (0, 1)
    ]
    for process in both:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors[-2000:]
    dataset = open_sweep(path)
    assert dataset["runs_done"].values.tolist() == [128, 128, 128]
    words = np.asarray(jax.random.key_data(sgf.seeds(0, 128))).astype(np.float64).sum(axis=1)
    np.testing.assert_array_equal(dataset["x"], np.array([1.0, 2.0, 3.0])[:, None] * words)
    events = [json.loads(line) for line in (path / "ledger" / "log.jsonl").read_text().splitlines()]
    by = Counter(event["session"] for event in events if event["event"] == "chunk")
    assert sorted(by.values()) == [3, 3]
