"""The KKT point below given weights, against closed forms and its own conditions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import margin

INPUTS = jax.random.normal(jax.random.key(1), (7, 4))
LABELS = jnp.where(INPUTS[:, 0] > 0, 1.0, -1.0)


class Product(eqx.Module):
    """`f(x) = x w_1 ... w_L`."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(x) * jnp.prod(self.w)


def labelled(X=INPUTS, y=LABELS, loss=None):
    return sgf.Problem(X, y, loss=loss or margin.ExponentialLoss())


def squared_relu(z):
    return jax.nn.relu(z) ** 2


def squared(width=6, seed=0):
    """A squared-ReLU network that fits the labels, by a ridge on random features."""
    key = jax.random.key(seed)
    model = eqx.nn.MLP(
        4, "scalar", width, 1, use_bias=False, use_final_bias=False, activation=squared_relu,
        key=key,
    )  # fmt: skip
    features = np.asarray(jax.vmap(lambda x: squared_relu(model.layers[0](x)))(INPUTS))
    last = np.linalg.lstsq(features, np.asarray(LABELS), rcond=None)[0]
    return eqx.tree_at(lambda m: m.layers[1].weight, model, jnp.asarray(last)[None])


def test_linear_models_land_at_the_maximal_margin():
    model = margin.Linear(jnp.asarray([3.0, 0.1, -0.2, 0.3]) / 0.05)
    metric = np.array([0.5, 2.0, 1.0, 3.0])
    for geometry in ("l2", metric):
        found = margin.land(model, labelled(), geometry=geometry)
        best = margin.max_margin(INPUTS, LABELS, norm=geometry)
        assert found.reached
        assert found.iterations <= 2
        np.testing.assert_allclose(found.network.w, best.weights, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.certificate.margin, best.margin, rtol=1e-9)
        root = np.ones(4) if isinstance(geometry, str) else np.sqrt(metric)
        a, b = np.asarray(model.w) * root, best.weights * root
        angle = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        np.testing.assert_allclose(found.moved_degrees, angle, rtol=1e-6)
    assert repr(found).startswith("landed in metric after")


@pytest.mark.parametrize("degree", [2, 3])
def test_products_land_at_equal_weights(degree):
    """Of all weights with product 1 over x the shortest are equal."""
    one = labelled(jnp.full((1, 1), 4.0), jnp.ones(1))
    start = Product(jnp.asarray([30.0, 5.0, 11.0][:degree]))
    found = margin.land(start, one)
    assert found.reached
    np.testing.assert_allclose(found.network.w, 4 ** (-1 / degree), rtol=1e-5)
    certificate = found.certificate
    # L sum lambda q = |w|^2.
    np.testing.assert_allclose(
        degree * float(np.sum(certificate.multipliers * certificate.margins)),
        float(jnp.sum(found.network.w**2)),
        rtol=1e-8,
    )


def test_a_network_lands_at_a_kkt_point_with_a_larger_margin():
    model, problem = squared(), labelled()
    before = margin.certify(model, problem)
    found = margin.land(model, problem, tol=1e-7)
    after = found.certificate
    assert found.reached
    assert before.stationarity > 1e-2
    assert after.stationarity < 1e-6
    assert abs(after.complementarity) < 1e-7
    assert after.margin > before.margin
    assert found.moved_degrees > 1
    w2 = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(eqx.filter(
        found.network, eqx.is_array)))  # fmt: skip
    np.testing.assert_allclose(3 * float(after.multipliers @ after.margins), w2, rtol=1e-8)
    np.testing.assert_allclose(after.margins.min(), 1, rtol=1e-12)
    # It is at rest there.
    again = margin.land(found.network, problem)
    assert again.iterations == 1
    assert again.moved_degrees < 1e-4


class Unit(eqx.Module):
    """`f(x) = sum_k a_k relu(w_k x)^2`."""

    w: jax.Array
    a: jax.Array

    def __call__(self, x):
        return jnp.sum(self.a * squared_relu(self.w @ x))


def test_dead_units_are_dropped():
    """A unit that no example activates has no part in any margin."""
    X = jnp.asarray([[1.0, 2.0], [2.0, 0.5]])
    model = Unit(jnp.asarray([[1.0, 0.5], [-1.0, -3.0]]), jnp.asarray([2.0, 7.0]))
    found = margin.land(model, labelled(X, jnp.ones(2)))
    assert found.reached
    np.testing.assert_array_equal(found.network.w[1], 0)
    assert float(found.network.a[1]) == 0
    alone = margin.land(Unit(model.w[:1], model.a[:1]), labelled(X, jnp.ones(2)))
    np.testing.assert_allclose(found.network.w[0], alone.network.w[0], rtol=1e-5)


def test_what_cannot_land_is_refused():
    problem, model = labelled(), margin.Linear(jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="for the geometries 'l2' and 'metric', but geometry='li"):
        margin.land(model, problem, geometry="linf")
    with pytest.raises(ValueError, match="the data are not fitted: q_min = -"):
        margin.land(margin.Linear(-model.w), problem)
    with pytest.raises(ValueError, match=r"land\(model, problem\) needs the Problem"):
        margin.land(model)
    with pytest.raises(ValueError, match="`tol` must be positive"):
        margin.land(model, problem, tol=0.0)
    with pytest.raises(ValueError, match="needs the conditioner of a run"):
        margin.land(model, problem, geometry="metric")
    few = margin.land(squared(), problem, most=1)
    assert not few.reached
    assert repr(few).startswith("did not land in l2 after 1 iterations")
    assert "take more iterations" in repr(few)


def test_which_of_a_model_has_gaps_and_no_ratios():
    problem, model = labelled(), margin.Linear(jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    found = margin.which(model, problem)
    assert found.geometries == ("l2", "linf")
    assert found.holds == ()
    np.testing.assert_allclose(found.gaps[0], margin.certify(model, problem).alignment_gap)
    assert "at a tenth" not in repr(found)
    with pytest.raises(ValueError, match=r"which\(model, problem\) needs the Problem"):
        margin.which(model)
