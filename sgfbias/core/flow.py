"""Continuous dynamics, the gradient flow and the stochastic gradient flow, as Diffrax terms that share one pass over the data."""

from __future__ import annotations

import abc
import typing
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.brownian import BROWNIAN_STREAM, StepBrownianPath, is_shape
from sgfbias.core.checks import check_positive
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.noise import AbstractNoise, MeanLossNoise, NoNoise
from sgfbias.core.problem import Problem


def as_number(value: Any, name: str) -> Array:
    """A positive scalar hyperparameter as an array, so that changing it does not recompile.

    **Raises:** `ValueError` if it is not a scalar, not finite or not positive.
    """
    array = jnp.asarray(value, dtype=jnp.result_type(float))
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, but has shape {array.shape}; run several values with jax.vmap or a loop")
    check_positive(array, name)
    return array


class AbstractDynamics(eqx.Module):
    """A way of moving. `unit` is the flow time of one solver step; all dynamics share the flow's clock."""

    @property
    def is_stochastic(self) -> bool:
        """Whether a run needs a key."""
        return True

    @property
    def is_flow(self) -> bool:
        """Continuous (any coordinates) or discrete (weights only)."""
        return True

    @property
    @abc.abstractmethod
    def unit(self) -> Array | None:
        """Flow time per step; None for an adaptive solver."""

    def default_solver(self, dtype: Any) -> dfx.AbstractSolver:
        """The solver used when none is given, for this precision."""
        return dfx.Euler()

    @abc.abstractmethod
    def build(
        self, coordinates: AbstractCoordinates, problem: Problem, position: Any, key: Array | None, offset: Array, solver: Any
    ) -> Any:
        """Diffrax terms of one run in step units, solver time 0 being absolute step `offset`; `position` serves for its shapes."""


class GradientFlow(AbstractDynamics):
    r"""$\dot w = -\nabla L(w)$.

    **Arguments:** `dt`: flow time per step of a fixed-step solver (Euler unless `solver=` says otherwise); None, the default, uses an
    adaptive solver: in float64 the implicit Kvaerno5, since the flow is stiff near convergence, in float32 the explicit Tsit5. `rtol`, `atol`: its tolerances; by default 1e-8 and
    1e-10 in float64, 1e-5 and 1e-7 in float32.
    """

    dt: Array | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    atol: float | None = eqx.field(static=True, default=None)

    def __init__(self, *, dt: Any = None, rtol: float | None = None, atol: float | None = None):
        self.dt = None if dt is None else as_number(dt, "dt")
        self.rtol, self.atol = rtol, atol

    @property
    def is_stochastic(self):
        return False

    @property
    def unit(self):
        return self.dt

    @property
    def noise(self) -> AbstractNoise:
        """None."""
        return NoNoise()

    def default_solver(self, dtype):
        if self.dt is not None:
            return dfx.Euler()
        # In float32 rounding hides what an implicit solver's Newton iteration is to reduce, and it stalls: explicit steps are surer there.
        return dfx.Tsit5() if jnp.finfo(dtype).bits <= 32 else dfx.Kvaerno5()

    def tolerances(self, dtype: Any) -> tuple[float, float]:
        """`(rtol, atol)` of the adaptive solver in this precision.

        **Raises:** `ValueError` for a relative tolerance below ten units of rounding.
        """
        single = jnp.finfo(dtype).bits <= 32
        rtol = (1e-5 if single else 1e-8) if self.rtol is None else self.rtol
        atol = (1e-7 if single else 1e-10) if self.atol is None else self.atol
        floor = 10 * float(jnp.finfo(dtype).eps)
        if rtol < floor:
            raise ValueError(
                f"rtol={rtol:g} is below what {jnp.dtype(dtype).name} can reach (about {floor:.0e}); "
                "use a larger rtol, or float64 data with jax.config.update('jax_enable_x64', True)"
            )
        return rtol, atol

    def build(self, coordinates, problem, position, key, offset, solver):
        unit = jnp.ones((), problem.dtype) if self.dt is None else self.dt.astype(problem.dtype)
        core = FlowTerm(self.noise, coordinates, problem, None, unit, unit, False, 1)
        return dfx.ODETerm(lambda t, y, args: core.drift(y))


class StochasticGradientFlow(AbstractDynamics):
    r"""$dw = -\nabla L\,dt + J^\top dc$ with the Itô noise $c$ of `noise`: the continuous model of SGD with step `step_size`.

    Pesme, Pillaud-Vivien, Flammarion 2021 (arXiv 2106.09524), eq. (3) with the default noise.

    **Arguments:**

    - `step_size`: gamma, the step of the SGD that is modelled; one SGD step is gamma units of flow time.
    - `noise`: an `AbstractNoise`; default `MeanLossNoise()`.
    - `dt`: flow time per solver step, default gamma.
    - `brownian_dt`: width of the finest Brownian increments, `dt / m` with whole m; runs at several `dt` with one `brownian_dt` share
      one Brownian path (coarse increments are sums of fine ones). Default `dt`.
    - `order`: 1, or 2 for the drift `-grad(L + gamma/4 |grad L|^2)` of the second-order modified equation.

    **Raises:** `ValueError` for a step size or width that is not positive, or widths that do not divide.
    """

    step_size: Array
    noise: AbstractNoise
    dt: Array
    substeps: Array | None
    order: int = eqx.field(static=True)

    def __init__(self, step_size: Any, noise: AbstractNoise | None = None, *, dt: Any = None, brownian_dt: Any = None, order: int = 1):
        self.step_size = as_number(step_size, "step_size")
        self.noise = MeanLossNoise() if noise is None else noise
        if not isinstance(self.noise, AbstractNoise):
            raise ValueError(f"`noise` must be a noise model such as MeanLossNoise(), but is {self.noise!r}")
        self.dt = self.step_size if dt is None else as_number(dt, "dt")
        self.substeps = None
        if brownian_dt is not None:
            ratio = float(self.dt) / float(as_number(brownian_dt, "brownian_dt"))
            # An array: runs at several widths share one compiled program.
            self.substeps = jnp.asarray(round(ratio), jnp.int32)
            if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-5 * ratio:
                raise ValueError(
                    f"`brownian_dt` must divide `dt` a whole number of times, but dt={float(self.dt):g} and brownian_dt={brownian_dt:g}"
                )
        if order not in (1, 2):
            raise ValueError(f"`order` must be 1 or 2, but is {order!r}")
        self.order = order

    @property
    def unit(self):
        return self.dt

    def build(self, coordinates, problem, position, key, offset, solver):
        dtype = problem.dtype
        outputs = jax.eval_shape(lambda p: coordinates.linearise(p, problem.inputs)[0], position)
        shapes = self.noise.shapes(tuple(outputs.shape), coordinates.features)
        width = self.dt.astype(dtype)
        path = StepBrownianPath(jax.random.fold_in(key, BROWNIAN_STREAM), offset, width, shapes, dtype, self.substeps)
        stratonovich = isinstance(solver, dfx.AbstractStratonovichSolver)
        term = FlowTerm(self.noise, coordinates, problem, path, width, self.step_size.astype(dtype), stratonovich, self.order)
        return term if _takes_one_term(solver) else term.split()


class FlowTerm(dfx.AbstractTerm):
    """Drift and noise in one product: the cotangent of a step is `-(l'/n) dt + root dB`, pulled back once.

    The state is `(position, integral)`, with `integral` the running loss integral `int L dt`.
    """

    noise: AbstractNoise
    coordinates: AbstractCoordinates
    problem: Problem
    path: Any  # a StepBrownianPath; None for a flow without noise
    unit: Array
    step_size: Array
    stratonovich: bool = eqx.field(static=True)
    order: int = eqx.field(static=True)

    def contr(self, t0, t1, **kwargs):
        return (t1 - t0) * self.unit, self.path.evaluate(t0, t1)

    def vf_prod(self, t, y, args, control):
        dt, dB = control
        return self._increment(y, dt, dB)

    # Diffrax's runge-kutta and euler steps only ask for `vf_prod`; the pair below keeps the interface whole.
    def vf(self, t, y, args):
        return y

    def prod(self, vf, control):
        return self._increment(vf, *control)

    def drift(self, y: Any) -> Any:
        """Drift per unit of solver time, as a state."""
        return self._increment(y, self.unit, None)

    def _increment(self, y: Any, dt: Array, dB: Any) -> Any:
        position, _ = y
        problem, coordinates = self.problem, self.coordinates
        outputs, pull = coordinates.linearise(position, problem.inputs)
        derivatives = problem.loss.derivative(outputs, problem.targets)
        cotangent = derivatives * (-dt / problem.n)
        features = None
        if dB is not None:
            kick = self.noise.root(derivatives, self.step_size, dB)
            cotangent = cotangent if kick.examples is None else cotangent + kick.examples
            features = kick.features
        step = pull(cotangent)
        if features is not None:
            step = _add(step, coordinates.pull_features(position, features))
        if coordinates.curved:
            covariance = self.noise.covariance(derivatives, self.step_size)
            step = _add(step, _scale(coordinates.drift_correction(position, problem.inputs, covariance), dt))
        if self.order == 2:
            step = _add(step, _scale(coordinates.second_order_drift(position, problem, self.step_size), dt))
        if self.stratonovich:
            step = _add(step, _scale(self._ito_to_stratonovich(position), -dt))
        return step, jnp.mean(problem.loss(outputs, problem.targets)) * dt

    def diffusion(self, position: Any, dB: Any) -> Any:
        """The noise part alone: the tangent of Brownian increments `dB`."""
        outputs, pull = self.coordinates.linearise(position, self.problem.inputs)
        derivatives = self.problem.loss.derivative(outputs, self.problem.targets)
        kick = self.noise.root(derivatives, self.step_size, dB)
        step = pull(jnp.zeros_like(outputs) if kick.examples is None else kick.examples)
        return step if kick.features is None else _add(step, self.coordinates.pull_features(position, kick.features))

    def basis(self) -> Any:
        """One unit Brownian increment per row."""
        zeros = jax.tree.map(lambda s: jnp.zeros(s, self.path.dtype), self.path.shape, is_leaf=is_shape)
        flat, unravel = jax.flatten_util.ravel_pytree(zeros)
        return jax.vmap(unravel)(jnp.eye(flat.size, dtype=self.path.dtype))

    def _ito_to_stratonovich(self, position: Any) -> Any:
        """`1/2 sum_k D[g_k] g_k`, one forward product per Brownian coordinate; subtracted from the Itô drift."""

        def one(e):
            direction = self.diffusion(position, e)
            return jax.jvp(lambda p: self.diffusion(p, e), (position,), (direction,))[1]

        return jax.tree.map(lambda v: 0.5 * jnp.sum(v, axis=0), jax.vmap(one)(self.basis()))

    def split(self) -> dfx.MultiTerm:
        """Drift and dense diffusion apart, for the Diffrax solvers that want both (Milstein, Euler-Heun)."""
        return dfx.MultiTerm(dfx.ODETerm(lambda t, y, args: self.drift(y)), _DenseDiffusion(self))


class _DenseDiffusion(dfx.AbstractTerm):
    """The diffusion as a matrix per position leaf, last axis the Brownian coordinate; linear in itself, as Milstein needs."""

    term: FlowTerm

    def contr(self, t0, t1, **kwargs):
        # Flat, in step units: the path's own increment carries the square root of the flow time per step.
        return jax.flatten_util.ravel_pytree(self.term.path.evaluate(t0, t1))[0] / jnp.sqrt(self.term.unit)

    def vf(self, t, y, args):
        position, integral = y
        columns = jax.vmap(lambda e: self.term.diffusion(position, e))(self.term.basis())
        matrix = jax.tree.map(lambda m: jnp.moveaxis(m, 0, -1) * jnp.sqrt(self.term.unit), columns)
        width = jax.tree.leaves(matrix)[0].shape[-1]
        return matrix, jnp.zeros((*integral.shape, width), integral.dtype)

    def prod(self, vf, control):
        return jax.tree.map(lambda m: m @ control, vf)


def _takes_one_term(solver: Any) -> bool:
    """Whether a solver works on the fused term.

    **Raises:** `ValueError` for a solver that converges to no SDE, or that needs Lévy areas.
    """
    name = type(solver).__name__
    if isinstance(solver, dfx.AbstractSRK):
        raise ValueError(
            f"{name} needs space-time Lévy areas, which a path keyed by the step does not have, and additive or commutative noise, which "
            "SGD's is not; use diffrax.Euler() (Itô), or diffrax.Heun(), diffrax.EulerHeun() (Stratonovich, drift corrected for you)"
        )
    if not isinstance(solver, dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver):
        raise ValueError(
            f"{name} converges to neither the Itô nor the Stratonovich solution of a stochastic flow; use diffrax.Euler(), "
            "diffrax.ItoMilstein(), diffrax.Heun() or diffrax.EulerHeun(); ODE solvers are for GradientFlow"
        )
    if isinstance(solver, dfx.ReversibleHeun):
        raise ValueError(
            "ReversibleHeun is not available: it averages vector fields and carries them between steps, and diverges on this noise; "
            "use diffrax.Heun() or diffrax.EulerHeun(), which converge to the same solution"
        )
    return typing.get_origin(solver.term_structure) is not dfx.MultiTerm


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _scale(tree: Any, factor: Array) -> Any:
    return jax.tree.map(lambda v: v * factor, tree)
