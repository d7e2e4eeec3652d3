"""Dynamical mean-field theory and SGD with masks beside loops as others write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from measure import medians

STEPS, SAMPLES = 64, 6000  # of one solution
SWEEPS, DAMPING = 30, 0.5  # of the iteration to a fixed point
SEEDS, DIMENSION, ITERATIONS = 16, 400, 200  # of SGD with masks
ALPHA, NOISE, STEP, RIDGE, FRACTION, PERSISTENCE = 2.0, 0.5, 0.1, 0.1, 0.3, 10.0


def fixed_point(
    steps: int, samples: int, sweeps: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The overlap and the correlation by damped iteration over whole trajectories.

    In every sweep the paths of all effective examples are drawn anew from the kernels
    of the sweep before, and the kernels are replaced by a mixture of old and new.
    """
    rng = np.random.default_rng(seed)
    T, b, q = steps + 1, FRACTION, PERSISTENCE
    memory, stiffness, noise = np.zeros((T, T)), np.zeros(T), np.zeros((T, T))
    drift = np.zeros(T)
    m, C = np.zeros(T), np.zeros((T, T))
    for _ in range(sweeps):
        m = np.zeros(T)
        R, C = np.zeros((T, T)), np.zeros((T, T))
        C[0, 0] = 0.01
        for t in range(steps):
            keep = 1 - STEP * (RIDGE + stiffness[t])
            m[t + 1] = m[t] - STEP * (RIDGE * m[t] + drift[t])
            R[t + 1] = keep * R[t] + STEP * memory[t] @ R
            R[t + 1, t] = 1
            row = keep * C[t] + STEP * memory[t] @ C + STEP**2 * R @ noise[t]
            C[t + 1, : t + 1] = C[: t + 1, t + 1] = row[: t + 1]
            C[t + 1, t + 1] = (
                keep * C[t, t + 1] + STEP * memory[t] @ C[:, t + 1] + STEP**2 * R[t + 1] @ noise[t]
            )
        values, vectors = np.linalg.eigh(C)
        root = vectors * np.sqrt(np.maximum(values, 0))
        path = np.sqrt(NOISE) * root @ rng.normal(size=(T, samples))
        c = rng.choice([-1.0, 1.0], samples)
        a = c + np.sqrt(NOISE) * rng.normal(size=samples)
        inside = rng.random(samples) < b
        force, kicks = np.zeros((T, samples)), np.zeros((T, T, samples))
        new = [np.zeros_like(v) for v in (memory, stiffness, noise, drift)]
        for t in range(steps):
            r = a * m[t] + path[t] - STEP * NOISE * R[t] @ force
            chance = 1 / (1 + np.exp(c * r))
            s = inside / b
            force[t] = -s * c * chance
            stiff = s * chance * (1 - chance)
            D = -STEP * NOISE * np.tensordot(R[t, :t], kicks[:t], 1)
            D[t] = 1
            kicks[t] = stiff * D
            new[0][t, :t] = -ALPHA * NOISE * kicks[t, :t].mean(axis=1)
            new[1][t] = ALPHA * NOISE * stiff.mean()
            new[3][t] = ALPHA * (force[t] * a).mean()
            u = rng.random(samples)
            inside = np.where(inside, u >= (1 - b) / (b * q), u < 1 / q)
        new[2] = ALPHA * NOISE * force @ force.T / samples
        memory, stiffness, noise, drift = (
            DAMPING * old + (1 - DAMPING) * fresh
            for old, fresh in zip((memory, stiffness, noise, drift), new, strict=True)
        )
    return m, C + np.outer(m, m)


def _torch(X: Any, y: Any, iterations: int) -> Callable[[], Any] | None:
    """SGD with persistent masks as a loop of PyTorch, one seed after the other; None
    without PyTorch.
    """
    try:
        import torch
    except ImportError:
        return None

    def loop() -> Any:
        ends = []
        for inputs, labels in zip(X, y, strict=True):
            x, t = torch.tensor(inputs), torch.tensor(labels)
            w = torch.zeros(x.shape[1], requires_grad=True)
            optimiser = torch.optim.SGD([w], lr=STEP)
            inside = torch.rand(len(x)) < FRACTION
            for _ in range(iterations):
                optimiser.zero_grad()
                losses = torch.nn.functional.softplus(-t * (x @ w))
                loss = (losses * inside).sum() / FRACTION + RIDGE * w.square().sum() / 2
                loss.backward()
                optimiser.step()
                u = torch.rand(len(x))
                leave = (1 - FRACTION) / (FRACTION * PERSISTENCE)
                inside = torch.where(inside, u >= leave, u < 1 / PERSISTENCE)
            ends.append(w.detach())
        return ends

    return loop


def mean_field(scale: float = 1.0) -> dict[str, Any]:
    """Seconds, medians of 3 in turns: one solution of 64 steps and 6,000 effective
    examples, warm, and the first call with its compilation, beside 30 sweeps of the
    damped iteration to a fixed point in NumPy; SGD with persistent masks of 16 seeds
    for 200 steps at d = 400, beside a loop of PyTorch. `scale` makes all of it smaller.
    """
    import time

    import jax

    import sgfbias as sgf
    from sgfbias.meanfield.system import Linear, Penalty

    mf = sgf.meanfield
    steps, samples = max(8, int(STEPS * scale)), max(200, int(SAMPLES * scale))
    data = mf.GaussianMixture(ALPHA, spectrum=NOISE)
    mask = sgf.PersistentMask(FRACTION, persistence=PERSISTENCE)
    rule = mf.MaskedDescent(STEP, mask, ridge=RIDGE)

    def solution() -> Any:
        found = mf.solve(
            data,
            sgf.LogisticLoss(),
            rule,
            steps=steps,
            samples=samples,
            start=mf.Start(variance=0.01),
            keys=jax.random.key(0),
        )
        return jax.block_until_ready(found.correlation)

    sweeps = max(2, int(SWEEPS * scale))
    seeds, d = max(2, int(SEEDS * scale)), max(20, int(DIMENSION * scale))
    iterations = max(10, int(ITERATIONS * scale))
    sample = data.sample(jax.random.key(0), d, "float32")
    n = sample.inputs.shape[0]
    penalty = Penalty(jax.numpy.float32(RIDGE / n))
    problem = sgf.Problem(sample.inputs, sample.targets, loss=sgf.LogisticLoss(), penalty=penalty)
    sgd = sgf.StochasticGradientDescent(STEP * n, sampling=mask)
    start = Linear(jax.numpy.zeros(d, "float32"))
    record = sgf.Record(observables=(), times=2)

    def ours() -> Any:
        keys = sgf.seeds(0, seeds)
        runs = sgf.simulate(sgd, start, problem, keys=keys, steps=iterations, record=record)
        return jax.block_until_ready(runs.networks.w)

    began = time.perf_counter()
    solution()
    cold = time.perf_counter() - began
    arms: dict[str, Callable[[], Any]] = {
        "sgfbias, solve": solution,
        "NumPy, damped fixed point": lambda: fixed_point(steps, samples, sweeps),
        "sgfbias, 16 seeds": ours,
    }
    X, y = np.asarray(sample.inputs), np.asarray(sample.targets)
    loop = _torch([X] * seeds, [y] * seeds, iterations)
    if loop is not None:
        arms["PyTorch, 16 seeds"] = loop
    seconds = medians(arms, 3)
    pairs = {
        "NumPy": ("NumPy, damped fixed point", "sgfbias, solve"),
        "PyTorch": ("PyTorch, 16 seeds", "sgfbias, 16 seeds"),
    }
    theirs = fixed_point(steps, samples, sweeps)[1][-1, -1]
    return {
        "seconds": seconds,
        "first_call": cold,
        "norm_at_the_end": {"sgfbias": float(solution()[-1, -1]), "NumPy": float(theirs)},
        "times_faster_than": {
            name: seconds[slow] / seconds[fast]
            for name, (slow, fast) in pairs.items()
            if slow in seconds
        },
        "target": {
            "seconds": {"sgfbias, solve": 3},
            "first_call": 20,
            "times_faster_than": {"NumPy": 10, "PyTorch": 5},
        },
    }
