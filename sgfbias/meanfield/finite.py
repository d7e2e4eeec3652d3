"""`simulate`, the training curves of finite systems with the same law."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.problem import Problem
from sgfbias.core.project import Sphere
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate as simulate_core
from sgfbias.core.starts import Stacked
from sgfbias.meanfield.curves import Curves
from sgfbias.meanfield.data import Sample
from sgfbias.meanfield.precision import is_double
from sgfbias.meanfield.solution import check_parts


class Linear(eqx.Module):
    """The model `f(X) = readout(w . X)`.

    - `w`: (d,).
    """

    w: Array
    readout: Any = eqx.field(static=True, default=None)

    def __call__(self, x: Array) -> Array:
        r = x @ self.w
        return r if self.readout is None else self.readout(r)


class Penalty(eqx.Module):
    """A ridge, and kicks of w along fixed directions at given steps.

    - `ridge`: the factor of `|w|^2 / 2` in the mean loss.
    - `kicks`: (steps, d), what is subtracted from the gradient of the mean loss.
    """

    ridge: Array
    kicks: Array | None = None

    def __call__(self, network: Any, step: Any) -> Array:
        value = self.ridge * jnp.sum(jnp.square(network.w)) / 2
        if self.kicks is None:
            return value
        return value - self.kicks[step] @ network.w


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
    probes: Any = 0,
    dtype: Any = "float32",
) -> Curves:
    """The training curves of finite systems: the data are drawn, and the model is
    trained by `sgfbias.simulate`.

    Each key draws its own data, start and masks.

    **Arguments:**

    - `data`, `loss`, `rule`, `steps`, `keys`, `start`, `readout`: as in `solve`.
    - `d`: the number of dimensions. Data of `fit` have their own.
    - `replicas`: the number of runs with the same data and start and independent masks.
    - `probes`: the number of random directions from which the response is taken, by
      forward derivatives along each run of the first replica. The cost is about
      `steps * probes` runs. 0 for no response.
    - `dtype`: the precision, "float32" or "float64".

    **Returns:** `Curves`. The curves of a key are means over its replicas.

    **Raises:** `ValueError` as `solve` does, and if `alpha d` is not a whole number.
    """
    loss, start = check_parts(data, loss, rule, start)
    steps, probes = as_whole(steps, "steps"), as_whole(probes, "probes", least=0)
    replicas = as_whole(replicas, "replicas")
    keys = check_keys(keys)
    own = getattr(data, "direction", None)
    if d is None:
        if own is None:
            raise ValueError("`d`, the number of dimensions, is needed: write d=400")
        d = own.shape[0]
    d = as_whole(d, "d")
    name = jnp.dtype(dtype).name
    if name not in ("float32", "float64"):
        raise ValueError(f"`dtype` must be 'float32' or 'float64', but is {name!r}")
    with jax.enable_x64(is_double() or name == "float64"):
        system = _System(data, loss, rule, start, readout, d, steps, replicas, probes, name)
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


class _System:
    """What the runs of all keys share."""

    def __init__(self, data, loss, rule, start, readout, d, steps, replicas, probes, dtype):
        self.data, self.loss, self.rule, self.start = data, loss, rule, start
        self.readout, self.d, self.steps = readout, d, steps
        self.replicas, self.probes, self.dtype = replicas, probes, dtype

    def run(self, key: Array) -> dict[str, Any]:
        """The curves of one key."""
        first, second, third, fourth = jax.random.split(key, 4)
        sample = self.data.sample(first, self.d, jnp.dtype(self.dtype))
        network = Linear(self._start(second, sample), self.readout)
        runs = self._runs(sample, network, jax.random.split(third, self.replicas))
        weights = runs["weights"]
        curves = observed(self.data, sample, weights, self.readout)
        response = self._response(sample, network, third, fourth) if self.probes else None
        return {**curves, "loss": jnp.mean(runs["loss"], axis=0), "response": response}

    def _start(self, key: Array, sample: Sample) -> Array:
        v = sample.direction
        noise = jnp.sqrt(self.start.variance).astype(v.dtype) * jax.random.normal(
            key, v.shape, v.dtype
        )
        w = self.start.overlap.astype(v.dtype) * v * (self.d / jnp.sum(jnp.square(v))) + noise
        return w * math.sqrt(self.d) / jnp.linalg.norm(w) if self.rule.sphere else w

    def _dynamics(self, n: int) -> Any:
        """The algorithm of the core, whose loss is a mean over the n examples."""
        rule = self.rule
        project = Sphere(float(math.sqrt(self.d))) if rule.sphere else None
        step_size = rule.step_size * n
        if rule.mask is None:
            return GradientDescent(step_size, project=project)
        return StochasticGradientDescent(step_size, sampling=rule.mask, project=project)

    def _runs(
        self, sample: Sample, network: Linear, keys: Array, kicks: Array | None = None
    ) -> Any:
        """The runs of some keys, from one start, with the weights at all steps."""
        n = sample.inputs.shape[0]
        ridge = jnp.asarray(self.rule.ridge / n).astype(sample.inputs.dtype)
        problem = Problem(
            sample.inputs, sample.targets, loss=self.loss, penalty=Penalty(ridge, kicks)
        )
        dynamics = self._dynamics(n)
        times = float(self.rule.step_size * n) * np.arange(self.steps + 1)
        starts = Stacked(jax.tree.map(lambda a: jnp.stack([a] * keys.shape[0]), network))
        return simulate_core(
            dynamics,
            starts,
            problem,
            keys=keys,
            steps=self.steps,
            record=Record({"weights": weights_of}, times),
        )

    def _response(self, sample: Sample, network: Linear, key: Array, probe_key: Array) -> Array:
        """The response of the first replica, by forward derivatives in kicks of w."""
        key = jax.random.split(key, self.replicas)[:1]
        dtype, n = sample.inputs.dtype, sample.inputs.shape[0]
        signs = jax.random.rademacher(probe_key, (self.probes, self.d), dtype=jnp.int32)
        scale = 1 / (self.rule.step_size * n).astype(dtype)
        zeros = jnp.zeros((self.steps, self.d), dtype)

        def weights(kicks: Array) -> Array:
            return self._runs(sample, network, key, kicks)["weights"][0]

        def moved(step: Array, sign: Array) -> Array:
            kick = zeros.at[step].set(sign * scale)
            return jax.jvp(weights, (zeros,), (kick,))[1] @ sign / self.d

        every = jax.vmap(jax.vmap(moved, (None, 0)), (0, None))
        found = jnp.mean(every(jnp.arange(self.steps), signs.astype(dtype)), axis=1)
        return jnp.pad(found.T, ((0, 0), (0, 1)))


def weights_of(network: Any) -> Array:
    """The weights of a linear model."""
    return network.w


def observed(data: Any, sample: Sample, weights: Array, readout: Any) -> dict[str, Any]:
    """The curves that follow from weights (replicas, times, d)."""
    replicas, _, d = weights.shape
    overlap = weights @ sample.direction / d
    correlation = jnp.mean(jnp.einsum("ktd,kud->ktu", weights, weights), axis=0) / d
    if sample.covariance.ndim == 1:
        turned = weights * sample.covariance
    else:
        turned = weights @ sample.covariance
    variance = jnp.sum(turned * weights, axis=-1) / d
    error = jnp.mean(data.test_error(overlap, variance, readout), axis=0)
    distance = None
    if replicas > 1:
        apart = weights - weights[0]  # exactly 0 for runs that are equal
        spread = jnp.mean(jnp.square(apart - jnp.mean(apart, axis=0)), axis=(0, 2))
        distance = 2 * replicas / (replicas - 1) * spread
    return {
        "overlap": jnp.mean(overlap, axis=0),
        "correlation": correlation,
        "test_error": error,
        "distance": distance,
    }
