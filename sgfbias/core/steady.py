"""Programs that give a seed the same digits in tiles of different sizes.

A function of one seed is traced and evaluated again, with its matrix products replaced
by those of `sgfbias.core.products` when it is mapped over seeds. Few seeds can then run
in a small tile, and their numbers stay the same when more seeds are added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap

from sgfbias.core.products import Product, Steady

# On a CPU these primitives call functions outside XLA, which wait for its thread pool.
# Two such programs at once lock up (with jax 0.10.1, but not with 0.12).
CALLS_OUT = {
    "cholesky",
    "cholesky_update",
    "lu",
    "qr",
    "geqrf",
    "geqp3",
    "householder_product",
    "svd",
    "eig",
    "eigh",
    "schur",
    "hessenberg",
    "tridiagonal",
    "tridiagonal_solve",
    "triangular_solve",
    "custom_call",
    "ffi_call",
    "pure_callback",
    "io_callback",
    "debug_callback",
}
# The result of these for one member may depend on how many members there are in other
# ways than a product's, of which nothing is known here.
_UNKNOWN = {
    "conv_general_dilated",
    "ragged_dot_general",
    "fft",
    "custom_linear_solve",
    "custom_root",
    "custom_vmap_call",
    "pmap",
    "shard_map",
    "run_state",
    "pallas_call",
}
# Calls, whose equations are read as if they stood in the caller, and the parameter that
# holds them.
_CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_LOOPS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}


def steady(
    function: Callable,
    how: Steady,
    *,
    transposed: tuple[Any, Any] | None = None,
    seen: set[Product] | None = None,
) -> Callable:
    """`function`, with products that a map over seeds takes in blocks of rows.

    The result can be mapped with `jax.vmap`, but not differentiated.

    - `transposed`: a matrix that `function` closes over, and its transpose, which is
      then used where the matrix is transposed. Products are faster with it.
    - `seen`: if given, the products that are mapped are added to it.
    """

    def multiply(parameters: Any) -> Callable:
        return _mapped(parameters, how, seen)

    def call(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        run = _Evaluation(multiply, transposed, {})
        results = run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


class _Evaluation(NamedTuple):
    """Evaluates a jaxpr; `multiply` gives the function that stands for a product.

    XLA takes the product with a transposed matrix as one with the matrix itself, which
    may have other digits. This is done here, so that the product is the one that runs.
    `turned` has, by the identity of transposed matrices, themselves and the matrices.
    """

    multiply: Callable
    transposed: tuple[Any, Any] | None
    turned: dict[int, tuple[Any, Any]]

    def __call__(self, jaxpr: Any, constants: Any, args: Any) -> list[Any]:
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *args), strict=True))

        def read(variable: Any) -> Any:
            return variable.val if hasattr(variable, "val") else values[variable]

        for equation in jaxpr.eqns:
            found = self.take(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, found, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def closed(self, jaxpr: Any, args: Any) -> list[Any]:
        """The results of a jaxpr that has its constants, or has none."""
        return self(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), args)

    def take(self, equation: Any, inputs: list[Any]) -> Any:
        """The results of one equation."""
        name, given = equation.primitive.name, equation.params
        if name == "dot_general":
            given, inputs = self._unturned(given, inputs)
            return [self.multiply(given)(*inputs)]
        if name == "transpose" and self.transposed and inputs[0] is self.transposed[0]:
            return [self.transposed[1]]
        if name in _CALLS:
            return self.closed(given[_CALLS[name]], inputs)
        if any(_multiplies(given[key]) for key in _LOOPS.get(name, ())):
            return getattr(self, f"take_{name}")(given, inputs)
        found = equation.primitive.bind(*inputs, **given)
        if name == "transpose" and tuple(given["permutation"]) == (1, 0):
            self.turned[id(found)] = found, inputs[0]
        return found if equation.primitive.multiple_results else [found]

    def _unturned(self, given: Any, inputs: list[Any]) -> tuple[Any, list[Any]]:
        """The parameters and factors of a product without transposed matrices."""
        contracted, shared = given["dimension_numbers"]
        sums, factors = list(contracted), list(inputs)
        for k, factor in enumerate(inputs):
            if id(factor) in self.turned and not shared[k] and len(sums[k]) == 1:
                factors[k], sums[k] = self.turned[id(factor)][1], (1 - sums[k][0],)
        return {**given, "dimension_numbers": (tuple(sums), shared)}, factors

    def _within(self) -> _Evaluation:
        """The evaluation of the body of a loop."""
        return self._replace(turned={})

    # Loops are built anew by JAX's public functions. What a body closes over remains
    # the same object, by which the matrix with a known transpose is found.

    def take_scan(self, given: Any, inputs: list[Any]) -> Any:
        """A scan."""
        if "num_consts" in given:
            first, last = given["num_consts"], given["num_consts"] + given["num_carry"]
            constants, carry, rows = inputs[:first], inputs[first:last], inputs[last:]
        else:  # jax 0.12
            constants, carry, rows = map(list, given["ft_in"].update(inputs).unpack())
        width = len(carry)

        def body(carry: Any, row: Any) -> Any:
            found = self._within().closed(given["jaxpr"], [*constants, *carry, *row])
            return found[:width], found[width:]

        carry, rows = jax.lax.scan(
            body,
            carry,
            rows,
            length=given["length"],
            reverse=given["reverse"],
            unroll=given["unroll"],
        )
        return [*carry, *rows]

    def take_while(self, given: Any, inputs: list[Any]) -> Any:
        """A while loop."""
        first = given["cond_nconsts"]
        last = first + given["body_nconsts"]
        return jax.lax.while_loop(
            lambda now: self._within().closed(given["cond_jaxpr"], [*inputs[:first], *now])[0],
            lambda now: self._within().closed(given["body_jaxpr"], [*inputs[first:last], *now]),
            inputs[last:],
        )

    def take_cond(self, given: Any, inputs: list[Any]) -> Any:
        """A choice among branches."""
        branches = [
            functools.partial(self._within().closed, branch) for branch in given["branches"]
        ]
        return jax.lax.switch(inputs[0], branches, inputs[1:])


def _mapped(parameters: Any, how: Steady, seen: set[Product] | None) -> Callable:
    """The product with parameters of `dot_general`, with a rule of its own for a map
    over seeds.
    """
    mapped = custom_vmap(functools.partial(jax.lax.dot_general_p.bind, **parameters))

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], a: Any, b: Any) -> tuple[Any, bool]:
        product = Product(
            tuple(factor.shape[own:] for factor, own in zip((a, b), batched, strict=True)),
            (str(a.dtype), str(b.dtype)),
            tuple(batched),
            tuple(sorted(parameters.items())),
        )
        if seen is not None:
            seen.add(product)
        return how(product, a, b), True

    return mapped


def _inner(value: Any) -> Iterator[Any]:
    """The jaxprs in a parameter of an equation."""
    for leaf in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
        inner = getattr(leaf, "jaxpr", leaf)
        if hasattr(inner, "eqns"):
            yield inner


def equations(jaxpr: Any) -> Iterator[tuple[Any, bool]]:
    """All equations of a jaxpr, and whether each stands where it can be replaced."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield equation, True
        for key, value in equation.params.items():
            reached = _CALLS.get(name) == key or key in _LOOPS.get(name, ())
            # The derivative rules of a function play no part when it is evaluated.
            if reached or name not in _CALLS:
                for inner in _inner(value):
                    yield from ((e, reached and ok) for e, ok in equations(inner))


def _multiplies(value: Any) -> bool:
    """Whether the jaxprs in a parameter have products."""
    return any(
        equation.primitive.name == "dot_general"
        for inner in _inner(value)
        for equation, _ in equations(inner)
    )


def products_of(
    function: Callable, *args: Any, transposed: tuple[Any, Any] | None = None
) -> frozenset[Product] | None:
    """The products in `function` that depend on the seed, as it is mapped over `args`.

    None if it has operations whose dependence on the size of a tile is not known. The
    leading axis of every array in `args` is the seed.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), args)
    for equation, replaceable in equations(jax.make_jaxpr(function)(*one).jaxpr):
        name = equation.primitive.name
        if name in CALLS_OUT or name in _UNKNOWN or (name == "dot_general" and not replaceable):
            return None
    seen: set[Product] = set()
    jax.eval_shape(jax.vmap(steady(function, Steady(), transposed=transposed, seen=seen)), *args)
    return frozenset(seen)
