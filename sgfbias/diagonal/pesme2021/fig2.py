"""Figure 2: loss, its integral and the validation error; a larger loss integral goes with a smaller error."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, bootstrap, judge, median_interval, not_applicable
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal.alpha_sweep import selected_errors
from sgfbias.diagonal.curve import solution_curve
from sgfbias.diagonal.pesme2021 import common
from sgfbias.diagonal.pesme2021.common import P21, FigureConfig, Say
from sgfbias.diagonal.potential import potential
from sgfbias.diagonal.selection import select, select_many
from sgfbias.plotting import COLOURS, new_figure, tidy

FIGURE = f"{P21}, figure 2"
WIDTHS = (1.0, 0.5, 0.25)
SCHEME_WIDTHS = (0.4, 0.1)  # of Euler in the weights, in units of gamma; the paper's last
POINTS = 200


@dataclasses.dataclass(frozen=True)
class Fig2Config(FigureConfig):
    """Figure 2 of Pesme et al. 2021: the larger the loss integral, the smaller the validation error."""

    seeds: int = 512
    """Seeds of SGD and of the flow: enough for a rank correlation."""
    alpha: float = 0.1
    """Scale of the initialisation, w_+ = w_- = alpha."""
    steps: int = 20_000
    """Iterations of GD and SGD; at this alpha they have converged long before the paper's 1e5."""
    scheme_seeds: int = 64
    """Seeds of the paper's own scheme, Euler in the weights with dt = gamma/10, and with steps four times as long."""
    scheme_steps: int = 4_000
    """Its length, in SGD steps."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        super().check()
        self.check_least(scheme_seeds=common.LEAST_SEEDS, scheme_steps=4)


Config = Fig2Config
PAPER = Fig2Config(steps=100_000, scheme_steps=100_000)
REFERENCES = {
    "pesme2021": "figure 2",
    "even2023": "the exact law of SGD",
}


def run(config: Fig2Config, *, say: Say = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions time, seed, scheme_seed, width and point (of the solution curve).

    **Raises:** `ValueError` for values that make no sense, or if no step size converges.
    """
    config.check()
    with jax.enable_x64(True):
        problem, network = common.draw(config)
        gamma, keys, out = common.step_size(config, problem, network, say), seeds(0, config.seeds), Columns()
        say(f"gradient descent, SGD and its flow: {config.seeds} seeds x {config.steps:,} iterations")
        gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
        sgd = simulate(StochasticGradientDescent(gamma, integral="examples"), network, problem, keys=keys, steps=config.steps)
        sgf = simulate(StochasticGradientFlow(gamma), network, problem, keys=keys, steps=config.steps)
        for name, runs in (("gd", gd), ("sgd", sgd), ("sgf", sgf)):
            common.add_runs(out, name, runs, say=say)

        def error(log_alpha: Any) -> Any:
            return jax.vmap(problem.validation_error)(select_many(problem, log_alpha).beta)

        say("solutions that SGD's path predicts, by the mean-loss and by the per-sample law")
        bad = sgd.diverged
        integral = jnp.where(bad, 0, sgd.final["loss_integral"])
        each = jnp.where(bad[:, None], 0, sgd.final["example_integral"])
        laws = {
            "mean_loss": network.log_alpha - 2 * gamma * integral[:, None] * problem.h,
            "per_sample": network.log_alpha - 2 * gamma / problem.n * (each @ jnp.square(problem.X)),
        }
        laws["alpha"] = jnp.where(bad[:, None], network.log_alpha, sgd.final["log_alpha"])
        for name, log_alpha in laws.items():
            out.add(f"sgd_{name}_error", ("seed",), jnp.where(bad, jnp.nan, error(log_alpha)), "(target / input)^2")
        out.add("sgd_own_error", ("seed",), selected_errors(sgd, problem), "(target / input)^2")

        say(f"the paper's scheme: Euler in the weights, {config.scheme_seeds} seeds x {config.scheme_steps:,} SGD steps")
        few, ends = seeds(0, config.scheme_seeds), []
        for width in SCHEME_WIDTHS:
            euler = StochasticGradientFlow(gamma, dt=gamma * width, brownian_dt=gamma * SCHEME_WIDTHS[-1])
            steps = round(config.scheme_steps / width)
            ends.append(simulate(euler, network, problem, keys=few, steps=steps, coordinates="weights", record=Record(times=2)))
        alive = ~jnp.any(jnp.stack([end.diverged for end in ends]), axis=0)
        S = [jnp.where(alive, end.final["loss_integral"], 0) for end in ends]
        top = max(float(jnp.max(jnp.where(runs.diverged, 0, runs.final["loss_integral"]))) for runs in (sgf, sgd))
        curve = solution_curve(
            problem, network.log_alpha, step_size=gamma, integrals=np.linspace(0, max(top, *map(float, map(jnp.max, S))), POINTS)
        )
        for name, part in (("curve", 1.0), ("half", 0.5)):
            off = [jnp.linalg.norm(end.final["beta"] - curve(part * used), axis=1) for end, used in zip(ends, S, strict=True)]
            out.add(f"weights_{name}_distance", ("scheme", "scheme_seed"), jnp.where(alive, jnp.stack(off), jnp.nan), "target / input")
        for name, unit in zip(common.QUANTITIES, ("target^2", "target^2 time", "(target / input)^2"), strict=True):
            out.add(f"weights_{name}", ("scheme_seed",), jnp.where(alive, ends[-1].final[name], jnp.nan), unit)
        out.add("curve_error", ("point",), jax.vmap(problem.validation_error)(curve.beta), "(target / input)^2")

        say("gradient descent's integral, at gamma, gamma/2 and gamma/4")
        chosen = select(problem, network.log_alpha).beta
        flow = (potential(chosen, network.log_alpha) - potential(jnp.zeros_like(chosen), network.log_alpha)) / 2
        sums = [
            simulate(GradientDescent(gamma * f), network, problem, steps=round(config.steps / f), record=Record(times=2)) for f in WIDTHS
        ]
        out.add("gd_integrals", ("width",), [float(run.final["loss_integral"]) for run in sums], "target^2 time")
        out.add("flow_integral", (), flow, "target^2 time")
        coords = {"width": np.asarray(WIDTHS), "point": np.asarray(curve.integrals), "scheme_seed": np.arange(config.scheme_seeds)}
        coords["scheme"] = np.asarray(SCHEME_WIDTHS)
        return common.dataset(out, "pesme2021.fig2", config, gamma, gd, keys, **coords)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis."""
    ranks = [rankdata(v, axis=-1) for v in (a, b)]
    one, other = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    return np.sum(one * other, axis=-1) / np.sqrt(np.sum(one**2, axis=-1) * np.sum(other**2, axis=-1))


def paired(statistic: Any, *samples: np.ndarray) -> tuple[float, float]:
    """99% bootstrap interval of `statistic(*samples)`, seeds resampled together."""
    return bootstrap(lambda index: statistic(*(s[index.astype(int)] for s in samples)), np.arange(len(samples[0])))


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    gd_error, gd_integral = float(common.final(ds, "gd")), float(common.final(ds, "gd", "loss_integral"))
    ratio, errors = common.final(ds, "sgd", "loss_integral") / gd_integral, gd_error / common.final(ds, "sgd")
    return [
        common.none_lost(ds, {"sgd": "SGD", "sgf": "flow"}),
        *(_larger(ds, name, word) for name, word in (("sgd", "SGD"), ("sgf", "the flow"))),
        common.below(ds, "sgd", "SGD", FIGURE),
        common.below(ds, "sgf", "the flow", FIGURE),
        _flow_order(ds),
        *_curve(ds),
        _sgd_order(ds),
        _which_law(ds),
        _identity(ds),
        common.printed(
            "The loss integrals of two SGD runs over gradient descent's are 1.4 and 3.1", FIGURE, said=2.1, sample=ratio, ours="ratio"
        ),
        common.printed(
            "Gradient descent's error over those of two SGD runs is 13 and 144", FIGURE, said=(13 * 144) ** 0.5, sample=errors, ours="ratio"
        ),
    ]


def _larger(ds: Any, name: str, word: str) -> Claim:
    gd = float(common.final(ds, "gd", "loss_integral"))
    sample = common.final(ds, name, "loss_integral") / gd
    low, _ = median_interval(np.nan_to_num(sample, nan=0.0))
    return judge(
        f"The loss integral of {word} is larger than gradient descent's (median)",
        FIGURE,
        predicted="ratio above 1",
        measured=f"{common.middle(sample)}; above 1 for {np.mean(sample > 1):.1%} of {sample.size} seeds",
        tolerance="99% interval above 1",
        holds=low > 1,
        reason="noise did not slow the loss down",
    )


def _flow_order(ds: Any) -> Claim:
    statement = "Larger integral, smaller error: over seeds of the flow, by Euler in the weights, which does not know of the theorem"
    S, error = common.known(ds["weights_loss_integral"].values, ds["weights_validation_error"].values)
    if S.size < common.LEAST_SEEDS:
        return not_applicable(statement, FIGURE, "too few seeds are left")
    low, high = paired(spearman, S, error)
    falls = np.mean(np.diff(ds["curve_error"].values) < 0)
    return judge(
        statement,
        f"{FIGURE}; theorem 1: all seeds end on one curve, on which the error falls",
        predicted=f"rank correlation -1: the error falls along {falls:.0%} of the curve",
        measured=f"{float(spearman(S, error)):.3f} (99% interval {low:.3f} to {high:.3f}; {S.size} seeds)",
        tolerance="interval below -.9",
        holds=high < -0.9,
        reason="the error is no function of the loss integral",
    )


def _curve(ds: Any) -> list[Claim]:
    both = {name: ds[f"weights_{name}_distance"].values for name in ("curve", "half")}
    keep = np.isfinite(both["curve"]).all(axis=0)
    statement = "The flow, by Euler in the weights, ends on the theorem's curve, at its own loss integral"
    control = "Control: with half the exponent, alpha exp(-gamma h int L), it does not"
    source = f"{P21}, theorem 1: alpha exp(-2 gamma h int L)"
    if keep.sum() < common.LEAST_SEEDS:
        return [not_applicable(statement, source, "too few seeds are left"), not_applicable(control, source, "likewise", control=True)]
    span = np.log(ds["scheme"].values[0] / ds["scheme"].values[-1])
    medians = {name: np.median(values[:, keep], axis=1) for name, values in both.items()}
    slopes, shown = {}, {}
    for name, values in both.items():
        rows = values[:, keep]
        low, high = paired(lambda a, b: np.log(np.median(a, axis=-1) / np.median(b, axis=-1)) / span, rows[0], rows[1])
        slopes[name] = (low, high)
        shown[name] = (
            f"median distance {medians[name][0]:.1e} at dt = gamma/2.5, {medians[name][1]:.1e} at gamma/10: "
            f"slope {np.log(medians[name][0] / medians[name][1]) / span:.2f} (99% interval {low:.2f} to {high:.2f})"
        )
    return [
        judge(
            statement,
            source,
            predicted="distance -> 0 with dt, strong order >= 1/2",
            measured=f"{shown['curve']}; loss left {np.nanmedian(ds['weights_loss'].values):.0e}",
            tolerance="slope's interval reaches 1/2 and is above 1/4",
            holds=slopes["curve"][1] >= 0.5 and slopes["curve"][0] > 0.25,
            reason="the seeds do not approach the curve, or have not converged",
        ),
        judge(
            control,
            source,
            predicted="distance stays as dt falls",
            measured=f"{shown['half']}; {medians['half'][1] / medians['curve'][1]:.0f} times the theorem's",
            tolerance="slope's interval below 1/4, and 3 times further",
            holds=slopes["half"][1] < 0.25 and medians["half"][1] > 3 * medians["curve"][1],
            control=True,
            reason="the distance does not tell the two laws apart",
        ),
    ]


def _sgd_order(ds: Any) -> Claim:
    S, error = common.known(common.final(ds, "sgd", "loss_integral"), common.final(ds, "sgd"))
    statement = "Larger integral, smaller error: over seeds of SGD"
    if S.size < common.LEAST_SEEDS:
        return not_applicable(statement, FIGURE, "too few seeds are left", must_hold=False)
    low, high = paired(spearman, S, error)
    first, second = np.triu_indices(S.size, 1)
    agree = np.mean(np.sign(S[first] - S[second]) == -np.sign(error[first] - error[second]))
    return judge(
        statement,
        f"{FIGURE}, two runs",
        predicted="rank correlation clearly below 0: the theorem is the mean-loss flow's, where it is -1",
        measured=f"{float(spearman(S, error)):.2f} (99% interval {low:.2f} to {high:.2f}; {S.size} seeds): two runs are ordered as the paper's in {agree:.0%} of the pairs",
        tolerance="interval below -.2",
        holds=high < -0.2,
        must_hold=False,
        reason="from run to run of one problem the loss integral alone hardly tells SGD's error at this step size",
    )


def _which_law(ds: Any) -> Claim:
    names = ("own", "alpha", "per_sample", "mean_loss")
    error, *laws = common.known(common.final(ds, "sgd"), *(ds[f"sgd_{name}_error"].values for name in names))
    statement = "Run by run, SGD's error is what its own law selects, from the alpha_inf of its path and the offset"
    source = "Even, Pesme, Gunasekar, Flammarion 2023"
    if error.size < common.LEAST_SEEDS:
        return not_applicable(statement, source, "too few seeds are left")
    own, alpha, each, mean = (float(spearman(error, law)) for law in laws)
    low, _ = paired(spearman, error, laws[0])
    return judge(
        statement,
        source,
        predicted="rank correlation 1 with the law's error; less where only a part of the path is known",
        measured=f"{own:.3f} (99% interval from {low:.3f}); {alpha:.2f} without the offset, {each:.2f} from the examples' loss integrals, {mean:.2f} from int L alone",
        tolerance="interval above .9, and above the three others",
        holds=low > 0.9 and low > max(alpha, each, mean),
        reason="the runs have not converged, or the law does not hold",
    )


def _identity(ds: Any) -> Claim:
    off = np.abs(ds["gd_integrals"].values / float(ds["flow_integral"]) - 1)
    slope = float(np.polyfit(np.log(ds["width"].values), np.log(off), 1)[0])
    return judge(
        "Gradient descent's loss integral tends to half of what the potential gains",
        f"{P21}, section 4, with the 1/2 that is not printed: int L = [phi(beta_inf) - phi(0)] / 2",
        predicted=f"{float(ds['flow_integral']):.4g}, error of first order in gamma",
        measured=f"off by {', '.join(f'{v:.2%}' for v in off)} at gamma, gamma/2, gamma/4: slope {slope:.2f}; without the 1/2 off by {abs(ds['gd_integrals'].values[-1] / float(ds['flow_integral']) / 2 - 1):.0%}",
        tolerance="slope between .8 and 1.3",
        holds=0.8 < slope < 1.3,
        reason="the difference does not vanish with the step",
    )


def plot(ds: Any) -> Any:
    """Loss, its integral and the error against time; the error against the integral, with the theorem's curve."""
    figure, axes = new_figure(2, 2, size=(11.5, 8))
    for panel, quantity in zip(axes.ravel(), common.QUANTITIES, strict=False):
        common.curves(panel, ds, quantity, common.NAMES)
        scale = "linear" if quantity == "loss_integral" else "log"
        tidy(panel, title=common.TITLES[quantity], x="flow time", y=common.LABELS[quantity], y_scale=scale)
        if quantity == "loss":
            panel.set_ylim(bottom=1e-16)
        panel.legend(frameon=False, fontsize=8)
    panel = axes[1, 1]
    panel.plot(ds["point"].values, ds["curve_error"].values, color="black", linewidth=1, label="theorem 1")
    for name in ("sgd", "sgf"):
        label, colour = common.NAMES[name]
        S, error = common.final(ds, name, "loss_integral"), common.final(ds, name)
        panel.plot(S, error, ".", color=colour, markersize=3, alpha=0.6, label=f"{label}, a dot per seed")
    panel.plot(ds["weights_loss_integral"].values, ds["weights_validation_error"].values, "x", color=COLOURS["control"], markersize=4)
    panel.plot([], [], "x", color=COLOURS["control"], label="flow, Euler in w, dt = γ/10")
    panel.plot(float(common.final(ds, "gd", "loss_integral")), float(common.final(ds, "gd")), "s", color=COLOURS["gd"], label="GD")
    S = common.final(ds, "sgd", "loss_integral")
    errors = np.concatenate([common.final(ds, "sgd"), common.final(ds, "sgf")])
    panel.set_xlim(0, 1.05 * np.nanmax(S))
    tidy(panel, title="Error against loss integral", x="∫ L dt", y=common.LABELS["validation_error"], x_scale="linear")
    panel.set_ylim(0.5 * np.nanmin(errors), 2 * np.nanmax(errors))
    panel.legend(frameon=False, fontsize=8)
    return figure
