"""The empirical tangent kernel of a model: the function that computes it."""

from __future__ import annotations

import math
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.cached import cached
from sgfbias.core.checks import (
    as_numbers,
    as_whole,
    check_finite,
    is_concrete,
    outside_traces,
    shown,
)
from sgfbias.core.gram import Plan, gram, groups_of, jacobian_gram, plan_for
from sgfbias.core.jacobian import Jacobian, jacobian
from sgfbias.core.kernel import TangentKernel
from sgfbias.core.names import did_you_mean
from sgfbias.core.network import AbstractNetwork, evaluate
from sgfbias.core.problem import Problem
from sgfbias.core.stale import drop_stale_programs

METHODS = ("auto", "structured", "jacobian", "products")
# "auto" forms the Jacobian of outputs that are evaluated jointly up to this size.
JACOBIAN_BYTES = 2**30


class Evaluate(eqx.Module):
    """The outputs of a model on examples, in the precision `dtype`."""

    dtype: Any = eqx.field(static=True)

    def __call__(self, network: Any, inputs: Array) -> Array:
        if jnp.issubdtype(inputs.dtype, jnp.floating):
            return evaluate(network, inputs)
        outputs = jax.vmap(network)(inputs)
        return outputs.astype(self.dtype)


def tangent_kernel(
    network: Any,
    inputs: Any,
    *,
    other: Any = None,
    method: str = "auto",
    outputs: str = "all",
    trainable: Any = None,
    microbatch: Any = None,
) -> TangentKernel:
    """The empirical tangent kernel `K[i, j, a, b] = <grad f_a(x_i), grad f_b(x_j)>` of
    any Equinox module, part by part for its layers.

    Nothing is divided by a width or by the number of examples. The kernel is exact up
    to rounding: a weight that is used several times has its gradients summed first.
    `jit`, `vmap` and `grad` apply, in the parameters and in the inputs.

    **Arguments:**

    - `network`: an Equinox module that maps one example to its outputs.
    - `inputs`: the n examples, (n, ...), real or whole numbers, or a `Problem`.
    - `other`: m other examples or another `Problem`, for the kernel between two sets.
      Default: the same examples.
    - `method`: "structured" uses the inputs of linear, convolutional and embedding
      layers and the derivatives in their outputs, and takes the gradients of all other
      arrays. "jacobian" takes the gradients of all arrays. "products" forms no matrix,
      and gives products and extreme eigenvalues only. "auto", the default, is
      "structured"; for a problem that evaluates its examples jointly it is "jacobian"
      if that fits into 1 GiB, and otherwise "products".
    - `outputs`: "all", or "trace" for the sum over the outputs of an example,
      `sum_a K[i, j, a, a]`, (n, m).
    - `trainable`: which arrays are parameters, as in `simulate`. Default: what the
      network declares, or all floating-point arrays.
    - `microbatch`: the number of examples of a block. Default: as many as 256 MiB hold.

    **Returns:** a `TangentKernel`.

    **Raises:** `ValueError` for a model that couples examples or that needs a key, for
    a kernel that would take more than half of the memory, and for arguments that do
    not fit.

    The structured method is that of Novak, Sohl-Dickstein, Schoenholz 2022 (arXiv
    2206.08720).
    """
    for name, value, known in (
        ("method", method, METHODS),
        ("outputs", outputs, ("all", "trace")),
    ):
        if value not in known:
            hint = did_you_mean(value, known).strip() if isinstance(value, str) else ""
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, known))}, but is {shown(value)}"
                + (f"; {hint}" if hint else "")
            )
    traced = outputs == "trace"
    if method == "products" and traced:
        raise ValueError(
            "method='products' has all outputs: leave out outputs='trace', or take another method"
        )
    microbatch = None if microbatch is None else as_whole(microbatch, "microbatch")
    if outside_traces():
        drop_stale_programs(network, inputs, other, trainable)
    rows = _operator(network, inputs, "inputs", trainable, microbatch)
    columns = None if other is None else _operator(network, other, "other", trainable, microbatch)
    joint = any(_is_joint(given) for given in (inputs, other))
    if joint and method == "structured":
        raise ValueError(
            "this problem evaluates its examples jointly, so there is no structure of single "
            "examples: use method='jacobian' or method='products'"
        )
    if joint and microbatch is not None:
        raise ValueError(
            "this problem evaluates its examples jointly, so they cannot be evaluated some at a "
            "time: leave out `microbatch`"
        )
    shapes = [_shape(operator) for operator in (rows, columns) if operator is not None]
    if not joint:
        _check_separate(rows)
    tail = shapes[0][1:]
    count = math.prod(tail)
    n, m = shapes[0][0], shapes[-1][0]
    shape = (n, m) if traced or not tail else (n, m, count, count)
    chosen = trainable_leaves(rows)
    groups = groups_of(rows.network, chosen)
    if method == "auto" and joint:
        size = sum(s[0] for s in shapes) * count * rows.dtype.itemsize
        leaves = jax.tree.leaves(rows.parameters)
        fits = size * sum(leaf.size for leaf in leaves) <= JACOBIAN_BYTES
        method = "jacobian" if fits else "products"
    if method == "products":
        how = ("products",) * len(groups)
        return TangentKernel((), rows, columns, shape, tuple(groups), how, traced)
    _check_memory(shape, len(groups), rows.dtype, traced=traced or not tail)
    if joint:
        parts = _joint_parts(rows, columns, groups, count, traced=traced)
        how = ("jacobian",) * len(groups)
    else:
        example = jax.ShapeDtypeStruct(rows.inputs.shape[1:], rows.inputs.dtype)
        plan = cached(_planned, plan_for, rows.network, example, chosen, method, traced)
        found = gram(
            rows.network,
            rows.inputs,
            None if columns is None else columns.inputs,
            plan,
            microbatch,
        )
        parts = {name: found[name].astype(rows.dtype) for name in groups}
        how = tuple(_how(name, plan) for name in groups)
    return TangentKernel(
        tuple(part.reshape(shape) for part in parts.values()),
        rows,
        columns,
        shape,
        tuple(groups),
        how,
        traced,
    )


def _planned(
    plan: Any, network: Any, example: Any, chosen: frozenset[int], method: str, traced: bool
) -> Plan:
    """The plan of a kernel, as `cached` asks for it."""
    return plan(network, example, chosen, structured=method != "jacobian", traced=traced)


def _operator(
    network: Any, given: Any, name: str, trainable: Any, microbatch: int | None
) -> Jacobian:
    """The Jacobian of the network on some examples or on those of a problem."""
    if isinstance(given, Problem):
        if _is_joint(given):
            microbatch = None
        return given.jacobian(network, trainable=trainable, microbatch=microbatch)
    inputs = as_numbers(given, name, "a Problem, or an array of examples (n, ...)")
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(
            f"`{name}` must have a leading axis of examples, and at least one, but has shape "
            f"{inputs.shape}"
        )
    if inputs.dtype == jnp.bool_ or jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` must be real or whole numbers, but has dtype {inputs.dtype}: convert them"
        )
    check_finite(inputs, name)
    dtype = inputs.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        own = [x.dtype for x in jax.tree.leaves(network) if eqx.is_inexact_array(x)]
        dtype = jnp.result_type(*own) if own else jnp.result_type(float)
    return jacobian(
        network, inputs, Evaluate(dtype), dtype, trainable=trainable, microbatch=microbatch
    )


def _is_joint(given: Any) -> bool:
    """Whether a problem computes the outputs of its examples in a way of its own."""
    return isinstance(given, Problem) and type(given).outputs is not Problem.outputs


def _shape(operator: Jacobian) -> tuple[int, ...]:
    """The shape of the outputs.

    **Raises:** `ValueError` if the model cannot be evaluated, with what to do.
    """
    name = type(operator.network).__name__
    try:
        shape = operator.shape
    except Exception as error:  # a user's model can raise anything
        hint = ""
        if "unbound axis name" in str(error) or "BatchNorm" in str(error):
            hint = (
                "; the output of example i depends on example j, so a kernel between examples is "
                "not defined: use equinox.nn.inference_mode(model)"
            )
        elif "key" in str(error) and "ropout" in str(error):
            hint = "; a tangent kernel has no random numbers: use equinox.nn.inference_mode(model)"
        raise ValueError(
            f"the model {name} cannot be evaluated on examples of shape "
            f"{operator.inputs.shape[1:]} ({operator.inputs.dtype}): {error}{hint}"
        ) from error
    if shape[:1] != operator.inputs.shape[:1]:
        raise ValueError(
            f"{name} must return one array per example, but on {operator.inputs.shape[0]} examples "
            f"its outputs have shape {shape}"
        )
    return shape


def _check_separate(operator: Jacobian) -> None:
    """Refuse a network whose `predict` couples examples."""
    network, inputs = operator.network, operator.inputs
    own = isinstance(network, AbstractNetwork)
    if not own or type(network).predict is AbstractNetwork.predict or inputs.shape[0] < 2:
        return
    if not outside_traces() or not is_concrete((network, inputs)):
        return
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        return
    few = inputs[:4]
    wave = jnp.cos(jnp.arange(few[0].size, dtype=few.dtype)).reshape(few[0].shape)
    moved = jnp.zeros_like(few).at[0].set(wave)
    change = np.asarray(jax.jvp(network.predict, (few,), (moved,))[1])
    if np.any(change[1:] != 0):
        raise ValueError(
            f"the output of example i depends on example j in {type(network).__name__}.predict: a "
            "kernel between examples is not defined; use inference mode, or a Problem that "
            "overrides `outputs`"
        )


def trainable_leaves(operator: Jacobian) -> frozenset[int]:
    """The leaves of the model that are parameters."""

    def spread(tree: Any) -> list[Any]:
        return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)

    pairs = zip(spread(operator.network), spread(operator.weights.frozen), strict=True)
    moves = [kept is None for own, kept in pairs if own is not None]
    return frozenset(k for k, own in enumerate(moves) if own)


def _how(group: str, plan: Plan) -> str:
    """How the part of a group is computed, in words."""
    kinds = {part.kind == "jacobian" for part in plan.parts if part.group == group}
    if len(kinds) > 1:
        return "structured and jacobian"
    return "jacobian" if kinds.pop() else "structured"


def _joint_parts(
    rows: Jacobian, columns: Jacobian | None, groups: Any, count: int, *, traced: bool
) -> dict[str, Array]:
    """The parts of the kernel from Jacobians that are formed, by group."""
    order = sorted(trainable_leaves(rows))

    def by_leaf(operator: Jacobian) -> dict[int, Array]:
        leaves = jax.tree.leaves(operator.rows())
        return {
            k: leaf.reshape(-1, count, math.prod(leaf.shape[1:]))
            for k, leaf in zip(order, leaves, strict=True)
        }

    left = by_leaf(rows)
    right = None if columns is None else by_leaf(columns)
    return {
        name: sum(
            jacobian_gram(left[k], None if right is None else right[k], traced=traced)
            for k in members
        )
        for name, members in groups.items()
    }


def _memory() -> int:
    """The bytes of memory of this machine, or 16 GiB if it cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # pragma: no cover
        return 16 * 2**30


def _check_memory(shape: tuple[int, ...], groups: int, dtype: Any, *, traced: bool) -> None:
    """Refuse a kernel that would take more than half of the memory."""
    numbers = math.prod(shape)
    size = numbers * (groups + 1) * jnp.dtype(dtype).itemsize
    limit = _memory() // 2
    if size > limit:
        sums = "" if traced else "outputs='trace' (the sum over outputs), "
        raise ValueError(
            f"the kernel has {numbers:,} numbers, and with the parts of {groups} groups it would "
            f"take {size / 2**30:.1f} GiB, more than half of this machine's memory: give fewer "
            f"examples, {sums}`trainable=` for some layers, or method='products', which forms no "
            "matrix"
        )
