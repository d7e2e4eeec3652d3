"""For bad input every message says what was given, what was expected and what to do."""

import types

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias.diagonal import stepsize
from sgfbias.diagonal.files import load_problem
from sgfbias.diagonal.setup import step_size
from sgfbias.diagonal.stepsize import find_step_size, predicted_edge
from sgfbias.study import store

PROBLEM, NET, KEYS = small_problem(), network(), sgf.seeds(0, 2)
FLOW = sgf.StochasticGradientFlow(0.02)


def flow(*args, **kwargs):
    return sgf.StochasticGradientFlow(*args, **kwargs)


def run(dynamics=FLOW, net=NET, problem=PROBLEM, **kwargs):
    return sgf.simulate(dynamics, net, problem, **{"keys": KEYS, "steps": 10, **kwargs})


INPUTS, LABELS, SOFTMAX = (
    np.random.default_rng(0).normal(size=(6, 3)),
    np.arange(6) % 3,
    sgf.SoftmaxCrossEntropyLoss(),
)
DEEP = sgf.DiagonalNetwork.init(alpha=0.3, d=25, depth=3)


def mlp(outputs):
    return eqx.nn.MLP(3, outputs, 4, 1, dtype=jnp.float64, key=jax.random.key(0))


def labelled(targets, loss=None):
    return sgf.Problem(INPUTS, targets, loss=loss)


class Contrast(sgf.AbstractLoss):
    """A loss that compares each example with the mean of all examples."""

    def __call__(self, outputs, targets):
        return jnp.sum(jnp.square(outputs - outputs.mean(axis=0)), axis=1)


CASES = {
    "half precision": (
        lambda: sgf.Problem(INPUTS.astype(np.float16), INPUTS),
        "dtype float16, .* must be float32 or float64",
    ),
    "complex parameters": (
        lambda: run(
            sgf.GradientDescent(0.1),
            jax.tree.map(lambda v: v.astype(complex) if eqx.is_array(v) else v, mlp(3)),
            labelled(LABELS, SOFTMAX),
            keys=None,
        ),
        "must be real, but MLP has one of dtype complex128",
    ),
    "integral of a transformation": (
        lambda: sgf.OptaxDescent(optax.adam(1e-3), 1.0, integral="none"),
        "'full', 'batch' or 'examples'",
    ),
    "a transformation that draws": (
        lambda: run(
            sgf.OptaxDescent(optax.add_noise(0.1, 0.5, 0), 1.0),
            mlp(3),
            labelled(LABELS, SOFTMAX),
            keys=None,
        ),
        "OptaxDescent is random and needs keys",
    ),
    "trainable of an attribute": (
        lambda: run(
            sgf.GradientDescent(0.1),
            mlp(3),
            labelled(LABELS, SOFTMAX),
            keys=None,
            trainable=lambda leaf: leaf.name == "w",
        ),
        "a function of an array that returns True or False",
    ),
    "brownian_dt traced": (
        lambda: jax.grad(lambda gamma: flow(gamma, brownian_dt=0.01).step_size)(0.02),
        "`brownian_dt` needs concrete widths",
    ),
    "nan in X": (
        lambda: sgf.SparseRegression(np.array([[1.0, np.nan]]), np.ones(1)),
        r"`X` must be finite, but 1 of 2 .*index \(0, 1\)",
    ),
    "inf in y": (
        lambda: sgf.SparseRegression(np.ones((2, 3)), np.array([1.0, np.inf])),
        "`y` must be finite",
    ),
    "nan in truth": (
        lambda: sgf.SparseRegression(np.ones((1, 2)), np.ones(1), np.array([np.nan, 1])),
        "`beta_star` must be finite",
    ),
    "y too long": (
        lambda: sgf.SparseRegression(np.ones((2, 3)), np.ones(3)),
        r"`y` must have shape \(2,\), as X has 2 rows, one for each example, but has shape \(3,\)",
    ),
    "truth too long": (
        lambda: sgf.SparseRegression(np.ones((2, 3)), np.ones(2), np.ones(2)),
        r"`beta_star` must have shape \(3,\)",
    ),
    "X a vector": (
        lambda: sgf.SparseRegression(np.ones(3), np.ones(3)),
        r"`X` must have shape \(n, d\), but has shape \(3,\)",
    ),
    "no examples": (
        lambda: sgf.SparseRegression(np.ones((0, 3)), np.ones(0)),
        "at least one example",
    ),
    "no examples, any problem": (lambda: sgf.Problem(np.ones((0, 3)), np.ones(0)), "n >= 1"),
    "n = 0 sampled": (
        lambda: sgf.SparseRegression.sample(jax.random.key(0), n=0, d=3, sparsity=1),
        "n >= 1",
    ),
    "sparsity": (
        lambda: sgf.SparseRegression.sample(jax.random.key(0), n=2, d=3, sparsity=4),
        "between 1 and d=3, but is 4",
    ),
    "text": (lambda: sgf.SparseRegression([["a"]], [1.0]), "`X` must be an array of numbers"),
    "covariance": (
        lambda: sgf.SparseRegression(np.ones((1, 2)), np.ones(1), covariance=-np.eye(2)),
        "positive definite",
    ),
    "disagreeing examples": (
        lambda: sgf.Problem(np.ones((2, 3)), np.ones(3)),
        "same number of examples",
    ),
    "step size 0": (lambda: flow(0.0), "`step_size` must be positive and finite, but is 0.0"),
    "step size < 0": (
        lambda: sgf.GradientDescent(-1.0),
        "`step_size` must be positive and finite, but is -1.0",
    ),
    "step size vector": (lambda: sgf.StochasticGradientDescent(np.ones(2)), "must be a scalar"),
    "dt": (lambda: flow(0.1, dt=-0.1), "`dt` must be positive"),
    "brownian_dt": (lambda: flow(0.1, brownian_dt=0.03), "whole number of times"),
    "order": (lambda: flow(0.1, order=3), "`order` must be a whole number >= 1 and <= 2"),
    "batch size": (
        lambda: sgf.StochasticGradientDescent(0.1, 0),
        "`batch_size` must be a whole number >= 1, but is 0",
    ),
    "delta": (lambda: sgf.LabelNoise(-1.0), "`delta` must be non-negative"),
    "alpha 0": (
        lambda: sgf.DiagonalNetwork.init(alpha=0.0, d=3),
        "`alpha` must be positive, but is 0.0: .*log_alpha",
    ),
    "alpha < 0 in a vector": (
        lambda: sgf.DiagonalNetwork.init(alpha=np.array([1.0, -2.0])),
        "`alpha` must be positive, but is -2.0",
    ),
    "alpha inf": (
        lambda: sgf.DiagonalNetwork.init(alpha=np.inf, d=3),
        "`alpha` must be positive and finite",
    ),
    "alpha without d": (
        lambda: sgf.DiagonalNetwork.init(alpha=0.1),
        "needs the number of features",
    ),
    "no alpha": (lambda: sgf.DiagonalNetwork.init(d=3), "either `alpha` or `log_alpha`"),
    "alpha shape": (
        lambda: sgf.DiagonalNetwork.init(alpha=np.ones(2), d=3),
        r"`alpha` must have shape \(3,\)",
    ),
    "d mismatch": (
        lambda: run(net=network(d=7)),
        r"network has d = 7 .* must have shape \(n, 7\), but have shape \(10, 25\)",
    ),
    "no keys": (lambda: run(keys=None), r"needs keys: write keys=sgfbias.seeds\(0, 256\)"),
    "keys for GD": (lambda: run(sgf.GradientDescent(0.1)), "deterministic"),
    "raw keys": (lambda: run(keys=jnp.zeros((3, 2), jnp.uint32)), "typed PRNG keys"),
    "rbg": (
        lambda: run(keys=jax.random.split(jax.random.key(0, impl="rbg"), 2)),
        "rbg .* default threefry",
    ),
    "seeds": (lambda: sgf.seeds(3, 3), "0 <= start < stop"),
    "steps and t1": (lambda: run(t1=1.0), "either `steps` or `t1`"),
    "steps 0": (lambda: run(steps=0), "`steps` must be a whole number >= 1, but is 0"),
    "chunk": (lambda: run(chunk=10**6), "a whole number >= 1 and <= 65,536"),
    "coordinates": (
        lambda: run(coordinates="polar"),
        "one of 'mirror', 'log', 'weights', but are 'polar'",
    ),
    "SGD in mirror": (
        lambda: run(sgf.StochasticGradientDescent(0.1), coordinates="mirror"),
        "belong to first-order flows",
    ),
    "SGD with a solver": (
        lambda: run(sgf.GradientDescent(0.1), keys=None, solver=dfx.Heun()),
        "`solver` must be left out",
    ),
    "ODE solver": (lambda: run(solver=dfx.Tsit5()), "neither the Itô nor the Stratonovich"),
    "Levy area": (lambda: run(solver=dfx.ShARK()), "Lévy areas"),
    "reversible Heun": (
        lambda: run(solver=dfx.ReversibleHeun()),
        "ReversibleHeun is not available.*use diffrax.Heun",
    ),
    "adaptive steps": (lambda: run(sgf.GradientFlow(), keys=None), "takes `t1`, not `steps`"),
    "adaptive Euler": (
        lambda: run(sgf.GradientFlow(), keys=None, steps=None, t1=1.0, solver=dfx.Euler()),
        "gives no error estimate",
    ),
    "times off the grid": (
        lambda: run(record=sgf.Record(times=[0.0, 0.031])),
        "whole steps of width 0.02, but 0.031 is not",
    ),
    "times beyond": (lambda: run(record=sgf.Record(times=[0.0, 99.0])), "within the run, 0 to 0.2"),
    "unknown observable": (
        lambda: run(record=["spam"]),
        "no observable called 'spam' here; there are loss, loss_integral, beta",
    ),
    "not a function": (lambda: run(record={"a": 3}), "must be a function of the network"),
    "progress": (lambda: run(progress=3), "must be True, False or a function"),
    "isotropic MLP": (
        lambda: sgf.IsotropicNoise(1.0).shapes((3,), None),
        "features of a diagonal network",
    ),
    "two minibatch noises": (
        lambda: run(flow(0.1, sgf.MinibatchNoise(1) + sgf.MinibatchNoise(2))),
        "two minibatch noises",
    ),
    "log_alpha shape": (
        lambda: sgf.select(PROBLEM, np.zeros(3)),
        r"scalar or have shape \(25,\), but has shape \(3,\)",
    ),
    "log_alpha nan": (lambda: sgf.select(PROBLEM, np.nan), "`log_alpha` must be finite"),
    "tolerance": (
        lambda: sgf.select(PROBLEM, 0.0, tolerance=1e-20),
        "below what float64 can reach",
    ),
    "integrals": (
        lambda: sgf.solution_curve(PROBLEM, 0.0, step_size=0.1, integrals=[1.0, 0.5]),
        "increasing array",
    ),
    "no validation": (
        lambda: sgf.SparseRegression(np.ones((1, 2)), np.ones(1)).validation_error(jnp.ones(2)),
        "needs `beta_star` or",
    ),
    "batch beyond n": (
        lambda: run(flow(0.1, sgf.MinibatchNoise(11, replace=False))),
        "at most n = 10 examples, but batch_size is 11",
    ),
    "targets of another shape": (
        lambda: run(
            net=eqx.nn.MLP(25, 1, 4, 1, key=jax.random.key(0)),
            problem=sgf.Problem(PROBLEM.X, PROBLEM.y),
        ),
        r"outputs, \(10, 1\), but have shape \(10,\)",
    ),
    "weights that underflow": (
        lambda: run(net=network(1e-200), coordinates="weights"),
        "too small for weights in float64.*mirror",
    ),
    "landing in weights": (
        lambda: sgf.land(
            sgf.simulate(sgf.GradientFlow(dt=0.1), NET, PROBLEM, steps=3, coordinates="weights")
        ),
        "carries the solver's error",
    ),
    "batch > n": (
        lambda: run(sgf.StochasticGradientDescent(0.1, 11)),
        "at most n = 10, the number of examples, but is 11.*GradientDescent",
    ),
    "batch > n, SVAG": (lambda: run(sgf.SVAG(0.1, 2, 11)), "at most n = 10"),
    "sampling": (
        lambda: sgf.StochasticGradientDescent(0.1, sampling="shuffle"),
        "one of 'with_replacement', .* but is 'shuffle'",
    ),
    "minibatch noise of 0": (
        lambda: sgf.MinibatchNoise(0),
        "`batch_size` must be positive and finite, but is 0.0",
    ),
    "momentum 1": (
        lambda: sgf.GradientDescent(0.1, momentum=1.0),
        "at least 0 and below 1, but is 1",
    ),
    "nesterov alone": (lambda: sgf.GradientDescent(0.1, nesterov=True), "needs a momentum"),
    "svag 0": (lambda: sgf.SVAG(0.1, 0), "`l` must be a whole number >= 1 and .*, but is 0"),
    "svag reshuffled": (
        lambda: sgf.SVAG(0.1, 2, sampling="random_reshuffling"),
        "independent minibatches",
    ),
    "not a transformation": (
        lambda: sgf.OptaxDescent(optax.adam, 0.1),
        "optax.GradientTransformation such as optax.adam",
    ),
    "lambda 0": (lambda: sgf.MomentumFlow(0.0), "`lam` must be positive"),
    "a schedule and dt": (
        lambda: flow(optax.constant_schedule(0.1), dt=0.05),
        "`dt` needs a constant step size.*per_iteration",
    ),
    "a schedule and t1": (
        lambda: run(flow(lambda k: 0.1), steps=None, t1=1.0),
        "give `steps` instead of `t1`",
    ),
    "a schedule of vectors": (
        lambda: sgf.GradientDescent(lambda k: jnp.ones(2)),
        r"must return a scalar, but at iteration 0 it returns shape \(2,\)",
    ),
    "a schedule of nothing": (
        lambda: sgf.GradientDescent(lambda: 0.1),
        "function of the iteration",
    ),
    "a negative schedule": (
        lambda: sgf.GradientDescent(lambda k: -0.1),
        r"`step_size\(0\)` must be non-negative",
    ),
    "a schedule and Milstein": (
        lambda: run(flow(lambda k: 0.1), solver=dfx.ItoMilstein()),
        "not available with schedules",
    ),
    "dt and per_iteration": (lambda: flow(0.1, dt=0.1, per_iteration=2), "not both"),
    "a class of noise": (
        lambda: flow(0.1, sgf.MeanLossNoise),
        r"noise model such as MeanLossNoise\(\)",
    ),
    "outputs that do not match": (
        lambda: run(net=mlp(2), problem=labelled(INPUTS[:, :1])),
        r"outputs, \(6, 2\), but have shape \(6, 1\)",
    ),
    "labels for squared loss": (
        lambda: labelled(LABELS),
        "real targets, but they have dtype int64.*SoftmaxCrossEntropyLoss",
    ),
    "labels beyond the outputs": (
        lambda: run(net=mlp(2), problem=labelled(LABELS, SOFTMAX)),
        "from 0 to 1, as the model has 2 outputs, but they go from 0 to 2",
    ),
    "real labels": (
        lambda: run(net=mlp(3), problem=labelled(LABELS * 1.0, SOFTMAX)),
        r"labels.astype\(int\)",
    ),
    "one logit": (
        lambda: run(net=mlp("scalar"), problem=labelled(LABELS, SOFTMAX)),
        "at least two",
    ),
    "three classes for logistic": (
        lambda: labelled(LABELS, sgf.LogisticLoss()),
        "labels -1 and 1, or 0 and 1, but the targets take the values 0, 1, 2",
    ),
    "text labels": (
        lambda: labelled([None] * 6, SOFTMAX),
        "array of numbers, class labels as whole numbers",
    ),
    "a loss of the batch": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, lambda f, y: jnp.ones(3))),
        r"to a scalar.*returns shape \(6, 3\)",
    ),
    "a loss that reduces": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, lambda f, y: f.mean(axis=1))),
        "map one example's output",
    ),
    "a loss across examples": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, Contrast())),
        "not a per-example loss: changing the output of example 0",
    ),
    "no loss": (lambda: labelled(LABELS, "softmax"), "must be a loss such as .* but is 'softmax'"),
    "nothing to train": (
        lambda: run(net=eqx.nn.Lambda(lambda x: x[0]), problem=labelled(INPUTS[:, 0])),
        "nothing to train: it has no floating-point",
    ),
    "all frozen": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, SOFTMAX), trainable=False),
        "leaves out all 4",
    ),
    "trainable misfit": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, SOFTMAX), trainable=[True]),
        "PyTree of True and False that fits",
    ),
    "inputs that do not fit": (
        lambda: run(net=mlp(3), problem=sgf.Problem(INPUTS[:, :2], LABELS, loss=SOFTMAX)),
        r"cannot be evaluated on one example of shape \(2,\)",
    ),
    "dropout": (
        lambda: run(net=eqx.nn.Dropout(0.5), problem=labelled(INPUTS)),
        "cannot be evaluated on one example.*requires a key",
    ),
    "a model of two outputs": (
        lambda: run(net=eqx.nn.Lambda(lambda x: (x, x)), problem=labelled(INPUTS[:, 0])),
        "one array per example, but returns tuple",
    ),
    "microbatch 0": (
        lambda: run(net=mlp(3), problem=labelled(LABELS, SOFTMAX), microbatch=0),
        "`microbatch` must be a whole number",
    ),
    "microbatch, diagonal": (lambda: run(microbatch=2), "has coordinates of its own"),
    "depth 1": (
        lambda: sgf.DiagonalNetwork.init(alpha=0.1, d=3, depth=1),
        "whole number >= 3 here, but is 1",
    ),
    "depth 1 selected": (lambda: sgf.select(PROBLEM, 0.0, depth=1), "whole number >= 2, but is 1"),
    "a pair at depth 2": (lambda: sgf.select(PROBLEM, (0.0, 0.0)), "belongs to depth 3"),
    "an offset at depth 3": (
        lambda: sgf.select(PROBLEM, 0.0, depth=3, offset=1.0),
        "there is no offset",
    ),
    "log coordinates at depth 3": (
        lambda: run(net=DEEP, coordinates="log"),
        "'mirror' or 'weights', but are 'log'",
    ),
    "a weight of 0": (
        lambda: sgf.DiagonalNetwork.from_weights([0.0, 1.0], [1.0, 1.0]),
        "`plus` must be non-zero",
    ),
    "a negative weight at depth 3": (
        lambda: sgf.DeepDiagonalNetwork.from_weights([1.0], [-1.0], depth=3),
        "`minus` must be positive",
    ),
    "u and v": (lambda: sgf.ProductNetwork([1.0, 2.0], [1.0]), r"`v` must have shape \(2,\)"),
    "loss scale": (
        lambda: sgf.SparseRegression(np.ones((1, 2)), np.ones(1), loss_scale=0.0),
        "`loss_scale` must be positive",
    ),
    "momentum in mirror": (
        lambda: run(sgf.MomentumFlow(0.1, dt=0.1), keys=None, coordinates="mirror"),
        "moves the weights themselves",
    ),
    "a class of losses": (
        lambda: labelled(LABELS, sgf.SoftmaxCrossEntropyLoss),
        r"is the class SoftmaxCrossEntropyLoss; write SoftmaxCrossEntropyLoss\(\)",
    ),
    "names of classes": (
        lambda: labelled(np.array(["a", "b", "c"])[LABELS]),
        r"dtype <U1 .*; for names of classes write numpy.unique\(names, return_inverse=True\)",
    ),
    "a column of targets": (
        lambda: sgf.SparseRegression(np.eye(3, 4), np.ones((3, 1))),
        r"`y` must have shape \(3,\), as X has 3 rows.* has shape \(3, 1\); write y\[..., 0\]",
    ),
    "a single precision step": (
        lambda: sgf.StochasticGradientDescent(np.float32(-0.1)),
        "`step_size` must be positive and finite, but is -0.1",
    ),
    "steps beyond counting": (
        lambda: run(flow(1e-300, dt=1e-300), steps=None, t1=1.0),
        r"below 2\^31, but is about 10\^(299|300)",
    ),
    "missing file": (lambda: load_problem("nowhere.npz"), "there is no file nowhere.npz"),
    "no store": (lambda: store.load("nowhere.zarr"), "there is no store at nowhere.zarr"),
    "a store that is not one": (lambda: store.load("."), "not a zarr store"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    action, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        action()


@pytest.mark.slow
def test_system_without_an_interpolating_solution_says_what_still_holds():
    rng = np.random.default_rng(0)
    over = sgf.SparseRegression(rng.normal(size=(8, 3)), rng.normal(size=8))
    with pytest.raises(
        ValueError,
        match=r"no beta satisfies X beta = y.*What still holds: simulate.*law of log alpha",
    ):
        sgf.select(over, 0.0)
    contradictory = sgf.SparseRegression(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([1.0, 1.5]))
    for action in (sgf.minimum_l1, sgf.minimum_l2):
        with pytest.raises(ValueError, match="no beta satisfies"):
            action(contradictory)
    # What the message says still holds does hold: the statement about the fibre at a
    # finite time.
    net = sgf.DiagonalNetwork.init(alpha=0.5, d=3)
    runs = sgf.simulate(sgf.StochasticGradientFlow(0.05), net, over, keys=KEYS, steps=300)
    fibre = sgf.SparseRegression(over.X, over.X @ runs.final["beta"][0])
    np.testing.assert_allclose(
        sgf.select(fibre, runs.final["log_alpha"][0]).beta, runs.final["beta"][0], atol=1e-9
    )


def test_float32_is_not_asked_for_what_it_cannot_reach():
    single = sgf.SparseRegression(*(np.asarray(a, np.float32) for a in (PROBLEM.X, PROBLEM.y)))
    low = sgf.DiagonalNetwork.init(alpha=0.1, d=25, dtype=jnp.float32)
    with pytest.raises(
        ValueError, match="stop=1e-30 is below the loss that float32 can resolve.*jax_enable_x64"
    ):
        run(net=low, problem=single, stop=1e-30)
    with pytest.raises(ValueError, match="below what float32 can reach.*jax_enable_x64"):
        sgf.select(single, 0.0, tolerance=1e-10)
    with pytest.raises(ValueError, match="rtol=1e-09 is below what float32 can reach"):
        sgf.simulate(sgf.GradientFlow(rtol=1e-9), low, single, t1=1.0)


LANDING = {
    "label": (sgf.LabelNoise(0.1), "label noise is on.*no limit"),
    "isotropic": (sgf.IsotropicNoise(0.1), "isotropic noise leaves the row space"),
    "sum": (sgf.MeanLossNoise() + sgf.IsotropicNoise(0.1), "isotropic noise leaves the row space"),
}


@pytest.fixture(scope="module")
def runs():
    return run()


@pytest.mark.parametrize("case", LANDING)
def test_landing_is_refused_where_it_is_not_derived(case, runs):
    noise, message = LANDING[case]
    with pytest.raises(ValueError, match=message):
        sgf.land(eqx.tree_at(lambda r: r.dynamics, runs, flow(0.02, noise)))


def test_landing_is_refused_for_algorithms_and_the_second_order_flow(runs):
    with pytest.raises(ValueError, match="constant step size, but step_size is a schedule"):
        sgf.land(eqx.tree_at(lambda r: r.dynamics, runs, flow(lambda k: 0.02)))
    with pytest.raises(
        ValueError, match=r"MomentumFlow is not derived.*offset=runs.final\['offset'\]"
    ):
        sgf.land(run(sgf.MomentumFlow(0.1, dt=0.01), keys=None))
    with pytest.raises(ValueError, match="order-2 flow"):
        sgf.land(eqx.tree_at(lambda r: r.dynamics, runs, flow(0.02, sgf.NoNoise(), order=2)))
    with pytest.raises(ValueError, match="order-2 flow"):
        sgf.land(eqx.tree_at(lambda r: r.dynamics, runs, flow(0.02, order=2)))


@pytest.mark.slow
def test_landing_marks_diverged_seeds():
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.6, dt=0.02),
        network(0.05),
        PROBLEM,
        keys=sgf.seeds(0, 32),
        t1=100.0,
    )
    landed, bad = sgf.land(runs), np.asarray(runs.diverged)
    assert bad.any()
    assert np.isnan(np.asarray(landed.beta)[bad]).all()
    assert np.isinf(np.asarray(landed.error)[bad]).all()
    assert np.isfinite(np.asarray(landed.beta)[~bad]).all()


def test_no_step_size_says_what_was_tried():
    with pytest.raises(
        ValueError, match=r"(?s)no step size was found.*50: probes that settle: SGD 0%.*rescale"
    ):
        find_step_size(PROBLEM, NET, probes=4, steps=50, candidates=[50.0])


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "alpha"), [(3e-2, 0.1), (1e-3, 0.01)])
def test_the_step_size_is_between_one_that_settles_and_the_next_that_does_not(scale, alpha):
    """Small targets allow steps far above 2 / lambda_max, as the edge predicts."""
    small = sgf.SparseRegression(PROBLEM.X, scale * PROBLEM.y)
    start = sgf.DiagonalNetwork.init(alpha=alpha, d=small.d, dtype=jnp.float64)
    gamma, tried = find_step_size(small, start, probes=4, steps=400)
    assert gamma == max(probe.step_size for probe in tried if probe.converged)
    assert gamma > 5 * 2 * small.n / np.linalg.norm(np.asarray(small.X), 2) ** 2
    edge = predicted_edge(small)
    assert 0.85 * edge * (1 - 1e-9) <= tried[0].step_size <= edge * (1 + 1e-9)
    above = [probe for probe in tried if probe.step_size > gamma]
    assert not any(probe.converged for probe in above)
    assert min(probe.step_size for probe in above) == pytest.approx(gamma / 0.85)
    assert len(tried) <= 8


@pytest.mark.slow
def test_a_step_size_is_looked_for_above_and_below_the_first(monkeypatch):
    """Whatever the first candidate is, the same one is found."""
    start = sgf.DiagonalNetwork.init(alpha=0.1, d=PROBLEM.d, dtype=jnp.float64)
    options = {"probes": 4, "steps": 400}
    gamma, _ = find_step_size(PROBLEM, start, **options)
    for factor in (0.85**30, 0.85**5, 0.85**-10):
        monkeypatch.setattr(stepsize, "predicted_edge", lambda p, f=factor: 1.001 * f * gamma)
        again, tried = find_step_size(PROBLEM, start, **options)
        assert tried[0].step_size == pytest.approx(factor * gamma)
        assert again == pytest.approx(gamma)


def test_it_says_how_far_the_confirmed_edge_is_from_the_predicted_one():
    start = sgf.DiagonalNetwork.init(alpha=0.1, d=PROBLEM.d, dtype=jnp.float64)
    lines = []
    config = types.SimpleNamespace(step_size="auto")
    gamma = step_size(config, PROBLEM, start, lines.append, probes=4, steps=400)
    edge = predicted_edge(PROBLEM)
    assert f"predicted to fall below {edge:.4g}" in lines[-1]
    assert (
        f"the trials confirm is {gamma / edge:.2f} to {gamma / 0.85 / edge:.2f} times" in lines[-1]
    )


def test_data_without_a_solution_have_no_predicted_edge():
    assert predicted_edge(sgf.SparseRegression(np.ones((2, 1)), [1.0, 2.0])) is None
    assert predicted_edge(sgf.SparseRegression(np.ones((1, 2)), [0.0])) is None


def test_data_files(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="not a"):
        load_problem(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match="single array"):
        load_problem(tmp_path / "one.npy")
    np.savez(tmp_path / "names.npz", A=np.ones(3))
    with pytest.raises(ValueError, match="holds A; missing: X, y"):
        load_problem(tmp_path / "names.npz")
    np.savez(tmp_path / "objects.npz", X=np.array([[{}]], dtype=object), y=np.ones(1))
    with pytest.raises(ValueError, match="unpickling, which is refused"):
        load_problem(tmp_path / "objects.npz")
    np.savez(tmp_path / "complex.npz", X=np.ones((1, 2)) * 1j, y=np.ones(1))
    with pytest.raises(ValueError, match="X in .* must be real numbers, but has dtype complex128"):
        load_problem(tmp_path / "complex.npz")
    np.savez(tmp_path / "good.npz", X=np.ones((1, 2)), y=np.ones(1))
    assert load_problem(tmp_path / "good.npz").beta_star is None


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    table = tmp_path / "data.csv"
    table.write_text("age,y,mass\n1,2,3e-6\n\n4,5,6e6\n")
    problem = load_problem(table)
    np.testing.assert_array_equal(problem.X, [[1, 3e-6], [4, 6e6]])
    np.testing.assert_array_equal(problem.y, [2, 5])
    for text, said in {
        "": "data.csv is empty; its first line must name the columns, one of them y",
        "1,2\n3,4\n": "exactly one of them y, the targets; it is 1, 2",
        "a,Y\n1,2\n": "the targets; is it Y",
        "a,y\n": "at least one row below the names",
        "y\n1\n": "at least one row below the names, and one feature",
        "a,y\n1\n": "row 1 of .* has 1 entries, but there are 2 columns",
        "a,city,y\n1,Ulm,2\n": "column city of .* must be numbers, but row 1 has 'Ulm'",
        "a,y\n1,2\nnan,1\n": "`X` must be finite, but 1 of 2 entries are NaN",
    }.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=said):
            load_problem(table)


def test_the_columns_of_a_table_that_are_not_numbers_are_named():
    class Table:  # as a DataFrame of pandas is read
        columns = ("age", "city")

        def __array__(self, dtype=None, copy=None):
            return np.array([[1, "Ulm"], [2, "Bonn"]], dtype=object)

    with pytest.raises(ValueError, match="whose columns city are not numbers; drop or encode"):
        sgf.SparseRegression(Table(), [1.0, 2.0])


def test_a_store_is_not_overwritten_unasked(tmp_path):
    import xarray as xr

    store.save(xr.Dataset({"a": ("x", np.arange(3.0))}), tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="exists already.*--overwrite"):
        store.save(xr.Dataset(), tmp_path / "a.zarr")
    (tmp_path / "precious").mkdir()
    with pytest.raises(ValueError, match="not a zarr store, so it will not be replaced"):
        store.save(xr.Dataset(), tmp_path / "precious", overwrite=True)
    np.testing.assert_array_equal(store.load(tmp_path / "a.zarr")["a"], np.arange(3.0))
