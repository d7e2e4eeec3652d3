"""Max-margin directions of homogeneous classifiers, beside a loop in PyTorch and the
solvers of scikit-learn and cvxpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import medians

IMAGES, WIDTH, NU = 100, 32, 100.0  # images, hidden units; nu from which a run is landed
SIZES = ((200, 20), (2000, 50))  # of the linear problems
LONGEST = 60.0  # seconds after which a loop is stopped


def _torch_loop(
    forward: Callable[[Any], Any],
    weights: list[Any],
    loss: Callable[[Any], Any],
    *,
    until: Callable[[int, float], bool],
) -> tuple[int, float, float]:
    """Gradient descent in PyTorch with a step size that is scaled by the loss, as in
    Lyu and Li's code: the step is `s G / |G|^2` with the gradient G of nu. It is halved
    if nu gains less than half of s, and otherwise grows by 15%.

    **Returns:** the number of tries, seconds, and nu at the end.
    """
    import torch

    # Tensors of this size are faster on one thread.
    torch.set_num_threads(1)

    width, tries, start = 0.05, 0, time.perf_counter()
    nu, gradient, speed = loss(forward(weights)), None, 1.0
    while not until(tries, nu.item()) and time.perf_counter() - start < LONGEST:
        if gradient is None:
            gradient = torch.autograd.grad(nu, weights)
            speed = sum((g * g).sum() for g in gradient)
        with torch.no_grad():
            trial = [w + width / speed * g for w, g in zip(weights, gradient, strict=True)]
        trial = [w.requires_grad_() for w in trial]
        after = loss(forward(trial))
        tries += 1
        if (after - nu).item() >= width / 2:
            weights, nu, width, gradient = trial, after, 1.15 * width, None
        else:
            width /= 2
    return tries, time.perf_counter() - start, nu.item()


def _digits() -> dict[str, Any]:
    """Tries per second on images of digits, until the same number of tries."""
    import equinox as eqx
    import jax
    import torch
    from sklearn.datasets import load_digits

    import sgfbias as sgf
    from sgfbias import margin

    images, labels = load_digits(return_X_y=True)
    x, y = images[:IMAGES] / 8 - 1, labels[:IMAGES]
    net = eqx.nn.MLP(64, 10, WIDTH, 1, use_bias=False, use_final_bias=False, key=jax.random.key(0))
    problem = sgf.Problem(x, y, loss=sgf.SoftmaxCrossEntropyLoss())
    descent, tries = margin.MarginDescent(margin.Identity(), 0.05), 4000

    def ours(count: int) -> Any:
        record = sgf.Record({"nu": None}, 2)
        return sgf.simulate(descent, net, problem, steps=count, record=record)

    ours(tries)
    begin = time.perf_counter()
    run = ours(tries)
    float(run.final["nu"])
    seconds = time.perf_counter() - begin
    inputs, target = torch.tensor(x), torch.tensor(y)

    def forward(weights: list[Any]) -> Any:
        return torch.relu(inputs @ weights[0].T) @ weights[1].T

    def nu(outputs: Any) -> Any:
        rows = torch.arange(IMAGES)
        others = outputs - outputs[rows, target][:, None]
        others = others.masked_fill(torch.nn.functional.one_hot(target, 10).bool(), -torch.inf)
        s = torch.logsumexp(others, dim=1)
        small = s < -30
        # The other branch may be log(0), whose gradient is NaN.
        safe = torch.where(small, torch.zeros_like(s), s)
        log = torch.where(small, s, torch.log(torch.nn.functional.softplus(safe)))
        return -torch.logsumexp(log, dim=0)

    start = [torch.tensor(np.asarray(layer.weight)).requires_grad_() for layer in net.layers]
    done, spent, reached = _torch_loop(forward, start, nu, until=lambda k, _: k >= tries)
    return {
        "sgfbias, tries per second": tries / seconds,
        "PyTorch, tries per second": done / spent,
        "times as fast": tries / seconds / (done / spent),
        "sgfbias, nu": float(run.final["nu"]),
        "PyTorch, nu": reached,
    }


def _landing() -> dict[str, Any]:
    """Seconds until the l2 margin of a squared-ReLU network is within 1% of that of the
    landed point: by a short run and landing, and by the loop in PyTorch.
    """
    import jax
    import torch

    import sgfbias as sgf
    from sgfbias import margin
    from sgfbias.margin.studies.network import Config, drawn

    problem, net = drawn(jax.random.key(0), Config())
    flow = margin.MarginFlow(kinks=True)

    def ours() -> Any:
        run = sgf.simulate(flow, net, problem, t1=NU, record=sgf.Record(("nu",), 2))
        return margin.land(run)

    landed = ours()
    begin = time.perf_counter()
    landed = ours()
    seconds = time.perf_counter() - begin
    inputs, signs = (torch.tensor(np.asarray(a)) for a in (problem.inputs, problem.targets))
    best, seen = landed.certificate.margin, [0.0]

    def forward(weights: list[Any]) -> Any:
        q = signs * (torch.relu(inputs @ weights[0].T) ** 2 @ weights[1][0])
        with torch.no_grad():
            size = torch.sqrt(sum((w * w).sum() for w in weights))
            seen[0] = (q.min() / size**3).item()
        return q

    start = [torch.tensor(np.asarray(layer.weight)).requires_grad_() for layer in net.layers]
    tries, spent, nu = _torch_loop(
        forward, start, lambda q: -torch.logsumexp(-q, dim=0),
        until=lambda k, _: seen[0] >= 0.99 * best,
    )  # fmt: skip
    return {
        "sgfbias, seconds": seconds,
        "sgfbias, landed": landed.reached,
        "PyTorch, seconds": spent,
        "PyTorch, margin over the landed one": seen[0] / best,
        "PyTorch, nu": nu,
        "PyTorch, tries": tries,
    }


def _direction() -> dict[str, Any]:
    """Seconds until the direction of gradient flow on a linear problem is within 1e-4
    of the max-margin solution, at nu = 1e5.
    """
    import jax.numpy as jnp

    import sgfbias as sgf
    from sgfbias import margin

    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(4, 6)), np.where(np.arange(4) % 2, -1.0, 1.0)
    problem = sgf.Problem(jnp.asarray(X), jnp.asarray(y), loss=margin.ExponentialLoss())
    start, flow = margin.Linear(jnp.zeros(6)), margin.MarginFlow()

    def ours() -> Any:
        return sgf.simulate(flow, start, problem, t1=1e5, record=sgf.Record(("nu",), 2)).networks.w

    found = np.asarray(ours())
    best = margin.max_margin(X, y).weights
    error = np.linalg.norm(found / np.linalg.norm(found) - best / np.linalg.norm(best))
    return {"seconds": medians({"ours": ours})["ours"], "error": float(error)}


def _linear() -> dict[str, Any]:
    """Seconds of l2 max-margin solutions, and the gap to the best margin that the
    multipliers of `max_margin` prove.
    """
    from sgfbias import margin

    found: dict[str, Any] = {}
    for n, d in SIZES:
        rng = np.random.default_rng(0)
        y = np.where(np.arange(n) % 2, -1.0, 1.0)
        X = rng.normal(size=(n, d)) + 3 * y[:, None] * np.eye(d)[0] + 3 * y[:, None] / np.sqrt(d)
        keep = X @ (np.eye(d)[0] + 1 / np.sqrt(d)) * y > 0.5
        X, y = X[keep], y[keep]
        best = margin.max_margin(X, y)

        def gap(w: Any, X: Any = X, y: Any = y, best: Any = best) -> float:
            return float(1 - (y * (X @ w)).min() / np.linalg.norm(w) / best.margin)

        runs: dict[str, Callable[[], Any]] = {
            "sgfbias": lambda X=X, y=y: margin.max_margin(X, y).weights
        }
        peers = {"LinearSVC": _svc(X, y), "cvxpy": _cvxpy(X, y)}
        runs |= {name: run for name, run in peers.items() if run is not None}
        row: dict[str, Any] = {f"{k}, seconds": v for k, v in medians(runs, 3).items()}
        row |= {f"{name}, gap": gap(np.asarray(run())) for name, run in runs.items()}
        found[f"n = {len(X)}, d = {d}"] = row | {"proved gap": best.gap}
    return found


def _svc(X: Any, y: Any) -> Callable[[], Any]:
    """Scikit-learn's linear support-vector machine, without a bias and with a large
    weight of the constraints.
    """
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        loss="hinge", C=1e4, fit_intercept=False, tol=1e-8, max_iter=200_000, random_state=0
    )

    def run() -> Any:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.fit(X, y).coef_[0]

    return run


def _cvxpy(X: Any, y: Any) -> Callable[[], Any] | None:
    """The quadratic programme by cvxpy's Clarabel; None if it is not installed."""
    try:
        import cvxpy
    except ImportError:
        return None

    def run() -> Any:
        w = cvxpy.Variable(X.shape[1])
        task = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.sum_squares(w) / 2), [cvxpy.multiply(y, X @ w) >= 1]
        )
        task.solve(solver=cvxpy.CLARABEL)
        return w.value

    return run


def margins() -> dict:
    """Max-margin directions, all in float64. Tries per second of loss-scaled gradient
    descent on 100 images of digits (MLP 64-32-10, 2,368 weights), beside a loop in
    PyTorch. Seconds until the l2 margin of a squared-ReLU network (16 points, 8 units)
    is within 1% of the landed one, by a run to nu = 100 and landing, and by the loop,
    which is stopped after 60 s. Seconds to a direction within 1e-4 on a linear problem.
    Seconds of l2 max-margin solutions beside scikit-learn's LinearSVC and cvxpy with
    Clarabel, medians of 3, with the gap of each to the best margin.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    return {
        "digits": _digits(),
        "landing": _landing(),
        "direction": _direction(),
        "linear": _linear(),
    }
