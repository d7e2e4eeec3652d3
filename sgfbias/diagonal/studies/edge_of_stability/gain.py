"""The claims about the gain, by which a run shrinks alpha: its law, its shape, and its
scaling with the batch size.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgfbias.diagonal.studies.edge_of_stability import E23, LAW_EVERY, PER_OCTAVE, Config
from sgfbias.diagonal.studies.edge_of_stability.family import FALLEN, Family, mean_of_known
from sgfbias.diagonal.studies.edge_of_stability.shared import LEAST, UNCENTRED, factor
from sgfbias.diagonal.theory.large_steps import first_unevenness
from sgfbias.study import Claim, claim, control, not_applicable
from sgfbias.study.statistics import Estimate, finite, jointly_finite, mean

LAW = (
    f"{E23}, theorem 1: alpha_inf^2 = alpha^2 exp(-sum_k q(gamma g_k)), q(x) = -ln((1 - x^2)^2) / 2"
)
SHAPE = f"{E23}, section 4: shape of the gain, centred inputs"
SCALING = f"{E23}, section 3: linear scaling rule"
DIGITS = 36.0  # -log(2^-52): alpha_inf^2 / alpha^2 is exp(-gain)
SAME = 1.5  # two gains whose ratio is below this count as the same, and not as twice


def exact_law(ds: xr.Dataset) -> list[Claim]:
    """The exact law holds, and needs both the gain and the offset."""
    fell = ds["law_loss"].values < FALLEN * ds["start_loss"].values[None, :, None]
    # With a larger gain u and v agree in all digits, so rounding changes alpha_inf.
    live = fell & (np.nan_to_num(ds["law_gain"].values, nan=np.inf).max(axis=-1) < DIGITS)
    off, distance = (ds[f"law_{name}"].values[live] for name in ("stationarity", "distance"))
    solved = np.isfinite(distance)
    # The largest step size that converges, for every algorithm and draw.
    largest = np.argmax(live, axis=2)[..., None]
    bare, start = (
        np.take_along_axis(ds[f"law_{name}"].values, largest, axis=2)
        for name in ("no_offset", "no_gain")
    )
    return [
        claim(
            "Exact law: at every step size, the iterate minimises on its fibre the potential at "
            "alpha_inf, displaced by the offset",
            LAW,
            predicted="arcsinh(beta / 2 alpha_inf^2) - offset in the row space of X, with gain "
            "and offset summed along the path in the paper's own weights",
            measured="relative part outside the row space at most "
            f"{off.max(initial=0):.1e} over {off.size} of {int(fell.sum())} converged runs of "
            f"gradient descent and SGD, those with gains below {DIGITS:g}; "
            f"distance from the program's solution at most {distance[solved].max(initial=0):.1e} "
            f"on the {int(solved.sum())} runs for which it was solved",
            tolerance="1e-8 for both; the program solved for at least 95% of the runs",
            holds=off.size > 0
            and off.max() < 1e-8
            and distance[solved].max(initial=0) < 1e-8
            and solved.mean() >= 0.95,
            main=True,
        ),
        control(
            "without the offset, or without the gain, the iterate at the largest step sizes does "
            "not minimise the potential on its fibre",
            LAW,
            predicted="a part outside the row space that is larger than rounding",
            measured=f"median relative part {np.median(bare):.1e} without the offset and "
            f"{np.median(start):.1e} without the gain; smallest part "
            f"{min(bare.min(), start.min()):.1e}",
            tolerance="both medians above 0.01, and every run above 1e-6",
            holds=all(np.median(v) > 0.01 and v.min() > 1e-6 for v in (bare, start)),
        ),
    ]


def convention(ds: xr.Dataset, gd: Family) -> Claim:
    """The gain by its definition in u and v equals the gain by log alpha of the
    package's w_+-, at step sizes an octave or more below the edge.
    """
    theirs, ours = ds["law_gain"].values[0], gd.half_gain[:, ::LAW_EVERY]
    calm = np.arange(ds.sizes["level"])[None, ::LAW_EVERY] >= gd.edge[:, None] + PER_OCTAVE
    gap = np.max(np.abs(theirs - ours), axis=2)[calm] / np.max(theirs, axis=2)[calm]
    return claim(
        "The network u v with loss |r|^2 / (2n), started from alpha, and the network "
        "w_+^2 - w_-^2 with loss |r|^2 / (4n), started from alpha / sqrt(2), have the same gain "
        "at the same step size",
        f"{E23}, section 2; the gain is 2 log(alpha / alpha_K) of the second network",
        predicted="no difference beyond rounding at step sizes an octave or more below the edge "
        "(nearer to it the iteration is chaotic)",
        measured=f"relative difference of the gains at most {gap.max(initial=0):.1e} over "
        f"{gap.size} runs of gradient descent",
        tolerance="1e-8",
        holds=gap.size > 0 and gap.max() < 1e-8,
    )


def start_shape(ds: xr.Dataset, config: Config) -> Claim:
    """The shape of the squared gradient at the start agrees with Gaussian moments."""
    square, predicted = ds["first_square"].values, first_unevenness(config.n, config.sparsity)
    found = []
    for on, off in square:
        ratio = on.mean() / off.mean()
        # Half of the 99% interval of a ratio of means.
        spread = 2.576 * np.std(on - ratio * off) / (off.mean() * np.sqrt(on.size))
        found.append(Estimate(ratio, ratio - spread, ratio + spread))
    return claim(
        "At the start, the squared gradient of the full batch is uneven over the coordinates, "
        "and the squared gradient of one example is much more even",
        SHAPE + "; constants from Gaussian moments",
        predicted="E g^2 on the support over E g^2 off it: (n + 1)/s + 1 = "
        f"{predicted[0]:.3f} for the full batch, 1 + 2/s = {predicted[1]:.3f} for one example",
        measured=f"{found[0]:.3f} for the full batch; {found[1]:.3f} for one example; over "
        f"{square.shape[-1]} problems",
        tolerance="predictions within the 99% intervals, which do not overlap",
        holds=all(each.low < p < each.high for p, each in zip(predicted, found, strict=True))
        and found[1].high < found[0].low,
    )


def shape_of_run(config: Config, gd: Family, sgd: Family) -> Claim:
    """The shape of the gain over whole runs resembles the shape at the start."""
    start = first_unevenness(config.n, config.sparsity)
    middle = np.log(start).mean()
    uneven, even = (mean_of_known(f.unevenness(PER_OCTAVE)) for f in (gd, sgd))
    return claim(
        "Over whole runs, the gain of gradient descent is concentrated on the support of the "
        "truth, and the gain of SGD is nearly even",
        SHAPE,
        predicted="gain on the support over gain off it of the order of the ratio for squared "
        f"gradients at the start, {start[0]:.2g} for gradient descent and {start[1]:.2g} for SGD",
        measured=f"an octave below the edge, ratio {factor(uneven)} for gradient descent and "
        f"{factor(even)} for SGD with batch 1",
        tolerance="99% intervals over draws on either side of the geometric mean of the two "
        f"predictions, {np.exp(middle):.2f}",
        holds=uneven.low > middle and even.high < middle,
        main=True,
    )


def uncentred_shape(ds: xr.Dataset, config: Config, gd: Family, shifted: Family) -> list[Claim]:
    """On uncentred inputs the gain of gradient descent is even."""
    by_draw = shifted.unevenness(PER_OCTAVE)
    uneven, centred = mean_of_known(by_draw), mean_of_known(gd.unevenness(PER_OCTAVE))
    middle, bound = centred.value / 2, 1 / config.mean
    # The gradient at the start is the sum of mean^2 sum beta*, which is the same on
    # every coordinate, and of beta*. On the strong draws the first part is large.
    truth = ds["truth"].values
    strong = np.abs(truth.sum(axis=1)) >= np.linalg.norm(truth, axis=1)
    strongest, weakest = finite(by_draw[strong]), finite(by_draw[~strong])
    gain = f"On inputs of mean {config.mean:g}, the gain of gradient descent is"
    return [
        claim(
            f"{gain} far more even than on centred inputs",
            UNCENTRED,
            predicted="gain on the support over gain off it nearer to 1 than to the ratio on "
            "centred inputs",
            measured=f"an octave below the edge, ratio {factor(uneven)} on uncentred inputs and "
            f"{factor(centred)} on centred inputs",
            tolerance="99% intervals over draws on either side of the geometric mean of 1 and the "
            f"ratio on centred inputs, {np.exp(middle):.2f}",
            holds=uneven.high < middle < centred.low,
        ),
        _same(f"{gain} the same on every coordinate", strongest, weakest, bound),
    ]


def _same(start: str, strongest: np.ndarray, weakest: np.ndarray, bound: float) -> Claim:
    """The claim that the gain is the same on every coordinate, on draws whose truth has
    a large sum. It is made from the log ratios on these and on the other draws.
    """
    statement = (
        f"{start}, up to first order in 1/mean, on draws where |sum beta*| >= |beta*|_2, so that "
        "the mean decides the gradient"
    )
    if strongest.size < LEAST:
        return not_applicable(
            statement,
            UNCENTRED,
            f"|sum beta*| >= |beta*|_2 on {strongest.size} draws, and {LEAST} are needed",
            must_hold=False,
        )
    row = mean(strongest)
    others = f"{np.exp(weakest.mean()):.2f}" if weakest.size else "not known"
    return claim(
        statement,
        UNCENTRED,
        predicted="gain on the support over gain off it 1, up to a relative part 1/mean",
        measured=f"ratio {factor(row)} on {strongest.size} such draws; on the {weakest.size} "
        f"others, where the entries of the truth cancel, {others}",
        tolerance=f"99% interval within a factor exp(1/mean) = {np.exp(bound):.2f} of 1",
        holds=-bound < row.low and row.high < bound,
        must_hold=False,
        reason="<beta*, mean> must outweigh beta*",
    )


def _totals(ds: xr.Dataset, k: int, base: int) -> tuple[np.ndarray, ...]:
    """Four mean gains of every draw on which all runs stayed finite, where gamma is the
    step size of index `base`:

    - the gain of SGD with batch b = 2^k at 2^k gamma,
    - its prediction `gamma b (G + V / b)`, from the gains `gamma (G + V)` of SGD with
      batch 1 and `gamma G` of gradient descent,
    - the gain of SGD with batch 1 at gamma,
    - the gain of SGD with batch 1 at 2 gamma.
    """
    sgd, gd = ds["sgd_gain"].values.mean(axis=(-1, -2)), ds["gd_gain"].values.mean(axis=-1)
    larger, one = base - PER_OCTAVE * k, sgd[0][:, base]
    found = (
        sgd[k][:, larger],
        gd[:, larger] + one - gd[:, base],
        one,
        sgd[0][:, base - PER_OCTAVE],
    )
    return jointly_finite(*found)


def linear_scaling(ds: xr.Dataset, k: int) -> Claim:
    """The linear scaling rule for batches of 2^k."""
    last, batch = ds.sizes["level"] - 1, int(ds["batch"][k])
    rows = [_totals(ds, k, base) for base in (last, last - PER_OCTAVE)]
    off = [np.log(found / predicted) for found, predicted, _, _ in rows]
    next_order = [(batch - 1) * np.log(doubled / (2 * one)) for *_, one, doubled in rows]
    room = [
        mean(bound - sign * each)
        for each, bound in zip(off, next_order, strict=True)
        for sign in (1, -1)
    ]
    smallest = mean(off[0])
    found, predicted, one, _ = rows[0]
    return claim(
        f"Linear scaling rule: {batch} gamma with batch {batch} has the same gain as gamma with "
        "batch 1, apart from the part of the full batch",
        SCALING + "; gain = gamma (G + V / b) + O(gamma^2), where G comes from the full batch and "
        "V from the variance of the examples",
        predicted="at the smallest step size, ratio of the gains "
        f"{np.exp(np.mean(np.log(predicted / one))):.3f}, which is 1 plus the share of G that the "
        "larger step adds",
        measured=f"ratio {factor(mean(np.log(found / one)))}; measured over predicted ratio "
        f"{factor(smallest)}, and at twice the step size {factor(mean(off[1]))}; the next "
        f"order is {np.mean(next_order[0]):.3f} and {np.mean(next_order[1]):.3f}; {found.size} of "
        f"{ds.sizes['draw']} draws",
        tolerance="at the smallest step size, 99% interval of measured over predicted ratio "
        f"within 1/{SAME:g} and {SAME:g}, the threshold of the control; at both step sizes, mean "
        "of |log(measured / predicted)| not above the next order, which is "
        f"{batch - 1} times log(gain at 2 gamma / (2 gain at gamma)), by the 99% interval of the "
        "paired difference",
        holds=all(each.high > 0 for each in room)
        and max(-smallest.low, smallest.high) < np.log(SAME),
        reason="the step sizes are too large for the expansion, or there are too few seeds",
    )


def scaling_control(ds: xr.Dataset) -> Claim:
    """Without a larger batch, a larger step size has a larger gain."""
    larger, _, one, doubled = _totals(ds, 1, ds.sizes["level"] - 1)
    row, scaled = mean(np.log(doubled / one)), mean(np.log(larger / one))
    return control(
        "twice the step size with the same batch does not have the same gain",
        SCALING,
        predicted="ratio of the gains 2 to first order",
        measured=f"ratio {factor(row)}; if the batch is doubled as well, {factor(scaled)}",
        tolerance=f"99% interval of the first ratio above {SAME:g}, and of the second below "
        f"{SAME:g}",
        holds=row.low > np.log(SAME) > scaled.high,
    )
