"""The measurements of the study: derivatives of many outcomes beside central
differences, and gradients of the limit.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

import sgfbias as sgf
from sgfbias import DiagonalNetwork, StochasticGradientFlow, hypergradient, land, select, simulate
from sgfbias.diagonal.setup import draw
from sgfbias.diagonal.studies.hyper_gradient import FIXED_STEPS, FIXED_TIME, Config
from sgfbias.gradients.hypergradient import as_hyper
from sgfbias.study import Columns, Log

# The widths of the central differences, relative to the largest of them.
LEVELS = (1.0, 0.5, 0.25)
# The largest width, relative to the largest entry of the hyperparameter, or to 0.1 if
# all entries are smaller.
STEP = 2.0**-11
Hyper = dict[str, Any]
# The case that has another function for forward mode, and the name of that function.
ADAPTIVE = "gradient flow, adaptive: int L"
FORWARD = f"{ADAPTIVE}, forward mode"
# A simulation that records the start and the end only.
_run = functools.partial(simulate, record=sgf.Record(times=2))


class Data(NamedTuple):
    """What is drawn: the problem and the network before training; a network with a
    hidden layer, with its inputs and targets. They are arguments of the outcomes, so
    that all draws share the compiled programs.
    """

    problem: Any
    network: Any
    model: Any
    inputs: Array
    targets: Array


class Case(NamedTuple):
    """An outcome to be differentiated: the function `outcome(hyper, key)`, its
    hyperparameters by name, and a version of the function for forward mode if that has
    to be another one.
    """

    outcome: Callable[[Hyper, Array], Any]
    hyper: Hyper
    forward: Callable[[Hyper, Array], Any] | None = None


def drawn(config: Config) -> Data:
    """The data of a config."""
    start_key = jax.random.key(config.root_seed + 1)
    model = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, dtype=jnp.float64, key=start_key)
    rng = np.random.default_rng(config.data_seed())
    inputs, targets = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    return Data(*draw(config), model, jnp.asarray(inputs), jnp.asarray(targets))


def cases(config: Config) -> dict[str, Case]:
    """The outcomes that are compared with central differences, by name. Together they
    have every dynamics, every choice of coordinates, every outcome and every kind of
    hyperparameter.
    """
    data = drawn(config)
    gamma, start = config.step_size, {"log alpha": np.asarray(data.network.log_alpha)}
    both, one = {**start, "step size": gamma}, {"step size": gamma}
    noises = {
        "batch size": 4.5,
        "delta": 0.1,
        "rate": 0.02,
        "sigma": 0.1,
        "targets": np.asarray(data.problem.y),
    }
    hyper: dict[str, Hyper] = {
        "flow, mirror: error": both,
        "flow, mirror: int L": {"step size, fixed time": gamma},
        "flow, log, schedule: effective log alpha": {"peak": gamma, "decay": 0.01},
        "flow, weights, three noises: error": noises,
        "SGD, momentum: error": {**one, "momentum": 0.5, "label noise": 0.1},
        FIXED_STEPS: one,
        FIXED_TIME: one,
        "flow of an MLP: loss": {"initial scale": 1.0, "inputs": np.asarray(data.inputs)},
        "flow, landed: error": both,
        ADAPTIVE: start,
        "program: error": start,
        "second derivative, flow: error": both,
    }
    functions = _outcomes(dataclasses.replace(config, root_seed=0, problem_seed=0))
    return {
        name: Case(
            Partial(functions[name], data),
            values,
            Partial(functions[FORWARD], data) if name == ADAPTIVE else None,
        )
        for name, values in hyper.items()
    }


@functools.cache
def _outcomes(config: Config) -> dict[str, Callable[[Data, Hyper, Array], Any]]:
    """The functions `outcome(data, hyper, key)` of the cases, by name, and the one for
    forward mode. There is one set of them for each config without its seeds, so that
    their compiled programs are found again.
    """
    gamma, steps = config.step_size, config.steps
    time = gamma * (steps - 0.3)

    def end(
        quantity: str, dynamics: Any, start: Any, problem: Any, key: Array, **options: Any
    ) -> Array:
        return _run(dynamics, start, problem, keys=key, steps=steps, **options).final[quantity]

    def descend(data: Data, step_size: Any, key: Array, **options: Any) -> Array:
        dynamics = sgf.StochasticGradientDescent(step_size, **options)
        return end("validation_error", dynamics, data.network, data.problem, key)

    def flow(data: Data, h: Hyper, key: Array) -> Any:
        return _flow(data.problem, h["log alpha"], h["step size"], steps, key)

    def flow_end(data: Data, h: Hyper, key: Array) -> Array:
        return flow(data, h, key).final["validation_error"]

    def flow_integral(data: Data, h: Hyper, key: Array) -> Array:
        dynamics = StochasticGradientFlow(h["step size, fixed time"], dt=gamma)
        return end("loss_integral", dynamics, data.network, data.problem, key)

    def scheduled(data: Data, h: Hyper, key: Array) -> Array:
        flow = StochasticGradientFlow(
            lambda k: h["peak"] * jnp.minimum(k, 8) / 8 / (1 + h["decay"] * k), sgf.PerSampleNoise()
        )
        return jnp.mean(end("log_alpha", flow, data.network, data.problem, key, coordinates="log"))

    def in_weights(data: Data, h: Hyper, key: Array) -> Array:
        label = sgf.LabelNoise(lambda k: h["delta"] * jnp.exp(-h["rate"] * k), mean_loss=False)
        flow = StochasticGradientFlow(
            gamma, sgf.MinibatchNoise(h["batch size"]) + label + sgf.IsotropicNoise(h["sigma"])
        )
        problem = sgf.SparseRegression(data.problem.X, h["targets"], data.problem.beta_star)
        return end("validation_error", flow, data.network, problem, key, coordinates="weights")

    def with_momentum(data: Data, h: Hyper, key: Array) -> Array:
        rate, kept, label = h["step size"], h["momentum"], h["label noise"]
        return descend(data, rate * (1 - kept), key, momentum=kept, label_noise=label)

    def fixed_steps(data: Data, h: Hyper, key: Array) -> Array:
        return descend(data, h["step size"], key)

    def fixed_time(data: Data, h: Hyper, key: Array) -> Array:
        return descend(data, sgf.UntilTime(h["step size"], t1=time, steps=steps), key)

    def of_a_model(data: Data, h: Hyper, key: Array) -> Array:
        start = jax.tree.map(
            lambda leaf: leaf * h["initial scale"] if eqx.is_inexact_array(leaf) else leaf,
            data.model,
        )
        dynamics = StochasticGradientFlow(gamma, sgf.MinibatchNoise(2))
        return end("loss", dynamics, start, sgf.Problem(h["inputs"], data.targets), key)

    def landed(data: Data, h: Hyper, key: Array) -> Array:
        error = land(flow(data, h, key)).validation_error
        assert error is not None  # the problem knows its truth
        return error

    def adaptive(data: Data, h: Hyper, key: Array, adjoint: Any = None) -> Array:
        start, dynamics = (
            DiagonalNetwork.init(log_alpha=h["log alpha"]),
            sgf.GradientFlow(rtol=1e-12, atol=1e-14),
        )
        runs = _run(dynamics, start, data.problem, t1=float(time), adjoint=adjoint)
        return runs.final["loss_integral"]

    def program(data: Data, h: Hyper, key: Array) -> Array:
        return data.problem.validation_error(select(data.problem, h["log alpha"]).beta)

    def curvature(data: Data, h: Hyper, key: Array) -> Array:
        tangent = {"log alpha": jnp.ones(config.d), "step size": jnp.ones(())}
        return jax.jvp(lambda g: flow_end(data, g, key), (h,), (tangent,))[1]

    return {
        "flow, mirror: error": flow_end,
        "flow, mirror: int L": flow_integral,
        "flow, log, schedule: effective log alpha": scheduled,
        "flow, weights, three noises: error": in_weights,
        "SGD, momentum: error": with_momentum,
        FIXED_STEPS: fixed_steps,
        FIXED_TIME: fixed_time,
        "flow of an MLP: loss": of_a_model,
        "flow, landed: error": landed,
        ADAPTIVE: adaptive,
        FORWARD: functools.partial(adaptive, adjoint=dfx.ForwardMode()),
        "program: error": program,
        "second derivative, flow: error": curvature,
    }


def _flow(problem: Any, log_alpha: Any, gamma: Any, steps: int, keys: Array) -> Any:
    """Runs of the mean-loss flow in its default coordinates."""
    return _run(
        StochasticGradientFlow(gamma),
        DiagonalNetwork.init(log_alpha=log_alpha),
        problem,
        keys=keys,
        steps=steps,
    )


def measure(config: Config, log: Log) -> Columns:
    """Measure the derivatives of every case in each of its hyperparameters and the
    central differences beside them, by seed, and the gradients of the limit.

    Every pair of a case and a hyperparameter is a row of the dataset.
    """
    keys, other = config.keys(0, config.seeds), config.keys(config.seeds, 2 * config.seeds)
    rows: dict[str, dict[str, Array]] = {}
    for name, case in cases(config).items():
        log(f"differentiating {name!r} in {', '.join(case.hyper)}")
        rows |= {
            f"{name} in {parameter}": row
            for parameter, row in _compare(case, keys, other, config.root_seed)
        }
    out = Columns(
        row=list(rows), seed=np.arange(config.seeds), steps=np.asarray(config.landing_steps)
    )
    for column in ("slope", "difference", "unpaired", "mode_gap", "share"):
        value = np.stack([np.asarray(row[column]) for row in rows.values()])
        units = "1" if column in ("mode_gap", "share") else "outcome"
        out.add(
            column,
            ("row", "level", "seed") if value.ndim == 3 else ("row", "seed")[: value.ndim],
            value,
            units,
        )
    _add_limits(out, config, keys, log)
    return out


def _compare(
    case: Case, keys: Array, other: Array, root: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield for every hyperparameter its name and, along a direction of signs drawn
    with the root seed `root`:

    - `slope` (seeds,): derivatives. `difference` (levels, seeds): central differences
      with common random numbers.
    - `unpaired`: the central difference of the means if `other` gives the random
      numbers of one side.
    - `mode_gap`: the largest relative gap between forward and reverse mode, over the
      whole gradient. `share`: the largest seed's share of the squared gradients.
    """
    hyper = as_hyper(case.hyper)
    with warnings.catch_warnings():
        # The shares that the warnings are about are stored and shown in a claim.
        warnings.simplefilter("ignore", UserWarning)
        report = hypergradient(case.outcome, hyper, keys=keys)
        forward = hypergradient(
            case.forward or case.outcome, hyper, keys=keys, mode="forward"
        ).gradients
    reverse = report.gradients
    rng = np.random.default_rng(root)
    directions = {
        name: jnp.asarray(rng.choice([-1.0, 1.0], np.shape(value))) for name, value in hyper.items()
    }
    widths = {
        name: STEP * jnp.maximum(jnp.max(jnp.abs(value)), 0.1) for name, value in hyper.items()
    }
    moves = [(name, sign * factor) for name in hyper for factor in LEVELS for sign in (1, -1)]
    points = [
        {**hyper, name: hyper[name] + factor * widths[name] * directions[name]}
        for name, factor in moves
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    paired, apart = (
        _values(case.outcome, stacked, key).reshape(len(hyper), len(LEVELS), 2, -1)
        for key in (keys, other)
    )
    for k, name in enumerate(hyper):
        slope = jnp.sum((reverse[name] * directions[name]).reshape(keys.shape[0], -1), axis=1)
        spans = 2 * widths[name] * jnp.asarray(LEVELS)
        difference = (paired[k, :, 0] - paired[k, :, 1]) / spans[:, None]
        unpaired = (jnp.mean(paired[k, 0, 0]) - jnp.mean(apart[k, 0, 1])) / spans[0]
        # The seeds without a finite derivative are counted in a claim.
        apart_by = jnp.nanmax(jnp.abs(forward[name] - reverse[name]))
        gap = apart_by / jnp.nanmax(jnp.abs(reverse[name]))
        yield (
            name,
            {
                "slope": slope,
                "difference": difference,
                "unpaired": unpaired,
                "mode_gap": gap,
                "share": report.share,
            },
        )


@eqx.filter_jit
def _values(outcome: Callable, hyper: Hyper, keys: Array) -> Array:
    """The outcome for every row of `hyper` and every key, (rows, seeds)."""
    return jax.vmap(jax.vmap(outcome, in_axes=(None, 0)), in_axes=(0, None))(hyper, keys)


@eqx.filter_jit
def _gradients(outcomes: Callable, problem: Any, start: Any, keys: Array, steps: int) -> Any:
    """The gradients in `start` of every one of the outcomes, seed by seed."""
    one = jax.jacrev(lambda hyper, key: outcomes(problem, hyper, key, steps))
    return jax.vmap(one, in_axes=(None, 0))(start, keys)


def _unrolled(problem: Any, hyper: Any, key: Array, steps: int) -> dict[str, Array]:
    """The error at the end of a run of many steps."""
    return {"limit": _flow(problem, *hyper, steps, key).final["validation_error"]}


def _landed(problem: Any, hyper: Any, key: Array, steps: int) -> dict[str, Array]:
    """The errors of an iterate and of its landed solution, with correction, without,
    and with the path held fixed.
    """
    runs = _flow(problem, *hyper, steps, key)
    shrunk = jax.lax.stop_gradient(runs.final["log_alpha"] - hyper[0])
    return {
        "unrolled": runs.final["validation_error"],
        "landed": land(runs).validation_error,
        "uncorrected": land(runs, correct=False).validation_error,
        "frozen": problem.validation_error(select(problem, hyper[0] + shrunk).beta),
    }


def _add_limits(out: Columns, config: Config, keys: Array, log: Log) -> None:
    """Add gradients of the validation error in (log alpha, gamma): that of the limit,
    from a run unrolled to convergence; that of the iterate at every landing time; and
    those of the landed solution with correction, without, and with the path's own
    dependence on the hyperparameters left out.
    """
    problem, network = draw(config)
    start = (network.log_alpha, jnp.asarray(config.step_size))

    def gradients(outcomes: Callable, steps: int) -> dict[str, np.ndarray]:
        slopes = _gradients(outcomes, problem, start, keys, steps)
        return {
            name: np.concatenate([alpha, gamma[:, None]], axis=1)
            for name, (alpha, gamma) in slopes.items()
        }

    log(f"limit: {config.limit_steps:,} steps are unrolled for {config.seeds} seeds")
    out.add(
        "limit_loss", ("seed",), _flow(problem, *start, config.limit_steps, keys).final["loss"], "1"
    )
    out.add(
        "limit_gradient",
        ("seed", "hyper"),
        gradients(_unrolled, config.limit_steps)["limit"],
        "outcome per direction",
    )
    rows = []
    for steps in config.landing_steps:
        log(f"limit: runs are landed after {steps:,} steps")
        rows.append(gradients(_landed, steps))
    for name in rows[0]:
        out.add(
            f"{name}_gradient",
            ("steps", "seed", "hyper"),
            np.stack([row[name] for row in rows]),
            "outcome per direction",
        )
