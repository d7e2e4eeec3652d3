"""Finite systems of a model with several outputs."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.meanfield.data import Sample
from sgfbias.meanfield.outputs import start_matrices
from sgfbias.meanfield.system import System


class LinearOutputs(eqx.Module):
    """The model `f(X) = readout(W X)`.

    - `w`: (K, d).
    """

    w: Array
    readout: Any = eqx.field(static=True, default=None)

    def __call__(self, x: Array) -> Array:
        r = self.w @ x
        return r if self.readout is None else self.readout(r)


class MatrixSystem(System):
    """What the runs of all keys share, for a model with weights (K, d)."""

    def __init__(self, outputs, *shared):
        super().__init__(*shared)
        self.outputs = outputs

    def network(self, w):
        return LinearOutputs(w, self.readout)

    def observed(self, sample, weights):
        """The curves that follow from weights (replicas, times, K, d)."""
        return observed_matrices(self.data, sample, weights, self.readout)

    def _start(self, key, sample):
        v = sample.direction
        dtype = v.dtype
        ends = start_matrices(self.start, self.outputs, v.shape[0])
        overlap, variance = (part.astype(dtype) for part in ends)
        values, vectors = jnp.linalg.eigh(variance)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))
        normal = jax.random.normal(key, (self.outputs, self.d), dtype)
        gram = v @ v.T / self.d
        w = overlap @ jnp.linalg.pinv(gram, hermitian=True) @ v + root @ normal
        return on_spheres(LinearOutputs(w)).w if self.rule.sphere else w

    def _projection(self):
        return on_spheres

    def _response(self, sample, network, key, probe_key):
        """The response (times, times, K, K) of the first replica, by forward
        derivatives in kicks of each output.
        """
        key = jax.random.split(key, self.replicas)[:1]
        dtype, n = sample.inputs.dtype, sample.inputs.shape[0]
        signs = jax.random.rademacher(probe_key, (self.probes, self.d), dtype=jnp.int32)
        scale = 1 / (self.rule.step_size * n).astype(dtype)
        zeros = jnp.zeros((self.steps, self.outputs, self.d), dtype)

        def weights(kicks: Array) -> Array:
            return self._runs(sample, network, key, kicks)["weights"][0]

        def moved(step: Array, output: Array, sign: Array) -> Array:
            kick = zeros.at[step, output].set(sign * scale)
            return jax.jvp(weights, (zeros,), (kick,))[1] @ sign / self.d

        every = jax.vmap(
            jax.vmap(jax.vmap(moved, (None, None, 0)), (None, 0, None)), (0, None, None)
        )
        found = every(jnp.arange(self.steps), jnp.arange(self.outputs), signs.astype(dtype))
        # The axes are the kick's step and output, and the time and output that move.
        found = jnp.transpose(jnp.mean(found, axis=2), (2, 0, 3, 1))
        return jnp.pad(found, ((0, 0), (0, 1), (0, 0), (0, 0)))


def on_spheres(network: LinearOutputs) -> LinearOutputs:
    """The model whose weights w_k of each output have the norm sqrt(d)."""
    w = network.w
    norms = jnp.linalg.norm(w, axis=-1, keepdims=True)
    return LinearOutputs(w * (w.shape[-1] ** 0.5 / norms), network.readout)


def observed_matrices(data: Any, sample: Sample, weights: Array, readout: Any) -> dict[str, Any]:
    """The curves that follow from weights (replicas, times, K, d)."""
    replicas, d = weights.shape[0], weights.shape[-1]
    overlap = weights @ sample.direction.T / d
    correlation = jnp.mean(jnp.einsum("rtad,rucd->rtuac", weights, weights), axis=0) / d
    if sample.covariance.ndim == 1:
        turned = weights * sample.covariance
    else:
        turned = weights @ sample.covariance
    variance = jnp.einsum("rtad,rtcd->rtac", turned, weights) / d
    error = jnp.mean(data.test_error(overlap, variance, readout), axis=0)
    distance = None
    if replicas > 1:
        apart = weights - weights[0]  # exactly 0 for runs that are equal
        square = jnp.square(apart - jnp.mean(apart, axis=0))
        distance = 2 * replicas / (replicas - 1) * jnp.mean(jnp.sum(square, axis=2), axis=(0, 2))
    return {
        "overlap": jnp.mean(overlap, axis=0),
        "correlation": correlation,
        "test_error": error,
        "distance": distance,
    }
