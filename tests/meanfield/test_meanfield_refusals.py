"""What the system refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.parts import check_size, warn_of_memory

KEY = jax.random.key(0)
MIXTURE = mf.GaussianMixture(2.0)
RULE = mf.MaskedDescent(0.1)
LOGISTIC = sgf.LogisticLoss()


def refused(words):
    return pytest.raises(ValueError, match=words)


def test_data_outside_their_ranges():
    with refused("`alpha` is the number of examples per dimension.* but is -1"):
        mf.GaussianMixture(-1.0)
    with refused("`spectrum` must have only finite entries that are not negative, but has -0.5"):
        mf.GaussianMixture(1.0, spectrum=[1.0, -0.5])
    with refused("there are 2 for 3 eigenvalues"):
        mf.GaussianMixture(1.0, spectrum=[1.0, 2.0, 3.0], mean_energy=[1.0, 1.0])
    with refused("`clusters` must be 2 or 3, but is 4"):
        mf.GaussianMixture(1.0, clusters=4)
    with refused("`label_noise` must be non-negative"):
        mf.LinearTeacher(1.0, label_noise=-1.0)


def test_rules_outside_their_ranges():
    with refused("`step_size` must be positive"):
        mf.MaskedDescent(0.0)
    with refused(r"`mask` must be BernoulliMask\(fraction\)"):
        mf.MaskedDescent(0.1, 0.3)
    with refused("on the sphere the norm of w is fixed"):
        mf.MaskedDescent(0.1, ridge=0.1, sphere=True)
    with refused("`variance` must be non-negative"):
        mf.Start(variance=-1.0)
    with refused(r"at least max\(1, \(1 - fraction\)/fraction\) = 2.33333"):
        mf.MaskedDescent(0.1, sgf.PersistentMask(0.3, persistence=2.0))
    with refused("`fraction` must be above 0 and at most 1"):
        mf.MaskedDescent(0.1, sgf.BernoulliMask(1.5))


def solved(data=MIXTURE, loss=LOGISTIC, rule=RULE, **options):
    return mf.solve(data, loss, rule, **{"steps": 2, "keys": KEY, "samples": 8, **options})


def test_parts_that_do_not_fit():
    with refused("`data` must be a law of data, such as GaussianMixture"):
        solved(data=jnp.ones((3, 2)))
    with refused(r"the order is \(data, loss, rule\)"):
        solved(rule=LOGISTIC)
    with refused("`start` must be a Start"):
        solved(start=0.1)
    with refused("on the sphere w cannot start at 0"):
        solved(rule=mf.MaskedDescent(0.1, sphere=True))
    with refused("RandomLabels have no direction, so the overlap of the start must be 0"):
        solved(data=mf.RandomLabels(1.0), start=mf.Start(overlap=0.5))
    with refused("LogisticLoss needs labels -1 and 1"):
        solved(data=mf.LinearTeacher(1.0))
    with refused("`dtype` must be 'float32' or 'float64', but is 'float16'"):
        solved(dtype="float16")
    with refused("`replicas` must be a whole number"):
        solved(replicas=3)


def test_losses_that_are_not_smooth():
    with refused("the first derivative of .* jumps, .* use SquaredHingeLoss"):
        solved(loss=lambda f, y: jnp.maximum(1 - y * f, 0))
    with refused("has no finite second derivative at the pre-activation"):
        solved(loss=lambda f, y: jnp.log(f))


@pytest.mark.slow
def test_derivatives_at_a_corner_of_the_curvature():
    def final(eta):
        rule = mf.MaskedDescent(eta)
        return solved(loss=sgf.SquaredHingeLoss(1.0), rule=rule).overlap[-1]

    with refused("the second derivative of this loss jumps"):
        jax.grad(final)(0.1)


def test_runs_that_are_too_large_say_what_fits():
    with refused("1000 steps of 6,000 samples need 11.* GiB: write memory="):
        check_size(1000, 6000, 1, None, 4)
    check_size(1000, 6000, 1, 200, 4)
    check_size(500, 100_000, 1, None, 4)
    with refused("200 steps of 4,000 samples need 3.* GiB: write memory="):
        check_size(200, 4000, 1, None, 4, 10)


def test_simulations_need_a_dimension():
    with refused("`d`, the number of dimensions, is needed"):
        mf.simulate(MIXTURE, LOGISTIC, RULE, steps=2, keys=KEY)
    with refused("alpha = 2.5 and d = 5 give 12.5"):
        mf.simulate(mf.GaussianMixture(2.5), LOGISTIC, RULE, steps=2, keys=KEY, d=5)
    two = mf.GaussianMixture(2.0, spectrum=[1.0, 2.0])
    with refused("d must be a multiple of the number of eigenvalues, 2"):
        mf.simulate(two, LOGISTIC, RULE, steps=2, keys=KEY, d=5)


TRIANGLE = mf.Mixture(2.0, [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
SOFTMAX = sgf.SoftmaxCrossEntropyLoss()


def test_mixtures_and_teachers_outside_their_ranges():
    with refused(r"`means` must have shape \(classes, directions\).* shape \(1, 2\)"):
        mf.Mixture(1.0, [[1.0, 2.0]])
    with refused("`weights` must have one entry for each of the 2 classes"):
        mf.Mixture(1.0, [[1.0], [2.0]], weights=[1.0])
    with refused(r"`weights` are chances, .* but they are \[0.75, 0.75\]"):
        mf.Mixture(1.0, [[1.0], [2.0]], weights=[0.75, 0.75])
    with refused("there are 2 for 3 eigenvalues"):
        mf.LinearTeacher(1.0, spectrum=[1.0, 2.0, 3.0], energy=[1.0, 1.0])
    with refused("the teacher sees nothing"):
        mf.LinearTeacher(1.0, spectrum=[1.0, 0.0], energy=[0.0, 1.0])


def test_starts_that_are_no_covariance():
    with refused("`variance` must be a symmetric matrix"):
        mf.Start(variance=[[1.0, 0.5], [0.0, 1.0]])
    with refused("has the negative eigenvalue -1"):
        mf.Start(variance=[[1.0, 2.0], [2.0, 1.0]])
    with refused("`overlap` must be a number or a matrix"):
        mf.Start(np.ones(3))


def several(loss=SOFTMAX, rule=RULE, **options):
    return solved(TRIANGLE, loss, rule, **options)


def test_several_outputs_that_do_not_fit():
    with refused("GaussianMixture is for models with one output"):
        solved(outputs=2)
    with refused("GaussianMixture is for models with one output"):
        solved(start=mf.Start([[0.1]]))
    with refused("their number is needed: write outputs=2"):
        several(readout=lambda r: r)
    with refused(r"an overlap of shape \(3, 2\) and a variance of shape \(3, 3\)"):
        several(outputs=3, start=mf.Start(np.ones((2, 2))))
    with refused(r"is a matrix of shape \(3, 2\), or 0, but is 0.5"):
        several(start=mf.Start(0.5))
    with refused("`readout` must be a function of 2 pre-activations"):
        several(outputs=2, readout=lambda r: r[0] @ r)
    with refused("the labels must be from 0 to 1"):
        several(outputs=2)
    with refused("the labels must be from 0 to 1"):
        mf.simulate(TRIANGLE, SOFTMAX, RULE, steps=2, keys=KEY, d=4, outputs=2)
    with refused("2 dimensions for each eigenvalue, as many as directions, but d = 1"):
        mf.simulate(TRIANGLE, SOFTMAX, RULE, steps=2, keys=KEY, d=1)
    with refused("the stationary point is known for one output only"):
        mf.stationary_point(TRIANGLE, SOFTMAX, ridge=0.1)


def test_losses_of_several_outputs_that_are_not_smooth():
    with refused("the first derivative of .* jumps"):
        several(loss=lambda r, y: jnp.max(r) - r[y])


def test_memory_that_is_left_out_is_warned_of():
    """With the share of the first lag that the last one still has."""
    with pytest.warns(UserWarning, match="`memory` keeps has 2.0% of the memory of the first"):
        warn_of_memory(jnp.asarray([[1.0, 0.01], [1.0, 0.03]]), True)
    with pytest.warns(UserWarning, match="more than 1%"):
        warn_of_memory(jnp.asarray([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.1], [0.0, 0.0]]]), False)
    warn_of_memory(jnp.asarray([1.0, -0.009]), False)
    warn_of_memory(None, True)


@pytest.mark.slow
def test_a_short_memory_is_warned_of_and_a_long_one_is_not():
    rule = mf.MaskedDescent(0.2, sgf.BernoulliMask(0.5), ridge=2.5)
    options = {"steps": 16, "samples": 4000, "rule": rule, "keys": sgf.seeds(0, 2)}
    with pytest.warns(UserWarning, match="take a larger `memory`"):
        solved(memory=2, **options)
    solved(memory=10, **options)


def test_reports_need_noise_and_plain_steps():
    problem = sgf.Problem(jnp.ones((4, 2)), jnp.ones(4))
    model = lambda x: x[0]  # noqa: E731

    def report(dynamics, **options):
        options = {"keys": sgf.seeds(0, 2), "steps": 10, "waiting": 2, **options}
        return mf.noise_report(dynamics, model, problem, **options)

    sgd = sgf.StochasticGradientDescent(0.1)
    with refused("GradientDescent has no noise to report"):
        report(sgf.GradientDescent(0.1))
    with refused("leave out the momentum"):
        report(sgf.StochasticGradientDescent(0.1, momentum=0.9))
    with refused("must be a discrete algorithm with a constant step size"):
        report(sgf.GradientFlow())
    with refused("needs two keys or more"):
        report(sgd, keys=KEY)
    with refused("`waiting` must leave four steps or more, but is 8 of 10"):
        report(sgd, waiting=8)
