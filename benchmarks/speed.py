"""The section on speed of README.md."""

from __future__ import annotations

import json
from pathlib import Path

from tables import table

HERE = Path(__file__).parent
SETTINGS = ("0.02, alpha 0.1", "0.1, alpha 0.01")


def speed() -> str:
    """The section on speed of README.md, from the stored results alone."""

    def stored(name: str) -> dict:
        return json.loads((HERE / "results" / f"{name}.json").read_text())

    step, strong, job = stored("step_cost"), stored("strong_error"), stored("main_job")
    rates = step["million_seed_steps_per_second"]["float64"]
    floor = step["of_the_floor"]["float64"]["sgfbias, mirror"]
    wide, narrow = (strong[f"gamma {setting}"]["times_ours"] for setting in SETTINGS)
    peers = {
        "a tuned `lax.scan` in the weights": "lax.scan in w",
        "that scan, one tile per core as ours": "lax.scan in w, a tile per core",
        "Diffrax with its fast `UnsafeBrownianPath`": "Diffrax in w, UnsafeBrownianPath",
        "Diffrax with `VirtualBrownianTree`": "Diffrax in w, VirtualBrownianTree",
        "a NumPy loop, one seed at a time": "NumPy in w, one seed",
    }
    rows = [
        (
            words,
            *map(
                _times, (rates["sgfbias, mirror"] / rates[name], wide.get(name), narrow.get(name))
            ),
        )
        for words, name in peers.items()
    ]
    head = ("times faster than", "per step", *(f"to an error of 1e-3, gamma {s}" for s in SETTINGS))
    return (
        f"On two CPU cores in float64 (n = 40, d = 100, 256 seeds), in turns; a step takes "
        f"{1 / floor:.2g} times as long as its two matrix products alone. In mirror coordinates "
        "fewer steps reach the same strong error, unless the step size is near the stability "
        f"edge.\n\n{table(head, rows)}\n\n"
        f"The main job, 256 seeds of 100,000 steps of SGD and of its flow with certificates and a "
        f"picture, takes {job['seconds']:.0f} s. [benchmarks/README.md](benchmarks/README.md) has "
        "everything that was measured, with pictures. "
        f"{_few(stored('small'))} GPUs have not been measured."
    )


def _few(r: dict) -> str:
    """One sentence on runs of few seeds."""
    flow = r["times_the_scan"]["flow, mirror"]["float64"]
    counts = ("1", "4", "16", "64")
    calls, steps = (", ".join(f"{flow[c][what]:.2g}" for c in counts) for what in ("call", "steps"))
    fixed = r["milliseconds_of_a_call_of_one_step"]
    return (
        f"With few seeds a call's own {fixed:.0f} ms count: calls of 4,000 steps with 1, 4, 16 and "
        f"64 seeds are {calls} times as fast as the tuned scan, and their steps alone {steps} "
        "times."
    )


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
