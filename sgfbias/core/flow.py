"""The flows: gradient flow, momentum flow and stochastic gradient flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import BROWNIAN_STREAM, StepBrownianPath, is_shape
from sgfbias.core.checks import as_whole, is_concrete
from sgfbias.core.direct import direct
from sgfbias.core.dynamics import (
    AbstractDeterministicFlow,
    AbstractDynamics,
    as_tolerance,
    as_width,
)
from sgfbias.core.gain import GainController
from sgfbias.core.noise import AbstractNoise, MeanLossNoise, NoNoise
from sgfbias.core.references import merge
from sgfbias.core.schedule import Clock, as_number, as_scheduled, iterations_per_step
from sgfbias.core.term import FlowTerm, gradient_step, takes_one_term


class GradientFlow(AbstractDeterministicFlow):
    r"""$\dot w = -\nabla L(w)$.

    **Arguments:**

    - `dt`: positive, or None. The flow time per step of a fixed-step solver, which is
      Euler unless `simulate` is given another. None, the default, uses an adaptive
      solver. In float64 this is the implicit Kvaerno5, as the flow is stiff near
      convergence. In float32, and for a state of more than 2,000 numbers, it is the
      explicit Tsit5.
    - `rtol`: the relative tolerance of the adaptive solver. Default 1e-8 in float64 and
      1e-5 in float32.
    - `atol`: the absolute tolerance of the adaptive solver. Default 1e-10 in float64
      and 1e-7 in float32.
    - `control`: a `GainController`, for models with kinks such as ReLU networks. Steps
      are then kept or rejected by how much the loss falls, and the solver is Euler
      unless `simulate` is given another explicit one. Default: by an estimate of the
      error.

    **Raises:** `ValueError` for a `dt` that is not positive, for a `control` of another
    kind or beside `dt`, `rtol` or `atol`, and in `simulate` for an `rtol` that the
    precision cannot reach.
    """

    dt: Array | None
    control: GainController | None
    rtol: float | None = eqx.field(static=True)
    atol: float | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        dt: Any = None,
        rtol: float | None = None,
        atol: float | None = None,
        control: Any = None,
    ):
        self.dt = as_width(dt)
        self.rtol, self.atol = as_tolerance(rtol, "rtol"), as_tolerance(atol, "atol")
        if control is not None:
            if not isinstance(control, GainController):
                raise ValueError(
                    f"`control` must be a GainController, but is {control!r}; error estimates are "
                    "controlled by rtol= and atol="
                )
            if (dt, rtol, atol) != (None, None, None):
                raise ValueError(
                    "`control` chooses the steps by what they gain: leave `dt`, `rtol` and `atol` "
                    "out"
                )
        self.control = control

    def default_solver(self, dtype, size):
        return dfx.Euler() if self.control is not None else super().default_solver(dtype, size)

    def step_control(self, coordinates, problem):
        if self.control is None:
            return super().step_control(coordinates, problem)
        if problem.penalty is not None and self.control.objective is None:
            raise ValueError(
                "the flow of a problem with a penalty does not only lower the loss: say what it is "
                "to raise, e.g. GainController(lambda network: -loss(network) - penalty(network))"
            )

        def view(y: Any) -> Any:
            return coordinates.decode(y[0])

        def fall(network: Any) -> Array:
            outputs = problem.outputs(network)
            return -jnp.mean(problem.loss(outputs, problem.targets))

        return self.control.watching(view, fall)

    @property
    def noise(self) -> AbstractNoise:
        """`NoNoise()`, as this flow is deterministic."""
        return NoNoise()

    def build(self, coordinates, problem, position, key, offset, solver):
        unit = self.unit(problem.dtype)

        def move(t: Any, y: Any, args: Any) -> Any:
            return gradient_step(coordinates, problem, y, unit, self.time(offset, t))

        return dfx.ODETerm(move)


class MomentumFlow(AbstractDeterministicFlow):
    r"""$\lambda \ddot w + \dot w + \nabla L(w) = 0$ with $\dot w(0) = 0$.

    This is the flow of gradient descent with momentum (Papazov, Pesme, Flammarion 2024,
    arXiv 2403.05293). On a diagonal network, as long as no weight changes sign,
    `log(w_+ w_-)(inf) = 2 log alpha - lambda int (s_+^2 + s_-^2) dt` with `s = w'/w`,
    so momentum shrinks the effective initialisation.

    **Arguments:**

    - `lam`: lambda > 0, in units of flow time. `MomentumFlow.following` computes it
      from a step size and a momentum. The limit lambda -> 0 is `GradientFlow`.
    - `dt`, `rtol`, `atol`: as in `GradientFlow`. Explicit fixed steps need
      `dt < 2 lambda`.

    **Raises:** `ValueError` for a `lam` or `dt` that is not positive.
    """

    references: ClassVar[Mapping[str, str]] = {"papazov2024": "the momentum flow"}
    lam: Array
    dt: Array | None
    rtol: float | None = eqx.field(static=True)
    atol: float | None = eqx.field(static=True)

    def __init__(
        self, lam: Any, *, dt: Any = None, rtol: float | None = None, atol: float | None = None
    ):
        self.lam = as_number(lam, "lam")
        self.dt = as_width(dt)
        self.rtol, self.atol = as_tolerance(rtol, "rtol"), as_tolerance(atol, "atol")

    @classmethod
    def following(
        cls, step_size: Any, momentum: Any, *, nesterov: bool = False, **options: Any
    ) -> MomentumFlow:
        """The flow that follows gradient descent with momentum to second order in
        gamma.

        For heavy ball `lambda = gamma (1 + b) / (2 (1 - b)^2)`, and for Nesterov's
        method `lambda = gamma (1 - b + 2 b^2) / (2 (1 - b)^2)`. One iteration takes a
        flow time of `gamma / (1 - b)`. The often quoted `gamma / (1 - b)^2` is the
        limit b -> 1, and is wrong by a factor of 2 at b = 0.

        **Arguments:**

        - `step_size`: gamma > 0.
        - `momentum`: b in [0, 1).
        - `nesterov`: True for Nesterov's method, False for heavy ball.
        - `options`: `dt`, `rtol` and `atol` of the flow.

        **Raises:** `ValueError` unless gamma > 0 and 0 <= b < 1.
        """
        gamma, b = as_number(step_size, "step_size"), check_momentum(momentum)
        return cls(
            gamma * ((1 - b + 2 * b**2) if nesterov else (1 + b)) / (2 * (1 - b) ** 2), **options
        )

    @property
    def weights_only(self):
        return True

    def memory(self, position):
        """The velocity, the derivative of the position in flow time, which is 0."""
        return jax.tree.map(jnp.zeros_like, position)

    def build(self, coordinates, problem, position, key, offset, solver):
        unit, lam = self.unit(problem.dtype), self.lam.astype(problem.dtype)

        def move(t: Any, y: Any, args: Any) -> Any:
            (w, v), integral = y
            gradient, loss = gradient_step(
                coordinates.base, problem, (w, integral), unit, self.time(offset, t)
            )
            return (
                jax.tree.map(lambda vi: vi * unit, v),
                jax.tree.map(lambda g, vi: (g - vi * unit) / lam, gradient, v),
            ), loss

        return dfx.ODETerm(move)


def check_momentum(momentum: Any) -> Array:
    """Return the momentum b as an array.

    **Raises:** `ValueError` unless 0 <= b < 1.
    """
    b = as_number(momentum, "momentum", zero_allowed=True)
    if not isinstance(b, jax.core.Tracer) and float(b) >= 1:
        raise ValueError(
            f"`momentum` must be at least 0 and below 1, but is {float(b):g}: at 1 the weights "
            "never come to rest; a usual value is 0.9"
        )
    return b


class StochasticGradientFlow(AbstractDynamics):
    r"""$dw = -\nabla L\,dt + J^\top dc$, with the Itô noise $c$ given by `noise`.

    This is the continuous model of SGD. J is the Jacobian of the outputs on the
    examples. With the default noise it is eq. (3) of Pesme, Pillaud-Vivien, Flammarion
    2021 (arXiv 2106.09524).

    **Arguments:**

    - `step_size`: gamma > 0, the step size of the SGD that is modelled. A number, or a
      schedule: any function of the iteration 0, 1, 2, ..., for example one of Optax.
      Iteration k of SGD, and the piece of the flow that models it, take a flow time of
      gamma_k.
    - `noise`: an `AbstractNoise`. Default `MeanLossNoise()`.
    - `dt`: positive. The flow time per solver step, by default gamma.
    - `per_iteration`: a whole number >= 1. The number of solver steps per SGD step,
      given instead of `dt`: `dt = gamma / per_iteration`, also for a schedule.
    - `brownian_dt`: the width of the finest Brownian increments, `dt / m` with a whole
      m. Runs with several `dt` and one `brownian_dt` share one Brownian path, as coarse
      increments are sums of fine ones. Default `dt`.
    - `order`: 1, or 2 for the drift `-grad(L + gamma/4 |grad L|^2)` of the second-order
      modified equation (Li, Tai, E 2017). With `MinibatchNoise(b)` it follows SGD to
      second weak order.
    - `increments`: `"gaussian"`, or `"two-point"` for increments `+- sqrt(dt)`, from
      one random bit each, which cost less. They have the moments that a scheme of weak
      order 1 needs (Kloeden, Platen 1992, section 14.1), and serve statistics over
      seeds only. They do not converge pathwise as dt -> 0, so `brownian_dt` cannot be
      used with them.

    **Raises:** `ValueError` for a step size or width that is not positive, for a
    `brownian_dt` that does not divide `dt` or is being traced, for both `dt` and
    `per_iteration`, and for `dt` or `brownian_dt` with a schedule.
    """

    step_size: Any
    noise: AbstractNoise
    dt: Array | None
    # Iterations of SGD per solver step; None is one.
    ratio: Array | None
    # Finest Brownian increments per solver step; None is one.
    substeps: Array | None
    order: int = eqx.field(static=True)
    increments: str = eqx.field(static=True)

    def __init__(
        self,
        step_size: Any,
        noise: Any = None,
        *,
        dt: Any = None,
        per_iteration: int | None = None,
        brownian_dt: Any = None,
        order: int = 1,
        increments: str = "gaussian",
    ):
        self.step_size = as_scheduled(step_size, "step_size")
        self.noise = MeanLossNoise() if noise is None else noise
        if not isinstance(self.noise, AbstractNoise):
            raise ValueError(
                f"`noise` must be a noise model such as MeanLossNoise(), but is {self.noise!r}"
            )
        order = as_whole(order, "order", most=2)
        if increments not in ("gaussian", "two-point"):
            raise ValueError(
                f"`increments` must be 'gaussian' or 'two-point', but is {increments!r}"
            )
        if increments == "two-point" and brownian_dt is not None:
            raise ValueError(
                "two-point increments do not converge pathwise as dt falls, so runs at several "
                "widths cannot share a path: leave out `brownian_dt`, or use "
                "increments='gaussian'"
            )
        self.order, self.increments = order, increments
        self.dt = self.ratio = self.substeps = None
        if per_iteration is not None:
            if dt is not None:
                raise ValueError(
                    "give either `dt` or `per_iteration`, not both, as dt = step_size / "
                    "per_iteration"
                )
            per_iteration = as_whole(per_iteration, "per_iteration", most=2**31 - 1)
            self.ratio = jnp.asarray([1, per_iteration], jnp.int32)
        if callable(self.step_size):
            for name, given in (("dt", dt), ("brownian_dt", brownian_dt)):
                if given is not None:
                    raise ValueError(
                        f"`{name}` needs a constant step size, but step_size is a schedule; use "
                        "per_iteration, the number of solver steps per iteration"
                    )
            return
        if per_iteration is not None:
            self.dt = self.step_size / per_iteration
        elif dt is not None:
            self.dt = as_number(dt, "dt")
            self.ratio = iterations_per_step(self.dt, self.step_size)
        if brownian_dt is not None:
            if not is_concrete((self.step_size, self.dt, brownian_dt)):
                raise ValueError(
                    "`brownian_dt` needs concrete widths, which determine the number of increments "
                    "per step: leave it out under jit, vmap or grad"
                )
            width = self.step_size if self.dt is None else self.dt
            ratio = float(width) / float(as_number(brownian_dt, "brownian_dt"))
            # As an array, so that runs at several widths share one compiled program.
            self.substeps = jnp.asarray(round(ratio), jnp.int32)
            if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-5 * ratio:
                raise ValueError(
                    "`brownian_dt` must divide `dt` a whole number of times, but they are "
                    f"dt={float(width):g} and brownian_dt={brownian_dt:g}"
                )

    @property
    def references(self):
        """Keys of the bibliography -> what they are cited for."""
        equation = f"the stochastic modified equation of SGD, order {self.order}"
        scheme = (
            {"kloeden1992": "two-point increments, section 14.1"}
            if self.increments == "two-point"
            else {}
        )
        return merge({"li2017": equation}, self.noise.references, scheme)

    def check(self, n):
        direct(self.noise).check(n)

    def schedules(self):
        return (*super().schedules(), *((self.noise.at,) if self.noise.is_scheduled else ()))

    def brownian_steps(self, steps):
        return (
            steps
            if self.substeps is None or not is_concrete(self.substeps)
            else steps * int(self.substeps)
        )

    @property
    def is_scheduled(self) -> bool:
        """Whether the step size varies along the run."""
        return callable(self.step_size)

    @property
    def clock(self):
        if self.is_scheduled and self.ratio is not None:
            return Clock(self.step_size, factor=1 / self.ratio[1], ratio=self.ratio)
        return Clock(self.step_size, width=self.dt, ratio=self.ratio)

    def build(self, coordinates, problem, position, key, offset, solver):
        dtype = problem.dtype
        outputs = jax.eval_shape(lambda p: coordinates.linearise(p, problem.inputs)[0], position)
        shapes = self.noise.shapes(tuple(outputs.shape), coordinates.features)
        stream, two_point = jax.random.fold_in(key, BROWNIAN_STREAM), self.increments == "two-point"
        path = StepBrownianPath(
            stream, offset, jnp.ones((), dtype), shapes, dtype, self.substeps, two_point
        )
        stratonovich = isinstance(solver, dfx.AbstractStratonovichSolver)
        term = FlowTerm(
            self.noise, coordinates, problem, path, self.clock, offset, stratonovich, self.order
        )
        if takes_one_term(solver):
            return term
        if self.is_scheduled or self.noise.is_scheduled:
            raise ValueError(
                f"{type(solver).__name__} evaluates drift and diffusion at its own times, so it is "
                "not available with schedules; use diffrax.Euler() or diffrax.Heun()"
            )
        if not jax.tree.leaves(shapes, is_leaf=is_shape):
            raise ValueError(
                f"{type(solver).__name__} needs noise, and there is none; use diffrax.Euler() or "
                "diffrax.Heun(), or GradientFlow()"
            )
        return term.split()
