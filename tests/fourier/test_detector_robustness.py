"""The table of attacked, certified and true accuracy, and training against attacks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacks import data, margins, network

import sgfbias as sgf
from sgfbias import fourier

KEY = jax.random.key(2)


@pytest.mark.slow
def test_the_table_has_the_curves_of_its_parts():
    net, (x, y) = network(10, 4, 1), data(30, 10, 1)
    found = fourier.robustness(net, x, y, 4, most=30 * 60)
    attack, proved = fourier.attack(net, x, y, 4), fourier.certify(net, x, y, 4)
    np.testing.assert_array_equal(found.attack.margin, attack.margin)
    np.testing.assert_array_equal(found.certificate.margin, proved.margin)
    # 1 + 10 + 45 sets of at most two flips fit into 60 for each example.
    truth = fourier.attack(net, x, y, 2, method="exhaustive")
    np.testing.assert_array_equal(found.truth.curve, truth.curve)
    table = found.to_xarray()
    np.testing.assert_array_equal(table["attacked_accuracy"], attack.curve)
    np.testing.assert_array_equal(table["certified_accuracy"], proved.curve)
    np.testing.assert_array_equal(table["true_accuracy"][:3], truth.curve)
    assert np.isnan(table["true_accuracy"][3:]).all()
    np.testing.assert_array_equal(table["certified_margin"], proved.margin)
    rows = str(found).splitlines()
    assert rows == repr(found).splitlines()
    assert rows[0].split() == ["flips", "attacked", "true", "certified"]
    curve = attack.curve
    assert rows[3].split() == [
        "2", *(f"{float(v):.1%}" for v in (curve[2], truth.curve[2], proved.curve[2]))
    ]  # fmt: skip
    assert rows[4].split()[2] == "-"
    assert rows[-1] == "accuracy of 30 examples; attack: greedy"


@pytest.mark.slow
def test_without_a_certificate_the_table_says_why():
    net, (x, y) = network(6, 3, 1, activation=jax.nn.gelu), data(8, 6, 1)
    found = fourier.robustness(net, x, y, 1, method="fgsm")
    assert found.certificate is None
    assert "no certificate: gelu is not monotone" in str(found)
    assert "certified_margin" not in found.to_xarray()
    assert np.isnan(found.to_xarray()["certified_accuracy"]).all()


def test_most_has_a_bound():
    net, (x, y) = network(6, 3, 1), data(8, 6, 1)
    with pytest.raises(ValueError, match="`most` must be a whole number >= 0 and <= 100,000,000"):
        fourier.robustness(net, x, y, 1, most=10**9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fgsm", pytest.param("greedy", marks=pytest.mark.slow)])
def test_the_rule_attacks_the_share_of_a_batch(method):
    net, (x, y) = network(9, 4, 3), data(4000, 9, 3)
    rule = fourier.Adversary(method, flips=2, share=0.3)
    found = np.asarray(rule(net, jnp.asarray(x), jnp.asarray(y), KEY))
    attacked = np.asarray(fourier.attack(net, x, y, 2, method=method).inputs)
    changed = (found != x).any(axis=1)
    np.testing.assert_array_equal(found[changed], attacked[changed])
    # Of the examples that an attack would change, each was with probability 0.3.
    could = (attacked != x).any(axis=1).sum()
    assert abs(changed.sum() / could - 0.3) < 4 * np.sqrt(0.21 / could)
    everything = fourier.Adversary(method, flips=2)(net, jnp.asarray(x), jnp.asarray(y), KEY)
    np.testing.assert_array_equal(everything, attacked)
    nothing = fourier.Adversary(method, flips=0)(net, jnp.asarray(x), jnp.asarray(y), KEY)
    np.testing.assert_array_equal(nothing, x)


@pytest.mark.slow
def test_a_step_against_the_adversary_is_a_step_on_attacked_examples():
    """Written out: gradient descent on the examples that FGSM moves, at every step."""
    net, (x, y) = network(8, 3, 4, scale=1.0), data(12, 8, 4)
    y = 2.0 * y - 1
    problem = sgf.Problem(x, y, loss=sgf.LogisticLoss(), perturb=fourier.Adversary("fgsm", flips=2))
    run = sgf.simulate(sgf.GradientDescent(0.3), net, problem, keys=jax.random.key(0), steps=3)
    clean = sgf.Problem(x, y, loss=sgf.LogisticLoss())
    expected = net
    for _ in range(3):
        attacked = fourier.attack(expected, x, y, 2, method="fgsm").inputs
        moved = sgf.Problem(attacked, y, loss=sgf.LogisticLoss())
        slope = eqx.filter_grad(moved.risk)(expected)
        expected = eqx.apply_updates(expected, jax.tree.map(lambda g: -0.3 * g, slope))
    for found, wanted in zip(
        jax.tree.leaves(eqx.filter(run.networks, eqx.is_array)),
        jax.tree.leaves(eqx.filter(expected, eqx.is_array)),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_allclose(run.final["loss"], clean.risk(expected), rtol=1e-10)
    assert not np.allclose(margins(net, x, y > 0), margins(expected, x, y > 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"method": "beam", "flips": 2},
            "must be one of 'greedy', 'jsma', 'fgsm', but is the word",
        ),
        ({"method": "fgms", "flips": 2}, "did you mean fgsm"),
        ({"flips": 2, "share": 1.5}, "`share` must be between 0 and 1, but is 1.5"),
        ({"flips": -2}, "`flips` must be a whole number >= 0"),
        ({"flips": 2, "moves": [1]}, "`moves` must be BitFlips"),
    ],
)
def test_an_adversary_that_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        fourier.Adversary(**options)
