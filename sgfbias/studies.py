"""The studies by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

# Each module has `Config`, a frozen dataclass, run(config, say=...), claims(dataset), plot(dataset), and `REFERENCES`, what it cites (see
# citing.py); some have `PAPER`, the config of the published size.
STUDIES = {
    "alpha-shape": "sgfbias.diagonal.alpha_shape",
    "alpha-sweep": "sgfbias.diagonal.alpha_sweep",
    "diagonal": "sgfbias.diagonal.study",
    "digits": "sgfbias.digits.study",
    "edge-of-stability": "sgfbias.diagonal.edge_of_stability",
    "hyper-gradient": "sgfbias.diagonal.hyper_gradient",
    "kernel-to-rich": "sgfbias.diagonal.kernel_to_rich",
    "label-noise-lasso": "sgfbias.diagonal.label_noise_lasso",
    "momentum": "sgfbias.diagonal.momentum",
    "noise-anatomy": "sgfbias.diagonal.noise_anatomy",
    "noise-schedule": "sgfbias.diagonal.noise_schedule",
    "noisy-sgd": "sgfbias.diagonal.noisy_sgd",
    **{f"pesme2021.fig{k}": f"sgfbias.diagonal.pesme2021.fig{k}" for k in range(1, 6)},
    "saddle-to-saddle": "sgfbias.diagonal.saddle_to_saddle",
    "svag": "sgfbias.diagonal.svag",
    "weak-error": "sgfbias.diagonal.weak_error",
}


def study_named(name: str) -> Any:
    """The module of a study.

    **Raises:** `ValueError` if there is none of that name.
    """
    if name not in STUDIES:
        raise ValueError(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    return importlib.import_module(STUDIES[name])
