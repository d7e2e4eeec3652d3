"""Discrete algorithms in a frame that moves with the loss, against Optax's while the
loss is a float, and against closed forms after that.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sgfbias as sgf
from sgfbias import margin

RNG = np.random.default_rng(3)
LABELS = np.where(np.arange(4) % 2, -1.0, 1.0)
INPUTS = jnp.asarray(RNG.normal(size=(4, 6)) + 0.5 * LABELS[:, None] * np.eye(6)[0])
START = margin.Linear(jnp.asarray(0.1 * RNG.normal(size=6)))


def problem(loss=None):
    return sgf.Problem(INPUTS, jnp.asarray(LABELS), loss=loss or margin.ExponentialLoss())


TWINS = {
    "adam": (margin.Adam(0.9, 0.999, 0.0), optax.adam(1e-2, 0.9, 0.999, eps=0.0)),
    "adam eps": (margin.Adam(0.9, 0.999, 1e-8), optax.adam(1e-2, 0.9, 0.999, eps=1e-8)),
    "adam eps 1e-3": (margin.Adam(0.5, 0.9, 1e-3), optax.adam(1e-2, 0.5, 0.9, eps=1e-3)),
    "rmsprop": (
        margin.RMSProp(0.9, 1e-6),
        optax.rmsprop(1e-2, 0.9, eps=1e-6, initial_scale=0.0, eps_in_sqrt=True),
    ),
    "sign": (margin.Sign(), optax.sign_sgd(1e-2)),
}


@pytest.mark.parametrize(
    "name", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in list(TWINS)[1:])]
)
def test_twins_of_optax(name):
    """Agreement up to rounding after 3,000 iterations, with the exponential loss."""
    rule, transformation = TWINS[name]
    record = sgf.Record({"nu": None}, 2)
    ours = sgf.simulate(margin.MarginDescent(rule, 1e-2), START, problem(), steps=3000,
                        record=record)  # fmt: skip
    optaxs = sgf.simulate(
        sgf.OptaxDescent(transformation, 1e-2), START, problem(), steps=3000,
        record=sgf.Record((), 2),
    )  # fmt: skip
    difference = np.abs(np.asarray(ours.networks.w - optaxs.networks.w)).max()
    assert difference < 1e-12 * max(1.0, float(jnp.abs(optaxs.networks.w).max()))
    assert float(ours.final["nu"]) > 1


def best_in_linf():
    return margin.max_margin(INPUTS, LABELS, norm="linf").margin


@pytest.mark.slow
def test_adam_and_sign_move_at_the_rates_of_the_closed_forms():
    """Once the direction rests, nu grows by `adam_rate` per iteration, and by lr times
    the margin for sign descent.
    """
    gamma = best_in_linf()
    record = sgf.Record({"nu": None}, np.array([150.0, 200.0]))
    for rule, predicted in (
        (margin.Sign(), 1e-2 * gamma),
        (margin.Adam(0.9, 0.999, 0.0), margin.adam_rate(gamma, 1e-2)),
        (margin.Adam(0.0, 0.999, 0.0), margin.adam_rate(gamma, 1e-2, b1=0.0)),
    ):
        run = sgf.simulate(
            margin.MarginDescent(rule, 1e-2), START, problem(), steps=20_000, record=record
        )
        gained = np.diff(np.asarray(run["nu"]))[0] / np.diff(np.asarray(run.steps))[0]
        np.testing.assert_allclose(gained, predicted, rtol=0.01)


@pytest.mark.slow
def test_it_goes_on_below_the_range_of_floats():
    """Sign descent to a loss of about 1e-480 has the direction of l_inf."""
    run = sgf.simulate(margin.MarginDescent(margin.Sign(), 0.1), START, problem(), steps=40_000)
    assert float(run.final["loss"]) == 0
    assert float(run.final["nu"]) > 750
    assert run.statuses() == {"moving": 1}
    assert "a loss of 10^-" in run.reason()
    np.testing.assert_allclose(run.final["margin_linf"], best_in_linf(), rtol=0.01)
    assert float(run.final["gap_linf"]) < 0.01
    found = margin.certify(run, geometry="linf")
    assert found.alignment_gap < 0.01


@pytest.mark.slow
def test_loss_scaled_adagrad_goes_to_its_closed_form():
    """It is Euler's method for the flow, whose limit is known; the error is that of the
    first steps, of which V takes in a squared gradient each.
    """
    x = np.array([0.8, 0.3])
    one = sgf.Problem(jnp.asarray(x)[None], jnp.ones(1), loss=margin.ExponentialLoss())
    limit = margin.adagrad_limit(x, np.zeros(2), eps=1e-3)
    errors = []
    for width in (0.02, 0.01):
        descent = margin.MarginDescent(margin.AdaGrad(1e-3), width)
        run = sgf.simulate(descent, margin.Linear(jnp.zeros(2)), one, steps=60)
        h = np.asarray(run.final["conditioner"])
        errors.append(abs(h[0] / h[1] / (limit.conditioner[0] / limit.conditioner[1]) - 1))
    assert max(errors) < 0.01


@pytest.mark.slow
def test_a_relu_network_is_no_obstacle():
    key = jax.random.key(0)
    model = eqx.nn.MLP(6, "scalar", 5, 1, use_bias=False, use_final_bias=False, key=key)
    run = sgf.simulate(margin.MarginDescent(margin.Identity(), 0.05), model, problem(), steps=4000)
    assert float(run.final["nu"]) > 30
    late = np.asarray(run["nu"]) > 1
    assert np.all(np.diff(np.asarray(run["nu"])) >= 0)
    margins = np.asarray(run["margin_l2"])[late]
    assert margins[-1] > margins[0]
    assert float(run.final["gap_l2"]) < 0.05


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`rule` must be Adam"):
        margin.MarginDescent("adam")
    with pytest.raises(ValueError, match=r"AdamNoMomentum\(decay, eps\) is Adam\(0.0, decay"):
        margin.MarginDescent(margin.AdamNoMomentum())
    with pytest.raises(ValueError, match="takes full batches only"):
        margin.MarginDescent(margin.Sign(), 0.1, batch_size=2)
    with pytest.raises(ValueError, match="`b1` must be at least 0 and below 1"):
        margin.Adam(1.0)
    with pytest.raises(ValueError, match="`eps` must be at least 0, but is -1"):
        margin.Adam(eps=-1.0)
    with pytest.raises(
        ValueError, match=r"the conditioner 1/\|g\|, which is unbounded.*use MarginDescent"
    ):
        margin.MarginFlow(margin.Sign())
    squared = sgf.Problem(INPUTS, INPUTS[:, 0])
    with pytest.raises(ValueError, match="margins need a classification loss"):
        sgf.simulate(margin.MarginDescent(margin.Sign(), 0.1), START, squared, steps=2)
    biased = eqx.nn.MLP(6, "scalar", 5, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="not homogeneous"):
        sgf.simulate(margin.MarginDescent(margin.Sign(), 0.1), biased, problem(), steps=2)


@pytest.mark.slow
def test_adams_numbers_may_be_traced():
    """One program for several b2, against a run of each."""
    record = sgf.Record({"nu": None}, 2)

    def end(b2):
        descent = margin.MarginDescent(margin.Adam(0.8, b2, 1e-6), 1e-2)
        return sgf.simulate(descent, START, problem(), steps=40, record=record).networks.w

    decays = jnp.asarray([0.9, 0.99, 0.999])
    together = jax.jit(jax.vmap(end))(decays)
    np.testing.assert_allclose(together, jnp.stack([end(b2) for b2 in decays]), rtol=1e-12)
    # Forward mode against a difference quotient.
    slope = jax.jacfwd(end)(decays[1])
    difference = (end(decays[1] + 1e-5) - end(decays[1] - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-9)
