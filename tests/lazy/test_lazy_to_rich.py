"""The study `lazy-to-rich`: made-up data on which every claim holds, and changes after
which each must fail.
"""

import jax
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

import sgfbias as sgf
from sgfbias import lazy
from sgfbias.lazy.studies.lazy_to_rich import ALPHAS, Config, Outputs, linearised

SEEDS = 3
RICH = np.asarray(ALPHAS)[:, None] < 1


class TestLazyToRich(StudyCase):
    study = "lazy-to-rich"
    small = "--seeds 2 --width 16 --depth 2 --examples 8 --inputs 8 --loss 0.3"
    mutations = {
        "a run that is lost": (
            "steps",
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 5, np.nan, v),
            "Every run reaches the loss",
        ),
        "a distance that falls faster": (
            "distance",
            lambda v: v * np.asarray(ALPHAS)[:, None] ** -0.1,
            "distance falls as 1/alpha",
        ),
        "a larger distance": ("distance", lambda v: 1.3 * v, "distance of the linearised network"),
        "a kernel that does not stay": (
            "kernel_drift",
            lambda v: v + 0.6,
            "distance of the linearised network",
        ),
        "units that switch everywhere": (
            "flips",
            lambda v: v * 0 + 0.1,
            "share of switched units fall",
        ),
        "relative distances that stay": (
            "relative_distance",
            lambda v: v * 0 + 0.1,
            "share of switched units fall",
        ),
        "a linearised distance at every scale": (
            lambda ds: ds.assign(distance=ds["predicted"]),
            "linearised distance is off",
        ),
        "a kernel that stays at every scale": (
            "kernel_drift",
            lambda v: np.where(RICH, 0.1, v),
            "kernel changes by more than half",
        ),
    }
    refusals = [({"width": 9}, "width must be even, but is 9")]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        alpha = np.asarray(ALPHAS)[:, None]
        predicted = np.exp(0.1 * rng.normal(size=(1, SEEDS))) / alpha
        noise = np.exp(0.01 * rng.normal(size=(len(ALPHAS), SEEDS)))
        drift = np.where(RICH, 10, 0.5 / alpha**0.5) * noise
        rows = {
            "distance": predicted * np.where(RICH, 0.5, 1) * noise,
            "predicted": predicted,
            "relative_distance": 0.1 * noise / alpha,
            "flips": 0.05 * noise / alpha,
            "kernel_drift": drift,
            "steps": 50 * noise,
        }
        dims = ("alpha", "seed")
        straight = np.linspace(0, 2, 5)[:, None] * np.asarray([1, -1])
        drawn = {
            "outputs": (("alpha", "look", "example"), straight * (1 + 0.1 / alpha[..., None])),
            "linear_outputs": (("look", "example"), straight),
        }
        return made_up(
            Config(seeds=SEEDS),
            {name: (dims, values) for name, values in rows.items()} | drawn,
            {"alpha": list(ALPHAS), "look": [0, 1, 2, 4, 8]},
        )


@pytest.mark.slow
def test_the_prediction_is_the_training_of_the_linearised_network():
    """Against a run of the linearised and centred network itself."""
    problem = lazy.SeparatedSphere.sample(jax.random.key(0), n=6, d=5, separation=0.4)
    network = lazy.DeepReLU.init(jax.random.key(1), 5, width=8, depth=2)
    kernel = np.asarray(lazy.ntk(network, problem).matrix)
    model = lazy.linearise(lazy.rescale(network, 1.0))
    run = sgf.simulate(
        sgf.GradientDescent(0.3),
        model,
        problem,
        steps=400,
        record=sgf.Record({"outputs": Outputs(problem.inputs)}, times=0.3 * np.arange(401)),
        stop=0.4,
    )
    weights = run.networks.model.model.weights
    change = [now - then for now, then in zip(weights, network.weights, strict=True)]
    distance = np.sqrt(sum(np.sum(np.square(c)) for c in change))
    assert run.stop_time < 0.3 * 400
    found = linearised(kernel, problem, 0.3, 0.4)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-9)
    last = len(found.outputs)
    np.testing.assert_allclose(0.3 * (last - 1), run.stop_time, rtol=1e-9)
    np.testing.assert_allclose(found.outputs, run["outputs"][:last], rtol=0, atol=1e-9)
