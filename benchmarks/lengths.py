"""Linear recurrent networks and cells beside `control`, SciPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from measure import medians

SYSTEMS, STATE, LAGS = 256, 20, 200  # systems, their states, and lags
STARTS, TIME = 20, 200.0  # starts of the gradient flow, and its flow time
SEQUENCES, LENGTH, HIDDEN, ITERATIONS = 512, 6, 16, 600  # training of a GRU
STEPS = 1000  # of the product of Jacobians


def _control(A: Any, B: Any, C: Any) -> dict[str, Callable[[], Any]]:
    """A loop over systems of the package `control`; empty if it is not installed."""
    try:
        import control
    except ImportError:
        return {}
    times = np.arange(LAGS)

    def loop() -> Any:
        for a, b, c in zip(A, B, C, strict=True):
            system = control.ss(a, b, c, np.zeros((1, 1)), True)
            control.impulse_response(system, times)
            # `control.gram` needs slycot; this equation has SciPy's solver, too.
            X, Y = control.dlyap(a, b @ b.T), control.dlyap(a.T, c.T @ c)
            np.sqrt(np.abs(np.linalg.eigvals(X @ Y)))

    return {"control, a loop over systems": loop}


def _scipy(A: Any, B: Any, C: Any, length: int) -> Callable[[], Any]:
    """The gradient flow of every start, one after the other, by LSODA."""
    from scipy.integrate import solve_ivp

    d = A.shape[-1]

    def slope(_: float, y: Any) -> Any:
        a, b, c = y[: d * d].reshape(d, d), y[d * d : d * d + d], y[d * d + d :]
        right = [b]
        left = [c]
        for _ in range(length - 1):
            right.append(a @ right[-1])
            left.append(left[-1] @ a)
        e = [c @ r - (j == 0) for j, r in enumerate(right)]
        da = sum(
            -e[j] * np.outer(left[p], right[j - 1 - p]) for j in range(1, length) for p in range(j)
        )
        db = -sum(e[j] * left[j] for j in range(length))
        dc = -sum(e[j] * right[j] for j in range(length))
        return np.concatenate([np.ravel(da), db, dc])

    def loop() -> Any:
        return [
            solve_ivp(
                slope,
                (0, TIME),
                np.concatenate([np.ravel(a), b[:, 0], c[0]]),
                method="LSODA",
                rtol=1e-8,
                atol=1e-10,
            ).y[:, -1]
            for a, b, c in zip(A, B, C, strict=True)
        ]

    return loop


def _torch(inputs: Any, targets: Any, long_input: Any) -> dict[str, Callable[[], Any]]:
    """Training of a GRU and a product of Jacobians in PyTorch; empty if it is not
    installed.
    """
    try:
        import torch
    except ImportError:
        return {}
    x, y = torch.tensor(np.asarray(inputs)), torch.tensor(np.asarray(targets))
    long = torch.tensor(np.asarray(long_input))

    def train() -> Any:
        torch.manual_seed(0)
        cell, readout = torch.nn.GRU(1, HIDDEN, batch_first=True), torch.nn.Linear(HIDDEN, 1)
        adam = torch.optim.Adam([*cell.parameters(), *readout.parameters()], lr=5e-3)
        for _ in range(ITERATIONS):
            adam.zero_grad()
            loss = 0.5 * torch.mean((readout(cell(x)[1][0]) - y) ** 2)
            loss.backward()
            adam.step()
        return float(loss.detach())

    def jacobians() -> Any:
        torch.manual_seed(0)
        cell, frame = torch.nn.GRUCell(1, HIDDEN), torch.eye(HIDDEN)
        hidden = torch.zeros(1, HIDDEN)
        for one in long:
            step = lambda h, one=one: cell(one[None], h)  # noqa: E731
            J = torch.autograd.functional.jacobian(step, hidden)[0, :, 0]
            hidden = cell(one[None], hidden).detach()
            frame, _ = torch.linalg.qr(J @ frame)
        return frame

    return {"PyTorch, training": train, "PyTorch, Jacobians": jacobians}


def recurrent_networks() -> dict:
    """Seconds, warm, in turns, medians of 3: impulse responses of 200 lags and Hankel
    values of 256 systems of 20 states, beside a loop of the package control; the
    gradient flow of 20 starts of 20 states to t = 200, in 2,000 steps of Heun's method,
    beside SciPy's LSODA one start
    after the other; 600 iterations of Adam for a GRU on 512 sequences of length 6, and
    the product of the Jacobians of 1,000 steps, orthonormal again at every step, beside
    PyTorch. Linear systems are in float64, cells in float32.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import sgfbias as sgf

    jax.config.update("jax_enable_x64", True)
    rec = sgf.recurrent

    def drawn(count: int) -> Any:
        make = rec.LinearRNN.gaussian
        one = lambda key: make(key, state=STATE, scale=0.6, gain=0.5)  # noqa: E731
        return jax.vmap(one)(sgf.seeds(0, count))

    systems, starts = drawn(SYSTEMS), drawn(STARTS)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(systems)]
    begin = [np.asarray(leaf) for leaf in jax.tree.leaves(starts)]
    whole = jax.jit(jax.vmap(lambda n: (n.impulse_response(LAGS), rec.hankel_values(n))))
    risk = rec.PopulationRisk(1.0, 5)
    how = {"solver": sgf.PredictorCorrector(), "record": sgf.Record(observables=(), times=2)}
    flow = sgf.GradientFlow(dt=0.1)
    steps = round(TIME / 0.1)

    x = jax.random.normal(jax.random.key(0), (SEQUENCES, LENGTH, 1), jnp.float32)
    long_input = jax.random.normal(jax.random.key(1), (STEPS, 1), jnp.float32)
    k1, k2 = jax.random.split(jax.random.key(2))
    model = rec.Unroll(eqx.nn.GRUCell(1, HIDDEN, key=k1), eqx.nn.Linear(HIDDEN, 1, key=k2))
    model = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, model)
    problem = sgf.Problem(x, x[:, -1], loss=sgf.SquaredLoss(scale=0.5))
    adam = sgf.OptaxDescent(optax.adam(5e-3), 1.0)
    record = sgf.Record(observables=(), times=2)

    def trained() -> Any:
        return sgf.simulate(adam, model, problem, steps=ITERATIONS, record=record).final["loss"]

    def flowed() -> Any:
        return sgf.simulate(flow, sgf.Stacked(starts), risk, steps=steps, **how).networks.A

    runs: dict[str, Callable[[], Any]] = {
        "sgfbias, 256 systems": lambda: jax.block_until_ready(whole(systems)),
        **_control(*arrays),
        "sgfbias, 20 starts": lambda: jax.block_until_ready(flowed()),
        "SciPy, 20 starts": _scipy(*begin, 5),
        "sgfbias, training": lambda: jax.block_until_ready(trained()),
        "sgfbias, Jacobians": lambda: jax.block_until_ready(rec.lyapunov(model, long_input)),
        **_torch(x, x[:, -1], long_input),
    }
    seconds = medians(runs, 3)
    pairs = {
        "control": ("control, a loop over systems", "sgfbias, 256 systems"),
        "SciPy": ("SciPy, 20 starts", "sgfbias, 20 starts"),
        "PyTorch, training": ("PyTorch, training", "sgfbias, training"),
        "PyTorch, Jacobians": ("PyTorch, Jacobians", "sgfbias, Jacobians"),
    }
    ends = np.asarray(flowed()), np.stack([end[: STATE**2] for end in runs["SciPy, 20 starts"]()])
    return {
        "seconds": seconds,
        "largest_difference_from_scipy": float(np.abs(ends[0].reshape(STARTS, -1) - ends[1]).max()),
        "times_faster_than": {
            name: seconds[theirs] / seconds[ours]
            for name, (theirs, ours) in pairs.items()
            if theirs in seconds
        },
        "target": {
            "times_faster_than": {
                "control": 20,
                "SciPy": 20,
                "PyTorch, training": 3,
                "PyTorch, Jacobians": 10,
            }
        },
    }
