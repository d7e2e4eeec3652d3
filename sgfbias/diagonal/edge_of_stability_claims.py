"""Claims and picture of the study `edge-of-stability`, from its dataset alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, bootstrap, judge
from sgfbias.diagonal.edge_of_stability_family import FALLEN, Family, family, unevenness
from sgfbias.plotting import COLOURS, new_figure, tidy

E23 = "Even, Pesme, Gunasekar, Flammarion 2023"
LAW = f"{E23}, theorem 1: alpha_inf^2 = alpha^2 exp(-sum_k q(gamma g_k)), q(x) = -ln((1 - x^2)^2) / 2"
SHAPE = f"{E23}, section 4: shape of the gain, centred inputs"
RECOVERY = f"{E23}, figure 1 and section 4"
SCALING = f"{E23}, section 3: linear scaling rule"
WINDOW = 2  # step sizes in the window below the edge: half an octave
OCTAVE = 4
FLAT_COLOUR, SHIFTED_COLOUR = "#1b9e77", COLOURS["control"]
BATCH_COLOURS = ("#d95f02", "#e6a15c", "#1b70b7", "#7fb0d8")


def _mean(v: Any) -> Any:
    return np.mean(v, axis=-1)


def _interval(sample: np.ndarray) -> tuple[float, float, float]:
    """Mean over draws and its 99% bootstrap interval; NaN where a draw is missing, which fails every claim."""
    if not np.all(np.isfinite(sample)):
        return (float("nan"),) * 3
    return (float(np.mean(sample)), *bootstrap(_mean, sample))


def _times(interval: tuple[float, float, float]) -> str:
    """A mean of logarithms as a factor."""
    middle, low, high = np.exp(interval)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    gd, shifted = family(ds, "gd"), family(ds, "shifted")
    sgd = [family(ds, "sgd", b) for b in range(ds.sizes["batch"])]
    return [
        *_law(ds),
        _convention(ds, gd),
        _bracketed(ds, [gd, *sgd, shifted]),
        _settled(ds, gd, sgd),
        _start_shape(ds),
        _shape(ds, gd, sgd[0]),
        *_uncentred_shape(ds, gd, shifted),
        _recovery(gd, worse=True),
        *(_recovery(each, worse=False) for each in sgd),
        _trend(gd, worse=True),
        _trend(sgd[0], worse=False),
        _window(gd),
        _window(sgd[0]),
        _uncentred_recovery(shifted),
        _flat(ds, gd),
        *(_scaling(ds, b) for b in range(1, ds.sizes["batch"])),
        _scaling_control(ds),
    ]


def _law(ds: Any) -> list[Claim]:
    live = ds["law_loss"].values < FALLEN * ds["start_loss"].values[None, :, None]
    off, distance = ds["law_stationarity"].values[live], ds["law_distance"].values[live]
    solved = np.isfinite(distance)
    bare, start = ds["law_no_offset"].values, ds["law_no_gain"].values
    largest = [np.argmax(live, axis=2)[k] for k in range(2)]  # the largest step size that converges, per algorithm and draw
    draws = np.arange(live.shape[1])
    at = {name: np.concatenate([v[k, draws, largest[k]] for k in range(2)]) for name, v in (("offset", bare), ("gain", start))}
    return [
        judge(
            "Exact law: the iterate minimises the potential at alpha_inf, displaced by the offset, whatever the step size",
            LAW,
            predicted="arcsinh(beta / 2 alpha_inf^2) - offset in the row space, with gain and offset summed along the path in the paper's own weights",
            measured=f"relative part outside at most {off.max(initial=0):.1e} over {off.size} runs of GD and SGD that converged; distance to the programme's solution "
            f"at most {distance[solved].max(initial=0):.1e} on {int(solved.sum())} of them, where it was solved",
            tolerance="1e-8 both; solved for 95%",
            holds=off.size > 0 and off.max() < 1e-8 and distance[solved].max(initial=0) < 1e-8 and solved.mean() >= 0.95,
        ),
        judge(
            "Control: without the offset, or without the gain, it does not, at the largest step sizes",
            LAW,
            predicted="a part outside that is no rounding",
            measured=f"median {np.median(at['offset']):.1e} without the offset, {np.median(at['gain']):.1e} without the gain; least {min(at['offset'].min(), at['gain'].min()):.1e}",
            tolerance="medians above .01, every run above 1e-6",
            holds=all(np.median(v) > 0.01 and v.min() > 1e-6 for v in at.values()),
            control=True,
        ),
    ]


def _convention(ds: Any, gd: Family) -> Claim:
    """Gain by its definition in u, v against log alpha of the package's w_+-, one octave below the edge and smaller steps."""
    every = int(np.ceil(ds.sizes["level"] / ds.sizes["law_level"]))
    theirs, ours = ds["law_gain"].values[0], ds["gd_half_gain"].values[:, ::every]
    calm = np.arange(ds.sizes["level"])[None, ::every] >= gd.edge[:, None] + OCTAVE
    gap = np.max(np.abs(theirs - ours), axis=2)[calm] / np.max(theirs, axis=2)[calm]
    return judge(
        "u v under 1/(2n) from alpha is w_+^2 - w_-^2 under 1/(4n) from alpha / sqrt(2): one step size, one gain",
        f"{E23}, section 2; the gain is 2 log(alpha / alpha_K) of the other parametrisation",
        predicted="no difference but rounding (an octave below the edge: nearer to it the iteration is chaotic)",
        measured=f"relative difference at most {gap.max(initial=0):.1e} over {gap.size} runs of gradient descent",
        tolerance="1e-8",
        holds=gap.size > 0 and gap.max() < 1e-8,
    )


def _bracketed(ds: Any, families: list[Family]) -> Claim:
    count = ds.sizes["level"]
    top, low = ([int(np.sum(test(f.edge))) for f in families] for test in (lambda e: e == 0, lambda e: e > count - 2 * OCTAVE))
    return judge(
        "The step sizes reach across every edge, and two octaves below it",
        "set-up of this study",
        predicted="no draw converges at the largest or has its edge among the smallest",
        measured="; ".join(
            f"{f.word}: edge 2^{np.min(ds['level'].values[np.minimum(f.edge, count - 1)]):g} to 2^{np.max(ds['level'].values[np.minimum(f.edge, count - 1)]):g}"
            for f in families
        )
        + " over |beta*|_1",
        tolerance="none, in every family",
        holds=sum(top) == 0 and sum(low) == 0,
        reason="choose other octaves_up, octaves_down or steps",
    )


def _settled(ds: Any, gd: Family, sgd: list[Family]) -> Claim:
    """Share of the total gain that came in the second half, by distance from the edge."""
    middle, late = [], []
    for f, name, index in ((gd, "gd", ()), *((f, "sgd", (b,)) for b, f in enumerate(sgd))):
        half, whole = (ds[f"{name}_{v}"].values[index].sum(axis=-1) for v in ("half_gain", "gain"))
        if half.ndim == 3:
            half, whole = half.mean(axis=2), whole.mean(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.stack([f.below(1 - half / whole, k) for k in range(2 * OCTAVE + 1)])
        middle.append(np.median(share, axis=1))
        late.append(share.ravel())
    moving = np.concatenate(late) > 0.05
    return judge(
        "The runs are long enough: the gain has settled",
        "difference of the total gain between half time and the end",
        predicted="0",
        measured=f"median over draws of what the second half gained at most {np.max(middle):.2%}; above 5% in {int(moving.sum())} of {moving.size} pairs of a draw and a step size",
        tolerance="median 1% at every distance from the edge, up to two octaves; above 5% for at most 5% of the pairs",
        holds=np.max(middle) < 0.01 and moving.mean() <= 0.05,
        reason="more steps are needed",
    )


def _start_shape(ds: Any) -> Claim:
    square, n, s = ds["first_square"].values, _config(ds, "n"), _config(ds, "sparsity")
    predicted = ((n + 1) / s + 1, 1 + 2 / s)
    found = []
    for k in range(2):
        on, off = square[k]
        ratio = on.mean() / off.mean()
        spread = 2.576 * np.std(on - ratio * off) / (off.mean() * np.sqrt(on.size))  # of a ratio of means, 99%
        found.append((ratio, ratio - spread, ratio + spread))
    return judge(
        "At the start the squared gradient of gradient descent is uneven, that of one example is not",
        SHAPE + "; constants from Gaussian moments",
        predicted=f"E g^2 on the support over off it: full batch (n + 1)/s + 1 = {predicted[0]:.3f}, one example 1 + 2/s = {predicted[1]:.3f}",
        measured="; ".join(f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in found) + f" over {square.shape[-1]} problems",
        tolerance="in the 99% intervals, which exclude each other's",
        holds=all(low < p < high for p, (_, low, high) in zip(predicted, found, strict=True)) and found[1][2] < found[0][1],
    )


def _config(ds: Any, name: str) -> Any:
    return json.loads(ds.attrs["config"])[name]


def _shape(ds: Any, gd: Family, sgd: Family) -> Claim:
    n, s = _config(ds, "n"), _config(ds, "sparsity")
    start = np.log([(n + 1) / s + 1, 1 + 2 / s])
    rows = [_interval(unevenness(ds, f.below(f.gain, OCTAVE))) for f in (gd, sgd)]
    middle = start.mean()
    return judge(
        "So is the gain of whole runs: gradient descent's sits on the support of the truth, SGD's is nearly even",
        SHAPE,
        predicted=f"gain on over off the support: of the order of that at the start, {np.exp(start[0]):.2g} and {np.exp(start[1]):.2g}",
        measured=f"an octave below the edge: gradient descent {_times(rows[0])}, SGD with batch 1 {_times(rows[1])}",
        tolerance=f"99% intervals over draws on either side of the geometric mean of the two, {np.exp(middle):.2f}",
        holds=rows[0][1] > middle and rows[1][2] < middle,
    )


def _uncentred_shape(ds: Any, gd: Family, shifted: Family) -> list[Claim]:
    mean, source = _config(ds, "mean"), f"{E23}, section 4: uncentred inputs"
    uneven = unevenness(ds, shifted.below(shifted.gain, OCTAVE))
    row, centred = _interval(uneven), _interval(unevenness(ds, gd.below(gd.gain, OCTAVE)))
    # The gradient at the start is mean^2 sum beta* on every coordinate, plus beta* itself.
    share = np.abs(ds["truth"].values.sum(axis=1)) / np.linalg.norm(ds["truth"].values, axis=1)
    strong, weak = (uneven[part] for part in (share >= 1, share < 1))
    parts = "; ".join(
        f"{np.exp(np.mean(v)):.2f} on the {v.size} draws with {word}"
        for v, word in ((strong, "|sum beta*| >= |beta*|_2"), (weak, "less"))
        if v.size
    )
    middle = centred[0] / 2
    return [
        judge(
            f"On inputs of mean {mean:g} the gain of gradient descent is far more even than on centred ones",
            source,
            predicted="gain on over off the support nearer to 1 than to that on centred inputs",
            measured=f"an octave below the edge {_times(row)}, centred {_times(centred)}",
            tolerance=f"99% intervals over draws on either side of the geometric mean, {np.exp(middle):.2f}",
            holds=row[2] < middle < centred[1],
        ),
        judge(
            f"On inputs of mean {mean:g} the gain of gradient descent is even on every coordinate, to the first order in 1/mean",
            source,
            predicted="gain on over off the support 1, up to a part 1/mean",
            measured=f"{_times(row)}: {parts}",
            tolerance=f"99% interval within a factor exp(1/mean) = {np.exp(1 / mean):.2f} of 1",
            holds=-1 / mean < row[1] and row[2] < 1 / mean,
            must_hold=False,
            reason="it takes <beta*, mean> to outweigh beta*: where the entries of the truth cancel, what is left is the centred shape",
        ),
    ]


def _recovery(f: Family, *, worse: bool) -> Claim:
    row = _interval(f.error(0))
    word = "worse" if worse else "better"
    return judge(
        f"At its edge {f.word} recovers the truth {word} than gradient flow does",
        RECOVERY,
        predicted=f"error over gradient flow's {'above' if worse else 'below'} 1",
        measured=f"geometric mean {_times(row)}; {word} on {int(np.sum((f.error(0) > 0) == worse))} of {f.edge.size} draws; "
        f"programme not solved for {f.unsolved:.1%} of the runs",
        tolerance="99% interval over draws; at most 2% not solved",
        holds=(row[1] > 0 if worse else row[2] < 0) and f.unsolved <= 0.02,
    )


def _trend(f: Family, *, worse: bool) -> Claim:
    """Slope of the log error in log gamma between two octaves and half an octave below the edge."""
    steps = np.arange(WINDOW, 2 * OCTAVE + 1)
    rows = np.stack([f.error(int(k)) for k in steps], axis=1)
    slope = np.polyfit(-steps / OCTAVE, rows.T, 1)[0] if np.isfinite(rows).all() else np.full(rows.shape[0], np.nan)
    row = _interval(slope)
    return judge(
        f"Well below its edge too, {f.word} gets {'worse' if worse else 'better'} as the step size grows",
        RECOVERY,
        predicted=f"{'positive' if worse else 'negative'} slope of the log error per octave, from two octaves to half an octave below the edge",
        measured=f"{row[0]:+.3f} ({row[1]:+.3f} to {row[2]:+.3f}), of that sign on {int(np.sum((slope > 0) == worse))} of {slope.size} draws",
        tolerance="99% interval over draws",
        holds=row[1] > 0 if worse else row[2] < 0,
    )


def _window(f: Family) -> Claim:
    inside, outside = np.abs(f.error(0) - f.error(WINDOW)), np.abs(f.error(WINDOW))
    row = _interval(inside - outside)
    return judge(
        f"The effect is largest in a narrow window below the edge, {f.word}",
        f"{E23}, section 5: edge of stability",
        predicted="more happens to the log error in the last half octave than in all step sizes below it",
        measured=f"mean change {np.mean(inside):.2f} in it, {np.mean(outside):.2f} below; difference {row[0]:+.2f} ({row[1]:+.2f} to {row[2]:+.2f})",
        tolerance="99% interval of the paired difference above 0",
        holds=row[1] > 0,
    )


def _uncentred_recovery(f: Family) -> Claim:
    row = _interval(f.error(0))
    return judge(
        "Control: where its gain is even, gradient descent recovers better at its edge, not worse",
        f"{E23}, section 4: uncentred inputs",
        predicted="error over gradient flow's below 1",
        measured=f"geometric mean {_times(row)}; better on {int(np.sum(f.error(0) < 0))} of {f.edge.size} draws",
        tolerance="99% interval over draws below 1",
        holds=row[2] < 0,
        control=True,
        reason="something else than the shape of the gain decides",
    )


def _flat(ds: Any, gd: Family) -> Claim:
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = np.log(ds["flat_error"].values / ds["flow_error"].values[:, None])
    row = _interval(gd.below(flat, WINDOW))
    own = _interval(gd.error(WINDOW))
    return judge(
        "Control: with its gain spread evenly over the coordinates, and as large, gradient descent would recover better",
        f"{E23}, section 4: it is the shape of the gain",
        predicted="error over gradient flow's below 1",
        measured=f"half an octave below the edge: spread evenly {_times(row)}, as it is {_times(own)}",
        tolerance="99% intervals on either side of 1",
        holds=row[2] < 0 < own[1],
        control=True,
        reason="something else than the shape of the gain decides",
    )


def _totals(ds: Any, base: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Mean gains per draw: of SGD at batch 2^k and of gradient descent, both at 2^k times the step size of index `base`; and of SGD with batch 1 at twice that."""
    sgd, gd = ds["sgd_gain"].values.mean(axis=(-1, -2)), ds["gd_gain"].values.mean(axis=-1)
    places = [base - OCTAVE * k for k in range(len(sgd))]
    return [sgd[k][:, at] for k, at in enumerate(places)], [gd[:, at] for at in places], sgd[0][:, base - OCTAVE]


def _scaling(ds: Any, k: int) -> Claim:
    last, batch = ds.sizes["level"] - 1, int(ds["batch"][k])
    ratio, expected, off, bounds = [], [], [], []
    for base in (last, last - OCTAVE):
        sgd, gd, doubled = _totals(ds, base)
        predicted = gd[k] + sgd[0] - gd[0]  # gamma b (G + V / b) from gamma (G + V) and gamma G
        ratio.append(_interval(np.log(sgd[k] / sgd[0])))
        expected.append(float(np.exp(np.mean(np.log(predicted / sgd[0])))))
        off.append(_interval(np.log(sgd[k] / predicted)))
        bounds.append((batch - 1) * float(np.mean(np.log(doubled / (2 * sgd[0])))))
    return judge(
        f"Linear scaling rule: {batch} gamma with batch {batch} gains what gamma with batch 1 does, but for the full batch's own share",
        SCALING + "; gain = gamma (G + V / b) + O(gamma^2), G the full batch's, V of the examples' variance",
        predicted=f"at the smallest step size a ratio of {expected[0]:.3f}: 1, and the share of G that the larger step adds",
        measured=f"ratio {_times(ratio[0])}; over predicted {_times(off[0])}, at twice the step size {_times(off[1])}",
        tolerance=f"99% interval of log(over predicted) within the next order, {batch - 1} times the log of what doubling gamma gains beyond 2: {bounds[0]:.3f} and {bounds[1]:.3f}",
        holds=all(max(abs(row[1]), abs(row[2])) < bound for row, bound in zip(off, bounds, strict=True)),
        reason="the step sizes are too large for the expansion, or the seeds too few",
    )


def _scaling_control(ds: Any) -> Claim:
    sgd, _, doubled = _totals(ds, ds.sizes["level"] - 1)
    row, scaled = _interval(np.log(doubled / sgd[0])), _interval(np.log(sgd[1] / sgd[0]))
    return judge(
        "Control: twice the step size with the same batch does not gain the same",
        SCALING,
        predicted="ratio 2 to first order",
        measured=f"{_times(row)}; with the batch doubled too {_times(scaled)}",
        tolerance="99% interval above 1.5, that of the other below",
        holds=row[1] > np.log(1.5) > scaled[2],
        control=True,
    )


def plot(ds: Any) -> Any:
    """Error and gain against the step size, the shape of the gain, and the scaling rule."""
    figure, axes = new_figure(2, 2, size=(12.5, 8.6))
    sgd = [family(ds, "sgd", b) for b in range(ds.sizes["batch"])]
    colours = {"gradient descent": COLOURS["gd"], "gradient descent, uncentred": SHIFTED_COLOUR}
    colours |= {f.word: BATCH_COLOURS[k % len(BATCH_COLOURS)] for k, f in enumerate(sgd)}
    steps = np.arange(0, 3 * OCTAVE + 1)
    for f in (family(ds, "gd"), family(ds, "shifted"), *sgd):
        style = "--" if f.word.endswith("uncentred") else "-"
        rows = np.stack([f.error(int(k)) for k in steps])
        gains = np.stack([f.below(f.gain, int(k)).mean(axis=1) for k in steps])
        uneven = np.stack([unevenness(ds, f.below(f.gain, int(k))) for k in steps])
        for panel, values in ((axes[0, 0], rows), (axes[0, 1], gains), (axes[1, 0], uneven)):
            whole = np.isfinite(values).all(axis=1)
            values, x = values[whole], 2.0 ** (-steps[whole] / OCTAVE)
            values = np.log(values) if panel is axes[0, 1] else values
            low, middle, high = np.exp(np.quantile(values, [0.1, 0.5, 0.9], axis=1)) if x.size else np.empty((3, 0))
            panel.fill_between(x, low, high, color=colours[f.word], alpha=0.12, linewidth=0)
            panel.plot(x, middle, "o" + style, color=colours[f.word], label=f.word, linewidth=1.6, markersize=3.5)
    axes[0, 0].axhline(1, color="black", linewidth=0.8)
    axes[1, 0].axhline(1, color="black", linewidth=0.8)
    edge = "step size over the largest that converges"
    tidy(axes[0, 0], title="Error over gradient flow's", x=edge, y="ratio of |beta - beta*|^2")
    axes[0, 0].set_ylim(1e-5, 1e4)
    tidy(axes[0, 1], title="Mean gain", x=edge, y="2 log(alpha / alpha_inf)")
    tidy(axes[1, 0], title="Shape of the gain", x=edge, y="on the support / off it")
    for panel in (axes[0, 0], axes[0, 1], axes[1, 0]):
        ticks = 2.0 ** np.arange(-3, 1)
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.legend(frameon=False, fontsize=8)
    gamma = np.exp(np.mean(np.log(ds["gamma"].values), axis=0))
    for k, batch in enumerate(ds["batch"].values):
        total = ds["sgd_gain"].values[k].mean(axis=(-1, -2))
        keep = np.isfinite(total).all(axis=0) & (np.arange(gamma.size) >= sgd[k].edge.max())
        axes[1, 1].plot(
            gamma[keep] / batch,
            np.median(total[:, keep], axis=0),
            "o-",
            color=BATCH_COLOURS[k % len(BATCH_COLOURS)],
            label=f"batch {batch}",
            markersize=3.5,
        )
    tidy(axes[1, 1], title="Linear scaling rule", x="gamma / b (geometric mean over draws)", y="mean gain")
    axes[1, 1].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"Towards the edge of stability: {ds.sizes['draw']} sparse problems, lines are medians over them, bands 10% to 90%", fontsize=11
    )
    return figure
