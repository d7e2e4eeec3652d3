"""Does SGD with amplified variance and smaller steps approach the flow? SVAG(l) for l = 1, 2, 4, 8, 16 (Li, Malladi, Arora 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, bootstrap, judge, kolmogorov
from sgfbias.core.descent import SVAG, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import MinibatchNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.plotting import COLOURS, new_figure, tidy

LMA = "Li, Malladi, Arora 2021"
LADDER = (1, 2, 4, 8, 16)
QUANTITIES = {"shrinkage": "log weight", "loss": "loss", "validation_error": "(target / input)^2"}
FINE = 8  # solver steps of the flow per iteration of SGD; means are extrapolated from this and half of it


@dataclasses.dataclass(frozen=True)
class SvagConfig:
    """SVAG(l), l = 1 (which is SGD), 2, 4, 8, 16, approaches the flow with SGD's exact noise."""

    seeds: int = 8192
    """Seeds of every algorithm."""
    step_size: float = 0.04
    """gamma, of SGD and of the flow; SVAG(l) takes steps of gamma / l. Much larger and single seeds dominate the means."""
    time: float = 4.0
    """Flow time at which they are compared; a whole number of steps."""
    alpha: float = 0.3
    """Initialisation of the diagonal network."""
    problem_seed: int = 3
    """Seed of the drawn problem, n = 6, d = 12, 3 non-zeros."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "time", "alpha"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        if self.seeds < 16:
            raise ValueError(f"seeds must be at least 16, but is {self.seeds}")
        if abs(self.time / self.step_size - round(self.time / self.step_size)) > 1e-6:
            raise ValueError(f"time must be a whole number of steps of {self.step_size}, but is {self.time}")


Config = SvagConfig
REFERENCES = {
    "li2021": "stochastic variance amplified gradient",
    "pesme2021": "mirror coordinates, Lemma 1",
    "li2017": "the stochastic modified equation of SGD",
}


def run(config: SvagConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions l and seed.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        problem = SparseRegression.sample(jax.random.key(config.problem_seed), n=6, d=12, sparsity=3, dtype=jnp.float64)
        network, gamma = DiagonalNetwork.init(alpha=config.alpha, d=12, dtype=jnp.float64), config.step_size
        steps, out = round(config.time / gamma), Columns()

        def measure(dynamics: Any, count: int, first: int) -> np.ndarray:
            keys = seeds(first, first + config.seeds)
            runs = simulate(dynamics, network, problem, keys=keys, steps=count, record=Record(times=2))
            values = jnp.stack(
                [jnp.mean(network.log_alpha - runs.final["log_alpha"], axis=1), runs.final["loss"], runs.final["validation_error"]]
            )
            return np.where(runs.status == Status.NON_FINITE, np.nan, values)

        say(f"flow with exact noise, {config.seeds:,} seeds")
        coarse, fine = (
            measure(StochasticGradientFlow(gamma, MinibatchNoise(1), dt=gamma / m, brownian_dt=gamma / FINE), steps * m, 0)
            for m in (FINE // 2, FINE)
        )
        again = measure(StochasticGradientFlow(gamma, MinibatchNoise(1), dt=gamma / FINE), steps * FINE, config.seeds)
        ladder, plain = [], []
        for l in LADDER:
            say(f"SVAG({l}) and SGD at gamma/{l}, {config.seeds:,} seeds")
            ladder.append(measure(SVAG(gamma, l, integral="batch"), steps * l, 0))
            plain.append(measure(StochasticGradientDescent(gamma / l, integral="batch"), steps * l, 0))
        for k, (name, units) in enumerate(QUANTITIES.items()):
            out.add(f"flow_{name}", ("seed",), (2 * fine - coarse)[k], units)
            out.add(f"flow_path_{name}", ("seed",), fine[k], units)
            out.add(f"flow_again_{name}", ("seed",), again[k], units)
            out.add(f"svag_{name}", ("l", "seed"), [v[k] for v in ladder], units)
            out.add(f"sgd_{name}", ("l", "seed"), [v[k] for v in plain], units)
        attrs = attributes({"study": "svag", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset({"l": np.asarray(LADDER), "seed": np.arange(config.seeds)}, attrs | {"study": "svag"})


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _gaps(ds: Any, name: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean of an algorithm minus that of the flow, by l, with standard errors."""
    flow = _known(ds[f"flow_{quantity}"].values)
    rows = [_known(row) for row in ds[f"{name}_{quantity}"].values]
    gap = np.array([row.mean() - flow.mean() for row in rows])
    error = np.array([np.hypot(row.std(ddof=1) / np.sqrt(row.size), flow.std(ddof=1) / np.sqrt(flow.size)) for row in rows])
    return gap, error


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    l = ds["l"].values
    gap, error = _gaps(ds, "svag", "shrinkage")
    # The standard error of the slope, from independent rows; the flow's share is common and enters the last rows most.
    seen = np.abs(gap) > 4 * error
    use = seen if seen.sum() >= 3 else np.ones_like(seen)
    drawn = gap + error * np.random.default_rng(0).normal(size=(4000, len(gap)))
    slopes = np.polyfit(np.log(l[use]), np.log(np.abs(drawn[:, use]).T), 1)[0]
    low, high = np.quantile(slopes, [0.005, 0.995])
    slope = float(np.polyfit(np.log(l[use]), np.log(np.abs(gap[use])), 1)[0])
    plain, plain_error = _gaps(ds, "sgd", "shrinkage")
    lost = int(sum(np.isnan(ds[f"svag_{q}"].values).sum() for q in QUANTITIES))

    def ladder(values: np.ndarray, errors: np.ndarray) -> str:
        return " -> ".join(f"{v:.1e}" for v in values) + f" (standard error at the last {errors[-1]:.0e})"

    rows = [
        judge(
            "SVAG(l) approaches the flow: mean shrinkage of log alpha minus the flow's falls like 1/l",
            LMA,
            predicted="slope -1 in l",
            measured=f"{ladder(gap, error)}: slope {slope:.2f} (99% interval {low:.2f} to {high:.2f}); {lost} values non-finite",
            tolerance="at least 3 rows seen at 4 standard errors; interval contains -1 or lies within .25 of it",
            holds=seen.sum() >= 3 and low - 0.25 < -1 < high + 0.25,
            reason="SVAG does not approach this flow",
        ),
        judge(
            "Control: SGD with steps of gamma/l, its variance not amplified, moves away from the flow",
            LMA,
            predicted="the gap grows with l, towards the flow's own shrinkage",
            measured=ladder(plain, plain_error),
            tolerance="at the last l above 10 times SVAG's",
            holds=abs(plain[-1]) > 10 * abs(gap[-1]),
            control=True,
        ),
    ]
    for quantity in ("shrinkage", "validation_error"):
        rows.append(_distance(ds, quantity))
    return rows


def _distance(ds: Any, quantity: str) -> Claim:
    """Two-sample distances of the laws of one quantity, against that of two samples of the flow."""
    first, again = (_known(ds[f"flow_{k}_{quantity}"].values) for k in ("path", "again"))
    noise = bootstrap(kolmogorov, first, again, draws=200)[1]
    distances = [float(kolmogorov(_known(row), first)) for row in ds[f"svag_{quantity}"].values]
    return judge(
        f"The law of the {quantity.replace('_', ' ')} approaches the flow's, Kolmogorov distance",
        LMA,
        predicted="0 as l grows",
        measured=", ".join(f"l = {l}: {v:.3f}" for l, v in zip(ds["l"].values, distances, strict=True))
        + f"; two samples of the flow {float(kolmogorov(first, again)):.3f} (99% interval up to {noise:.3f})",
        tolerance="at l = 16 below a third of that of SGD, or below the upper end for two samples of the flow",
        holds=distances[-1] < max(distances[0] / 3, noise),
        must_hold=quantity == "shrinkage",
    )


def plot(ds: Any) -> Any:
    """Errors of means against l, and the laws of the shrinkage."""
    figure, axes = new_figure(1, 2, size=(12, 4.4))
    l = ds["l"].values
    for name, colour, label in (("svag", COLOURS["sgd"], "SVAG(l)"), ("sgd", COLOURS["gd"], "SGD, step size γ/l")):
        gap, error = _gaps(ds, name, "shrinkage")
        axes[0, 0].errorbar(l, np.abs(gap), yerr=2 * error, marker="o", color=colour, label=label, capsize=2)
    gap, _ = _gaps(ds, "svag", "shrinkage")
    axes[0, 0].plot(l, np.abs(gap[0]) / l, "k:", linewidth=1, label="1/l")
    tidy(axes[0, 0], title="Mean shrinkage of log α against the flow's", x="l", y="|difference|, 2 standard errors")
    axes[0, 0].legend(frameon=False, fontsize=8)
    panel, flow = axes[0, 1], np.sort(_known(ds["flow_path_shrinkage"].values))
    shades = ("#fdd0a2", "#fdae6b", "#fd8d3c", "#e6550d", "#a63603")
    for row, colour, k in zip(ds["svag_shrinkage"].values, shades, l, strict=True):
        values = np.sort(_known(row))
        panel.plot(values, np.linspace(0, 1, values.size), color=colour, label=f"SVAG({k})", linewidth=1.5)
    panel.plot(flow, np.linspace(0, 1, flow.size), color=COLOURS["sgf"], label="flow", linestyle="--", linewidth=1.8)
    panel.set_xlim(0, float(np.quantile(flow, 0.99)))
    tidy(
        panel,
        title="Law of the shrinkage over seeds",
        x="shrinkage of log α",
        y="distribution function",
        x_scale="linear",
        y_scale="linear",
    )
    panel.legend(frameon=False, fontsize=8)
    return figure
