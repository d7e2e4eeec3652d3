"""How a `Landing` is printed and drawn."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sgfbias.core.checks import is_concrete


def picture(landing: Any) -> Any:
    """A Matplotlib `Figure` of the limits, their estimated errors and their validation
    errors.
    """
    from sgfbias.core import plot

    beta = np.atleast_2d(np.asarray(landing.beta, np.float64))
    beta = beta[np.isfinite(beta).all(axis=1)]
    samples = {"estimated error of the limit": landing.error}
    if landing.validation_error is not None:
        samples["validation error of the limit"] = landing.validation_error
    figure, axes = plot.grid(1 + len(samples))
    if len(beta):
        low, middle, high = np.quantile(beta, plot.SHOWN, axis=0)
        colour, features = plot.STATUS_COLOURS[0], np.arange(beta.shape[1])
        axes[0].vlines(features, low, high, color=colour, alpha=0.4, linewidth=2)
        axes[0].plot(features, middle, ".", color=colour, markersize=4)
    axes[0].set_title("limits, feature by feature", loc="left", fontsize=10)
    axes[0].set_xlabel("feature")
    axes[0].set_ylabel("beta")
    for panel, (name, values) in zip(axes[1:], samples.items(), strict=True):
        known = np.sort(np.atleast_1d(np.asarray(values, np.float64)))
        known = known[np.isfinite(known) & (known > 0)]
        share = np.arange(1, len(known) + 1) / max(np.size(values), 1)
        panel.step(known, share, where="post", color=plot.STATUS_COLOURS[0])
        if len(known) and known[-1] > 20 * known[0]:
            panel.set_xscale("log")
        panel.set_ylim(0, 1.02)
        panel.set_title(name, loc="left", fontsize=10)
        panel.set_xlabel("error")
        panel.set_ylabel("share of the seeds below")
    return figure


def table(landing: Any) -> str:
    """The HTML table that a notebook shows."""
    from sgfbias.core import plot

    known = np.atleast_1d(np.asarray(landing.error))
    return plot.table(
        "Landing",
        {
            "limits": landing.beta.shape,
            "median estimated error": f"{np.median(known):.1e}",
            "seeds with an estimate": f"{np.isfinite(known).sum()} of {known.size}",
            "converged": f"{np.sum(np.asarray(landing.selection.converged))} of {known.size}",
        },
    )


def text(landing: Any) -> str:
    """The line that is printed."""
    if not is_concrete(landing.beta):
        return f"Landing(beta {landing.beta.shape})"
    if landing.beta.ndim == 1:
        return (
            f"Landing(beta {landing.beta.shape}, error {float(landing.error):.1e}, remaining "
            f"loss integral {float(landing.remaining):.1e})"
        )
    known = jnp.isfinite(landing.error)
    beyond = int(jnp.sum(landing.radius >= 1))
    unstable = (
        f", {beyond} beyond mean-square stability: radius up to "
        f"{float(jnp.nanmax(landing.radius)):.3g}"
        if beyond
        else ""
    )
    return (
        f"Landing(beta {landing.beta.shape}, median error {float(jnp.median(landing.error)):.1e}, "
        f"{int(known.sum())} of {known.size} with an estimate{unstable})"
    )
