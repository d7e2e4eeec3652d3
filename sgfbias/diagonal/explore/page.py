"""The controls and texts of the explorer, which do not need marimo."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgfbias.diagonal.explore.compute import ExploreConfig, Explored

# Sizes come from short lists, because each size is compiled once. All other values are
# traced.
NOISES = {
    "SGD's own (mean-loss)": "mean-loss",
    "label noise, then SGD's own": "label",
    "none (gradient flow)": "none",
}
SIZES = {
    "n": (10, 20, 40, 80),
    "d": (20, 50, 100, 200),
    "seeds": (16, 64, 256),
    "steps": (200, 400, 1000),
    "label_steps": (50, 100, 200),
}
SPARSITIES = (1, 2, 3, 5, 8, 12, 20, 30)
LOG_ALPHAS = tuple(float(v) for v in np.arange(-5, 1.01, 0.25))
STEP_SIZES = (
    0.005,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.07,
    0.08,
    0.09,
    0.1,
    0.11,
    0.12,
    0.14,
    0.16,
    0.18,
    0.2,
    0.25,
    0.3,
    0.4,
    0.6,
    1.0,
)
STRENGTHS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def controls(ui: Any) -> dict[str, Any]:
    """Sliders and dropdowns of marimo's `ui`, by the name of the value that they set.
    `log_alpha` is log10 alpha.
    """
    start = ExploreConfig()

    def slider(label: str, steps: tuple, value: float) -> Any:
        return ui.slider(
            steps=list(steps),
            value=value,
            label=label,
            show_value=True,
            debounce=True,
            full_width=True,
        )

    def choice(name: str, label: str) -> Any:
        return ui.dropdown(
            {str(v): v for v in SIZES[name]},
            value=str(getattr(start, name)),
            label=label,
            full_width=True,
        )

    return {
        "log_alpha": slider("log10 alpha", LOG_ALPHAS, float(np.log10(start.alpha))),
        "step_size": slider("step size gamma", STEP_SIZES, start.step_size),
        "noise": ui.dropdown(
            NOISES,
            value=next(k for k, v in NOISES.items() if v == start.noise),
            label="noise",
            full_width=True,
        ),
        "strength": slider("noise strength: variance, or delta", STRENGTHS, start.strength),
        "label_steps": choice("label_steps", "steps with label noise"),
        "n": choice("n", "examples n"),
        "d": choice("d", "features d"),
        "sparsity": slider("sparsity of the truth", SPARSITIES, start.sparsity),
        "problem_seed": ui.slider(
            start=0,
            stop=50,
            value=0,
            label="problem seed",
            show_value=True,
            debounce=True,
            full_width=True,
        ),
        "seeds": choice("seeds", "seeds"),
        "steps": choice("steps", "steps before landing"),
    }


def config_of(values: dict[str, Any]) -> ExploreConfig:
    """The config for the values of the controls. Alpha is rounded to three digits, as
    it is shown.
    """
    rest = {name: value for name, value in values.items() if name != "log_alpha"}
    return ExploreConfig(alpha=float(f"{10 ** values['log_alpha']:.3g}"), **rest)


def words(explored: Explored) -> str:
    """A description of the picture in one sentence."""
    config = explored.config
    return (
        f"alpha = {config.alpha:g}, gamma = {config.step_size:g}, {config.noise} noise: runs, "
        "solution curve, selected solution, unit ball"
    )


def summary(explored: Explored) -> str:
    """The numbers behind the picture, as Markdown."""
    config, runs = explored.config, explored.runs
    alone, star = explored.descent, explored.beta_star
    kept = runs.validation_error[runs.landed]
    low, middle, high = np.quantile(kept, [0.05, 0.5, 0.95]) if kept.size else [np.nan] * 3
    rows = {"gradient flow": f"{alone.validation_error[0]:.2e}"}
    if config.noise != "none":
        rows["with noise (5% to 95%)"] = f"{middle:.2e} ({low:.1e} to {high:.1e})"
    rows |= {
        name: f"{np.sum(np.square(beta - star)):.2e}"
        for name, beta in (("minimum l1", explored.l1), ("minimum l2", explored.l2))
    }
    table = (
        f"| validation error of | {' | '.join(rows)} |\n|{'---|' * (len(rows) + 1)}\n| the "
        f"solution | {' | '.join(rows.values())} |"
    )
    count = runs.diverged.size
    lines = [table]
    if config.noise != "none":
        lines.append(
            f"{runs.landed.sum()} of {count} seeds landed, {runs.diverged.sum()} diverged."
        )
        if kept.size:
            lines[-1] += (
                f" Effective alpha (median) {explored.effective_alpha:.2e}, from {config.alpha:g}. "
                "The landed solution's distance from the limit is about "
                f"{np.median(runs.error[runs.landed]):.1e}."
            )
    control = (
        ""
        if config.noise == "none"
        else f" (with the alpha of the start instead: {explored.gap_start:.1e})"
    )
    lines.append(
        "Landing solves the same program as the prediction, so circles and dots agree by "
        "construction. The independent test is a run in weights, where the theorem can fail: "
        "arcsinh(beta / 2 alpha_t²) is in the row space of the data up to a relative error of "
        f"{explored.gap:.1e}{control}. Computed in {explored.seconds:.2f} s."
    )
    return "\n\n".join(lines)
