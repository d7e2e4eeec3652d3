"""Fused kernels, which run the whole time loop in one kernel.

A system can provide such a kernel. Here is its interface, and the choice between the
kernel and the engine.
"""

from __future__ import annotations

import abc
import logging
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from sgfbias.core.checks import is_concrete
from sgfbias.core.run import Run

CHOICES = (True, False, "auto", "interpret")
log = logging.getLogger("sgfbias")


class AbstractFused(eqx.Module):
    """A kernel that runs the steps between two observations of a tile of seeds.

    Results equal the engine's up to rounding: same Brownian increments, same scheme.
    `members` is the largest number of seeds that the kernel takes at once.
    """

    members: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, y: Any, keys: Array, start: Array, length: Array) -> Any:
        """The states `length` steps after the absolute step `start`, given the states
        `y` at that step.

        A state is `(position, integral)`, with a leading axis of seeds.
        """


def choose_fused(
    choice: Any, run: Run, *, plain: bool, own_starts: bool = False
) -> AbstractFused | None:
    """The kernel for a run, or None if the engine is to run it.

    **Arguments:**

    - `choice`: True, False, `"auto"` or `"interpret"`, see `simulate`.
    - `run`: the run.
    - `plain`: whether the run is neither traced nor differentiated.
    - `own_starts`: whether every seed has a start of its own.

    **Raises:** `ValueError`, with the reason, if `choice` asks for a kernel and none
    applies.
    """
    if choice is False or (choice == "auto" and jax.default_backend() != "gpu"):
        return None
    if run.keys is None or not is_concrete(run.keys):
        found: AbstractFused | str = "the kernel is for stochastic flows with concrete keys"
    elif not plain:
        found = "the run is being traced or differentiated, and the kernel has no derivative"
    elif run.along is not None:
        found = "`integrals` and `sums` are recorded, which the kernel does not add up"
    elif own_starts:
        found = "every seed has a start of its own, but the kernel takes one start for all seeds"
    else:
        found = run.coordinates.fused(
            run.dynamics, run.problem, run.solver, run.keys, interpret=choice == "interpret"
        )
    if not isinstance(found, str):
        return found
    if choice != "auto":
        raise ValueError(
            f"fused={choice!r}, but the fused kernel does not apply here: {found}; leave `fused` "
            "out to use the engine"
        )
    log.info("the fused kernel does not apply here: %s; the engine runs instead", found)
    return None


def check_choice(choice: Any) -> None:
    """Refuse an unknown value of `fused`.

    **Raises:** `ValueError` with the known values.
    """
    if not any(
        choice is known or (isinstance(known, str) and choice == known) for known in CHOICES
    ):
        raise ValueError(f"`fused` must be True, False, 'auto' or 'interpret', but is {choice!r}")
