"""The rungs of the ladder of lengths that can be judged.

A rung is judged if the limit is known well enough there and there is still something to
predict. Both are decided without the errors: from the loss that the long run has at its
end relative to that at the rung, from how far the landed solution is from the iterate,
and from how far the correction moves it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.land_sgd import DYNAMICS

DERIVED = "the linear equation of the second moments, derived here"
# What is left at the end of the long run, relative to the rung: the loss, to which the
# rest of log alpha is proportional. The errors that are judged are at least a
# thousandth of the landed ones.
MOST_LEFT = 1e-6
# The correction must move the solution by more than rounding, and the iterate must be
# closer to the landed solution than that is to 0: relative to the limit's length.
LEAST_SHIFT, MOST_AWAY = 1e-8, 0.5
SHORT = "the long runs end too early, or the short runs too late, to judge any of the rungs"


class Rung(NamedTuple):
    """What is judged of one kind of runs after one length, for the seeds that end."""

    name: str
    steps: int
    data: xr.Dataset

    @property
    def told(self) -> str:
        """The kind of runs and their length, as text."""
        return f"{self.name} after {self.steps:,}"


def judged(ds: xr.Dataset) -> list[Rung]:
    """The rungs that can be judged, with only the seeds that reach their limits."""
    found = []
    for name in DYNAMICS:
        for rung, steps in enumerate(ds["steps"].values):
            data = ds.sel(dynamics=name).isel(rung=rung)
            data = data.isel(seed=np.flatnonzero(np.isfinite(data["landed"].values)))
            if data.sizes["seed"] >= 2 and can_be_judged(
                *(data[key].values for key in ("left", "shift", "step_left", "size"))
            ):
                found.append(Rung(name, int(steps), data))
    return found


def can_be_judged(left: np.ndarray, shift: np.ndarray, away: np.ndarray, size: np.ndarray) -> bool:
    """Whether the limit is known well enough, and something is left to predict."""
    return bool(
        np.median(left) < MOST_LEFT
        and np.median(shift / size) > LEAST_SHIFT
        and np.median(away / size) < MOST_AWAY
    )
