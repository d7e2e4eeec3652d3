"""Which neurons to stabilise: as much robustness as possible, for a small loss of
accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from sgfbias.core.checks import as_whole, is_concrete
from sgfbias.core.names import did_you_mean
from sgfbias.fourier.attack import attack
from sgfbias.fourier.cube import BLOCK
from sgfbias.fourier.examples import as_bits, as_labels, check_classes
from sgfbias.fourier.examples import margin as margin_of
from sgfbias.fourier.layers import HIGHEST, Layers, first_layer
from sgfbias.fourier.moves import AbstractMoves, BitFlips
from sgfbias.fourier.neuron import Scale, stabilise

Rule = Literal["gmb", "gmbc", "bisect", "exact", "robust"]
BUDGETS = np.linspace(0, 0.1, 21)
MOST = 16  # neurons of the exact selection, whose 2^16 subsets are all evaluated
NO_LOSS = 1e-20  # what a loss of accuracy of 0 or less counts as in a quotient


class Path(eqx.Module):
    """What is chosen for every budget, from the smallest to the largest.

    - `budget`: (B,). The accuracy that may be lost.
    - `neurons`: (B, m). Which neurons are stabilised.
    - `accuracy`: (B,). The validation accuracy of this choice.
    - `gain`: (B,). The sum of the chosen neurons' gains.
    - `robust`: (B,). For the method "robust" the validation accuracy under attack;
      otherwise None.
    """

    budget: Float[Array, " B"]
    neurons: Bool[Array, "B m"]
    accuracy: Float[Array, " B"]
    gain: Float[Array, " B"]
    robust: Float[Array, " B"] | None = None


class Selection(eqx.Module):
    """Chosen neurons. Made by `select`.

    - `neurons`: (m,). Which neurons are stabilised.
    - `network`: the network in which they are.
    - `gain`: the sum of their gains.
    - `gains`: (m,). The gain of every neuron.
    - `accuracy`, `base`: validation accuracies of `network` and of the network given.
    - `path`: the choices for other budgets.
    """

    neurons: Bool[Array, " m"]
    network: Any
    gain: Float[Array, ""]
    gains: Float[Array, " m"]
    accuracy: Float[Array, ""]
    base: Float[Array, ""]
    path: Path


class Subsets(eqx.Module):
    """A network in which every subset of the neurons may be stabilised.

    - `cut`: the network.
    - `weight`, `bias`: the first layer with all neurons stabilised.
    - `inputs`, `labels`: validation data.
    """

    cut: Layers
    weight: Float[Array, "m d"]
    bias: Float[Array, " m"]
    inputs: Float[Array, "n d"]
    labels: Num[Array, " n"]

    def network(self, chosen: Bool[Array, " m"]) -> Any:
        """The network in which the chosen neurons are stabilised."""
        weight = jnp.where(chosen[:, None], self.weight, self.cut.weight)
        if self.cut.linear.bias is None:
            return self.cut.replace(weight)
        return self.cut.replace(weight, jnp.where(chosen, self.bias, self.cut.bias))

    def correct(self, chosen: Bool[Array, "k m"]) -> Int[Array, " k"]:
        """The number of examples with a margin above 0, for each of k subsets.

        With a linear head the outputs are those of the network as it was plus one
        contribution of every chosen neuron, so k subsets cost one matrix product.
        """
        old = self.cut.preactivations(self.inputs)
        new = jnp.matmul(self.inputs, self.weight.T, precision=HIGHEST) + self.bias
        base = self.cut.outputs(old)
        count = Subsets._count
        if self.cut.head is None or self.cut.activation is None:
            return jax.lax.map(
                lambda mask: count(self.cut.outputs(jnp.where(mask, new, old)), self.labels),
                chosen,
                batch_size=max(1, BLOCK // old.size),
            )
        change = self.cut.activation(new) - self.cut.activation(old)
        parts = jnp.einsum("nm,cm->mnc", change, self.cut.head[0], precision=HIGHEST).reshape(
            self.cut.m, *base.shape
        )
        flat = parts.reshape(self.cut.m, -1)

        def block(masks: Array) -> Array:
            moved = jnp.matmul(masks.astype(flat.dtype), flat, precision=HIGHEST)
            outputs = base + moved.reshape(-1, *base.shape)
            return jax.vmap(lambda values: count(values, self.labels))(outputs)

        size = max(1, BLOCK // flat.shape[1])
        k = len(chosen)
        if k <= size:
            return block(chosen)
        blocks = jnp.pad(chosen, ((0, -k % size), (0, 0))).reshape(-1, size, self.cut.m)
        return jax.lax.map(block, blocks).ravel()[:k]

    @staticmethod
    def _count(outputs: Array, labels: Array) -> Array:
        return jnp.sum((margin_of(outputs, labels) > 0).astype(jnp.int32))


def select(
    net: Any,
    X_val: Any,
    y_val: Any,
    budget: float | Float[ArrayLike, ""] = 0.02,
    method: Rule = "gmbc",
    *,
    flips: int = 4,
    moves: AbstractMoves = BitFlips(),
    budgets: Float[ArrayLike, " B"] | None = None,
    scale: Scale = "linf",
    refit_bias: Any = None,
    layer: Callable | None = None,
    activation: Callable | None = None,
) -> Selection:
    """Choose neurons to stabilise while the validation accuracy stays at least that of
    the network minus a budget.

    The gain of neuron j is the number of its weights that are not 0, minus
    `|w_j|_1 / |w_j|_inf`: by how much the largest mean l1 distance from its hyperplane
    may grow.

    - "gmb" adds the neuron with the largest gain, until one breaks the floor.
    - "gmbc" adds, of the neurons that keep the floor, the one with the largest gain per
      loss of accuracy; a loss of 0 or less counts as 1e-20.
    - "bisect" takes the neurons with the largest gains; their number by bisection.
    - "exact" has the largest sum of gains of all 2^m subsets, for m up to 16.
    - "robust" adds, of the neurons that keep the floor, the one with the largest
      accuracy under attack, and takes the best subset on this way.

    A subset that is allowed with a smaller budget is allowed with a larger one. Where
    the rule finds a better one for a smaller budget of the path, that one is kept.

    **Arguments:**

    - `net`: an Equinox module whose first `eqx.nn.Linear` sees the bits.
    - `X_val`: (n, d), bits in {-1, +1}; validation data.
    - `y_val`: (n,), in {0, 1} or {-1, 1} for a scalar output, or classes.
    - `budget`: the accuracy that may be lost, at least 0 and below 1. The accuracy on n
      examples has a standard deviation of up to `1 / (2 sqrt(n))`, and the choice
      overfits them: look at the accuracy on other data, too.
    - `method`: one of these rules.
    - `flips`, `moves`: of the greedy attack of the method "robust".
    - `budgets`: (B,). More budgets for the path. By default 0 to 0.1 in steps of 0.005,
      and none for "robust", which is slow.
    - `scale`, `refit_bias`: as for `stabilise`.
    - `layer`, `activation`: as for `first_layer`.

    **Returns:** a `Selection`.

    **Raises:** `ValueError` for a budget outside [0, 1), labels of one class, inputs
    that are not bits, and an exact selection of more than 16 neurons.

    Raviv et al. 2021, section 5, for "gmb" and "gmbc".
    """
    if method not in get_args(Rule):
        raise ValueError(
            f"there is no method {method!r}; {did_you_mean(str(method), get_args(Rule))}the "
            f"methods are {', '.join(get_args(Rule))}"
        )
    m = first_layer(net, layer=layer, activation=activation).m
    if method == "exact" and m > MOST:
        raise ValueError(
            f"the exact selection takes at most {MOST} neurons, since it evaluates all subsets, "
            f"but the first layer has {m}: use method='gmbc'"
        )
    subsets = stabilised_subsets(
        net, X_val, y_val, scale=scale, refit_bias=refit_bias, layer=layer, activation=activation
    )
    more = (() if method == "robust" else BUDGETS) if budgets is None else np.asarray(budgets)
    every = jnp.concatenate([jnp.asarray(more, float), jnp.asarray(budget, float)[None]])
    if is_concrete(every) and not bool(jnp.all((every >= 0) & (every < 1))):
        raise ValueError(f"a budget must be at least 0 and below 1, but is {_outside(every):g}")
    every = jnp.sort(every.astype(subsets.cut.dtype))
    gains, base, path = _select(subsets, every, method, as_whole(flips, "flips", least=0), moves)
    at = jnp.searchsorted(path.budget, jnp.asarray(budget).astype(every.dtype))
    neurons = path.neurons[at]
    return Selection(
        neurons,
        subsets.network(neurons),
        path.gain[at],
        gains,
        path.accuracy[at],
        base,
        path,
    )


def stabilised_subsets(
    net: Any, X_val: Any, y_val: Any, *, layer: Any = None, activation: Any = None, **options: Any
) -> Subsets:
    """The subsets of the neurons of a network, with checked validation data; options
    are those of `stabilise`.
    """
    shape = jnp.shape(X_val)
    cut = first_layer(
        net, shape[1] if len(shape) == 2 else None, layer=layer, activation=activation
    )
    bits = as_bits(X_val, cut.dtype, "X_val")
    outputs = eqx.filter_eval_shape(cut.outputs, jnp.zeros((len(bits), cut.m), cut.dtype))
    labels = as_labels(y_val, outputs.shape, name="y_val")
    check_classes(labels, "y_val")
    new = stabilise(net, layer=layer, activation=activation, **options)
    whole = first_layer(new, cut.d, layer=layer, activation=activation)
    return Subsets(cut, whole.weight, whole.bias, bits, labels)


def gains_of(weight: Float[Array, "m d"]) -> Float[Array, " m"]:
    """The number of weights that are not 0, minus `|w|_1 / |w|_inf`, of every row; 0
    for a row of zeros.
    """
    size = jnp.abs(weight)
    top = size.max(axis=1)
    used = jnp.sum((size > 0).astype(weight.dtype), axis=1)
    return used - size.sum(axis=1) / jnp.where(top > 0, top, 1)


def _outside(budgets: Array) -> float:
    return next(float(b) for b in budgets if not 0 <= b < 1)


@eqx.filter_jit
def _select(
    subsets: Subsets, budgets: Array, method: str, flips: int, moves: AbstractMoves
) -> tuple[Array, Array, Path]:
    """The gains, the accuracy of the network as it was, and the path."""
    gains = gains_of(subsets.cut.weight)
    n, m = len(subsets.labels), subsets.cut.m
    base = subsets.correct(jnp.zeros((1, m), bool))[0]
    # Counts are compared, so a part of an example is given for rounding.
    floors = jnp.ceil(base.astype(gains.dtype) - budgets * n - 1e-3).astype(base.dtype)
    robust = None
    if method == "exact":
        chosen = _exact(subsets, gains, floors)
    elif method in ("gmb", "bisect"):
        chosen = _by_gain(subsets, gains, floors, method)
    elif method == "gmbc":
        chosen = jax.vmap(lambda floor: _gmbc(subsets, gains, base, floor)[-1])(floors)
    else:
        chosen, robust = jax.lax.map(lambda floor: _robust(subsets, floor, flips, moves), floors)
    gain = chosen.astype(gains.dtype) @ gains
    value = gain if robust is None else robust
    # The best choice of this and of all smaller budgets, the first of equal ones.
    allowed = jnp.tri(len(budgets), dtype=bool)
    best = jnp.argmax(jnp.where(allowed, value, -jnp.inf), axis=1)
    accuracy = subsets.correct(chosen).astype(gains.dtype) / n
    path = Path(
        budgets,
        chosen[best],
        accuracy[best],
        gain[best],
        None if robust is None else robust[best],
    )
    return gains, base.astype(gains.dtype) / n, path


def _exact(subsets: Subsets, gains: Array, floors: Array) -> Array:
    """For each floor the subset with the largest sum of gains, (B, m)."""
    m = len(gains)
    masks = ((jnp.arange(2**m)[:, None] >> jnp.arange(m)) & 1) > 0
    correct, total = subsets.correct(masks), masks.astype(gains.dtype) @ gains
    best = jax.lax.map(
        lambda floor: jnp.argmax(jnp.where(correct >= floor, total, -jnp.inf)), floors
    )
    return masks[best]


def _by_gain(subsets: Subsets, gains: Array, floors: Array, method: str) -> Array:
    """For each floor the neurons with the k largest gains, (B, m)."""
    m = len(gains)
    rank = jnp.argsort(jnp.argsort(-gains))
    prefixes = rank < jnp.arange(m + 1)[:, None]
    allowed = subsets.correct(prefixes) >= floors[:, None]
    if method == "gmb":
        # The number of neurons before the first that breaks the floor.
        count = jnp.sum(jnp.cumprod(allowed[:, 1:].astype(jnp.int32), axis=1), axis=1)
        return prefixes[count]
    low, high = jnp.where(allowed[:, m], m, 0 * floors), jnp.full_like(floors, m)
    for _ in range(m.bit_length()):
        middle = (low + high) // 2
        fits = jnp.take_along_axis(allowed, middle[:, None], axis=1)[:, 0]
        low, high = jnp.where(fits, middle, low), jnp.where(fits, high, middle)
    return prefixes[low]


@eqx.filter_jit
def gmbc_order(subsets: Subsets) -> Bool[Array, "steps m"]:
    """The subsets (m + 1, m) of 0 to m neurons that the rule "gmbc" goes through when
    no accuracy is too low.
    """
    m = subsets.cut.m
    base = subsets.correct(jnp.zeros((1, m), bool))[0]
    return _gmbc(subsets, gains_of(subsets.cut.weight), base, jnp.zeros_like(base))


def _gmbc(subsets: Subsets, gains: Array, base: Array, floor: Array) -> Array:
    """The subsets (m + 1, m) that grow by the largest gain per loss of accuracy. When
    none is left that keeps the floor, they grow no more.
    """
    m, n = len(gains), len(subsets.labels)

    def grow(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        chosen, correct = state
        masks = chosen | jnp.eye(m, dtype=bool)
        counts = subsets.correct(masks)
        loss = (correct - counts).astype(gains.dtype) / n
        allowed = ~chosen & (counts >= floor)
        value = gains / jnp.where(loss > 0, loss, NO_LOSS)
        best = jnp.argmax(jnp.where(allowed, value, -jnp.inf))
        more = jnp.any(allowed)
        new = jnp.where(more, masks[best], chosen)
        return (new, jnp.where(more, counts[best], correct)), new

    start = jnp.zeros(m, bool)
    _, steps = jax.lax.scan(grow, (start, base), None, length=m)
    return jnp.concatenate([start[None], steps])


def _robust(
    subsets: Subsets, floor: Array, flips: int, moves: AbstractMoves
) -> tuple[Array, Array]:
    """The subset (m,) that grows by the largest accuracy under attack, as long as it
    was ever largest, and that accuracy.
    """
    m, dtype = subsets.cut.m, subsets.cut.dtype

    def attacked(chosen: Array) -> Array:
        found = attack(subsets.network(chosen), subsets.inputs, subsets.labels, flips, moves=moves)
        return found.curve[flips].astype(dtype)

    def grow(chosen: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        masks = chosen | jnp.eye(m, dtype=bool)
        open_ = ~chosen & (subsets.correct(masks) >= floor)
        # Only the open ones are attacked.
        value = jax.lax.map(
            lambda pair: jax.lax.cond(
                pair[0], lambda: attacked(pair[1]), lambda: jnp.asarray(-1.0, dtype)
            ),
            (open_, masks),
        )
        best = jnp.argmax(value)
        new = jnp.where(jnp.any(open_), masks[best], chosen)
        return new, (new, value[best])

    start = jnp.zeros(m, bool)
    _, (chosen, value) = jax.lax.scan(grow, start, None, length=m)
    chosen = jnp.concatenate([start[None], chosen])
    value = jnp.concatenate([attacked(start)[None], value])
    best = jnp.argmax(value)
    return chosen[best], value[best]
