"""Whether a model is homogeneous in its parameters, and of which degree."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.network import declared_trainable, evaluate
from sgfbias.core.weights import Weights
from sgfbias.margin.kinks import has_kinks

# The relative error of Euler's identity up to which a model counts as homogeneous, in
# units of the square root of the rounding of the precision.
TOLERANCE = 1.0
# A leaf in which the outputs have a smaller degree than this is one that is normalised.
NORMALISED = 0.01


class Homogeneity(NamedTuple):
    """What `homogeneity` found.

    - `degree`: L, for which `f(c w) = c^L f(w)` for all c > 0.
    - `residual`: the largest error of `<w, grad f> = L f`, over the largest output.
    - `leaves`: the degree in each array by name, as the least and the largest over the
      outputs. An array whose degree varies has no degree of its own.
    - `kinks`: whether the derivative of the outputs jumps, as for ReLU networks.
    """

    degree: float
    residual: float
    leaves: dict[str, tuple[float, float]]
    kinks: bool = False

    def __repr__(self) -> str:
        lines = [f"homogeneous of degree {self.degree:g}, residual {self.residual:.0e}"]
        if self.kinks:
            lines[0] += ", with kinks"
        lines += [f"  {name}: {_range(low, high)}" for name, (low, high) in self.leaves.items()]
        return "\n".join(lines)


def homogeneity(model: Any, inputs: Array, *, trainable: Any = None) -> Homogeneity:
    """The degree L of a model that is homogeneous in its trainable parameters.

    Euler's identity `<w, grad f> = L f` is tested on all inputs, at the weights of the
    model and at random ones, where biases that start at 0 are seen, too.

    **Arguments:**

    - `model`: an Equinox module that maps one example to its output.
    - `inputs`: (n, ...), examples.
    - `trainable`: which arrays are parameters, as in `simulate`. Default: what the
      network declares, or all floating-point arrays.

    **Returns:** a `Homogeneity` with `degree`, `residual`, `leaves` and `kinks`.

    **Raises:** `ValueError` if the model is not homogeneous, which names the arrays
    that are to blame; and if it is normalised, so that its degree in an array is 0.
    """
    inputs = jnp.asarray(inputs)
    trainable = declared_trainable(model) if trainable is None else trainable
    coordinates = Weights(model, inputs.dtype, trainable=True if trainable is None else trainable)
    position = coordinates.encode(model)
    found = check_homogeneous(coordinates, position, inputs)
    return found._replace(kinks=has_kinks(coordinates, position, inputs))


def check_homogeneous(coordinates: Any, position: Any, inputs: Array) -> Homogeneity:
    """The `Homogeneity` of the outputs in the position.

    **Raises:** as `homogeneity`.
    """
    names, elsewhere = _names(position), _elsewhere(position)
    parts = []
    for at in (position, elsewhere):
        value, radial = _by_leaf(coordinates, at, inputs)
        parts.append((np.asarray(value, np.float64), np.asarray(radial, np.float64)))
    degree, residual = _fit(parts)
    outputs, rows = parts[1]
    leaves = {name: _spread(outputs, row) for name, row in zip(names, rows, strict=True)}
    bound = TOLERANCE * float(np.sqrt(jnp.finfo(inputs.dtype).eps))
    scale = np.abs(outputs).max()
    zero = [
        name
        for name, (low, high), row in zip(names, leaves.values(), rows, strict=True)
        if max(abs(low), abs(high)) < NORMALISED and _moves(coordinates, elsewhere, inputs, name)
    ]
    if zero and scale > 0:
        raise ValueError(
            f"the model has degree 0 in {', '.join(zero)}, so the size of these weights means "
            "nothing and no margin can be normalised by it: a normalisation layer follows them; "
            "leave out LayerNorm, RMSNorm, BatchNorm and the like"
        )
    if residual > bound:
        total = rows.sum(axis=0)
        low, high = _spread(outputs, total)
        listed = "; ".join(f"{name} {_range(*pair)}" for name, pair in leaves.items())
        blamed = _blamed(coordinates, elsewhere, inputs, names, bound)
        raise ValueError(
            "the model is not homogeneous: <w, grad f> / f varies from "
            f"{low:.4g} to {high:.4g} over the examples"
            + (f", because of {', '.join(blamed)}" if blamed else "")
            + ". Biases after the first layer do this: write MLP(use_bias=False, "
            "use_final_bias=False), or set them to 0 and freeze them with trainable=; and so do "
            "activations other than powers of ReLU, such as tanh, gelu and softplus. Degrees by "
            f"array: {listed}"
        )
    return Homogeneity(degree, residual, leaves)


def _names(position: Any) -> list[str]:
    """The names of the arrays in a position, such as `layers[0].weight`."""
    paths = jax.tree_util.tree_flatten_with_path(position)[0]
    return [jax.tree_util.keystr(path).lstrip(".") or "the weights" for path, _ in paths]


def _elsewhere(position: Any) -> Any:
    """Other weights of the same sizes, with no zeros."""
    leaves, structure = jax.tree.flatten(position)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def moved(leaf: Array, key: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.square(leaf)))
        size = jnp.where(size > 0, size, 1)
        return leaf + 0.5 * size * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(structure, [moved(a, k) for a, k in zip(leaves, keys, strict=True)])


@eqx.filter_jit
def _by_leaf(coordinates: Any, position: Any, inputs: Array) -> tuple[Array, Array]:
    """The outputs, flat, and `<w_l, df/dw_l>` for every array l, (arrays, outputs)."""
    leaves, structure = jax.tree.flatten(position)
    outputs, push = jax.linearize(
        lambda p: evaluate(coordinates.decode(p), inputs).reshape(-1), position
    )
    rows = [
        push(
            jax.tree.unflatten(
                structure, [a if i == k else jnp.zeros_like(a) for i, a in enumerate(leaves)]
            )
        )
        for k in range(len(leaves))
    ]
    return outputs, jnp.stack(rows)


def _fit(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The degree that fits the outputs at all weights, and its largest relative
    error.
    """
    seen = [(value, rows.sum(axis=0)) for value, rows in parts if np.abs(value).max() > 0]
    if not seen:
        raise ValueError(
            "every output of the model is 0, also at random weights, so it has no degree: look at "
            "its activations"
        )
    top = [np.abs(value).max() for value, _ in seen]
    f = np.concatenate([value / m for (value, _), m in zip(seen, top, strict=True)])
    radial = np.concatenate([total / m for (_, total), m in zip(seen, top, strict=True)])
    degree = float(f @ radial / (f @ f))
    residual = float(np.abs(radial - degree * f).max())
    near = round(degree)
    whole = float(np.abs(radial - near * f).max())
    return (float(near), whole) if whole <= 2 * residual + 1e-6 else (degree, residual)


def _spread(value: np.ndarray, radial: np.ndarray) -> tuple[float, float]:
    """The least and the largest `<w, grad f> / f`, over outputs that are not small."""
    large = np.abs(value) > 1e-3 * np.abs(value).max()
    if not large.any():
        return 0.0, 0.0
    ratio = radial[large] / value[large]
    return float(ratio.min()), float(ratio.max())


def _range(low: float, high: float) -> str:
    """A degree, or the range of one that varies, in words."""
    if abs(high - low) < 1e-3:
        return f"degree {(low + high) / 2:.4g}"
    return f"varies from {low:.3g} to {high:.3g}"


def _moves(coordinates: Any, position: Any, inputs: Array, name: str) -> bool:
    """Whether the outputs depend on the array called `name` at all."""
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(evaluate(coordinates.decode(p), inputs))))(
        position
    )
    leaves = dict(zip(_names(position), jax.tree.leaves(gradient), strict=True))
    return bool(jnp.any(leaves[name] != 0))


def _blamed(
    coordinates: Any, position: Any, inputs: Array, names: list[str], bound: float
) -> list[str]:
    """The arrays that make a model not homogeneous: without them (set to 0) it is.

    They are set to 0 one after the other, each time the one that leaves the least
    error. The list is empty if that does not help.
    """
    leaves, structure = jax.tree.flatten(position)
    # Without its matrices a model is trivially simple, so only vectors are tried.
    tried = {k for k, leaf in enumerate(leaves) if leaf.ndim < 2}
    gone: list[int] = []
    for _ in tried:
        errors = {}
        for k in tried - set(gone):
            kept = [jnp.zeros_like(a) if i in (*gone, k) else a for i, a in enumerate(leaves)]
            value, rows = _by_leaf(coordinates, jax.tree.unflatten(structure, kept), inputs)
            if np.abs(value).max() > 0:
                errors[k] = _fit([(np.asarray(value), np.asarray(rows))])[1]
        if not errors:
            return []
        gone.append(min(errors, key=lambda k: errors[k]))
        if errors[gone[-1]] <= bound:
            return [names[k] for k in sorted(gone)]
    return []
