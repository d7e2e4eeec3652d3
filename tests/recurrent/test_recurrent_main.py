"""The study `recurrent`: made-up data on which every claim holds, and changes after
which each must fail. The code of the specification.
"""

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias.recurrent.studies.main import (
    CYCLE,
    GROWTH,
    KINDS,
    LATE_SCALES,
    PERTURBATIONS,
    SCALES,
    Config,
)

SEEDS, LATE = 8, 3
TIMES = np.geomspace(1e4, 1e5, 6)
GAUSSIAN = np.arange(len(KINDS))[:, None, None] == KINDS.index("gaussian")


class TestRecurrent(StudyCase):
    study = "recurrent"
    small = "--seeds 4 --state 6 --late-seeds 2 --late-time 1e4 --time 60"
    mutations = {
        "a gradient": ("bad_gradient", lambda v: v + 1e-6, "cyclic shift fits all sequences"),
        "another error": (
            "bad_response",
            lambda v: v * (1 + 1e-9),
            "cyclic shift fits all sequences",
        ),
        "a repaired network": (
            "near_error",
            lambda v: np.where(v == v.min(), 0.1, v),
            "does not repair it",
        ),
        "a loss that stays": ("near_loss", lambda v: v + 1e-12, "does not repair it"),
        "a drift": ("drift", lambda v: v + 1e-7, "The flow conserves"),
        "a norm that grows": (
            "transition_norm",
            lambda v: v[:, ::-1],
            "norm of the transition never grows",
        ),
        "an error that falls faster": (
            "late_error",
            lambda v: v * (TIMES / TIMES[-1]) ** -0.1,
            "falls as 1/(2 w t)",
        ),
        "an error that falls a little faster": (
            "late_error",
            lambda v: v * (TIMES / TIMES[-1]) ** -0.04,
            "falls as 1/(2 w t)",
        ),
        "an error twice as large": ("late_error", lambda v: 2 * v, "falls as 1/(2 w t)"),
        "one tail at all scales": (
            "tail",
            lambda v: np.where(GAUSSIAN, 1e-2, v),
            "length of training is inherited",
        ),
        "training that shrinks the tail": (
            "start_tail",
            lambda v: 9 * v,
            "makes the error beyond its length larger",
        ),
        "a late tail that rests": (
            "late_tail",
            lambda v: v * 0 + 1e-3,
            "a symmetric start training extrapolates",
        ),
        "a length of 2 that suffices": ("short_error", lambda v: v * 0, "at length 2"),
        "a negative teacher that is reached": (
            "negative_loss",
            lambda v: v * 0.1,
            "does not reach a negative teacher",
        ),
        "a slow loss from every start": (
            "loss",
            lambda v: v * 0 + 1e-6,
            "does not follow the slow law",
        ),
        "descent without drift": (
            "descent_drift",
            lambda v: v * 1e-6,
            "descent does not conserve",
        ),
    }
    refusals = [({"late_seeds": 21}, "late_seeds must be at most seeds = 20, but is 21")]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        scale = np.asarray(SCALES)[None, :, None]
        noise = np.exp(0.1 * rng.normal(size=(len(KINDS), len(SCALES), SEEDS)))
        tail = np.where(GAUSSIAN, scale**6, 1e-5 * scale) * noise
        lag = np.arange(50)
        response = np.stack([0.3**lag, 0.6**lag])
        cyclic = np.where(lag % CYCLE == 0, GROWTH**lag, 0.0)
        late_seeds = np.exp(0.003 * rng.normal(size=(len(LATE_SCALES), LATE, 1)))
        shape = (len(PERTURBATIONS), LATE)
        rows = {
            "tail": (("kind", "scale", "seed"), tail),
            "start_tail": (("kind", "scale", "seed"), tail / 3),
            "loss": (
                ("kind", "scale", "seed"),
                np.where(GAUSSIAN, 10.0 ** (-60 * np.minimum(scale, 0.5)), 2e-6) * noise,
            ),
            "response": (("kind", "lag"), response),
            "late_error": (
                ("late_scale", "late_seed", "late_time"),
                late_seeds / (2 * TIMES),
            ),
            "late_tail": (
                ("late_scale", "late_seed", "late_time"),
                late_seeds * 1e-3 / TIMES,
            ),
            "negative_loss": (("late_scale", "late_seed"), np.full((2, LATE), 0.5)),
            "drift": (("start",), np.asarray([1e-10, 2e-10])),
            "descent_drift": (("start",), np.asarray([0.01, 0.02])),
            "transition_norm": (("start", "time"), np.linspace([4, 5], [3, 4], 9).T),
            "bad_gradient": ((), np.asarray(0.0)),
            "bad_response": (("lag",), cyclic),
            "near_error": (("size", "late_seed"), 2 + 0.1 * rng.random(shape)),
            "near_loss": (("size", "late_seed"), 1e-30 * rng.random(shape)),
            "short_loss": ((), np.asarray(0.0)),
            "short_error": ((), np.asarray(1.0)),
        }
        axes = {
            "kind": list(KINDS),
            "scale": list(SCALES),
            "late_time": TIMES,
            "time": np.linspace(0, 20, 9),
            "lag": lag,
        }
        return made_up(Config(seeds=SEEDS), rows, axes)


@pytest.mark.slow
def test_the_code_of_the_specification():
    """Every call of it, with fewer states and steps."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import sgfbias as sgf

    long_input = jax.random.normal(jax.random.key(3), (300, 1))
    rec = sgf.recurrent
    net = rec.LinearRNN.symmetric(jax.random.key(0), state=8, scale=0.6, gain=0.5)
    risk = rec.PopulationRisk(1.0, 5)
    runs = sgf.simulate(sgf.GradientFlow(), net, risk, t1=1e4)
    end = runs.networks
    assert end.impulse_response(50).shape == (50, 1, 1)
    direction, log = end.log_impulse(20_000)
    assert (direction.shape, log.shape) == ((1, 1), ())
    assert rec.tail(end, 1.0, 5) >= rec.tail(end, 1.0, 5, 50)
    assert np.abs(rec.conserved(end)).max() < 1e-12
    assert rec.spectrum(end).radius < 1
    assert rec.hankel_values(end).shape == (8,)
    bad = rec.bad_interpolator(5, state=8, scale=1.1)
    assert abs(float(bad.impulse_response(9)[8, 0, 0]) - 1.1**8) < 1e-12
    assert rec.sufficient_length(2) == 5
    cured = sgf.simulate(
        sgf.GradientDescent(0.1),
        net,
        rec.PopulationRisk(1.0, 5, penalty=rec.TailPenalty(1.0, 5)),
        steps=1500,
    )
    assert rec.tail(cured.networks, 1.0, 5) < 1e-4

    k1, k2 = jax.random.split(jax.random.key(1))
    readout = eqx.nn.Linear(16, 1, key=k2)
    model = rec.Unroll(eqx.nn.GRUCell(1, 16, key=k1), readout)
    task = lambda key, length: (lambda x: (x, x[-1]))(  # noqa: E731
        jax.random.normal(key, (length, 1))
    )
    inputs, targets = jax.vmap(lambda key: task(key, 6))(sgf.seeds(0, 512))
    runs = sgf.simulate(
        sgf.OptaxDescent(optax.adam(5e-3), 1.0),
        model,
        sgf.Problem(inputs, targets, loss=sgf.SquaredLoss(scale=0.5)),
        steps=100,
    )
    curve = rec.extrapolate(
        runs.networks,
        task,
        lengths=(6, 12, 24, 60),
        trained=6,
        keys=sgf.seeds(1000, 1512),
        loss=sgf.SquaredLoss(scale=0.5),
    )
    print(curve)
    assert curve.horizon(factor=10.0) >= 6
    assert curve.to_xarray()["loss"].shape == curve.error.shape == (4,)
    assert rec.memory(runs.networks, inputs).log_gain.shape == (6,)
    exponents = rec.lyapunov(runs.networks, long_input, warmup=100)
    assert jnp.all(jnp.diff(exponents) <= 0)
