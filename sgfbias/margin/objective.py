"""The margins of a classifier, and nu, the one number that its optimisation moves.

Binary margins are `q_i = y_i f_i`. With C classes they are those of all pairs,
`q_ij = f_i,y_i - f_ij` for j != y_i.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from sgfbias.core.loss import AbstractLoss, SoftmaxCrossEntropyLoss
from sgfbias.core.problem import Problem
from sgfbias.core.two_class import AbstractTwoClassLoss


def check_classification(problem: Problem) -> None:
    """Refuse a problem whose margins are not defined.

    **Raises:** `ValueError` for a loss that is not one of classification, and for
    targets that are probabilities.
    """
    given = type(problem.loss).__name__
    if isinstance(problem.loss, AbstractTwoClassLoss):
        return
    if not isinstance(problem.loss, SoftmaxCrossEntropyLoss):
        raise ValueError(
            f"margins need a classification loss, but the problem has {given}: write "
            "Problem(inputs, labels, loss=ExponentialLoss()) or LogisticLoss() for labels -1 and "
            "1, and SoftmaxCrossEntropyLoss() for several classes"
        )
    if not jnp.issubdtype(problem.targets.dtype, jnp.integer):
        raise ValueError(
            f"margins need class labels, but the targets have dtype {problem.targets.dtype}: "
            "write labels.astype(int), or jnp.argmax(probabilities, axis=1)"
        )


def margins_of(
    loss: AbstractLoss, outputs: Float[Array, "n *c"], targets: Shaped[Array, "n *t"]
) -> Float[Array, "n *p"]:
    """The margins of outputs: (n,) for two classes, and (n, C - 1) for C classes, where
    the other classes are in order.
    """
    if isinstance(loss, AbstractTwoClassLoss):
        return (loss.signs(outputs, targets) * outputs).reshape(outputs.shape[0])
    own = jnp.take_along_axis(outputs, targets[:, None], axis=1)
    other = jnp.arange(outputs.shape[1] - 1)[None]
    other = other + (other >= targets[:, None]).astype(other.dtype)
    return own - jnp.take_along_axis(outputs, other, axis=1)


def margins(network: Any, problem: Problem) -> Float[Array, "n *p"]:
    """The margins of all examples.

    **Arguments:**

    - `network`: an Equinox module that maps one example to its output.
    - `problem`: the data with a loss of classification.

    **Returns:** (n,) for one output, (n, C - 1) for C classes.

    **Raises:** `ValueError` for a loss that is not one of classification.
    """
    check_classification(problem)
    return margins_of(problem.loss, problem.outputs(network), problem.targets)


def nu(network: Any, problem: Problem) -> Float[Array, ""]:
    """`nu = -log sum_i l_i`, the clock of `MarginFlow`, without underflow.

    For the exponential loss `q_min - log n <= nu <= q_min`, and for every loss nu is at
    most the least `-log l_i`.

    **Arguments:**

    - `network`: an Equinox module that maps one example to its output.
    - `problem`: the data with a loss of classification.

    **Raises:** `ValueError` for a loss that is not one of classification.
    """
    check_classification(problem)
    return -jax.nn.logsumexp(problem.loss.log(problem.outputs(network), problem.targets))


def nu_and_gradient(linearise: Any, position: Any, problem: Problem) -> tuple[Array, Any]:
    """nu, and its gradient `G = -sum_i phat_i grad log l_i`, where `phat_i` is the
    share of example i in the sum of losses.

    `linearise(position, inputs)` gives the outputs and their vjp, as coordinates do.
    """
    outputs, vjp = linearise(position, problem.inputs)
    logs = problem.loss.log(outputs, problem.targets)
    share = jax.nn.softmax(logs)
    slope = problem.loss.log_derivative(outputs, problem.targets)
    cotangent = -slope * share.reshape(share.shape + (1,) * (slope.ndim - 1))
    return -jax.nn.logsumexp(logs), vjp(cotangent)


class Function(eqx.Module):
    """The outputs of a network as a function of the arrays that move."""

    network: Any
    problem: Problem

    def __call__(self, position: Any) -> Array:
        return self.problem.outputs(eqx.combine(position, self.network))

    def linearise(self, position: Any, inputs: Array) -> tuple[Array, Any]:
        """The outputs, and their vjp as a function of one cotangent."""
        outputs, vjp = jax.vjp(self, position)
        return outputs, lambda cotangent: vjp(cotangent)[0]


def degree_at(outputs: Any, position: Any) -> tuple[Array, Array]:
    """The outputs f, and the degree L for which Euler's `<w, grad f> = L f` holds best.

    L is 1 where all outputs are 0.
    """
    value, radial = jax.jvp(outputs, (position,), (position,))
    total = jnp.sum(jnp.square(value))
    safe = jnp.where(total > 0, total, 1)
    return value, jnp.where(total > 0, jnp.sum(value * radial) / safe, 1)
