"""Continuous dynamics: the gradient flow, the momentum flow and the stochastic gradient flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import BROWNIAN_STREAM, StepBrownianPath, is_shape
from sgfbias.core.checks import is_concrete
from sgfbias.core.coordinates import Phase
from sgfbias.core.dynamics import AbstractDeterministicFlow, AbstractDynamics, as_width
from sgfbias.core.noise import AbstractNoise, MeanLossNoise, NoNoise
from sgfbias.core.references import merge
from sgfbias.core.schedule import Clock, as_number, as_scheduled, iterations_per_step
from sgfbias.core.term import FlowTerm, gradient_step, takes_one_term


class GradientFlow(AbstractDeterministicFlow):
    r"""$\dot w = -\nabla L(w)$.

    **Arguments:** `dt`: flow time per step of a fixed-step solver (Euler unless `solver=` says otherwise); None, the default, uses an
    adaptive solver: in float64 the implicit Kvaerno5, since the flow is stiff near convergence; in float32, and for more than 2,000 numbers
    of state, the explicit Tsit5. `rtol`,
    `atol`: its tolerances; by default 1e-8 and 1e-10 in float64, 1e-5 and 1e-7 in float32.
    """

    dt: Array | None
    rtol: float | None = eqx.field(static=True)
    atol: float | None = eqx.field(static=True)

    def __init__(self, *, dt: Any = None, rtol: float | None = None, atol: float | None = None):
        self.dt, self.rtol, self.atol = as_width(dt), rtol, atol

    @property
    def noise(self) -> AbstractNoise:
        """None."""
        return NoNoise()

    def build(self, coordinates, problem, position, key, offset, solver):
        unit = self.unit(problem.dtype)
        return dfx.ODETerm(lambda t, y, args: gradient_step(coordinates, problem, y, unit))


class MomentumFlow(AbstractDeterministicFlow):
    r"""$\lambda \ddot w + \dot w + \nabla L(w) = 0$ with $\dot w(0) = 0$: gradient descent with momentum as a flow.

    Papazov, Pesme, Flammarion 2024 (arXiv 2403.05293). On a diagonal network, while no weight changes sign,
    `log(w_+ w_-)(inf) = 2 log alpha - lambda int (s_+^2 + s_-^2) dt` with `s = w'/w`: momentum shrinks the effective initialisation.

    **Arguments:** `lam`: lambda > 0 in units of flow time (the limit 0 is `GradientFlow`), see `MomentumFlow.following`. `dt`, `rtol`, `atol`: as in `GradientFlow`;
    explicit fixed steps need `dt < 2 lambda`.
    """

    references: ClassVar[Mapping[str, str]] = {"papazov2024": "the momentum flow"}
    lam: Array
    dt: Array | None
    rtol: float | None = eqx.field(static=True)
    atol: float | None = eqx.field(static=True)

    def __init__(self, lam: Any, *, dt: Any = None, rtol: float | None = None, atol: float | None = None):
        self.lam = as_number(lam, "lam")
        self.dt, self.rtol, self.atol = as_width(dt), rtol, atol

    @classmethod
    def following(cls, step_size: Any, momentum: Any, *, nesterov: bool = False, **options: Any) -> MomentumFlow:
        """The flow that follows heavy ball (or Nesterov's method) with this step size gamma and momentum b, to second order in gamma.

        `lambda = gamma (1 + b) / (2 (1 - b)^2)`, Nesterov `gamma (1 - b + 2 b^2) / (2 (1 - b)^2)`; one iteration is `gamma / (1 - b)` of
        flow time. The often quoted `gamma / (1 - b)^2` is the limit b -> 1 and is 2 times off at b = 0.

        **Raises:** `ValueError` unless gamma > 0 and 0 <= b < 1.
        """
        gamma, b = as_number(step_size, "step_size"), check_momentum(momentum)
        return cls(gamma * ((1 - b + 2 * b**2) if nesterov else (1 + b)) / (2 * (1 - b) ** 2), **options)

    @property
    def weights_only(self):
        return True

    def chart(self, coordinates):
        return Phase(coordinates)

    def build(self, coordinates, problem, position, key, offset, solver):
        unit, lam = self.unit(problem.dtype), self.lam.astype(problem.dtype)

        def move(t: Any, y: Any, args: Any) -> Any:
            (w, v), integral = y
            gradient, loss = gradient_step(coordinates.base, problem, (w, integral), unit)
            return (jax.tree.map(lambda vi: vi * unit, v), jax.tree.map(lambda g, vi: (g - vi * unit) / lam, gradient, v)), loss

        return dfx.ODETerm(move)


def check_momentum(momentum: Any) -> Array:
    """A momentum b as an array.

    **Raises:** `ValueError` unless 0 <= b < 1.
    """
    b = as_number(momentum, "momentum", zero_allowed=True)
    if not isinstance(b, jax.core.Tracer) and float(b) >= 1:
        raise ValueError(f"`momentum` must be at least 0 and below 1, but is {float(b):g}: at 1 nothing ever comes to rest")
    return b


class StochasticGradientFlow(AbstractDynamics):
    r"""$dw = -\nabla L\,dt + J^\top dc$ with the Itô noise $c$ of `noise`: the continuous model of SGD with step `step_size`.

    Pesme, Pillaud-Vivien, Flammarion 2021 (arXiv 2106.09524), eq. (3) with the default noise.

    **Arguments:**

    - `step_size`: gamma, the step of the SGD that is modelled; one SGD step is gamma units of flow time. A number, or a schedule: any
      function of the iteration 0, 1, 2, ..., e.g. of Optax. Iteration k of SGD and the piece of the flow that models it take gamma_k of flow
      time each.
    - `noise`: an `AbstractNoise`; default `MeanLossNoise()`.
    - `dt`: flow time per solver step, default gamma. `per_iteration`: instead of dt, the whole number of solver steps per SGD step, so
      that `dt = gamma / per_iteration` also where gamma is a schedule.
    - `brownian_dt`: width of the finest Brownian increments, `dt / m` with whole m; runs at several `dt` with one `brownian_dt` share
      one Brownian path (coarse increments are sums of fine ones). Default `dt`.
    - `increments`: `"gaussian"`, or `"two-point"`: `+- sqrt(dt)` from one random bit each. They have the moments that a scheme of weak order 1
      asks of Brownian increments (Kloeden, Platen 1992, section 14.1), cost less, and serve statistics over seeds only: no path is approached as
      dt falls, so that `brownian_dt` is refused with them.
    - `order`: 1, or 2 for the drift `-grad(L + gamma/4 |grad L|^2)` of the second-order modified equation (Li, Tai, E 2017), which with
      `MinibatchNoise(b)` follows SGD to second weak order.

    **Raises:** `ValueError` for a step size or width that is not positive, or widths that do not divide.
    """

    step_size: Any
    noise: AbstractNoise
    dt: Array | None
    ratio: Array | None  # iterations per solver step; None: one
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
            raise ValueError(f"`noise` must be a noise model such as MeanLossNoise(), but is {self.noise!r}")
        if order not in (1, 2):
            raise ValueError(f"`order` must be 1 or 2, but is {order!r}")
        if increments not in ("gaussian", "two-point"):
            raise ValueError(f"`increments` must be 'gaussian' or 'two-point', but is {increments!r}")
        if increments == "two-point" and brownian_dt is not None:
            raise ValueError(
                "two-point increments are those of no Brownian path, so runs at several widths have none to share: leave out `brownian_dt`, or use Gaussian ones"
            )
        self.order, self.increments = order, increments
        self.dt = self.ratio = self.substeps = None
        if per_iteration is not None:
            if dt is not None:
                raise ValueError("give either `dt` or `per_iteration`, not both: dt = step_size / per_iteration")
            if not isinstance(per_iteration, int | np.integer) or per_iteration < 1:
                raise ValueError(f"`per_iteration` must be a whole number >= 1, but is {per_iteration!r}")
            self.ratio = jnp.asarray([1, per_iteration], jnp.int32)
        if callable(self.step_size):
            for name, given in (("dt", dt), ("brownian_dt", brownian_dt)):
                if given is not None:
                    raise ValueError(
                        f"`{name}` needs a constant step size, but step_size is a schedule; use per_iteration, steps per iteration"
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
                    "`brownian_dt` needs concrete widths, as the number of increments per step follows from them: under jit, vmap or grad leave it out"
                )
            width = self.step_size if self.dt is None else self.dt
            ratio = float(width) / float(as_number(brownian_dt, "brownian_dt"))
            # An array: runs at several widths share one compiled program.
            self.substeps = jnp.asarray(round(ratio), jnp.int32)
            if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-5 * ratio:
                raise ValueError(
                    f"`brownian_dt` must divide `dt` a whole number of times, but dt={float(width):g} and brownian_dt={brownian_dt:g}"
                )

    @property
    def references(self):
        """Keys of the bibliography -> what they are cited for."""
        equation = f"the stochastic modified equation of SGD, order {self.order}"
        scheme = {"kloeden1992": "two-point increments, section 14.1"} if self.increments == "two-point" else {}
        return merge({"li2017": equation}, self.noise.references, scheme)

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
        path = StepBrownianPath(stream, offset, jnp.ones((), dtype), shapes, dtype, self.substeps, two_point)
        stratonovich = isinstance(solver, dfx.AbstractStratonovichSolver)
        term = FlowTerm(self.noise, coordinates, problem, path, self.clock, offset, stratonovich, self.order)
        if takes_one_term(solver):
            return term
        if self.is_scheduled or self.noise.is_scheduled:
            raise ValueError(
                f"{type(solver).__name__} evaluates drift and diffusion at times of its own and is not available with schedules; "
                "use diffrax.Euler() or diffrax.Heun()"
            )
        if not jax.tree.leaves(shapes, is_leaf=is_shape):
            raise ValueError(
                f"{type(solver).__name__} needs noise, and there is none; use diffrax.Euler() or diffrax.Heun(), or GradientFlow()"
            )
        return term.split()
