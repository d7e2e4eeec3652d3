"""Committees of teachers, and spheres for several outputs: against the theory of one
output, against closed forms, and against finite systems.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from scipy import special

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.error import against_teacher
from sgfbias.meanfield.solution import draw_effective, solve_drawn

SQUARE = sgf.SquaredLoss(0.5)
KEY = jax.random.key(0)


def soft(h):
    """The mean of the error functions of pre-activations."""
    return jnp.mean(erf(h / 2**0.5))


def first(h):
    return h[0]


def mean_and_error(values):
    values = np.asarray(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def near(values, others, least=0.0):
    """Whether two means over keys are within four joint standard errors."""
    (one, own), (two, other) = mean_and_error(values), mean_and_error(others)
    error = np.hypot(own, other) + least
    assert np.all(np.abs(one - two) < 4 * error), (one, two, error)


@pytest.mark.slow
@pytest.mark.parametrize("sphere", [False, True])
def test_a_committee_of_one_is_the_theory_of_one_output(sphere):
    """The same effective examples give the same curves, also on the sphere."""
    steps = 10
    mask = sgf.PersistentMask(0.4, persistence=5.0)
    rule = mf.MaskedDescent(0.1, mask, ridge=0.0 if sphere else 0.2, sphere=sphere)
    one = mf.LinearTeacher(2.0, label_noise=0.3)
    many = mf.CommitteeTeacher(2.0, first, directions=1, label_noise=0.3)
    with jax.enable_x64(True):
        effective = draw_effective(one, rule, KEY, steps, 200, 2, jnp.float64)
        start = mf.Start(0.2, 0.3)
        expected = solve_drawn(one, SQUARE, rule, start, effective, None, steps)
        wide = effective._replace(drift=effective.drift[:, None], white=effective.white[:, :, None])
        start = mf.Start([[0.2]], 0.3)
        found = solve_drawn(many, SQUARE, rule, start, wide, first, steps)
    for name in ("overlap", "correlation", "response", "loss", "distance"):
        shape = expected[name].shape
        np.testing.assert_allclose(found[name].reshape(shape), expected[name], atol=1e-11)
    np.testing.assert_allclose(found["test_error"], expected["test_error"], rtol=2e-3)


def soft_committee(of, sphere, **options):
    """Two students of two teachers, with masks, noise of the labels and replicas."""
    law = mf.CommitteeTeacher(3.0, soft, directions=2, label_noise=0.2)
    mask = sgf.PersistentMask(0.4, persistence=4.0)
    rule = mf.MaskedDescent(0.5, mask, ridge=0.0 if sphere else 0.1, sphere=sphere)
    start = mf.Start([[0.4, 0.0], [0.1, 0.2]], [[0.5, 0.1], [0.1, 0.3]])
    return of(law, SQUARE, rule, steps=6, start=start, readout=soft, replicas=2, **options)


@functools.cache
def soft_theory(sphere):
    return soft_committee(mf.solve, sphere, samples=2000, keys=sgf.seeds(0, 6))


@pytest.mark.slow
@pytest.mark.parametrize("sphere", [False, True])
def test_soft_committees_learn_as_finite_systems_do(sphere):
    theory = soft_theory(sphere)
    runs = soft_committee(mf.simulate, sphere, d=160, keys=sgf.seeds(0, 12))
    for t in (0, 3, 6):
        near(theory.overlap[:, t], runs.overlap[:, t], 1e-12)
        # On the sphere the norm is exact up to rounding.
        near(theory.correlation[:, t, t], runs.correlation[:, t, t], 1e-6)
        near(theory.loss[:, t], runs.loss[:, t])
        near(theory.test_error[:, t], runs.test_error[:, t], 2e-4)
    near(theory.correlation[:, 6, 3], runs.correlation[:, 6, 3])
    near(theory.distance[:, 6], runs.distance[:, 6])
    grown = np.asarray(theory.overlap)[:, -1].mean(axis=0)
    assert grown[0, 0] > 0.1 + grown[0, 1]
    assert theory.distance[:, 6].mean() > 0.02
    if sphere:
        norms = np.diagonal(theory.correlation[..., [0, 1], [0, 1]], axis1=1, axis2=2)
        np.testing.assert_allclose(norms, 1, atol=1e-6)


def response_on_spheres(rng, d):
    """chi(6, 2), (K, K), of a finite system of `soft_committee` by NumPy: traces over d
    of the derivatives of w after 6 steps in constant forces from step 2 on.
    """
    eta, b, q, n = 0.5, 0.4, 4.0, 3 * d
    v = np.sqrt(d) * np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    y = special.erf(x @ v.T / 2**0.5).mean(axis=1) + 0.2 * rng.normal(size=n)
    root = np.linalg.cholesky([[0.5, 0.1], [0.1, 0.3]])
    w = np.array([[0.4, 0.0], [0.1, 0.2]]) @ v + root @ rng.normal(size=(2, d))
    w *= np.sqrt(d) / np.linalg.norm(w, axis=1, keepdims=True)
    moved, inside = np.zeros((2, d, 2, d)), rng.random(n) < b
    for t in range(6):
        r = x @ w.T
        gap = special.erf(r / 2**0.5).mean(axis=1) - y
        slope = np.exp(-(r**2) / 2) / np.sqrt(2 * np.pi)  # of the mean of two
        mask = inside / b
        hessian = slope[:, :, None] * slope[:, None]
        hessian[:, [0, 1], [0, 1]] -= gap[:, None] * r * slope
        if t >= 2:
            seen = np.tensordot(x, moved, (1, 1))
            seen = np.einsum("n,nac,ncbj->anbj", mask, hessian, seen)
            moved = moved - eta * np.tensordot(x, seen, (0, 1)).swapaxes(0, 1)
            moved += eta * np.einsum("ab,ij->aibj", np.eye(2), np.eye(d))
        w = w - eta * (mask * gap)[None] * slope.T @ x
        scale = np.sqrt(d) / np.linalg.norm(w, axis=1)
        # The projection also takes away the part along w, which is 1/d of the trace.
        w, moved = scale[:, None] * w, scale[:, None, None, None] * moved
        u = rng.random(n)
        inside = np.where(inside, u >= (1 - b) / (b * q), u < 1 / q)
    return np.einsum("aibi->ab", moved) / d


@pytest.mark.slow
def test_the_response_on_spheres_is_that_of_finite_systems():
    """A force on one output also moves the other."""
    found = [response_on_spheres(np.random.default_rng(seed), 80) for seed in range(8)]
    chi = 0.5 * np.asarray(soft_theory(True).response)[:, 6, 2:6].sum(axis=1)
    near(chi, found)
    mean, error = mean_and_error(found)
    assert np.all(error < 0.03)
    assert np.all(np.abs(mean[[0, 1], [1, 0]]) > 10 * error[[0, 1], [1, 0]])


def test_errors_of_committees_against_closed_forms():
    """The angle of two perceptrons, with labels -1 and 1 and with classes; a difference
    of two linear functions; and a student that is the teacher.
    """
    m, c = jnp.asarray([[[0.6]], [[-0.2]]]), jnp.asarray([[[0.9]], [[0.5]]])
    none = jnp.zeros(())
    angle = np.arccos(np.asarray(m / jnp.sqrt(c)).ravel()) / np.pi
    signs = against_teacher(m, c, None, lambda h: jnp.sign(h[0]), none)
    classes = against_teacher(m, c, None, lambda h: (h[0] > 0).astype(int), none)
    for found in (signs, classes):
        np.testing.assert_allclose(found, angle, atol=2e-3)
    two = against_teacher(m, c, first, first, jnp.asarray(0.4))
    np.testing.assert_allclose(two, 1 - 2 * m[:, 0, 0] + c[:, 0, 0] + 0.16, rtol=2e-3)
    one = jnp.eye(3)
    assert float(against_teacher(one, one, None, jnp.argmax, none)) == 0
    same = against_teacher(one, one, soft, soft, none)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    half = against_teacher(0 * one, one, lambda r: r[0], lambda h: jnp.sign(h[1]), none)
    np.testing.assert_allclose(half, 0.5, atol=2e-3)


class Steep(eqx.Module):
    """A committee of teachers with a gain."""

    gain: jax.Array

    def __call__(self, h):
        return jnp.mean(jnp.tanh(self.gain * h))


@pytest.mark.slow
def test_derivatives_in_a_teacher_are_those_of_differences():
    def final(gain):
        law = mf.CommitteeTeacher(2.0, Steep(gain), directions=2, label_noise=0.1)
        curves = mf.solve(
            law,
            SQUARE,
            mf.MaskedDescent(0.3),
            steps=3,
            samples=50,
            keys=KEY,
            start=mf.Start(variance=0.3),
            outputs=1,
            readout=soft,
            dtype="float64",
        )
        return curves.loss[-1] + curves.overlap[-1, 0, 1] + curves.correlation[-1, 1, 0, 0]

    at = jnp.asarray(0.9)
    expected = (final(at + 1e-6) - final(at - 1e-6)) / 2e-6
    found = jax.jvp(final, (at,), (jnp.ones_like(at),))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_committees_and_spheres_that_do_not_fit():
    def refused(words):
        return pytest.raises(ValueError, match=words)

    def committee(label=soft, **options):
        return mf.CommitteeTeacher(2.0, label, **{"directions": 2, **options})

    with refused("`directions` must be a whole number"):
        committee(directions=0.5)
    with refused("`label_noise` must be non-negative"):
        committee(label_noise=-1.0)
    with refused("`label` must be a function of the pre-activations of the teacher"):
        committee(label=0.5)
    with refused(r"`label` must return one number .* but returns shape \(2,\)"):
        committee(label=jnp.tanh)
    with refused("`label` must return one number .* but returns no number"):
        committee(label=lambda h: h[0] > 0)
    with refused(r"of 2 pre-activations, an array of shape \(2,\), but it fails on one"):
        committee(label=lambda h: h @ jnp.ones(3))
    with refused("classes, which have no noise: leave out `label_noise`"):
        committee(label=jnp.argmax, label_noise=0.1)
    options = {"steps": 1, "keys": KEY, "outputs": 2, "readout": soft}
    with refused("LogisticLoss needs labels -1 and 1"):
        mf.solve(committee(), sgf.LogisticLoss(), mf.MaskedDescent(0.1), **options)
    with refused("2 orthogonal directions need as many dimensions, but d = 1"):
        mf.simulate(committee(), SQUARE, mf.MaskedDescent(0.1), d=1, **options)
    sphere, start = mf.MaskedDescent(0.1, sphere=True), mf.Start([[0.1, 0], [0, 0]])
    with refused("no output can start at 0, which has no direction, but output 1 does"):
        mf.solve(committee(), SQUARE, sphere, start=start, **options)
    with refused("`label` contains a number that is traced"):
        jax.jit(lambda a: committee(label=lambda h: a * soft(h)).typical())(1.0)
