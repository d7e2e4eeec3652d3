"""Claims and picture of the study `label-noise-lasso`, from its dataset alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t as student

from sgfbias.core.claim import Claim, judge
from sgfbias.plotting import COLOURS, new_figure, tidy

LAW = "derived: u / T -> 4 gamma h (delta^2 + mean L) sign(beta), u = -4 int grad L + martingale"
STATED = "min |Xb (b - b*)|^2 / 4 + gamma (delta^2 + mean L) <h, |b|>"
PER_SAMPLE = "derived: mean log(1 - gamma g) = 0 for SGD's own factors"
LEVEL = 0.99


def flows(ds: Any) -> np.ndarray:
    """Numbers of the runs that are flows."""
    return np.flatnonzero(~ds["discrete"].values)


def descents(ds: Any) -> np.ndarray:
    """Numbers of the runs of SGD, gamma falling."""
    return np.flatnonzero(ds["discrete"].values)


def last(ds: Any, run: int) -> np.ndarray:
    """Time averages over the longest window, (seed, feature)."""
    return ds["beta"].values[run, -1]


def constants(ds: Any, run: int, weights: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Per seed, `-<b, mean X^T r / n> / <weights, |b|>`: 2 by the law if weights are the penalties; b selects and weighs the support."""
    slopes = last(ds, run) @ ds["gram"].values - ds["pull"].values
    return -(slopes @ beta) / np.sum(weights * np.abs(beta), axis=-1)


def law_constants(ds: Any, run: int, *, loss: bool = True) -> np.ndarray:
    """`constants` for the penalties `gamma h (delta^2 + mean L)` of each seed's own mean loss, or without it."""
    level = ds["delta"].values[run] ** 2 + (ds["loss"].values[run, -1] if loss else np.zeros(ds.sizes["seed"]))
    return constants(ds, run, ds["gamma"].values[run] * level[:, None] * ds["h"].values, ds["lasso"].values[run, 1])


def interval(values: np.ndarray, tests: int = 1) -> tuple[float, float]:
    """Mean and half width of its 99% interval by Student's t over seeds, for that many tests at once."""
    half = student.ppf(1 - (1 - LEVEL) / 2 / tests, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def distance(ds: Any, run: int, solution: np.ndarray) -> tuple[float, float]:
    """Of the seeds' mean time average to a solution, and what the seeds' own scatter explains: three of its standard errors."""
    beta = last(ds, run)
    return float(np.linalg.norm(beta.mean(axis=0) - solution)), 3 * float(np.sqrt(np.sum(beta.var(axis=0, ddof=1)) / len(beta)))


def _written(pairs: list[tuple[float, float]]) -> str:
    return ", ".join(f"{a:.3f} +- {b:.3f}" for a, b in pairs)


def claims(ds: Any) -> list[Claim]:
    """The study's claims."""
    return [
        _runs(ds),
        _constant(ds),
        _inside(ds),
        _near(ds),
        _falls(ds),
        _predicted(ds),
        _penalty(ds),
        _without_loss(ds),
        _quiet(ds),
        _descent(ds),
        _descent_falls(ds),
        _descent_weights(ds),
    ]


def _runs(ds: Any) -> Claim:
    lost, gap = int(ds["lost"].values.sum()), float(ds["gap"].values.max())
    return judge(
        "No run is lost, and the Lasso solutions are certified",
        "duality gap",
        predicted="0 and 0",
        measured=f"{lost} of {ds['lost'].size} runs non-finite; largest gap {gap:.0e} of the loss at 0",
        tolerance="0 and 1e-10",
        holds=lost == 0 and gap < 1e-10,
    )


def _constant(ds: Any) -> Claim:
    runs = flows(ds)
    pairs = [interval(law_constants(ds, k), len(runs)) for k in runs]
    return judge(
        "Flow: on the support the mean of |X^T r / n|_i is 2 gamma h_i (delta^2 + mean L)",
        LAW,
        predicted="constant 2, whatever gamma and delta",
        measured=_written(pairs) + " at gamma, delta = " + "; ".join(f"{ds['gamma'].values[k]:g}, {ds['delta'].values[k]:g}" for k in runs),
        tolerance=f"99% intervals over seeds, {len(runs)} tests",
        holds=all(abs(mean - 2) < half for mean, half in pairs),
    )


def _inside(ds: Any) -> Claim:
    most, excess = 0.0, -np.inf
    for k in flows(ds):
        bound = 2 * ds["gamma"].values[k] * ds["h"].values * (ds["delta"].values[k] ** 2 + ds["loss"].values[k, -1].mean())
        off = ds["lasso"].values[k, 1] == 0
        ratio = (np.abs(last(ds, k) @ ds["gram"].values - ds["pull"].values) / bound)[:, off]
        half = student.ppf(1 - (1 - LEVEL) / ratio.shape[1], len(ratio) - 1) * ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
        most, excess = max(most, ratio.mean(axis=0).max()), max(excess, float(np.max(ratio.mean(axis=0) - half - 1)))
    return judge(
        "Flow: off the support it stays below",
        LAW,
        predicted="ratio at most 1",
        measured=f"largest mean ratio {most:.3f}",
        tolerance="1, 99% intervals over seeds and coordinates",
        holds=excess <= 0,
    )


def _near(ds: Any) -> Claim:
    rows = [
        (*distance(ds, k, ds["lasso"].values[k, 1]), float(np.linalg.norm(ds["lasso"].values[k, 1] - ds["truth"].values)))
        for k in flows(ds)
    ]
    return judge(
        "Flow: the time average is the Lasso solution",
        STATED,
        predicted="distance 0 up to the seeds' scatter",
        measured="; ".join(f"{d:.4f} ({d / shrink:.1%} of the Lasso's own distance to the truth)" for d, _, shrink in rows),
        tolerance="three standard errors of the mean over seeds: " + ", ".join(f"{e:.4f}" for _, e, _ in rows),
        holds=all(d < e for d, e, _ in rows),
        reason="small coordinates settle last: a longer run is needed",
    )


def window_errors(ds: Any) -> np.ndarray:
    """Root mean square over seeds of the distance to the Lasso solution of each window's own penalty: (run, window)."""
    gap = ds["beta"].values - ds["own_lasso"].values[:, :, None]
    return np.sqrt(np.mean(np.sum(np.square(gap), axis=-1), axis=-1))


def _falls(ds: Any) -> Claim:
    errors = window_errors(ds)[flows(ds)]
    slopes = np.polyfit(np.log(ds["window"].values), np.log(errors).T, 1)[0]
    return judge(
        "Flow: a single seed's average comes nearer as T^-1/2 or faster",
        "central limit theorem; the start is forgotten as 1 / T",
        predicted="slope -1/2, towards -1 where the start still shows",
        measured="slopes " + ", ".join(f"{s:.2f}" for s in slopes) + f"; first run {' -> '.join(f'{v:.3f}' for v in errors[0])}",
        tolerance="every slope below -.4",
        holds=np.all(slopes < -0.4),
    )


def _predicted(ds: Any) -> Claim:
    runs = np.arange(ds.sizes["run"])
    ratio = ds["loss"].values[:, -1].mean(axis=1) / ds["predicted_loss"].values
    rows = [distance(ds, k, ds["predicted_lasso"].values[k]) for k in flows(ds)]
    naive = ds["loss"].values[:, -1].mean(axis=1) / (
        ds["gamma"].values * ds["delta"].values ** 2 * (np.abs(ds["truth"].values) @ ds["h"].values)
    )
    return judge(
        "The mean loss, and with it the Lasso, is known without a run: mean L = (L(b) + gamma delta^2 S) / (1 - gamma S)",
        "derived: stationarity of sum |beta|, S = tr K (I - dt K)^-1, without the covariance of L and <h, |beta|>",
        predicted="ratio 1 up to that covariance",
        measured=f"ratio {ratio.min():.3f} to {ratio.max():.3f} over {len(runs)} runs (over gamma delta^2 <h, |b*|>: {naive.min():.2f} to {naive.max():.2f}); "
        f"flows' distance to that Lasso {', '.join(f'{d:.4f}' for d, _ in rows)}",
        tolerance="5%, and three standard errors of the distance",
        holds=np.all(np.abs(ratio - 1) < 0.05) and all(d < e for d, e in rows),
    )


def _penalty(ds: Any) -> Claim:
    runs = flows(ds)
    rows = [[distance(ds, k, ds["lasso"].values[k, j]) for j in (0, 2)] for k in runs]
    nearer = np.mean(
        [
            np.linalg.norm(last(ds, k) - ds["lasso"].values[k, 1], axis=1) < np.linalg.norm(last(ds, k) - ds["lasso"].values[k, j], axis=1)
            for k in runs
            for j in (0, 2)
        ]
    )
    return judge(
        "Control: half and twice the penalty are rejected",
        STATED,
        predicted="further than the scatter",
        measured="; ".join(f"half {a[0] / a[1] * 3:.0f}, twice {b[0] / b[1] * 3:.0f} standard errors" for a, b in rows)
        + f"; {nearer:.0%} of the seeds nearer to the right one",
        tolerance="both beyond three standard errors in every run, at least 95% of the seeds",
        holds=all(d > e for row in rows for d, e in row) and nearer >= 0.95,
        control=True,
    )


def _without_loss(ds: Any) -> Claim:
    k = flows(ds)[np.argmax(ds["loss"].values[flows(ds), -1].mean(axis=1) / ds["delta"].values[flows(ds)] ** 2)]
    mean, half = interval(law_constants(ds, k, loss=False))
    return judge(
        "Control: without the mean loss in the penalty the constant is not 2",
        LAW,
        predicted=f"{2 * (1 + ds['loss'].values[k, -1].mean() / ds['delta'].values[k] ** 2):.3f}",
        measured=f"{mean:.3f} +- {half:.3f} at gamma = {ds['gamma'].values[k]:g}, delta = {ds['delta'].values[k]:g}",
        tolerance="99% interval above 2",
        holds=mean - half > 2,
        control=True,
    )


def _quiet(ds: Any) -> Claim:
    k, quiet = flows(ds)[0], ds["quiet_beta"].values
    solution = ds["lasso"].values[k, 1]
    away = np.linalg.norm(quiet - solution, axis=1)
    with_noise = np.linalg.norm(last(ds, k) - solution, axis=1)
    loss = np.mean([(b @ ds["gram"].values - ds["pull"].values) ** 2 for b in quiet])
    return judge(
        "Control: without label noise the average goes elsewhere, to an interpolator",
        STATED,
        predicted="no penalty: mean X^T r / n near 0",
        measured=f"distance to the Lasso solution {away.min():.3f} and more, with label noise at most {with_noise.max():.3f}; root mean square of X^T r / n {np.sqrt(loss):.1e}",
        tolerance="every seed 3 times further than the furthest with label noise",
        holds=away.min() > 3 * with_noise.max(),
        control=True,
    )


def descent_prediction(ds: Any, run: int) -> float:
    """2 and its next order for SGD, `2 (1 + 2 gamma^2 delta^2 m_4 / h)`: the fourth power in the logarithm of its factors."""
    beta, step, delta = np.abs(ds["lasso"].values[run, 1]), ds["gamma"].values[run], ds["delta"].values[run]
    return float(2 * (1 + 2 * step**2 * delta**2 * (ds["fourth"].values @ beta) / (ds["h"].values @ beta)))


def own_constants(ds: Any, run: int) -> np.ndarray:
    """`constants` for SGD's own penalties, `gamma (delta^2 h_i + mean_j x_ji^2 r_j^2 / 4)`."""
    return constants(ds, run, ds["gamma"].values[run] * ds["sample_h"].values[run], ds["sample_lasso"].values[run])


def _descent(ds: Any) -> Claim:
    runs = descents(ds)
    pairs = [interval(own_constants(ds, k), len(runs)) for k in runs]
    aims = [descent_prediction(ds, k) for k in runs]
    return judge(
        "SGD: the same law with each example's own mean square in the penalty, mean x_ji^2 r_j^2 / 4 for h_i L",
        PER_SAMPLE,
        predicted=", ".join(f"{aim:.3f}" for aim in aims),
        measured=_written(pairs) + " at gamma = " + ", ".join(f"{ds['gamma'].values[k]:g}" for k in runs),
        tolerance=f"99% intervals over seeds, {len(runs)} tests",
        holds=all(abs(mean - aim) < half for (mean, half), aim in zip(pairs, aims, strict=True)),
    )


def _descent_falls(ds: Any) -> Claim:
    runs = descents(ds)
    first, final = law_constants(ds, runs[0]), law_constants(ds, runs[-1])
    error = np.sqrt(first.var(ddof=1) / len(first) + final.var(ddof=1) / len(final))
    gaps = [distance(ds, k, ds["lasso"].values[k, 1])[0] for k in runs]
    fall = (abs(first.mean() - 2) - abs(final.mean() - 2)) / error
    return judge(
        "SGD: the mean-loss Lasso, the flow's, becomes its own as gamma falls at fixed gamma delta^2",
        LAW,
        predicted="constant to 2, distance to 0",
        measured=f"constant {first.mean():.3f} -> {final.mean():.3f}, {fall:.1f} standard errors; distance {' -> '.join(f'{g:.3f}' for g in gaps)} "
        + "as gamma goes "
        + " -> ".join(f"{ds['gamma'].values[k]:g}" for k in runs),
        tolerance="both fall, the constant by 2 standard errors",
        holds=fall > 2 and gaps[-1] < gaps[0],
    )


def _descent_weights(ds: Any) -> Claim:
    k = descents(ds)[0]
    mean, half = interval(law_constants(ds, k))
    plain, own = distance(ds, k, ds["lasso"].values[k, 1]), distance(ds, k, ds["sample_lasso"].values[k])
    return judge(
        "Control: at the largest gamma the mean-loss penalty is not SGD's",
        PER_SAMPLE,
        predicted=f"constant above {descent_prediction(ds, k):.3f}",
        measured=f"constant {mean:.3f} +- {half:.3f}; distance to the mean-loss Lasso {plain[0]:.3f}, to SGD's own {own[0]:.3f}",
        tolerance="99% interval above, and at least twice the distance",
        holds=mean - half > descent_prediction(ds, k) and plain[0] > 2 * own[0],
        control=True,
    )


def plot(ds: Any) -> Any:
    """One seed's iterate and running average, the averages against the Lasso solution, and the optimality conditions."""
    figure, axes = new_figure(1, 3, size=(15.0, 4.4))
    left, middle, right = axes[0]
    k = flows(ds)[0]
    solution = ds["lasso"].values[k, 1]
    largest = np.argsort(-np.abs(solution))[:3]
    share = np.linspace(0, 1, ds.sizes["time"])
    for position, i in enumerate(largest):
        left.plot(share, ds["path"].values[k, :, i], color=f"C{position}", alpha=0.3, linewidth=0.7)
        left.plot(share, ds["running"].values[k, :, i], color=f"C{position}", linewidth=1.6)
        left.axhline(solution[i], color="black", linestyle="--", linewidth=0.9)
        left.axhline(ds["truth"].values[i], color=COLOURS["control"], linestyle=":", linewidth=0.9)
    for label, style, colour in (("running average", "-", "C0"), ("Lasso", "--", "black"), ("truth", ":", COLOURS["control"])):
        left.plot([], [], linestyle=style, color=colour, label=label)
    names = ds["run"].values
    for run in range(len(names)):
        colour, mark = (COLOURS["sgd"], "s") if ds["discrete"].values[run] else (COLOURS["sgf"], "o")
        middle.plot(
            ds["window"].values,
            window_errors(ds)[run],
            mark + "-",
            color=colour,
            markersize=4,
            linewidth=1.2,
            alpha=0.45 + 0.5 * (run in (0, len(flows(ds)))),
        )
        level = ds["gamma"].values[run] * (ds["delta"].values[run] ** 2 + ds["loss"].values[run, -1].mean())
        slopes = np.abs(last(ds, run) @ ds["gram"].values - ds["pull"].values).mean(axis=0) / (2 * level * ds["h"].values)
        order = np.argsort(-slopes)
        on = ds["lasso"].values[run, 1][order] != 0
        place = np.arange(len(order)) + 1
        right.plot(place[on], slopes[order][on], mark, color=colour, markersize=4.5, alpha=0.7)
        right.plot(place[~on], slopes[order][~on], mark, color=colour, markersize=3, alpha=0.25, markerfacecolor="none")
    scale = window_errors(ds)[k, -1] / np.sqrt(1 / ds["window"].values)[-1]
    middle.plot(ds["window"].values, scale / np.sqrt(ds["window"].values), "--", color=COLOURS["gd"], linewidth=1, label="slope -1/2")
    right.axhline(1, color="black", linestyle="--", linewidth=0.9, label="bound 2 γ h (δ² + mean L)")
    for panel in (middle, right):
        panel.plot([], [], "o", color=COLOURS["sgf"], label="flow")
        panel.plot([], [], "s", color=COLOURS["sgd"], label="SGD")
    right.plot([], [], "o", color="black", markerfacecolor="none", markersize=3, label="off the Lasso's support (hollow)")
    tidy(left, title=f"{names[k]}: one seed, 3 largest coordinates", x="share of the run", y="β", x_scale="linear", y_scale="linear")
    tidy(middle, title="Time average to the Lasso solution", x="share of the run", y="rms distance, a single seed")
    tidy(right, title="Mean |Xᵀr/n| over its bound", x="coordinate, by rank", y="ratio", x_scale="linear", y_scale="linear")
    for panel in (left, middle, right):
        panel.legend(frameon=False, fontsize=8)
    return figure
