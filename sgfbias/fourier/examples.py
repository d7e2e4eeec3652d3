"""Examples of bits, their labels, and the margins with which they are classified."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from sgfbias.core.checks import is_concrete, shown


def as_bits(inputs: Any, dtype: Any, name: str = "inputs") -> Float[Array, "n d"]:
    """Convert examples (n, d) of bits in {-1, +1} to the given precision.

    **Raises:** `ValueError` for any other shape or number.
    """
    if not isinstance(inputs, jax.Array):
        inputs = np.asarray(inputs)
    if inputs.ndim != 2:
        raise ValueError(
            f"{name} must have shape (n, d), one row for each example, but have shape "
            f"{inputs.shape}" + ("; write inputs[None] for one example" if inputs.ndim == 1 else "")
        )
    if 0 in inputs.shape:
        raise ValueError(f"{name} must have examples and bits, but have shape {inputs.shape}")
    if inputs.dtype == bool:
        raise ValueError(f"{name} must be -1 or +1, but are booleans: write 2.0 * x - 1")
    if is_concrete(inputs):
        values = np.asarray(inputs)
        wrong = np.abs(values) != 1 if values.dtype.kind in "iuf" else values != values
        if values.dtype.kind not in "iuf":
            raise ValueError(f"{name} must be -1 or +1, but are {shown(inputs)}")
        if wrong.any():
            raise ValueError(
                f"{name} must be -1 or +1, but {values[wrong][0]:g} occurs: write 2*x - 1 for "
                "bits in {0, 1}"
            )
    return jnp.asarray(inputs).astype(dtype)


def as_labels(labels: Any, outputs: tuple[int, ...], *, name: str = "y") -> Num[Array, " n"]:
    """Convert the labels of n examples.

    **Arguments:**

    - `labels`: (n,). In {0, 1} or {-1, 1} for a network with one output, and the number
      of the class from 0 to c - 1 for one with c outputs.
    - `outputs`: the shape of the outputs, (n,) or (n, c).

    **Raises:** `ValueError` for any others.
    """
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    if labels.shape != outputs[:1]:
        raise ValueError(
            f"`{name}` must have one label for each of the {outputs[0]} examples, but has shape "
            f"{labels.shape}"
        )
    if labels.dtype == bool:
        labels = labels.astype(np.int32)
    if is_concrete(labels):
        values = np.asarray(labels)
        if values.dtype.kind not in "iuf":
            raise ValueError(f"`{name}` must be numbers, but is {shown(labels)}")
        have = {float(value) for value in np.unique(values)}
        if len(outputs) == 1:
            if not (have <= {0.0, 1.0} or have <= {-1.0, 1.0}):
                raise ValueError(
                    f"`{name}` must be in {{0, 1}} or in {{-1, 1}} for a network with one output, "
                    f"but has the values {_few(have)}"
                )
        elif not have <= {float(label) for label in range(outputs[1])}:
            raise ValueError(
                f"`{name}` must be classes from 0 to {outputs[1] - 1} for a network with "
                f"{outputs[1]} outputs, but has the values {_few(have)}"
            )
    return jnp.asarray(labels)


def check_classes(labels: Array, name: str = "y") -> None:
    """Refuse labels of one class only, of which accuracy says nothing."""
    if is_concrete(labels) and len(np.unique(np.asarray(labels))) < 2:
        raise ValueError(
            f"`{name}` must have two classes or more, but all labels are "
            f"{np.asarray(labels).flat[0]:g}, and a constant is right on all of them"
        )


def _few(values: set[float]) -> str:
    """Up to five numbers, for an error."""
    listed = sorted(values)
    return ", ".join(f"{value:g}" for value in listed[:5]) + (", ..." if len(listed) > 5 else "")


def margin(outputs: Float[Array, "n *c"], labels: Num[Array, " n"]) -> Float[Array, " n"]:
    """`(2y - 1) f(x)`, or `f_y - max_{j != y} f_j` with several outputs.

    An example is classified correctly where its margin is above 0.

    **Arguments:**

    - `outputs`: (n,) or (n, c).
    - `labels`: (n,), in {0, 1} or {-1, 1} for (n,), and classes for (n, c).
    """
    if outputs.ndim == 1:
        return jnp.where(labels > 0, outputs, -outputs)
    own = is_own(labels, outputs.shape[1])
    others = jnp.where(own, -jnp.inf, outputs).max(axis=1)
    return jnp.where(own, outputs, 0).sum(axis=1) - others


def is_own(labels: Num[Array, " n"], classes: int) -> Bool[Array, "n c"]:
    """Which class is the label of each example."""
    return labels.astype(jnp.int32)[:, None] == jnp.arange(classes, dtype=jnp.int32)


def accuracy(margins: Float[Array, "*k n"]) -> Float[Array, "*k"]:
    """The fraction of the examples with a margin above 0."""
    return jnp.mean((margins > 0).astype(margins.dtype), axis=-1)
