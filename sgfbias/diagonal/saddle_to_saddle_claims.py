"""Claims and picture of the study `saddle-to-saddle`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.core.claim import Claim, judge, median_interval, not_applicable
from sgfbias.plotting import COLOURS, new_figure, tidy

PF23 = "Pesme, Flammarion 2023, theorem 2 and algorithm 1"
ORDER = "derived: t_k = Lambda tau_k + c_k + exponentially small, Lambda = log(1/alpha)"
LASTING = 20.0  # relaxation times; half way through such a rest what is left is about e^-10
NEAR = 10 * np.exp(-LASTING / 2)  # the constant in front is not known


def scales(ds: Any) -> np.ndarray:
    """`Lambda = log(1/alpha)` of every alpha, the coarse one first."""
    return ds["decades"].values * np.log(10)


def relative_errors(ds: Any) -> np.ndarray:
    """Of the jump times, (problem, decades, jump); NaN where a problem has no such jump."""
    return np.abs(ds["time"].values / scales(ds)[:, None] / ds["predicted_time"].values[:, None] - 1)


def lasting(ds: Any, level: int) -> np.ndarray:
    """Saddles, (problem, saddle), whose rest at this alpha is long in its own relaxation times: by the theory alone."""
    return np.nan_to_num(ds["relaxations"].values[:, level], nan=0.0) >= LASTING


def separate(ds: Any, level: int) -> np.ndarray:
    """Jumps, (problem, jump), with only lasting rests up to and after them: what is left of the earlier ones is exponentially small."""
    return np.cumprod(lasting(ds, level), axis=1)[:, 1:].astype(bool)


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    return [
        _runs(ds),
        _saddles(ds),
        _order(ds),
        _slope(ds),
        _constant(ds),
        _dual(ds),
        _limit(ds),
        _coarse(ds),
        _greedy(ds),
        _memoryless(ds),
    ]


def _runs(ds: Any) -> Claim:
    lost = int(ds["lost"].values.sum())
    never = int(np.isinf(ds["time"].values[:, 1:]).sum())
    return judge(
        "Every run ends, and its loss falls below every saddle's but the last",
        PF23,
        predicted="none lost, no jump missing",
        measured=f"{lost} of {ds['lost'].size} runs lost, {never} of {int(np.isfinite(ds['predicted_time'].values).sum()) * (ds.sizes['decades'] - 1)} jumps missing",
        tolerance="none",
        holds=lost == 0 and never == 0,
        reason="the solver gave up, or a jump was predicted that does not come",
    )


def _saddles(ds: Any) -> Claim:
    chosen = lasting(ds, -1)
    gap = ds["saddle_gap"].values[:, -1][chosen]
    statement = f"At alpha = 1e-{float(ds['decades'][-1]):g} the flow rests at the predicted saddles"
    if gap.size == 0:
        return not_applicable(statement, PF23, f"no rest lasts {LASTING:g} relaxation times")
    size = ds["predicted_size"].values
    fewer = int(np.sum(np.nanmin(np.diff(size, axis=1), axis=1) <= 0))
    return judge(
        statement,
        PF23,
        predicted="distance exponentially small half way through a rest; coordinates are also switched off",
        measured=f"{gap.size} of {int(np.isfinite(size).sum())} rests last {LASTING:g} relaxation times: median distance {np.median(gap):.1e}, worst {gap.max():.1e}; "
        f"a coordinate is switched off in {fewer} of {ds.sizes['problem']} problems",
        tolerance=f"10 e^-{LASTING / 2:g} = {NEAR:.1e} of the last saddle's norm, every such rest",
        holds=np.all(gap < NEAR),
    )


def _order(ds: Any) -> Claim:
    x, errors = np.log(scales(ds)[1:]), relative_errors(ds)[:, 1:]
    known = np.isfinite(ds["predicted_time"].values)
    logs = np.log(np.where(np.isfinite(errors), errors, 1.0)).transpose(0, 2, 1)[known]
    slopes = (logs - logs.mean(axis=1, keepdims=True)) @ (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    low, high = median_interval(slopes)
    other = np.polyfit(x, np.log(x) - x, 1)[0]
    middle = [float(np.median(errors[:, k][known])) for k in range(errors.shape[1])]
    return judge(
        "The relative error of the jump times falls as 1 / Lambda",
        ORDER,
        predicted=f"slope -1 in Lambda (log Lambda / Lambda: {other:.2f} over these alphas)",
        measured=f"slope of {len(slopes)} jumps: median {np.median(slopes):.3f} (99% interval {low:.3f} to {high:.3f}); median error "
        + " -> ".join(f"{v:.2%}" for v in middle),
        tolerance="interval within -1 +- .1",
        holds=low > -1.1 and high < -0.9,
    )


def slope_errors(ds: Any) -> np.ndarray:
    """Relative errors of `(t_k(alpha_2) - t_k(alpha_1)) / (Lambda_2 - Lambda_1)` as tau_k, the two smallest alphas: (problem, jump)."""
    scale, time = scales(ds), ds["time"].values
    with np.errstate(invalid="ignore"):
        return np.abs((time[:, -1] - time[:, -2]) / (scale[-1] - scale[-2]) / ds["predicted_time"].values - 1)


def _slope(ds: Any) -> Claim:
    errors, scale = slope_errors(ds), scales(ds)
    chosen, known = separate(ds, -2), np.isfinite(ds["predicted_time"].values)
    statement = "From one alpha to the next the jump times grow by tau_k Lambda and nothing else"
    if not chosen.any():
        return not_applicable(statement, ORDER, f"no jump has only rests of {LASTING:g} relaxation times before and after")
    limit = scale[-1] ** -2
    logarithm = np.log(scale[-1] / scale[-2]) / (scale[-1] - scale[-2])
    return judge(
        statement,
        ORDER,
        predicted=f"slope tau_k, no term in 1 / Lambda (~{limit:.0e}) and none in log Lambda ({logarithm:.0e} / tau_k)",
        measured=f"{int(chosen.sum())} jumps between lasting rests: median relative error {np.median(errors[chosen]):.0e}, worst {errors[chosen].max():.0e}; "
        f"all {int(known.sum())} jumps: median {np.median(errors[known]):.0e}, worst {errors[known].max():.0e}",
        tolerance=f"Lambda^-2 = {limit:.1e}, every jump between lasting rests",
        holds=np.all(errors[chosen] < limit),
    )


def _constant(ds: Any) -> Claim:
    scale = scales(ds)[-1]
    measured = ds["time"].values[:, -1, 0] - scale * ds["predicted_time"].values[:, 0]
    predicted = ds["first_constant"].values
    room = 1e-4 + 10 * np.exp(-2 * scale * (1 - ds["rival"].values))
    gap = np.abs(measured - predicted)
    return judge(
        "The first jump's own constant, c_1 = log((sqrt 2 - 1) c / h) / (2 c), c = max |X^T y / n|",
        "derived: one coordinate is logistic",
        predicted=f"{predicted.min():.3f} to {predicted.max():.3f} of flow time, of {scale * np.min(ds['predicted_time'].values[:, 0]):.0f} and more",
        measured=f"difference median {np.median(gap):.0e}, worst {gap.max():.0e}",
        tolerance="1e-4 of flow time, the solver's and the interpolation's, + 10 alpha^(2 (1 - q)), q of the second coordinate; every problem",
        holds=np.all(gap < room),
    )


def _dual(ds: Any) -> Claim:
    gap, scale = ds["dual_gap"].values[:, 1:], scales(ds)[1:]
    slopes = np.polyfit(np.log(scale), np.log(gap).T, 1)[0]
    return judge(
        "The dual variable follows the broken line, uniformly in time, jumps included",
        PF23,
        predicted="largest distance to 0 (bound of the variable: .5)",
        measured=f"median {np.median(gap[:, 0]):.2g} -> {np.median(gap[:, -1]):.2g}, worst {gap[:, 0].max():.2g} -> {gap[:, -1].max():.2g}; slopes in Lambda {slopes.min():.2f} to {slopes.max():.2f}",
        tolerance="falls from every alpha to the next in every problem",
        holds=np.all(np.diff(gap, axis=1) < 0),
    )


def _limit(ds: Any) -> Claim:
    gap = ds["l1_gap"].values
    return judge(
        "The last saddle is the interpolator of least l1 norm",
        f"{PF23}; a linear programme as the judge",
        predicted="the same",
        measured=f"relative distance at most {gap.max():.0e}, {len(gap)} problems",
        tolerance="1e-8",
        holds=np.all(gap < 1e-8),
    )


def _coarse(ds: Any) -> Claim:
    rests = np.isfinite(ds["predicted_size"].values)
    rests[:, 0] = False
    gap = ds["saddle_gap"].values[:, 0][rests]
    errors = relative_errors(ds)[:, 0][np.isfinite(ds["predicted_time"].values)]
    return judge(
        f"Control: at alpha = 1e-{float(ds['decades'][0]):g} there are no rests at the saddles, and the times are off",
        PF23,
        predicted="the limit says nothing",
        measured=f"{int(np.sum(gap < NEAR))} of {gap.size} within {NEAR:.1e} of their saddle, median distance {np.median(gap):.2f}; median error of the times {np.median(errors):.0%}",
        tolerance="under 5% within, and an error above 10%",
        holds=np.mean(gap < NEAR) < 0.05 and np.median(errors) > 0.1,
        control=True,
    )


def _greedy(ds: Any) -> Claim:
    chosen = lasting(ds, -1)
    wrong = np.any(chosen & (ds["greedy_gap"].values[:, -1] > 100 * NEAR), axis=1)
    return judge(
        "Control: orthogonal matching pursuit, which takes the coordinate of largest gradient and keeps it, mispredicts the saddles",
        PF23,
        predicted="it has no memory of past gradients and switches nothing off",
        measured=f"a lasting rest further than {100 * NEAR:.2g} from its solution in {int(wrong.sum())} of {len(wrong)} problems, from the algorithm's in "
        f"{int(np.sum(np.any(chosen & (ds['saddle_gap'].values[:, -1] > 100 * NEAR), axis=1)))}",
        tolerance="at least half of the problems",
        holds=np.mean(wrong) >= 0.5,
        control=True,
        reason="on problems this easy both agree",
    )


def _memoryless(ds: Any) -> Claim:
    time, scale, chosen = ds["time"].values, scales(ds), separate(ds, -2)[:, 1:]
    if not chosen.any():
        return not_applicable(
            "Control: a dual variable that starts afresh at each saddle", PF23, "no separate jump but the first", control=True
        )
    slope = ((time[:, -1] - time[:, -2]) / (scale[-1] - scale[-2]))[:, 1:]
    errors = np.abs(ds["memoryless_time"].values[:, 1:] / slope - 1)[chosen]
    return judge(
        "Control: a dual variable that starts afresh from 0 at each saddle mispredicts every jump after the first",
        PF23,
        predicted="other times",
        measured=f"relative error {errors.min():.0%} to {errors.max():.0%}, the algorithm's at most {slope_errors(ds)[:, 1:][chosen].max():.0e}, {errors.size} jumps",
        tolerance="above 1%, every jump",
        holds=np.all(errors > 0.01),
        control=True,
    )


def plot(ds: Any) -> Any:
    """Loss and coefficients of one problem in rescaled time, and the error of every jump time."""
    figure, axes = new_figure(1, 3, size=(15.0, 4.4))
    left, middle, right = axes[0]
    tau, scale, decades = ds["tau"].values, scales(ds), ds["decades"].values
    shades = [COLOURS["control"], *(str(v) for v in np.linspace(0.75, 0.35, len(decades) - 2)), COLOURS["sgf"]]
    for k, shade in enumerate(shades):
        style = ":" if k == 0 else "-"
        left.plot(
            tau, ds["loss"].values[k] / ds["loss"].values[0, 0], color=shade, label=f"α = 1e-{decades[k]:g}", linewidth=1.3, linestyle=style
        )
    left.plot(tau, ds["path_loss"].values / ds["loss"].values[0, 0], color=COLOURS["sgd"], linestyle="--", label="algorithm", linewidth=1.3)
    path, beta = ds["path_beta"].values, ds["beta"].values[-1]
    active = np.flatnonzero(np.any(path != 0, axis=0))
    for position, i in enumerate(active):
        middle.plot(tau, beta[:, i], color=f"C{position}", linewidth=1.5)
        middle.plot(tau, path[:, i], color="black", linestyle="--", linewidth=0.9)
    middle.plot([], [], color="black", linestyle="--", linewidth=0.9, label="algorithm")
    errors = relative_errors(ds)
    for row in errors.transpose(0, 2, 1).reshape(-1, len(scale)):
        right.plot(scale, row, color=COLOURS["gd"], alpha=0.25, linewidth=0.8)
    known = np.isfinite(ds["predicted_time"].values)
    centre = [float(np.median(errors[:, k][known])) for k in range(len(scale))]
    right.plot(scale, centre, "o-", color=COLOURS["sgf"], linewidth=1.8, markersize=4, label="median of all jumps")
    right.plot(scale, centre[-1] * scale[-1] / scale, "--", color=COLOURS["sgd"], linewidth=1.2, label="slope -1")
    tidy(left, title="Loss of one problem", x="τ = t / log(1/α)", y="loss / loss at 0", x_scale="linear")
    left.set_ylim(max(np.min(ds["path_loss"].values[ds["path_loss"].values > 1e-12]) / ds["loss"].values[0, 0] / 30, 1e-8), 2)
    tidy(middle, title=f"Its coefficients, α = 1e-{decades[-1]:g}", x="τ = t / log(1/α)", y="β", x_scale="linear", y_scale="linear")
    tidy(right, title=f"Jump times, {ds.sizes['problem']} problems", x="Λ = log(1/α)", y="relative error of t / Λ")
    for panel in (left, middle, right):
        panel.legend(frameon=False, fontsize=8)
    return figure
