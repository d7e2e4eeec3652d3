"""Calls public functions with odd values and prints what they answer, as JSON.

It runs in a process of its own, without the type checks that the tests add to the
package, because users do not have these.
"""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import sgfbias as sgf

jax.config.update("jax_enable_x64", True)
PROBLEM = sgf.SparseRegression.sample(jax.random.key(0), n=4, d=6, sparsity=1)
NETWORK = sgf.DiagonalNetwork.init(alpha=0.3, d=6)
KEYS = sgf.seeds(0, 2)
X, Y = np.ones((2, 3)), np.ones(2)


def run(dynamics=None, **options):
    dynamics = sgf.StochasticGradientFlow(0.05) if dynamics is None else dynamics
    options = {"keys": KEYS if dynamics.is_stochastic else None, "steps": 2} | options
    return sgf.simulate(dynamics, NETWORK, PROBLEM, **options)


def square(hyper, key):
    return jnp.asarray(hyper) ** 2 + 0 * jax.random.normal(key)


NOT_NUMBERS = {
    "word": "0.1",
    "list": [],
    "dict": {},
    "object": object(),
    "complex": 1j,
    "class": dict,
    "bytes": b"1",
    "array": np.array([1.0, 2.0]),
    "nan": float("nan"),
    "inf": float("inf"),
    "true": True,
    "NaN array": np.array([np.nan]),
}
REALS = {
    "step_size": sgf.GradientDescent,
    "lam": sgf.MomentumFlow,
    "dt": lambda v: sgf.GradientFlow(dt=v),
    "rtol": lambda v: sgf.GradientFlow(rtol=v),
    "momentum": lambda v: sgf.GradientDescent(0.1, momentum=v),
    "batch_size": sgf.MinibatchNoise,
    "delta": sgf.LabelNoise,
    "sigma": sgf.IsotropicNoise,
    "t1": lambda v: run(steps=None, t1=v),
    "stop": lambda v: run(stop=v),
    "scale": sgf.SquaredLoss,
    "loss_scale": lambda v: sgf.SparseRegression(X, Y, loss_scale=v),
    "log_alpha": lambda v: sgf.select(PROBLEM, v),
    "offset": lambda v: sgf.select(PROBLEM, -1.0, offset=v),
    "alpha": lambda v: sgf.DiagonalNetwork.init(alpha=v, d=6),
    "integrals": lambda v: sgf.solution_curve(PROBLEM, -1.0, step_size=0.1, integrals=v),
    "noise": lambda v: sgf.SparseRegression.sample(
        jax.random.key(0), n=3, d=6, sparsity=1, noise=v
    ),
    "tolerance": lambda v: sgf.select(PROBLEM, -1.0, tolerance=v),
}
WHOLES = {
    "steps": lambda v: run(steps=v),
    "chunk": lambda v: run(chunk=v),
    "start": lambda v: sgf.seeds(v, 5),
    "stop": lambda v: sgf.seeds(0, v),
    "root": lambda v: sgf.seeds(0, 2, root=v),
    "per_iteration": lambda v: sgf.StochasticGradientFlow(0.1, per_iteration=v),
    "order": lambda v: sgf.StochasticGradientFlow(0.1, order=v),
    "batch_size": lambda v: sgf.StochasticGradientDescent(0.1, v),
    "l": lambda v: sgf.SVAG(0.1, v),
    "n": lambda v: sgf.SparseRegression.sample(jax.random.key(0), n=v, d=6, sparsity=1),
    "sparsity": lambda v: sgf.SparseRegression.sample(jax.random.key(0), n=3, d=6, sparsity=v),
    "d": lambda v: sgf.DiagonalNetwork.init(alpha=0.1, d=v),
    "depth": lambda v: sgf.select(PROBLEM, -1.0, depth=v),
    "iterations": lambda v: sgf.tune(square, 1.0, keys=KEYS, iterations=v),
}

NOT_WHOLE = {**NOT_NUMBERS, "fraction": 1.5, "huge": 2**70}
OTHERS = {"word": "a word", "number": 3.5, "pair": (1, "a"), "object": object()}
OBJECTS = {
    "dynamics": (lambda v: sgf.simulate(v, NETWORK, PROBLEM, steps=1), "must be a flow"),
    "order": (
        lambda v: sgf.simulate(v, sgf.GradientDescent(0.1), PROBLEM, steps=1),
        "the order is simulate(dynamics, network, problem)",
    ),
    "problem": (lambda v: sgf.simulate(sgf.GradientDescent(0.1), NETWORK, v, steps=1), "must be a"),
    "coordinates": (lambda v: run(coordinates=v), "`coordinates`"),
    "select": (lambda v: sgf.select(v, 0.0), "must be a SparseRegression"),
    "minimum_l1": (sgf.minimum_l1, "must be a SparseRegression"),
    "minimum_l2": (sgf.minimum_l2, "must be a SparseRegression"),
    "land": (sgf.land, "must be what simulate returns"),
    "outcome": (lambda v: sgf.hypergradient(v, 1.0, keys=KEYS), "must be a function"),
    "optimiser": (
        lambda v: sgf.tune(square, 1.0, keys=KEYS, optimiser=v, iterations=1),
        "must be an optax.GradientTransformation",
    ),
    "key": (lambda v: sgf.SparseRegression.sample(v, n=2, d=3, sparsity=1), "jax.random.key(0)"),
    "grid": (lambda v: sgf.Sweep(lambda keys: None, v, seeds=2), "must be a mapping"),
    "inputs": (lambda v: sgf.Problem(v, Y), "`inputs`"),
    "targets": (lambda v: sgf.Problem(X, v), "targets"),
}


def debugged():
    """A run without jit, and the same run with it: the final losses."""
    problem = sgf.Problem(np.eye(3), np.ones(3))

    def final():
        model = eqx.nn.Linear(3, "scalar", key=jax.random.key(0))
        options = {"steps": 3, "record": sgf.Record(times=2)}
        return float(
            sgf.simulate(sgf.GradientDescent(0.1), model, problem, **options).final["loss"]
        )

    with jax.disable_jit():
        slow = final()
    return f"{slow!r} {final()!r}"


def answer(call, *values):
    try:
        return f"returned {call(*values)}"[:80]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = {"debugged": answer(debugged)}
    for table, odd in ((REALS, NOT_NUMBERS), (WHOLES, NOT_WHOLE)):
        for name, call in table.items():
            for kind, value in odd.items():
                found[f"{'real' if table is REALS else 'whole'} {name} {kind}"] = answer(
                    call, value
                )
    for name, (call, _) in OBJECTS.items():
        for kind, value in OTHERS.items():
            found[f"object {name} {kind}"] = answer(call, value)
    ones = (1, 1.0, np.int8(1), np.float32(1), np.array(1), jnp.asarray(1))
    found["steps"] = [int(run(steps=one).steps[-1]) for one in ones]
    found["seeds"] = [sgf.seeds(0, one).shape[0] for one in ones]
    print(json.dumps(found))
