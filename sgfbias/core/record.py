"""What is recorded: observables, integrals and sums, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from sgfbias.core.along import Along
from sgfbias.core.cached import shapes_of
from sgfbias.core.coordinates import AbstractCoordinates
from sgfbias.core.direct import direct
from sgfbias.core.dynamics import FLOW_TIME
from sgfbias.core.names import did_you_mean
from sgfbias.core.network import always_recorded, declares
from sgfbias.core.observe import together, values_of

BUILT_IN = ("loss", "loss_integral")
# Names that a Dataset of runs has besides those of observables.
TAKEN = {
    "example_integral": "the loss integral of every example",
    "key": "the keys of the seeds",
    "key_word": "a dimension",
    "seed": "a dimension",
    "status": "the status of every seed",
    "step": "the recorded steps",
    "stop_time": "the time at which a seed was stopped",
    "time": "the recorded times",
}


class Record(NamedTuple):
    """What to record along a run, and when.

    **Arguments:**

    - `observables`: None for every declared observable that is a scalar; or a sequence
      of declared names; or a mapping from names to functions of the network, in which
      None stands for the declared observable of that name. `loss` and `loss_integral`
      are always recorded, and `penalty` if the problem has one.
    - `times`: a whole number >= 2 of log-spaced times, which include the start and the
      end; or an increasing array of flow times, or of readings of the clock that the
      dynamics have instead. Default 200.
    - `path_sums`: whether to sum along every path, step by step, what
      `lyapunov_identity` needs, and to record it besides. Only for a `DiagonalNetwork`
      under a first-order stochastic flow.
    - `integrals`: a mapping from names to functions f(network). Each is integrated over
      flow time with the run, as `loss_integral` is: by the solver of a flow, and step
      size times value at the start of each iteration of an algorithm. Values are real
      numbers or arrays of them. An adaptive solver controls their error too.
    - `sums`: a mapping from names to functions f(network, change), added up over the
      iterations of a discrete algorithm. `network` is the network before an iteration,
      and `change` is what the iteration adds to its trainable parameters: the network
      with None in place of what does not move. If the network declares coordinates of
      its own, `change` is in these: a `DiagonalNetwork` has a dictionary of `plus` and
      `minus`.
    """

    observables: Mapping[str, Callable[[Any], Array] | None] | Sequence[str] | None = None
    times: int | Any = 200
    path_sums: bool = False
    integrals: Mapping[str, Callable[[Any], Any]] | None = None
    sums: Mapping[str, Callable[[Any, Any], Any]] | None = None


def as_record(record: Any) -> Record:
    """The `Record` that the argument `record` of `simulate` stands for.

    It may be None, a `Record`, a pair (observables, times), a sequence of names, or a
    mapping from names to functions.

    **Raises:** `ValueError` for anything else.
    """
    if record is None:
        return Record()
    if isinstance(record, Record):
        return record
    if (
        isinstance(record, tuple)
        and len(record) == 2
        and not all(isinstance(item, str) for item in record)
    ):
        return Record(*record)
    if isinstance(record, Mapping) or (
        isinstance(record, Sequence) and all(isinstance(item, str) for item in record)
    ):
        return Record(observables=record)
    raise ValueError(
        "`record` must be a Record(observables, times), a sequence of names, or a mapping from "
        f"names to functions, but is {record!r}"
    )


def declared_observables(network: Any, problem: Any) -> dict[str, Callable[[Any], Array]]:
    """The observables that the network and the problem declare, by name."""
    return {**declares(network, "observables"), **direct(problem).observables(network)}


def choose_observables(
    record: Record, network: Any, problem: Any, own: Mapping[str, Any] | None = None
) -> tuple[dict[str, Callable | None], dict[str, Callable | None]]:
    """The observables to record at every time, and those to record at the end.

    Both are functions of the network by name, or None for a value that the dynamics
    add. `own` has the shapes of these values.

    **Raises:** `ValueError` for an unknown name, a value that is not a function, and a
    name that the engine, the network or the problem uses for something else.
    """
    own, built_in = own or {}, _built_in(problem)
    declared: dict[str, Any] = {
        **declared_observables(network, problem),
        **dict.fromkeys(own),
    }
    for name in declared:
        _check_name(name, declared, declared, built_in)
    if record.observables is None:
        values = _shapes(declared, network, own)
        _check_dimensions(values, network, problem)
        always = always_recorded(network)
        return {
            name: f for name, f in declared.items() if values[name].shape == () or name in always
        }, declared
    asked = (
        record.observables
        if isinstance(record.observables, Mapping)
        else dict.fromkeys(record.observables)
    )
    asked = {**dict.fromkeys(always_recorded(network)), **asked}
    series: dict[str, Callable | None] = {}
    for name, function in asked.items():
        if name in built_in and function is None:
            continue
        if function is None and name not in declared:
            known = ", ".join([*built_in, *declared])
            raise ValueError(
                f"no observable called {name!r} here; "
                f"{did_you_mean(str(name), [*built_in, *declared])}there are {known}; or give a "
                f"function f of the network: record={{{name!r}: f}}"
            )
        chosen: Any = declared[name] if function is None else function
        if not callable(chosen) and not (function is None and name in own):
            raise ValueError(
                f"observable {name!r} must be a function of the network, but is "
                f"{type(chosen).__name__}"
            )
        if chosen is not declared.get(name) or (function is not None and name in own):
            _check_name(name, declared, {**declared, **asked}, built_in, own=True)
        series[name] = chosen
    finals = {**declared, **series}
    _check_dimensions(_shapes(finals, network, own), network, problem)
    return series, finals


def choose_along(
    record: Record,
    network: Any,
    problem: Any,
    dynamics: Any,
    coordinates: AbstractCoordinates,
    observables: Mapping[str, Callable | None],
    own: Mapping[str, Any],
) -> Along | None:
    """The integrals and sums to record, or None if there are none.

    `observables` are the functions that are recorded besides, with None for the values
    that the dynamics add, of which `own` has the shapes.

    **Raises:** `ValueError` for what is no mapping from names to functions, for names
    that stand for something else, for sums along a flow, and for values that are no
    real numbers.
    """
    given = {"integrals": record.integrals, "sums": record.sums}
    for option, functions in given.items():
        if functions is None:
            continue
        if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
            takes = "the network" if option == "integrals" else "the network and its change"
            raise ValueError(
                f"`{option}` of Record must map names to functions of {takes}, but is "
                f"{functions!r}: {option}={{'name': f}}"
            )
    integrals, sums = dict(record.integrals or {}), dict(record.sums or {})
    if sums and dynamics.is_flow:
        raise ValueError(
            f"`sums` of Record are added up over the iterations of an algorithm, but "
            f"{type(dynamics).__name__} is a flow, which has none: record the integral over flow "
            "time, integrals={name: f(network)}, or run a discrete algorithm"
        )
    if integrals and dynamics.clock_name != FLOW_TIME:
        raise ValueError(
            f"`integrals` of Record are taken over flow time, but {type(dynamics).__name__} runs "
            f"by a clock of its own, {dynamics.clock_name}: record the values as observables"
        )
    both = sorted(map(str, integrals.keys() & sums.keys()))
    if both:
        raise ValueError(f"{both[0]!r} is the name of an integral and of a sum: give two names")
    if not integrals and not sums:
        return None
    names, built_in = {**observables, **integrals, **sums}, _built_in(problem)
    for name in {**integrals, **sums}:
        kind = "integral" if name in integrals else "sum"
        _check_name(name, observables, names, built_in, own=True, kind=kind)
    for name in observables:
        _check_name(name, {}, names, built_in)
    found = Along(integrals, sums)
    values = found.shapes(coordinates, network)
    _check_dimensions({**_shapes(observables, network, own), **values}, network, problem)
    return found


def _built_in(problem: Any) -> tuple[str, ...]:
    """The names of what the engine records in a run of the problem."""
    return BUILT_IN if problem.penalty is None else (*BUILT_IN, "penalty")


def _check_name(
    name: Any,
    declared: Mapping[str, Any],
    names: Mapping[str, Any],
    built_in: Sequence[str],
    *,
    own: bool = False,
    kind: str = "observable",
) -> None:
    """Refuse a name of an observable that stands for something else already.

    `names` has all names, and `built_in` those that the engine records. With `own` the
    name is that of a function in `record`, and not of a declared one. `kind` says what
    the name is of.
    """
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(
            f"{'a' if kind == 'sum' else 'an'} {kind}'s name must be a non-empty text without "
            f"'/', but is {name!r}"
        )
    ended = name.removeprefix("final_")
    if name in built_in:
        what = "is built in and is recorded in any case"
    elif name in TAKEN:
        what = f"is the name of {TAKEN[name]} in to_xarray()"
    elif ended != name and (ended in built_in or ended in TAKEN or ended in names):
        what = f"is the name of the last {ended!r} in to_xarray()"
    elif own and name in declared and kind != "observable":
        what = "is the name of an observable of this run"
    elif own and name in declared:
        what = (
            "is declared by the network, the problem or the dynamics; "
            f"record={{{name!r}: None}} records it"
        )
    else:
        return
    raise ValueError(f"the {kind} {name!r} needs another name, because that {what}")


def _check_dimensions(values: Mapping[str, Any], network: Any, problem: Any) -> None:
    """Refuse an observable that is called like a dimension of another one."""
    dims = {**declares(network, "dims"), **direct(problem).dims()}
    for name, value in values.items():
        rank = len(getattr(value, "shape", ()))
        for dimension in dims.get(name) or [f"{name}_{k}" for k in range(rank)]:
            for other in (dimension, dimension.removeprefix("final_")):
                if other in values and other != name:
                    raise ValueError(
                        f"the observable {other!r} needs another name, because to_xarray() calls a "
                        f"dimension of {name!r} so"
                    )


def _shapes(
    functions: Mapping[str, Callable | None], network: Any, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The shapes of all observables by name, those of the dynamics from `own`."""
    of_network = {name: f for name, f in functions.items() if f is not None}
    return shapes_of(values_of, together(of_network), network) | {
        name: own[name] for name, f in functions.items() if f is None
    }
