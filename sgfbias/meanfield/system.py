"""Finite systems of a model with one output: data, start, runs, and what they show."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.problem import Problem
from sgfbias.core.project import Sphere
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate as simulate_core
from sgfbias.core.starts import Stacked
from sgfbias.meanfield.data import Sample


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
    - `kicks`: (steps, d), or (steps, K, d) with K outputs, what is subtracted from the
      gradient of the mean loss.
    """

    ridge: Array
    kicks: Array | None = None

    def __call__(self, network: Any, step: Any) -> Array:
        value = self.ridge * jnp.sum(jnp.square(network.w)) / 2
        if self.kicks is None:
            return value
        return value - jnp.vdot(self.kicks[step], network.w)


class System:
    """What the runs of all keys share."""

    def __init__(self, data, loss, rule, start, readout, d, steps, replicas, probes, dtype):
        self.data, self.loss, self.rule, self.start = data, loss, rule, start
        self.readout, self.d, self.steps = readout, d, steps
        self.replicas, self.probes, self.dtype = replicas, probes, dtype

    def network(self, w: Array) -> Any:
        """The model with the weights w."""
        return Linear(w, self.readout)

    def observed(self, sample: Sample, weights: Array) -> dict[str, Any]:
        """The curves that follow from weights (replicas, times, d)."""
        return observed(self.data, sample, weights, self.readout)

    def run(self, key: Array) -> dict[str, Any]:
        """The curves of one key."""
        first, second, third, fourth = jax.random.split(key, 4)
        sample = self.data.sample(first, self.d, jnp.dtype(self.dtype))
        network = self.network(self._start(second, sample))
        runs = self._runs(sample, network, jax.random.split(third, self.replicas))
        weights = runs["weights"]
        curves = self.observed(sample, weights)
        response = self._response(sample, network, third, fourth) if self.probes else None
        return {**curves, "loss": jnp.mean(runs["loss"], axis=0), "response": response}

    def _start(self, key: Array, sample: Sample) -> Array:
        v = sample.direction
        noise = jnp.sqrt(self.start.variance).astype(v.dtype) * jax.random.normal(
            key, v.shape, v.dtype
        )
        w = self.start.overlap.astype(v.dtype) * v * (self.d / jnp.sum(jnp.square(v))) + noise
        return w * math.sqrt(self.d) / jnp.linalg.norm(w) if self.rule.sphere else w

    def _projection(self) -> Any:
        """What puts the model on the sphere after every step."""
        return Sphere(float(math.sqrt(self.d)))

    def _dynamics(self, n: int) -> Any:
        """The algorithm of the core, whose loss is a mean over the n examples."""
        rule = self.rule
        project = self._projection() if rule.sphere else None
        step_size = rule.step_size * n
        if rule.mask is None:
            return GradientDescent(step_size, project=project)
        return StochasticGradientDescent(step_size, sampling=rule.mask, project=project)

    def _runs(self, sample: Sample, network: Any, keys: Array, kicks: Array | None = None) -> Any:
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

    def _response(self, sample: Sample, network: Any, key: Array, probe_key: Array) -> Array:
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
    signal = turned @ sample.direction / d if data.is_teacher else overlap
    error = jnp.mean(data.test_error(signal, variance, readout), axis=0)
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
