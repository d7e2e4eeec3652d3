"""Tests of the study `convergence`: claims that hold and fail on made-up data, and a
small run.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.diagonal.studies.convergence import NOISES, OTHERS, WIDTHS, Config

CONFIG = Config()
PROBLEMS, SEEDS, EVENTS = len(CONFIG.sizes), 64, 4096


def theory():
    """A made-up dataset that agrees with theory, with the statistics of theory."""
    rng = np.random.default_rng(0)
    width = np.asarray(WIDTHS)[:, None]
    gap = 4e-3 * width + 1e-3 * np.sqrt(width) * rng.normal(size=(3, SEEDS))
    variation = 0.01 * rng.chisquare(8, EVENTS) / 8
    S = np.sqrt(variation) * rng.normal(size=EVENTS)
    ratio = np.abs(S) / (2 * np.sqrt(np.log(40) * variation.mean() / 2))
    fractions = np.asarray(CONFIG.fractions)
    share = 1 / (1 + (fractions / 1.05) ** 16)
    batches = np.asarray(CONFIG.batches)
    times = np.concatenate([[0.0], np.geomspace(0.01, 30, 9)])
    fall = -np.expand_dims(1 - np.exp(-times), 0) * np.ones((5, 1))
    variables = {
        "gap": (("width", "identity_seed"), gap),
        "gap_sign": (("width", "identity_seed"), gap + 0.2 * rng.normal(size=(1, SEEDS))),
        "gap_beta": (("width", "identity_seed"), gap + 0.5),
        "path_value": (("path", "time"), 0.5 + fall),
        "path_drift": (("path", "time"), fall),
        "path_martingale": (("path", "time"), 0 * fall),
        "pilot": (("identity_seed",), variation[:SEEDS]),
        "martingale": (("event_seed",), S),
        "variation": (("event_seed",), variation),
        "bound_ratio": (("event_seed",), ratio),
        "bound_l1": ((), 250.0),
        "bound_integral": (("end",), np.array([0.2, 34.0])),
        "bound_log_alpha": (("end", "feature"), np.log(0.1) - np.array([[1e-3] * 4, [1e-6] * 4])),
        "reached_l1": (("bound_seed",), np.full(8, 3.6)),
        "reached_integral": (("bound_seed",), np.full(8, 1.06)),
        "reached_log_alpha": (("bound_seed", "feature"), np.full((8, 4), np.log(0.1) - 1e-5)),
        "reached_loss": (("bound_seed",), np.full(8, 1e-10)),
        "guaranteed": ((), 8e-6),
        "flow_edge": ((), 0.396),
        "quiet_integral": ((), 1.0600001),
        "quiet_law": ((), 1.06),
        "edge": (("problem", "noise"), np.full((PROBLEMS, 4), 0.2)),
        "share": (
            ("problem", "noise", "fraction"),
            np.broadcast_to(share, (PROBLEMS, 4, len(share))).copy(),
        ),
        "other_edge": (("problem", "other"), np.full((PROBLEMS, 2), 0.4)),
        "other_share": (("problem", "other"), np.full((PROBLEMS, 2), 0.3)),
        "batch_edge": (("batch",), 0.2 * batches / (1 + batches / 4)),
        "batch_share": (("batch", "side"), np.tile([1.0, 0.0], (len(batches), 1))),
        "linear_share": ((), 0.0),
    }
    axes = {
        "problem": np.array([f"problem {k}" for k in range(PROBLEMS)], dtype=object),
        "noise": np.array(NOISES, dtype=object),
        "other": np.array(OTHERS, dtype=object),
        "fraction": fractions,
        "batch": batches,
        "width": np.asarray(WIDTHS),
        "side": np.array([0.6, 2.0]),
        "time": times,
    }
    return made_up(CONFIG, variables, axes)


def at(fraction, value, noises=slice(None)):
    """A change of the shares at one fraction of the edge."""

    def change(shares):
        shares[:, noises, CONFIG.fractions.index(fraction)] = value
        return shares

    return change


class TestConvergence(StudyCase):
    study = "convergence"
    small = (
        "--sizes 8 20 2 8 20 3 --scales 1 .5 --fractions .4 .6 2 --edge-seeds 8 --per-iteration 2 "
        "--batches 1 8 --identity-seeds 16 --event-seeds 64 --bound-seeds 4"
    )
    mutations = {
        "a gap that stays": ("gap", lambda v: v * 0 + v[:1], "the gap falls at first order"),
        "single paths that do not follow": (
            "gap",
            lambda v: v + 0.05 * np.resize([1.0, -1.0], v.shape[1]),
            "On single paths",
        ),
        "a sign that does not matter": ("gap_sign", lambda v: v * 0 + 1e-4, "sign reversed"),
        "a beta* that does not matter": ("gap_beta", lambda v: v * 0 + 1e-4, "a beta* that"),
        "another quadratic variation": ("variation", lambda v: 1.3 * v, "S is a martingale"),
        "a martingale that leaves": ("bound_ratio", lambda v: 2 * v, "At all times |S|"),
        "a loose bound": ("bound_ratio", lambda v: v / 4, "half the bound"),
        "a norm beyond its bound": ("reached_l1", lambda v: 100 * v, "At the guaranteed step"),
        "too little loss": ("reached_integral", lambda v: v / 10, "At the guaranteed step"),
        "too much loss": ("reached_integral", lambda v: v * 100, "At the guaranteed step"),
        "another alpha": ("reached_log_alpha", lambda v: v - 1, "At the guaranteed step"),
        "a seed that does not converge": (
            "reached_loss",
            lambda v: v + 0.1,
            "At the guaranteed step",
        ),
        "twice the integral": ("quiet_integral", lambda v: 2 * v, "Without noise int L"),
        "lost below the edge": ("share", at(0.6, 0.8), "SGD converges at 0.6"),
        "found beyond the edge": ("share", at(2.0, 0.4), "SGD does not converge"),
        "lost flows": ("share", at(0.4, 0.5, slice(2, 4)), "The flows converge at 0.4"),
        "another edge is as good": ("other_share", lambda v: v * 0 + 1, "of another noise model"),
        "batches that are lost": ("batch_share", lambda v: v / 2, "SGD's edge grows"),
        "the linear rule holds": ("linear_share", lambda v: v + 1, "linear scaling rule"),
    }
    refusals = [
        ({"scales": (1.0,)}, "sizes and scales must be as many"),
        ({"sizes": ((20, 20, 3),) * 4}, "sizes must have sparsity <= n < d"),
        ({"fractions": (0.4, 0.6, 1.0)}, "fractions must increase and have 0.4, 0.6 and 2.0"),
        ({"batches": (2, 4)}, "batches must be at least two numbers that increase from 1"),
        ({"batches": (1, 99)}, "at most the n of the last problem, 30"),
    ]

    @classmethod
    def make(cls):
        return theory()
