"""The study `alpha-sweep`: a small one is run as a sweep, drawn, and every claim is told right from wrong; its cells can be swept by anyone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, mutated

import sgfbias as sgf
from sgfbias.diagonal import alpha_sweep as study

SMALL = study.Config(
    seeds=64, levels=3, alpha_low=0.003, alpha_high=0.05, step_size=0.2, steps=6000, flow_steps=600, n=20, d=50, sparsity=3
)


@pytest.fixture(scope="module")
def dataset():
    return study.run(SMALL)


pytestmark = pytest.mark.slow


def test_it_holds_is_drawn_and_has_its_units(dataset):
    assert failed(study, dataset) == ""
    assert len(study.claims(dataset)) == 10
    assert study.plot(dataset) is not None
    assert dataset["sgd_error"].dims == ("alpha", "seed")
    assert dataset["sgd_error"].attrs["units"]
    assert dataset.attrs["study"] == "alpha-sweep"


def test_gradient_descent_tends_to_the_programme_at_the_initial_alpha():
    """The law of discrete steps that the study reads gradient descent's solution from goes to the flow's, theorem 1 without noise, as gamma does."""
    problem, network = study._drawn(dataclasses.replace(SMALL, alpha=0.02))
    limit = float(problem.validation_error(sgf.select(problem, jnp.log(0.02)).beta))
    gaps = []
    for gamma, steps in ((0.1, 4000), (0.05, 8000), (0.025, 16000)):
        runs = sgf.simulate(sgf.GradientDescent(gamma), network, problem, steps=steps, record=study.LAST)
        gaps.append(abs(study.selected_errors(runs, problem)[0] - limit))
    assert gaps[1] < 0.7 * gaps[0]
    assert gaps[2] < 0.7 * gaps[1]


def test_a_cell_does_not_depend_on_the_sweep_around_it(dataset):
    """Neighbours, here the other half of the seeds, change no bit."""
    alpha = float(dataset["alpha"][1])
    alone = study.cell(dataclasses.replace(SMALL, alpha=alpha), sgf.seeds(0, 20))
    for name in ("sgd_error", "flow_error"):
        np.testing.assert_array_equal(alone[name], dataset[name].values[1, :20])


MUTATIONS = {
    "seeds that diverge": ("sgd_status", lambda v: np.where(np.arange(v.shape[1]) < 8, 2, v), "converge at this step size"),
    "SGD above gradient descent": ("sgd_error", lambda v: v * np.array([1, 1, 50])[:, None], "The solution that SGD selects"),
    "a flow above gradient descent": ("flow_error", lambda v: v * np.array([1, 1, 50])[:, None], "The solution that the flow selects"),
    "gradient descent that does not rise": ("gd_error", lambda v: np.full_like(v, v.max()), "The error of gradient descent increases"),
    "SGD that does not rise": ("sgd_error", lambda v: np.broadcast_to(v[:1], v.shape), "The error of SGD increases"),
    "a flow that does not rise": ("flow_error", lambda v: np.broadcast_to(v[:1], v.shape), "The error of the flow increases"),
    "SGD still moving": ("sgd_half_error", lambda v: 2 * v, "SGD has run long enough"),
    "a flow that is not SGD's": ("flow_error", lambda v: v / 1e4, "The flow predicts SGD"),
    "an effect without noise": ("quiet_error", lambda v: v * 0.1, "Control"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(dataset, name):
    variable, change, words = MUTATIONS[name]
    assert words in failed(study, mutated(dataset, variable, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_low": -1.0}, "alpha_low must be positive"),
        ({"alpha_high": 1e-5}, "alpha_high must be finite and above"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"levels": 2}, "levels must be at least 3"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))


def test_a_single_cell_wants_a_number_for_its_step_size():
    with pytest.raises(ValueError, match="needs a number as its step_size"):
        study.cell(study.Config(), sgf.seeds(0, 4))
