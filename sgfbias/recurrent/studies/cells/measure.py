"""Train cells and linear networks at one length and at mixed lengths, and measure their
loss at other lengths.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias import (
    Problem,
    Record,
    Stacked,
    simulate,
)
from sgfbias.recurrent import (
    LinearRNN,
    Masked,
    MixedLengths,
    Sequences,
    TailPenalty,
    Unroll,
    memory,
    read_sequences,
    tail,
)
from sgfbias.recurrent.studies.cells import (
    ARMS,
    BATCH,
    EXAMPLES,
    FACTORS,
    LEAST,
    LEVEL,
    LINEAR,
    LINEAR_EXAMPLES,
    LINEAR_RATE,
    LINEAR_STARTS,
    OWN,
    RADII,
    Config,
)
from sgfbias.recurrent.studies.cells.scales import scaled_cells
from sgfbias.recurrent.studies.cells.tasks import TASKS, Lagged, Task, echo, examples
from sgfbias.recurrent.studies.cells.training import MSE, PROBES, adam, curve_of, unstacked
from sgfbias.study import Columns, Log

STARTS = 2 * 10**6  # the first key of those that the starts of cells are drawn from


@functools.cache
def maker(cell: str, inputs: int, outputs: int, hidden: int) -> Callable[[Array], Unroll]:
    """A function of a key that draws a network with a cell and a linear read-out."""
    build = _cell(cell)

    def make(key: Array) -> Unroll:
        first, second = jax.random.split(key)
        made = build(inputs, hidden, first)
        pair = (jnp.zeros(hidden), jnp.zeros(hidden)) if cell == "lstm" else None
        unknown = getattr(made, "hidden_size", None) is None
        initial = jnp.zeros(hidden) if unknown else pair
        return Unroll(Masked(made), eqx.nn.Linear(hidden, outputs, key=second), initial=initial)

    return make


def _cell(name: str) -> Callable[[int, int, Array], Any]:
    """The function that makes a cell of a name.

    **Raises:** `ValueError` for a name that stands for no function.
    """
    known = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}
    if name in known:
        return lambda inputs, hidden, key: known[name](inputs, hidden, key=key)
    module, _, function = name.partition(":")
    # The command `sgfbias` does not look into the working directory by itself.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module of the user raises
        raise ValueError(
            f"cell must be gru, lstm, or MODULE:FUNCTION, but is {name!r}: {error}"
        ) from error


def tasks_of(config: Config) -> tuple[dict[str, Task], Any, tuple[int, ...]]:
    """The tasks, the task of the linear networks, and the lengths of the tests."""
    if config.data is None:
        return dict(TASKS), echo, tuple(f * config.length for f in FACTORS)
    whole = read_sequences(config.data)
    fit, held = whole.split(seed=config.root_seed)
    centre, scale = (np.asarray(f(fit.inputs, axis=(0, 1))) for f in (jnp.mean, jnp.std))
    scale = np.where(scale > 0, scale, 1.0)
    wanted, axes = fit.targets, tuple(range(fit.targets.ndim - 1))
    middle, spread = (np.asarray(f(wanted, axis=axes)) for f in (jnp.mean, jnp.std))
    spread = np.where(spread > 0, spread, 1.0)
    parts = [
        Sequences((part.inputs - centre) / scale, (part.targets - middle) / spread)
        for part in (fit, held)
    ]
    longest = min(part.longest for part in parts)
    if longest < config.length:
        raise ValueError(
            f"{config.data} has only {longest} steps on one side, fewer than length = "
            f"{config.length}: give longer sequences, or a smaller length"
        )
    lengths = tuple(f * config.length for f in FACTORS if f * config.length <= longest)
    variance = float(np.mean(np.var(np.asarray(parts[1].targets), axis=axes)))
    # What is fitted and what is tested are different sequences.
    own = Task(_masked(parts[0].task), None, variance, _masked(parts[1].task))
    return {OWN: own}, (parts[0].task, parts[1].task), lengths


def _masked(task: Any) -> Any:
    """A task whose sequences have a last channel of ones."""

    def draw(key: Array, length: int) -> tuple[Array, Array]:
        x, y = task(key, length)
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1), y

    return draw


def measure(config: Config, log: Log) -> Columns:
    """The loss of every network at every length, over the variance of the target."""
    tasks, linear, lengths = tasks_of(config)
    out = Columns(
        task=list(tasks),
        arm=list(ARMS),
        linear=list(LINEAR),
        radius=np.asarray(RADII),
        seed=np.arange(config.seeds),
        length=np.asarray(lengths),
    )
    keys = config.keys(0, config.seeds)
    fit, held = config.keys(1000, 1000 + EXAMPLES), config.keys(10**6, 10**6 + config.tests)
    shape = (len(tasks), len(ARMS), config.seeds)
    loss, horizon = np.full((*shape, len(lengths)), np.nan), np.full(shape, np.nan)
    steps = lengths[-1]
    gain = np.full((len(tasks), len(ARMS), steps), np.nan)
    for t, (name, task) in enumerate(tasks.items()):
        x, y = examples(task.draw, fit, config.length)
        probes = examples(task.tested, held[:PROBES], steps)[0]
        for a, rule in enumerate((None, MixedLengths(LEAST, keep=task.keep))):
            log(f"{name}, {ARMS[a]}")
            nets = trained(config, x, y, rule, keys)
            for s, net in enumerate(nets):
                curve = curve_of(net, task.tested, lengths, held)
                loss[t, a, s] = curve.loss / task.variance
                horizon[t, a, s] = curve.horizon(level=LEVEL * task.variance)
            gain[t, a] = memory(nets[0], probes).log_gain
    out.add("loss", ("task", "arm", "seed", "length"), loss, "variance of the target")
    out.add("horizon", ("task", "arm", "seed"), horizon, "steps")
    out.add("gain", ("task", "arm", "lag"), gain, "log of the gain")
    out.axes["lag"] = np.arange(steps)
    if config.data is None:
        log("a lag beyond the length of training")
        lagged = Lagged(config.length + config.length // 2)
        x, y = examples(lagged, fit, config.length)
        curves = [
            curve_of(net, lagged, (config.length, 2 * config.length), held)
            for net in trained(config, x, y, None, keys)
        ]
        found = np.asarray([curve.loss[-1] for curve in curves]) / TASKS["copy"].variance
        out.add("lagged_loss", ("seed",), found, "variance of the target")
        scaled_cells(out, lengths, config, log)
    linear_networks(out, linear, config, lengths, log)
    return out


def trained(config: Config, x: Array, y: Array, rule: Any, keys: Array) -> list[Unroll]:
    """The networks of all seeds after training."""
    make = maker(config.cell, x.shape[2] - 1, y.shape[1], config.hidden)
    own = config.keys(STARTS, STARTS + config.seeds)
    runs = simulate(
        adam(config.rate, BATCH),
        # Made one by one: every draw of `Drawn` would be compiled twice.
        Stacked([make(key) for key in own]),
        Problem(x, y, loss=MSE, perturb=rule),
        keys=keys,
        steps=config.steps,
        record=Record(observables=(), times=2),
    )
    return unstacked(runs.networks, len(keys))


def linear_networks(
    out: Columns, task: Any, config: Config, lengths: tuple[int, ...], log: Log
) -> None:
    """Linear networks from Gaussian starts of several spectral radii."""
    draw, test = task if isinstance(task, tuple) else (task, task)
    x, y = examples(draw, config.keys(1000, 1000 + LINEAR_EXAMPLES), config.length)
    held = config.keys(10**6, 10**6 + config.tests)
    count, starts = LINEAR_STARTS * config.seeds, []
    for radius in RADII:
        for key in config.keys(0, count):
            net = LinearRNN.gaussian(
                key,
                state=config.hidden,
                scale=1.0,
                gain=0.5,
                inputs=x.shape[2],
                outputs=y.shape[1],
            )
            now = np.abs(np.linalg.eigvals(np.asarray(net.A))).max()
            starts.append(LinearRNN(net.A * (radius / now), net.B, net.C))
    forgets = TailPenalty(np.zeros((1, y.shape[1], x.shape[2]), np.float32), config.length)
    options = {
        LINEAR[0]: {},
        LINEAR[1]: {"perturb": MixedLengths(LEAST)},
        LINEAR[2]: {"penalty": forgets},
    }
    out.axes["linear_start"] = np.arange(count)
    shape = (len(LINEAR), len(RADII), count)
    loss, predicted = np.full((*shape, len(lengths)), np.nan), np.full(shape, np.nan)
    for a, name in enumerate(LINEAR):
        log(f"linear networks, {name}")
        problem = Problem(x, y, loss=MSE, **options[name])
        runs = simulate(
            adam(LINEAR_RATE, None),
            Stacked(starts),
            problem,
            keys=config.keys(0, len(starts)) if name == LINEAR[1] else None,
            steps=config.steps,
            record=Record(observables=(), times=2),
        )
        for n, net in enumerate(unstacked(runs.networks, len(starts))):
            r, s = divmod(n, count)
            loss[a, r, s] = curve_of(net, test, lengths, held).loss
            if config.data is None:
                predicted[a, r, s] = tail(net, 1.0, 0, lengths[-1])
    out.add(
        "linear_loss",
        ("linear", "radius", "linear_start", "length"),
        loss,
        "variance of the target",
    )
    if config.data is None:
        out.add("linear_predicted", ("linear", "radius", "linear_start"), predicted, "1")
