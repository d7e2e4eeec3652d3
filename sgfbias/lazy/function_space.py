"""Training in function space, with a kernel that does not change."""

from __future__ import annotations

from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import as_float, as_float_array, check_positive, is_concrete
from sgfbias.core.grid import time_grid
from sgfbias.core.kernel import TangentKernel
from sgfbias.core.problem import Problem

MOST_STEPS = 200_000


class KernelFlow(NamedTuple):
    """Outputs that follow a fixed kernel.

    - `times`: (times,), in flow time.
    - `outputs`: (times, n, ...), the outputs on the training examples.
    - `loss`: (times,), the mean loss.
    """

    times: Array
    outputs: Array
    loss: Array


def kernel_flow(
    kernel: TangentKernel, problem: Problem, f0: Any, *, t1: Any, times: Any = 100
) -> KernelFlow:
    """Solve `df/dt = -(1/n) K l'(f)`, the gradient flow of the linearised model seen in
    its outputs f, for any loss.

    **Arguments:**

    - `kernel`: the tangent kernel on the examples of the problem, with all outputs.
    - `problem`: the targets and the loss.
    - `f0`: (n, ...), the outputs at time 0.
    - `t1`: the flow time at the end.
    - `times`: the number of times to record, or an increasing array of them, as in
      `Record`.

    **Returns:** a `KernelFlow`.

    **Raises:** `ValueError` for outputs or a kernel that do not fit the problem, and if
    the equation is too stiff.
    """
    f0 = as_float_array(f0, "f0").astype(problem.dtype)
    t1 = as_float(t1, "t1")
    check_positive(t1, "t1")
    if kernel.other is not None or kernel.traced or kernel.shape[0] != problem.n:
        raise ValueError(
            f"the kernel must be that of the problem's {problem.n} examples with all outputs, but "
            f"has shape {kernel.shape}: write tangent_kernel(network, problem)"
        )
    wanted = (problem.n, *kernel.operator.shape[1:])
    if f0.shape != wanted:
        raise ValueError(
            f"`f0` must have the shape of the model's outputs, {wanted}, but has shape {f0.shape}"
        )
    problem.loss.check(jax.ShapeDtypeStruct(f0.shape, f0.dtype), problem.targets)
    grid = jnp.asarray(time_grid(times, float(t1)), problem.dtype)
    # The parts of the layers are added up once.
    matrix = kernel.flat if kernel.parts else kernel
    solution = _solve(matrix, problem, f0, grid)
    if is_concrete(solution.ys) and not bool(dfx.is_okay(solution.result)):
        raise ValueError(
            f"the equation did not reach t1 = {float(t1):g} within {MOST_STEPS:,} solver steps: "
            "the kernel has large eigenvalues for this time, so give a smaller t1"
        )
    loss = jax.vmap(lambda f: jnp.mean(problem.loss(f, problem.targets)))(solution.ys)
    return KernelFlow(grid, solution.ys, loss)


@eqx.filter_jit
def _solve(kernel: Any, problem: Problem, f0: Array, grid: Array) -> Any:
    """The Diffrax solution; the kernel is a matrix, or gives products only."""

    def velocity(t: Any, f: Array, args: Any) -> Array:
        slopes = problem.loss.derivative(f, problem.targets)
        if isinstance(kernel, TangentKernel):
            pulled = kernel.product(slopes.reshape(problem.n, *kernel.shape[3:]))
        else:
            pulled = kernel @ slopes.reshape(-1)
        return -pulled.reshape(f.shape) / problem.n

    double = problem.dtype == jnp.float64
    return dfx.diffeqsolve(
        dfx.ODETerm(velocity),
        dfx.Tsit5(),
        t0=jnp.zeros((), problem.dtype),
        t1=grid[-1],
        dt0=None,
        y0=f0,
        saveat=dfx.SaveAt(ts=grid),
        stepsize_controller=dfx.PIDController(
            rtol=1e-9 if double else 1e-5, atol=1e-10 if double else 1e-6
        ),
        max_steps=MOST_STEPS,
        throw=False,
    )
