"""Runs whose whole time loop is one kernel: what core asks of a system that has one, and when it is used."""

from __future__ import annotations

import abc
import logging
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from sgfbias.core.checks import is_concrete

CHOICES = (True, False, "auto", "interpret")
log = logging.getLogger("sgfbias")


class AbstractFused(eqx.Module):
    """A kernel that takes the place of the solver's loop between two looks at the states of a tile of seeds.

    What it gives is the engine's to rounding: the same increments by number of the step, the same scheme. `members`: the most seeds that it
    takes at once.
    """

    members: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, y: Any, keys: Array, start: Array, length: Array) -> Any:
        """The states `(position, integral)` of all seeds, along leading axes, `length` steps after absolute step `start`."""


def choose_fused(
    choice: Any, chart: Any, dynamics: Any, problem: Any, solver: Any, keys: Array | None, *, plain: bool
) -> AbstractFused | None:
    """The kernel of this run, or None for the engine; `plain`: nobody differentiates or traces the run.

    **Raises:** `ValueError` for a choice that does not exist, or a kernel that was asked for and does not apply, with the reason.
    """
    if choice is False or (choice == "auto" and jax.default_backend() != "gpu"):
        return None
    if keys is None or not is_concrete(keys):
        found: AbstractFused | str = "it is for stochastic flows with concrete keys"
    elif not plain:
        found = "the run is being traced or differentiated, and the kernel has no derivative"
    else:
        found = chart.fused(dynamics, problem, solver, keys, interpret=choice == "interpret")
    if not isinstance(found, str):
        return found
    if choice != "auto":
        raise ValueError(f"fused={choice!r}, but the fused kernel does not apply here: {found}; leave `fused` out for the engine")
    log.info("the fused kernel does not apply here: %s; the engine runs instead", found)
    return None


def check_choice(choice: Any) -> None:
    """Refuse a `fused=` that does not exist.

    **Raises:** `ValueError` naming those that do.
    """
    if not any(choice is known or (isinstance(known, str) and choice == known) for known in CHOICES):
        raise ValueError(f"`fused` must be True, False, 'auto' or 'interpret', but is {choice!r}")
