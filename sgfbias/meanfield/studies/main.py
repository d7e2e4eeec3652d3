"""How noisy is SGD, with and without memory in its masks, and does a theory predict its
training curves before anything is trained?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np
import xarray as xr

from sgfbias import LogisticLoss, PersistentMask, SquaredLoss
from sgfbias.meanfield import (
    Curves,
    GaussianMixture,
    LinearTeacher,
    MaskedDescent,
    Start,
    marchenko_pastur,
    simulate,
    solve,
)
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    NotNegative,
    Positive,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels, quantile_band
from sgfbias.study.statistics import span

NAME = "meanfield"
PRECISION = "float64"
SECONDS = 60
REFERENCES = {
    "mignacco2020": "dynamical mean-field theory of SGD on clusters",
    "mignacco2022": "replicas, and masks with memory",
    "marchenko1967": "the spectrum of random data",
}
MIGNACCO = source("mignacco2022")
BASE = source("mignacco2020")
# Rules, with the words of their statements.
RULES = {"gd": "full batches", "sgd": "independent masks", "persistent": "persistent masks"}
QUANTITIES = {
    "overlap": "w . v / d",
    "variance": "|w|^2 / d",
    "half": "w_t . w_{t/2} / d",
    "loss": "loss",
    "test_error": "share of wrong labels",
    "distance": "|w1 - w2|^2 / d",
}
RIDGE = {"alpha": 3.0, "step": 0.1, "ridge": 0.5, "overlap": 0.2, "steps": 24}
LEVEL = 0.005
FIRST_RUN = 1000  # seeds of runs, apart from those of the theory


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Full batches, independent masks and persistent masks train a linear classifier of
    two clusters, twice from each start. The theory predicts every curve.
    """

    d: Annotated[int, AtLeast(20)] = 400
    """Number of dimensions of the runs."""
    alpha: Positive = 2.0
    """Number of examples per dimension."""
    noise: Positive = 0.5
    """Variance of the clusters in every direction."""
    ridge: NotNegative = 0.1
    """Factor of the ridge penalty."""
    variance: NotNegative = 0.01
    """Mean squared weight at the start."""
    step: Positive = 0.1
    """Step size for the sum of the losses over examples."""
    steps: Annotated[int, AtLeast(8)] = 60
    """Number of steps."""
    fraction: Annotated[float, Between(0.05, 0.95)] = 0.3
    """Mean share of the examples in a step."""
    tau: Positive = 1.0
    """Mean time that an example stays out with persistent masks, the number of steps
    times the step size.
    """
    samples: Annotated[int, AtLeast(100)] = 2000
    """Number of effective examples of the theory."""
    solves: Annotated[int, AtLeast(4)] = 16
    """Number of independent solutions of the theory."""
    seeds: Annotated[int, AtLeast(4)] = 16
    """Number of data sets, each trained twice by every rule."""

    def check(self) -> None:
        least = max(1.0, (1 - self.fraction) / self.fraction)
        if self.tau < self.step * least:
            raise ValueError(
                f"tau must be at least {self.step * least:g}, with masks of the fraction "
                f"{self.fraction:g} and the step size {self.step:g}, but is {self.tau:g}"
            )
        if abs(self.alpha * self.d - round(self.alpha * self.d)) > 1e-6:
            raise ValueError(
                f"alpha times d must be a whole number of examples, but is {self.alpha * self.d:g}"
            )


QUICK = Config(d=200, steps=30, samples=1000, solves=10, seeds=10)
PAPER = Config(d=800, samples=4000, solves=32, seeds=32)


def rules(config: Config) -> dict[str, MaskedDescent]:
    """The three rules; full batches are masks in which every example is."""
    b = config.fraction
    masks = {
        "gd": PersistentMask(1.0, persistence=1.0),
        "sgd": PersistentMask(b, persistence=1 / b),
        "persistent": PersistentMask(b, persistence=config.tau / config.step),
    }
    return {
        name: MaskedDescent(config.step, mask, ridge=config.ridge) for name, mask in masks.items()
    }


def measure(config: Config, log: Log) -> Columns:
    """The curves of theory and of runs for every rule, and ridge regression."""
    out = Columns(
        rule=list(RULES),
        time=("time", np.arange(config.steps + 1), {"units": "steps"}),
        solve=np.arange(config.solves),
        seed=np.arange(config.seeds),
    )
    data = GaussianMixture(config.alpha, spectrum=config.noise)
    options: dict[str, Any] = {
        "steps": config.steps,
        "start": Start(variance=config.variance),
        "replicas": 2,
    }
    found: dict[str, list[np.ndarray]] = {
        f"{kind}_{name}": [] for kind in ("theory", "runs") for name in QUANTITIES
    }
    keys = config.keys(0, config.solves)
    for name, rule in rules(config).items():
        log(f"theory of {RULES[name]}")
        theory = solve(data, LogisticLoss(), rule, keys=keys, samples=config.samples, **options)
        log(f"runs with {RULES[name]}")
        own = config.keys(FIRST_RUN, FIRST_RUN + config.seeds)
        runs = simulate(data, LogisticLoss(), rule, keys=own, d=config.d, **options)
        for kind, curves in (("theory", theory), ("runs", runs)):
            for quantity, values in quantities(curves).items():
                found[f"{kind}_{quantity}"].append(values)
    for name, rows in found.items():
        dims = ("rule", "solve" if name.startswith("theory") else "seed", "time")
        out.add(name, dims, np.stack(rows), QUANTITIES[name.split("_", 1)[1]])
    log("ridge regression, and a first step from zero")
    steps = int(RIDGE["steps"])
    ridge = solve(
        LinearTeacher(RIDGE["alpha"]),
        SquaredLoss(0.5),
        MaskedDescent(RIDGE["step"], ridge=RIDGE["ridge"]),
        steps=steps,
        start=Start(RIDGE["overlap"]),
        samples=config.samples,
        keys=keys,
    )
    out.axes["ridge_time"] = np.arange(steps + 1)
    overlap, response = ridge_regression(steps)
    out.add("ridge_overlap", ("solve", "ridge_time"), ridge.overlap, "w . v / d")
    out.add("ridge_predicted", ("ridge_time",), overlap, "w . v / d")
    # Rows of the response matrix: the kick is in the first step.
    assert ridge.response is not None
    out.add("ridge_response", ("solve", "ridge_time"), ridge.response[:, :, 0], "1")
    out.add("ridge_response_predicted", ("ridge_time",), response, "1")
    first = solve(data, LogisticLoss(), rules(config)["sgd"], steps=1, samples=20_000, keys=keys)
    out.add("first_overlap", ("solve",), first.overlap[:, 1], "w . v / d")
    out.add("first_variance", ("solve",), first.correlation[:, 1, 1], "|w|^2 / d")
    return out


def quantities(curves: Curves) -> dict[str, np.ndarray]:
    """The quantities of curves, each of shape (keys, times)."""
    assert curves.distance is not None
    correlation = np.asarray(curves.correlation)
    times = np.arange(curves.steps + 1)
    return {
        "overlap": np.asarray(curves.overlap),
        "variance": correlation[:, times, times],
        "half": correlation[:, times, times // 2],
        "loss": np.asarray(curves.loss),
        "test_error": np.asarray(curves.test_error),
        "distance": np.asarray(curves.distance),
    }


def ridge_regression(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The overlap, and the response to a kick in the first step, in closed form."""
    law = marchenko_pastur(RIDGE["alpha"])
    x, weights = np.asarray(law.nodes), np.asarray(law.weights)
    k = x + RIDGE["ridge"]
    decay = (1 - RIDGE["step"] * k) ** np.arange(steps + 1)[:, None]
    overlap = (decay * RIDGE["overlap"] + x / k * (1 - decay)) @ weights
    response = np.concatenate([[0.0], decay[:-1] @ weights])
    return overlap, response


def looks(steps: int) -> list[int]:
    """Six times at which curves are compared."""
    return sorted({max(1, round(steps * share)) for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1)})


def gaps(a: np.ndarray, b: np.ndarray, tests: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of two means over rows, and what is allowed: Student's t of Welch at
    a joint level of 99.5%, and 2/d of the scale for the finite size.
    """
    from scipy.stats import t

    errors = [v.var(axis=0, ddof=1) / len(v) for v in (a, b)]
    error = errors[0] + errors[1]
    freedom = np.square(error) / np.maximum(
        sum(np.square(e) / (len(v) - 1) for e, v in zip(errors, (a, b), strict=True)), 1e-300
    )
    quantile = t.ppf(1 - LEVEL / (2 * tests), np.maximum(freedom, 1.0))
    scale = np.abs(a.mean(axis=0))
    return np.abs(a.mean(axis=0) - b.mean(axis=0)), quantile * np.sqrt(error) + 2 / d * scale


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """The theory has the closed forms, and the curves of runs; a theory without the
    memory of the masks has other distances.
    """
    at = looks(config.steps)
    found = []
    statements = {
        "gd": "The theory predicts gradient descent with full batches",
        "sgd": "The theory predicts SGD with independent masks",
        "persistent": "The theory predicts SGD with persistent masks",
    }
    for name, statement in statements.items():
        names = [q for q in QUANTITIES if not (name == "gd" and q == "distance")]
        worst, seen = [], []
        for quantity in names:
            theory, runs = (
                ds[f"{kind}_{quantity}"].sel(rule=name).values[:, at] for kind in ("theory", "runs")
            )
            gap, allowed = gaps(theory, runs, len(names) * len(at), config.d)
            worst.append(float(np.max(gap / allowed)))
            seen.append(float(np.max(allowed / np.abs(theory.mean(axis=0)))))
        shown = ", ".join(f"{q} {w:.2f}" for q, w in zip(names, worst, strict=True))
        found.append(
            claim(
                f"{statement}: overlap, correlations, losses, test error"
                + ("" if name == "gd" else " and distances"),
                MIGNACCO,
                predicted="equal means at six times",
                measured=f"largest differences as shares of what is allowed: {shown}",
                tolerance="Welch's t at a joint level of 99.5%, and 2/d of the scale; differences "
                f"of {max(seen):.0%} would be seen everywhere",
                holds=max(worst) < 1 and max(seen) < 0.5,
                main=name != "gd",
            )
        )
    solved, trained = (ds[f"{kind}_distance"] for kind in ("theory", "runs"))
    still = max(float(np.abs(v.sel(rule="gd").values).max()) for v in (solved, trained))
    ends = {name: float(solved.sel(rule=name).values[:, -1].mean()) for name in RULES}
    own = {name: float(trained.sel(rule=name).values[:, -1].mean()) for name in RULES}
    last = solved.sel(rule="sgd").values[:, at], trained.sel(rule="persistent").values[:, at]
    gap, allowed = gaps(*last, len(at), config.d)
    overlap = ds["ridge_overlap"].values
    error = np.abs(overlap.mean(axis=0) - ds["ridge_predicted"].values)
    _, allowed_overlap = gaps(overlap, overlap, overlap.shape[1], 10**9)
    response = np.abs(ds["ridge_response"].values - ds["ridge_response_predicted"].values).max()
    first = [ds[f"first_{name}"].values for name in ("overlap", "variance")]
    step = config.step**2 * config.alpha * config.noise / (4 * config.fraction)
    closed = [config.step * config.alpha / 2, step + (config.step * config.alpha / 2) ** 2]
    step_gaps = [abs(v.mean() - c) for v, c in zip(first, closed, strict=True)]
    step_allowed = [float(gaps(v, v, 2, 10**9)[1]) for v in first]
    finite = all(np.isfinite(ds[name].values).all() for name in ds.data_vars)
    return [
        claim(
            "Every curve is finite",
            BASE,
            predicted="no curve diverges",
            measured="all finite" if finite else "some are NaN or infinite",
            tolerance="none",
            holds=finite,
            reason="the step size is too large",
        ),
        claim(
            "In ridge regression the response is that of the Marchenko-Pastur law",
            source("marchenko1967"),
            predicted="E[(1 - eta k)^(t - 1)]",
            measured=f"off by at most {response:.1e} of 1",
            tolerance="1e-5, as effective examples are in single precision",
            holds=response < 1e-5,
            main=True,
        ),
        claim(
            "In ridge regression the overlap is that of the Marchenko-Pastur law",
            source("marchenko1967"),
            predicted=f"{float(ds['ridge_predicted'].values[-1]):.4f} at the end",
            measured=f"{overlap.mean(axis=0)[-1]:.4f}; off by at most {error.max():.1e}",
            tolerance=f"Student's t at a joint level of 99.5%, at most {allowed_overlap.max():.1e}",
            holds=np.all(error <= allowed_overlap + 1e-12),
        ),
        claim(
            "A first step from zero has its closed form",
            BASE,
            predicted=f"m = eta alpha/2 = {closed[0]:.4f}, C = {closed[1]:.5f}",
            measured=f"m = {first[0].mean():.4f}, C = {first[1].mean():.5f}",
            tolerance=f"Student's t at 99.5%: {step_allowed[0]:.1e} and {step_allowed[1]:.1e}",
            holds=np.all(np.asarray(step_gaps) < np.asarray(step_allowed)),
        ),
        *found,
        claim(
            "With full batches two replicas stay together",
            MIGNACCO,
            predicted="a distance of 0",
            measured=f"at most {still:.1e}",
            tolerance="exactly 0",
            holds=still == 0,
        ),
        claim(
            "At the same share of examples, memory in the masks drives replicas apart",
            MIGNACCO,
            predicted=f"a distance {ends['persistent'] / ends['sgd']:.2f} times that of "
            "independent masks",
            measured=f"{own['persistent'] / own['sgd']:.2f} times",
            tolerance="above 1.5 in theory and in runs",
            holds=min(ends["persistent"] / ends["sgd"], own["persistent"] / own["sgd"]) > 1.5,
        ),
        control(
            "the theory of independent masks does not describe persistent ones",
            MIGNACCO,
            predicted="another distance of replicas",
            measured=f"off by {gap[-1] / allowed[-1]:.1f} times what is allowed at the end; "
            f"ratios of distances {span(last[1].mean(axis=0) / last[0].mean(axis=0))}",
            tolerance="more than what is allowed, at the end",
            holds=gap[-1] > allowed[-1],
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw theory as lines over the bands of runs: overlap, loss, test error and the
    distance of replicas.
    """
    figure, axes = panels(columns=2, rows=2)
    colours = {"gd": COLOURS["gd"], "sgd": COLOURS["sgd"], "persistent": COLOURS["control"]}
    titles = {
        "overlap": ("Overlap with the direction of the clusters", "w·v / d"),
        "loss": ("Training loss", "logistic loss"),
        "test_error": ("Error on fresh examples", "share of wrong labels"),
        "distance": ("Distance of two replicas", "|w₁ - w₂|² / d"),
    }
    time = ds["time"].values
    for panel, (quantity, (title, y)) in zip(axes, titles.items(), strict=True):
        for name, words in RULES.items():
            runs = ds[f"runs_{quantity}"].sel(rule=name).values
            theory = ds[f"theory_{quantity}"].sel(rule=name).values.mean(axis=0)
            label = f"{words}, runs"
            quantile_band(panel, time, runs.T, colour=colours[name], label=label, style="-")
            panel.plot(time, theory, "--", color=colours[name], label=f"{words}, theory")
        finish(panel, title=title, x="steps", y=y, x_scale="linear", y_scale="linear")
    return figure
