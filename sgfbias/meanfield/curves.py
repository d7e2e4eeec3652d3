"""Training curves, of the theory or of finite systems, as one kind of object."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import numpy_for
from sgfbias.core.provenance import attributes
from sgfbias.core.types import Dataset

UNITS = {
    "overlap": "w . v / d",
    "correlation": "w . w' / d",
    "response": "w per unit kick of w",
    "loss": "loss",
    "test_error": "error on fresh examples",
    "distance": "|w1 - w2|^2 / d",
}


class Curves(eqx.Module):
    """What happens at the times 0, ..., steps. A single key gives no axis of keys.

    With K outputs and M directions the overlap has two more axes (K, M), `w_k . v_m /
    d`, and the correlation and the response have two more axes (K, K): `w_k(t) .
    w_l(u) / d`, and the response of output k to a kick of output l. The distance is
    summed over outputs.

    - `overlap`: (keys, steps + 1), m = w . v / d.
    - `correlation`: (keys, steps + 1, steps + 1), `w_t . w_u / d`.
    - `response`: (keys, steps + 1, steps + 1), the response of w at time t to a kick
      that is added to w at time u + 1, per coordinate. It is 0 for u >= t. None for
      simulations without `probes`.
    - `loss`: (keys, steps + 1), the mean loss of the training examples.
    - `test_error`: (keys, steps + 1), the error on fresh examples: the share of wrong
      labels, or with a linear teacher the mean squared error. Where it is a share of
      wrong labels that is counted at points, with a readout, with three clusters and
      with several outputs, its derivatives are 0, which is not their value.
    - `distance`: (keys, steps + 1), the mean of `|w1 - w2|^2 / d` over pairs of
      replicas, which have the same data and start and independent masks. None without
      replicas.
    - `keys`, `data`, `rule`, `start`: what the curves were made from.
    """

    overlap: Array
    correlation: Array
    response: Array | None
    loss: Array
    test_error: Array
    distance: Array | None
    keys: Array
    data: Any
    rule: Any
    start: Any
    loss_function: Any
    origin: str = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.loss.shape[-1] - 1

    @property
    def outputs(self) -> int | None:
        """The number K of outputs, or None for a law with one direction."""
        return self.overlap.shape[-2] if self.overlap.ndim > self.loss.ndim else None

    @property
    def times(self) -> Array:
        """The times 0, ..., steps, (steps + 1,)."""
        return jnp.arange(self.steps + 1)

    @property
    def diverged_at(self) -> Array:
        """The first time at which a curve is not finite, (keys,), or -1."""
        host = numpy_for((self.loss, self.overlap))
        finite = host.isfinite(self.overlap)
        if self.outputs is not None:
            finite = finite.all(axis=(-2, -1))
        bad = ~(host.isfinite(self.loss) & finite)
        return jnp.asarray(host.where(bad.any(axis=-1), bad.argmax(axis=-1), -1))

    def status(self) -> str:
        """How many curves are finite, in words, and where the others stop being so."""
        at = np.atleast_1d(np.asarray(self.diverged_at))
        lost = at[at >= 0]
        if not lost.size:
            return f"{at.size} finite"
        cause = "the step size is too large, take a smaller one"
        if not lost.min():
            cause = (
                "this is before the first step, so that the loss has no finite value where "
                "training starts: take another loss or another start"
            )
        return (
            f"{at.size - lost.size} finite, {lost.size} non-finite from step {lost.min()} on: "
            f"{cause}"
        )

    def fields(self) -> dict[str, Array]:
        """The curves that are not None, by name."""
        return {name: value for name in UNITS if (value := getattr(self, name)) is not None}

    def to_xarray(self) -> Dataset:
        """Everything as an `xarray.Dataset` with units and provenance.

        Its dimensions are `key` and `time`, and `earlier` for the second time of the
        correlation and the response. With several outputs there are `output`,
        `direction`, and `other_output` for the second output of these two.
        """
        import xarray as xr

        lead = ("key",) if self.loss.ndim == 2 else ()
        pairs: dict[str, tuple[str, ...]] = {}
        if self.outputs is not None:
            both = ("output", "other_output")
            pairs = {
                "overlap": ("output", "direction"),
                "correlation": both,
                "response": both,
            }
        times = np.arange(self.steps + 1)
        data = {}
        for name, value in self.fields().items():
            tail = ("time", "earlier") if name in ("correlation", "response") else ("time",)
            dims = (*lead, *tail, *pairs.get(name, ()))
            data[name] = xr.Variable(dims, np.asarray(value), {"units": UNITS[name]})
        axis = {"units": "steps"}
        axes: dict[str, Any] = {
            "time": xr.Variable("time", times, axis),
            "earlier": xr.Variable("earlier", times, axis),
        }
        if lead:
            axes["key"] = np.arange(self.loss.shape[0])
        made = {
            "origin": self.origin,
            "data": repr(self.data),
            "rule": repr(self.rule),
            "start": repr(self.start),
            "loss": repr(self.loss_function),
        }
        return xr.Dataset(data, axes, attributes(made, dtype=self.loss.dtype, keys=self.keys))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in self.fields().items())
        title = f"Curves of {self.origin}"
        if any(isinstance(v, jax.core.Tracer | jax.ShapeDtypeStruct) for v in (self.overlap,)):
            return f"{title}, traced: {shapes}"
        alone = self.loss.ndim == 1
        lines = [
            title,
            f"  keys    {1 if alone else self.loss.shape[0]}{' (no axis)' if alone else ''}",
            f"  steps   {self.steps}",
            f"  status  {self.status()}",
        ]
        for name in ("overlap", "loss", "test_error", "distance"):
            value = getattr(self, name)
            if value is None or value.ndim > self.loss.ndim:
                continue
            rows = np.atleast_2d(np.asarray(value))
            ends = ""
            for when, column in (("at the start", rows[:, 0]), ("at the end", rows[:, -1])):
                spread = (
                    f" +- {column.std(ddof=1) / np.sqrt(column.size):.2g}"
                    if column.size > 1
                    else ""
                )
                ends += f"  {when} {column.mean():.4g}{spread}"
            lines.append(f"  {name:11}{ends}")
        return "\n".join([*lines, f"  shapes  {shapes}"])
