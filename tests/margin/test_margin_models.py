"""Models and certificates: the degree of a model, what is refused, and multipliers that
prove a max-margin solution.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin
from sgfbias.margin.objective import margins_of

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (7, 4))


def mlp(out="scalar", depth=1, activation=jax.nn.relu, bias=False, final=False):
    return eqx.nn.MLP(
        4, out, 5, depth, use_bias=bias, use_final_bias=final, activation=activation, key=KEY
    )


class Product(eqx.Module):
    w: jax.Array

    def __call__(self, x):
        return jnp.sum(x) * jnp.prod(self.w)


class Conv(eqx.Module):
    conv: eqx.nn.Conv1d
    linear: eqx.nn.Linear

    def __init__(self, norm=False):
        self.conv = eqx.nn.Conv1d(1, 3, 2, use_bias=False, key=KEY)
        self.linear = eqx.nn.Linear(9, 2, use_bias=False, key=KEY)

    def __call__(self, x):
        return self.linear(jax.nn.relu(self.conv(x[None])).reshape(-1))


@pytest.mark.parametrize(
    ("model", "degree"),
    [
        (margin.Linear(jnp.ones(4)), 1),
        (Product(jnp.asarray([0.5, 1.0, 2.0, 0.3])), 4),
        (mlp(depth=2), 3),
        (mlp(activation=lambda z: jax.nn.relu(z) ** 2), 3),
        pytest.param(mlp(out=3, activation=jax.nn.leaky_relu), 2, marks=pytest.mark.slow),
        (mlp(bias=True), 2),  # a bias of the first layer is homogeneous with its matrix
        pytest.param(Conv(), 2, marks=pytest.mark.slow),
    ],
)
def test_the_degree_of_a_model(model, degree):
    found = margin.homogeneity(model, INPUTS)
    assert found.degree == degree
    assert found.residual < 1e-12
    twice = jax.tree.map(lambda leaf: 2 * leaf if eqx.is_inexact_array(leaf) else leaf, model)
    np.testing.assert_allclose(
        jax.vmap(twice)(INPUTS), 2**degree * jax.vmap(model)(INPUTS), rtol=1e-12
    )
    assert repr(found).startswith(f"homogeneous of degree {degree}, residual")


def test_models_that_are_not_homogeneous_are_refused_with_the_arrays():
    with pytest.raises(ValueError, match=r"varies from .* because of layers\[1\]\.bias\. Biases"):
        margin.homogeneity(mlp(bias=True, final=True), INPUTS)


@pytest.mark.slow
def test_other_models_that_are_not_homogeneous():
    zero = eqx.tree_at(lambda m: m.layers[1].bias, mlp(bias=True, final=True), jnp.zeros(()))
    with pytest.raises(ValueError, match=r"because of layers\[1\]\.bias"):
        margin.homogeneity(zero, INPUTS)
    with pytest.raises(ValueError, match=r"layers\[1\]\.bias, layers\[2\]\.bias"):
        margin.homogeneity(mlp(depth=2, bias=True, final=True), INPUTS)
    with pytest.raises(ValueError, match="tanh, gelu and softplus. Degrees by array: layers"):
        margin.homogeneity(mlp(activation=jnp.tanh), INPUTS)
    for activation in (jax.nn.gelu, jax.nn.softplus):
        words = "not homogeneous: .* activations other than powers of ReLU, such as tanh, gelu and"
        with pytest.raises(ValueError, match=words):
            margin.homogeneity(mlp(activation=activation), INPUTS)
    for layer, words in ((eqx.nn.LayerNorm(5), "LayerNorm"), (eqx.nn.RMSNorm(5), "RMSNorm")):
        first, last = (eqx.nn.Linear(*s, use_bias=False, key=KEY) for s in ((4, 5), (5, 1)))
        normalised = eqx.nn.Sequential([first, layer, last])
        words = rf"degree 0 in layers\[0\]\.weight.*normalisation layer.*leave out .*{words}"
        with pytest.raises(ValueError, match=words):
            margin.homogeneity(normalised, INPUTS)
    # Frozen at 0, a bias changes nothing.
    frozen = jax.tree.map(eqx.is_inexact_array, zero)
    frozen = eqx.tree_at(lambda m: m.layers[1].bias, frozen, False)
    assert margin.homogeneity(zero, INPUTS, trainable=frozen).degree == 2


def labelled(loss=None, targets=None):
    targets = jnp.where(INPUTS[:, 0] > 0, 1.0, -1.0) if targets is None else targets
    return sgf.Problem(INPUTS, targets, loss=loss or margin.ExponentialLoss())


def test_margins_of_outputs():
    logits = jnp.asarray([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]])
    found = margins_of(sgf.SoftmaxCrossEntropyLoss(), logits, jnp.asarray([1, 2]))
    np.testing.assert_allclose(found, [[2, 5], [3.5, 4]])
    q = margin.margins(margin.Linear(jnp.ones(4)), labelled())
    np.testing.assert_allclose(q, labelled().targets * INPUTS.sum(axis=1), rtol=1e-14)


def test_nu_of_every_loss_is_below_the_least_logarithm():
    model = margin.Linear(jnp.asarray([900.0, 1.0, -1.0, 0.5]))
    for loss in (margin.ExponentialLoss(), sgf.LogisticLoss()):
        problem = labelled(loss)
        found, q = float(margin.nu(model, problem)), np.asarray(margin.margins(model, problem))
        assert found <= q.min() + 1e-9
        assert found >= q.min() - np.log(7) - 1e-9
    several = sgf.Problem(
        INPUTS, (INPUTS[:, 0] > 0).astype(int), loss=sgf.SoftmaxCrossEntropyLoss()
    )
    pairs = margin.Linear(jnp.stack([-model.w, model.w]) / 2)
    np.testing.assert_allclose(
        margin.nu(pairs, several), margin.nu(model, labelled(sgf.LogisticLoss())), rtol=1e-12
    )


def test_what_has_no_margin_is_refused():
    flow, model = margin.MarginFlow(), margin.Linear(jnp.ones(4))
    squared = sgf.Problem(INPUTS, INPUTS[:, 0])
    for call in (
        lambda: margin.nu(model, squared),
        lambda: margin.margins(model, squared),
        lambda: sgf.simulate(flow, model, squared, t1=10.0),
    ):
        with pytest.raises(ValueError, match="margins need a classification loss.*SquaredLoss"):
            call()
    soft = sgf.Problem(INPUTS, jnp.ones((7, 2)) / 2, loss=sgf.SoftmaxCrossEntropyLoss())
    with pytest.raises(ValueError, match="margins need class labels"):
        margin.nu(margin.Linear(jnp.ones((2, 4))), soft)


def test_what_the_flow_refuses():
    with pytest.raises(ValueError, match="`conditioner` must be Identity"):
        margin.MarginFlow("adam")
    with pytest.raises(ValueError, match="eps=0 makes h unbounded where a component"):
        margin.AdaGrad(0.0)
    with pytest.raises(ValueError, match="`decay` must be at least 0 and below 1"):
        margin.RMSProp(1.0)
    for eps in (-1, -1.0, float("inf")):
        with pytest.raises(ValueError, match="`eps` must be positive and finite, but is"):
            margin.RMSProp(0.9, eps)
    far = margin.Linear(jnp.asarray([900.0, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="the run already has nu = "):
        sgf.simulate(margin.MarginFlow(), far, labelled(), t1=1.0)
    with pytest.raises(ValueError, match=r"not homogeneous.*layers\[1\]\.bias"):
        sgf.simulate(margin.MarginFlow(), mlp(bias=True, final=True), labelled(), t1=1.0)
    with pytest.raises(ValueError, match="MarginFlow is deterministic"):
        sgf.simulate(margin.MarginFlow(), far, labelled(), t1=1e6, keys=sgf.seeds(0, 2))


@pytest.mark.parametrize("geometry", ["linf", "metric", pytest.param("l2", marks=pytest.mark.slow)])
def test_certificates_of_linear_solutions(geometry):
    """At the solution everything is 0 but the gap, which needs multipliers that are
    proportional to the losses; anywhere else stationarity is not.
    """
    metric = np.array([0.5, 2.0, 1.0, 3.0])
    problem = labelled()
    given = metric if geometry == "metric" else geometry
    best = margin.max_margin(INPUTS, problem.targets, norm=given)
    found = margin.certify(margin.Linear(best.weights), problem, geometry=given)
    assert found.stationarity < 1e-9
    assert abs(found.complementarity) < 1e-9
    np.testing.assert_allclose(found.margin, best.margin, rtol=1e-9)
    if geometry != "linf":  # L sum lambda q = |w|^2
        np.testing.assert_allclose(found.multipliers, best.multipliers, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.multipliers @ found.margins, 1 / best.margin**2, rtol=1e-9)
    assert found.support == np.count_nonzero(found.multipliers)
    # 100 times these weights have the same certificate, and another direction has not.
    again = margin.certify(margin.Linear(100 * best.weights), problem, geometry=given)
    np.testing.assert_allclose(again.multipliers, found.multipliers, rtol=1e-9, atol=1e-12)
    other = margin.Linear(best.weights * np.array([1.0, 1.3, 0.6, 1.1]) + 0.01)
    assert margin.certify(other, problem, geometry=given).stationarity > 1e-3
    assert f"Certificate in {geometry}: margin" in repr(found)
    assert found.to_xarray()["multipliers"].dims == ("example",)


def test_a_certificate_of_a_network_uses_its_degree():
    """Of f = w_1 w_2 x with one example, the solution is w = (1, 1) / sqrt(x), where
    grad q = w x and the multiplier is 1/x.
    """
    one = sgf.Problem(jnp.full((1, 1), 4.0), jnp.ones(1), loss=sgf.LogisticLoss())
    found = margin.certify(Product(jnp.asarray([30.0, 30.0])), one)
    assert found.degree == 2
    np.testing.assert_allclose(found.multipliers, [0.25], rtol=1e-9)
    assert found.stationarity < 1e-12
    assert abs(found.alignment_gap) < 1e-12
    np.testing.assert_allclose(found.margin, 4 / 2, rtol=1e-12)
    assert margin.certify(Product(jnp.asarray([30.0, 10.0])), one).stationarity > 0.1


def test_what_has_no_certificate_is_refused():
    problem, model = labelled(), margin.Linear(jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="the data are not fitted: q_min = -"):
        margin.certify(margin.Linear(-model.w), problem)
    with pytest.raises(ValueError, match="needs the Problem"):
        margin.certify(model)
    with pytest.raises(ValueError, match="`geometry` must be 'l2', 'linf', 'metric'"):
        margin.certify(model, problem, geometry="l1")
    with pytest.raises(ValueError, match="needs the conditioner of a run of MarginFlow"):
        margin.certify(model, problem, geometry="metric")
    with pytest.raises(ValueError, match="one positive number for each of the 4 weights"):
        margin.certify(model, problem, geometry=np.ones(3))


@pytest.mark.slow
def test_runs_that_have_no_certificate():
    problem, model = labelled(), margin.Linear(jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    run = sgf.simulate(sgf.GradientDescent(0.1), model, problem, steps=2)
    with pytest.raises(ValueError, match="leave `problem` out"):
        margin.certify(run, problem)
    with pytest.raises(ValueError, match="reads the series gap_l2, gap_linf and gap_metric"):
        margin.which(run)
    sgd = sgf.StochasticGradientDescent(0.1)
    seeds = sgf.simulate(sgd, model, problem, keys=sgf.seeds(0, 2), steps=2)
    with pytest.raises(
        ValueError, match="`certify` takes a single run, but there is an axis of seeds"
    ):
        margin.certify(seeds)


@pytest.mark.slow
def test_which_says_what_the_run_obeys():
    """Gradient flow solves l2 on these data, and AdaGrad its own metric only."""
    found = {}
    for name, conditioner in (("gd", margin.Identity()), ("adagrad", margin.AdaGrad(1e-8))):
        start = margin.Linear(jnp.zeros(4))
        run = sgf.simulate(margin.MarginFlow(conditioner), start, labelled(), t1=1e4)
        found[name] = margin.which(run)
        assert margin.certify(run, geometry="metric").stationarity < 1e-3
    assert "l2" in found["gd"].holds
    assert found["adagrad"].holds == ("metric",)
    assert "metric  gap" in repr(found["adagrad"])
    assert "stays" in repr(found["adagrad"])
    short = sgf.simulate(margin.MarginFlow(), start, labelled(), t1=1e4, record=(None, [5e3, 1e4]))
    with pytest.raises(ValueError, match="compares gaps at the last nu with those at a tenth"):
        margin.which(short)


@pytest.mark.slow
def test_the_code_of_the_guide_as_a_user_writes_it():
    """A smooth network to a loss of 1e-1000, as in the guide."""
    key = jax.random.key(0)
    X = jax.random.normal(key, (12, 5))
    y = jnp.where(X[:, 0] > 0, 1.0, -1.0)
    problem = sgf.Problem(X, y, loss=margin.ExponentialLoss())
    model = eqx.nn.MLP(
        5,
        "scalar",
        4,
        1,
        use_bias=False,
        use_final_bias=False,
        activation=lambda z: jax.nn.relu(z) ** 2,
        key=key,
    )
    assert margin.homogeneity(model, problem.inputs).degree == 3
    flow = margin.MarginFlow(margin.AdaGrad(eps=1e-8))
    run = sgf.simulate(flow, model, problem, t1=2302.6)
    assert run.statuses() == {"moving": 1}
    np.testing.assert_allclose(run.final["log10_loss"], -1001.1, atol=0.1)
    np.testing.assert_allclose(run["nu"], run.times, rtol=1e-6, atol=1e-6)
    for name in ("nu", "log10_loss", "log_time", "margin_l2", "margin_linf", "surrogate_margin"):
        assert np.all(np.isfinite(run[name][1:]))
    assert run.final["conditioner"].shape == (24,)
    certificate = margin.certify(run, geometry="metric")
    assert certificate.degree == 3
    assert certificate.alignment_gap < 0.2
    late = np.asarray(run["nu"]) > 1
    assert np.all(np.diff(np.asarray(run["surrogate_margin"])[late]) > 0)
