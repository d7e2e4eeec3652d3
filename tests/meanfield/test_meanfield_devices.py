"""Effective examples on two devices, which give the numbers of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CODE = """
import json
import sys
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
options = {"steps": 5, "samples": 500, "dtype": "float64", "keys": jax.random.key(1)}
if sys.argv[1] == "one":
    found = mf.solve(one, sgf.LogisticLoss(), rule, replicas=2, **options)
else:
    found = mf.solve(two, sgf.SoftmaxCrossEntropyLoss(), rule, **options)
effective = draw_effective(one, rule, jax.random.key(0), 6, 500, 1, jnp.float64)
print(json.dumps({
    "devices": len(spread(effective).white.devices()),
    "odd": len(spread(jax.tree.map(lambda a: a[..., :499], effective)).white.devices()),
    "curves": {k: np.asarray(v).tolist() for k, v in found.fields().items()},
}))
"""


def solved(count, kind):
    flags = f"--xla_force_host_platform_device_count={count}"
    out = subprocess.run(
        [sys.executable, "-c", CODE, kind],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout)


@pytest.mark.slow(cases=1)
@pytest.mark.parametrize("kind", ["one", "several"])
def test_two_devices_give_the_numbers_of_one(kind):
    """With one output, and with several."""
    alone, both = solved(1, kind), solved(2, kind)
    assert (alone["devices"], both["devices"]) == (1, 2)
    assert both["odd"] == 1
    for name, values in alone["curves"].items():
        np.testing.assert_allclose(both["curves"][name], values, rtol=1e-9, atol=1e-11)
