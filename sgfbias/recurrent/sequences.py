"""Sequences of one's own, from arrays and files, as a task of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_whole, check_finite
from sgfbias.study.arrays import load_arrays


class Sequences(eqx.Module):
    """Sequences and targets of one's own. `Sequences.task` draws windows of them of any
    length, so it can be given to `extrapolate`.

    **Arguments:**

    - `inputs`: (n, T, i), or one sequence (T, i).
    - `targets`: (n, T, o), a target at every time, or (n, o), one for the end of each
      sequence. For one sequence (T, o), or (T,) for a single output, or (o,) for its
      end.

    **Raises:** `ValueError` for shapes that do not fit, and for NaN.
    """

    inputs: Array
    targets: Array

    def __init__(self, inputs: Any, targets: Any):
        x, y = as_float_array(inputs, "inputs"), as_float_array(targets, "targets")
        if x.ndim == 2:
            y = y[:, None] if y.shape == x.shape[:1] else y
            x, y = x[None], y[None]
        fits = x.ndim == 3 and 0 not in x.shape and y.shape[:1] == x.shape[:1]
        if not fits or y.ndim not in (2, 3) or (y.ndim == 3 and y.shape[1] != x.shape[1]):
            raise ValueError(
                "`inputs` must be (n, T, i) and `targets` (n, T, o), one at every time, or (n, o), "
                f"one for each end, but they have shapes {np.shape(inputs)} and "
                f"{np.shape(targets)}"
            )
        check_finite(x, "inputs")
        check_finite(y, "targets")
        self.inputs, self.targets = x, y

    @property
    def longest(self) -> int:
        """T, the length of the sequences."""
        return self.inputs.shape[1]

    def task(self, key: Array, length: int) -> tuple[Array, Array]:
        """A random window of a random sequence, (length, i), and the target at its end,
        (o,). With one target for each sequence the windows are those at their ends.

        **Raises:** `ValueError` for a length above that of the sequences.
        """
        length = as_whole(length, "length")
        if length > self.longest:
            raise ValueError(
                f"the sequences have {self.longest} steps, so there is no window of {length}: try "
                "shorter lengths"
            )
        # Both from one draw, as every draw is compiled for every length; a remainder of
        # 32 bits is even enough.
        bits = jax.random.bits(key, (2,), jnp.uint32)
        which = (bits[0] % self.inputs.shape[0]).astype(jnp.int32)
        start = (bits[1] % (self.longest - length + 1)).astype(jnp.int32)
        if self.targets.ndim == 2:
            start = jnp.full_like(start, self.longest - length)
        window = jax.lax.dynamic_slice_in_dim(self.inputs[which], start, length)
        target = self.targets[which]
        return window, target if target.ndim == 1 else target[start + length - 1]

    def split(self, share: float = 2 / 3, seed: int = 0) -> tuple[Sequences, Sequences]:
        """Two parts: `share` of the sequences, in a random order, and the others. A
        single sequence is cut in time, the first part first.

        **Raises:** `ValueError` if one of the parts would be empty.
        """
        many = self.inputs.shape[0]
        single = many == 1 and self.targets.ndim == 3
        count = round(share * (self.longest if single else many))
        if not 0 < count < (self.longest if single else many):
            raise ValueError(
                f"a share of {share:g} leaves nothing of {many} sequences of {self.longest} steps "
                "on one side"
            )
        if single:
            return tuple(  # type: ignore[return-value]
                Sequences(self.inputs[:, part], self.targets[:, part])
                for part in (slice(count), slice(count, None))
            )
        order = np.random.default_rng(seed).permutation(many)
        return tuple(  # type: ignore[return-value]
            Sequences(self.inputs[part], self.targets[part])
            for part in (order[:count], order[count:])
        )


def read_sequences(path: str | Path) -> Sequences:
    """Read sequences from a file.

    **Arguments:**

    - `path`: a `.npz` file with X and y as `Sequences` takes them; or a `.csv` file
      with a line of names and then one line of numbers for every time, of which the
      next line is to be predicted.

    **Returns:** `Sequences`, in JAX's default precision.

    **Raises:** `ValueError` for a file that does not exist, cannot be read, or has
    something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".csv":
        try:
            rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        except ValueError as error:
            raise ValueError(
                f"{path} must have a line of names and then lines of numbers, but: {error}"
            ) from error
        if len(rows) < 3:
            raise ValueError(f"{path} must have three times or more, but has {len(rows)}")
        return Sequences(_as_default(rows[:-1]), _as_default(rows[1:]))
    if path.suffix != ".npz":
        raise ValueError(
            f"{path} must be a .npz file with X and y, or a .csv file; write "
            "numpy.savez('mine.npz', X=X, y=y)"
        )
    arrays = load_arrays(path, {"X": "(n, T, i)", "y": "(n, T, o) or (n, o)"})
    return Sequences(_as_default(arrays["X"]), _as_default(arrays["y"]))


def _as_default(values: Any) -> Array:
    """Numbers in JAX's default precision."""
    return jnp.asarray(values).astype(jnp.result_type(float))
