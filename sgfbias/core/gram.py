"""The Gram matrix of a model's Jacobian, part by part, from the structure of layers.

For a linear layer with input h and cotangents b = df/d(output), the gradient of output
a of example i in the weight is the sum over calls and positions p of `b_iap h_ip^T`.
The sum is taken first, as the kernel is `J J^T` with all uses of a weight in J. Its
part of the kernel is

    K[i, j, a, b] = sum_pq (h_ip . h_jq) (b_iap . b_jbq),

either from these inner products of positions, or from the gradients, whichever takes
fewer operations. Arrays that a model uses in another way have their gradients taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.taps import Call, patches, reported, run_tapped, tapped_arrays

# Bytes that the numbers of one block of examples, and of one pair of blocks, may take.
BLOCK_BYTES = 256 * 2**20
HIGHEST = jax.lax.Precision.HIGHEST


class Part(NamedTuple):
    """The arrays whose part of the kernel is computed together.

    - `group`: the name of the parameter group to which the part is added.
    - `leaves`: the leaves of the model, counted as `jax.tree.leaves` does.
    - `kind`: "linear", "conv", "embedding" or "bias"; or "jacobian" for arrays whose
      gradients are taken.
    - `calls`: the calls that use the arrays.
    - `ones`: whether the inputs have an entry 1 besides, which stands for the bias.
    - `pairs`: whether the part comes from inner products of positions.
    """

    group: str
    leaves: tuple[int, ...]
    kind: str
    calls: tuple[int, ...] = ()
    ones: bool = False
    pairs: bool = False


class Plan(NamedTuple):
    """How the kernel of a model is computed.

    - `parts`: the parts, in the order of the model's arrays.
    - `allowed`, `calls`: what is tapped, see `run_tapped`.
    - `outputs`: the number of outputs of an example.
    - `traced`: whether the outputs are summed over.
    - `example_bytes`, `pair_bytes`: bytes that an example needs, and a pair of them.
    """

    parts: tuple[Part, ...]
    allowed: frozenset[int]
    calls: tuple[Call, ...]
    outputs: int
    traced: bool
    example_bytes: int
    pair_bytes: int

    def block(self, n: int) -> int:
        """The number of examples in a block."""
        fits = min(
            BLOCK_BYTES // max(self.example_bytes, 1),
            math.isqrt(BLOCK_BYTES // max(self.pair_bytes, 1)),
        )
        return max(1, min(n, fits))


def groups_of(network: Any, trainable: frozenset[int]) -> dict[str, tuple[int, ...]]:
    """The parameter groups of a model: the name of each and its leaves.

    Each linear, convolutional and embedding layer is a group, and every other array is
    one of its own.
    """
    layers = tapped_arrays(network)
    found: dict[str, tuple[int, ...]] = {}
    for k, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(network)[0]):
        if k in trainable:
            name = layers.get(k) or jax.tree_util.keystr(path).removeprefix(".") or "model"
            found[name] = (*found.get(name, ()), k)
    return found


def plan_for(
    network: Any, x: Any, trainable: frozenset[int], *, structured: bool, traced: bool
) -> Plan:
    """How to compute the kernel of a model.

    **Arguments:**

    - `network`: an Equinox module.
    - `x`: the shape and dtype of one example.
    - `trainable`: the leaves that are parameters.
    - `structured`: whether to use the structure of layers.
    - `traced`: whether to sum over the outputs.
    """
    output = eqx.filter_eval_shape(network, x)
    count, width = math.prod(output.shape), output.dtype.itemsize
    allowed, calls = reported(network, x) if structured else (frozenset[int](), ())
    # Calls of layers that are frozen need no taps.
    calls = tuple(call for call in calls if {call.weight, call.bias} & trainable)
    tapped = {k for call in calls for k in (call.weight, call.bias)}
    allowed &= frozenset(k for k in tapped if k is not None) | trainable
    leaves = jax.tree.leaves(network)
    parts: list[Part] = []
    example, pair = 0, 8 * (1 if traced else count**2)
    for group, members in groups_of(network, trainable).items():
        for part in _parts_of(group, members, allowed, calls):
            if part.kind in ("bias", "jacobian"):
                example += width * count * sum(leaves[k].size for k in part.leaves)
            else:
                part, more, of_pair = _chosen(part, calls, leaves, count, traced=traced)
                example, pair = example + width * more, max(pair, 8 * of_pair)
            parts.append(part)
    example += width * count * sum(math.prod(call.shape) for call in calls)
    return Plan(tuple(parts), allowed, calls, count, traced, example, pair)


def _parts_of(
    group: str, members: Sequence[int], allowed: frozenset[int], calls: Sequence[Call]
) -> list[Part]:
    """The parts of one group."""
    free = tuple(k for k in members if k not in allowed)
    parts = [Part(group, free, "jacobian")] if free else []
    by_weight = {k: tuple(c for c, call in enumerate(calls) if call.weight == k) for k in members}
    by_bias = {k: tuple(c for c, call in enumerate(calls) if call.bias == k) for k in members}
    joined: set[int] = set()
    for k in members:
        if k in free or not by_weight[k]:
            continue
        biases = {calls[c].bias for c in by_weight[k]}
        bias = biases.pop() if len(biases) == 1 else None
        ones = bias is not None and bias not in free and by_bias.get(bias) == by_weight[k]
        leaves = (k, bias) if bias is not None and ones else (k,)
        joined |= set(leaves)
        parts.append(Part(group, leaves, calls[by_weight[k][0]].kind, by_weight[k], ones))
    for k in members:
        # What no call uses has no part, and an empty sum gives its zeros.
        if k not in free and k not in joined:
            parts.append(Part(group, (k,), "bias", by_bias[k]))
    return parts


def _chosen(
    part: Part, calls: Sequence[Call], leaves: Sequence[Any], outputs: int, *, traced: bool
) -> tuple[Part, int, int]:
    """The part with the cheaper of its two forms, the numbers that it keeps for an
    example, and those for a pair of examples.
    """
    weight = leaves[part.leaves[0]]
    positions = sum(_positions(calls[c]) for c in part.calls)
    if part.kind == "embedding":
        outer, inner, compare = weight.shape[1], weight.shape[0], 1
    else:
        outer = weight.shape[0]
        inner = compare = math.prod(weight.shape[1:]) + part.ones
    both = outputs if traced else outputs**2
    by_pairs = positions**2 * (compare + both * (outer + 1))
    by_gradients = both * outer * inner
    if by_pairs <= by_gradients:
        kept = positions * (compare + outputs * outer)
        return part._replace(pairs=True), kept, positions**2 * (1 + both)
    return part, outputs * outer * inner + positions * (compare + outputs * outer), both


def _positions(call: Call) -> int:
    """The number of positions at which a call uses its weight."""
    mapped = math.prod(call.shape[: call.mapped])
    return mapped * (math.prod(call.shape[call.mapped + 1 :]) if call.kind == "conv" else 1)


@eqx.filter_jit
def factors(network: Any, x: Any, plan: Plan) -> list[Any]:
    """For every part, what a block of examples contributes to the kernel.

    It is `(inputs, cotangents)`, of shapes (n, positions, size) and (n, outputs,
    positions, size), for a part of pairs, where inputs of an embedding are whole
    numbers (n, positions). Otherwise it is the Jacobian, (n, outputs, size).
    """
    leaves, structure = jax.tree.flatten(network)
    free = {k: leaves[k] for part in plan.parts if part.kind == "jacobian" for k in part.leaves}

    def one(x: Any) -> list[Any]:
        def outputs(moved: Any, tangents: Any) -> Any:
            model = jax.tree.unflatten(structure, [moved.get(k, v) for k, v in enumerate(leaves)])
            tapped = run_tapped(model, x, plan.allowed, tangents)
            return tapped.output.reshape(-1), tapped.inputs

        zeros = [jnp.zeros(call.shape, call.dtype) for call in plan.calls]
        output, vjp, inputs = jax.vjp(outputs, free, zeros, has_aux=True)
        own, cotangents = jax.vmap(vjp)(jnp.eye(plan.outputs, dtype=output.dtype))
        return [_factor(part, plan, leaves, own, inputs, cotangents) for part in plan.parts]

    return jax.vmap(one)(x)


def _factor(
    part: Part, plan: Plan, leaves: Sequence[Any], own: Any, inputs: Any, cotangents: Any
) -> Any:
    """What one example contributes to a part."""
    count = plan.outputs
    if part.kind == "jacobian":
        return jnp.concatenate([own[k].reshape(count, -1) for k in part.leaves], axis=1)
    flat = [_by_position(plan.calls[c], cotangents[c]) for c in part.calls]
    if part.kind == "bias":
        leaf = leaves[part.leaves[0]]
        zero = jnp.zeros((count, leaf.size), leaf.dtype)
        return sum((jnp.sum(b, axis=1) for b in flat), zero)
    b = jnp.concatenate(flat, axis=1)
    h = jnp.concatenate([_input_rows(plan.calls[c], inputs[c]) for c in part.calls])
    if part.kind == "embedding":
        size = leaves[part.leaves[0]].shape[0]
        h = jnp.where(h < 0, h + size, h)
        if part.pairs:
            return h, b
        zero = jnp.zeros((count, size, b.shape[2]), b.dtype)
        return zero.at[:, h].add(b).reshape(count, -1)
    if part.ones:
        h = jnp.concatenate([h, jnp.ones((h.shape[0], 1), h.dtype)], axis=1)
    if part.pairs:
        return h, b
    return jnp.einsum("apm,pk->amk", b, h, precision=HIGHEST).reshape(count, -1)


def _by_position(call: Call, cotangent: Array) -> Array:
    """The cotangents of a call, (outputs, positions, size)."""
    count, mapped = cotangent.shape[0], math.prod(call.shape[: call.mapped])
    if call.kind != "conv":
        size = math.prod(call.shape[call.mapped :])
        return cotangent.reshape(count, mapped, size)
    flat = cotangent.reshape(count, mapped, call.shape[call.mapped], _positions(call) // mapped)
    return jnp.swapaxes(flat, 2, 3).reshape(count, -1, call.shape[call.mapped])


def _input_rows(call: Call, x: Array) -> Array:
    """The inputs of a call by position: rows, or whole numbers of an embedding."""
    if call.kind == "conv":
        return patches(call, x)
    mapped = math.prod(call.shape[: call.mapped])
    return x.reshape(mapped) if call.kind == "embedding" else x.reshape(mapped, -1)


@eqx.filter_jit
def contract(one: list[Any], other: list[Any], plan: Plan) -> dict[str, Array]:
    """The parts of the kernel between two blocks of examples, by group.

    They have shape (n, m, outputs, outputs), or (n, m) if the outputs are summed over.
    """
    second, result = ("a", "") if plan.traced else ("b", "ab")
    parts: dict[str, Array] = {}
    for part, left, right in zip(plan.parts, one, other, strict=True):
        if not part.pairs:
            form = f"iaq,j{second}q->ij{result}"
            value = jnp.einsum(form, left, right, precision=HIGHEST)
        else:
            (h, b), (h_other, b_other) = left, right
            if part.kind == "embedding":
                same = h[:, :, None, None] == h_other[None, None]
                inner = same.astype(b.dtype)
            else:
                inner = jnp.einsum("ipk,jqk->ipjq", h, h_other, precision=HIGHEST)
            form = f"ipjq,iapm,j{second}qm->ij{result}"
            if h.shape[1] == h_other.shape[1] == 1:
                outer = jnp.einsum(
                    f"iam,j{second}m->ij{result}", b[:, :, 0], b_other[:, :, 0], precision=HIGHEST
                )
                inner = inner[:, 0, :, 0]
                value = inner.reshape(*inner.shape, *(1,) * len(result)) * outer
            else:
                value = jnp.einsum(form, inner, b, b_other, precision=HIGHEST)
        parts[part.group] = parts[part.group] + value if part.group in parts else value
    return parts


def gram(network: Any, x: Any, other: Any, plan: Plan, block: int | None) -> dict[str, Array]:
    """The parts of the kernel by group, in blocks of examples.

    **Arguments:**

    - `network`: an Equinox module.
    - `x`, `other`: the examples of the rows and of the columns; `other` is None if they
      are the same, and then each pair of blocks is computed once.
    - `plan`: how to compute it.
    - `block`: the number of examples of a block, or None for as many as fit.

    **Returns:** group -> (n, m, outputs, outputs), or (n, m) if the outputs are summed
    over.
    """
    columns = x if other is None else other
    n, m = x.shape[0], columns.shape[0]
    size = plan.block(max(n, m)) if block is None else block
    if n <= size and m <= size:
        left = factors(network, x, plan)
        return contract(left, left if other is None else factors(network, other, plan), plan)
    whole: dict[str, Any] = {}
    shape = (n, m) if plan.traced else (n, m, plan.outputs, plan.outputs)
    plain = is_concrete((network, x, other))
    for i in range(0, n, size):
        left = factors(network, x[i : i + size], plan)
        for j in range(i if other is None else 0, m, size):
            same = other is None and i == j
            right = left if same else factors(network, columns[j : j + size], plan)
            for name, part in contract(left, right, plan).items():
                flipped = part.swapaxes(0, 1) if plan.traced else part.transpose(1, 0, 3, 2)
                pieces = [((i, j), part)]
                if other is None and not same:
                    pieces.append(((j, i), flipped))
                if name not in whole:
                    whole[name] = (np if plain else jnp).zeros(shape, part.dtype)
                for (r, c), piece in pieces:
                    at = slice(r, r + piece.shape[0]), slice(c, c + piece.shape[1])
                    if plain:
                        whole[name][at] = np.asarray(piece)
                    else:
                        whole[name] = whole[name].at[at].set(piece)
    return {name: jnp.asarray(whole.pop(name)) for name in list(whole)}


def jacobian_gram(rows: Array, other: Array | None, *, traced: bool) -> Array:
    """`J J'^T` from rows (n, outputs, size) and (m, outputs, size)."""
    form = "iaq,jaq->ij" if traced else "iaq,jbq->ijab"
    return jnp.einsum(form, rows, rows if other is None else other, precision=HIGHEST)
