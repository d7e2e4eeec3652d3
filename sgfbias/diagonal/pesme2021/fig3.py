"""Figure 3: GD, SGD and the stochastic gradient flow; the bundles of SGD and of the flow overlap, and the paper's own scheme is held against the mirror system."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, bootstrap, judge, kolmogorov, median_interval, not_applicable
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal.pesme2021 import common
from sgfbias.diagonal.pesme2021.common import P21, FigureConfig, Say
from sgfbias.plotting import COLOURS, new_figure, tidy

FIGURE = f"{P21}, figure 3"
SCHEME = f"{P21}: their Euler scheme in w, dt = gamma/10"
LAW = "log(w_+ w_-) = 2 log alpha - 4 gamma h int L"
DRAWN = 5  # runs of each kind, as the paper shows
QUIET = 4  # times less noise, in the control
FINEST = 40  # steps per SGD step of the reference on the same path
WIDTHS = {"2": 0.5, "10": 0.1, "40": 0.025}  # of Euler in the weights, in units of gamma


@dataclasses.dataclass(frozen=True)
class Fig3Config(FigureConfig):
    """Figure 3 of Pesme et al. 2021: the flow's runs look like SGD's, and neither like gradient descent's."""

    scheme_steps: int = 10_000
    """Length of the bundle by the paper's own scheme, in SGD steps of 10 Euler steps each."""
    path_steps: int = 1_000
    """Length of the comparison of schemes on one Brownian path, in SGD steps."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        super().check()
        self.check_least(scheme_steps=4, path_steps=8)


Config = Fig3Config
PAPER = Fig3Config(scheme_steps=100_000)
REFERENCES = {
    "pesme2021": "figure 3",
}


def run(config: Fig3Config, *, say: Say = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions time, scheme_time, seed and scheme (on one path).

    **Raises:** `ValueError` for values that make no sense, or if no step size converges.
    """
    config.check()
    with jax.enable_x64(True):
        problem, network = common.draw(config)
        gamma, keys, out = common.step_size(config, problem, network, say), seeds(0, config.seeds), Columns()
        say(f"gradient descent, SGD and the flow: {config.seeds} seeds x {config.steps:,} iterations")
        gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
        common.add_runs(out, "gd", gd)
        dynamics = {
            "sgd": StochasticGradientDescent(gamma),
            "sgf": StochasticGradientFlow(gamma),
            "quiet": StochasticGradientFlow(gamma / QUIET, dt=gamma),
        }
        for name, each in dynamics.items():
            common.add_runs(out, name, simulate(each, network, problem, keys=keys, steps=config.steps), say=say)
        say(f"the paper's scheme: Euler in the weights, dt = gamma/10, {config.scheme_steps:,} SGD steps")
        record = Record(times=np.asarray(gd.times)[np.asarray(gd.steps) <= config.scheme_steps])
        euler = StochasticGradientFlow(gamma, dt=gamma / 10)
        weights = simulate(euler, network, problem, keys=keys, steps=10 * config.scheme_steps, coordinates="weights", record=record)
        common.add_runs(out, "weights", weights, time="scheme_time", say=say)
        say(f"schemes on one Brownian path, {config.path_steps:,} SGD steps, against the mirror system at dt = gamma/{FINEST}")
        _paths(config, problem, network, gamma, keys, out)
        return common.dataset(out, "pesme2021.fig3", config, gamma, gd, keys, scheme_time=np.asarray(weights.times))


def _paths(config: Fig3Config, problem: Any, network: Any, gamma: float, keys: Any, out: Columns) -> None:
    """How far Euler in the weights and in mirror coordinates are from the reference, and by how much the former breaks the law of `w_+ w_-`."""
    times = gamma * np.arange(config.path_steps + 1)

    def go(width: float, coordinates: str) -> Any:
        flow = StochasticGradientFlow(gamma, dt=gamma * width, brownian_dt=gamma / FINEST)
        steps = round(config.path_steps / width)
        return simulate(flow, network, problem, keys=keys, steps=steps, coordinates=coordinates, record=Record(times=times))

    reference = go(1 / FINEST, "mirror")
    schemes = {f"weights {label}": (width, "weights") for label, width in WIDTHS.items()}
    schemes |= {"mirror 1": (1.0, "mirror"), "mirror 10": (0.1, "mirror")}
    beta, integral, breaks, predicted = [], [], [], []
    for width, coordinates in schemes.values():
        runs = go(width, coordinates)
        lost = runs.diverged | reference.diverged
        beta.append(jnp.where(lost[:, None], jnp.nan, runs.final["beta"]))
        integral.append(jnp.where(lost, jnp.nan, runs.final["loss_integral"] / reference.final["loss_integral"] - 1))
        if coordinates == "weights":
            law = 2 * network.log_alpha - 4 * gamma * problem.h * runs.final["loss_integral"][:, None]
            broken = 2 * runs.final["log_alpha"] - law
            breaks.append(jnp.where(lost, jnp.nan, jnp.sqrt(jnp.mean(jnp.square(broken / problem.h), axis=1))))
            # A step multiplies w_+ w_- by 1 - a^2, a normal with variance 4 gamma h L dt to first order: a^2 scatters about it.
            square = 2 * gamma * width * jnp.sum(jnp.square(4 * gamma * runs["loss"][:, :-1]), axis=1) * gamma
            predicted.append(jnp.where(lost, jnp.nan, jnp.sqrt(square)))
    # The reference is the mirror system's; Euler in the weights gets its turn as the fine solution, too.
    for name, fine in (("path_distance", reference.final["beta"]), ("path_distance_weights", beta[list(WIDTHS).index(str(FINEST))])):
        out.add(name, ("scheme", "seed"), jnp.linalg.norm(jnp.stack(beta) - fine, axis=2), "target / input")
    out.add("path_integral", ("scheme", "seed"), jnp.stack(integral), "relative")
    out.add("path_break", ("width", "seed"), jnp.stack(breaks), "log weight per h")
    out.add("path_break_predicted", ("width", "seed"), jnp.stack(predicted), "log weight per h")
    out.add("path_scheme", ("scheme",), np.array(list(schemes), dtype=object), "scheme and steps per SGD step")
    out.add("path_width", ("width",), list(WIDTHS.values()), "gamma")


def overlap(a: np.ndarray, b: np.ndarray, drawn: int = DRAWN) -> float:
    """Probability that the ranges of `drawn` values from each of two samples, with replacement, have a point in common."""

    def apart(low: np.ndarray, high: np.ndarray) -> float:
        """All of `low` below the least of `high`."""
        values, size = np.sort(high), len(high)
        least = ((size - np.arange(size)) / size) ** drawn - ((size - 1 - np.arange(size)) / size) ** drawn
        return float(np.sum(least * (np.searchsorted(np.sort(low), values, side="left") / len(low)) ** drawn))

    return 1 - apart(a, b) - apart(b, a)


def _overlap(ds: Any, name: str, other: str) -> tuple[float, float, float]:
    """That probability for the final errors, with its 99% bootstrap interval."""
    a, b = (sample[np.isfinite(sample)] for sample in (common.final(ds, name), common.final(ds, other)))
    interval = bootstrap(lambda x, y: np.array([overlap(*pair) for pair in zip(x, y, strict=True)]), a, b, draws=1000)
    return (overlap(a, b), *interval)


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    ratio = float(common.final(ds, "gd")) / common.final(ds, "sgd")
    return [
        common.none_lost(ds, {"sgd": "SGD", "sgf": "flow", "weights": "flow by Euler in w"}),
        *_bundles(ds),
        common.alike(ds, FIGURE),
        common.below(ds, "sgd", "SGD", FIGURE),
        common.below(ds, "sgf", "the flow", FIGURE),
        _same_law(ds),
        *_invariant(ds),
        *_schemes(ds),
        common.printed("Gradient descent's final error over SGD's is 19 to 54", FIGURE, said=(19 * 54) ** 0.5, sample=ratio, ours="ratio"),
    ]


def _bundles(ds: Any) -> list[Claim]:
    statement = f"The bundles overlap: {DRAWN} final errors of SGD and {DRAWN} of the flow, drawn as in the figure"
    control = f"Control: {DRAWN} of SGD and {DRAWN} of the flow with a {QUIET}th of the noise do not"
    if min(np.isfinite(common.final(ds, name)).sum() for name in ("sgd", "sgf", "quiet")) < common.LEAST_SEEDS:
        return [not_applicable(text, FIGURE, "too few seeds are left", control=text == control) for text in (statement, control)]
    (value, low, high), (quiet, quiet_low, quiet_high) = _overlap(ds, "sgf", "sgd"), _overlap(ds, "quiet", "sgd")
    gd = float(common.final(ds, "gd"))
    outside = min(float(np.mean(common.final(ds, name) < gd)) for name in ("sgd", "sgf"))
    late = np.arange(ds.sizes["time"])[ds["step"].values >= 10]
    through = np.mean([overlap(ds["sgd_validation_error"].values[:, k], ds["sgf_validation_error"].values[:, k]) >= 0.5 for k in late])
    return [
        judge(
            statement,
            FIGURE,
            predicted="ranges with a point in common; .992 for one law",
            measured=f"with probability {value:.2f} (99% interval {low:.2f} to {high:.2f}); above .5 at {through:.0%} of the recorded times from step 10; "
            f"{outside:.0%} of the seeds of both are below gradient descent",
            tolerance="interval above .5",
            holds=low > 0.5,
            reason="at this step size five runs of each would be seen apart",
        ),
        judge(
            control,
            FIGURE,
            predicted="0",
            measured=f"{quiet:.3f} (99% interval {quiet_low:.3f} to {quiet_high:.3f})",
            tolerance="interval below .1",
            holds=quiet_high < 0.1,
            control=True,
            reason="five runs of each do not tell the amounts of noise apart",
        ),
    ]


def _same_law(ds: Any) -> Claim:
    a, b = (sample[np.isfinite(sample)] for sample in (common.final(ds, "sgd"), common.final(ds, "sgf")))
    statement = "SGD and the flow are not told apart by all their seeds: final errors have one law"
    if min(a.size, b.size) < common.LEAST_SEEDS:
        return not_applicable(statement, FIGURE, "too few seeds are left", must_hold=False)
    distance = float(kolmogorov(a, b))
    limit = 1.63 * np.sqrt((a.size + b.size) / (a.size * b.size))
    return judge(
        statement,
        "two-sample Kolmogorov-Smirnov test; the flow's weak order is 1 in gamma, and its noise is mean-loss",
        predicted=f"distance below {limit:.2f}",
        measured=f"{distance:.2f}; standard deviation of the log error {np.std(np.log(a)):.2f} for SGD, {np.std(np.log(b)):.2f} for the flow",
        tolerance="the 1% critical value",
        holds=distance < limit,
        must_hold=False,
        reason="overlapping bundles are not one law: gamma is the largest that converges, and enough seeds see it",
    )


def _invariant(ds: Any) -> list[Claim]:
    broken, predicted, widths = ds["path_break"].values, ds["path_break_predicted"].values, ds["path_width"].values
    keep = np.isfinite(broken).all(axis=0)
    if keep.sum() < common.LEAST_SEEDS:
        return [not_applicable(f"The paper's scheme breaks {LAW}", SCHEME, "too few seeds are left")]
    size, expected = (np.sqrt(np.mean(np.square(v[:, keep]), axis=1)) for v in (broken, predicted))
    slope = float(np.polyfit(np.log(widths), np.log(size), 1)[0])
    ratio = size / expected
    low, high = bootstrap(
        lambda index: np.sqrt(
            np.mean(np.square(broken[1, keep][index.astype(int)]), axis=-1)
            / np.mean(np.square(predicted[1, keep][index.astype(int)]), axis=-1)
        ),
        np.arange(keep.sum()),
    )
    ladder = ", ".join(f"{v:.2g}" for v in size)
    return [
        judge(
            f"The paper's scheme breaks {LAW}, on which the theorem rests; by how much is known",
            f"{SCHEME}; a step multiplies w_+ w_- by 1 - a^2, a^2 scatters about 4 gamma h L dt by sqrt 2 times that",
            predicted=f"root mean square over seeds and features {expected[1]:.3g} at dt = gamma/10, h = 1",
            measured=f"{size[1]:.3g}, ratio {ratio[1]:.3f} (99% interval {low:.3f} to {high:.3f}); at gamma/2 {ratio[0]:.2f}, at gamma/40 {ratio[2]:.2f}",
            tolerance="the interval meets 1 +- 10%, which is left to higher orders",
            holds=low < 1.1 and high > 0.9,
            reason="the scheme's error is not what a step's scatter explains",
        ),
        judge(
            "That error falls as the root of the step, not faster: ten times finer steps gain a factor of 3",
            SCHEME,
            predicted="slope 1/2",
            measured=f"{ladder} at dt = gamma/2, gamma/10, gamma/40: slope {slope:.2f}",
            tolerance="between .4 and .75",
            holds=0.4 < slope < 0.75,
            reason="not of strong order 1/2",
        ),
    ]


def _schemes(ds: Any) -> list[Claim]:
    names = [str(name) for name in ds["path_scheme"].values]
    where = {name: k for k, name in enumerate(names)}
    distance, integral = ds["path_distance"].values, np.abs(ds["path_integral"].values)
    turned = ds["path_distance_weights"].values
    keep = np.isfinite(distance).all(axis=0) & np.isfinite(turned).all(axis=0)
    statements = {
        "mirror 10": "On one Brownian path and at one step, gamma/10, the mirror system is nearer to the fine solution than the paper's scheme",
        "mirror 1": "So it is with steps of gamma, ten times fewer",
    }
    rows = []
    for name, statement in statements.items():
        if keep.sum() < common.LEAST_SEEDS:
            rows.append(not_applicable(statement, SCHEME, "too few seeds are left", must_hold=name == "mirror 10"))
            continue
        ratio = distance[where["weights 10"], keep] / distance[where[name], keep]
        low, high = median_interval(ratio)
        other = np.median(turned[where["weights 10"], keep] / turned[where[name], keep])
        sums = f"{np.median(integral[where['weights 10'], keep]):.1e} and {np.median(integral[where[name], keep]):.1e}"
        rows.append(
            judge(
                statement,
                SCHEME,
                predicted="the ratio of the distances |beta - beta_fine| is above 1",
                measured=f"median ratio {np.median(ratio):.2f} (99% interval {low:.2f} to {high:.2f}), {other:.2f} if Euler in w at gamma/{FINEST} is the fine solution; int L off by {sums} (median)",
                tolerance="interval above 1",
                holds=low > 1,
                must_hold=name == "mirror 10",
                reason="near the largest step size the mirror system needs steps below gamma, too",
            )
        )
    return rows


def plot(ds: Any) -> Any:
    """Loss and error against time; final errors; how far the paper's scheme is from the law and from the fine solution."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = new_figure(2, 2, size=(12, 8))
    for panel, quantity in ((axes[0, 0], "loss"), (axes[0, 1], "validation_error")):
        common.curves(panel, ds, quantity, common.NAMES)
        panel.plot([], [], "--", color=COLOURS["control"], label="flow, Euler in w, dt = γ/10")
        values = ds[f"weights_{quantity}"].values
        keep = ds["scheme_time"].values > 0
        levels = np.nanquantile(values[:, keep], [0.05, 0.5, 0.95], axis=0)
        for level, width in zip(levels, (0.8, 1.6, 0.8), strict=True):
            panel.plot(ds["scheme_time"].values[keep], level, "--", color=COLOURS["control"], linewidth=width)
        tidy(panel, title=common.TITLES[quantity], x="flow time", y=common.LABELS[quantity])
        panel.legend(frameon=False, fontsize=8)
    panel = axes[1, 0]
    for name, label, colour in (
        ("sgd", "SGD", COLOURS["sgd"]),
        ("sgf", "flow", COLOURS["sgf"]),
        ("quiet", f"flow, noise of γ/{QUIET}", COLOURS["control"]),
    ):
        values = np.sort(common.final(ds, name))
        panel.plot(values, np.arange(1, values.size + 1) / values.size, color=colour, label=label, drawstyle="steps-post")
    panel.axvline(float(common.final(ds, "gd")), color=COLOURS["gd"], label="gradient descent")
    tidy(panel, title="Final errors", x=common.LABELS["validation_error"], y="share of seeds", y_scale="linear")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.legend(frameon=False, fontsize=8)
    panel, widths = axes[1, 1], ds["path_width"].values
    for name, style, label in (
        ("path_break_predicted", "k:", "predicted from one step's scatter"),
        ("path_break", "o-", "log(w₊w₋) off its law, Euler in w"),
    ):
        sizes = np.sqrt(np.nanmean(np.square(ds[name].values), axis=1))
        panel.plot(widths, sizes, style, label=label, **({} if style == "k:" else {"color": COLOURS["control"]}))
    by_name = dict(zip(map(str, ds["path_scheme"].values), np.nanmedian(ds["path_distance"].values, axis=1), strict=True))
    panel.plot(
        widths,
        [by_name[f"weights {label}"] for label in WIDTHS],
        "s--",
        color=COLOURS["control"],
        label="|β − fine solution|, Euler in w (median)",
    )
    panel.plot([1, 0.1], [by_name["mirror 1"], by_name["mirror 10"]], "s--", color=COLOURS["sgf"], label="the same, mirror system")
    tidy(panel, title="Schemes on one Brownian path", x="dt / γ", y="error")
    panel.legend(frameon=False, fontsize=8)
    return figure
