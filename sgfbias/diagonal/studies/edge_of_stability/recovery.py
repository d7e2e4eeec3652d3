"""The claims about recovery of the truth at the edge of stability and below it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.edge_of_stability import E23, PER_OCTAVE
from sgfbias.diagonal.studies.edge_of_stability.family import Family
from sgfbias.diagonal.studies.edge_of_stability.shared import UNCENTRED, factor
from sgfbias.study import Claim, claim, control
from sgfbias.study.statistics import finite, jointly_finite, mean, slope

RECOVERY = f"{E23}, figure 1 and section 4"
WINDOW = 2  # length of the window below the edge in step sizes, which is half an octave


def at_the_edge(f: Family, *, worse: bool, main: bool) -> Claim:
    """The algorithm at its edge recovers worse, or better, than gradient flow."""
    error, word = finite(f.error(0)), "worse" if worse else "better"
    row = mean(error)
    return claim(
        f"At its edge of stability, {f.word} recovers the truth {word} than gradient flow does",
        RECOVERY,
        predicted=f"ratio of the error to gradient flow's {'above' if worse else 'below'} 1",
        measured=f"geometric mean of the ratio {factor(row)}; {word} on "
        f"{int(np.sum((error > 0) == worse))} of {error.size} draws; the program was not solved "
        f"for {f.unsolved:.1%} of the runs",
        tolerance="99% interval over draws on that side of 1; at most 2% of the runs not solved",
        holds=(row.low > 0 if worse else row.high < 0) and f.unsolved <= 0.02,
        main=main,
    )


def below_the_edge(f: Family, *, worse: bool) -> Claim:
    """The log error rises, or falls, with log gamma between two octaves and half an
    octave below the edge.
    """
    steps = np.arange(WINDOW, 2 * PER_OCTAVE + 1)
    errors = np.stack([f.error(int(k)) for k in steps], axis=1)
    errors = errors[np.isfinite(errors).all(axis=1)]
    slopes = slope(-steps / PER_OCTAVE, errors) if errors.size else np.zeros(0)
    row = mean(slopes)
    return claim(
        f"Well below the edge, too, {f.word} gets {'worse' if worse else 'better'} at recovering "
        "the truth as the step size grows",
        RECOVERY,
        predicted=f"{'positive' if worse else 'negative'} slope of the log error per octave, "
        "from two octaves to half an octave below the edge",
        measured=f"slope {row:+.3f}; of that sign on {int(np.sum((slopes > 0) == worse))} of "
        f"{slopes.size} draws",
        tolerance="99% interval over draws on that side of 0",
        holds=row.low > 0 if worse else row.high < 0,
        must_hold=not worse,
        reason="this is an observation on average over problems, not a theorem: the slopes of "
        "single problems have both signs",
    )


def narrow_window(f: Family, *, must_hold: bool) -> Claim:
    """The error changes most within half an octave of the edge."""
    inside, outside = jointly_finite(np.abs(f.error(0) - f.error(WINDOW)), np.abs(f.error(WINDOW)))
    row = mean(inside - outside)
    return claim(
        f"The effect of the step size on {f.word} is largest in a narrow window below the edge",
        f"{E23}, section 5: edge of stability",
        predicted="a larger change of the log error over the last half octave below the edge than "
        "over all smaller step sizes",
        measured=f"mean absolute change {mean(inside).value:.2f} over the half octave and "
        f"{mean(outside).value:.2f} over smaller step sizes; difference {row:+.2f}",
        tolerance="99% interval of the paired difference above 0",
        holds=row.low > 0,
        must_hold=must_hold,
        reason="this is an observation on average over problems, not a theorem",
    )


def uncentred_recovery(f: Family) -> Claim:
    """Gradient descent with an even gain recovers better, on uncentred inputs."""
    error = finite(f.error(0))
    row = mean(error)
    return control(
        "where its gain is even, on uncentred inputs, gradient descent at its edge of stability "
        "recovers the truth better than gradient flow, not worse",
        UNCENTRED,
        predicted="ratio of the error to gradient flow's below 1",
        measured=f"geometric mean of the ratio {factor(row)}; better on "
        f"{int(np.sum(error < 0))} of {error.size} draws",
        tolerance="99% interval over draws below 1",
        holds=row.high < 0,
        reason="something other than the shape of the gain decides",
    )


def spread_evenly(ds: xr.Dataset, gd: Family) -> Claim:
    """Gradient descent would recover better if its gain were spread evenly."""
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = gd.below(np.log(ds["flat_error"].values / ds["flow_error"].values[:, None]), WINDOW)
    flat, own = jointly_finite(flat, gd.error(WINDOW))
    even, change = mean(flat), mean(flat - own)
    return control(
        "with a gain as large but spread evenly over the coordinates, gradient descent would "
        "recover the truth better than gradient flow",
        f"{E23}, section 4: the shape of the gain decides",
        predicted="ratio of the error to gradient flow's below 1 with the gain spread evenly, and "
        "below the ratio with the gain as it is",
        measured=f"half an octave below the edge, ratio {factor(even)} with the gain spread "
        f"evenly; divided by the ratio with the gain as it is, {factor(change)}",
        tolerance="99% intervals over draws of both below 1",
        holds=even.high < 0 and change.high < 0,
        main=True,
        reason="something other than the shape of the gain decides",
    )
