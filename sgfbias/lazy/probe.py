"""How far a network is from its start, layer by layer: distances, switched units, the
change of its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.gram import groups_of
from sgfbias.core.jacobian import Jacobian
from sgfbias.core.kernel import TangentKernel
from sgfbias.core.observe import AbstractJoint
from sgfbias.core.problem import Problem
from sgfbias.core.tangent import tangent_kernel, trainable_leaves
from sgfbias.core.weights import cast
from sgfbias.lazy.flips import Switches, switches

NO_KINK = "no pre-activation of a known layer has a kink at 0, so that there is nothing to switch"


class Start(eqx.Module):
    """A network at its start, and what is compared with it."""

    network: Any
    problem: Any
    kernel: TangentKernel
    outputs: Array
    active: list[Array]
    switches: Switches
    trainable: Any
    # name of the group, its arrays as leaves of the network, and the one with the most
    # axes, which is its weight
    groups: tuple[tuple[str, tuple[int, ...], int], ...] = eqx.field(static=True)

    @property
    def inputs(self) -> Array:
        """The examples, (n, ...)."""
        return self.kernel.operator.inputs

    def kernel_of(self, network: Any) -> TangentKernel:
        """The tangent kernel of a network on the same examples."""
        return tangent_kernel(network, self.problem, trainable=self.trainable)

    def changes(self, network: Any) -> list[list[Array]]:
        """The changes of the arrays of every group, and its weight's first."""
        now, then = jax.tree.leaves(network), jax.tree.leaves(self.network)
        order = [
            (weight, *(k for k in members if k != weight)) for _, members, weight in self.groups
        ]
        return [[now[k] - then[k] for k in members] for members in order]

    def distance(self, network: Any) -> Array:
        """`|w_l - w_l(0)|` of every group, (groups,)."""
        return jnp.stack([_norm(change) for change in self.changes(network)])

    def size(self) -> Array:
        """`|w_l(0)|` of every group, (groups,)."""
        leaves = jax.tree.leaves(self.network)
        return jnp.stack([_norm([leaves[k] for k in members]) for _, members, _ in self.groups])

    def spectral_distance(self, network: Any) -> Array:
        """The largest singular value of the change of every group's weight, which is
        taken as a matrix (outputs, inputs); (groups,). Of a vector it is the norm.
        """
        found = []
        for weight, *_ in self.changes(network):
            flat = weight.reshape(weight.shape[0], -1) if weight.ndim > 1 else weight.reshape(-1)
            found.append(jnp.linalg.norm(flat, 2 if flat.ndim == 2 else None))
        return jnp.stack(found)

    def flips(self, network: Any) -> Array:
        """The share of units of every group that switched, (groups,); NaN where no kink
        follows.
        """
        now = self.switches.active(network, self.inputs)
        shares = [self.switches.flips(self.active, now, weight) for _, _, weight in self.groups]
        return jnp.stack(shares).astype(self.outputs.dtype)

    def drift(self, kernel: TangentKernel) -> Array:
        """`|K - K(0)|_F / |K(0)|_F`."""
        change = jnp.linalg.norm(jnp.ravel(kernel.matrix - self.kernel.matrix))
        return change / jnp.linalg.norm(jnp.ravel(self.kernel.matrix))

    def alignment(self, kernel: TangentKernel) -> Array:
        """`<K, K(0)> / (|K|_F |K(0)|_F)`."""
        now, then = jnp.ravel(kernel.matrix), jnp.ravel(self.kernel.matrix)
        return jnp.vdot(now, then) / (jnp.linalg.norm(now) * jnp.linalg.norm(then))

    def tangent_error(self, network: Any) -> Array:
        """`|f(w) - f(w0) - J (w - w0)| / |J (w - w0)|`, and 0 at the start."""
        operator: Jacobian = self.kernel.operator
        now = operator.weights.encode(network)
        tangent = jax.tree.map(jnp.subtract, now, operator.parameters)
        linear = operator.product(tangent)
        left = operator.outputs(network, self.inputs) - self.outputs - linear
        scale = jnp.linalg.norm(jnp.ravel(linear))
        error = jnp.linalg.norm(jnp.ravel(left))
        return jnp.where(error == 0, 0, error / jnp.where(scale == 0, 1, scale))

    def gradient_ratio(
        self, kernel: TangentKernel, network: Any, least: Array | None = None
    ) -> Array:
        """`N n^2 |grad_l L|^2 / (lambda_min(K_l) (sum |l'|)^2)` of every group, at
        least 1.

        N is the number of all outputs, and the sum is over them. It is infinity where
        the least eigenvalue of the group's part cannot be told from 0. These
        eigenvalues may be given as `least`, (groups,).
        """
        slopes = jnp.ravel(self.problem.derivatives(network))
        flats = [_flat(part) for part in kernel.parts]
        if least is None:
            least = least_eigenvalues(flats)
        found = []
        for flat, value in zip(flats, least, strict=True):
            squares = slopes @ flat @ slopes
            seen = value > 10 * jnp.finfo(flat.dtype).eps * jnp.trace(flat)
            bound = value * jnp.square(jnp.sum(jnp.abs(slopes)))
            ratio = slopes.size * squares / jnp.where(seen, bound, 1)
            found.append(jnp.where(seen, ratio, jnp.inf))
        return jnp.stack(found)


def start_of(network: Any, given: Any, trainable: Any = None) -> Start:
    """The start of a network on the examples of a problem, or on given examples.

    **Raises:** `ValueError` as `sgfbias.tangent_kernel` does.
    """
    kernel = tangent_kernel(network, given, trainable=trainable)
    operator = kernel.operator
    if not kernel.parts:
        raise ValueError(
            "the kernel of this problem is too large to be formed: give fewer examples"
        )
    leaves = jax.tree.leaves(operator.network)
    groups = tuple(
        (name, members, max(members, key=lambda k: leaves[k].ndim))
        for name, members in groups_of(operator.network, trainable_leaves(operator)).items()
    )
    found = switches(operator.network, operator.inputs)
    return Start(
        operator.network,
        given if isinstance(given, Problem) else operator.inputs,
        kernel,
        operator.outputs(operator.network, operator.inputs),
        found.active(operator.network, operator.inputs),
        found,
        trainable,
        groups,
    )


class PathLength(eqx.Module):
    """The length `|dw_l|` of one iteration in every group, (groups,)."""

    start: Start

    def __call__(self, network: Any, change: Any) -> Array:
        # What does not move is None in `change`, and a leaf of the network.
        whole, moved = (
            jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None) for tree in (network, change)
        )
        steps = [step for leaf, step in zip(whole, moved, strict=True) if leaf is not None]
        return jnp.stack(
            [_norm([steps[k] for k in members]) for _, members, _ in self.start.groups]
        )


class Observables(AbstractJoint):
    """The quantities of a network against a start, which share one kernel."""

    start: Start

    def __call__(self, network: Any, names: tuple[str, ...]) -> dict[str, Array]:
        start = self.start
        found: dict[str, Array] = {
            name: getattr(start, name)(network)
            for name in ("distance", "flips", "tangent_error")
            if name in names
        }
        if "relative_distance" in names:
            found["relative_distance"] = start.distance(network) / start.size()
        if found.keys() >= set(names):
            return found
        kernel = start.kernel_of(network)
        if {"least", "gradient_ratio"} <= set(names):
            least = least_eigenvalues([kernel.flat, *(_flat(part) for part in kernel.parts)])
            ratio = start.gradient_ratio(kernel, network, least[1:])
            found |= {"least": least[0], "gradient_ratio": ratio}
        of_kernel: dict[str, Callable[[], Array]] = {
            "kernel_drift": lambda: start.drift(kernel),
            "kernel_alignment": lambda: start.alignment(kernel),
            "least": lambda: kernel.least,
            "gradient_ratio": lambda: start.gradient_ratio(kernel, network),
        }
        missing = set(names) - found.keys()
        return found | {name: f() for name, f in of_kernel.items() if name in missing}


class Probe:
    """Observables of a network against this start, for `Record(observables=...)`.

    **Arguments:**

    - `model`: the network at its start, an Equinox module. All runs must start from it.
    - `problem`: a `Problem`.
    - `trainable`: which arrays are parameters, as in `simulate`.

    `observables` maps names to functions of a network:

    - `distance`, `relative_distance`: `|w_l - w_l(0)|` of every parameter group, and
      the same divided by `|w_l(0)|`. The groups are `layers`, in this order.
    - `flips`: the share of units and examples of every group whose pre-activation
      changed its sign, where a kink at 0 follows, as ReLU is; NaN for other groups.
      Missing if there is no such group; `reason` then says why.
    - `kernel_drift`, `kernel_alignment`: `|K - K(0)|_F / |K(0)|_F`, and the cosine
      between K and K(0).
    - `least`: the least eigenvalue of K.
    - `gradient_ratio`: for every group, `N n^2 |grad_l L|^2` divided by
      `lambda_min(K_l) (sum |l'|)^2`, where N is the number of all outputs. It is at
      least 1, which is the floor under the gradient.
    - `tangent_error`: the distance of the outputs from the linearised model's, as a
      share of their linear change.

    `sums` has `path_length`, the sum of `|dw_l|` over the iterations of a discrete
    algorithm, for `Record(sums=probe.sums)`.

    **Raises:** `ValueError` as `sgfbias.tangent_kernel` does, and if `problem` is not a
    `Problem`.
    """

    def __init__(self, model: Any, problem: Any, *, trainable: Any = None):
        if not isinstance(problem, Problem):
            raise ValueError(
                f"`problem` must be a Problem, but is {type(problem).__name__}: wrap the data, "
                "Problem(inputs, targets)"
            )
        self.start = start_of(model, problem, trainable)
        self.reason = "" if self.start.switches.kinked else NO_KINK
        names = (
            "distance",
            "relative_distance",
            *(() if self.reason else ("flips",)),
            "kernel_drift",
            "kernel_alignment",
            "least",
            "gradient_ratio",
            "tangent_error",
        )
        joint = Observables(self.start)
        self.observables: dict[str, Callable[[Any], Array]] = {
            name: joint.observable(name) for name in names
        }
        self.sums: dict[str, Callable[[Any, Any], Array]] = {"path_length": PathLength(self.start)}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the parameter groups."""
        return self.start.kernel.groups

    @property
    def largest_step(self) -> float:
        """The step size above which gradient descent leaves a linear model with this
        kernel: `2 n / (l'' lambda_max)` for l'' = 1; divide it by the largest second
        derivative of the loss, such as 1/4 for the logistic loss.
        """
        return 2 * self.start.problem.n / float(self.start.kernel.largest)

    def __repr__(self) -> str:
        lines = [
            f"probe of {len(self.layers)} groups: {', '.join(self.layers)}",
            f"records {', '.join(self.observables)}",
            f"gradient descent on the linearised model diverges above the step size "
            f"{self.largest_step:.3g} / l'', with the largest second derivative l'' of the loss",
        ]
        if self.reason:
            lines.append(f"no flips: {self.reason}")
        return "\n".join(lines)


class Measurement(eqx.Module):
    """What lies between two networks; prints itself as a table.

    - `layers`: the names of the parameter groups.
    - `distance`, `spectral_distance`, `relative_distance`: (groups,). The spectral one
      is of the weights alone, without biases.
    - `flips`: (groups,), NaN where no kink follows; None if none has one.
    - `kernel_drift`, `kernel_alignment`, `least`, `tangent_error`: scalars; `least` is
      of the second network's kernel.
    """

    layers: tuple[str, ...] = eqx.field(static=True)
    distance: Array
    spectral_distance: Array
    relative_distance: Array
    flips: Array | None
    kernel_drift: Array
    kernel_alignment: Array
    least: Array
    tangent_error: Array

    def __repr__(self) -> str:
        if not is_concrete(self.distance):
            return f"Measurement of {', '.join(self.layers)}, traced"
        width = max(5, *(len(name) for name in self.layers))
        lines = [f"{'layer':{width}}  distance  spectral  relative     flips"]
        for k, name in enumerate(self.layers):
            row = [self.distance[k], self.spectral_distance[k], self.relative_distance[k]]
            words = "".join(f"{float(v):10.3g}" for v in row)
            share = math.nan if self.flips is None else float(self.flips[k])
            words += f"{'-':>10}" if math.isnan(share) else f"{share:10.2%}"
            lines.append(f"{name:{width}}{words}")
        if self.flips is None:
            lines.append(f"no flips: {NO_KINK}")
        lines.append(
            f"kernel: drift {float(self.kernel_drift):.3g}, alignment "
            f"{float(self.kernel_alignment):.4f}, least eigenvalue {float(self.least):.3g}; "
            f"error of the linearised model {float(self.tangent_error):.3g}"
        )
        return "\n".join(lines)


def measure(before: Any, after: Any, problem: Any, *, trainable: Any = None) -> Measurement:
    """How far one network is from another, layer by layer.

    **Arguments:**

    - `before`: the network at its start, an Equinox module.
    - `after`: the network after training, of the same structure.
    - `problem`: a `Problem`, or examples (n, ...).
    - `trainable`: which arrays are parameters, as in `simulate`.

    **Returns:** a `Measurement`.

    **Raises:** `ValueError` for networks of different structures, and as
    `sgfbias.tangent_kernel` does.
    """
    described = [
        (
            jax.tree.structure(net),
            [jnp.shape(a) for a in jax.tree.leaves(eqx.filter(net, eqx.is_array))],
        )
        for net in (before, after)
    ]
    if described[0] != described[1]:
        raise ValueError(
            "the two networks must have the same structure and arrays of the same shapes, but "
            f"{type(before).__name__} and {type(after).__name__} differ"
        )
    start = start_of(before, problem, trainable)
    after = cast(after, start.outputs.dtype)
    kernel = start.kernel_of(after)
    distance = start.distance(after)
    return Measurement(
        start.kernel.groups,
        distance,
        start.spectral_distance(after),
        distance / start.size(),
        start.flips(after) if start.switches.kinked else None,
        start.drift(kernel),
        start.alignment(kernel),
        kernel.least,
        start.tangent_error(after),
    )


def _norm(arrays: list[Array]) -> Array:
    """The Euclidean norm of all entries of some arrays."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in arrays))


def _flat(part: Array) -> Array:
    """A part of the kernel as a matrix, with the outputs of an example side by side."""
    if part.ndim == 2:
        return part
    n, m, count, _ = part.shape
    return part.transpose(0, 2, 1, 3).reshape(n * count, m * count)


def least_eigenvalues(matrices: Sequence[Array]) -> Array:
    """The least eigenvalue of each symmetric matrix, of one shape, (matrices,).

    All are decomposed in one call of LAPACK. In JAX 0.10.1, two calls with batches, as
    within a map over seeds, can wait for each other forever on a machine with two
    cores.
    """
    return jnp.linalg.eigvalsh(jnp.stack(list(matrices)))[:, 0]
