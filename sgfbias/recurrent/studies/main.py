"""Does a linear recurrent network hold beyond the length that it was trained on, or is
what lies beyond inherited from its start?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias import GradientDescent, GradientFlow, Record, Stacked, simulate
from sgfbias.recurrent import (
    LinearRNN,
    PopulationRisk,
    bad_interpolator,
    conserved,
    late_error,
    tail,
    two_lag_interpolator,
)
from sgfbias.study import (
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
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import arrow, listed, span

PRECISION = "float64"
SECONDS = 60
REFERENCES = {"cohenkarlik2022": "extrapolation of linear recurrent networks beyond their training"}
COHEN = source("cohenkarlik2022")
DERIVED = "derived here"
KINDS = ("symmetric", "gaussian")
SCALES = (0.1, 0.3, 0.6, 0.8, 1.0, 1.2)
# The scales of the runs to late times, and those at which the tail is inherited.
LATE_SCALES = (0.1, 0.6)
LAW = 0.1
LOW, SHOWN, HIGH = 0.3, 0.6, 0.8
PERTURBATIONS = (0.01, 0.1)
CYCLE, GROWTH = 8, 1.1  # the states and the factor of the cyclic shift
STEP, LATE_STEP = 0.1, 0.25  # flow times of Heun's steps
EXACT, DESCENT_STEP = 20.0, 0.1  # the flow time of the check of the conserved matrix
BELOW = 15.0  # the flow time of the run to a negative teacher
COMPARED = 1e4  # the flow time at which the two kinds of starts are compared


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Gradient flow on the population risk of sequences of one length, from symmetric
    and from Gaussian starts of six scales.
    """

    seeds: Annotated[int, AtLeast(4)] = 20
    """Number of starts of each kind and scale."""
    state: Annotated[int, Between(4, 64, closed=True)] = 20
    """Number of states of the network."""
    length: Annotated[int, Between(3, 8, closed=True)] = 5
    """Length of the sequences of training."""
    teacher: Positive = 1.0
    """Output of the teacher per unit of the last input; it has no memory."""
    gain: Positive = 0.5
    """Norm of the input weights at the start, for many states."""
    lags: Annotated[int, AtLeast(20)] = 50
    """Number of lags over which the error is measured."""
    time: Annotated[float, AtLeast(50.0)] = 200.0
    """Flow time of training, a multiple of 0.1."""
    late_seeds: Annotated[int, AtLeast(2)] = 3
    """Number of symmetric starts that are followed to late times."""
    late_time: Annotated[float, AtLeast(1e4)] = 1e5
    """Flow time of those runs."""

    def check(self) -> None:
        if self.late_seeds > self.seeds:
            raise ValueError(
                f"late_seeds must be at most seeds = {self.seeds}, but is {self.late_seeds}"
            )


QUICK = Config(seeds=6, state=12, late_seeds=2, late_time=1e4)


def stacked(kind: str, scales: Any, keys: Any, config: Config) -> Stacked:
    """Starts of one kind, all seeds of the first scale first."""
    make = getattr(LinearRNN, kind)

    def one(key: Any, scale: float) -> Any:
        return make(key, state=config.state, scale=scale, gain=config.gain)

    parts = [jax.vmap(lambda key, scale=scale: one(key, scale))(keys) for scale in scales]
    return Stacked(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))


def response(network: LinearRNN) -> Any:
    """The first three lags of a network with one input and one output."""
    return network.impulse_response(3)[:, 0, 0]


def trained(starts: Any, risk: PopulationRisk, time: float) -> Any:
    """Runs of the gradient flow in Heun's steps."""
    return simulate(
        GradientFlow(dt=STEP),
        starts,
        risk,
        steps=round(time / STEP),
        solver=dfx.Heun(),
        record=Record(observables=(), times=20),
        # All starts run together, so their digits need not be those of fewer.
    )


def measure(config: Config, log: Log) -> Columns:
    """The tails of trained networks, late errors, the conserved matrix, and what
    becomes of networks that fit the data but do not extrapolate.
    """
    k, w, lags = config.length, config.teacher, config.lags
    risk, keys = PopulationRisk(w, k), config.keys(0, config.seeds)
    shape = (len(SCALES), config.seeds)
    out = Columns(
        kind=list(KINDS),
        scale=np.asarray(SCALES),
        seed=np.arange(config.seeds),
        lag=np.arange(lags),
        size=np.asarray(PERTURBATIONS),
        late_scale=np.asarray(LATE_SCALES),
    )
    beyond = jax.jit(jax.vmap(lambda n: tail(n, w, k, lags)))
    found: dict[str, list[Any]] = {"tail": [], "start_tail": [], "loss": [], "response": []}
    for kind in KINDS:
        log(f"{kind} starts")
        runs = trained(stacked(kind, SCALES, keys, config), risk, config.time)
        found["tail"].append(np.sqrt(beyond(runs.networks)).reshape(shape))
        found["start_tail"].append(np.sqrt(beyond(runs.network)).reshape(shape))
        found["loss"].append(np.asarray(runs.final["loss"]).reshape(shape))
        at = SCALES.index(SHOWN) * config.seeds
        shown = jax.tree.map(lambda leaf, at=at: leaf[at], runs.networks)
        found["response"].append(np.asarray(shown.impulse_response(lags))[:, 0, 0])
    for name in ("tail", "start_tail", "loss"):
        units = "loss" if name == "loss" else "response"
        out.add(name, ("kind", "scale", "seed"), np.stack(found[name]), units)
    out.add("response", ("kind", "lag"), np.stack(found["response"]), "response")
    late(out, risk, config, log)
    invariants(out, risk, config, log)
    interpolators(out, risk, config, log)
    return out


def late(out: Columns, risk: PopulationRisk, config: Config, log: Log) -> None:
    """Follow symmetric starts to late times."""
    log("late times")
    keys = config.keys(0, config.late_seeds)
    starts = stacked("symmetric", LATE_SCALES, keys, config)
    steps = round(config.late_time / LATE_STEP)
    end = steps * LATE_STEP
    times = np.unique(np.round(np.append(np.geomspace(end / 10, end, 6), COMPARED) / LATE_STEP))
    functions = {
        "h": response,
        "tail": lambda n: jnp.sqrt(tail(n, config.teacher, config.length, config.lags)),
    }
    runs = simulate(
        GradientFlow(dt=LATE_STEP),
        starts,
        risk,
        steps=steps,
        solver=dfx.Heun(),
        record=Record(functions, times * LATE_STEP),
    )
    shape = (len(LATE_SCALES), config.late_seeds, len(times))
    dims = ("late_scale", "late_seed", "late_time")
    out.add("late_time", ("late_time",), np.asarray(runs.times), "flow time")
    out.add("late_error", dims, np.asarray(runs["h"])[..., 2].reshape(shape), "response")
    out.add("late_tail", dims, np.asarray(runs["tail"]).reshape(shape), "response")
    # A symmetric network cannot reach a negative teacher.
    negative = trained(starts, PopulationRisk(-config.teacher, config.length), BELOW)
    negative_loss = np.asarray(negative.final["loss"]).reshape(shape[:2])
    out.add("negative_loss", ("late_scale", "late_seed"), negative_loss, "loss")


def invariants(out: Columns, risk: PopulationRisk, config: Config, log: Log) -> None:
    """The conserved matrix and the norm of the transition along accurate runs."""
    log("conserved matrix")
    starts = stacked("gaussian", (SHOWN,), config.keys(0, 2), config)
    record = Record(
        {"Q": conserved, "norm": lambda n: jnp.sum(jnp.square(n.A))}, np.linspace(0, EXACT, 9)
    )
    flow = simulate(GradientFlow(), starts, risk, t1=EXACT, solver=dfx.Tsit5(), record=record)
    steps = round(EXACT / DESCENT_STEP)
    descent = simulate(GradientDescent(DESCENT_STEP), starts, risk, steps=steps, record=record)
    for name, runs in (("drift", flow), ("descent_drift", descent)):
        Q = np.asarray(runs["Q"])
        out.add(name, ("start",), np.abs(Q - Q[:, :1]).max(axis=(1, 2, 3)), "parameter^2")
    out.add("transition_norm", ("start", "time"), np.asarray(flow["norm"]), "1")
    out.add("time", ("time",), np.asarray(flow.times), "flow time")


def interpolators(out: Columns, risk: PopulationRisk, config: Config, log: Log) -> None:
    """Networks of zero risk that do not extrapolate, as they are and trained from
    nearby.
    """
    log("interpolators")
    bad = bad_interpolator(
        config.length, state=CYCLE, scale=GROWTH, gain=float(np.sqrt(config.teacher))
    )
    gradient = jax.grad(risk.risk)(bad)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient))
    out.add("bad_gradient", (), largest, "1")
    cyclic = np.asarray(bad.impulse_response(config.lags))[:, 0, 0]
    out.add("bad_response", ("lag",), cyclic, "response")
    keys = config.keys(0, config.late_seeds)

    def moved(key: Any, size: float) -> LinearRNN:
        leaves, structure = jax.tree.flatten(bad)
        own = jax.random.split(key, len(leaves))
        noisy = [
            leaf + size * jax.random.normal(one, leaf.shape)
            for leaf, one in zip(leaves, own, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    near = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(moved(key, size) for key in keys))
        for size in PERTURBATIONS
    ]
    runs = trained(Stacked(jax.tree.map(lambda *a: jnp.concatenate(a), *near)), risk, config.time)
    lag = eqx.filter_vmap(lambda n: n.impulse_response(CYCLE + 1)[CYCLE, 0, 0])(runs.networks)
    shape = (len(PERTURBATIONS), config.late_seeds)
    out.add("near_error", ("size", "late_seed"), np.asarray(lag).reshape(shape), "response")
    loss = np.asarray(runs.final["loss"]).reshape(shape)
    out.add("near_loss", ("size", "late_seed"), loss, "loss")
    short = two_lag_interpolator(config.teacher)
    out.add("short_loss", (), float(PopulationRisk(config.teacher, 2).risk(short)), "loss")
    out.add("short_error", (), float(response(short)[2]), "response")


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Symmetric starts extrapolate, at an algebraic rate; Gaussian starts keep what
    they began with; and there are networks that fit the data and never extrapolate.
    """
    w, values = config.teacher, {name: ds[name].values for name in ds.variables}
    gaussian = values["tail"][KINDS.index("gaussian")]
    at = {scale: SCALES.index(scale) for scale in (LOW, SHOWN, HIGH)}
    median = np.median(gaussian, axis=1)
    middle = np.median(gaussian / values["start_tail"][KINDS.index("gaussian")], axis=1)
    middle = middle[at[LOW] : at[HIGH] + 1]
    time = values["late_time"]
    # From the first of these times on, 1/e_2 grows at the rate 2 w, whatever e_2 was.
    first = int(np.argmin(np.abs(time - time[-1] / 10)))
    small = values["late_error"][LATE_SCALES.index(LAW)]
    began = small[:, first]
    wanted_error = 1 / (1 / began + 1 / late_error(w, time[-1] - time[first]))
    ratio = small[:, -1] / np.asarray(wanted_error)
    slopes = np.log(small[:, -1] / began) / np.log(time[-1] / time[first])
    # At a finite time 1/e_2(0), which is about 200 times 2 w at scale 0.1, makes the
    # slope less steep: by at most 0.024 from t = 1e4 on in 3,000 draws of 20 states,
    # and by 0.05 of 12. At earlier times, as at the quick size, it does so by 0.1.
    is_late = config.state >= 20 and time[first] > 0.99e4
    steep, flat = (-1.03, -0.97) if is_late else (-1.05, -0.7)
    compared = int(np.argmin(np.abs(time - COMPARED)))
    slow = np.median(values["late_tail"][LATE_SCALES.index(SHOWN)][:, compared])
    wanted = w * GROWTH**CYCLE
    bad_error, gradient = float(values["bad_response"][CYCLE]), float(values["bad_gradient"])
    fast = values["loss"][KINDS.index("gaussian"), at[HIGH]]
    algebraic = values["loss"][KINDS.index("symmetric"), at[HIGH]]
    growth = np.diff(values["transition_norm"], axis=1)
    slack = 1e-8 * values["transition_norm"][:, :1]
    short_error, short_loss = float(values["short_error"]), float(values["short_loss"])
    return [
        claim(
            "A cyclic shift fits all sequences of training exactly and does not extrapolate",
            COHEN,
            predicted=f"zero gradient, and the error w c^{CYCLE} = {wanted:.6f} at lag {CYCLE}",
            measured=f"largest gradient {gradient:.1e}, error {bad_error:.6f}",
            tolerance="1e-12",
            holds=gradient < 1e-12 and abs(bad_error - wanted) < 1e-12 * wanted,
        ),
        claim(
            "Training from near the cyclic shift does not repair it",
            COHEN,
            predicted=f"zero loss with an error of order w at lag {CYCLE}",
            measured=f"losses {span(values['near_loss'])}; errors {span(values['near_error'])}",
            tolerance=f"a loss below 1e-20 and an error above w = {w:g} in every run",
            holds=np.all(values["near_loss"] < 1e-20) and np.all(values["near_error"] > w),
            main=True,
        ),
        claim(
            "The flow conserves A A^T - A^T A + B B^T - C^T C",
            DERIVED,
            predicted="no drift",
            measured=f"largest drifts of an entry {span(values['drift'])}",
            tolerance="1e-8, the relative tolerance of the solver",
            holds=np.all(values["drift"] < 1e-8),
        ),
        claim(
            "The norm of the transition never grows",
            DERIVED,
            predicted="d|A|^2/dt = -2 sum_j j h_j^2 is never positive",
            measured=f"largest change between two times {growth.max():.1e}",
            tolerance="1e-8 of its size, the tolerance of the solver",
            holds=np.all(growth <= slack),
        ),
        claim(
            "From a symmetric start the error at lag 2 falls as 1/(2 w t), so slowly",
            DERIVED,
            predicted="over the last tenfold time, 1/e grows by 2 w t",
            measured=f"error at t = {time[-1]:g} over the predicted one {span(ratio, '.3f')}; "
            f"slopes {span(slopes, '.3f')}; scale {LAW:g}",
            tolerance="ratios within 0.05 of 1, as the corrections are of order |A|^2, and slopes "
            f"above {steep:g} and below {flat:g}",
            holds=np.all(np.abs(ratio - 1) < 0.05) and np.all((slopes > steep) & (slopes < flat)),
            main=True,
        ),
        claim(
            "From a Gaussian start what lies beyond the length of training is inherited",
            COHEN,
            predicted="an error that grows with the scale of the transition at the start",
            measured=f"medians over starts {arrow(median)} at scales {listed(SCALES)}",
            tolerance=f"at scale {HIGH:g} at least 30 times that at {LOW:g}",
            holds=median[at[HIGH]] >= 30 * median[at[LOW]],
            main=True,
        ),
        claim(
            "Training from a Gaussian start makes the error beyond its length larger",
            "measured here",
            predicted="more than at the start",
            measured=f"medians of the ratio {arrow(middle, '.2g')} at scales {LOW:g} to {HIGH:g}",
            tolerance="above 1 at each of these scales",
            holds=np.all(middle > 1),
        ),
        claim(
            "From a symmetric start training extrapolates",
            COHEN,
            predicted="an error that falls with time, where that of a Gaussian start rests",
            measured=f"median {slow:.2g} at scale {SHOWN:g} and t = {time[compared]:g}, against "
            f"{median[at[SHOWN]]:.2g}",
            tolerance="at least 1,000 times below that of a Gaussian start",
            holds=slow * 1000 <= median[at[SHOWN]],
            main=True,
        ),
        control(
            "at length 2 a symmetric network of zero risk does not extrapolate",
            COHEN,
            predicted=f"an error of w = {w:g} at lag 2, as a length of 2 m + 1 = 3 is needed",
            measured=f"error {short_error:.6g} at loss {short_loss:.1e}",
            tolerance="an error within 1e-12 of w at a loss below 1e-28 w^2",
            holds=abs(short_error - w) < 1e-12 * w and short_loss < 1e-28 * w**2,
        ),
        control(
            "a symmetric network does not reach a negative teacher",
            DERIVED,
            predicted=f"a loss of w^2/2 = {w**2 / 2:g} or more, as h_0 = |B|^2",
            measured=f"losses {span(values['negative_loss'], '.6g')} at t = {BELOW:g}",
            tolerance="at least 0.999 of it",
            holds=np.all(values["negative_loss"] > 0.999 * w**2 / 2),
        ),
        control(
            "the loss of a Gaussian start does not follow the slow law",
            "measured here",
            predicted="an exponential fall, far below that of a symmetric start",
            measured=f"median loss {np.median(fast):.1e} at scale {HIGH:g}; symmetric "
            f"{algebraic.min():.1e} or more",
            tolerance="below 1e-20 in the median of Gaussian starts, above 1e-9 for every "
            "symmetric start",
            holds=np.median(fast) < 1e-20 and np.all(algebraic > 1e-9),
            main=True,
        ),
        control(
            "gradient descent does not conserve the matrix",
            DERIVED,
            predicted=f"a drift in proportion to the step size {DESCENT_STEP:g}",
            measured=f"drifts {span(values['descent_drift'])}",
            tolerance="above 1e-4 in every run",
            holds=np.all(values["descent_drift"] > 1e-4),
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw the impulse responses past the length of training, and the tail against the
    scale of the start.
    """
    figure, (left, right) = panels(columns=2)
    lag = ds["lag"].values
    colours = {"symmetric": COLOURS["sgf"], "gaussian": COLOURS["gd"]}
    names = {"symmetric": "symmetric start", "gaussian": "Gaussian start"}
    shown = {names[kind]: (ds["response"].values[n], kind) for n, kind in enumerate(KINDS)}
    for label, (values, kind) in shown.items():
        left.plot(lag, np.abs(values), "o-", ms=3, color=colours[kind], label=label)
    cyclic = np.abs(ds["bad_response"].values)
    left.plot(lag[cyclic > 0], cyclic[cyclic > 0], "s", color="black", label="cyclic shift")
    left.axvline(config.length - 0.5, color="grey", linestyle="--", label="length of training")
    finish(left, title="Impulse responses after training", x="lag", y="|h|", x_scale="linear")
    for n, kind in enumerate(KINDS):
        rows = ds["tail"].values[n]
        right.plot(SCALES, rows, "o", ms=3, color=colours[kind], alpha=0.4)
        right.plot(SCALES, np.median(rows, axis=1), color=colours[kind], label=names[kind])
    finish(
        right,
        title=f"Error beyond the length {config.length}, at t = {config.time:g}",
        x="scale of the start",
        y="root of the tail energy",
        x_scale="linear",
    )
    return figure
