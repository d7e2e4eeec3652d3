"""A user's own examples and network, as the command line gives them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.checks import as_whole
from sgfbias.core.loss import SoftmaxCrossEntropyLoss
from sgfbias.core.problem import Problem
from sgfbias.study.arrays import load_arrays


class Examples(NamedTuple):
    """Examples in classes.

    - `inputs`: (N, ...), real numbers.
    - `labels`: (N,), the classes, counted from 0.
    - `classes`: the number of classes.
    """

    inputs: np.ndarray
    labels: np.ndarray
    classes: int

    def draw(self, n: Any, *, seed: Any = 0, dtype: Any = None) -> Problem:
        """Some of the examples, drawn without repetition, with the softmax
        cross-entropy loss.

        **Arguments:**

        - `n`: the number of examples, at most N.
        - `seed`: the random seed from which they are drawn.
        - `dtype`: the precision. Default: JAX's.

        **Raises:** `ValueError` for more examples than there are.
        """
        n = as_whole(n, "n", most=len(self.labels))
        order = np.random.default_rng(as_whole(seed, "seed", least=0)).permutation(len(self.labels))
        rows, dtype = order[:n], jnp.result_type(float) if dtype is None else dtype
        return Problem(
            jnp.asarray(self.inputs[rows], dtype),
            jnp.asarray(self.labels[rows]),
            loss=SoftmaxCrossEntropyLoss(),
        )


def read_examples(path: str | Path) -> Examples:
    """Examples of one's own, from a .npz file.

    **Arguments:**

    - `path`: the file, with X (n, ...), real numbers, and y (n,), classes, which may
      have any names.

    **Raises:** `ValueError` that says what is wrong with the file or with its arrays.
    """
    arrays = load_arrays(path, {"X": "(n, ...)", "y": "(n,)"})
    X, y = arrays["X"], arrays["y"]
    if X.dtype.kind not in "fiub" or X.ndim < 2 or y.shape != X.shape[:1] or not X.size:
        raise ValueError(
            f"{path} must have real numbers X (n, ...) and classes y (n,), but X has shape "
            f"{X.shape} and dtype {X.dtype}, and y has shape {y.shape}"
        )
    inputs = X.astype(np.float64)
    if not np.isfinite(inputs).all():
        raise ValueError(f"X in {path} has values that are NaN or infinite: remove these examples")
    found, labels = np.unique(y, return_inverse=True)
    if not 2 <= len(found) <= max(20, len(y) // 2):
        raise ValueError(
            f"y in {path} must be two classes or more, but has {len(found)} different values on "
            f"{len(y)} examples"
        )
    return Examples(inputs, labels.astype(np.int32), len(found))


def network_maker(where: str) -> Callable[[Any], Any]:
    """The function that makes a network, from a file of one's own.

    The file is executed, as any program that is run.

    **Arguments:**

    - `where`: FILE.py:FUNCTION.

    **Raises:** `ValueError` if there is no such file or function, and if the file
    raises an error.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name.isidentifier():
        raise ValueError(
            "`model` must be written as FILE.py:FUNCTION, such as net.py:make, where make(key) "
            f"returns an Equinox module, but is {where!r}"
        )
    if not path.is_file():
        raise ValueError(f"`model` names the file {path}, but there is no such file")
    known = f"sgfbias_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file can raise anything
        del sys.modules[known]
        raise ValueError(
            f"the file {path} of `model` cannot be run: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    make = getattr(module, name, None)
    if not callable(make):
        raise ValueError(f"`model` must name a function (key) -> network, but {path} has no {name}")
    return make


def own_network(make: Callable[[Any], Any], key: Array, examples: Examples, dtype: Any) -> Any:
    """A network that `make` returns for a key, after a look at its outputs.

    **Raises:** `ValueError` if it cannot be made, or does not map an example to one
    number for each class.
    """
    shape = examples.inputs.shape[1:]
    try:
        network = make(key)
        out = eqx.filter_eval_shape(network, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:  # a user's model can raise anything
        raise ValueError(
            f"the function of `model` must map a key to an Equinox module that maps an example of "
            f"shape {shape} to {examples.classes} numbers, but it raises {type(error).__name__}: "
            f"{error}"
        ) from error
    if getattr(out, "shape", None) != (examples.classes,):
        raise ValueError(
            f"the network of `model` must map an example of shape {shape} to {examples.classes} "
            f"numbers, one for each class, but its output has shape {getattr(out, 'shape', out)}"
        )
    return network
