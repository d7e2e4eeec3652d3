"""Starts for every seed, `Drawn` and `Stacked`.

The start and the run of a seed do not depend on the other seeds, for any dynamics.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same, small_problem

import sgfbias as sgf
from sgfbias.core.brownian import START_STREAM

X = jax.random.normal(jax.random.key(0), (12, 3), jnp.float64)
PROBLEM = sgf.Problem(X, jnp.sin(X[:, :1]))
# 70 seeds are more than one tile.
KEYS = sgf.seeds(0, 70)
SCALE = {"of starts": 1.0}


def mlp(key):
    model = eqx.nn.MLP(3, 1, 6, 1, key=key)
    return jax.tree.map(
        lambda leaf: SCALE["of starts"] * leaf if eqx.is_inexact_array(leaf) else leaf, model
    )


def diagonal(key):
    return sgf.DiagonalNetwork.init(
        log_alpha=-1 - jax.random.uniform(key, (25,), jnp.float64), d=25, dtype=jnp.float64
    )


CASES = {
    "a flow of any model": (sgf.StochasticGradientFlow(0.05), mlp, PROBLEM, {}),
    "SGD": (sgf.StochasticGradientDescent(0.05, 2, momentum=0.5), mlp, PROBLEM, {}),
    "gradient descent": (sgf.GradientDescent(0.05), mlp, PROBLEM, {}),
    "mirror coordinates": (sgf.StochasticGradientFlow(0.05), diagonal, small_problem(), {}),
    "SGD on a diagonal network": (
        sgf.StochasticGradientDescent(0.05),
        diagonal,
        small_problem(),
        {},
    ),
    "frozen parts": (
        sgf.StochasticGradientFlow(0.05),
        mlp,
        PROBLEM,
        {"trainable": lambda leaf: leaf.ndim == 2},
    ),
}


def run(case, start, keys, **options):
    dynamics, _, problem, given = CASES[case]
    return sgf.simulate(dynamics, start, problem, keys=keys, steps=30, **given, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        name
        if name in ("a flow of any model", "SGD on a diagonal network")
        else pytest.param(name, marks=pytest.mark.slow(cases=2))
        for name in CASES
    ],
)
def test_a_seeds_start_and_run_do_not_depend_on_its_company(case):
    make = CASES[case][1]
    many = run(case, sgf.Drawn(make), KEYS)
    few = run(case, sgf.Drawn(make), KEYS[66:69], chunk=7)
    one = run(case, sgf.Drawn(make), KEYS[67])
    given = run(case, sgf.Stacked(many.network), KEYS)
    for values in (
        lambda runs: (runs["loss"], runs.final),
        lambda runs: eqx.filter((runs.network, runs.networks), eqx.is_array),
    ):
        same(jax.tree.map(lambda leaf: leaf[66:69], values(many)), values(few))
        same(jax.tree.map(lambda leaf: leaf[1], values(few)), values(one))
        same(values(many), values(given))
    # Every seed starts from its own start, which is drawn from a stream of its key. The
    # run equals a run from that start alone, up to rounding.
    start = make(jax.random.fold_in(KEYS[67], START_STREAM))
    keys = KEYS[67:68] if CASES[case][0].is_stochastic else None
    alone = run(case, start, keys)
    np.testing.assert_allclose(np.ravel(alone["loss"]), one["loss"], rtol=1e-9)
    assert len(np.unique(np.asarray(many["loss"][:, -1]))) == 70
    assert many.own_starts
    assert one.status.ndim == 0


@pytest.mark.slow
def test_512_networks_from_their_own_starts_in_one_call():
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.05), sgf.Drawn(mlp), PROBLEM, keys=sgf.seeds(0, 512), steps=3
    )
    assert runs["loss"].shape[0] == 512
    assert len(np.unique(np.asarray(runs["loss"][:, 0]))) == 512
    assert runs.to_xarray().sizes["seed"] == 512
    assert jax.tree.leaves(eqx.filter(runs.networks, eqx.is_array))[0].shape[0] == 512
    assert isinstance(runs.start, eqx.nn.MLP)


@pytest.mark.slow
def test_float32_runs_stay_float32():
    problem = sgf.Problem(X.astype(jnp.float32), jnp.sin(X[:, :1]))
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(0.05), sgf.Drawn(mlp), problem, keys=KEYS[:3], steps=5
    )
    assert {
        leaf.dtype
        for leaf in jax.tree.leaves(eqx.filter((runs.network, runs["loss"]), eqx.is_array))
    } == {jnp.dtype("float32")}


@pytest.mark.slow
def test_an_adaptive_flow_takes_a_start_for_every_seed():
    runs = sgf.simulate(sgf.GradientFlow(), sgf.Drawn(mlp), PROBLEM, keys=KEYS[:3], t1=2.0)
    alone = sgf.simulate(
        sgf.GradientFlow(), mlp(jax.random.fold_in(KEYS[1], START_STREAM)), PROBLEM, t1=2.0
    )
    np.testing.assert_allclose(runs["loss"][1], alone["loss"], rtol=1e-6)
    assert runs["loss"].shape == (3, 200)
    assert runs.status.shape == (3,)
    same(
        sgf.simulate(sgf.GradientFlow(), sgf.Drawn(mlp), PROBLEM, keys=KEYS[1], t1=2.0)["loss"],
        runs["loss"][1],
    )


@pytest.mark.slow
def test_stacked_networks_are_a_list_or_one_network_of_stacked_arrays():
    models = [mlp(key) for key in KEYS[:3]]
    runs = sgf.simulate(sgf.GradientDescent(0.05), sgf.Stacked(models), PROBLEM, steps=20)
    stacked = sgf.simulate(
        sgf.GradientDescent(0.05),
        sgf.Stacked(eqx.filter_vmap(mlp)(KEYS[:3])),
        PROBLEM,
        keys=KEYS[:3],
        steps=20,
    )
    np.testing.assert_allclose(runs["loss"], stacked["loss"], rtol=1e-9)
    alone = sgf.simulate(sgf.GradientDescent(0.05), models[2], PROBLEM, steps=20)
    np.testing.assert_allclose(runs["loss"][2], alone["loss"], rtol=1e-9)


@pytest.mark.slow
def test_a_start_is_differentiable():
    """The derivative of the final loss in the scale of the starts, over which `make`
    closes, equals a central difference.
    """

    def outcome(scale, key):
        make = sgf.Drawn(
            lambda key: jax.tree.map(
                lambda leaf: scale * leaf if eqx.is_inexact_array(leaf) else leaf, mlp(key)
            )
        )
        runs = sgf.simulate(
            sgf.StochasticGradientFlow(0.05),
            make,
            PROBLEM,
            keys=key,
            steps=20,
            record=sgf.Record(times=2),
        )
        return runs.final["loss"]

    width = 1e-5
    found = sgf.hypergradient(outcome, 0.8, keys=KEYS[:4]).gradients
    difference = [
        (outcome(0.8 + width, key) - outcome(0.8 - width, key)) / (2 * width) for key in KEYS[:4]
    ]
    np.testing.assert_allclose(np.ravel(found), difference, rtol=1e-5)


@pytest.mark.slow
def test_what_make_reads_is_read_at_every_run(monkeypatch):
    before = run("gradient descent", sgf.Drawn(mlp), KEYS[:2])["loss"][:, 0]
    monkeypatch.setitem(SCALE, "of starts", 2.0)
    after = run("gradient descent", sgf.Drawn(mlp), KEYS[:2])["loss"][:, 0]
    assert (before != after).all()


@pytest.mark.slow
def test_a_sweep_takes_drawn_starts(tmp_path):
    def experiment(keys, *, gamma):
        return sgf.simulate(
            sgf.StochasticGradientDescent(gamma), sgf.Drawn(mlp), PROBLEM, keys=keys, steps=10
        )

    stored = sgf.Sweep(experiment, {"gamma": [0.05, 0.1]}, seeds=(0, 6), chunk=4).run(
        tmp_path / "runs.zarr"
    )
    direct = experiment(sgf.seeds(0, 6), gamma=0.1)
    np.testing.assert_array_equal(stored["loss"].sel(gamma=0.1), direct["loss"])


def test_numpy_arrays_are_stacked_too():
    """NumPy arrays are parameters of a model, and not settings that all seeds share."""
    models = [
        jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, mlp(key))
        for key in KEYS[:2]
    ]
    runs = sgf.simulate(sgf.GradientDescent(0.05), sgf.Stacked(models), PROBLEM, steps=2)
    assert runs["loss"][0, 0] != runs["loss"][1, 0]


def test_every_start_is_looked_at_not_only_the_first():
    """A start whose weights float32 cannot hold is refused at any position."""
    problem = small_problem()
    problem = sgf.SparseRegression(problem.X.astype(jnp.float32), problem.y.astype(jnp.float32))
    networks = [
        sgf.DiagonalNetwork.init(log_alpha=value, d=25, dtype=jnp.float32)
        for value in (-1.0, -200.0)
    ]
    words = {}
    for order in (networks, networks[::-1]):
        with pytest.raises(ValueError, match="alpha") as caught:
            sgf.simulate(
                sgf.StochasticGradientDescent(0.1),
                sgf.Stacked(order),
                problem,
                keys=KEYS[:2],
                steps=2,
            )
        words[str(caught.value)] = True
    assert len(words) == 1


REFUSED = {
    "keys are needed": lambda: sgf.simulate(
        sgf.GradientDescent(0.1), sgf.Drawn(mlp), PROBLEM, steps=2
    ),
    "one for each of the networks": lambda: sgf.simulate(
        sgf.StochasticGradientDescent(0.1),
        sgf.Stacked([mlp(key) for key in KEYS[:2]]),
        PROBLEM,
        steps=2,
    ),
    "one key for each of the 2 stacked networks": lambda: sgf.simulate(
        sgf.GradientDescent(0.1),
        sgf.Stacked([mlp(key) for key in KEYS[:2]]),
        PROBLEM,
        keys=KEYS[:3],
        steps=2,
    ),
    "must return a network": lambda: sgf.simulate(
        sgf.GradientDescent(0.1), sgf.Drawn(lambda key: 3), PROBLEM, keys=KEYS[:2], steps=2
    ),
    "takes a function of a key": lambda: sgf.Drawn(3),
    "one leading axis of seeds": lambda: sgf.Stacked(mlp(KEYS[0])),
    "at least one network": lambda: sgf.Stacked([]),
    "must have one structure": lambda: sgf.Stacked(
        [mlp(KEYS[0]), eqx.nn.Linear(3, 1, key=KEYS[0])]
    ),
    "functions, settings": lambda: sgf.Stacked(
        [eqx.nn.MLP(3, 1, 6, 1, activation=f, key=KEYS[0]) for f in (jax.nn.relu, jnp.tanh)]
    ),
    "tangent growth needs the same start for all seeds": lambda: sgf.tangent_growth(
        sgf.GradientDescent(0.1), sgf.Drawn(mlp), PROBLEM, steps=2, keys=KEYS[:2]
    ),
    "arrays of one shape": lambda: sgf.Stacked(
        [
            mlp(KEYS[0]),
            eqx.tree_at(lambda model: model.layers[0].weight, mlp(KEYS[0]), jnp.zeros((6, 4))),
        ]
    ),
    "land the runs of one start": lambda: sgf.land(
        run("mirror coordinates", sgf.Drawn(diagonal), KEYS[:2])
    ),
    "start of its own, but the kernel": lambda: run(
        "mirror coordinates", sgf.Drawn(diagonal), KEYS[:2], fused="interpret"
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_sense_is_refused(words):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()
