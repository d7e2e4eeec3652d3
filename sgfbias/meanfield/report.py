"""How noisy is the training of a network? Distances of replicas, the response to a
force, and the temperature that follows, for any model.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.algorithm import AbstractDescent
from sgfbias.core.arguments import check_model
from sgfbias.core.brownian import check_keys
from sgfbias.core.checks import as_whole, is_concrete, shown
from sgfbias.core.problem import Problem
from sgfbias.core.record import Record
from sgfbias.core.rules import Plain
from sgfbias.core.simulate import simulate
from sgfbias.core.weights import cast
from sgfbias.meanfield.temperature import AGREEMENT, may_be_small

LAGS, BEFORE = 20, 10


class NoiseReport(eqx.Module):
    """The noise of a training algorithm on a model with p trainable numbers.

    - `steps`: (times,), the steps at which the runs were looked at. The lags are
      `steps[first:] - waiting`.
    - `distance`: (times,), the mean of `|w1 - w2|^2 / p` over pairs of seeds, which
      start from the same weights.
    - `stationarity`: (keys,), Yaida's ratio `2 <w . g> / (gamma <|g|^2>)` of the steps
      after the waiting time, with g the gradient that a step took. It is 1 in a
      stationary state.
    - `drop`: (keys, lags), `|w_t - w_w|^2 / (2 p)` at a lag t - w after the waiting
      time w.
    - `response`: (keys, lags), chi, the response per number to a constant force on w
      from the waiting time on, along random signs.
    - `temperature`: (keys,), `drop / response` at the longest lag. It is that for the
      mean loss over examples, on which the force acts. That for the sum, which
      `effective_temperature` and `least_squares_temperature` use, is n times larger,
      with n the number of examples.
    - `loss`: (keys, times), the training loss.
    """

    steps: Array
    distance: Array
    stationarity: Array
    drop: Array
    response: Array
    temperature: Array
    loss: Array
    waiting: int = eqx.field(static=True)
    numbers: int = eqx.field(static=True)

    @property
    def lags(self) -> Array:
        """The lags of `drop` and `response`, (lags,)."""
        return self.steps[-self.drop.shape[-1] :] - self.waiting

    def slope(self, lag: int) -> Array:
        """`drop / response` at a lag of `lags` that is not 0, (keys,).

        **Raises:** `ValueError` for a lag that is not among those measured, with those
        that are.
        """
        there = [int(known) for known in np.asarray(self.lags)]
        if is_concrete(lag) and lag in there[1:]:
            index = there.index(lag)
            return self.drop[..., index] / self.response[..., index]
        raise ValueError(
            f"`lag` must be one of those measured, {', '.join(map(str, there[1:]))}, but is "
            f"{shown(lag)}"
        )

    @property
    def stationary(self) -> bool:
        """Whether the mean stationarity ratio is within 10% of 1, or its 99% interval
        over the runs reaches there.
        """
        return may_be_small(np.asarray(self.stationarity) - 1, AGREEMENT)

    def __repr__(self) -> str:
        if not is_concrete(self.drop):
            return "NoiseReport, traced"

        def mean(values: Any) -> str:
            values = np.asarray(values)
            return f"{values.mean():.3g} +- {values.std(ddof=1) / values.size**0.5:.1g}"

        state = "stationary" if self.stationary else "not stationary: wait longer"
        return "\n".join(
            [
                f"noise of {self.drop.shape[0]} runs of {self.numbers:,} trainable numbers, "
                f"{int(self.steps[-1]):,} steps, the first {self.waiting:,} of them waiting",
                f"  distance of replicas  {float(self.distance[-1]):.3g} per number at the end",
                f"  stationarity          {mean(self.stationarity)} ({state})",
                f"  response              {mean(self.response[:, -1])} at the longest lag",
                f"  temperature           {mean(self.temperature)} at the longest lag, "
                f"{mean(self.slope(int(self.lags[1])))} at lag {int(self.lags[1])}",
                f"  training loss         {mean(self.loss[:, -1])}",
            ]
        )


class Force(eqx.Module):
    """The penalty of a problem, and a force on the trainable numbers from a step on."""

    size: Array
    direction: Array
    waiting: int = eqx.field(static=True)
    penalty: Any = None

    def __call__(self, network: Any, step: Any) -> Array:
        push = self.size * (self.direction @ numbers_of(network))
        value = -jnp.where(step >= self.waiting, push, 0)
        return value if self.penalty is None else value + self.penalty(network, step)


def numbers_of(network: Any) -> Array:
    """All real numbers of a network as a vector."""
    leaves = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def squared_change(network: Any, change: Any) -> Array:
    """The squared norm of a change of the trainable numbers."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(change)]))


def noise_report(
    dynamics: Any,
    model: Any,
    problem: Any,
    *,
    keys: Array,
    steps: Any,
    waiting: Any,
    probes: Any = 8,
) -> NoiseReport:
    """How noisy a training algorithm is on a model, from runs that share their start.

    The response is exact for the same random numbers: derivatives of the runs in the
    strength of a constant force, by `jax.jvp`, along `probes` random signs. It takes
    about `2 probes` runs of every seed. Weights are kept at some 30 steps.

    **Arguments:**

    - `dynamics`: a discrete algorithm with a constant step size and without momentum,
      such as `StochasticGradientDescent(0.3, sampling=PersistentMask(0.2,
      persistence=80))`.
    - `model`: any Equinox module, all of whose real arrays move.
    - `problem`: a `Problem`.
    - `keys`: (keys,) typed keys, two or more.
    - `steps`: the number of steps.
    - `waiting`: the steps before drops and responses begin.
    - `probes`: the number of random signs.

    **Returns:** a `NoiseReport`.

    **Raises:** `ValueError` for arguments that do not fit, and for runs that are not
    finite.

    Stationarity: Yaida 2018 (arXiv 1810.00004). Temperatures: Mignacco, Urbani 2022
    (arXiv 2112.10852).
    """
    if not isinstance(dynamics, AbstractDescent) or dynamics.clock.width is None:
        raise ValueError(
            "`dynamics` must be a discrete algorithm with a constant step size, such as "
            f"StochasticGradientDescent(0.1, 8), but is {shown(dynamics)}"
        )
    if not isinstance(dynamics.rule, Plain):
        raise ValueError(
            "a temperature is defined here for plain steps along the gradient: leave out the "
            "momentum, the Optax transformation or the rule of your own"
        )
    if not dynamics.is_stochastic:
        raise ValueError(
            f"{type(dynamics).__name__} has no noise to report: take StochasticGradientDescent"
        )
    if not isinstance(problem, Problem):
        raise ValueError(
            f"`problem` must be a Problem, but is {type(problem).__name__}; wrap the data: "
            "Problem(inputs, targets)"
        )
    keys = check_keys(keys)
    if keys.ndim == 0 or keys.shape[0] < 2:
        raise ValueError(
            "the distance of replicas needs two keys or more: write keys=sgfbias.seeds(0, 8)"
        )
    steps, probes = as_whole(steps, "steps", least=4), as_whole(probes, "probes")
    waiting = as_whole(waiting, "waiting", least=0)
    if waiting > steps - 4:
        raise ValueError(
            f"`waiting` must leave four steps or more, but is {waiting} of {steps} steps"
        )
    model = cast(model, problem.dtype)
    check_model(model, problem)
    looks, first = _looks(steps, waiting)
    times = float(dynamics.clock.width) * looks
    record = Record({"weights": numbers_of}, times, sums={"squares": squared_change})
    runs = simulate(dynamics, model, problem, keys=keys, steps=steps, record=record)
    weights = runs["weights"]
    count = weights.shape[-1]
    if not bool(jnp.all(jnp.isfinite(weights))):
        raise ValueError(
            f"some runs are not finite, {runs.statuses()}: take a smaller step size than "
            f"{float(dynamics.clock.width):g}"
        )
    size = keys.shape[0]
    apart = weights - weights[0]  # exactly 0 for runs that are equal
    spread = jnp.mean(jnp.square(apart - jnp.mean(apart, axis=0)), axis=(0, 2))
    moved = jnp.sum(jnp.square(weights[:, first:] - weights[:, first : first + 1]), axis=-1)
    drop = moved / (2 * count)
    response = _response(dynamics, model, problem, keys, steps, waiting, probes, times, first)
    # |w + change|^2 = |w|^2 + 2 w . change + |change|^2 is summed over the steps.
    norms = jnp.sum(jnp.square(weights), axis=-1)
    squares = runs["squares"][:, -1] - runs["squares"][:, first]
    return NoiseReport(
        jnp.asarray(looks),
        2 * size / (size - 1) * spread,
        1 - (norms[:, -1] - norms[:, first]) / squares,
        drop,
        response,
        drop[:, -1] / response[:, -1],
        runs["loss"],
        waiting,
        count,
    )


def _looks(steps: int, waiting: int) -> tuple[np.ndarray, int]:
    """The steps at which runs are looked at, and the place of the waiting time."""
    before = np.unique(np.linspace(0, waiting, BEFORE + 1).round().astype(int))
    lags = np.geomspace(1, steps - waiting, LAGS).round().astype(int)
    after = waiting + np.unique(lags)
    return np.concatenate([before, after]), before.size - 1


def _response(
    dynamics: Any,
    model: Any,
    problem: Problem,
    keys: Array,
    steps: int,
    waiting: int,
    probes: int,
    times: np.ndarray,
    first: int,
) -> Array:
    """The response per number, (keys, lags)."""
    count = numbers_of(model).shape[0]
    key = jax.random.fold_in(keys[0], 0x50524F42)
    signs = jax.random.rademacher(key, (probes, count), dtype=jnp.int32).astype(problem.dtype)
    record = Record({"weights": numbers_of}, times[first:] if first else times)

    def along(sign: Array) -> Array:
        def weights(size: Array) -> Array:
            force = Force(size, sign, waiting, problem.penalty)
            forced = eqx.tree_at(
                lambda p: p.penalty, problem, force, is_leaf=lambda leaf: leaf is None
            )
            runs = simulate(dynamics, model, forced, keys=keys, steps=steps, record=record)
            return runs["weights"]

        zero = jnp.zeros((), problem.dtype)
        return jax.jvp(weights, (zero,), (jnp.ones_like(zero),))[1] @ sign / count

    found = jnp.mean(jnp.stack([along(sign) for sign in signs]), axis=0)
    return found[:, -(times.size - first) :]
