"""The claims of the main study that the runs select the solutions which Theorem 1 and
SGD's evolution law predict, computed from its dataset alone.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias import Status
from sgfbias.diagonal.studies.main import LAWS, Config
from sgfbias.study import Claim, claim, control, not_applicable, source
from sgfbias.study.claim import CONTROL
from sgfbias.study.statistics import arrow, finite, jointly_finite, log_slope, median

P21, E23 = source("pesme2021"), source("even2023")
FLOWS = {"sgf": "the flow", "sgd": "SGD"}
DIVERGED = (Status.STALLED, Status.NON_FINITE)
# A comparison of distributions needs at least so many seeds.
LEAST_SEEDS = 32
FEW = f"fewer than {LEAST_SEEDS} seeds did not diverge"


def in_weights_coordinates(ds: xr.Dataset) -> list[Claim]:
    """Theorem 1 holds where it does not hold by construction, and needs SGD's noise."""
    statement = (
        "Theorem 1 holds in weights coordinates: at time T the iterate minimises phi_alpha_T "
        "over all beta with the same outputs X beta, with alpha_T computed from int L"
    )
    fails, where, sander = (
        "with isotropic noise added, the iterate stays away from this minimiser as dt falls",
        f"{P21}, Theorem 1 and eq. (8)",
        f"after {source('sander2024')}",
    )
    widths, seeds = ds["dt"].values, ds.sizes["weights_seed"]
    gaps, broken = (
        np.array(jointly_finite(*ds[f"{name}_gap"].values)) for name in ("weights", "isotropic")
    )
    if (left := gaps.shape[1]) < 8:
        reason = f"only {left} of {seeds} seeds stay finite under Euler steps in the weights"
        return [
            not_applicable(statement, where, reason),
            not_applicable(CONTROL + fails, sander, reason),
        ]
    # A strong order is an order in the mean square. The worst seed may have none at the
    # given dt: close to the stability edge a single path may still change completely.
    middle, square = np.median(gaps, axis=1), np.sqrt(np.mean(np.square(gaps), axis=1))
    rows = [
        claim(
            f"{statement}, {which}",
            where,
            predicted="the relative distance to the minimiser tends to 0 with dt, at strong "
            "order 1/2 or higher",
            measured=f"relative distance {arrow(values)} at dt/gamma = 1, 1/4, 1/16, slope "
            f"{log_slope(widths, values):.2f}; {seeds - left} of {seeds} seeds diverged",
            tolerance="slope at least 0.4",
            holds=log_slope(widths, values) >= 0.4,
            main=values is square,
            reason="the distance does not fall with dt",
        )
        for which, values in (
            ("for the median seed", middle),
            ("in the mean square over the seeds", square),
        )
    ]
    if not broken.size:
        return [
            *rows,
            not_applicable(CONTROL + fails, sander, "every seed of the control diverged"),
        ]
    stays = np.median(broken, axis=1)
    slope = log_slope(widths, stays)
    return [
        *rows,
        control(
            fails,
            sander,
            predicted="the relative distance does not fall with dt",
            measured=f"median distance {arrow(stays)}, slope {slope:.2f}; at the smallest dt "
            f"{stays[-1] / middle[-1]:.0f} times the distance without isotropic noise",
            tolerance="slope below 0.2, and at least 5 times the distance without isotropic noise",
            main=True,
            holds=slope < 0.2 and stays[-1] >= 5 * middle[-1],
            reason="the distance falls with isotropic noise too, so the test of Theorem 1 shows "
            "nothing",
        ),
    ]


def in_mirror_coordinates(ds: xr.Dataset) -> list[Claim]:
    """The flow ends at the solution that Theorem 1 selects."""
    where = f"{P21}, Theorem 1; strong convexity of phi"
    statement = (
        "Theorem 1 holds in mirror coordinates: the iterate is within the Bregman bound of the "
        "solution that the program selects at alpha_T"
    )
    at_start = "the iterate is not within the bound of the solution at the initial alpha"
    ratio, broken = (
        finite(ds[f"sgf_distance{name}"].values / ds[f"sgf_bound{name}"].values)
        for name in ("", "_start")
    )
    if not ratio.size:
        return [
            not_applicable(words, where, "every seed diverged")
            for words in (statement, CONTROL + at_start)
        ]
    euclidean = finite(ds["sgf_distance_euclidean"])
    unsolved = max(
        float(np.nanmax(ds[f"sgf_{name}"].values))
        for name in ("feasibility", "stationarity", "duality_gap")
    )
    return [
        claim(
            statement,
            where,
            predicted="distance at most the bound, for every seed",
            measured=f"largest ratio of distance to bound {ratio.max():.2f}; Euclidean distance "
            f"{np.median(euclidean):.1e} (median), {euclidean.max():.1e} (worst)",
            tolerance="ratio at most 1 (+1e-6)",
            holds=(ratio <= 1 + 1e-6).all(),
            reason="some iterate is further from the predicted solution than its residual allows",
        ),
        control(
            at_start,
            where,
            predicted="distance above the bound",
            measured=f"median ratio of distance to bound {np.median(broken):.1f}, above 1 for "
            f"{np.mean(broken > 1):.0%} of the seeds",
            tolerance="ratio above 1 for more than half of the seeds",
            holds=np.mean(broken > 1) > 0.5,
            must_hold=False,
            reason="the runs are too short, or the noise is too weak, for the bound to "
            "distinguish the two solutions",
        ),
        claim(
            "The program is solved for every seed: its solution is feasible and stationary, and "
            "its duality gap is 0",
            "KKT conditions",
            predicted="all three errors are 0",
            measured=f"largest relative error {unsolved:.1e}",
            tolerance="at most 1e-9",
            holds=unsolved <= 1e-9,
            reason="the dual solver did not converge for some seed",
        ),
    ]


def of_sgd(ds: xr.Dataset, config: Config) -> list[Claim]:
    """SGD ends at the solution that its own evolution law selects."""
    statement = (
        "SGD's own evolution law holds: the iterate minimises D_phi(., beta_0) over all beta "
        "with the same outputs, with the alpha_K and the offset that its steps have left"
    )
    without = "without the offset, the iterate is not the minimiser"
    gap, broken = finite(ds["sgd_gap"]), finite(ds["sgd_gap_no_offset"])
    if not gap.size:
        return [
            not_applicable(words, E23, "every SGD seed diverged")
            for words in (statement, CONTROL + without)
        ]
    return [
        claim(
            statement,
            E23,
            predicted="relative distance to the minimiser 0",
            measured=f"relative distance {np.median(gap):.1e} (median), {gap.max():.1e} (worst)",
            tolerance="at most 1e-8",
            holds=gap.max() <= 1e-8,
            main=True,
            reason="rounding errors are large"
            if config.own_data
            else "rounding errors are large, or the evolution law is wrong",
        ),
        control(
            without,
            E23,
            predicted="relative distance above 0",
            measured=f"median relative distance {np.median(broken):.1e}",
            tolerance="at least 1e4 times the distance with the offset",
            holds=np.median(broken) >= 1e4 * np.median(gap),
            reason="the offset makes no difference here, so the test shows nothing",
        ),
        *(
            _nearer(ds, config, law, where)
            for law, where in (("mean_loss", "Theorem 1"), ("per_sample", "appendix E.1"))
        ),
    ]


def _nearer(ds: xr.Dataset, config: Config, law: str, where: str) -> Claim:
    """The claim that a law predicts the selected solution more closely than gradient
    flow does. To first order in gamma, SGD follows the per-sample law. It follows the
    mean-loss law, that of the flow, only on average over the features, so for this law
    the claim informs.
    """
    ratio = median(finite(ds["sgd_distance_gradient_flow"]) / finite(ds[f"sgd_distance_{law}"]))
    return claim(
        f"The {LAWS[law]} evolution law of alpha, applied to SGD's own path, predicts SGD's "
        "selected solution more closely than gradient flow does",
        f"{P21}, {where}",
        predicted="distance to gradient flow's prediction over distance to this one above 1"
        + (", of order gamma^(-1/2)" if law == "per_sample" else ""),
        measured=f"median {ratio:.1f}",
        tolerance="interval above 1, where both predictions are equally close",
        holds=ratio.low > 1,
        must_hold=law == "per_sample",
        reason="SGD shrinks its initialisation too little here for the evolution law to matter"
        + ("" if config.own_data else ", or the law is wrong")
        if law == "per_sample"
        else "on this problem the noise of SGD differs too much from feature to feature for a "
        "law that holds only on average over the features",
    )
