"""The controls of the explorer: which values each of them reaches."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.diagonal.explore.config import ExploreConfig

# Sizes come from short lists, because each size is compiled once. All other values are
# traced.
ALPHAS = tuple(float(f"{10**v:.3g}") for v in np.arange(-5, 1.01, 0.25))
STEP_SIZES = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12),
    *(0.14, 0.16, 0.18, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0),
)
NOISES = {
    "mean-loss": "SGD's own",
    "label": "label noise, then SGD's own",
    "none": "none (gradient flow)",
}
STRENGTHS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# The values that an exported page reaches, instead of all.
EXPORTED = {
    "alpha": (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316),
    "step_size": (0.02, 0.05, 0.1, 0.14),
    "noise": ("mean-loss", "none"),
}


def controls() -> list[dict[str, Any]]:
    """The controls of the page in their order, as JSON can hold them.

    Each has the `name` of the field of `ExploreConfig` that it sets, a `label`, its
    `values`, the `texts` that are shown for them, its first `value`, whether it is a
    `slider` or a list, and whether it is among the `more` that are folded at first.
    """
    start = ExploreConfig()

    def control(name: str, label: str, values: Any, *, slider: bool, more: bool) -> dict:
        texts = [NOISES.get(value, f"{value:g}" if slider else str(value)) for value in values]
        return {
            "name": name,
            "label": label,
            "values": list(values),
            "texts": texts,
            "value": getattr(start, name),
            "slider": slider,
            "more": more,
        }

    return [
        control("alpha", "initialisation alpha", ALPHAS, slider=True, more=False),
        control("step_size", "step size gamma", STEP_SIZES, slider=True, more=False),
        control("noise", "noise", NOISES, slider=False, more=False),
        control("strength", "noise: 1/batch size, or delta", STRENGTHS, slider=True, more=False),
        control("label_steps", "steps with label noise", (50, 100, 200), slider=False, more=True),
        control("n", "examples n", (10, 20, 40, 80), slider=False, more=True),
        control("d", "features d", (20, 50, 100, 200), slider=False, more=True),
        control(
            "sparsity", "sparsity of the truth", (1, 2, 3, 5, 8, 12, 20, 30), slider=True, more=True
        ),
        control("problem_seed", "problem seed", range(51), slider=True, more=True),
        control("seeds", "seeds", (16, 64, 256), slider=False, more=True),
        control("steps", "steps before landing", (200, 400, 1000), slider=False, more=True),
    ]


def exported() -> list[dict[str, Any]]:
    """The controls of an exported page, which reach the values in `EXPORTED` only."""
    kept = []
    for control in controls():
        values = EXPORTED.get(control["name"])
        if values is not None:
            texts = dict(zip(control["values"], control["texts"], strict=True))
            kept.append(control | {"values": list(values), "texts": [texts[v] for v in values]})
    return kept


def config_of(values: dict[str, Any]) -> ExploreConfig:
    """The config for the values of the controls; those that are missing have their
    defaults.

    **Raises:** `ValueError` for a name or a value that no control has.
    """
    known = {control["name"]: control["values"] for control in controls()}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"there is no control {name!r}; the controls are {', '.join(known)}")
        if value not in known[name]:
            raise ValueError(f"{name} must be one of {known[name]}, but is {value!r}")
    return ExploreConfig(
        **{
            name: known[name][known[name].index(value)]  # of its own type, where 5 == 5.0
            for name, value in values.items()
        }
    )
