"""What the claims about the residual and those about the solution share."""

from __future__ import annotations

from typing import Any

from sgfbias.study import source

SSD = source("sander2024", "diagonal linear networks")
P21 = source("pesme2021", "theorem 1")
# Tolerance in standard errors. Five tests with it hold together with probability 99.5%.
SURE = 3.3


def plus_minus(values: Any, errors: Any, form: str = ".3f") -> str:
    """Values with their standard errors, as text."""
    return ", ".join(
        f"{value:{form}} +- {error:.3f}" for value, error in zip(values, errors, strict=True)
    )
