"""neural-tangents as a process: it reads requests, one a line, and answers each.

A request has the kind of the network, its number of outputs, the number of examples,
the method, and what is wanted: the kernel, or the seconds of one call after a first
call. It runs in the environment that `kernels.peer` makes, without this package.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
from kernels import examples, weights

CHOICES = {
    "jacobian contraction": nt.NtkImplementation.JACOBIAN_CONTRACTION,
    "vector products": nt.NtkImplementation.NTK_VECTOR_PRODUCTS,
    "structured": nt.NtkImplementation.STRUCTURED_DERIVATIVES,
}


def network(kind: str) -> Callable[[Any, Any], Any]:
    """The network as a function of its weights and a batch of examples."""

    def mlp(parts: list[Any], x: Any) -> Any:
        h = jax.nn.relu(x @ parts[0].T)
        return jax.nn.relu(h @ parts[1].T) @ parts[2].T

    def conv(parts: list[Any], x: Any) -> Any:
        for w in parts[:2]:
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME"))
        return jnp.mean(x, axis=(2, 3)) @ parts[2].T

    return mlp if kind == "mlp" else conv


@functools.cache
def compiled(kind: str, outputs: int, n: int, method: str) -> Callable[[], Any]:
    """A call of the compiled kernel."""
    kernel = jax.jit(
        nt.empirical_ntk_fn(
            network(kind), trace_axes=(), vmap_axes=0, implementation=CHOICES[method]
        )
    )
    x, parts = jnp.asarray(examples(kind, n)), [jnp.asarray(w) for w in weights(kind, outputs)]
    call = functools.partial(kernel, x, None, parts)
    jax.block_until_ready(call())
    return call


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        wanted = asked.pop("wanted")
        call = compiled(**asked)
        begin = time.perf_counter()
        found = jax.block_until_ready(call())
        seconds = time.perf_counter() - begin
        print(json.dumps(seconds if wanted == "seconds" else found.tolist()), flush=True)


if __name__ == "__main__":
    main()
