"""`simulate`, the training curves of finite systems with the same law."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole
from sgfbias.meanfield.curves import Curves
from sgfbias.meanfield.outputs import check_outputs, count_outputs
from sgfbias.meanfield.parts import check_parts
from sgfbias.meanfield.precision import is_double
from sgfbias.meanfield.system import System
from sgfbias.meanfield.system_matrices import MatrixSystem


def simulate(
    data: Any,
    loss: Any,
    rule: Any,
    *,
    steps: Any,
    keys: Array,
    start: Any = None,
    d: Any = None,
    replicas: Any = 1,
    readout: Any = None,
    outputs: Any = None,
    probes: Any = 0,
    dtype: Any = "float32",
) -> Curves:
    """The training curves of finite systems: the data are drawn, and the model is
    trained by `sgfbias.simulate`.

    Each key draws its own data, start and masks.

    **Arguments:**

    - `data`, `loss`, `rule`, `steps`, `keys`, `start`: as in `solve`.
    - `readout`, `outputs`: as in `solve`.
    - `d`: the number of dimensions. Data of `fit` have their own.
    - `replicas`: the number of runs with the same data and start and independent masks.
    - `probes`: the number of random directions from which the response is taken, by
      forward derivatives along each run of the first replica. The cost is about
      `steps * probes` runs, times the number of outputs. 0 for no response.
    - `dtype`: the precision, "float32" or "float64".

    **Returns:** `Curves`. The curves of a key are means over its replicas.

    **Raises:** `ValueError` as `solve` does, and if `alpha d` is not a whole number.
    """
    loss, start = check_parts(data, loss, rule, start, readout)
    outputs = count_outputs(data, start, rule, readout, outputs)
    if outputs is not None:
        check_outputs(loss, readout, outputs, data, smooth=False)
    steps, probes = as_whole(steps, "steps"), as_whole(probes, "probes", least=0)
    replicas = as_whole(replicas, "replicas")
    keys = check_keys(keys)
    own = getattr(data, "direction", None)
    if d is None:
        if own is None:
            raise ValueError("`d`, the number of dimensions, is needed: write d=400")
        d = own.shape[-1]
    d = as_whole(d, "d")
    name = jnp.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be 'float32' or 'float64', but is {name!r}")
    with jax.enable_x64(is_double() or name == "float64"):
        shared = (data, loss, rule, start, readout, d, steps, replicas, probes, name)
        system = System(*shared) if outputs is None else MatrixSystem(outputs, *shared)
        found = [system.run(key) for key in jnp.atleast_1d(keys)]
    curves = {
        field: None if found[0][field] is None else jnp.stack([one[field] for one in found])
        for field in found[0]
    }
    if keys.ndim == 0:
        curves = {k: None if v is None else v[0] for k, v in curves.items()}
    return Curves(
        **curves,
        keys=keys,
        data=data,
        rule=rule,
        start=start,
        loss_function=loss,
        origin=f"simulations, d = {d}",
    )
