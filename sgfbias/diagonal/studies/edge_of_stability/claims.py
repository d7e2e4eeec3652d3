"""The claims of the study, judged from its dataset alone. Those here are about its
set-up.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.edge_of_stability import PER_OCTAVE, Config
from sgfbias.diagonal.studies.edge_of_stability.family import Family, families
from sgfbias.diagonal.studies.edge_of_stability.gain import (
    convention,
    exact_law,
    linear_scaling,
    scaling_control,
    shape_of_run,
    start_shape,
    uncentred_shape,
)
from sgfbias.diagonal.studies.edge_of_stability.recovery import (
    at_the_edge,
    below_the_edge,
    narrow_window,
    spread_evenly,
    uncentred_recovery,
)
from sgfbias.diagonal.studies.edge_of_stability.shared import LEAST
from sgfbias.study import Claim, claim, not_applicable
from sgfbias.study.statistics import finite

OUTSIDE = 0.1  # share of the draws whose edge may be outside the grid of step sizes


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The claims are about the exact law, the shape of the gain, recovery at and below
    the edge of stability, and the linear scaling rule.
    """
    gd, shifted, sgd = families(ds)
    return [
        *exact_law(ds),
        convention(ds, gd),
        _bracketed(ds["level"].values, [gd, *sgd, shifted]),
        _if_known(_settled([gd, *sgd]), gd, *sgd),
        start_shape(ds, config),
        _if_known(shape_of_run(config, gd, sgd[0]), gd, sgd[0]),
        *(_if_known(row, gd, shifted) for row in uncentred_shape(ds, config, gd, shifted)),
        _if_known(at_the_edge(gd, worse=True, main=True), gd),
        *(_if_known(at_the_edge(each, worse=False, main=each is sgd[0]), each) for each in sgd),
        _if_known(below_the_edge(gd, worse=True), gd),
        _if_known(below_the_edge(sgd[0], worse=False), sgd[0]),
        _if_known(narrow_window(gd, must_hold=False), gd),
        _if_known(narrow_window(sgd[0], must_hold=True), sgd[0]),
        _if_known(uncentred_recovery(shifted), shifted),
        _if_known(spread_evenly(ds, gd), gd),
        *(linear_scaling(ds, k) for k in range(1, len(sgd))),
        scaling_control(ds),
    ]


def _if_known(row: Claim, *needed: Family) -> Claim:
    """The claim `row`; or that it does not apply if an algorithm that it needs has
    hardly any draw with a known edge.
    """
    for f in needed:
        known = int(np.sum(f.edge < f.gain.shape[1]))
        if known < LEAST:
            return not_applicable(
                row.statement,
                row.source,
                f"the edge of {f.word} is known on {known} draws, and {LEAST} are needed",
                must_hold=row.must_hold,
            )
    return row


def _bracketed(level: np.ndarray, all_of_them: list[Family]) -> Claim:
    """The edges of nearly all draws lie well inside the grid of step sizes."""
    # The edge of a draw and the step sizes of two octaves below it are in the grid.
    inside = {f.word: f.edge + 2 * PER_OCTAVE < level.size for f in all_of_them}
    known = {f.word: level[f.edge[f.edge < level.size]] for f in all_of_them}
    return claim(
        "The step sizes reach beyond the edge of stability, and two octaves below it, on nearly "
        "every draw",
        "set-up of this study; draws whose edge is not known are left out of the other claims",
        predicted="no draw that converges at the largest step size, or whose edge is within two "
        "octaves of the smallest",
        measured="step size at the edge times |beta*|_1: "
        + "; ".join(
            f"{word} 2^{v.min():g} to 2^{v.max():g}" if v.size else f"{word} not known"
            for word, v in known.items()
        )
        + "; exceptions: "
        + ", ".join(f"{int(np.sum(~each))} of {each.size}" for each in inside.values()),
        tolerance=f"for every algorithm at most {OUTSIDE:.0%} of the draws",
        holds=all(np.mean(~each) <= OUTSIDE for each in inside.values()),
        reason="the grid of step sizes does not fit: choose other octaves_up, octaves_down or "
        "steps",
    )


def _settled(centred: list[Family]) -> Claim:
    """The second half of every run below the edge adds hardly any gain."""
    with np.errstate(invalid="ignore", divide="ignore"):
        late = [1 - f.half_gain.sum(axis=-1) / f.gain.sum(axis=-1) for f in centred]
    share = np.array(
        [
            [f.below(v, k) for k in range(2 * PER_OCTAVE + 1)]
            for f, v in zip(centred, late, strict=True)
        ]
    )
    # The draws whose edge is known.
    middle = np.array(
        [[np.median(finite(row)) if finite(row).size else np.inf for row in each] for each in share]
    )
    at_edge, below = np.max(middle[:, 0]), np.max(middle[:, 1:])
    moving = finite(share[:, 1:]) > 0.05
    return claim(
        "The runs are long enough: below the edge the gain has settled",
        "difference of the total gain between half time and the end",
        predicted="no gain in the second half of a run; at the edge itself, a run converges "
        "arbitrarily slowly",
        measured="the second half has at most "
        f"{below:.2%} of the gain in the median over draws, and {at_edge:.2%} at the edge; below "
        f"the edge it has more than 5% in {int(moving.sum())} of {moving.size} combinations of "
        "algorithm, draw and step size",
        tolerance="median below 1% at every step size from a quarter of an octave to two octaves "
        "below the edge; more than 5% in at most 5% of the combinations",
        holds=below < 0.01 and moving.mean() <= 0.05,
        reason="more steps are needed",
    )
