"""Write benchmarks/README.md: tables and pictures of the stored results.

python benchmarks/render.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from precision import SCHEME_OF
from speed import speed
from tables import number, table

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"


def save(figure: Any, name: str) -> str:
    """Store a picture, and return the Markdown that shows it."""
    PICTURES.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(PICTURES / f"{name}.png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return f"![{name.replace('_', ' ')}](pictures/{name}.png)"


def step_cost(r: dict) -> str:
    """The section on the cost of a step."""
    rates, share = r["million_seed_steps_per_second"], r["of_the_floor"]
    names = sorted(rates["float64"], key=lambda name: rates["float64"][name])
    figure, axes = plt.subplots(figsize=(9, 5))
    for k, dtype in enumerate(("float32", "float64")):
        axes.barh(
            [i + 0.2 - 0.4 * k for i in range(len(names))],
            [rates[dtype][n] for n in names],
            height=0.4,
            label=dtype,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("million seed-steps per second")
    axes.legend()
    rows = [
        (
            n,
            *(number(rates[t][n]) for t in ("float32", "float64")),
            *(number(share[t][n]) for t in ("float32", "float64")),
        )
        for n in reversed(names)
    ]
    return (
        save(figure, "step_cost")
        + "\n\n"
        + table(("", "float32", "float64", "share of the floor, float32", "float64"), rows)
    )


def strong_error(r: dict) -> str:
    """The section on the time to a strong error."""
    settings = [key for key in r if key.startswith("gamma")]
    cost, parts = r["million_seed_steps_per_second"], []
    figure, axes = plt.subplots(1, len(settings), figsize=(4 * len(settings), 3.6), squeeze=False)
    shown = {
        "lax.scan in w": "Euler in w",
        "sgfbias, mirror": "Euler, mirror",
        "sgfbias, mirror, predictor-corrector": "predictor-corrector, mirror",
        "sgfbias, mirror, Runge-Kutta-Chebyshev": "Runge-Kutta-Chebyshev, mirror",
        "Diffrax in w, VirtualBrownianTree": "Euler in w",
    }
    ends = {"gamma 0.02, alpha 0.1": 100, "gamma 0.1, alpha 0.01": 40, "gamma 0.1, alpha 0.001": 40}
    for ax, setting in zip(axes[0], settings, strict=True):
        gamma = float(setting.split(",")[0].split(" ")[1])
        for name, scheme in shown.items():
            ladder = r[setting]["errors_by_width_over_gamma"][scheme]
            points = [
                (64 * ends[setting] / (gamma * float(w)) / (cost[name] * 1e6), e)
                for w, e in ladder.items()
                if math.isfinite(e)
            ]
            ax.loglog(*zip(*points, strict=True), "o-", ms=3, label=name)
        ax.axhline(1e-3, color="0.6", lw=0.8)
        ax.set_title(setting, fontsize=9)
        ax.set_xlabel("seconds for 64 seeds")
    axes[0][0].set_ylabel("strong error of beta")
    axes[0][-1].legend(fontsize=6)
    for setting in settings:
        found = r[setting]
        target = r["target"].get(setting, {})
        width = found["width_over_gamma_for_1e-3"]
        rows = [
            (
                name,
                number(width[SCHEME_OF[name]]),
                number(found["seconds_for_64_seeds"][name]),
                number(ratio),
                number(target[name]) if name in target else "",
            )
            for name, ratio in sorted(found["times_ours"].items(), key=lambda item: -item[1])
        ]
        parts.append(
            f"{setting}:\n\n"
            + table(
                (
                    "to an error of 1e-3",
                    "step / gamma",
                    "seconds, 64 seeds",
                    "seconds / our best",
                    "target",
                ),
                rows,
            )
        )
    return save(figure, "strong_error") + "\n\n" + "\n\n".join(parts)


def weak_error(r: dict) -> str:
    """The section on the time to an error of the mean."""
    settings = [key for key in r if key.startswith("gamma")]
    figure, axes = plt.subplots(1, len(settings), figsize=(4 * len(settings), 3.6), squeeze=False)
    parts = []
    for ax, setting in zip(axes[0], settings, strict=True):
        rows, schemes = r[setting]["rows"], {}
        for name, row in rows.items():
            schemes.setdefault(name.rsplit(", ", 1)[0], []).append(row)
        for scheme, found in schemes.items():
            points = [
                (
                    v["seconds_for_256_seeds"],
                    abs(v["loss_integral"]["relative_error"]),
                    2 * v["loss_integral"]["standard_error"],
                )
                for v in found
                if v["diverged"] < 0.05 and abs(v["loss_integral"]["relative_error"]) < 3
            ]
            x, y, e = zip(*points, strict=True)
            ax.errorbar(x, y, yerr=e, fmt="o-", ms=3, lw=0.8, label=scheme)
        ax.axhline(0.02, color="0.6", lw=0.8)
        ax.set(xscale="log", yscale="log", ylim=(1e-4, 3), xlabel="seconds for 256 seeds, landed")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(setting, fontsize=9)
        first = r[setting]["first_within_2_percent"]
        parts.append(
            f"{setting}: the fastest within 2% is {first['name']} ({number(first['seconds'])} s; "
            "target 1 s).\n\n"
            + table(
                ("", "diverged", "validation error", "± (1 s.e.)", "loss integral", "±", "seconds"),
                (
                    (
                        name,
                        number(row["diverged"]),
                        *(
                            number(row[q][k])
                            for q in ("validation_error", "loss_integral")
                            for k in ("relative_error", "standard_error")
                        ),
                        number(row["seconds_for_256_seeds"]),
                    )
                    for name, row in rows.items()
                ),
            )
        )
    axes[0][0].set_ylabel("relative error of the mean loss integral")
    axes[0][-1].legend(fontsize=6)
    return save(figure, "weak_error") + "\n\n" + "\n\n".join(parts)


def landed_answer(r: dict) -> str:
    """The section on the time to the landed answer."""
    need = r["iterations_for_1e-3"]
    text = (
        f"{_answers(r)}\n\nThe iterate itself needs {number(need['value'])} iterations "
        f"({need['how']}). The "
        f"loop takes {number(r['numpy_loop_steps_per_second'])} steps per second and ten steps "
        f"per iteration, hence {number(r['numpy_loop_seconds'])} s for 256 seeds (extrapolated). "
        f"That is **{number(r['times_ours'])} times** our time; the target is "
        f"{number(r['target']['times_ours'])} times."
    )
    # Results that were stored earlier have no part on SGD.
    return "\n\n".join([text, *(_landed_sgd(*item) for item in r.get("sgd", {}).items())])


def _answers(r: dict) -> str:
    """A table of errors and times by the number of steps before landing."""
    return table(
        (
            "steps before landing",
            "relative error",
            "seconds of a later call, 256 seeds",
            "seconds of the first call",
        ),
        [
            (
                steps,
                *(number(row[k]) for k in ("relative_error", "warm_seconds", "first_call_seconds")),
            )
            for steps, row in r["ours_by_steps"].items()
        ],
    )


def _landed_sgd(alpha: str, r: dict) -> str:
    """The part on SGD's own limit at one alpha."""
    need, rates, spans, times = (
        r[key]
        for key in (
            "iterations_for_1e-3",
            "numpy_loop_seed_steps_per_second",
            "numpy_loop_seconds",
            "times_ours",
        )
    )
    said = "; ".join(
        f"NumPy loop with {name}: {number(rates[name])} steps of a seed per second, hence "
        f"{number(spans[name])} s for 256 seeds (extrapolated), "
        + (f"**{number(times[name])} times** our time" if times else "and ours missed the error")
        for name in rates
    )
    return (
        f"SGD with batches of one example, to its own limit, at alpha = {alpha} and gamma = 0.05:"
        f"\n\n{_answers(r)}\n\nSGD's iterate needs {number(need['value'])} iterations "
        f"({need['how']}). {said}. The target is {number(r['target']['times_ours'])} times, one "
        "seed at a time."
    )


def scaling(r: dict) -> str:
    """The section on seeds, size, steps and memory."""
    by_seeds = r["million_seed_steps_per_second_by_seeds"]
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for name, row in by_seeds.items():
        axes.loglog([int(s) for s in row], list(row.values()), "o-", ms=4, label=name)
    axes.set(xlabel="seeds", ylabel="million seed-steps per second")
    axes.legend(fontsize=8)
    counts = list(by_seeds["sgfbias"])
    return "\n\n".join(
        (
            save(figure, "scaling"),
            table(
                ("seeds", *counts),
                ((name, *(number(row[c]) for c in counts)) for name, row in by_seeds.items()),
            ),
            table(
                ("n x d", "million seed-steps per second", "share of the two products"),
                (
                    (
                        size,
                        number(row["million_seed_steps_per_second"]),
                        number(row["of_the_products"]),
                    )
                    for size, row in r["by_n_x_d"].items()
                ),
            ),
            table(
                ("steps, 256 seeds", "seconds", "million seed-steps per second"),
                (
                    (
                        f"{int(s):,}",
                        number(row["seconds"]),
                        number(row["million_seed_steps_per_second"]),
                    )
                    for s, row in r["by_steps"].items()
                ),
            ),
            table(
                ("peak memory", "GB"),
                ((name, number(value)) for name, value in r["peak_gb"].items()),
            ),
        )
    )


def compile_time(r: dict) -> str:
    """The section on compiling."""
    first, warm = r["first_call_beyond_warm_seconds"], r["warm_call_seconds"]
    return table(
        ("", "first call minus a later one, s", "later call, s"),
        ((name, number(first[name]), number(warm[name])) for name in first),
    )


def random_numbers(r: dict) -> str:
    """The section on random numbers."""
    rows = sorted(r["nanoseconds"].items(), key=lambda item: item[1])
    return (
        table(("", "ns per number"), ((name, number(value)) for name, value in rows))
        + f"\n\nThis package refuses {r['refused']}."
    )


def linear_three(r: dict) -> str:
    """The section on the public protocol."""
    rates = r["million_trajectories_per_second"]
    counts = list(next(iter(rates.values())))
    rows = ((name, *(number(row[c]) for c in counts)) for name, row in rates.items())
    # This is not measured here. It is stated because the best row of the table is not
    # the fastest program that exists.
    julia = (
        "Julia's fused kernels (DiffEqGPU.jl) are reported to be 30 to 80 times ahead of JAX "
        "on a CPU at this tiny size; they were not run here."
    )
    return table(("million trajectories per second", *counts), rows) + f"\n\n{julia}"


def leaves(r: dict, lead: str = "") -> list[tuple[str, Any]]:
    """The numbers and texts of a result, by their place in it."""
    rows: list[tuple[str, Any]] = []
    for key, value in r.items():
        if isinstance(value, dict):
            rows += leaves(value, f"{lead}{key}: ")
        elif isinstance(value, int | float | str):
            rows.append((lead + key, value))
    return rows


META = (
    "name",
    "what",
    "cpu",
    "vectors",
    "cores",
    "python",
    "versions",
    "target",
    "stages",
    "device",
)


def plain(r: dict) -> str:
    """A section with one table of all numbers and their targets."""
    goals = dict(leaves(r.get("target", {})))
    body = {key: value for key, value in r.items() if key not in META}
    return table(
        ("", "measured", "target"),
        ((k.replace("_", " "), number(v), number(goals.get(k, ""))) for k, v in leaves(body)),
    )


def few_seeds(r: dict) -> str:
    """The section on runs of few seeds."""
    found = r["times_the_scan"]
    counts = list(dict.fromkeys(c for rows in found.values() for row in rows.values() for c in row))

    def cell(row: dict, count: str) -> str:
        value = row.get(count)
        return "" if value is None else f"{value['call']:.2g} ({value['steps']:.2g})"

    lines = (
        (f"{name}, {dtype}", *(cell(row, count) for count in counts))
        for name, rows in found.items()
        for dtype, row in rows.items()
    )
    fixed = number(r["milliseconds_of_a_call_of_one_step"])
    return (
        table(("times the scan, by seeds", *counts), lines)
        + f"\n\nA warm call of one seed and one step takes {fixed} ms."
    )


SECTIONS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "step_cost": ("Cost of a step", step_cost),
    "strong_error": ("Time to a strong error", strong_error),
    "weak_error": ("Time to an error of the mean", weak_error),
    "landed_answer": ("Time to the landed answer", landed_answer),
    "main_job": ("The main job", plain),
    "scaling": ("Seeds, size, steps, memory", scaling),
    "small": ("Few seeds", few_seeds),
    "bit_attacks": ("Attacks on bits", plain),
    "recurrent_networks": ("Recurrent networks", plain),
    "mean_field": ("Dynamical mean-field theory", plain),
    "margins": ("Max-margin directions", plain),
    "compile_time": ("Compiling", compile_time),
    "import_time": ("Importing", plain),
    "stale_programs": ("Looking for changes that stored programs miss", plain),
    "random_numbers": ("Random numbers", random_numbers),
    "linear_three": ("A public protocol: three linear states", linear_three),
    "against_scan": ("Beside a hand-written scan", plain),
    "flow_step": ("A step of any model's flow", plain),
    "gradients": ("Gradients", plain),
    "landed": ("Landing at alpha = .001", plain),
    "sweep": ("Sweeps", plain),
    "gpu": ("GPU", plain),
}


README = HERE.parent / "README.md"
BEGIN, END = "<!-- speed: written by benchmarks/render.py -->", "<!-- end of speed -->"


def main() -> None:
    """Write benchmarks/README.md, its pictures, and the speed of README.md."""
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{speed()}\n{END}{rest.split(END)[1]}")
    parts = [
        "# Benchmarks",
        "This file is written by `python benchmarks/render.py` from the results in "
        "`benchmarks/results/`, which `sgfbias bench` measures. The contenders run in one process "
        "tree and take turns, medians of repeats are kept, and compilation is not counted. "
        "[NOTES.md](NOTES.md) says what was tried and why it is not faster. Machines are noisy, so "
        "trust ratios rather than digits.",
    ]
    for name, (title, section) in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        machine = f"{result['cpu']}, {result['cores']} cores, Python {result['python']}, {versions}"
        parts += [
            f"## {title}",
            str(result["what"]),
            section(result),
            f"<sub>{machine}; `sgfbias bench {name}`</sub>",
        ]
    (HERE / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
