"""Claims and picture of the study `kernel-to-rich`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge
from sgfbias.diagonal.kernel_to_rich_theory import worst_excess, worst_excess_next
from sgfbias.plotting import new_figure, tidy

W20 = "Woodworth et al. 2020"
DEPTHS = f"{W20}, theorem 3 and figure 3: exponentially small at depth 2, polynomially above; constants derived from h"
HERE = "derived from h; see kernel_to_rich_theory"
FLOOR = 1e-18
FEW = 0.95  # of the draws that must have the truth as their only minimum l1 solution
SHADES = ("#1b70b7", "#d95f02", "#4d4d4d", "#c23b8f", "#1b9e77")


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    depths = [int(p) for p in ds["depth"].values]
    return [
        *(_worst(ds, p) for p in depths),
        *(_crossed(ds, p) for p in depths),
        *(_fixed(ds, p) for p in depths),
        *(_kernel(ds, p) for p in depths),
        *(_sufficient(ds, end) for end in ("rich", "kernel")),
        _monotone(ds),
        _risk(ds),
        *(_flow(ds, p) for p in depths),
        _other_depth(ds),
        _potential(ds),
        _clock(ds),
    ]


def _at(ds: Any, name: str, depth: int) -> np.ndarray:
    return ds[name].sel(depth=depth).values


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0]) if np.all(np.isfinite(y)) and np.all(y != 0) else float("nan")


def _range(v: Any, form: str = ".2e") -> str:
    low, high = float(np.min(v)), float(np.max(v))
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def _worst(ds: Any, depth: int) -> Claim:
    """The leading order with its constant, and what is left against the next order."""
    order, excess = ds["order"].values, _at(ds, "worst_excess", depth)
    constant, _ = worst_excess(depth)
    ratio = excess / (constant * order)
    left = ratio - 1
    if depth == 2:  # the next term is known too
        left = left - worst_excess_next() / constant * order
    expected, power = (2, "1/(2 ln(1/alpha))") if depth == 2 else (1, f"alpha^{depth - 2}")
    slope = _slope(order[-2:], left[-2:])
    second = f"; with the next term {worst_excess_next():.3f} power^2, what is left is of third order" if depth == 2 else ""
    return judge(
        f"Depth {depth}: over all problems the excess l1 norm is of order {power}, {'exponentially' if depth == 2 else 'only polynomially'} small alpha is needed",
        DEPTHS,
        predicted=f"the worst problem of two features has {constant:.4f} {power}{second}",
        measured=f"over theory {ratio[0]:.4f} to {ratio[-1]:.5f} as {power} falls from {order[0]:.0e} to {order[-1]:.0e}; what is left falls with slope {slope:.3f} between the last two",
        tolerance=f"slope {expected} within .05, and the last ratio within 2 {power} of 1",
        holds=abs(slope - expected) < 0.05 and abs(ratio[-1] - 1) < 2 * order[-1],
    )


def _laws(ds: Any, depth: int) -> dict[int, np.ndarray]:
    """Order of the worst excess at the alphas of this depth under the law of every depth."""
    order = ds["order"].values
    log_alpha = -1 / (2 * order) if depth == 2 else np.log(order) / (depth - 2)
    return {int(p): -1 / (2 * log_alpha) if p == 2 else np.exp((p - 2) * log_alpha) for p in ds["depth"].values}


def _crossed(ds: Any, depth: int) -> Claim:
    excess = _at(ds, "worst_excess", depth)
    half = excess.size // 2
    off = {}
    for p, law in _laws(ds, depth).items():
        scale = np.mean(np.log(excess[:half] / law[:half]))
        off[p] = float(np.max(np.abs(np.log(excess[half:]) - scale - np.log(np.maximum(law[half:], 1e-300)))))
    wrong = min(value for p, value in off.items() if p != depth)
    return judge(
        f"Control: at depth {depth} the laws of the other depths, scaled to fit the larger alphas, miss at the smaller ones",
        DEPTHS,
        predicted="its own law fits both halves",
        measured="largest |log ratio| on the half not fitted: " + ", ".join(f"law of depth {p} {value:.3g}" for p, value in off.items()),
        tolerance="its own below .2 (twice the largest order fitted), all others above ln 3",
        holds=off[depth] < 2 * float(ds["order"].values[0]) and wrong > np.log(3),
        control=True,
        reason="the alphas do not tell the laws apart",
    )


def _fixed(ds: Any, depth: int) -> Claim:
    unique = ds["certificate"].values < 1 - 1e-6
    target = np.log(ds["target"].values)
    with np.errstate(invalid="ignore", divide="ignore"):
        local = np.diff(np.log(_at(ds, "rich_excess", depth)[unique]), axis=1) / np.diff(target)
    first, last = np.abs(local[:, 0] - 1), np.abs(local[:, -1] - 1)
    margin = 2 * (1 - ds["certificate"].values[unique])
    exponent = f"2 (1 - max |c|), {_range(margin, '.2f')} here" if depth == 2 else f"{depth}, whatever the problem"
    # the first order left out, alpha^{p-2}, between the first and the last pair
    shrink = 1 / 3 if depth == 2 else 2 * (np.exp(target[-1] - target[0]) * np.exp(target[0] - target[1])) ** ((depth - 2) / depth)
    bound = np.maximum(shrink * first, 1e-3)
    return judge(
        f"Depth {depth}: on any one problem the excess l1 norm falls faster, as a power of alpha set by the least dual certificate"
        if depth == 2
        else f"Depth {depth}: on any one problem the excess l1 norm falls as alpha^{depth}",
        HERE,
        predicted=f"exponent {exponent}",
        measured=f"measured over predicted exponent {_range(local[:, -1], '.4f')} at the smallest alphas, {_range(local[:, 0], '.3f')} at the largest; {int(unique.sum())} of {unique.size} draws",
        tolerance="from 1 by at most "
        + (
            "a third of what it is off at the largest alphas, or .02"
            if depth == 2
            else "twice what the next order, alpha^(p-2), leaves of that, or .001"
        ),
        holds=unique.mean() >= FEW and np.all(last < (np.maximum(bound, 0.02) if depth == 2 else bound)),
    )


def _kernel(ds: Any, depth: int) -> Claim:
    scale, gap, size = ds["scale"].values, _at(ds, "kernel_gap", depth), _at(ds, "kernel_distance", depth)
    slopes = np.array([_slope(scale, row) for row in gap])
    return judge(
        f"Depth {depth}: at large alpha the solution is minimum l2, and its first correction is theory's vector",
        f"{W20}, theorem 1 and 3 for the limit; {HERE} for the rate",
        predicted=f"distance alpha^-{2 * depth} |v|; what is left is smaller by alpha^-{2 * depth} again, slope -2 in alpha^{depth}",
        measured=f"relative distance {_range(size[:, -1])} at the largest alpha; what theory leaves of it {_range(gap[:, -1])}, slope {_range(slopes, '.3f')}",
        tolerance="slope -2 within .05 on every draw, and less than 1/scale^2 left at the largest",
        holds=np.all(np.abs(slopes + 2) < 0.05) and np.all(gap[:, -1] < 1 / scale[-1] ** 2),
    )


def _sufficient(ds: Any, end: str) -> Claim:
    eps, excess, bound = ds["eps"].values, ds[f"bound_{end}_excess"].values, ds[f"bound_{end}_log_alpha"].values
    norm, side = ("l1 norm", "at most") if end == "rich" else ("squared l2 norm", "at least")
    return judge(
        f"The paper's sufficient alpha suffices: the {norm} is within 1 + eps of the least",
        f"{W20}, theorem 2",
        predicted=f"excess at most eps = {', '.join(f'{e:g}' for e in eps)} where alpha is {side} its bound",
        measured=f"log alpha {_range(bound, '.1f')}; largest excess {', '.join(f'{v:.1e}' for v in excess.max(axis=0))}",
        tolerance="eps, every draw",
        holds=np.all(excess <= eps) and np.all(excess >= -1e-9),
    )


def _monotone(ds: Any) -> Claim:
    l1, l2, slope = ds["l1"].values, ds["l2"].values, ds["l1_slope"].values
    wrong1 = int(np.sum(np.diff(l1, axis=-1) < -1e-9 * l1[..., 1:]))
    wrong2 = int(np.sum(np.diff(l2, axis=-1) > 1e-9 * l2[..., 1:]))
    steps = np.diff(l1, axis=-1).size
    return judge(
        "The transition is monotone: from large to small alpha the l1 norm falls and the l2 norm rises, at every depth and draw",
        f"{W20}, figure 1",
        predicted="no step the other way",
        measured=f"l1: {wrong1} of {steps} steps the other way, l2: {wrong2}; depth 2, along the curve: d |beta|_1 / d log alpha from {slope.min():.1e}",
        tolerance="1e-9 relative, the solver's",
        holds=wrong1 == 0 and wrong2 == 0 and slope.min() > -1e-9,
        reason="theory asks it of sum sqrt(beta^2 + 4 alpha^4) only, not of the norms themselves",
    )


def _risk(ds: Any) -> Claim:
    error, alpha = ds["error"].values, ds["alpha"].values
    clear = ds["recovered"].values
    # Errors are squares: the solver's 1e-11 shows below 1e-18.
    seen = error[:, clear][..., :-1] > FLOOR
    steps = np.diff(np.log(np.maximum(error[:, clear], FLOOR)), axis=-1)[seen]
    ends = [f"{np.median(error[0][clear, k]):.1e} at alpha {alpha[k]:.0e}" for k in (0, -1)]
    return judge(
        "The larger alpha, the larger the error on the sparse truth, at every depth and draw",
        f"{W20}, figure 1, sparse regression",
        predicted="every step up, where minimum l1 recovers the truth",
        measured=f"{int(np.sum(steps > 0))} of {steps.size} steps up; depth 2, median {' and '.join(ends)}; recovered on {int(clear.sum())} of {clear.size} draws",
        tolerance=f"no step down where the error is above {FLOOR:g}",
        holds=clear.mean() >= 0.5 and steps.size > 0 and np.all(steps > 0),
        reason="an observation, not a theorem: some problem is an exception",
    )


def _flow(ds: Any, depth: int) -> Claim:
    simulated, predicted = _at(ds, "flow_beta", depth), _at(ds, "flow_predicted", depth)
    gap = np.abs(simulated - predicted[:, None]).max(axis=-1) / np.abs(predicted).max(axis=-1)[:, None]
    tolerance = ds["tolerance"].values
    return judge(
        f"Depth {depth}: gradient flow simulated in the weights ends on the programme's solution, coordinate by coordinate",
        f"{W20}, theorem 1 and 3",
        predicted="no difference but the solver's",
        measured="; ".join(f"largest {gap[:, k].max():.1e} at rtol {t:.0e}" for k, t in enumerate(tolerance))
        + f" (alpha {', '.join(f'{a:g}' for a in ds['flow_alpha'].values)})",
        tolerance="of the largest coordinate at most 10 times rtol",
        holds=np.all(gap < 10 * tolerance),
    )


def _other_depth(ds: Any) -> Claim:
    """A flow of depth p from the same scale of beta as one of depth 2, against the programme of depth 2."""
    deep = [int(p) for p in ds["depth"].values if p > 2]
    own, other = [], []
    for p in deep:
        simulated, size = _at(ds, "flow_beta", p)[:, -1], np.abs(_at(ds, "flow_predicted", p)).max(axis=-1)
        own.append(np.max(np.abs(simulated - _at(ds, "flow_predicted", p)).max(axis=-1) / size))
        other.append(np.max(np.abs(simulated - _at(ds, "flow_as_two", p)).max(axis=-1) / size))
    return judge(
        "Control: the deeper flows do not end on the solution of depth 2, even from the same alpha^p",
        f"{W20}, section 4",
        predicted="another potential, another solution",
        measured="; ".join(f"depth {p}: {b:.1e} from depth 2's, {a:.1e} from its own" for p, a, b in zip(deep, own, other, strict=True)),
        tolerance="at some alpha more than .01 of the largest coordinate, and 1,000 times its own",
        holds=all(b > max(0.01, 1e3 * a) for a, b in zip(own, other, strict=True)),
        control=True,
    )


def _potential(ds: Any) -> Claim:
    theirs, ours = (float(v) for v in ds["convention_potential"].values)
    return judge(
        "Their Q_alpha is 4 phi_alpha + 2 sum alpha^2, at the same alpha",
        f"{W20}, equation of theorem 1, by quadrature",
        predicted=f"{theirs:.10f}",
        measured=f"{ours:.10f}",
        tolerance="1e-9 relative",
        holds=abs(ours / theirs - 1) < 1e-9,
    )


def _clock(ds: Any) -> Claim:
    ours, theirs, slow = ds["convention_beta"].values
    size = np.abs(ours).max()
    same, control = np.abs(theirs - ours).max() / size, np.abs(slow - ours).max() / size
    return judge(
        "Their loss is the sum of squares: the same path, 4 n times faster; control: not at the same time",
        f"{W20}, section 2",
        predicted="the same beta at t / (4 n), before convergence",
        measured=f"largest difference {same:.1e} at t / (4 n), {control:.1e} at t",
        tolerance="1e-8; the control above .1",
        holds=same < 1e-8 and control > 0.1,
    )


def plot(ds: Any) -> Any:
    """The transition of norms and error, and the rates of both limits."""
    figure, axes = new_figure(2, 3, size=(14, 8))
    alpha, order = ds["alpha"].values, ds["order"].values
    panels = (
        (axes[0, 0], "l1", "l1_least", "l1 norm over the least"),
        (axes[0, 1], "l2", "l2_least", "l2 norm over the least"),
        (axes[0, 2], "error", None, "error on the sparse truth"),
    )
    for k, depth in enumerate(int(p) for p in ds["depth"].values):
        colour = SHADES[k % len(SHADES)]
        for panel, name, least, _ in panels:
            values = _at(ds, name, depth) / (1 if least is None else ds[least].values[:, None])
            panel.plot(alpha, np.median(values, axis=0), color=colour, linewidth=2, label=f"depth {depth}")
            panel.plot(alpha, values.T, color=colour, linewidth=0.5, alpha=0.35)
        _rates(axes[1], ds, k, depth, order)
    for panel, name, least, title in panels:
        tidy(
            panel,
            title=title,
            x="alpha",
            y=f"{name} / least" if least else "|beta - beta*|^2",
            y_scale="log" if least is None else "linear",
        )
        panel.legend(frameon=False, fontsize=8)
    tidy(axes[1, 0], title="Worst excess l1 norm; lines: theory's leading order", x="alpha", y="excess over the least")
    axes[1, 0].set_xlim(1e-14, 1)
    axes[1, 0].set_ylim(bottom=1e-4)
    tidy(axes[1, 1], title="Excess l1 norm on each problem", x="alpha", y="excess over the least")
    tidy(axes[1, 2], title="Kernel limit; dotted: what theory leaves", x="alpha^p / max |beta_l2|", y="relative distance to minimum l2")
    axes[1, 2].set_xticks(ds["scale"].values, [f"{v:g}" for v in ds["scale"].values])
    axes[1, 2].minorticks_off()
    for panel in axes[1]:
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"From the kernel to the rich regime: {ds.sizes['draw']} problems, thick lines are medians over them; "
        "depth 2 needs exponentially small alpha in the worst case",
        fontsize=11,
    )
    return figure


def _rates(row: Any, ds: Any, k: int, depth: int, order: np.ndarray) -> None:
    colour = SHADES[k % len(SHADES)]
    log_alpha = -1 / (2 * order) if depth == 2 else np.log(order) / (depth - 2)
    row[0].plot(np.exp(log_alpha), _at(ds, "worst_excess", depth), "o", color=colour, label=f"depth {depth}", markersize=5)
    line = np.linspace(-32 if depth == 2 else log_alpha[-1], log_alpha[0], 100)
    theory = worst_excess(depth)[0] * (-1 / (2 * line) if depth == 2 else np.exp((depth - 2) * line))
    row[0].plot(np.exp(line), theory, color=colour, linewidth=1)
    certificate, target = ds["certificate"].values, ds["target"].values
    for j, c in enumerate(certificate):
        exponent = 2 * (1 - c) if depth == 2 else depth
        label = f"depth {depth}: " + (f"exponents {_range(2 * (1 - certificate), '.2f')}" if depth == 2 else f"exponent {depth}")
        row[1].plot(
            target ** (1 / exponent), _at(ds, "rich_excess", depth)[j], ".-", color=colour, linewidth=0.8, label=label if j == 0 else None
        )
    scale = ds["scale"].values
    row[2].plot(scale, np.median(_at(ds, "kernel_distance", depth), axis=0), "o-", color=colour, label=f"depth {depth}", markersize=4)
    left = _at(ds, "kernel_distance", depth) * _at(ds, "kernel_gap", depth)
    row[2].plot(scale, np.median(left, axis=0), "o:", color=colour, markersize=3)
