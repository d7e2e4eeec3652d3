"""The empirical tangent kernel of a model: the object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_float_array, as_numbers, as_whole, is_concrete, outside_traces
from sgfbias.core.jacobian import CHUNK, Jacobian
from sgfbias.core.names import Named
from sgfbias.core.provenance import attributes
from sgfbias.core.types import Dataset

# Up to this many rows, eigenvalues are those of the dense matrix.
DENSE = 2000


class TraceEstimate(NamedTuple):
    """An estimate of a trace from random products, and its standard error."""

    value: Array
    standard_error: Array


class TangentKernel(eqx.Module):
    """`K[i, j, a, b] = <grad f_a(x_i), grad f_b(x_j)>`, summed over all trainable
    parameters, without division by a width or by n.

    It is made by `sgfbias.tangent_kernel`.

    **Fields:**

    - `parts`: the parts of the parameter groups, in the order of `groups`; empty for
      method "products", which forms no matrix.
    - `operator`: the Jacobian of the rows, see `Problem.jacobian`.
    - `other`: that of the columns, or None if they are the same examples.
    - `shape`: the shape of `matrix`: (n, m, O, O) for models with O outputs, or (n, m)
      where the output is a scalar or the outputs are summed over.
    - `groups`: the names of the parameter groups. Each linear, convolutional and
      embedding layer is a group, and every other array is one of its own.
    - `methods`: how the part of each group was computed: "structured", "jacobian",
      "structured and jacobian", or "products".
    - `traced`: whether the outputs are summed over.
    """

    parts: tuple[Array, ...]
    operator: Jacobian
    other: Jacobian | None
    shape: tuple[int, ...] = eqx.field(static=True)
    groups: tuple[str, ...] = eqx.field(static=True)
    methods: tuple[str, ...] = eqx.field(static=True)
    traced: bool = eqx.field(static=True)

    @property
    def layers(self) -> Mapping[str, Array]:
        """Name of the parameter group -> its part of the kernel, in the order of the
        model's arrays.

        The parts add up to `matrix`.

        **Raises:** `ValueError` for method "products", which forms no parts.
        """
        if not self.parts:
            raise ValueError(
                "method='products' forms no parts of layers: use method='auto', or `trainable=` "
                "for the kernel of some layers"
            )
        return Named(zip(self.groups, self.parts, strict=True))

    @property
    def matrix(self) -> Array:
        """The kernel, of shape `shape`.

        With method "products" it is computed anew at every access, at the cost of two
        products for each of its columns.
        """
        if self.parts:
            return sum(self.parts[1:], self.parts[0])
        n, m = self._rows()
        columns = self._column_rows(jnp.arange(m)).T
        if len(self.shape) == 2:
            return columns.reshape(n, m)
        count = self.shape[2]
        return columns.reshape(n // count, count, m // count, count).transpose(0, 2, 1, 3)

    @property
    def flat(self) -> Array:
        """The kernel as a matrix (n O, m O), with the outputs of an example side by
        side.
        """
        matrix = self.matrix
        if matrix.ndim == 2:
            return matrix
        n, m, count, _ = matrix.shape
        return matrix.transpose(0, 2, 1, 3).reshape(n * count, m * count)

    def product(self, v: Any) -> Array:
        """`K v`, with the outputs of the examples in the place of columns.

        **Arguments:**

        - `v`: (m, O), one number per example and output; or (m,) where the kernel is
          (n, m).

        **Returns:** (n, O), or (n,).

        **Raises:** `ValueError` for another shape.
        """
        v = as_float_array(v, "v")
        tail = self.shape[3:]
        if v.shape != (self.shape[1], *tail):
            raise ValueError(
                f"`v` must have shape {(self.shape[1], *tail)}, one number for each column of the "
                f"kernel, but has shape {v.shape}"
            )
        v = v.astype(self.operator.dtype)
        if self.parts:
            form = "ijab,jb->ia" if tail else "ij,j->i"
            return jnp.einsum(form, self.matrix, v, precision=jax.lax.Precision.HIGHEST)
        source = self.operator if self.other is None else self.other
        tangent = source.transpose_product(v.reshape(source.shape))
        return self.operator.product(tangent).reshape(self.shape[0], *tail)

    @property
    def eigenvalues(self) -> Array:
        """The eigenvalues of the kernel, (n O,), in ascending order.

        Rounding makes those of a singular kernel about `eps trace`, of either sign.

        **Raises:** `ValueError` for a kernel between two sets of examples.
        """
        self._check_square("eigenvalues")
        flat = self.flat
        return jnp.linalg.eigvalsh((flat + flat.T) / 2)

    @property
    def least(self) -> Array:
        """The least eigenvalue.

        Below `resolution` it cannot be told from 0. Kernels with more than 2000 rows,
        and those of method "products", are not decomposed: the eigenvalue is found by
        products (Lanczos).

        **Raises:** `ValueError` for a kernel between two sets of examples, and if the
        iteration does not converge.
        """
        return self._extreme("SA")

    @property
    def largest(self) -> Array:
        """The largest eigenvalue, computed as `least` is."""
        return self._extreme("LA")

    @property
    def trace(self) -> Array:
        """The trace, which is the sum of the eigenvalues.

        With method "products" it takes one gradient per example and output;
        `estimate_trace` takes fewer.
        """
        self._check_square("a trace")
        if self.parts:
            matrix = self.matrix
            return jnp.einsum("iiaa->" if matrix.ndim == 4 else "ii->", matrix)
        return self.operator.square_norms()

    def estimate_trace(self, key: Array, samples: int = 32) -> TraceEstimate:
        """The trace from random products: the mean of `z^T K z` over vectors z of
        independent signs (Hutchinson).

        **Arguments:**

        - `key`: a typed key.
        - `samples`: the number of products, a whole number >= 2.

        **Returns:** the estimate and its standard error.

        **Raises:** `ValueError` for a kernel between two sets of examples.
        """
        self._check_square("a trace")
        samples = as_whole(samples, "samples", least=2)
        tail = (self.shape[1], *self.shape[3:])

        def one(key: Array) -> Array:
            z = jax.random.rademacher(key, tail, self.operator.dtype)
            return jnp.sum(z * self.product(z))

        values = jax.lax.map(one, jax.random.split(key, samples))
        return TraceEstimate(jnp.mean(values), jnp.std(values, ddof=1) / np.sqrt(samples))

    @property
    def effective_rank(self) -> Array:
        """`(tr K)^2 / |K|_F^2`, a number from 1 to n O: n O if all eigenvalues are
        equal.
        """
        self._check_square("an effective rank")
        return jnp.square(self.trace) / jnp.sum(jnp.square(self.matrix))

    @property
    def resolution(self) -> Array:
        """The size below which an eigenvalue is rounding: `10 eps tr K`."""
        return 10 * float(jnp.finfo(self.operator.dtype).eps) * self.trace

    def alignment(self, labels: Any) -> Array:
        """`<K, Y Y^T> / (|K|_F |Y Y^T|_F)`, the cosine between the kernel and the
        kernel of the labels (Cristianini et al. 2001).

        **Arguments:**

        - `labels`: (n,), real numbers such as -1 and 1, or class labels as whole
          numbers, which stand for one-hot vectors if the model has several outputs or
          they have other values than -1, 0 and 1; or (n, O), one number per output.

        **Raises:** `ValueError` for labels that do not fit, and for a kernel between
        two sets of examples.
        """
        self._check_square("an alignment with labels")
        targets, own = self._targets(as_numbers(labels, "labels"))
        kernel = self.flat
        if own:  # one number for each row of the kernel
            y = targets.reshape(-1)
            scale = jnp.linalg.norm(kernel) * jnp.sum(jnp.square(y))
            return y @ kernel @ y / scale
        wanted = targets @ targets.T
        return jnp.sum(kernel * wanted) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(wanted))

    def _targets(self, labels: Array) -> tuple[Array, bool]:
        """The labels as numbers, and whether there is one for each row."""
        n, count = self.shape[0], 1 if len(self.shape) == 2 else self.shape[2]
        dtype = self.operator.dtype
        if labels.shape[:1] != (n,) or labels.ndim > 2:
            raise ValueError(
                f"`labels` must have shape ({n},) or ({n}, outputs), but have {labels.shape}"
            )
        whole = jnp.issubdtype(labels.dtype, jnp.integer)
        if whole and labels.ndim == 1 and is_concrete(labels):
            values = np.asarray(labels)
            if count > 1 or not set(np.unique(values)) <= {-1, 0, 1}:
                classes = count if count > 1 else int(values.max()) + 1
                if values.min() < 0 or values.max() >= classes:
                    raise ValueError(
                        f"class labels must be from 0 to {classes - 1}, but go from "
                        f"{values.min()} to {values.max()}"
                    )
                labels = jax.nn.one_hot(labels, classes, dtype=dtype)
        targets = labels.astype(dtype).reshape(n, -1)
        if count > 1 and targets.shape[1] != count:
            raise ValueError(
                f"the model has {count} outputs, but `labels` have {targets.shape[1]} numbers "
                "per example; class labels must be whole numbers"
            )
        return targets, count > 1 or targets.shape[1] == 1

    def _rows(self) -> tuple[int, int]:
        """The numbers of rows and columns of `flat`."""
        count = 1 if len(self.shape) == 2 else self.shape[2]
        return self.shape[0] * count, self.shape[1] * count

    def _column_rows(self, which: Array) -> Array:
        """Columns of the kernel by products, as rows."""
        if self.other is None:
            return self.operator.columns(which)
        source, count = self.other, self._rows()[1]

        def column(k: Array) -> Array:
            unit = jnp.zeros(count, source.dtype).at[k].set(1).reshape(source.shape)
            return self.operator.product(source.transpose_product(unit)).reshape(-1)

        return jax.lax.map(column, which, batch_size=min(CHUNK, count))

    def _check_square(self, what: str) -> None:
        if self.other is not None:
            raise ValueError(
                f"a kernel between two sets of examples has no {what}: leave out `other`"
            )

    def _extreme(self, which: str) -> Array:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        self._check_square("eigenvalues")
        count = self._rows()[0]
        direct = self.parts and count <= DENSE
        if (
            direct
            or count < 3
            or not (outside_traces() and is_concrete((self.parts, self.operator)))
        ):
            return self.eigenvalues[0 if which == "SA" else -1]
        shape = (self.shape[1], *self.shape[3:])
        flat = self.flat if self.parts else None

        def times(v: Any) -> np.ndarray:
            v = jnp.asarray(np.reshape(v, -1), self.operator.dtype)
            found = self.product(v.reshape(shape)) if flat is None else flat @ v
            return np.asarray(found, np.float64).reshape(-1)

        matrix = LinearOperator((count, count), matvec=times, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(count)
        # Products in float32 cannot give more digits than they have.
        eps = float(jnp.finfo(self.operator.dtype).eps)
        try:
            values = eigsh(
                matrix,
                k=1,
                which=which,
                v0=start,
                tol=max(1e-12, eps),
                ncv=min(count, 60),
                maxiter=max(1000, 10 * count),
                return_eigenvectors=False,
            )
        except ArpackNoConvergence as error:
            word = "least" if which == "SA" else "largest"
            raise ValueError(
                f"the {word} eigenvalue did not converge by products ({error}): its neighbours are "
                "too close for this precision; use fewer examples and method='structured', whose "
                "matrix is decomposed"
            ) from error
        return jnp.asarray(values[0], self.operator.dtype)

    def to_xarray(self) -> Dataset:
        """The kernel and its parts as an `xarray.Dataset` with provenance."""
        import xarray as xr

        dims = ("example", "other_example", "output", "other_output")[: len(self.shape)]
        units = {"units": "output^2 / parameter^2"}
        data = {"kernel": xr.Variable(dims, np.asarray(self.matrix), units)}
        if self.parts:
            parts = np.stack([np.asarray(part) for part in self.parts])
            data["part"] = xr.Variable(("layer", *dims), parts, units)
            coords = {"layer": list(self.groups), "method": ("layer", list(self.methods))}
        else:
            coords = {}
        return xr.Dataset(data, coords, attributes({}, dtype=self.operator.dtype))

    def summary(self) -> str:
        """What the kernel is, in a few lines: shape, methods, spectrum."""
        lines = [
            f"tangent kernel, shape {self.shape}, {jnp.dtype(self.operator.dtype).name}"
            + (", summed over outputs" if self.traced else ""),
            _in_words(self.groups, self.methods),
        ]
        if not self.parts or self.other is not None or not is_concrete(self.parts):
            return "\n".join(lines)
        values, least = self.eigenvalues, float(self.least)
        bound = float(self.resolution)
        shown = (
            f"{least:.4g}"
            if least > bound
            else f"below the resolution {bound:.2g} of this precision"
        )
        lines.append(
            f"eigenvalues: least {shown}, largest {float(values[-1]):.4g}; trace "
            f"{float(self.trace):.4g}; effective rank {float(self.effective_rank):.3g} of "
            f"{self._rows()[0]}"
        )
        total = float(self.trace)
        for name, part in self.layers.items():
            own = float(jnp.einsum("iiaa->" if part.ndim == 4 else "ii->", part))
            share = own / total if total else 0.0
            lines.append(f"  {name}: {100 * share:.1f}% of the trace")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def _in_words(groups: tuple[str, ...], methods: tuple[str, ...]) -> str:
    """Which parameter groups were computed how, for the summary."""
    by: dict[str, list[str]] = {}
    for name, how in zip(groups, methods, strict=True):
        by.setdefault(how, []).append(name)
    words = []
    for how, names in by.items():
        text = f"{how}: {len(names)} of {len(groups)} groups"
        if how != "structured" and len(by) > 1:
            text += f" ({', '.join(names)})"
        words.append(text)
    return "; ".join(words)
