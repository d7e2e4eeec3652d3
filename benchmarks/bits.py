"""Attacks on bits beside what public codes do, and the other parts of the system of
stabilised neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from measure import medians, peak_gb

N, D, UNITS, FLIPS = 1000, 64, 16, 10
WIDE, FEW = 10_000, 200  # bits and examples of the wide network


def _numpy(w: Any, b: Any, a: Any, c: float, x: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """The greedy attack in NumPy: a forward pass for every flip of every example, as
    public bit attacks do, and rank-one updates of all examples and flips at once.
    """
    sign = 2 * y - 1

    def forward(row: Any) -> Any:
        return np.tanh((w @ row + b) / 2) @ a + c

    def loop() -> Any:
        found = np.empty(N)
        for i in range(N):
            row, free = x[i].copy(), np.ones(D, bool)
            found[i] = sign[i] * forward(row)
            for _ in range(FLIPS):
                margins = np.full(D, np.inf)
                for bit in np.flatnonzero(free):
                    row[bit] = -row[bit]
                    margins[bit] = sign[i] * forward(row)
                    row[bit] = -row[bit]
                best = margins.argmin()
                row[best], free[best] = -row[best], False
                found[i] = min(found[i], margins[best])
        return found

    def batched() -> Any:
        s, z, free, rows = x.copy(), x @ w.T + b, np.ones((N, D), bool), np.arange(N)
        found = sign * (np.tanh(z / 2) @ a + c)
        for _ in range(FLIPS):
            hidden = np.tanh((z[:, None] - 2 * s[:, :, None] * w.T) / 2)
            margins = np.where(free, sign[:, None] * (hidden @ a + c), np.inf)
            best = margins.argmin(axis=1)
            z = z - 2 * s[rows, best][:, None] * w.T[best]
            s[rows, best] *= -1
            free[rows, best] = False
            found = np.minimum(found, margins[rows, best])
        return found

    return {"NumPy, a forward pass per flip": loop, "NumPy, rank-one updates": batched}


def _toolbox(net: Any, x: Any, y: Any) -> Callable[[], Any] | None:
    """JSMA of the adversarial-robustness-toolbox, which may raise bits and not clear
    them; None if it is not installed.
    """
    try:
        from art.attacks.evasion import SaliencyMapMethod
        from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin
        from art.estimators.estimator import BaseEstimator
    except ImportError:
        return None
    import jax
    import jax.numpy as jnp

    def logits(row: Any) -> Any:
        f = net(row)
        return jnp.stack([-f, f])

    outputs = jax.jit(jax.vmap(logits))
    jacobian = jax.jit(jax.vmap(jax.jacrev(logits)))

    class Wrapped(ClassGradientsMixin, ClassifierMixin, BaseEstimator):
        """The network, as the toolbox wants it."""

        input_shape = (D,)

        def predict(self, x: Any, **options: Any) -> Any:
            return np.asarray(outputs(x))

        def class_gradient(self, x: Any, label: Any = None, **options: Any) -> Any:
            found = np.asarray(jacobian(x))
            if label is None:
                return found
            rows = np.arange(len(x))
            return found[rows, np.broadcast_to(label, len(x))][:, None]

        def fit(self, x: Any, y: Any, **options: Any) -> None:
            raise TypeError("the network has been trained")

    wrapped = Wrapped(model=None, clip_values=(-1.0, 1.0))
    wrapped.nb_classes = 2
    # It flips two bits at a time, as long as at most a fraction gamma has been flipped.
    attack = SaliencyMapMethod(
        wrapped, theta=2.0, gamma=(FLIPS - 1) / D, batch_size=N, verbose=False
    )
    targets = np.eye(2)[1 - y]
    return lambda: attack.generate(x=x, y=targets)


def _foolbox(net: Any, x: Any, y: Any) -> Callable[[], Any] | None:
    """Sparse l1 descent of foolbox on real inputs in [-1, 1], within the l1 distance of
    all flips; None if it is not installed.
    """
    try:
        import eagerpy
        import foolbox
    except ImportError:
        return None
    import jax
    import jax.numpy as jnp

    def logits(rows: Any) -> Any:
        f = jax.vmap(net)(rows)
        return jnp.stack([-f, f], axis=1)

    model = foolbox.JAXModel(logits, bounds=(-1, 1))
    attack = foolbox.attacks.SparseL1DescentAttack(steps=20)
    inputs, labels = eagerpy.astensor(jnp.asarray(x)), eagerpy.astensor(jnp.asarray(y))
    return lambda: np.asarray(attack(model, inputs, labels, epsilons=2.0 * FLIPS)[1].raw)


def _rounded(x: Any, relaxed: Any) -> Any:
    """The bits with the largest changes flipped, where they cross 0."""
    change = np.abs(relaxed - x)
    order = np.argsort(-change, axis=1)[:, :FLIPS]
    top = np.zeros(x.shape, bool)
    np.put_along_axis(top, order, True, axis=1)
    return np.where(top & (relaxed * x < 0), -x, x)


def bit_attacks() -> dict:
    """Seconds of attacks with 10 flips on 1,000 examples of 64 bits and 16 hidden
    units, warm, in turns, medians of 5 (of 1 for the loop of forward passes): the
    greedy attack beside the same search in NumPy; JSMA that may only add bits, beside
    SaliencyMapMethod of adversarial-robustness-toolbox; and relaxed PGD, rounded,
    beside SparseL1DescentAttack of foolbox, rounded in the same way. Accuracies are
    those that each attack leaves, of 1 without one. Then certificates and Chow
    parameters of the same network, and a greedy attack with 3 flips on 200 examples of
    10,000 bits, with the peak of the process's memory.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from sgfbias import fourier

    jax.config.update("jax_enable_x64", True)
    random = np.random.default_rng(0)
    weights = [
        random.normal(size=(UNITS, D)) / 8,
        np.zeros(UNITS),
        random.normal(size=(1, UNITS)) / 4,
        np.zeros(1),
    ]
    signs = random.choice([-1.0, 1.0], size=(N, D))

    def made(dtype: Any, values: list, d: int) -> Any:
        net = eqx.nn.MLP(
            d, "scalar", UNITS, 1, lambda z: jnp.tanh(z / 2), dtype=dtype, key=jax.random.key(0)
        )
        where = lambda n: [p for layer in n.layers for p in (layer.weight, layer.bias)]  # noqa: E731
        return eqx.tree_at(where, net, [jnp.asarray(value, dtype) for value in values])

    found: dict[str, Any] = {"seconds": {}, "accuracy": {}}
    for dtype in ("float32", "float64"):
        net, x = made(dtype, weights, D), signs.astype(dtype)
        y = np.asarray(jax.vmap(net)(jnp.asarray(x)) > 0).astype(int)
        bits, labels = jnp.asarray(x), jnp.asarray(y)
        w, b, a, c = (np.asarray(value, dtype) for value in weights)
        added = fourier.BitFlips(direction="add")

        def ours(method: str, **options: Any) -> Callable[[], Any]:
            return lambda: fourier.attack(net, bits, labels, FLIPS, method=method, **options).inputs

        runs: dict[str, Any] = {
            "sgfbias, greedy": ours("greedy"),
            "sgfbias, beam of 8": ours("beam"),
            "sgfbias, JSMA that adds": ours("jsma", moves=added),
            "sgfbias, greedy that adds": ours("greedy", moves=added),
            "sgfbias, PGD": ours("pgd"),
            "sgfbias, certificate": lambda: fourier.certify(net, bits, labels, FLIPS).margin,
            "sgfbias, Chow parameters": lambda: fourier.chow(net).coefficients,
            "toolbox, JSMA that adds": _toolbox(net, x, y),
            "foolbox, sparse l1 descent": _foolbox(net, x, y),
        }
        slow = _numpy(w, b, a[0], float(c[0]), x, y)
        runs["NumPy, rank-one updates"] = slow["NumPy, rank-one updates"]
        runs = {name: run for name, run in runs.items() if run is not None}
        row = medians(runs, 5)
        loop = {"NumPy, a forward pass per flip": slow["NumPy, a forward pass per flip"]}
        row |= medians(loop, 1)
        for name, seconds in row.items():
            found["seconds"].setdefault(name, {})[dtype] = seconds
        least = {name: slow[name]() for name in slow}
        exact = np.asarray(fourier.attack(net, bits, labels, FLIPS).margin[-1])
        found.setdefault("largest_difference_from_numpy", {})[dtype] = max(
            float(np.abs(exact - margins).max()) for margins in least.values()
        )
        if dtype == "float64":
            for name in runs:
                if "certificate" in name or "Chow" in name or "NumPy" in name:
                    continue
                end = np.asarray(runs[name]())
                end = _rounded(x, end) if "foolbox" in name else np.where(end > 0, 1.0, -1.0)
                right = np.asarray(jax.vmap(net)(jnp.asarray(end)) > 0) == (y > 0)
                found["accuracy"][name] = float(right.mean())
            proved = fourier.certify(net, bits, labels, FLIPS).curve[-1]
            found["accuracy"]["sgfbias, certificate"] = float(proved)
    found["times_faster_than_a_loop_of_forward_passes"] = {
        dtype: found["seconds"]["NumPy, a forward pass per flip"][dtype]
        / found["seconds"]["sgfbias, greedy"][dtype]
        for dtype in ("float32", "float64")
    }
    before = peak_gb()
    wide = [random.normal(size=(UNITS, WIDE)) / 100, *weights[1:]]
    x = jnp.asarray(random.choice([-1.0, 1.0], size=(FEW, WIDE)), "float32")
    net = made("float32", wide, WIDE)
    y = (jax.vmap(net)(x) > 0).astype("int32")
    run = {"wide": lambda: fourier.attack(net, x, y, 3).margin}
    found["wide"] = {"seconds": medians(run, 3)["wide"], "more_gb": peak_gb() - before}
    found["target"] = {
        "seconds": {
            "sgfbias, greedy": {"float32": 0.1, "float64": 0.1},
            "sgfbias, Chow parameters": {"float32": 0.1, "float64": 0.1},
        },
        "times_faster_than_a_loop_of_forward_passes": {"float32": 100, "float64": 100},
    }
    return found
