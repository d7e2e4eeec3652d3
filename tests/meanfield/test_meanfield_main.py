"""The study `meanfield`: made-up data on which every claim holds, and changes after
which each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.meanfield.studies.main import QUANTITIES, Config, ridge_regression

CONFIG = Config(steps=20, seeds=16, solves=16)


def only(rule, change):
    """A change of the curves of one rule."""

    def changed(values):
        values = values.copy()
        values[rule] = change(values[rule])
        return values

    return changed


class TestMain(StudyCase):
    study = "meanfield"
    small = "--d 100 --steps 12 --samples 500 --solves 6 --seeds 6 --tau 2.0"
    mutations = {
        "a curve that diverges": (
            "runs_loss",
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 7, np.nan, v),
            "Every curve is finite",
        ),
        "another response": ("ridge_response", lambda v: 1.001 * v, "the response is that"),
        "another overlap": ("ridge_overlap", lambda v: 1.1 * v, "the overlap is that"),
        "a longer first step": ("first_overlap", lambda v: 1.1 * v, "A first step from zero"),
        "gradient descent that is faster": (
            "runs_overlap",
            only(0, lambda v: 1.2 * v),
            "predicts gradient descent",
        ),
        "SGD with a larger loss": ("runs_loss", only(1, lambda v: 1.2 * v), "independent masks"),
        "persistent runs that are closer": (
            "runs_distance",
            only(2, lambda v: 0.6 * v),
            "predicts SGD with persistent masks",
        ),
        "replicas that separate": (
            "runs_distance",
            only(0, lambda v: v + 1e-9),
            "two replicas stay together",
        ),
        "memory that does nothing": (
            lambda ds: ds.assign(
                {
                    name: ds[name].copy(
                        data=only(2, lambda v, w=ds[name].values[1]: w)(ds[name].values)
                    )
                    for name in ("theory_distance", "runs_distance")
                }
            ),
            "drives replicas apart",
        ),
        "persistent runs like independent ones": (
            lambda ds: ds.assign(
                runs_distance=ds["runs_distance"].copy(
                    data=only(2, lambda v: ds["runs_distance"].values[1])(
                        ds["runs_distance"].values
                    )
                )
            ),
            "the theory of independent masks does not",
        ),
    }
    refusals = [
        ({"tau": 0.05}, "tau must be at least 0.233333"),
        ({"d": 401, "alpha": 1.5}, "must be a whole number of examples, but is 601.5"),
    ]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        time = np.arange(CONFIG.steps + 1)
        shape = 1 - np.exp(-(time + 1) / 5)
        scales = {"distance": np.array([0.0, 0.05, 0.2])}
        found = {}
        for kind, lead in (("theory", CONFIG.solves), ("runs", CONFIG.seeds)):
            for name in QUANTITIES:
                scale = scales.get(name, np.array([1.0, 1.1, 1.2]))
                noise = 1 + 0.02 * rng.normal(size=(3, lead, 1))
                values = scale[:, None, None] * shape * noise
                found[f"{kind}_{name}"] = (
                    ("rule", "solve" if kind == "theory" else "seed", "time"),
                    values,
                )
        overlap, response = ridge_regression(24)
        near = 1 + 0.01 * rng.normal(size=(CONFIG.solves, 1))
        near /= near.mean()
        eta, alpha, delta, b = CONFIG.step, CONFIG.alpha, CONFIG.noise, CONFIG.fraction
        m = eta * alpha / 2
        found |= {
            "ridge_overlap": (("solve", "ridge_time"), overlap * near),
            "ridge_predicted": (("ridge_time",), overlap),
            "ridge_response": (("solve", "ridge_time"), np.tile(response, (CONFIG.solves, 1))),
            "ridge_response_predicted": (("ridge_time",), response),
            "first_overlap": (("solve",), m * near[:, 0]),
            "first_variance": (("solve",), (m**2 + eta**2 * alpha * delta / (4 * b)) * near[:, 0]),
        }
        return made_up(CONFIG, found, {"rule": ["gd", "sgd", "persistent"], "time": time})
