"""A family is the set of runs of one algorithm at all step sizes. The claims and the
picture of the study are made from families.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.edge_of_stability import PER_OCTAVE
from sgfbias.study.statistics import Estimate, finite, mean

# A run has converged if its loss is below this share of its loss at the start.
FALLEN = 1e-3


@dataclasses.dataclass(frozen=True)
class Family:
    """The runs of one algorithm on every draw of the problem. A level is a step size;
    the step sizes fall with the index of the level.

    - `word`: the name of the algorithm.
    - `edge`: (draws,). Index of the largest step size such that the algorithm converges
      at it and at every step size down to an octave below it. It is the number of
      levels if there is none, or if that is the largest step size of all.
    - `log_error`: (draws, levels). Log of the ratio of the algorithm's error to
      gradient flow's, averaged over the seeds whose program was solved.
    - `unsolved`: share of converged runs whose program was not solved.
    - `gain`, `half_gain`: (draws, levels, features). Gain at the end and at half time,
      averaged over seeds.
    - `support`: (draws, features). Whether the truth is not 0.
    """

    word: str
    edge: np.ndarray
    log_error: np.ndarray
    unsolved: float
    gain: np.ndarray
    half_gain: np.ndarray
    support: np.ndarray

    def below(self, values: np.ndarray, steps: int) -> np.ndarray:
        """Values of every draw at the step size that is `steps` levels below its edge;
        NaN if there is no such step size.

        **Arguments:**

        - `values`: (draws, levels, ...).
        """
        place = self.edge + steps
        inside = (place < values.shape[1]) & (self.edge < values.shape[1])
        found = values[np.arange(place.size), np.minimum(place, values.shape[1] - 1)]
        return np.where(inside.reshape(-1, *(1,) * (found.ndim - 1)), found, np.nan)

    def error(self, steps: int) -> np.ndarray:
        """The values (draws,) of `log_error` at `steps` levels below the edge."""
        return self.below(self.log_error, steps)

    def unevenness(self, steps: int) -> np.ndarray:
        """The log of the mean gain on the support of the truth divided by the mean gain
        off it, at `steps` levels below the edge, (draws,).
        """
        gain, on = self.below(self.gain, steps), self.support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log((gain * on).sum(axis=1) / on.sum(axis=1)) - np.log(
                (gain * ~on).sum(axis=1) / (~on).sum(axis=1)
            )


def edges(converged: np.ndarray, reach: int = PER_OCTAVE) -> np.ndarray:
    """For every draw, the index of the largest step size such that every run converges
    at it and at the next `reach` smaller ones, (draws,).

    Still smaller step sizes do not matter: there a run may only be too slow. If there
    is no such step size, or if it is the first one, the edge is not known, and the
    index is the number of levels.

    **Arguments:**

    - `converged`: (draws, levels, seeds), with step sizes that fall along the levels.
    - `reach`: number of smaller step sizes.
    """
    windows = np.lib.stride_tricks.sliding_window_view(
        np.all(converged, axis=-1), reach + 1, axis=1
    )
    whole: np.ndarray = np.all(windows, axis=-1)
    first = np.argmax(whole, axis=1)
    return np.where(np.any(whole, axis=1) & (first > 0), first, converged.shape[1])


def mean_of_known(values: np.ndarray) -> Estimate:
    """The mean over the draws whose value is known, with its interval."""
    return mean(finite(values))


def families(ds: xr.Dataset) -> tuple[Family, Family, list[Family]]:
    """The families of gradient descent, of gradient descent on uncentred inputs, and of
    SGD with every batch size.
    """
    sgd = [
        _family(ds, "sgd", f"SGD with batch {batch}", k)
        for k, batch in enumerate(ds["batch"].values)
    ]
    return (
        _family(ds, "gd", "gradient descent"),
        _family(ds, "shifted", "gradient descent on uncentred inputs"),
        sgd,
    )


def _family(ds: xr.Dataset, which: str, word: str, batch: int | None = None) -> Family:
    """The family of the variables with the prefix `which`. For SGD, `batch` is the
    index of the batch size.
    """

    def column(name: str) -> np.ndarray:
        found = ds[f"{which}_{name}"]
        found = found.expand_dims("seed") if batch is None else found.isel(batch=batch)
        return found.transpose("draw", "level", "seed", ...).values

    def start(name: str) -> np.ndarray:
        return ds[f"shifted_{name}" if which == "shifted" else name].values[:, None, None]

    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(column("error") / start("flow_error"))
    known = np.isfinite(logs)
    mean = np.where(known, logs, 0).sum(axis=-1) / np.where(
        known.any(axis=-1), known.sum(axis=-1), np.nan
    )
    converged = column("loss") < FALLEN * start("start_loss")
    unsolved = float(np.mean(~known[converged])) if converged.any() else 1.0
    gain, half = (column(name).mean(axis=2) for name in ("gain", "half_gain"))
    return Family(word, edges(converged), mean, unsolved, gain, half, ds["truth"].values != 0)
