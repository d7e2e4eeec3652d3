"""Minimise an expected outcome over hyperparameters, with an Optax optimiser on pathwise gradients."""

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
from sgfbias.core.hypergradient import Hypergradient, Mode, as_hyper, hypergradient
from sgfbias.core.provenance import attributes


class Bounds(NamedTuple):
    """Open interval of a hyperparameter; it is kept by a change of variables, so the optimiser knows nothing of it.

    Both ends finite: a logistic function, of the logarithm where `low > 0`, so that decades count alike. Only `low`: an exponential above it.
    Only `high`: an exponential below it. Neither: as it is.
    """

    low: float = -np.inf
    high: float = np.inf

    def constrain(self, z: Array) -> Array:
        """The hyperparameter of a free number."""
        low, high = self
        if np.isfinite(low) and np.isfinite(high):
            part = jax.nn.sigmoid(z)
            return low * (high / low) ** part if low > 0 else low + (high - low) * part
        if np.isfinite(low):
            return low + jnp.exp(z)
        return high - jnp.exp(z) if np.isfinite(high) else z

    def free(self, x: Array) -> Array:
        """The free number of a hyperparameter inside."""
        low, high = self
        if np.isfinite(low) and np.isfinite(high):
            part = jnp.log(x / low) / np.log(high / low) if low > 0 else (x - low) / (high - low)
            return jnp.log(part) - jnp.log1p(-part)
        if np.isfinite(low):
            return jnp.log(x - low)
        return jnp.log(high - x) if np.isfinite(high) else x


class Tuned(eqx.Module):
    """What `tune` found.

    - `hyper`: the hyperparameters of the smallest mean outcome seen; `value`, `error`: that outcome and its standard error. With fresh seeds
      the smallest of many noisy means is too small: measure `hyper` again on new keys.
    - `last`: where the optimiser stood at the end. `history`: `xarray.Dataset` over iterations: `value`, `error`, `excluded` seeds,
      `gradient_norm` in the free variables, and every hyperparameter. `reason`: why it stopped.
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
        return f"Tuned({count} iterations, outcome {self.value:.6g} +- {self.error:.1g}; {self.reason})\n  hyper {self.hyper}"


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
    """Minimise the mean over seeds of `outcome(hyper, key)` from `start`.

    **Arguments:**

    - `outcome`, `keys`, `mode`: as in `hypergradient`. `start`: PyTree of hyperparameters.
    - `optimiser`: an `optax.GradientTransformation` on the free variables; default `optax.adam(0.05)`.
    - `bounds`: PyTree of `Bounds` or pairs (low, high), None where there are none; a prefix of `start`.
    - `fresh`: new random numbers at every iteration (key i folded with the iteration) instead of common ones.
    - `tolerance`, `patience`: stop when the smallest outcome has not fallen by this fraction for so many iterations.
    - `checkpoint`: a file (`.npz`) that is replaced after every iteration; if it is there the search goes on from it, to the same numbers,
      after measuring the start once more: another outcome is refused.
    - `progress`: told the iteration and its outcome.

    **Returns:** a `Tuned`. A seed that is not finite is left out and counted in the history; if none is finite the search stops and says so.

    **Raises:** `ValueError` for a start outside its bounds, or a checkpoint of another search.
    """
    keys, start = jnp.atleast_1d(check_keys(keys)), as_hyper(start)
    if iterations < 1 or patience < 1:
        raise ValueError(f"`iterations` and `patience` must be at least 1, but are {iterations} and {patience}")
    optimiser = optax.adam(0.05) if optimiser is None else optimiser
    limits = _limits(bounds, start)
    structure = jax.tree.structure(start)
    names = [jax.tree_util.keystr(path).strip("[]'.") or "hyper" for path, _ in jax.tree.leaves_with_path(start)]

    def constrain(z: Any) -> Any:
        return jax.tree.unflatten(structure, [b.constrain(v) for b, v in zip(limits, jax.tree.leaves(z), strict=True)])

    def measure(hyper: Any, iteration: int) -> Hypergradient:
        used = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, iteration) if fresh else keys
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # counted in the history
            return hypergradient(outcome, hyper, keys=used, mode=mode)

    free = jax.tree.unflatten(structure, [b.free(v) for b, v in zip(limits, jax.tree.leaves(start), strict=True)])
    state = optimiser.init(free)
    rows: list[dict[str, Any]] = []
    search = _fingerprint(start, limits, keys, fresh, mode)
    if checkpoint is not None and Path(checkpoint).exists():
        (free, state), rows = _load(Path(checkpoint), (free, state), search, names)
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
        _, pull = jax.vjp(constrain, free)
        (slope,) = pull(report.gradient)
        row = {
            "value": float(report.value),
            "error": float(report.error),
            "excluded": report.excluded,
            "gradient_norm": float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slope)))),
        }
        rows.append({**row, **{name: np.asarray(leaf) for name, leaf in zip(names, jax.tree.leaves(hyper), strict=True)}})
        if np.isfinite(row["value"]):
            with jax.numpy_dtype_promotion("standard"):  # Optax mixes precisions
                updates, state = optimiser.update(slope, state, free)
                free = optax.apply_updates(free, updates)
        if checkpoint is not None:
            _save(Path(checkpoint), (free, state), rows, search)
        if progress is not None:
            progress(len(rows), row["value"])

    values = np.array([row["value"] for row in rows])
    best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
    chosen = jax.tree.unflatten(structure, [jnp.asarray(rows[best][name]) for name in names])
    return Tuned(chosen, rows[best]["value"], rows[best]["error"], constrain(free), _history(rows, names, keys, fresh, mode), reason)


def _limits(bounds: Any, start: Any) -> list[Bounds]:
    def is_pair(node: Any) -> bool:
        return node is None or (isinstance(node, tuple) and len(node) == 2 and all(isinstance(v, int | float) for v in node))

    try:
        spread = jax.tree.map(lambda pair, part: jax.tree.map(lambda _: Bounds(*(pair or ())), part), bounds, start, is_leaf=is_pair)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`bounds` must be pairs (low, high), or None, in the structure of the hyperparameters: {error}") from error
    limits = jax.tree.leaves(spread, is_leaf=lambda node: isinstance(node, Bounds))
    for (path, leaf), (low, high) in zip(jax.tree.leaves_with_path(start), limits, strict=True):
        if not low < high:
            raise ValueError(f"bounds must be (low, high) with low < high, but for {jax.tree_util.keystr(path)} are ({low}, {high})")
        if not bool(np.all((np.asarray(leaf) > low) & (np.asarray(leaf) < high))):
            raise ValueError(
                f"the start of {jax.tree_util.keystr(path)} must lie strictly between {low} and {high}, but is {np.asarray(leaf)}"
            )
    return limits


def _done(rows: list[dict[str, Any]], tolerance: float, patience: int) -> str | None:
    """Why the search is over, if it is."""
    values = np.array([row["value"] for row in rows])
    if values.size and not np.isfinite(values[-1]):
        return "no seed is finite at the last hyperparameters: start elsewhere, or bound them"
    if values.size <= patience:
        return None
    before = values[:-patience].min()
    if values[-patience:].min() > before - tolerance * abs(before):
        return f"no fall by {tolerance:g} of the outcome in {patience} iterations"
    return None


def _history(rows: list[dict[str, Any]], names: list[str], keys: Array, fresh: bool, mode: str) -> Any:
    import xarray as xr

    data: dict[str, Any] = {k: ("iteration", np.array([row[k] for row in rows])) for k in ("value", "error", "excluded", "gradient_norm")}
    for name in names:
        stacked = np.stack([row[name] for row in rows])
        data[name] = (("iteration", *(f"{name}_{k}" for k in range(stacked.ndim - 1))), stacked)
    config = {"seeds": int(keys.shape[0]), "fresh": fresh, "mode": mode}
    return xr.Dataset(data, {"iteration": np.arange(len(rows))}, attributes(config, dtype=jnp.result_type(float), keys=keys))


def _check_outcome(path: Path, stored: dict[str, Any], again: Hypergradient) -> None:
    """Refuse to go on with another outcome: a function cannot be compared, its value at the start can, up to what rounding may do."""
    was, now = stored["value"], float(again.value)
    if not np.isclose(was, now, rtol=1e-3 if again.value.dtype == jnp.float32 else 1e-6, atol=0, equal_nan=True):
        raise ValueError(
            f"the checkpoint {path} is of another outcome: at the start it was {was:.9g}, now it is {now:.9g}; delete the file or name another"
        )


def _fingerprint(start: Any, limits: list[Bounds], keys: Array, fresh: bool, mode: str) -> str:
    """Of everything that a checkpoint must have in common with the search that goes on from it, but for the outcome."""
    digest = hashlib.sha256(repr((jax.tree.structure(start), limits, fresh, mode)).encode())
    for leaf in (*jax.tree.leaves(start), jax.random.key_data(keys)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _save(path: Path, state: Any, rows: list[dict[str, Any]], search: str) -> None:
    arrays = {f"state_{k}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(state))}
    columns = {f"row_{name}": np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, search=np.array(search), **arrays, **columns)
    os.replace(part, path)  # at any moment the file is whole


def _load(path: Path, template: Any, search: str, names: list[str]) -> tuple[Any, list[dict[str, Any]]]:
    with np.load(path, allow_pickle=False) as stored:
        leaves, structure = jax.tree.flatten(template)
        kept = [stored[f"state_{k}"] for k in range(len(leaves)) if f"state_{k}" in stored]
        same = (
            len(kept) == len(leaves)
            and f"state_{len(leaves)}" not in stored
            and all(a.shape == np.shape(b) for a, b in zip(kept, leaves, strict=True))
        )
        if str(stored["search"]) != search or not same:
            raise ValueError(
                f"the checkpoint {path} is of another search: start, bounds, keys, `fresh`, `mode` and the optimiser must be the same; delete it or "
                "name another file"
            )
        count = len(stored["row_value"])
        numbers = {"value": float, "error": float, "excluded": int, "gradient_norm": float}
        rows = [
            {**{k: kind(stored[f"row_{k}"][i]) for k, kind in numbers.items()}, **{n: stored[f"row_{n}"][i] for n in names}}
            for i in range(count)
        ]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in kept]), rows
