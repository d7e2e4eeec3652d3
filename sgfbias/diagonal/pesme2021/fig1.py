"""Figure 1: the validation error of GD and SGD against time, and where they end against the scale of the initialisation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from scipy.stats import binom

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, judge
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.diagonal import alpha_sweep
from sgfbias.diagonal.alpha_sweep_claims import medians
from sgfbias.diagonal.pesme2021 import common
from sgfbias.diagonal.pesme2021.common import P21, FigureConfig, Say
from sgfbias.diagonal.stepsize import find_step_size
from sgfbias.plotting import COLOURS, new_figure, tidy

LEFT, RIGHT = f"{P21}, figure 1, left", f"{P21}, figure 1, right"
SAID = 4.6e-3 / 5e-5  # GD over SGD at the end


@dataclasses.dataclass(frozen=True)
class Fig1Config(FigureConfig):
    """Figure 1 of Pesme et al. 2021: SGD ends below gradient descent at every scale of the initialisation."""

    alpha: float = 0.005
    """Scale of the initialisation, left; on the right it varies."""
    steps: int = 100_000
    """Iterations on the left; the paper's 1e6 with the config PAPER."""
    alpha_low: float = 1e-4
    """Smallest alpha on the right."""
    alpha_high: float = 1e-1
    """Largest alpha on the right; gamma is found there."""
    levels: int = 10
    """Alphas on the right, log-spaced."""
    sweep_steps: int = 10_000
    """Iterations on the right, and of the other problems, after which the programme of the runs' own law is solved."""
    problems: int = 10
    """Further problems on which the left's final ratio is measured, each at its own gamma."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        super().check()
        self.check_least(problems=7, sweep_steps=4)  # a sign test at 1% needs 7


Config = Fig1Config
PAPER = Fig1Config(steps=1_000_000, sweep_steps=100_000, seeds=256, problems=32)
REFERENCES = {
    "pesme2021": "figure 1",
    "even2023": "the exact law of SGD",
}


def run(config: Fig1Config, *, say: Say = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions time, seed, alpha (right) and problem.

    **Raises:** `ValueError` for values that make no sense, or if no step size converges.
    """
    config.check()
    shared = ("seeds", "alpha_low", "alpha_high", "levels", "step_size", "n", "d", "sparsity", "problem_seed")
    sweep = alpha_sweep.Config(**{name: getattr(config, name) for name in shared}, steps=config.sweep_steps)
    swept = alpha_sweep.run(sweep, say=say)
    gamma = float(swept.attrs["step_size"])
    keys = seeds(0, config.seeds)
    with jax.enable_x64(True):
        problem, network = common.draw(config)
        out = Columns()
        say(f"left: alpha = {config.alpha:g}, {config.steps:,} iterations")
        runs = {
            "gd": simulate(GradientDescent(gamma), network, problem, steps=config.steps),
            "sgd": simulate(StochasticGradientDescent(gamma), network, problem, keys=keys, steps=config.steps),
            "sgf": simulate(StochasticGradientFlow(gamma), network, problem, keys=keys, steps=config.steps),
        }
        for name, each in runs.items():
            common.add_runs(out, f"left_{name}", each, say=say)
            if name != "sgf":
                selected = alpha_sweep.selected_errors(each, problem)
                out.add(f"left_{name}_selected_error", ("seed",) if name == "sgd" else ("run",), selected, "(target / input)^2")
        say(f"{config.problems} further problems, each at its own gamma")
        others = [_other(dataclasses.replace(config, problem_seed=config.problem_seed + k), keys) for k in range(1, config.problems + 1)]
        for name, values in zip(("step_size", "gd", "sgd"), zip(*others, strict=True), strict=True):
            dims = ("problem", "seed") if name == "sgd" else ("problem",)
            out.add(f"problem_{name}", dims, np.stack(values), "1" if name == "step_size" else "(target / input)^2")
        for name in swept.data_vars:
            out.add(str(name), tuple(map(str, swept[name].dims)), swept[name].values, swept[name].attrs["units"])
        return common.dataset(out, "pesme2021.fig1", config, gamma, runs["gd"], keys, alpha=swept["alpha"].values)


def _other(config: Fig1Config, keys: Any) -> tuple[float, float, np.ndarray]:
    """gamma, and the errors of the solutions that GD and SGD select, on another problem."""
    problem, network = common.draw(config)
    gamma, _ = find_step_size(problem, network, probes=64)
    short = {"steps": config.sweep_steps, "record": alpha_sweep.LAST}
    gd = simulate(GradientDescent(gamma), network, problem, **short)
    sgd = simulate(StochasticGradientDescent(gamma, integral="batch"), network, problem, keys=keys, **short)
    return gamma, alpha_sweep.selected_errors(gd, problem)[0], alpha_sweep.selected_errors(sgd, problem)


def claims(ds: Any) -> list[Claim]:
    """The study's claims: those of the left panel, then those of the study `alpha-sweep` for the right one."""
    words = {"left_sgd": "SGD", "left_sgf": "flow"}
    ratio = float(common.final(ds, "left_gd")) / common.final(ds, "left_sgd")
    return [
        common.none_lost(ds, words),
        common.below(ds, "left_sgd", "SGD", LEFT, than="left_gd"),
        common.alike(ds, LEFT, flow="left_sgf", sgd="left_sgd", gd="left_gd"),
        common.printed(
            "Gradient descent's final error over SGD's is 2 decades at alpha = .005", LEFT, said=SAID, sample=ratio, ours="ratio"
        ),
        *_problems(ds),
        _flat(ds),
        *alpha_sweep.claims(ds),
    ]


def _ratios(ds: Any) -> np.ndarray:
    """Gradient descent's error over SGD's median, by problem."""
    return np.asarray(ds["problem_gd"].values / np.median(np.nan_to_num(ds["problem_sgd"].values, nan=np.inf), axis=1))


def _problems(ds: Any) -> list[Claim]:
    ratios = _ratios(ds)
    need = int(binom.ppf(0.99, ratios.size, 0.5)) + 1
    shown = f"{ratios.min():.3g} to {ratios.max():.3g}, median {np.median(ratios):.3g}"
    return [
        judge(
            "On other problems, too, SGD (median) ends below gradient descent",
            LEFT,
            predicted=f"ratio of errors above 1, {ratios.size} problems",
            measured=f"on {int(np.sum(ratios > 1))} of them; {shown}",
            tolerance=f"at least {need}: a sign test at 1%",
            holds=np.sum(ratios > 1) >= need,
            reason="what is seen on one problem is not typical",
        ),
        judge(
            "The printed ratio lies within those of other problems",
            f"{LEFT}; read off the plot",
            predicted=f"about {SAID:.3g}",
            measured=shown,
            tolerance="between the smallest and the largest",
            holds=ratios.min() <= SAID <= ratios.max(),
            must_hold=False,
            reason="none of the problems drawn here has a ratio as large, or as small",
        ),
    ]


def _flat(ds: Any) -> Claim:
    off = np.abs(np.log(common.final(ds, "left_sgd") / ds["left_sgd_selected_error"].values))
    gd = abs(float(np.log(common.final(ds, "left_gd") / ds["left_gd_selected_error"].values[0])))
    gap = float(np.abs(np.log(common.final(ds, "left_gd") / np.nanmedian(common.final(ds, "left_sgd")))))
    return judge(
        "The curves on the left have ended: the iterates' errors are those of the solutions their own laws select",
        "Even, Pesme, Gunasekar, Flammarion 2023: SGD's own law",
        predicted="logarithms of the errors agree",
        measured=f"off by {np.nanmedian(off):.1e} for SGD (median), {gd:.1e} for gradient descent, which are {gap:.1f} apart",
        tolerance="a tenth of what they are apart",
        holds=max(float(np.nanmedian(off)), gd) < 0.1 * gap,
        must_hold=False,
        reason="more iterations are needed",
    )


def plot(ds: Any) -> Any:
    """Errors against time; errors of the selected solutions against alpha; the ratio on other problems."""
    figure, axes = new_figure(1, 3, size=(15, 4.4))
    left, middle, right = axes[0]
    common.curves(left, ds, "validation_error", {f"left_{name}": value for name, value in common.NAMES.items()})
    alpha = float(common.settings(ds)["alpha"])
    tidy(left, title=f"α = {alpha:g}", x="flow time", y=common.LABELS["validation_error"])
    grid = ds["alpha"].values
    middle.plot(grid, ds["gd_error"].values, "s-", color=COLOURS["gd"], label="gradient descent", markersize=4)
    for name, colour, label in (("sgd", COLOURS["sgd"], "SGD"), ("flow", COLOURS["sgf"], "flow, landed")):
        low, high = np.nanquantile(ds[f"{name}_error"].values, [0.05, 0.95], axis=1)
        middle.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
        middle.plot(grid, medians(ds, name)[0], "o-", color=colour, label=f"{label}, {ds.sizes['seed']} seeds", markersize=4)
    tidy(middle, title="Error of the selected solution", x="α", y="$|\\beta_\\infty - \\beta^*|_2^2$")
    ratios = np.sort(_ratios(ds))
    right.plot(np.arange(1, ratios.size + 1), ratios, "o", color=COLOURS["sgd"], label="other problems, SGD's median")
    right.axhline(SAID, color="black", linestyle=":", label="printed")
    right.axhline(1, color=COLOURS["gd"], linewidth=1)
    own = float(common.final(ds, "left_gd")) / np.nanmedian(common.final(ds, "left_sgd"))
    right.axhline(own, color=COLOURS["sgf"], linestyle="--", label="this problem")
    tidy(
        right,
        title=f"Gradient descent's error over SGD's, α = {alpha:g}",
        x="problem, by rank",
        y="ratio of final errors",
        x_scale="linear",
    )
    for panel in axes[0]:
        panel.legend(frameon=False, fontsize=8)
    return figure
