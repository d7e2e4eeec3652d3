"""Dynamical mean-field theory and SGD with masks beside loops as others write them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from measure import medians

STEPS, SAMPLES = 64, 6000  # of one solution
SWEEPS, DAMPING = 30, 0.5  # of the iteration to a fixed point
SEEDS, DIMENSION, ITERATIONS = 16, 400, 200  # of SGD with masks
# Of the comparison at equal error: steps, examples of the fixed point, and repeats.
SHORT, FEW, REPEATS = 40, 2000, 4


class Case(NamedTuple):
    """A system: the numbers of the rule and of the data, and what an example is.

    - `variance`: of the start.
    - `draw`: a function of a generator and a number of examples that returns their
      drifts a and targets y.
    - `slopes`: a function of targets and pre-activations that returns L' and L''.
    """

    alpha: float
    noise: float
    step: float
    ridge: float
    fraction: float
    persistence: float
    variance: float
    draw: Callable[[Any, int], tuple[np.ndarray, np.ndarray]]
    slopes: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _clusters(rng: Any, samples: int) -> tuple[np.ndarray, np.ndarray]:
    c = rng.choice([-1.0, 1.0], samples)
    return c + np.sqrt(0.5) * rng.normal(size=samples), c


def _logistic(y: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chance = 1 / (1 + np.exp(y * r))
    return -y * chance, chance * (1 - chance)


def _teacher(rng: Any, samples: int) -> tuple[np.ndarray, np.ndarray]:
    along, noise = rng.normal(size=(2, samples))
    return along, along + 0.5 * noise


def _square(y: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return r - y, np.ones_like(r)


LOGISTIC = Case(2.0, 0.5, 0.1, 0.1, 0.3, 10.0, 0.01, _clusters, _logistic)
# Masks whose persistence is 1/fraction are independent.
SQUARES = Case(2.0, 1.0, 0.1, 0.1, 0.3, 1 / 0.3, 0.01, _teacher, _square)


def fixed_point(case: Case, steps: int, samples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The mean squared weight at every time, by damped iteration over whole
    trajectories, after each sweep, without end.

    In every sweep the paths of all effective examples are drawn anew from the kernels
    of the sweep before, and the kernels are replaced by a mixture of old and new.
    """
    rng = np.random.default_rng(seed)
    T, b, q, eta, delta = steps + 1, case.fraction, case.persistence, case.step, case.noise
    memory, stiffness, noise = np.zeros((T, T)), np.zeros(T), np.zeros((T, T))
    drift = np.zeros(T)
    while True:
        m = np.zeros(T)
        R, C = np.zeros((T, T)), np.zeros((T, T))
        C[0, 0] = case.variance
        for t in range(steps):
            keep = 1 - eta * (case.ridge + stiffness[t])
            m[t + 1] = m[t] - eta * (case.ridge * m[t] + drift[t])
            R[t + 1] = keep * R[t] + eta * memory[t] @ R
            R[t + 1, t] = 1
            row = keep * C[t] + eta * memory[t] @ C + eta**2 * R @ noise[t]
            C[t + 1, : t + 1] = C[: t + 1, t + 1] = row[: t + 1]
            C[t + 1, t + 1] = (
                keep * C[t, t + 1] + eta * memory[t] @ C[:, t + 1] + eta**2 * R[t + 1] @ noise[t]
            )
        yield np.diag(C) + np.square(m)
        values, vectors = np.linalg.eigh(C)
        root = vectors * np.sqrt(np.maximum(values, 0))
        path = np.sqrt(delta) * root @ rng.normal(size=(T, samples))
        a, y = case.draw(rng, samples)
        inside = rng.random(samples) < b
        force, kicks = np.zeros((T, samples)), np.zeros((T, T, samples))
        new = [np.zeros_like(v) for v in (memory, stiffness, noise, drift)]
        for t in range(steps):
            r = a * m[t] + path[t] - eta * delta * R[t] @ force
            slopes, curvatures = case.slopes(y, r)
            s = inside / b
            force[t], stiff = s * slopes, s * curvatures
            D = -eta * delta * np.tensordot(R[t, :t], kicks[:t], 1)
            D[t] = 1
            kicks[t] = stiff * D
            new[0][t, :t] = -case.alpha * delta * kicks[t, :t].mean(axis=1)
            new[1][t] = case.alpha * delta * stiff.mean()
            new[3][t] = case.alpha * (force[t] * a).mean()
            u = rng.random(samples)
            inside = np.where(inside, u >= (1 - b) / (b * q), u < 1 / q)
        new[2] = case.alpha * delta * force @ force.T / samples
        memory, stiffness, noise, drift = (
            DAMPING * old + (1 - DAMPING) * fresh
            for old, fresh in zip((memory, stiffness, noise, drift), new, strict=True)
        )


def exact_norms(steps: int) -> np.ndarray:
    """The mean squared weight of SGD on least squares (`SQUARES`) at every time, exact
    as d grows.

    In an eigenspace of `X^T X` with the eigenvalue x and `k = x + lambda`, the mean
    over masks has the factor phi along the teacher, psi along the label noise, and
    shrink along the start. Masks of variance g add fluctuations of the variance sigma,
    which the mean squared residual v drives.
    """
    case, s0 = SQUARES, 0.5
    alpha, eta, g = case.alpha, case.step, (1 - case.fraction) / case.fraction
    theta = np.arange(1, 2001) * np.pi / 2001
    x = 1 + alpha + 2 * np.sqrt(alpha) * np.cos(theta)
    w = 2 * alpha / 2001 * np.sin(theta) ** 2 / x
    k, sigma, norms = x + case.ridge, np.zeros_like(x), []
    for t in range(steps + 1):
        shrink = (1 - eta * k) ** t
        phi, psi = x / k * (1 - shrink), (1 - shrink) / k
        start = case.variance * shrink**2
        norms.append(w @ (phi**2 + s0**2 * x * psi**2 + start + sigma))
        seen = x * (phi - 1) ** 2 + s0**2 * (x * psi - 1) ** 2 + x * (start + sigma)
        v = w @ seen / alpha + s0**2 * (1 - 1 / alpha)
        sigma = (1 - eta * k) ** 2 * sigma + eta**2 * g * x * v
    return np.asarray(norms)


def _error(found: Any, exact: np.ndarray) -> float:
    """The root mean square over repeats and times of the error of mean squared weights,
    as a share of the largest of them.
    """
    return float(np.sqrt(np.mean(np.square(np.asarray(found) - exact))) / exact.max())


def equal_error(scale: float) -> dict[str, Any]:
    """The time to the same error of SGD on least squares with independent masks, for a
    fixed point that takes all sweeps, and for one that stops after the sweep that is
    best for it: the one where its time over ours to the error it has reached is
    smallest.
    """
    import jax

    import sgfbias as sgf

    mf, case = sgf.meanfield, SQUARES
    steps, few = max(8, int(SHORT * scale)), max(100, int(FEW * scale))
    repeats, sweeps = max(2, int(REPEATS * scale)), max(2, int(SWEEPS * scale))
    exact = exact_norms(steps)
    data = mf.LinearTeacher(case.alpha, label_noise=0.5)
    rule = mf.MaskedDescent(case.step, sgf.BernoulliMask(case.fraction), ridge=case.ridge)

    def ours(samples: int, key: Any) -> np.ndarray:
        found = mf.solve(
            data,
            sgf.SquaredLoss(0.5),
            rule,
            steps=steps,
            samples=samples,
            start=mf.Start(variance=case.variance),
            keys=key,
        )
        return np.diagonal(found.correlation, axis1=-2, axis2=-1)

    def timed(samples: int) -> tuple[float, float]:
        """The error, and the median seconds of a solution."""
        ours(samples, jax.random.key(0))  # compiles
        found, seconds = [], []
        for key in sgf.seeds(1, 4 * repeats + 1):
            began = time.perf_counter()
            found.append(ours(samples, key))
            seconds.append(time.perf_counter() - began)
        return _error(found, exact), float(np.median(seconds))

    known, _ = timed(few)
    norms: list[list[np.ndarray]] = []
    marks: list[list[float]] = []
    for seed in range(repeats):
        # The first norms are before any sweep, and a sweep ends with its own norms.
        iteration, began = fixed_point(case, steps, few, seed), time.perf_counter()
        pairs = [(next(iteration), time.perf_counter() - began) for _ in range(sweeps + 1)]
        norms.append([norm for norm, _ in pairs[1:]])
        marks.append([mark for _, mark in pairs[1:]])
    errors = [_error(found, exact) for found in zip(*norms, strict=True)]
    seconds = np.median(marks, axis=0)

    def compared(sweep: int) -> dict[str, Any]:
        """The time of the fixed point after a sweep over ours to no larger an error,
        which falls as the root of the number of examples.
        """
        samples = max(20, round(few * (known / errors[sweep]) ** 2))
        error, own = timed(samples)
        while error > errors[sweep]:  # by chance, or since few examples have a bias
            samples = round(1.3 * samples)
            error, own = timed(samples)
        return {
            "sweeps": sweep + 1,
            "examples": {"sgfbias": samples, "NumPy": few},
            "error": {"sgfbias": error, "NumPy": errors[sweep]},
            "seconds": {"sgfbias": own, "NumPy": float(seconds[sweep])},
            "times_faster_than": {"NumPy": float(seconds[sweep]) / own},
        }

    # Our time is nearly proportional to the number of examples.
    best = int(np.argmin(seconds * np.square(errors)))
    return {"all sweeps": compared(sweeps - 1), "its best number of sweeps": compared(best)}


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
            optimiser = torch.optim.SGD([w], lr=LOGISTIC.step)
            inside = torch.rand(len(x)) < LOGISTIC.fraction
            for _ in range(iterations):
                optimiser.zero_grad()
                losses = torch.nn.functional.softplus(-t * (x @ w))
                ridge = LOGISTIC.ridge * w.square().sum() / 2
                loss = (losses * inside).sum() / LOGISTIC.fraction + ridge
                loss.backward()
                optimiser.step()
                u = torch.rand(len(x))
                leave = (1 - LOGISTIC.fraction) / (LOGISTIC.fraction * LOGISTIC.persistence)
                inside = torch.where(inside, u >= leave, u < 1 / LOGISTIC.persistence)
            ends.append(w.detach())
        return ends

    return loop


def mean_field(scale: float = 1.0) -> dict[str, Any]:
    """Seconds, medians of 3 in turns: one solution of 64 steps and 6,000 effective
    examples, warm, and the first call with its compilation, beside 30 sweeps of the
    damped iteration to a fixed point in NumPy, of which one is timed; SGD with
    persistent masks of 16 seeds for 200 steps at d = 400, beside a loop of PyTorch. At
    equal error: SGD on least squares, whose mean squared weights in 40 steps are known
    in closed form, by as many examples as give at most the error of the fixed point
    with 2,000 of them, after 30 sweeps and after the number that is best for it. Errors
    are root mean squares over repeats and times, as shares of the largest mean square.
    `scale` makes all of it smaller.
    """
    import jax

    import sgfbias as sgf
    from sgfbias.meanfield.system import Linear, Penalty

    mf = sgf.meanfield
    steps, samples = max(8, int(STEPS * scale)), max(200, int(SAMPLES * scale))
    data = mf.GaussianMixture(LOGISTIC.alpha, spectrum=LOGISTIC.noise)
    mask = sgf.PersistentMask(LOGISTIC.fraction, persistence=LOGISTIC.persistence)
    rule = mf.MaskedDescent(LOGISTIC.step, mask, ridge=LOGISTIC.ridge)

    def solution() -> Any:
        found = mf.solve(
            data,
            sgf.LogisticLoss(),
            rule,
            steps=steps,
            samples=samples,
            start=mf.Start(variance=LOGISTIC.variance),
            keys=jax.random.key(0),
        )
        return jax.block_until_ready(found.correlation)

    iteration = fixed_point(LOGISTIC, steps, samples)
    next(iteration)  # what comes next is a sweep
    seeds, d = max(2, int(SEEDS * scale)), max(20, int(DIMENSION * scale))
    iterations = max(10, int(ITERATIONS * scale))
    sample = data.sample(jax.random.key(0), d, "float32")
    n = sample.inputs.shape[0]
    penalty = Penalty(jax.numpy.float32(LOGISTIC.ridge / n))
    problem = sgf.Problem(sample.inputs, sample.targets, loss=sgf.LogisticLoss(), penalty=penalty)
    sgd = sgf.StochasticGradientDescent(LOGISTIC.step * n, sampling=mask)
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
        "NumPy, damped fixed point": lambda: next(iteration),
        "sgfbias, 16 seeds": ours,
    }
    X, y = np.asarray(sample.inputs), np.asarray(sample.targets)
    loop = _torch([X] * seeds, [y] * seeds, iterations)
    if loop is not None:
        arms["PyTorch, 16 seeds"] = loop
    seconds = medians(arms, 3)
    seconds["NumPy, damped fixed point"] *= SWEEPS
    pairs = {
        "NumPy": ("NumPy, damped fixed point", "sgfbias, solve"),
        "PyTorch": ("PyTorch, 16 seeds", "sgfbias, 16 seeds"),
    }
    return {
        "seconds": seconds,
        "first_call": cold,
        "times_faster_than": {
            name: seconds[slow] / seconds[fast]
            for name, (slow, fast) in pairs.items()
            if slow in seconds
        },
        "at_equal_error": equal_error(scale),
        "target": {
            "seconds": {"sgfbias, solve": 3},
            "first_call": 20,
            "times_faster_than": {"NumPy": 10, "PyTorch": 5},
            "at_equal_error": {
                name: {"times_faster_than": {"NumPy": 10}}
                for name in ("all sweeps", "its best number of sweeps")
            },
        },
    }
