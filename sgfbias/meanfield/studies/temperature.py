"""Has the noise of SGD a temperature, and how hot is it at which share of the examples
and with how much memory?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import PersistentMask, Problem, SquaredLoss, StochasticGradientDescent
from sgfbias.meanfield import (
    LinearTeacher,
    MaskedDescent,
    effective_temperature,
    least_squares_temperature,
    marchenko_pastur,
    noise_report,
    solve,
)
from sgfbias.meanfield.system import Linear
from sgfbias.study import (
    Above,
    AtLeast,
    Between,
    Claim,
    Columns,
    Log,
    Positive,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, interval_bars, panels
from sgfbias.study.statistics import arrow, listed, mean_t

NAME = "meanfield-temperature"
PRECISION = "float64"
SECONDS = 90
REFERENCES = {
    "mignacco2022": "the effective temperature of SGD with masks",
    "marchenko1967": "the spectrum of random data",
}
MIGNACCO = source("mignacco2022")
FRACTIONS = (0.15, 0.3, 0.6, 0.9, 1.0)
TAUS = (0.25, 0.5, 1.0, 2.0)
# The settings: fractions with independent masks, then times tau at one fraction.
VANILLA, PERSISTENT = slice(0, len(FRACTIONS)), slice(len(FRACTIONS), None)
BASE = 0.3
LAGS = (1, 5, 20)
EARLY = 5
FIRST_RUN = 1000


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """SGD on least squares with noisy targets, at five shares of examples with
    independent masks, and with four memories at a share of 0.3.
    """

    alpha: Annotated[float, Above(1.0)] = 4.0
    """Number of examples per dimension."""
    step: Positive = 0.05
    """Step size for the sum of the losses over examples."""
    label_noise: Positive = 1.0
    """Standard deviation of the noise of the targets."""
    steps: Annotated[int, AtLeast(40)] = 140
    """Number of steps."""
    waiting: Annotated[int, AtLeast(20)] = 70
    """Number of steps before fluctuations and responses begin."""
    lags: Annotated[int, AtLeast(21)] = 40
    """Longest lag. Averages are over all beginnings that leave it."""
    samples: Annotated[int, AtLeast(100)] = 2000
    """Number of effective examples of the theory."""
    solves: Annotated[int, AtLeast(4)] = 6
    """Number of independent solutions of the theory."""
    d: Annotated[int, Between(20, 4000, closed=True)] = 400
    """Number of dimensions of the runs."""
    seeds: Annotated[int, AtLeast(4)] = 8
    """Number of data sets of the runs, each with two runs."""

    def check(self) -> None:
        if self.waiting > self.steps - self.lags:
            raise ValueError(
                f"waiting must leave lags = {self.lags} of {self.steps} steps, but is "
                f"{self.waiting}"
            )
        if abs(self.alpha * self.d - round(self.alpha * self.d)) > 1e-6:
            raise ValueError(
                f"alpha times d must be a whole number of examples, but is {self.alpha * self.d:g}"
            )
        if self.step * 1.01 / TAUS[0] > BASE:
            raise ValueError(
                f"step must be below {TAUS[0] * BASE:g}, so that masks have memory at the shortest "
                f"time, but is {self.step:g}"
            )


# After 40 steps the mean still moves, which adds some 15% to the drop.
QUICK = Config(steps=104, waiting=60, lags=24, samples=600, solves=6, d=200, seeds=8)
PAPER = Config(samples=4000, solves=12, d=800, seeds=16)


def masks(config: Config) -> list[tuple[float, float]]:
    """The share b and the persistence q of every setting."""
    independent = [(b, 1 / b) for b in FRACTIONS]
    return [*independent, *((BASE, tau / config.step) for tau in TAUS)]


def measure(config: Config, log: Log) -> Columns:
    """Drops and responses of the theory in every setting, and of runs at one."""
    settings = masks(config)
    lags = config.lags + 1
    out = Columns(
        setting=[f"b={b:g} q={q:.3g}" for b, q in settings],
        lag=("lag", np.arange(lags), {"units": "steps"}),
        solve=np.arange(config.solves),
        seed=np.arange(config.seeds),
    )
    data = LinearTeacher(config.alpha, label_noise=config.label_noise)
    found: dict[str, list[np.ndarray]] = {"drop": [], "response": [], "stationary": []}
    early, residuals = [], []
    for k, (b, q) in enumerate(settings):
        log(f"theory at b = {b:g}, persistence {q:.3g}")
        curves = solve(
            data,
            SquaredLoss(0.5),
            MaskedDescent(config.step, PersistentMask(b, persistence=q)),
            steps=config.steps,
            samples=config.samples,
            keys=config.keys(0, config.solves),
        )
        heat = effective_temperature(curves, config.waiting, lags=config.lags)
        found["drop"].append(np.asarray(heat.drop))
        found["response"].append(np.asarray(heat.response))
        found["stationary"].append(np.asarray(heat.stationary))
        residuals.append(2 * float(jnp.mean(curves.loss[:, config.waiting :])))
        if k == FRACTIONS.index(BASE):
            early.append(effective_temperature(curves, EARLY).stationary)
    dims = ("setting", "solve", "lag")
    out.add("drop", dims, np.stack(found["drop"]), "|dw|^2 / (2 d)")
    out.add("response", dims, np.stack(found["response"]), "w per unit force")
    out.add("stationary", ("setting",), np.stack(found["stationary"]), "1")
    out.add("early_stationary", (), np.asarray(early[0]), "1")
    closed = [
        least_squares_temperature(
            config.alpha, config.step, b, label_noise=config.label_noise, lags=lags - 1
        )
        for b in FRACTIONS
    ]
    out.axes["fraction"] = np.asarray(FRACTIONS)
    out.axes["tau"] = ("tau", np.asarray(TAUS), {"units": "step size times steps"})
    axes = ("fraction", "lag")
    out.add("closed_drop", axes, np.stack([c.drop for c in closed]), "|dw|^2 / (2 d)")
    out.add("closed_response", axes, np.stack([c.response for c in closed]), "w per unit force")
    out.add(
        "coloured",
        ("tau",),
        [
            coloured(config, tau, residual)
            for tau, residual in zip(TAUS, residuals[PERSISTENT], strict=True)
        ],
        "temperature",
    )
    log("runs")
    runs_lags, slopes = runs(config)
    out.axes["runs_lag"] = runs_lags
    out.add("runs", ("seed", "runs_lag"), slopes, "temperature")
    return out


def runs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The lags, and drop over response of runs at the base fraction, (seeds, lags), for
    the sum of the losses as in the theory.
    """
    data = LinearTeacher(config.alpha, label_noise=config.label_noise)
    found, lags = [], np.zeros(0)
    for key in config.keys(FIRST_RUN, FIRST_RUN + config.seeds):
        first, second = jax.random.split(key)
        sample = data.sample(first, config.d, jnp.float32)
        n = sample.inputs.shape[0]
        problem = Problem(sample.inputs, sample.targets, loss=SquaredLoss(0.5))
        sgd = StochasticGradientDescent(
            config.step * n, sampling=PersistentMask(BASE, persistence=1 / BASE)
        )
        report = noise_report(
            sgd,
            Linear(jnp.zeros(config.d, jnp.float32)),
            problem,
            keys=jax.random.split(second, 2),
            steps=config.waiting + config.lags,
            waiting=config.waiting,
            probes=1,
        )
        drop, response = (np.asarray(v).mean(axis=0)[1:] for v in (report.drop, report.response))
        # The report's force is one on the mean loss, n times weaker.
        found.append(n * drop / response)
        lags = np.asarray(report.lags)[1:]
    return lags, np.stack(found)


def coloured(config: Config, tau: float, residual: float) -> float:
    """The temperature that noise of this colour would have with a Hessian that does not
    change: every mode is an AR(1) process driven by AR(1) noise, whose size follows
    from the mean squared residual.
    """
    law = marchenko_pastur(config.alpha)
    x, weights = (np.asarray(v)[:-1] for v in (law.nodes, law.weights))
    rho, decay = 1 - config.step / (BASE * tau), 1 - config.step * x
    force = (1 - BASE) / BASE * residual * x
    spread = config.step**2 * force / (1 - decay**2) * (1 + decay * rho) / (1 - decay * rho)
    return float(weights @ spread / (weights @ (1 / x)))


def temperatures(ds: xr.Dataset, lag: int) -> np.ndarray:
    """Drop over response of the theory at a lag, (settings, solves)."""
    return ds["drop"].values[:, :, lag] / ds["response"].values[:, :, lag]


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """SGD with independent masks has the temperatures of the closed form, which fall
    with the lag; memory heats by less than coloured noise would.
    """
    base, last = FRACTIONS.index(BASE), ds.sizes["lag"] - 1
    lags = (*LAGS, last)
    closed = ds["closed_drop"].values / np.where(
        ds["closed_response"].values > 0, ds["closed_response"].values, 1
    )
    tests = len(lags) + len(FRACTIONS) - 2
    ladder = [mean_t(temperatures(ds, lag)[base], tests=tests) for lag in lags]
    long = [mean_t(row, tests=tests) for row in temperatures(ds, last)]
    # The theory has no chance for b = 1, where nothing fluctuates.
    shares = [k for k in range(len(FRACTIONS)) if k != base and FRACTIONS[k] < 1]
    runs = ds["runs"].values
    run_lags = ds["runs_lag"].values.astype(int)
    picked = sorted({0, len(run_lags) // 2, len(run_lags) - 1})
    own = [mean_t(runs[:, k], tests=len(picked)) for k in picked]
    expected = [closed[base, run_lags[k]] for k in picked]
    finite_size = 2 / config.d
    ratio = mean_t(temperatures(ds, 1)[base] / temperatures(ds, last)[base])
    predicted = closed[base, 1] / closed[base, last]
    means = [e.value for e in long]
    by_fraction, by_tau = means[VANILLA], [means[base], *means[PERSISTENT]]
    error = ds["coloured"].values / np.asarray(means[PERSISTENT]) - 1
    at_one = TAUS.index(1.0)
    return [
        claim(
            "At b = 0.3 the theory has the temperature of the closed form at four lags",
            MIGNACCO,
            predicted=f"{listed([closed[base, lag] for lag in lags], '.4f')} at lags "
            f"{listed(lags, '.0f')}",
            measured=listed([e.value for e in ladder], ".4f"),
            tolerance="joint intervals of 99%, "
            f"{listed([(e.high - e.low) / 2 / e.value for e in ladder], '.0%')} wide",
            holds=all(e.contains(closed[base, lag]) for e, lag in zip(ladder, lags, strict=True)),
            main=True,
        ),
        claim(
            "At other shares of examples it has it at the longest lag",
            MIGNACCO,
            predicted=listed([closed[k, last] for k in shares], ".4f"),
            measured=f"{listed([means[k] for k in shares], '.4f')} at b = "
            f"{listed([FRACTIONS[k] for k in shares])}",
            tolerance="joint intervals of 99%",
            holds=all(long[k].contains(closed[k, last]) for k in shares),
        ),
        claim(
            "Runs have the temperature of the closed form",
            MIGNACCO,
            predicted=f"{listed(expected, '.4f')} at lags {listed(run_lags[picked], '.0f')}",
            measured=f"{listed([e.value for e in own], '.4f')} at d = {config.d}",
            tolerance="joint intervals of 99%, and 2/d of the scale",
            holds=all(
                e.low - finite_size * p < p < e.high + finite_size * p
                for e, p in zip(own, expected, strict=True)
            ),
            main=True,
        ),
        claim(
            "The noise of SGD has no single temperature: it falls with the lag",
            MIGNACCO,
            predicted=f"a ratio of {predicted:.2f} of lag 1 and lag {last}, not 1",
            measured=f"{ratio:.2f}",
            tolerance="an interval that contains the prediction, and not 1",
            holds=ratio.contains(predicted) and ratio.low > 1,
            main=True,
        ),
        claim(
            "The temperature falls as the share of examples grows, to 0 for all of them",
            MIGNACCO,
            predicted="a decrease to 0",
            measured=f"{arrow(by_fraction)} at b = {listed(FRACTIONS)}",
            tolerance="every step down, and the last below 1% of the first",
            holds=np.all(np.diff(by_fraction) < 0) and abs(by_fraction[-1]) < 0.01 * by_fraction[0],
        ),
        claim(
            "At one share of examples the temperature rises with the memory of the masks",
            MIGNACCO,
            predicted="an increase",
            measured=f"{arrow(by_tau, '.2f')} at tau = {config.step / BASE:.2g} (none), "
            f"{listed(TAUS)}",
            tolerance="every step up",
            holds=np.all(np.diff(by_tau) > 0),
            main=True,
        ),
        control(
            "coloured noise on a Hessian that stays is too hot by more than 30% at tau = 1",
            MIGNACCO,
            predicted="too hot, as examples that stay out change the Hessian",
            measured=f"{listed(ds['coloured'].values)} in place of "
            f"{listed(means[PERSISTENT])}: {error[at_one]:.0%} at tau = 1",
            tolerance="above 30%",
            holds=error[at_one] > 0.3,
            main=True,
        ),
        control(
            "a state after five steps is said not to be stationary, and the later one is",
            MIGNACCO,
            predicted="not stationary after 5 steps",
            measured=f"{'' if ds['early_stationary'].item() else 'not '}stationary after {EARLY} "
            f"steps, {'' if ds['stationary'].values[base] else 'not '}stationary after "
            f"{config.waiting}",
            tolerance="temperatures of half windows that agree within 10%, and drifts below 10%, "
            "beyond Student's t at 99%",
            holds=not ds["early_stationary"].item() and bool(ds["stationary"].values[base]),
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw fluctuations against responses, which bend, and temperatures against the
    share of examples and against the memory.
    """
    figure, (left, middle, right) = panels(columns=3)
    base, last = FRACTIONS.index(BASE), ds.sizes["lag"] - 1
    drop, response = ds["drop"].values[base], ds["response"].values[base]
    left.plot(response.T, drop.T, color=COLOURS["sgf"], alpha=0.3)
    left.plot([], [], color=COLOURS["sgf"], label="theory")
    closed, chi = ds["closed_drop"].values[base], ds["closed_response"].values[base]
    left.plot(chi, closed, "--", color=COLOURS["gd"], label="closed form")
    slope = closed[1] / chi[1]
    left.plot(chi, slope * chi, ":", color=COLOURS["control"], label="temperature of lag 1")
    finish(
        left,
        title=f"Fluctuations against response, b = {BASE:g}",
        x="response to a force",
        y="half the mean squared distance",
        x_scale="linear",
        y_scale="linear",
    )
    long = temperatures(ds, last)
    known = np.asarray(FRACTIONS) < 1
    interval_bars(
        middle,
        np.asarray(FRACTIONS),
        [mean_t(row) for row in long[VANILLA]],
        colour=COLOURS["sgf"],
        label="theory",
    )
    exact = ds["closed_drop"].values[:, last] / ds["closed_response"].values[:, last]
    middle.plot(
        np.asarray(FRACTIONS)[known],
        exact[known],
        "--",
        color=COLOURS["gd"],
        label="closed form",
    )
    finish(
        middle,
        title="Temperature at long lags, independent masks",
        x="share of examples b",
        y="temperature",
        x_scale="linear",
        y_scale="linear",
    )
    rows = [long[base], *long[PERSISTENT]]
    interval_bars(
        right,
        np.asarray([config.step / BASE, *TAUS]),
        [mean_t(row) for row in rows],
        colour=COLOURS["sgf"],
        label="theory",
    )
    right.plot(TAUS, ds["coloured"].values, "--", color=COLOURS["control"], label="coloured noise")
    finish(
        right,
        title=f"Temperature at long lags, b = {BASE:g}",
        x="mean time out of the mask",
        y="temperature",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
