"""What the claims and the picture of the momentum study compute from its dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.momentum import Config
from sgfbias.study import source

PPF = source("papazov2024")
FIRST = "to first order in lambda s = w'/w is gradient flow's, -+ X^T r / n"
NAMES = {"heavy ball": "heavy ball", "nesterov": "Nesterov"}


def whole_lambdas(ds: xr.Dataset) -> np.ndarray:
    """Which lambdas are below the first one at which a weight goes through 0, (lam,)
    booleans.
    """
    return np.cumsum(ds["law_crossings"].values.any(axis=1)) == 0


def shrinkage(ds: xr.Dataset, config: Config, name: str) -> np.ndarray:
    """The decrease of log alpha of the runs `name`, (..., feature)."""
    return np.log(config.alpha) - ds[f"{name}_log_alpha"].values


def apart(small: xr.Dataset, flow: str) -> np.ndarray:
    """Distances of the discrete methods' solutions from the flows' solutions at the
    `LEVELS` smallest lambdas, (method, momentum, level).

    **Arguments:** `flow`: "flow" for our lambda, "printed" for the printed lambda.
    """
    return length(small["discrete_selected"].values - small[f"{flow}_selected"].values)


def length(v: Any) -> np.ndarray:
    """The Euclidean length along the last axis."""
    return np.linalg.norm(np.asarray(v), axis=-1)
