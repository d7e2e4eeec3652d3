"""What the five figures share: their set-up, what is kept of a run, claims that more than one of them makes, and how curves are drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.claim import Claim, bootstrap, judge, median_interval, not_applicable
from sgfbias.core.provenance import attributes
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status, Trajectory
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.stepsize import find_step_size
from sgfbias.plotting import COLOURS, band, line

P21 = "Pesme, Pillaud-Vivien, Flammarion 2021"
Say = Callable[[str], None]
QUANTITIES = ("loss", "loss_integral", "validation_error")
LABELS = {"loss": "training loss", "loss_integral": "∫ L dt", "validation_error": "$|\\beta - \\beta^*|_2^2$"}
TITLES = {"loss": "Training loss", "loss_integral": "Loss integral", "validation_error": "Validation error"}
LEAST_SEEDS = 8
READING = 4.0  # a printed ratio was read off a logarithmic plot of another problem: a factor


@dataclasses.dataclass(frozen=True)
class FigureConfig:
    """Set-up of all figures: n = 40, d = 100, 5 non-zeros, standard normal inputs, no noise in the targets, batches of 1."""

    seeds: int = 64
    """Seeds of SGD and of each flow, where the paper shows single runs."""
    alpha: float = 0.01
    """Scale of the initialisation, w_+ = w_- = alpha."""
    steps: int = 100_000
    """Iterations of GD and SGD, and steps of the flow at dt = gamma."""
    step_size: float | Literal["auto"] = "auto"
    """gamma; auto finds the largest for which SGD and its flow converge, by trying."""
    n: int = 40
    """Examples."""
    d: int = 100
    """Features."""
    sparsity: int = 5
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem; the paper's is not published."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        if not (np.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive and finite, but is {self.alpha}")
        if self.step_size != "auto" and not (np.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, or auto, but is {self.step_size}")
        self.check_least(seeds=LEAST_SEEDS, steps=4, n=1, sparsity=1)
        if self.n >= self.d:
            raise ValueError(f"n must be below d = {self.d}, so that the data leave a choice, but is {self.n}")

    def check_least(self, **least: int) -> None:
        """Refuse fields below these values.

        **Raises:** `ValueError` naming the value.
        """
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, but is {getattr(self, name)}")


def draw(config: FigureConfig) -> tuple[SparseRegression, DiagonalNetwork]:
    """The problem and the network before training, in float64."""
    key = jax.random.key(config.problem_seed)
    problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
    return problem, DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)


def step_size(config: FigureConfig, problem: SparseRegression, network: DiagonalNetwork, say: Say, **options: Any) -> float:
    """gamma: the config's, or the largest for which SGD and its flow converge; `options` as in `find_step_size`.

    **Raises:** `ValueError` if none converges.
    """
    if config.step_size != "auto":
        return float(config.step_size)
    say("step size: trying, from the largest down")
    gamma, _ = find_step_size(problem, network, **options)
    say(f"gamma = {gamma:.4g}, the largest at which all probes of SGD and its flow settle")
    return gamma


def add_runs(out: Columns, name: str, runs: Trajectory, *, time: str = "time", say: Say | None = None) -> None:
    """Series, final values and status of runs, as `name_...`; one run has no seed dimension."""
    lead = () if runs.status.ndim == 0 else ("seed",)
    units = runs.problem.units()["validation_error"]
    for quantity, unit in zip(QUANTITIES, ("target^2", "target^2 time", units), strict=True):
        out.add(f"{name}_{quantity}", (*lead, time), runs[quantity], unit)
        last = jnp.where(runs.diverged, jnp.nan, runs.final[quantity])
        out.add(f"{name}_final_{quantity}", lead, last, unit)
    out.add(f"{name}_status", lead, runs.status, "1")
    if say is not None:
        say(f"  {name}: " + ", ".join(f"{count} {word}" for word, count in runs.statuses().items()))


def dataset(out: Columns, study: str, config: FigureConfig, gamma: float, runs: Trajectory, keys: Array, **coords: Any) -> Any:
    """The dataset, on the time grid of `runs`, with provenance."""
    attrs = attributes({"study": study, **dataclasses.asdict(config)}, dtype=jnp.float64, keys=keys)
    times = {
        "time": ("time", np.asarray(runs.times), {"units": "flow time, gamma per SGD step"}),
        "step": ("time", np.asarray(runs.steps), {"units": "SGD steps"}),
        "seed": np.arange(config.seeds),
    }
    return out.dataset(times | coords, attrs | {"study": study, "step_size": repr(float(gamma))})


def settings(ds: Any) -> dict[str, Any]:
    """The config that a dataset was made with."""
    return json.loads(ds.attrs["config"])


def final(ds: Any, name: str, quantity: str = "validation_error") -> np.ndarray:
    """Final values; a seed that diverged has NaN."""
    return np.asarray(ds[f"{name}_final_{quantity}"].values, float)


def known(*samples: np.ndarray) -> tuple[np.ndarray, ...]:
    """Samples of the same seeds without those that any of them lost."""
    keep = np.all([np.isfinite(sample) for sample in samples], axis=0)
    return tuple(sample[keep] for sample in samples)


def middle(sample: np.ndarray) -> str:
    """Median and 99% interval in words; a lost seed counts as infinite."""
    sample = np.where(np.isfinite(sample), sample, np.inf)
    low, high = median_interval(sample)
    return f"{np.median(sample):.3g} (99% interval {low:.3g} to {high:.3g})"


def none_lost(ds: Any, names: dict[str, str]) -> Claim:
    """That at most 5% of the seeds of these runs diverge."""
    lost = {word: np.isin(ds[f"{name}_status"].values, (Status.NON_FINITE, Status.STALLED)) for name, word in names.items()}
    return judge(
        f"At gamma = {float(ds.attrs['step_size']):.3g} the iterates converge",
        f"{P21}, section 6: the largest step size for which they do",
        predicted="no seed diverges",
        measured="diverged: " + "; ".join(f"{word} {int(bad.sum())} of {bad.size}" for word, bad in lost.items()),
        tolerance="at most 5% of the seeds",
        holds=all(bad.mean() <= 0.05 for bad in lost.values()),
        reason="the step size is too large for this problem",
    )


def below(ds: Any, name: str, word: str, source: str, *, than: str = "gd", than_word: str = "gradient descent's") -> Claim:
    """That the median final error is below that of a single run."""
    sample, bound = final(ds, name), float(final(ds, than))
    _, high = median_interval(np.where(np.isfinite(sample), sample, np.inf))
    return judge(
        f"The final error of {word} is below {than_word} (median)",
        source,
        predicted=f"below {bound:.3g}",
        measured=f"{middle(sample)}; below for {np.mean(sample < bound):.1%} of {sample.size} seeds",
        tolerance="99% interval below",
        holds=high < bound,
        reason="noise did not lower the error here",
    )


def printed(statement: str, source: str, *, said: float, sample: np.ndarray, ours: str, factor: float = READING) -> Claim:
    """An informing claim on a ratio read off a plot of the paper: our median is within a factor of it."""
    value = float(np.median(sample[np.isfinite(sample)])) if np.isfinite(sample).any() else float("nan")
    return judge(
        statement,
        f"{source}; read off the plot, of another problem",
        predicted=f"about {said:.3g}",
        measured=f"{ours} {middle(sample)}, seeds from {np.nanmin(sample):.3g} to {np.nanmax(sample):.3g}",
        tolerance=f"a factor of {factor:g}",
        holds=value > 0 and abs(np.log(value / said)) < np.log(factor),
        must_hold=False,
        reason="not reproduced on this problem: the ratio depends on the problem and on gamma",
    )


def shift(ds: Any, first: str, second: str, reference: str) -> tuple[float, float, float]:
    """`|log median_first / median_second| / |log reference / median_second|` of the final errors, with its 99% bootstrap interval."""
    a, b = (sample[np.isfinite(sample)] for sample in (final(ds, first), final(ds, second)))
    top = float(final(ds, reference))

    def statistic(x: np.ndarray, y: np.ndarray) -> Any:
        one, other = np.log(np.median(x, axis=-1)), np.log(np.median(y, axis=-1))
        return np.abs(one - other) / np.abs(np.log(top) - other)

    return (float(statistic(a, b)), *bootstrap(statistic, a, b))


def alike(ds: Any, source: str, *, flow: str = "sgf", sgd: str = "sgd", gd: str = "gd") -> Claim:
    """That the flow's final errors are nearer to SGD's than gradient descent's is, in logarithms of medians."""
    statement = "The flow's final error is SGD's rather than gradient descent's"
    if min(np.isfinite(final(ds, name)).sum() for name in (flow, sgd)) < LEAST_SEEDS:
        return not_applicable(statement, source, "too few seeds are left")
    value, low, high = shift(ds, flow, sgd, gd)
    return judge(
        statement,
        source,
        predicted="medians agree as gamma falls; this is the largest gamma",
        measured=f"flow {middle(final(ds, flow))}, SGD {middle(final(ds, sgd))}, gradient descent {float(final(ds, gd)):.3g}: "
        f"{value:.2f} of the way to gradient descent, in logarithms (99% interval {low:.2f} to {high:.2f})",
        tolerance="interval below half of the way",
        holds=high < 0.5,
        reason="the flow is not close to SGD at this step size",
    )


NAMES = {"gd": ("gradient descent", COLOURS["gd"]), "sgd": ("SGD", COLOURS["sgd"]), "sgf": ("flow", COLOURS["sgf"])}


def curves(panel: Any, ds: Any, quantity: str, names: dict[str, tuple[str, str]], *, time: str = "time") -> None:
    """Medians with the middle 90% of the seeds, or one line for one run, against flow time; `names`: variable to label and colour."""
    for name, (label, colour) in names.items():
        column = ds[f"{name}_{quantity}"]
        if "seed" in column.dims:
            band(panel, ds[time].values, column.values, colour=colour, label=f"{label}, {ds.sizes['seed']} seeds")
        else:
            line(panel, ds[time].values, column.values, colour=colour, label=label)
