"""Two classes of points on a sphere that keep a distance from each other."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_whole
from sgfbias.core.problem import Problem
from sgfbias.core.two_class import LogisticLoss

# Candidates that are drawn at a time, and how often without finding a point.
CANDIDATES, TRIALS = 1024, 16


class SeparatedSphere(Problem):
    """Points of norm 1 with random labels -1 and 1 that keep a distance from each
    other, as a `Problem` with the logistic loss.

    The last coordinate of every point is a constant, which acts as a bias. Zou, Cao,
    Zhou, Gu 2018 ask for a distance between points of different labels only; here all
    pairs have it.
    """

    references: ClassVar[dict[str, str]] = {"zou2018": "the data"}

    @classmethod
    def sample(
        cls,
        key: Array,
        *,
        n: Any,
        d: Any,
        separation: Any,
        bias: Any = 0.5,
        loss: Any = None,
        dtype: Any = None,
    ) -> SeparatedSphere:
        """Draw n points, uniform among those that keep the distance from all points
        before them.

        **Arguments:**

        - `key`: a typed key.
        - `n`: the number of examples.
        - `d`: the number of coordinates, with the constant one, at least 3.
        - `separation`: the least distance between two points, at least 0.
        - `bias`: the constant last coordinate, in (0, 1).
        - `loss`: the loss. Default: `LogisticLoss()`.
        - `dtype`: the precision. Default: JAX's.

        **Raises:** `ValueError` for numbers out of range, and if no further point at
        this distance is found.
        """
        n, d, radius, phi = _arguments(n, d, separation, bias)
        point_key, label_key = jax.random.split(key)
        units = _separated(point_key, n, d - 1, phi / radius)
        labels = jax.random.rademacher(label_key, (n,), jnp.result_type(float))
        return cls(_points(units, radius, dtype), labels, loss=loss or LogisticLoss())

    @classmethod
    def pairs(
        cls,
        key: Array,
        *,
        n: Any,
        d: Any,
        separation: Any,
        bias: Any = 0.5,
        loss: Any = None,
        dtype: Any = None,
    ) -> SeparatedSphere:
        """Draw n/2 pairs of points at exactly this distance and with opposite labels.

        Points of different pairs are at least as far apart.

        **Arguments:** those of `sample`; n is even, and the separation positive.

        **Raises:** `ValueError` as `sample` does, and for an odd n.
        """
        n, d, radius, phi = _arguments(n, d, separation, bias)
        if n % 2 or phi == 0:
            raise ValueError(
                f"pairs need an even `n` and a positive `separation`, but they are {n} and {phi:g}"
            )
        units = _separated(key, n // 2, d - 1, phi / radius, paired=True)
        labels = np.tile([1.0, -1.0], n // 2)
        return cls(_points(units, radius, dtype), labels, loss=loss or LogisticLoss())


def _arguments(n: Any, d: Any, separation: Any, bias: Any) -> tuple[int, int, float, float]:
    """The arguments of a draw: n, d, the radius without the bias, the distance."""
    n, d = as_whole(n, "n"), as_whole(d, "d", least=3)
    phi, mu = as_float(separation, "separation"), as_float(bias, "bias")
    if not 0 < mu < 1:
        raise ValueError(f"`bias` must be between 0 and 1, as the points have norm 1, but is {mu}")
    radius = math.sqrt(1 - mu**2)
    if not 0 <= phi <= 2 * radius:
        raise ValueError(
            f"`separation` must be from 0 to {2 * radius:.3g}, the largest distance of two points "
            f"with bias {mu:g}, but is {phi:g}"
        )
    return n, d, radius, phi


def _points(units: np.ndarray, radius: float, dtype: Any) -> Array:
    """Points of norm 1 from unit vectors, with the constant last coordinate."""
    bias = np.full((len(units), 1), math.sqrt(1 - radius**2))
    dtype = jnp.result_type(float) if dtype is None else dtype
    return jnp.asarray(np.hstack([radius * units, bias]), dtype)


def _separated(
    key: Array, count: int, size: int, distance: float, *, paired: bool = False
) -> np.ndarray:
    """Unit vectors (count, size) that keep `distance`; or pairs of them, (2 count,
    size), one after the other.
    """
    kept = np.zeros((0, size))
    wanted = 2 * count if paired else count
    cosine = 1 - distance**2 / 2
    for trial in range(TRIALS * count):
        drawn = jax.random.normal(jax.random.fold_in(key, trial), (2, CANDIDATES, size))
        first, second = np.array(drawn, np.float64)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        # A direction that is orthogonal to the first point leads to the second.
        second -= np.sum(first * second, axis=1, keepdims=True) * first
        second /= np.linalg.norm(second, axis=1, keepdims=True)
        second = cosine * first + math.sqrt(max(1 - cosine**2, 0.0)) * second
        before = len(kept)
        for one, other in zip(first, second, strict=True):
            new = np.stack([one, other]) if paired else one[None]
            if len(kept) == 0 or np.min(np.linalg.norm(kept[:, None] - new, axis=2)) >= distance:
                kept = np.concatenate([kept, new])
            if len(kept) == wanted:
                return kept
        if len(kept) == before and trial >= TRIALS:
            break
    raise ValueError(
        f"no further point at distance {distance:.3g} (in units of the sphere's radius) was found: "
        f"about {len(kept)} points fit in {size + 1} coordinates, but {wanted} were asked for; "
        "give a smaller `n` or `separation`, or a larger `d`"
    )
