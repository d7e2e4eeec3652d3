"""One algorithm towards its edge of stability: what the claims and the picture of `edge-of-stability` are made from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

FALLEN = 1e-3  # of the loss at the start, below which a run has converged


@dataclasses.dataclass(frozen=True)
class Family:
    """One algorithm: `edge[draw]`, the index of the largest step size from which on it converges (the number of levels: none); the log of its error over gradient
    flow's, (draw, level); its mean gain over seeds, (draw, level, feature). `unsolved`: the part of the runs that converged whose programme was not solved; they are left out of
    the errors."""

    word: str
    edge: np.ndarray
    log_error: np.ndarray
    gain: np.ndarray
    unsolved: float

    def below(self, values: np.ndarray, steps: int) -> np.ndarray:
        """Values per draw so many step sizes below the edge; NaN beyond the smallest."""
        place = self.edge + steps
        inside = (place < values.shape[1]) & (self.edge < values.shape[1])
        found = values[np.arange(place.size), np.minimum(place, values.shape[1] - 1)]
        return np.where(inside.reshape(-1, *(1,) * (found.ndim - 1)), found, np.nan)

    def error(self, steps: int) -> np.ndarray:
        """Log error over gradient flow's, per draw, so many step sizes below the edge."""
        return self.below(self.log_error, steps)


def edges(loss: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Per draw, the index of the largest step size (they fall) such that every run converges at it and at every smaller one; loss (draw, level, seed)."""
    bad = np.atleast_2d(np.any(~(loss < FALLEN * start[:, None, None]), axis=-1))
    return np.array([np.max(np.flatnonzero(row), initial=-1) + 1 for row in bad])


def family(ds: Any, which: str, batch: int = 0) -> Family:
    """Gradient descent ("gd"), on uncentred inputs ("shifted"), or SGD ("sgd") with the batch of that index."""
    start, flow = ("shifted_start_loss", "shifted_flow_error") if which == "shifted" else ("start_loss", "flow_error")
    loss, error, gain = (ds[f"{which}_{name}"].values for name in ("loss", "error", "gain"))
    if which == "sgd":
        loss, error, gain = loss[batch], error[batch], gain[batch]
        word = f"SGD, batch {int(ds['batch'][batch])}"
    else:
        loss, error, gain = loss[..., None], error[..., None], gain[:, :, None]
        word = "gradient descent" if which == "gd" else "gradient descent, uncentred"
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(error / ds[flow].values[:, None, None])
    known = np.isfinite(logs)
    mean = np.where(known, logs, 0).sum(axis=-1) / np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)
    converged = loss < FALLEN * ds[start].values[:, None, None]
    unsolved = float(np.mean(~known[converged])) if converged.any() else 1.0
    return Family(word, edges(loss, ds[start].values), mean, gain.mean(axis=2), unsolved)


def unevenness(ds: Any, gain: np.ndarray) -> np.ndarray:
    """Log of the mean gain on the truth's support over that off it, per draw; gain (draw, feature)."""
    on = ds["truth"].values != 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log((gain * on).sum(axis=1) / on.sum(axis=1)) - np.log((gain * ~on).sum(axis=1) / (~on).sum(axis=1))
