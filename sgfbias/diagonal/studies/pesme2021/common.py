"""The parts that the five figures share: the settings, the observables that are kept,
the claims that more than one of them makes, and the drawing of curves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

from sgfbias import (
    DiagonalNetwork,
    Record,
    SparseRegression,
    StochasticGradientDescent,
    Trajectory,
    simulate,
)
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.theory.effective import mean_loss_law, per_sample_law
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import (
    AtLeast,
    Claim,
    Columns,
    Count,
    Log,
    Positive,
    PositiveOrAuto,
    SeededConfig,
    claim,
    counted,
    few_lost,
    not_applicable,
    source,
)
from sgfbias.study.plotting import COLOURS, Axes, band, line
from sgfbias.study.statistics import Estimate, estimate, finite, median

P21 = source("pesme2021")
QUANTITIES = ("loss", "loss_integral", "validation_error")
LABELS = {
    "loss": "training loss",
    "loss_integral": "∫ L dt",
    "validation_error": "$|\\beta - \\beta^*|_2^2$",
}
TITLES = {
    "loss": "Training loss",
    "loss_integral": "Loss integral",
    "validation_error": "Validation error",
}
LEAST_SEEDS = 8
# Largest share of the seeds that may diverge.
LOST = 0.05
# A printed ratio was read off a logarithmic plot of another problem, so ours may
# differ from it by this factor.
READING = 4.0
# A claim that noise lowers the error is tested where the evolution laws, which hold to
# first order in gamma, predict a ratio of the errors of at least this, and a difference
# of the logarithms of at least so many standard errors of the median.
LEAST_RATIO, RESOLVED = 1.1, 4


@dataclasses.dataclass(frozen=True)
class FigureConfig(SeededConfig):
    """Settings of all figures. The problem has n = 40, d = 100, 5 non-zero
    coefficients, standard normal inputs and no noise in the targets; SGD has batches of
    1.
    """

    seeds: Annotated[int, AtLeast(LEAST_SEEDS)] = 64
    """Number of seeds of SGD and of each flow; the paper shows single runs."""
    alpha: Positive = 0.01
    """Scale alpha of the initialisation, w_+ = w_- = alpha."""
    steps: Annotated[int, AtLeast(4)] = 100_000
    """Number of iterations of GD and SGD, and of steps of the flow at dt = gamma."""
    step_size: PositiveOrAuto = "auto"
    """Step size gamma of GD, SGD and the flow; "auto" tries step sizes from the largest
    down and takes the first at which SGD and its flow converge.
    """
    n: Count = 40
    """Number of examples."""
    d: Count = 100
    """Number of features."""
    sparsity: Count = 5
    """Number of non-zero entries of the truth beta_star."""
    problem_seed: int = 0
    """Random seed from which the problem is drawn; the paper's problem is not
    published.
    """

    def check(self) -> None:
        self.check_choice()


def columns(config: FigureConfig, gamma: float, runs: Trajectory, **axes: Any) -> Columns:
    """Columns whose axes are the seeds and the time grid of `runs`, with the step size
    `gamma` among the attributes.
    """
    out = Columns(seed=np.arange(config.seeds), **axes)
    out.add_times(runs)
    out.attrs["step_size"] = repr(float(gamma))
    return out


def units_of(problem: SparseRegression) -> dict[str, str]:
    """Units of the observables that are kept, by name."""
    return dict(
        zip(
            QUANTITIES,
            ("target^2", "target^2 time", problem.units()["validation_error"]),
            strict=True,
        )
    )


def add_runs(
    out: Columns, name: str, runs: Trajectory, *, time: str = "time", log: Log | None = None
) -> None:
    """Add series, final values and status of `runs` as `name_...`."""
    out.add_runs(name, runs, units_of(runs.problem), time=time)
    if log is not None:
        log(f"  {name}: {counted(runs)}")


def final(ds: xr.Dataset, name: str, quantity: str = "validation_error") -> np.ndarray:
    """Final values of an observable; a diverged seed has NaN."""
    return np.asarray(ds[f"{name}_final_{quantity}"].values, float)


def none_lost(ds: xr.Dataset, names: dict[str, str]) -> Claim:
    """The claim that at most 5% of the seeds of these runs diverge."""
    row = few_lost(
        "At the step size gamma of this study the iterates converge",
        f"{P21}, section 6: the largest step size for which they do",
        {word: ds[f"{name}_status"] for name, word in names.items()},
        share=LOST,
        reason="the step size is too large for this problem",
    )
    gamma = float(ds.attrs["step_size"])
    return dataclasses.replace(row, predicted=f"{row.predicted} at gamma = {gamma:.3g}")


def add_laws(
    out: Columns,
    problem: SparseRegression,
    network: DiagonalNetwork,
    gamma: float,
    steps: int,
    *,
    flows: Mapping[str, float],
    label: float | None = None,
) -> None:
    """Add the errors `law_..._error` that the evolution laws predict before any noise
    is drawn: of the solutions selected by the alpha_inf that gradient descent's own
    path gives, to first order in gamma.

    **Arguments:**

    - `steps`: number of iterations of gradient descent.
    - `flows`: name of a flow with mean-loss noise -> its noise in units of gamma. SGD
      and gradient descent are always included, as "sgd" and "gd".
    - `label`: `int delta^2 dt` of the label noise of "label" (SGD) and "label_sgf" (the
      flow). Their laws leave out by how much label noise raises the loss.
    """
    whole = StochasticGradientDescent(
        gamma, problem.n, sampling="without_replacement", integral="examples"
    )
    key = jax.random.split(jax.random.key(0), 1)
    path = simulate(whole, network, problem, keys=key, steps=steps, record=Record(times=2))
    start, integrals = network.log_alpha, path.final["example_integral"]

    def of_flow(noise: float, more: float = 0.0) -> Array:
        return mean_loss_law(problem, start, gamma * noise, integrals.mean(axis=1) + more)

    laws = {
        "gd": path.final["log_alpha"],
        "sgd": per_sample_law(problem, start, gamma, integrals),
        **{name: of_flow(noise) for name, noise in flows.items()},
    }
    if label is not None:
        laws["label"] = per_sample_law(problem, start, gamma, integrals + label)
        laws["label_sgf"] = of_flow(1.0, label)
    for name, law in laws.items():
        error = problem.validation_error(select_many(problem, law).beta[0])
        out.add(f"law_{name}_error", (), error, units_of(problem)["validation_error"])


def predicted_ratio(ds: xr.Dataset, first: str, second: str) -> float:
    """The ratio of two errors that the evolution laws predict; see `add_laws`."""
    return float(ds[f"law_{first}_error"] / ds[f"law_{second}_error"])


def many_lost(ds: xr.Dataset, *names: str) -> str:
    """Why claims about the ends of the runs `names` cannot be tested: too many of them
    diverged. The text is empty if they can be tested.
    """
    for name in names:
        bad = np.isin(ds[f"{name}_status"].values, (Status.NON_FINITE, Status.STALLED))
        if np.mean(bad) > LOST or bad.size - bad.sum() < min(LEAST_SEEDS, bad.size):
            return f"{bad.sum()} of {bad.size} runs ({NAMES.get(name, (name,))[0]}) diverged"
    return ""


def no_effect(ds: xr.Dataset, name: str) -> str:
    """Why the claim that the runs `name` end below gradient descent cannot be tested.
    The text is empty if it can be tested.
    """
    lost = many_lost(ds, "gd", name)
    if lost:
        return lost
    ratio, logs = predicted_ratio(ds, "gd", name), np.log(finite(final(ds, name)))
    # The standard error of the median of a normal sample.
    error = (np.pi / 2) ** 0.5 * float(np.std(logs)) / len(logs) ** 0.5
    least = max(LEAST_RATIO, float(np.exp(RESOLVED * error)))
    if ratio >= least:
        return ""
    return (
        f"on this problem the evolution law predicts {ratio:.2f} for the ratio of gradient "
        f"descent's error to this error, and {least:.2f} is the least that these seeds resolve"
    )


def below(
    ds: xr.Dataset,
    name: str,
    word: str,
    where: str,
    *,
    than: str = "gd",
    than_word: str = "gradient descent's",
    unless: str = "",
    main: bool = False,
) -> Claim:
    """The claim that the median final error of the runs `name` is below the final error
    of the single run `than`.

    **Arguments:** `unless`: why the claim cannot be tested on this draw, as of
    `no_effect`. An empty text means that it can. `main`: as for `claim`.
    """
    statement = f"The median final error of {word} is below {than_word}"
    if unless:
        return not_applicable(statement, where, unless)
    sample, bound = final(ds, name), float(final(ds, than))
    middle = median(sample)
    return claim(
        statement,
        where,
        predicted=f"below {bound:.3g}",
        measured=f"median {middle:.3g}; below for {np.mean(sample < bound):.1%} of "
        f"{sample.size} seeds",
        tolerance="99% interval of the median below",
        holds=middle.high < bound,
        main=main,
        reason="noise did not lower the error here",
    )


def printed(
    statement: str,
    where: str,
    *,
    said: float,
    sample: np.ndarray,
    ours: str,
    factor: float | None = None,
) -> Claim:
    """A claim that only informs: our median is within a factor of the ratio `said` that
    was read off a plot of the paper.

    By default the factor is `READING`, but at most the square root of a ratio, so that
    the absence of an effect, a ratio of 1, does not pass.
    """
    where = f"{where}; read off the plot, which shows another problem"
    if np.isfinite(sample).sum() < LEAST_SEEDS:
        return not_applicable(
            statement, where, f"fewer than {LEAST_SEEDS} seeds converged", must_hold=False
        )
    if factor is None:
        effect = max(said, 1 / said)
        factor = min(READING, effect**0.5) if effect > 1.1 else READING
    value = float(np.median(finite(sample)))
    return claim(
        statement,
        where,
        predicted=f"about {said:.3g}",
        measured=f"{ours}: median {median(sample):.3g}, over the seeds "
        f"{np.nanmin(sample):.3g} to {np.nanmax(sample):.3g}",
        tolerance=f"median within a factor of {factor:.2g}, which a ratio of 1 is not"
        if abs(np.log(said)) > np.log(factor)
        else f"median within a factor of {factor:.2g}",
        holds=value > 0 and abs(np.log(value / said)) < np.log(factor),
        must_hold=False,
        reason="the printed ratio is not reproduced: it depends on the problem and on gamma",
    )


def shift(ds: xr.Dataset, first: str, second: str, reference: str) -> Estimate:
    """`|log(median_first / median_second)| / |log(reference / median_second)|` of the
    final errors: 0 if the medians of `first` and `second` agree, 1 if `first` is as far
    from `second` as `reference` is.
    """
    top = float(final(ds, reference))

    def statistic(x: np.ndarray, y: np.ndarray) -> Any:
        one, other = np.log(np.median(x, axis=-1)), np.log(np.median(y, axis=-1))
        return np.abs(one - other) / np.abs(np.log(top) - other)

    return estimate(statistic, *(finite(final(ds, name)) for name in (first, second)))


def alike(
    ds: xr.Dataset,
    where: str,
    *,
    flow: str = "sgf",
    sgd: str = "sgd",
    gd: str = "gd",
    main: bool = False,
) -> Claim:
    """The claim that the flow's median final error is closer to SGD's than gradient
    descent's is, in logarithms.

    If the dataset has the errors of `add_laws`, the claim is tested only where the laws
    of SGD and of the flow predict errors that differ by less than half of SGD's
    distance from gradient descent.
    """
    statement = "The flow's median final error is closer to SGD's than gradient descent's is"
    if min(np.isfinite(final(ds, name)).sum() for name in (flow, sgd)) < LEAST_SEEDS:
        return not_applicable(statement, where, f"fewer than {LEAST_SEEDS} seeds converged")
    laws = "below 1, as the laws of the flow and of SGD shrink alpha by similar amounts"
    if f"law_{flow}_error" in ds:
        apart, effect = (abs(np.log(predicted_ratio(ds, name, sgd))) for name in (flow, gd))
        laws = f"{apart / effect:.2f} by the evolution laws, to first order in gamma"
        if apart > effect / 2:
            return not_applicable(
                statement,
                where,
                f"the laws of the flow and of SGD predict {apart / effect:.2f} for the ratio of "
                "these distances, which is above 1/2",
            )
    part = shift(ds, flow, sgd, gd)
    return claim(
        statement,
        where,
        predicted=f"|log(flow / SGD)| over |log(gradient descent / SGD)| {laws}",
        measured=f"flow {median(final(ds, flow)):.3g}, SGD {median(final(ds, sgd)):.3g}, "
        f"gradient descent {float(final(ds, gd)):.3g}; ratio of the logarithms {part:.2f}",
        tolerance="99% interval of the ratio below 1",
        holds=part.high < 1,
        main=main,
        reason="the flow is not close to SGD at this step size",
    )


NAMES = {
    "gd": ("gradient descent", COLOURS["gd"]),
    "sgd": ("SGD", COLOURS["sgd"]),
    "sgf": ("flow", COLOURS["sgf"]),
}


def curves(
    panel: Axes,
    ds: xr.Dataset,
    quantity: str,
    names: dict[str, tuple[str, str]],
    *,
    time: str = "time",
) -> None:
    """Draw medians with the middle 90% of the seeds, or one line for a single run,
    against flow time.

    **Arguments:** `names`: name of the runs -> label and colour.
    """
    for name, (label, colour) in names.items():
        column = ds[f"{name}_{quantity}"]
        if "seed" in column.dims:
            band(
                panel,
                ds[time].values,
                column.values,
                colour=colour,
                label=f"{label}, {ds.sizes['seed']} seeds",
            )
        else:
            line(panel, ds[time].values, column.values, colour=colour, label=label)
