"""Decides whether a run in mirror coordinates can be one GPU kernel, and wraps that
kernel for core.
"""

from __future__ import annotations

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import BROWNIAN_STREAM
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.fused import AbstractFused
from sgfbias.core.loss import SquaredLoss
from sgfbias.core.noise import MeanLossNoise
from sgfbias.diagonal.fused.kernel import (
    LARGEST_EXAMPLES,
    LARGEST_SHARED,
    Data,
    Hopper,
    Interpreter,
    Plan,
    padded,
    prepare,
    run,
    shared_bytes,
)

CAPABILITY = "9."  # The kernel uses the matrix instructions of this compute capability.


class FusedMirror(AbstractFused):
    """Euler steps of the mean-loss flow in mirror coordinates, in float32 and entirely
    on chip; see `kernel.py`.
    """

    members: ClassVar[int] = 65_536
    data: Data
    scalars: tuple[Array, Array]  # gamma, dt
    loss_scale: float = eqx.field(static=True)
    plan: Plan = eqx.field(static=True)
    interpret: bool = eqx.field(static=True)

    def __call__(self, y: Any, keys: Array, start: Array, length: Array) -> Any:
        position, integral = y
        gamma, dt = self.scalars
        n, rows, scale = self.plan.n, self.plan.rows, 2 * self.loss_scale
        gain = dt * (gamma / n) * scale**2 / n
        numbers = jnp.stack([dt * self.loss_scale / n, -dt / n * scale, gain])
        streams = jax.vmap(
            lambda key: jax.random.key_data(jax.random.fold_in(key, BROWNIAN_STREAM))
        )(keys)
        c = jnp.pad(position["c"], ((0, 0), (0, rows - n)))
        sums = jnp.stack([position["law"].diagonal, integral])
        machine = Interpreter() if self.interpret else Hopper()
        c, sums = run(machine, self.plan, self.data, numbers, streams.T, start, length, c, sums)
        law = eqx.tree_at(lambda law: law.diagonal, position["law"], sums[0])
        return {**position, "c": c[:, :n], "law": law}, sums[1]


def fused_mirror(
    network: Any, dynamics: Any, problem: Any, solver: Any, keys: Array, *, interpret: bool
) -> FusedMirror | str:
    """The kernel of a run in mirror coordinates, or the reason why there is none."""
    reason = (
        _of_the_flow(dynamics, solver)
        or _of_the_problem(problem)
        or _of_the_keys(keys)
        or ("" if interpret else _of_the_device())
    )
    if reason:
        return reason
    n, d = problem.inputs.shape
    plan = Plan(n, padded(n), padded(d), dynamics.increments == "two-point")
    numbers = tuple(jnp.asarray(v, jnp.float32) for v in (dynamics.step_size, dynamics.clock.width))
    data = prepare(problem.inputs, problem.targets, network.log_alpha, network.log_ratio)
    return FusedMirror(data, numbers, float(problem.loss.scale), plan, interpret)


def _of_the_flow(dynamics: Any, solver: Any) -> str:
    if type(dynamics) is not StochasticGradientFlow:
        return f"it is for StochasticGradientFlow, and this is {type(dynamics).__name__}"
    if type(dynamics.noise) is not MeanLossNoise:
        return f"it is for MeanLossNoise, and the noise is {type(dynamics.noise).__name__}"
    if type(solver) is not dfx.Euler:
        return f"it takes Euler steps, and the solver is {type(solver).__name__}"
    if dynamics.is_scheduled:
        return "it takes one step size for the whole run, and step_size is a schedule"
    if dynamics.order != 1:
        return "it has no drift of second order, and the flow has order=2"
    if dynamics.substeps is not None:
        return "it draws one increment per step, and brownian_dt asks for sums of finer ones"
    return ""


def _of_the_problem(problem: Any) -> str:
    if problem.dtype != jnp.float32:
        return f"it computes in float32, and the data are {problem.dtype}"
    if type(problem.loss) is not SquaredLoss or problem.targets.ndim != 1:
        return (
            "it is for the squared loss of one output, and the loss is "
            f"{type(problem.loss).__name__} of targets {problem.targets.shape}"
        )
    n, d = problem.inputs.shape
    if n > LARGEST_EXAMPLES:
        return f"its registers hold at most {LARGEST_EXAMPLES} examples, and there are {n}"
    if shared_bytes(n, d) > LARGEST_SHARED:
        return (
            f"the data must fit in {LARGEST_SHARED:,} bytes of shared memory, and n={n}, "
            f"d={d} take {shared_bytes(n, d):,}"
        )
    return ""


def _of_the_keys(keys: Array) -> str:
    if str(jax.random.key_impl(keys)) != "threefry2x32":
        return f"its generator is threefry2x32, and the keys are of {jax.random.key_impl(keys)}"
    return ""


def _of_the_device() -> str:
    for device in jax.local_devices():
        capability = str(getattr(device, "compute_capability", ""))
        if device.platform != "gpu" or not capability.startswith(CAPABILITY):
            what = (
                f"{device.device_kind}, compute capability {capability}"
                if capability
                else device.device_kind
            )
            return (
                f"it needs an NVIDIA GPU of compute capability 9 (H100, H200), and there is {what}"
            )
    try:
        Hopper()
    except ImportError as error:
        return f"this jax has no Mosaic GPU backend: {error}"
    return ""
