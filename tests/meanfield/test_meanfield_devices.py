"""Effective examples on two devices, which give the numbers of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CODE = """
import json
import jax
import jax.numpy as jnp
import numpy as np
jax.config.update("jax_enable_x64", True)
import sgfbias as sgf
from sgfbias.meanfield.devices import spread
from sgfbias.meanfield.solution import draw_effective

mf = sgf.meanfield
rule = mf.MaskedDescent(0.2, sgf.PersistentMask(0.4, persistence=5.0), ridge=0.1)
one = mf.GaussianMixture(2.0, spectrum=0.5)
two = mf.Mixture(2.0, [[-1.0], [1.0]], spectrum=0.5)
options = {"steps": 6, "samples": 500, "dtype": "float64", "keys": sgf.seeds(0, 2)}
found = mf.solve(one, sgf.LogisticLoss(), rule, replicas=2, **options)
many = mf.solve(two, sgf.SoftmaxCrossEntropyLoss(), rule, **options)
effective = draw_effective(one, rule, jax.random.key(0), 6, 500, 1, jnp.float64)
print(json.dumps({
    "devices": len(spread(effective).white.devices()),
    "odd": len(spread(jax.tree.map(lambda a: a[..., :499], effective)).white.devices()),
    "one": {k: np.asarray(v).tolist() for k, v in found.fields().items()},
    "many": {k: np.asarray(v).tolist() for k, v in many.fields().items()},
}))
"""


def solved(count):
    flags = f"--xla_force_host_platform_device_count={count}"
    out = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout)


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one():
    alone, both = solved(1), solved(2)
    assert (alone["devices"], both["devices"]) == (1, 2)
    assert both["odd"] == 1
    for kind in ("one", "many"):
        for name, values in alone[kind].items():
            np.testing.assert_allclose(both[kind][name], values, rtol=1e-9, atol=1e-11)
