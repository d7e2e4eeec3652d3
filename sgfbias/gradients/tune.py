"""Minimises an expected outcome over hyperparameters.

An Optax optimiser follows the pathwise gradients of `hypergradient`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole, shown
from sgfbias.core.fingerprint import fingerprint
from sgfbias.core.provenance import attributes
from sgfbias.core.types import Dataset
from sgfbias.gradients.hypergradient import Hypergradient, Mode, as_hyper, hypergradient


class Bounds(NamedTuple):
    """Open interval of a hyperparameter.

    A hyperparameter x = x(z) is a function of a free number z that maps onto the
    interval, and the optimiser works on z. With two finite ends, x is a logistic
    function of z; if `low > 0`, log x is one, so that all decades have equal weight.
    With one finite end, x is `low` + exp(z) or `high` - exp(z). Without finite ends,
    x = z.
    """

    low: float = -np.inf
    high: float = np.inf

    def constrain(self, z: Array) -> Array:
        """The hyperparameter x(z) of a free number z."""
        low, high = self
        if np.isfinite(low) and np.isfinite(high):
            part = jax.nn.sigmoid(z)
            return low * (high / low) ** part if low > 0 else low + (high - low) * part
        if np.isfinite(low):
            return low + jnp.exp(z)
        return high - jnp.exp(z) if np.isfinite(high) else z

    def free(self, x: Array) -> Array:
        """The free number z of a hyperparameter x inside the interval."""
        low, high = self
        if np.isfinite(low) and np.isfinite(high):
            part = jnp.log(x / low) / np.log(high / low) if low > 0 else (x - low) / (high - low)
            return jnp.log(part) - jnp.log1p(-part)
        if np.isfinite(low):
            return jnp.log(x - low)
        return jnp.log(high - x) if np.isfinite(high) else x


class Tuned(eqx.Module):
    """The result of `tune`.

    - `hyper`: the hyperparameters with the smallest mean outcome of all iterations.
    - `value`, `error`: this outcome and its standard error. With fresh seeds, the
      smallest of many noisy means is too small: measure `hyper` again with new keys.
    - `last`: the hyperparameters after the last update.
    - `history`: an `xarray.Dataset` over iterations with `value`, `error`, the number
      of `excluded` seeds, `gradient_norm` (in the free variables), and every
      hyperparameter.
    - `reason`: why the search stopped.
    """

    references: ClassVar[Mapping[str, str]] = {"optax2020": "the optimiser of the search"}
    hyper: Any
    value: float
    error: float
    last: Any
    history: Any = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def __repr__(self) -> str:
        count = self.history.sizes["iteration"]
        return (
            f"Tuned({count} iterations, outcome {self.value:.6g} +- {self.error:.1g}; "
            f"{self.reason})\n  hyper {self.hyper}"
        )


def tune(
    outcome: Callable[[Any, Array], Array],
    start: Any,
    *,
    keys: Array,
    optimiser: Any = None,
    iterations: int = 100,
    bounds: Any = None,
    fresh: bool = False,
    mode: Mode = "reverse",
    tolerance: float = 1e-4,
    patience: int = 20,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Tuned:
    """Minimise the mean over seeds of `outcome(hyper, key)`, starting from `start`.

    **Arguments:**

    - `outcome`, `keys`, `mode`: as for `hypergradient`.
    - `start`: PyTree of the initial hyperparameters.
    - `optimiser`: an `optax.GradientTransformation` for the free variables of `Bounds`;
      by default `optax.adam(0.05)`.
    - `iterations`: the largest number of iterations.
    - `bounds`: PyTree of `Bounds` or pairs (low, high), with None for no bounds. It is
      a prefix of `start`: one entry may stand for a whole subtree.
    - `fresh`: whether every iteration uses new random numbers (each key is folded with
      the number of the iteration). Otherwise all iterations use the same.
    - `tolerance`, `patience`: the search stops if the smallest outcome has not fallen
      by the fraction `tolerance` within `patience` iterations.
    - `checkpoint`: a file (`.npz`) that is replaced after every iteration. If the file
      exists, the search is resumed from it and gives the same numbers as an
      uninterrupted search. The outcome and the optimiser must then be the same, with
      all that they read; the outcome at the start is computed once more and compared.
    - `progress`: a function that is called with the number of iterations done and the
      last outcome.

    **Returns:** a `Tuned`. Seeds that are not finite are left out, and the history
    counts them. If no seed is finite the search stops, and `reason` says so.

    **Raises:** `ValueError` for a start outside its bounds, for a checkpoint of another
    search, and, with `checkpoint`, for an outcome that reads something whose content
    cannot be told, such as an open file.
    """
    keys, start = jnp.atleast_1d(check_keys(keys)), as_hyper(start)
    iterations, patience = as_whole(iterations, "iterations"), as_whole(patience, "patience")
    optimiser = optax.adam(0.05) if optimiser is None else optimiser
    if not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(
            "`optimiser` must be an optax.GradientTransformation, such as optax.adam(0.05), but is "
            f"{shown(optimiser)}"
        )
    limits = _limits(bounds, start)
    structure = jax.tree.structure(start)
    names = [
        jax.tree_util.keystr(path).strip("[]'.") or "hyper"
        for path, _ in jax.tree.leaves_with_path(start)
    ]

    def constrain(z: Any) -> Any:
        return jax.tree.unflatten(
            structure, [b.constrain(v) for b, v in zip(limits, jax.tree.leaves(z), strict=True)]
        )

    def measure(hyper: Any, iteration: int) -> Hypergradient:
        used = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, iteration) if fresh else keys
        with warnings.catch_warnings():
            # The history counts the seeds that these warnings are about.
            warnings.simplefilter("ignore", UserWarning)
            return hypergradient(outcome, hyper, keys=used, mode=mode)

    free = jax.tree.unflatten(
        structure, [b.free(v) for b, v in zip(limits, jax.tree.leaves(start), strict=True)]
    )
    state = optimiser.init(free)
    rows: list[dict[str, Any]] = []
    identity = {"search": _fingerprint(start, limits, keys, fresh, mode)}
    if checkpoint is not None:
        identity["outcome"] = fingerprint(outcome, "the outcome")
        identity["optimiser"] = fingerprint(optimiser, "the optimiser")
    if checkpoint is not None and Path(checkpoint).exists():
        (free, state), rows = _load(Path(checkpoint), (free, state), identity, names)
        _check_outcome(Path(checkpoint), rows[0], measure(start, 0))

    reason = f"{iterations} iterations"
    while True:
        if (why := _done(rows, tolerance, patience)) is not None:
            reason = why
            break
        if len(rows) >= iterations:
            break
        hyper = constrain(free)
        report = measure(hyper, len(rows))
        _, vjp = jax.vjp(constrain, free)
        (slope,) = vjp(report.gradient)
        row = {
            "value": float(report.value),
            "error": float(report.error),
            "excluded": report.excluded,
            "gradient_norm": float(
                jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slope)))
            ),
        }
        rows.append(
            {
                **row,
                **{
                    name: np.asarray(leaf)
                    for name, leaf in zip(names, jax.tree.leaves(hyper), strict=True)
                },
            }
        )
        if np.isfinite(row["value"]):
            # Optax mixes precisions, which strict promotion would refuse.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimiser.update(slope, state, free)
                free = optax.apply_updates(free, updates)
        if checkpoint is not None:
            _save(Path(checkpoint), (free, state), rows, identity)
        if progress is not None:
            progress(len(rows), row["value"])

    values = np.array([row["value"] for row in rows])
    best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
    chosen = jax.tree.unflatten(structure, [jnp.asarray(rows[best][name]) for name in names])
    return Tuned(
        chosen,
        rows[best]["value"],
        rows[best]["error"],
        constrain(free),
        _history(rows, names, keys, fresh, mode),
        reason,
    )


def _limits(bounds: Any, start: Any) -> list[Bounds]:
    """The bounds of every leaf of `start`.

    **Raises:** `ValueError` if they do not fit the structure of `start` or its values.
    """

    def is_pair(node: Any) -> bool:
        return node is None or (
            isinstance(node, tuple)
            and len(node) == 2
            and all(isinstance(v, int | float) for v in node)
        )

    try:
        spread = jax.tree.map(
            lambda pair, part: jax.tree.map(lambda _: Bounds(*(pair or ())), part),
            bounds,
            start,
            is_leaf=is_pair,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`bounds` must be pairs (low, high), or None, in the structure of the "
            f"hyperparameters, but JAX says: {error}"
        ) from error
    limits = jax.tree.leaves(spread, is_leaf=lambda node: isinstance(node, Bounds))
    for (path, leaf), (low, high) in zip(jax.tree.leaves_with_path(start), limits, strict=True):
        if not low < high:
            raise ValueError(
                "bounds must be (low, high) with low < high, but those of "
                f"{jax.tree_util.keystr(path)} are ({low}, {high})"
            )
        if not bool(np.all((np.asarray(leaf) > low) & (np.asarray(leaf) < high))):
            raise ValueError(
                f"the start of {jax.tree_util.keystr(path)} must lie strictly between {low} and "
                f"{high}, but is {np.asarray(leaf)}"
            )
    return limits


def _done(rows: list[dict[str, Any]], tolerance: float, patience: int) -> str | None:
    """Why the search is over, or None if it is not."""
    values = np.array([row["value"] for row in rows])
    if values.size and not np.isfinite(values[-1]):
        return "no seed is finite at the last hyperparameters; start elsewhere, or set bounds"
    if values.size <= patience:
        return None
    before = values[:-patience].min()
    if values[-patience:].min() > before - tolerance * abs(before):
        return f"the outcome did not fall by the fraction {tolerance:g} in {patience} iterations"
    return None


def _history(
    rows: list[dict[str, Any]], names: list[str], keys: Array, fresh: bool, mode: str
) -> Dataset:
    """The rows of all iterations as a Dataset with provenance."""
    import xarray as xr

    data: dict[str, Any] = {
        k: ("iteration", np.array([row[k] for row in rows]))
        for k in ("value", "error", "excluded", "gradient_norm")
    }
    for name in names:
        stacked = np.stack([row[name] for row in rows])
        data[name] = (("iteration", *(f"{name}_{k}" for k in range(stacked.ndim - 1))), stacked)
    config = {"seeds": int(keys.shape[0]), "fresh": fresh, "mode": mode}
    return xr.Dataset(
        data,
        {"iteration": np.arange(len(rows))},
        attributes(config, dtype=jnp.result_type(float), keys=keys),
    )


def _check_outcome(path: Path, stored: dict[str, Any], again: Hypergradient) -> None:
    """Refuse a checkpoint of an outcome that has another value at the start.

    Other versions of libraries can be the reason, which its code does not show.
    """
    was, now = stored["value"], float(again.value)
    if not np.isclose(
        was, now, rtol=1e-3 if again.value.dtype == jnp.float32 else 1e-6, atol=0, equal_nan=True
    ):
        raise ValueError(
            f"the checkpoint {path} is of another outcome: at the start it was {was:.9g}, now it "
            f"is {now:.9g}; delete the file or give another file"
        )


def _fingerprint(start: Any, limits: list[Bounds], keys: Array, fresh: bool, mode: str) -> str:
    """A hash of the arguments of a search that must be the same to resume it."""
    digest = hashlib.sha256(repr((jax.tree.structure(start), limits, fresh, mode)).encode())
    for leaf in (*jax.tree.leaves(start), jax.random.key_data(keys)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _save(path: Path, state: Any, rows: list[dict[str, Any]], identity: dict[str, str]) -> None:
    """Replace the checkpoint by one with the state and the rows of a search."""
    arrays = {f"state_{k}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(state))}
    columns = {f"row_{name}": np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        words = {name: np.array(digest) for name, digest in identity.items()}
        np.savez(file, **words, **arrays, **columns)
    # The replacement is atomic, so the checkpoint is complete at any moment.
    os.replace(part, path)


def _load(
    path: Path, template: Any, identity: dict[str, str], names: list[str]
) -> tuple[Any, list[dict[str, Any]]]:
    """The state and the rows in a checkpoint.

    **Raises:** `ValueError` if it is not of the search with this identity.
    """
    with np.load(path, allow_pickle=False) as stored:
        for part in ("outcome", "optimiser"):  # older versions did not keep them
            if part in stored and str(stored[part]) != identity[part]:
                raise ValueError(
                    f"the checkpoint {path} is of another {part}: its code has changed, or what "
                    "it reads; delete the file or give another file"
                )
        leaves, structure = jax.tree.flatten(template)
        kept = [stored[f"state_{k}"] for k in range(len(leaves)) if f"state_{k}" in stored]
        same = (
            len(kept) == len(leaves)
            and f"state_{len(leaves)}" not in stored
            and all(a.shape == np.shape(b) for a, b in zip(kept, leaves, strict=True))
        )
        if str(stored["search"]) != identity["search"] or not same:
            raise ValueError(
                f"the checkpoint {path} is of another search: start, bounds, keys, `fresh`, "
                "and `mode` must be the same; delete the file or give another file"
            )
        count = len(stored["row_value"])
        numbers = {"value": float, "error": float, "excluded": int, "gradient_norm": float}
        rows = [
            {
                **{k: kind(stored[f"row_{k}"][i]) for k, kind in numbers.items()},
                **{n: stored[f"row_{n}"][i] for n in names},
            }
            for i in range(count)
        ]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in kept]), rows
