"""The study `recurrent-cure`: made-up data on which every claim holds, and changes
after which each must fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias import recurrent as rec
from sgfbias.recurrent.studies.cure import ARMS, SCALES, TEACHERS, Config

SEEDS = 6
DECAY, STRONG, NONE = (ARMS.index(arm) for arm in ("decay", "strong", "none"))


def on(teacher, arm, change):
    """A change of the values of one teacher and one arm."""

    def apply(values):
        values = values.copy()
        values[teacher, arm] = change(values[teacher, arm])
        return values

    return apply


class TestCure(StudyCase):
    study = "recurrent-cure"
    small = "--seeds 4 --state 6 --steps 300"
    mutations = {
        "a tail that stays": ("tail", on(0, STRONG, lambda v: v * 0 + 1e-2), "penalty on the tail"),
        "a tail that stays with memory": (
            "tail",
            on(1, STRONG, lambda v: v * 0 + 1e-2),
            "A penalty on the tail",
        ),
        "a loss that rises": ("loss", on(1, STRONG, lambda v: v + 1e-3), "fits the sequences"),
        "a weak penalty that does more": (
            "tail",
            on(0, ARMS.index("weak"), lambda v: v * 1e-4),
            "A stronger penalty",
        ),
        "a decay that does little": (
            "tail",
            on(0, DECAY, lambda v: v * 1e4),
            "does the same for a teacher without memory",
        ),
        "a network that extrapolates by itself": (
            "tail",
            on(0, NONE, lambda v: v * 1e-3),
            "without the penalty",
        ),
        "a decay without a loss": (
            "loss",
            on(1, DECAY, lambda v: v * 1e-6),
            "decay does not do the same",
        ),
    }

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        shape = (len(TEACHERS), len(ARMS), len(SCALES), SEEDS)
        tail = np.asarray([[1e-2, 1e-4, 1e-6, 1e-5], [1e-2, 1e-4, 1e-5, 1e-2]])
        loss = np.asarray([[1e-30, 1e-8, 1e-8, 1e-20], [1e-25, 1e-8, 1e-8, 1e-3]])
        radius = np.asarray([[0.9, 0.85, 0.8, 0.5], [0.9, 0.85, 0.8, 0.5]])
        rows = {
            name: (
                ("teacher", "arm", "scale", "seed"),
                values[:, :, None, None] * np.exp(0.1 * rng.normal(size=shape)),
            )
            for name, values in (("tail", tail), ("loss", loss), ("radius", radius))
        }
        axes = {"teacher": list(TEACHERS), "arm": list(ARMS), "scale": list(SCALES)}
        return made_up(Config(seeds=SEEDS), rows, axes)


def test_decay_moves_along_networks_of_zero_risk_without_memory():
    # A -> c A takes h_j to c^j h_j, so the risk stays 0 where only h_0 is not.
    bad = rec.bad_interpolator(5, state=8, scale=1.1)
    risk = rec.PopulationRisk(1.0, 5)
    for c in (0.9, 0.1):
        assert float(risk.risk(rec.LinearRNN(c * bad.A, bad.B, bad.C))) == 0
    # With memory it does not: the atoms move.
    root = np.sqrt([[0.81], [0.49]])
    teacher = rec.LinearRNN(np.diag([0.8, -0.5]), root, root.T)
    risk = rec.PopulationRisk(teacher, 5)
    slope = jax.grad(lambda c: risk.risk(rec.LinearRNN(c * teacher.A, root, root.T)))
    assert float(slope(jnp.asarray(0.9))) < -0.01
