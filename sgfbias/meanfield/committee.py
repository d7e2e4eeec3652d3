"""Labels that are a function of the pre-activations of several teacher directions."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_real, as_whole, check_positive, is_concrete, shown
from sgfbias.meanfield.data import AbstractData, Bins, Draw, Sample, checked_alpha, examples
from sgfbias.meanfield.error import against_teacher
from sgfbias.meanfield.smooth import check_closed


class CommitteeTeacher(AbstractData):
    """A committee of M teachers: `y = label(h) + s zeta` with `h_m = z . v_m /
    sqrt(d)`, x = z and zeta standard normal, and orthogonal directions v with `|v|^2 =
    d`.

    The model has K pre-activations `r_k = w_k . x / sqrt(d)`, by default one for each
    direction, of which `readout=` of `solve` and `simulate` makes its output. With the
    readout of the label this is a committee machine.

    The labels may be numbers, -1 and 1, or whole numbers 0, ..., C - 1. The
    `test_error` of this law is the mean of `(y - output)^2` over fresh examples for
    numbers, the share of outputs whose sign is not the label for -1 and 1, and the
    share whose largest output is not that of the label for whole numbers. With several
    outputs and one label it is a mean over the outputs. It is an average over 8,192
    quasi-random points, whose error is about 1e-3, and its derivatives are 0.

    **Arguments:**

    - `alpha`: n / d > 0, the number of examples per dimension.
    - `label`: a function of the M pre-activations, (M,), that returns a number, such as
      `lambda h: jnp.mean(jnp.tanh(h))`. `jnp.sign` of a number labels by -1 and 1.
    - `directions`: M >= 1.
    - `label_noise`: s >= 0, the standard deviation of the noise of labels that are
      numbers.

    **Raises:** `ValueError` for numbers outside these ranges, for a label that is no
    such function, and for noise on labels that are whole numbers.

    Aubin, Maillard, Barbier, Krzakala, Macris, Zdeborová 2018 (arXiv 1806.05451) study
    committees at the end of learning.
    """

    alpha: Array
    label: Any
    label_noise: Array
    count: int = eqx.field(static=True)
    whole: bool = eqx.field(static=True)

    def __init__(self, alpha: Any, label: Any, *, directions: Any, label_noise: Any = 0.0):
        self.alpha = checked_alpha(alpha)
        self.count = as_whole(directions, "directions")
        self.label_noise = as_real(label_noise, "label_noise")
        check_positive(self.label_noise, "label_noise", zero_allowed=True)
        after = _label_of(label, self.count)
        self.whole = jnp.issubdtype(after.dtype, jnp.integer)
        self.label = label
        if self.whole and is_concrete(self.label_noise) and self.label_noise != 0:
            raise ValueError(
                "labels that are whole numbers are classes, which have no noise: leave out "
                "`label_noise`, or let `label` return floating-point numbers"
            )

    @property
    def directions(self):
        return self.count

    def typical(self):
        points = np.random.default_rng(0).normal(size=(8, self.count))
        with jax.ensure_compile_time_eval():  # also within jit
            label = jax.tree.map(_valued, self.label)
            found = jax.vmap(label)(jnp.asarray(points))
        check_closed(found, "`label`")
        return np.asarray(found)

    def bins(self):
        one = jnp.ones(1)
        return Bins(one, one, jnp.eye(self.count)[None])

    def _labels(self, along: Array, key: Array) -> Array:
        """The labels for pre-activations (n, M)."""
        clean = jax.vmap(self.label)(along)
        if self.whole:
            return clean.astype(jnp.int32)
        noise = self.label_noise.astype(along.dtype) * jax.random.normal(
            key, clean.shape, along.dtype
        )
        return clean.astype(along.dtype) + noise

    def draw(self, key, samples, dtype):
        first, second = jax.random.split(key)
        along = jax.random.normal(first, (samples, self.count), dtype)
        return Draw(along, self._labels(along, second))

    def sample(self, key, d, dtype):
        n = examples(self.alpha, d)
        if d < self.count:
            raise ValueError(
                f"{self.count} orthogonal directions need as many dimensions, but d = {d}"
            )
        one, two, three = jax.random.split(key, 3)
        axes = jnp.linalg.qr(jax.random.normal(one, (d, self.count), dtype))[0]
        direction = axes.T * math.sqrt(d)
        inputs = jax.random.normal(two, (n, d), dtype) / math.sqrt(d)
        labels = self._labels(inputs @ direction.T, three)
        return Sample(inputs, labels, direction, jnp.ones(d, dtype))

    def test_error(self, overlap, variance, readout):
        return against_teacher(overlap, variance, readout, self.label, self.label_noise)


def _label_of(label: Any, count: int) -> jax.ShapeDtypeStruct:
    """What `label` returns for pre-activations (count,).

    **Raises:** `ValueError` for anything but a function that returns a number.
    """
    if not callable(label):
        raise ValueError(
            "`label` must be a function of the pre-activations of the teacher, such as "
            f"lambda h: jnp.mean(jnp.tanh(h)), but is {shown(label)}"
        )
    numbers = jax.ShapeDtypeStruct((count,), jnp.result_type(float))
    try:
        after = eqx.filter_eval_shape(label, numbers)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"`label` must be a function of {count} pre-activations, an array of shape "
            f"({count},), but it fails on one: {error}"
        ) from error
    if getattr(after, "shape", None) != () or after.dtype == bool:
        given = f"shape {after.shape}" if getattr(after, "shape", None) else "no number"
        raise ValueError(
            f"`label` must return one number for the {count} pre-activations of an example, but "
            f"returns {given}"
        )
    return after


def _valued(leaf: Any) -> Any:
    """A number without the derivative that is taken of it."""
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
