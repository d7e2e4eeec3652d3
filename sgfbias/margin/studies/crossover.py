"""When does an optimiser that divides by an average of squared gradients leave the
l_inf max-margin solution for that of l2, and how fast does it go without eps?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import Problem, Record, simulate
from sgfbias.margin import (
    Adam,
    ExponentialLoss,
    Identity,
    LinearMargin,
    MarginDescent,
    MarginFlow,
    RMSProp,
    Sign,
    adam_rate,
    crossover,
    max_margin,
)
from sgfbias.margin.network import Linear
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    Positive,
    Seed,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import listed, span

NAME = "margin-crossover"
PRECISION = "float64"
SECONDS = 30
REFERENCES = {
    "wang2021": "RMSProp and Adam with eps > 0 go to the l2 solution",
    "zhang2024": "Adam without eps goes to the l_inf solution",
}
WANG, ZHANG = source("wang2021"), source("zhang2024")
# With eps = 1e-20 h is so large where a component of the gradient vanishes that on some
# data the flow cannot be followed by the solver.
EPSILONS = (1e-8, 1e-12, 1e-16)
LARGE_EPS = 1e-2
# A = |G|_1 / c at the l_inf solution.
RATE = 0.25
# The l_inf margin of the l2 solution over the best one is below this on the data.
APART = 0.85
# How long before the crossover the gradient is looked at, in nu: several times as long
# as the average remembers.
EARLIER = 1.0
# The decay of the squares of Adam, for which nu may grow by 0.005 per iteration, and
# the step size in units of the inverse l_inf margin: half of that.
B2, STEP = 0.99, 0.0025
NUS = np.linspace(0.5, 90.0, 896)
DISCRETE = ("Adam", "Adam without momentum", "sign descent")


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """RMSProp with several eps, and Adam and sign descent without, train a linear
    classifier on data whose l2 and l_inf max-margin solutions differ.
    """

    n: Annotated[int, Between(2, 32, closed=True)] = 4
    """Number of examples, half of each class."""
    d: Annotated[int, Between(3, 64, closed=True)] = 6
    """Number of inputs."""
    step_size: Positive = STEP
    """Step size of the discrete algorithms times the best l_inf margin, which is the
    growth of nu per iteration of sign descent.
    """
    iterations: Annotated[int, AtLeast(5000)] = 40_000
    """Number of iterations of the discrete algorithms."""
    problem_seed: Seed = 0
    """Chooses among the data of one root seed."""

    def check(self) -> None:
        self.check_choice()


QUICK = Config(iterations=30_000)


def drawn(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The first normal data on which the two solutions differ enough to be told apart,
    which is seen from the data alone.
    """
    rng = np.random.default_rng(config.data_seed())
    y = np.where(np.arange(config.n) % 2, -1.0, 1.0)
    while True:
        X = rng.normal(size=(config.n, config.d))
        w = max_margin(X, y).weights
        ratio = 1 / np.abs(w).max() / max_margin(X, y, norm="linf").margin
        if ratio < APART:
            return X, y


def measure(config: Config, log: Log) -> Columns:
    """Margins along nu for every eps, where the largest average falls to eps, and the
    rates of the discrete algorithms.
    """
    X, y = drawn(config)
    best = {norm: max_margin(X, y, norm=norm) for norm in ("l2", "linf")}
    problem = Problem(jnp.asarray(X), jnp.asarray(y), loss=ExponentialLoss())
    start = Linear(jnp.zeros(config.d))
    Z, forgets = X * y[:, None], best["linf"].margin / RATE
    wanted = dict.fromkeys(("conditioner", "margin_l2", "margin_linf"))
    record = Record({"weights": weights, **wanted}, NUS)
    out = Columns(
        nu=("nu", NUS, {"units": "1"}),
        eps=("eps", np.array(EPSILONS), {"units": "1"}),
        reference=["gradient flow", f"eps = {LARGE_EPS:g}"],
        algorithm=list(DISCRETE),
    )
    ratios = {norm: np.full((len(EPSILONS), NUS.size), np.nan) for norm in best}
    seen, predicted, earliest, latest = (np.full(len(EPSILONS), np.nan) for _ in range(4))
    for k, eps in enumerate(EPSILONS):
        log(f"eps = {eps:g}")
        flow = MarginFlow(RMSProp(0.0, eps, step_size=1 / forgets))
        run = simulate(flow, start, problem, t1=NUS[-1], record=record)
        for norm in best:
            ratios[norm][k] = np.asarray(run[f"margin_{norm}"]) / best[norm].margin
        average = np.asarray(run["conditioner"]) ** -2 - eps
        seen[k] = crossing(np.max(average, axis=1) / eps)
        # From the l_inf solution, and again from the gradient a little before that.
        rough = crossover(at_solution(Z, best["linf"]), n=config.n, eps=eps, forgets=forgets)
        along = np.asarray(run["weights"])
        before = along[np.searchsorted(NUS, rough - EARLIER)]
        if np.isfinite(before).all() and np.isfinite(seen[k]):
            predicted[k] = crossover(gradient(Z, before), n=config.n, eps=eps, forgets=forgets)
            # The average is from 1 to s^2 times the squares of the last gradients.
            window = along[(seen[k] - EARLIER <= NUS) & (seen[k] >= NUS)]
            gradients = [gradient(Z, w) for w in window]
            late = [crossover(G, n=config.n, eps=eps, forgets=forgets) for G in gradients]
            lag = [np.arcsinh(np.abs(G).sum() / forgets) for G in gradients]  # log s
            earliest[k], latest[k] = np.min(np.subtract(late, lag)), np.max(late)
    log("references")
    others = {norm: np.full((2, NUS.size), np.nan) for norm in best}
    large = RMSProp(0.0, LARGE_EPS, step_size=1 / forgets)
    for k, conditioner in enumerate((Identity(), large)):
        run = simulate(MarginFlow(conditioner), start, problem, t1=NUS[-1], record=record)
        for norm in best:
            others[norm][k] = np.asarray(run[f"margin_{norm}"]) / best[norm].margin
    for norm in best:
        out.add(f"ratio_{norm}", ("eps", "nu"), ratios[norm], "1")
        out.add(f"reference_{norm}", ("reference", "nu"), others[norm], "1")
    out.add("seen", ("eps",), seen, "1")
    out.add("predicted", ("eps",), predicted, "1")
    out.add("earliest", ("eps",), earliest, "1")
    out.add("latest", ("eps",), latest, "1")
    _discrete(out, config, problem, start, best, log)
    return out


def _discrete(
    out: Columns, config: Config, problem: Problem, start: Linear, best: dict, log: Log
) -> None:
    """The gain in nu per iteration over the last quarter, and the l_inf margin."""
    gamma = best["linf"].margin
    lr = config.step_size / gamma
    cases = (
        (Adam(b2=B2), adam_rate(gamma, lr, b2=B2)),
        (Adam(b1=0.0, b2=B2), adam_rate(gamma, lr, b1=0.0, b2=B2)),
        (Sign(), gamma * lr),
    )
    ends = np.array([0.75, 1.0]) * config.iterations * lr
    record = Record(dict.fromkeys(("nu", "margin_linf")), ends)
    rows: dict[str, list[float]] = {"rate": [], "rate_predicted": [], "rate_l2": [], "end_linf": []}
    for name, (rule, rate) in zip(DISCRETE, cases, strict=True):
        log(name)
        descent = MarginDescent(rule, lr)
        run = simulate(descent, start, problem, steps=config.iterations, record=record)
        taken = np.diff(np.asarray(run.steps, float))[0]
        rows["rate"].append(float(np.diff(np.asarray(run["nu"]))[0] / taken))
        rows["rate_predicted"].append(rate)
        rows["rate_l2"].append(best["l2"].margin * lr)
        rows["end_linf"].append(float(run["margin_linf"][-1]) / gamma)
    for name, values in rows.items():
        out.add(name, ("algorithm",), values, "1")


def weights(network: Linear) -> Array:
    """The weights. One function for all runs, so that one program serves them."""
    return network.w


def at_solution(Z: np.ndarray, best: LinearMargin) -> np.ndarray:
    """The gradient of nu at the l_inf solution, where the shares of the examples in the
    loss are proportional to the multipliers.
    """
    return Z.T @ best.multipliers / best.multipliers.sum()


def gradient(Z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The gradient of nu at the weights, where Z has the gradients of the margins."""
    q = Z @ w
    share = np.exp(q.min() - q)
    return Z.T @ share / share.sum()


def crossing(ratio: np.ndarray) -> float:
    """The nu from which on a series that falls exponentially is below 1, or NaN."""
    above = np.flatnonzero(ratio > 1)
    if not above.size or above[-1] + 1 == ratio.size:
        return float("nan")
    k = above[-1]
    a, b = np.log(ratio[k : k + 2])
    return float(NUS[k] + (NUS[k + 1] - NUS[k]) * a / (a - b))


def at_crossing(rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Rows (eps, nu) where each crosses over."""
    return np.array([np.interp(nu, NUS, row) for nu, row in zip(seen, rows, strict=True)])


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The crossover, the solutions before and after it, and the rates without eps."""
    seen, predicted = ds["seen"].values, ds["predicted"].values
    earliest, latest = ds["earliest"].values, ds["latest"].values
    linf, l2 = ds["ratio_linf"].values, ds["ratio_l2"].values
    before = at_crossing(linf, seen)
    l2_before, l2_after = at_crossing(l2, seen), l2[:, -1]
    rate, formula = ds["rate"].values, ds["rate_predicted"].values
    other = ds["rate_l2"].values
    end = ds["end_linf"].values
    reference = ds["reference_linf"].values
    window = np.abs(NUS - seen[0]) < 0.5 * seen[0] if np.isfinite(seen[0]) else NUS > 0
    never = reference[:, window].max(axis=1)
    return [
        claim(
            "The average falls to eps where the closed form says",
            WANG,
            predicted="nu_x = " + listed(predicted, ".4g"),
            measured="nu_x = " + listed(seen, ".4g"),
            tolerance=f"from {listed(earliest, '.4g')} to {listed(latest, '.4g')}, which are the "
            f"closed forms for the gradients of the last {EARLIER:g} in nu, without lag and with",
            holds=np.all((seen <= latest) & (seen >= earliest)),
            main=True,
        ),
        claim(
            "Until then the l_inf margin approaches the best one: the smaller eps, the nearer",
            ZHANG,
            predicted="a ratio that rises to 1 as eps falls",
            measured="ratios at the crossover " + listed(before, ".4f"),
            tolerance=f"each above the one before it, and the last above {APART}, which the l2 "
            "solution does not have",
            holds=np.all(np.diff(before) > 0) and before[-1] > APART,
            main=True,
        ),
        claim(
            "After it the direction goes to the l2 solution",
            WANG,
            predicted="a ratio of l2 margins whose distance to 1 ends as A/nu + B/nu^2; as A/nu "
            f"alone it would fall to {listed(seen / NUS[-1], '.2f')} of that at the crossover",
            measured=f"ratios {listed(l2_before, '.4f')} at the crossover, "
            f"{listed(l2_after, '.4f')} at nu = {NUS[-1]:g}: distances that fall to "
            f"{listed((1 - l2_after) / (1 - l2_before), '.3f')}",
            tolerance="to less than half of the distance at the crossover, for every eps",
            holds=np.all(1 - l2_after < 0.5 * (1 - l2_before)),
            main=True,
        ),
        claim(
            "Without eps nu grows at the rate of the closed form",
            ZHANG,
            predicted=", ".join(f"{n} {v:.4g}" for n, v in zip(DISCRETE, formula, strict=True)),
            measured=", ".join(f"{n} {v:.4g}" for n, v in zip(DISCRETE, rate, strict=True)),
            tolerance="1% for every algorithm",
            holds=np.all(np.abs(rate / formula - 1) < 0.01),
            main=True,
        ),
        claim(
            "Without eps the l_inf margin is the best one",
            ZHANG,
            predicted="a ratio of 1",
            measured="ratios at the end " + span(end, ".4f"),
            tolerance="above 0.95 for every algorithm",
            holds=np.all(end > 0.95),
        ),
        control(
            "gradient flow and a large eps have no phase in which they go to l_inf",
            WANG,
            predicted=f"ratios below that of eps = {EPSILONS[0]:g} at its crossover",
            measured=f"largest ratios near it {listed(never, '.3f')}; {before[0]:.3f} with "
            f"eps = {EPSILONS[0]:g}",
            tolerance="from half of that nu to one and a half times it",
            holds=np.all(never < before[0]),
            main=True,
        ),
        control(
            "the l2 margin does not give the rates",
            ZHANG,
            predicted="another rate than step size times l2 margin",
            measured=f"ratios {listed(rate / other, '.3g')}",
            tolerance="off by more than 1% for every algorithm",
            holds=np.all(np.abs(rate / other - 1) > 0.01),
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw both ratios of margins against nu, and the crossover against eps."""
    figure, (left, middle, right) = panels(columns=3)
    shades = np.linspace(0.35, 1.0, len(EPSILONS))
    for panel, norm, title in ((left, "linf", "l_inf"), (middle, "l2", "l2")):
        rows = ds[f"ratio_{norm}"].values
        for k, eps in enumerate(EPSILONS):
            panel.plot(NUS, rows[k], color=COLOURS["sgf"], alpha=shades[k], label=f"{eps:g}")
            panel.axvline(ds["predicted"].values[k], color=COLOURS["sgd"], linewidth=0.6)
        flow = ds[f"reference_{norm}"].values[0]
        panel.plot(NUS, flow, color=COLOURS["gd"], linestyle="--", label="gradient flow")
        finish(
            panel,
            title=f"{title} margin over the best one",
            x="nu = -log(sum of losses)",
            y="ratio; lines: predicted crossover",
            y_scale="linear",
        )
    right.plot(EPSILONS, ds["predicted"].values, color=COLOURS["sgd"], label="predicted")
    right.plot(EPSILONS, ds["seen"].values, "o", color=COLOURS["sgf"], label="seen")
    finish(right, title="Crossover", x="eps", y="nu", y_scale="linear")
    return figure
