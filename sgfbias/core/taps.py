"""Taps: the inputs and outputs of the layers inside a model, and a tangent added to
each output.

Linear, convolutional and embedding layers are found by type, and each is replaced by a
layer of the same class that reports its calls. A call inside `vmap`, such as a linear
layer that is mapped over positions, is one call with many positions. Calls whose
inputs cannot leave the place where they are made, as in a scan, are not reported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array

LAYERS = (eqx.nn.Linear, eqx.nn.Conv, eqx.nn.Embedding)


class Call(NamedTuple):
    """One call of a layer, in the order of the calls.

    - `weight`, `bias`: which leaves of the model, counted as `jax.tree.leaves` does,
      are the weight and the bias of the layer; None if there is no bias.
    - `kind`: "linear", "conv" or "embedding".
    - `shape`, `dtype`: the shape and the dtype of the output. A layer that is mapped
      over positions has them as leading axes, `mapped` in number.
    - `layer`: the layer without arrays, for its settings.
    """

    weight: int
    bias: int | None
    kind: str
    shape: tuple[int, ...]
    dtype: Any
    mapped: int
    layer: Any


class Tapped(NamedTuple):
    """What a tapped evaluation of a model gives.

    - `output`: the output of the model.
    - `inputs`, `outputs`: the input and the output of every call, with the mapped axes
      first.
    - `calls`: a `Call` for each of them.
    """

    output: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    calls: tuple[Call, ...]


class Recorder:
    """Collects the calls of the layers of one evaluation."""

    def __init__(self, network: Any, allowed: frozenset[int], tangents: Any, *, cut: bool):
        leaves = jax.tree.leaves(network)
        self.place = {id(leaf): k for k, leaf in enumerate(leaves) if k in allowed}
        self.tangents, self.cut = tangents, cut
        self.state = get_opaque_trace_state()
        self.calls: list[Call] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def outside(self) -> bool:
        """Whether the evaluation is where it began, and not in a scan or a map."""
        return bool(get_opaque_trace_state() == self.state)

    def call(self, layer: Any, weight: Any, bias: Any, x: Any, mapped: int) -> Any:
        """The output of the layer, mapped over `mapped` leading axes of `x`."""
        plain = functools.partial(_plain, layer)
        for _ in range(mapped):
            plain = jax.vmap(plain, in_axes=(None, None, 0))
        own, other = self.place.get(id(weight)), self.place.get(id(bias))
        if own is None or (bias is not None and other is None):
            return plain(weight, bias, x)
        if not self.outside():
            return self._inside(plain, layer, weight, bias, x, mapped)
        if self.cut:  # an output that does not depend on the arrays of the layer
            weight, bias = jax.tree.map(jnp.zeros_like, (weight, bias))
        output = plain(weight, bias, x)
        if self.tangents is not None:
            output = output + self.tangents[len(self.calls)]
        settings = eqx.filter(layer, eqx.is_array, inverse=True)
        self.calls.append(
            Call(own, other, kind_of(layer), output.shape, output.dtype, mapped, settings)
        )
        self.inputs.append(x)
        self.outputs.append(output)
        return output

    def _inside(self, plain: Any, layer: Any, weight: Any, bias: Any, x: Any, mapped: int) -> Any:
        """The output of a layer that is called inside a transformation.

        If this is a map over its inputs, the call is made again outside with all inputs
        at once.
        """

        def rule(size: int, batched: Any, w: Any, b: Any, x: Any) -> Any:
            if batched[2] and not any(jax.tree.leaves(batched[:2])):
                return self.call(layer, w, b, x, mapped + 1), True
            axes = jax.tree.map(lambda own: 0 if own else None, tuple(batched))
            return jax.vmap(plain, in_axes=axes, axis_size=size)(w, b, x), True

        mapping = jax.custom_batching.custom_vmap(plain)
        mapping.def_vmap(rule)
        return mapping(weight, bias, x)


def kind_of(layer: Any) -> str:
    """Whether a layer is "linear", "conv" or "embedding"."""
    names = ("linear", "conv", "embedding")
    return next(n for n, c in zip(names, LAYERS, strict=True) if isinstance(layer, c))


def tapped_arrays(network: Any) -> dict[int, str]:
    """The leaves of a model that belong to layers with taps.

    **Returns:** from the index of the leaf, counted as `jax.tree.leaves` does, to the
    name of its layer, such as "layers[0]".
    """
    found: dict[int, str] = {}
    count = 0
    for path, node in jax.tree_util.tree_flatten_with_path(network, is_leaf=_has_tap)[0]:
        size = len(jax.tree.leaves(node))
        if _has_tap(node):
            name = jax.tree_util.keystr(path).removeprefix(".") or "model"
            found |= dict.fromkeys(range(count, count + size), name)
        count += size
    return found


def run_tapped(
    network: Any,
    x: Any,
    allowed: frozenset[int],
    tangents: Sequence[Array] | None = None,
    *,
    cut: bool = False,
) -> Tapped:
    """Evaluate a model on one example with taps.

    The arrays of the model must be different objects, as they are inside a function
    that is being traced.

    **Arguments:**

    - `network`: an Equinox module.
    - `x`: the example.
    - `allowed`: the leaves that layers with taps may have; a call of a layer with
      another array, such as a weight that is computed, is not reported.
    - `tangents`: an array of the shape of its output for every call, which is added.
    - `cut`: whether the outputs of reported calls shall not depend on the arrays of the
      layers. Their values are then meaningless. It tells whether a model uses an array
      anywhere else.
    """
    recorder = Recorder(network, allowed, tangents, cut=cut)
    wired = jax.tree.map(
        lambda node: _with_tap(node, recorder) if _has_tap(node) else node,
        network,
        is_leaf=_has_tap,
    )
    output = wired(x)
    return Tapped(output, tuple(recorder.inputs), tuple(recorder.outputs), tuple(recorder.calls))


def reported(network: Any, x: Any) -> tuple[frozenset[int], tuple[Call, ...]]:
    """The arrays of a model that it uses in reported calls of layers and nowhere else.

    **Arguments:**

    - `network`: an Equinox module.
    - `x`: the shape and dtype of one example.

    **Returns:** the indices of these leaves, counted as `jax.tree.leaves` does, and
    the calls that are reported if no other leaf is allowed.
    """
    leaves, structure = jax.tree.flatten(network)
    arrays = {k for k, leaf in enumerate(leaves) if eqx.is_array(leaf)}
    allowed = frozenset(tapped_arrays(network)) & arrays
    while True:
        calls: tuple[Call, ...] = ()

        def outputs(values: dict[int, Array], x: Any, allowed: frozenset[int] = allowed) -> Any:
            nonlocal calls
            model = jax.tree.unflatten(structure, [values.get(k, v) for k, v in enumerate(leaves)])
            tapped = run_tapped(model, x, allowed, cut=True)
            calls = tapped.calls
            return tapped.output

        order = sorted(arrays)
        jaxpr = jax.make_jaxpr(outputs)({k: leaves[k] for k in order}, x).jaxpr
        read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
        read |= {id(v) for v in jaxpr.outvars}
        used = {k for k, v in zip(order, jaxpr.invars, strict=False) if id(v) in read}
        # A call needs both its arrays, and an array one kind of calls.
        kinds: dict[int, set[str]] = {}
        for call in calls:
            kinds.setdefault(call.weight, set()).add(call.kind)
        wrong = used | {k for k, kind in kinds.items() if len(kind) > 1}
        wrong |= {c.weight for c in calls if not _is_supported(c)}
        wrong |= {c.weight for c in calls} & {c.bias for c in calls if c.bias is not None}
        if not wrong & allowed:
            return allowed, calls
        allowed -= wrong


def _is_supported(call: Call) -> bool:
    """Whether the gradient of a call's weight is a sum of products of known factors."""
    layer = call.layer
    return call.kind != "conv" or (layer.groups == 1 and layer.padding_mode == "ZEROS")


def patches(call: Call, x: Array) -> Array:
    """The patches that a convolution multiplies with its weight, (positions, size).

    The entries of a patch are in the order of the weight's.
    """
    layer = call.layer
    flat = x.reshape(-1, *x.shape[call.mapped :])
    found = jax.lax.conv_general_dilated_patches(
        flat,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        rhs_dilation=layer.dilation,
        precision=jax.lax.Precision.HIGHEST,
    )
    rows = found.reshape(flat.shape[0], found.shape[1], math.prod(found.shape[2:]))
    return jnp.swapaxes(rows, 1, 2).reshape(-1, found.shape[1])


def _has_tap(node: Any) -> bool:
    """Whether a node is a layer whose calls are those of its class in Equinox."""
    return any(isinstance(node, c) and type(node).__call__ is c.__call__ for c in LAYERS)


@functools.cache
def _class_with_tap(plain: Any) -> Any:
    """The subclass of a class of layers whose calls are reported."""

    class WithTap(plain):
        recorder: Any = eqx.field(static=True)

        def __call__(self, x: Any, *, key: Any = None) -> Any:
            return self.recorder.call(_without_tap(self), self.weight, _bias(self), x, 0)

    WithTap.__name__ = WithTap.__qualname__ = plain.__name__
    WithTap.plain = plain
    return WithTap


def _bias(layer: Any) -> Any:
    return getattr(layer, "bias", None)


def _copied(layer: Any, into: Any, **more: Any) -> Any:
    """The layer as an instance of the class `into`."""
    made = object.__new__(into)
    own = {name: getattr(layer, name) for name in type(layer).__dataclass_fields__}
    for name in into.__dataclass_fields__:
        object.__setattr__(made, name, more[name] if name in more else own[name])
    return made


def _with_tap(layer: Any, recorder: Recorder) -> Any:
    return _copied(layer, _class_with_tap(type(layer)), recorder=recorder)


def _without_tap(layer: Any) -> Any:
    return _copied(layer, type(layer).plain)


def _plain(layer: Any, weight: Any, bias: Any, x: Any) -> Any:
    """The output of a layer with the given arrays."""
    layer = _copied(
        layer, type(layer), **{"weight": weight, **({} if bias is None else {"bias": bias})}
    )
    return layer(x)
