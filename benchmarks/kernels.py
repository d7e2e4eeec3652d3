"""Empirical tangent kernels by every contender, in turns.

neural-tangents needs an older JAX, so it runs in an environment of its own, which is
made on demand, as a process that answers requests; see `kernel_peer.py`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import in_turns, peak_gb

PEERS = Path("results/peers/neural-tangents")
PACKAGES = ("jax==0.4.24", "jaxlib==0.4.23", "neural-tangents==0.6.5", "numpy<2", "scipy<1.13")
# Of these methods of neural-tangents, the last is the fast one.
METHODS = ("jacobian contraction", "vector products", "structured")
# Examples, outputs, and the kind of the network.
CASES = {
    "MLP, 1 output": {"kind": "mlp", "n": 64, "outputs": 1},
    "MLP, 10 outputs": {"kind": "mlp", "n": 64, "outputs": 10},
    "conv net, 10 outputs": {"kind": "conv", "n": 16, "outputs": 10},
}
WIDTH, CHANNELS, SIDE = 256, 16, 16


class Peer:
    """neural-tangents in a process of its own, or None where it cannot be installed."""

    def __init__(self, python: Path):
        script = Path(__file__).with_name("kernel_peer.py")
        self.process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of neural-tangents ended, at {request}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peer() -> Peer | None:
    """neural-tangents, in an environment that is made if it is not there; None without
    Python 3.11 or where its packages cannot be installed.
    """
    python = PEERS / "bin" / "python"
    if not python.exists():
        base = shutil.which("python3.11")
        if base is None:
            print("neural-tangents is left out: there is no python3.11", file=sys.stderr)
            return None
        try:
            subprocess.run([base, "-m", "venv", PEERS], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(PEERS, ignore_errors=True)
            print(f"neural-tangents is left out: {error}", file=sys.stderr)
            return None
    return Peer(python)


def weights(kind: str, outputs: int) -> list[Any]:
    """The weights of all layers, (out, in) or (out, in, 3, 3), without biases."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = (
        [(WIDTH, 64), (WIDTH, WIDTH), (outputs, WIDTH)]
        if kind == "mlp"
        else [(CHANNELS, 3, 3, 3), (CHANNELS, CHANNELS, 3, 3), (outputs, CHANNELS)]
    )
    return [(rng.normal(size=s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32) for s in shapes]


def examples(kind: str, n: int) -> Any:
    """The examples, (n, 64), or images (n, 3, 16, 16)."""
    import numpy as np

    shape = (n, 64) if kind == "mlp" else (n, 3, SIDE, SIDE)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def model(kind: str, outputs: int) -> Any:
    """The network as an Equinox module."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    given = [jnp.asarray(w) for w in weights(kind, outputs)]

    def layer(w: Any) -> Any:
        if w.ndim == 2:
            made: Any = eqx.nn.Linear(w.shape[1], w.shape[0], use_bias=False, key=jax.random.key(0))
        else:
            made = eqx.nn.Conv2d(
                w.shape[1], w.shape[0], 3, padding=1, use_bias=False, key=jax.random.key(0)
            )
        return eqx.tree_at(lambda m: m.weight, made, w)

    relu = eqx.nn.Lambda(jax.nn.relu)
    first, second, last = map(layer, given)
    middle = (relu,) if kind == "mlp" else (relu, eqx.nn.Lambda(lambda h: jnp.mean(h, (1, 2))))
    return eqx.nn.Sequential([first, relu, second, *middle, last])


def by_torch(kind: str, n: int, outputs: int) -> Callable[[], Any] | None:
    """The recipe of torch.func: Jacobians of every example, contracted; None without
    PyTorch.
    """
    try:
        import torch
    except ImportError:
        return None
    given = [torch.tensor(w) for w in weights(kind, outputs)]
    inputs = torch.tensor(examples(kind, n))

    def one(parts: list[Any], x: Any) -> Any:
        functional = torch.nn.functional
        if kind == "mlp":
            h = torch.relu(functional.linear(x, parts[0]))
            return functional.linear(torch.relu(functional.linear(h, parts[1])), parts[2])
        h = torch.relu(functional.conv2d(x[None], parts[0], padding=1))
        h = torch.relu(functional.conv2d(h, parts[1], padding=1))
        return functional.linear(h.mean((2, 3))[0], parts[2])

    def kernel() -> Any:
        rows = torch.func.vmap(torch.func.jacrev(one), (None, 0))(given, inputs)
        flat = [row.flatten(2) for row in rows]
        return sum(torch.einsum("naf,mbf->nmab", row, row) for row in flat).numpy()

    return kernel


def tangent_kernels(repeats: int = 7, scale: int = 1) -> dict:
    """Seconds per tangent kernel of an MLP 64-256-256-O on 64 examples, O = 1 and 10,
    and of a conv net 3-16-16-10 on 16 images of 16 x 16, in float32: this package in
    one call and inside jit, its Jacobian contraction, the recipe of torch.func, and the
    three methods of neural-tangents 0.6.5 with jax 0.4.24, in turns, medians without
    compilation, with the largest difference of the kernels relative to their size.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import sgfbias as sgf

    other, results = peer(), {}
    for name, case in CASES.items():
        kind, n, outputs = case["kind"], max(case["n"] // scale, 2), case["outputs"]
        net, x = model(kind, outputs), jnp.asarray(examples(kind, n))
        inside = eqx.filter_jit(lambda net, x: sgf.tangent_kernel(net, x).matrix)
        runs: dict[str, Callable[[], Any]] = {
            "sgfbias, one call": lambda net=net, x=x: sgf.tangent_kernel(net, x).matrix,
            "sgfbias, in jit": lambda net=net, x=x, f=inside: f(net, x),
            "sgfbias, Jacobian contraction": lambda net=net, x=x: (
                sgf.tangent_kernel(net, x, method="jacobian").matrix
            ),
        }
        torch = by_torch(kind, n, outputs)
        if torch is not None:
            runs["torch.func, Jacobian contraction"] = torch
        shape = (n, n, outputs, outputs)
        kernels = {key: np.asarray(run()).reshape(shape) for key, run in runs.items()}
        theirs: dict[str, list[float]] = {}
        if other is not None:
            for method in METHODS:
                asked = {"kind": kind, "n": n, "outputs": outputs, "method": method}
                answer = other.ask(**asked, wanted="kernel")
                kernels[f"neural-tangents, {method}"] = np.asarray(answer).reshape(shape)
        # In turns, also with the other process.
        ours: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(repeats):
            for key, run in runs.items():
                ours[key] += in_turns({key: run}, 1)[key]
            if other is not None:
                for method in METHODS:
                    asked = {"kind": kind, "n": n, "outputs": outputs, "method": method}
                    key = f"neural-tangents, {method}"
                    theirs.setdefault(key, []).append(other.ask(**asked, wanted="seconds"))
        wanted = kernels["sgfbias, Jacobian contraction"]
        results[name] = {
            "seconds": {k: statistics.median(v) for k, v in (ours | theirs).items()},
            "difference": {
                k: float(np.abs(v - wanted).max() / np.abs(wanted).max())
                for k, v in kernels.items()
            },
        }
    if other is not None:
        other.close()
    jax.clear_caches()
    return {"repeats": repeats, "cases": results}


def kernel_blocks(n: int = 10_000) -> dict:
    """Seconds and peak memory of the tangent kernel of an MLP 64-256-256-1 on 10,000
    examples, by blocks, in float32, once; the kernel itself takes 0.4 GB.
    """
    import time

    import jax
    import jax.numpy as jnp

    import sgfbias as sgf

    net, x = model("mlp", 1), jnp.asarray(examples("mlp", n))
    before = peak_gb()
    begin = time.perf_counter()
    kernel = sgf.tangent_kernel(net, x, outputs="trace")
    trace = float(jax.block_until_ready(kernel.trace))
    return {
        "n": n,
        "seconds": time.perf_counter() - begin,
        "peak_gb_before": before,
        "peak_gb": peak_gb(),
        "trace": trace,
    }


def kernel_extremes(n: int = 2000) -> dict:
    """Seconds of the largest and the least eigenvalue of the kernel of an MLP
    64-256-256-1 on 2,000 examples: by Lanczos from products, without the matrix, and
    from all eigenvalues of the matrix; float32, once after a first call.
    """
    import time

    import jax.numpy as jnp

    import sgfbias as sgf

    net, x = model("mlp", 1), jnp.asarray(examples("mlp", n))
    found = {}
    for method in ("products", "structured"):
        for _ in range(2):
            begin = time.perf_counter()
            kernel = sgf.tangent_kernel(net, x, method=method)
            ends = float(kernel.largest), float(kernel.least)
            seconds = time.perf_counter() - begin
        found[method] = {"seconds": seconds, "largest": ends[0], "least": ends[1]}
    return {"n": n, "methods": found}
