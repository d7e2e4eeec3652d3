"""One problem under every noise model: is it the noise's scale, its shape or its support that matters?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, judge, median_interval
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.noise import AbstractNoise, IsotropicNoise, LabelNoise, MeanLossNoise, MinibatchNoise, NoNoise, PerSampleNoise
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.diagonal.network import DiagonalNetwork
from sgfbias.diagonal.problem import SparseRegression
from sgfbias.diagonal.selection import select_many
from sgfbias.plotting import band, new_figure, tidy

P21 = "Pesme, Pillaud-Vivien, Flammarion 2021"
SSD = "after Sander, Sylvestre, Durmus 2024"
WIDTHS = (1.0, 0.25, 0.0625)
LONG = Record(times=120)
LABELS = {
    "none": "none",
    "mean-loss": "mean-loss",
    "per-sample": "per-sample",
    "minibatch": "exact, batch 1",
    "minibatch-4": "exact, batch 4 without replacement",
    "label": "label noise for a while",
    "sum": "exact, batch 1 + label noise",
    "isotropic": "mean-loss + isotropic",
}
SOURCES = {"label": f"{P21}, section 5.3", "isotropic": SSD, "per-sample": f"{P21}, appendix E.1"}


@dataclasses.dataclass(frozen=True)
class NoiseAnatomyConfig:
    """One problem under every noise model: which keep the bias theorem, which break it, effective alpha and validation error."""

    seeds: int = 256
    """Seeds per noise model."""
    steps: int = 10_000
    """Iterations of the long runs, in mirror coordinates."""
    step_size: float = 0.05
    """gamma."""
    alpha: float = 0.1
    """Scale of the initialisation."""
    n: int = 20
    """Examples."""
    d: int = 50
    """Features."""
    sparsity: int = 3
    """Non-zero entries of the truth."""
    problem_seed: int = 0
    """Seed of the drawn problem."""
    delta: float = 0.3
    """Label noise, added to every derivative of the loss (half of what is added to the label)."""
    delta_steps: int = 500
    """Iterations for which it is on."""
    isotropic: float = 0.5
    """sigma of the isotropic noise."""
    weights_seeds: int = 64
    """Seeds of the test in weights coordinates."""
    weights_steps: int = 300
    """Its length, in iterations."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        for name in ("step_size", "alpha", "isotropic", "delta"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        for name in ("steps", "delta_steps", "weights_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name in ("seeds", "weights_seeds"):
            if getattr(self, name) < 8:
                raise ValueError(f"{name} must be at least 8, but is {getattr(self, name)}")
        if self.n < 5:
            raise ValueError(f"n must be at least 5 for batches of 4, but is {self.n}")


Config = NoiseAnatomyConfig


def models(config: NoiseAnatomyConfig) -> dict[str, AbstractNoise]:
    """The noise models by name."""
    delta = _Pulse(config.delta, config.delta_steps)
    return {
        "none": NoNoise(),
        "mean-loss": MeanLossNoise(),
        "per-sample": PerSampleNoise(),
        "minibatch": MinibatchNoise(1),
        "minibatch-4": MinibatchNoise(4, replace=False),
        "label": LabelNoise(delta),
        "sum": MinibatchNoise(1) + LabelNoise(delta, mean_loss=False),
        "isotropic": MeanLossNoise() + IsotropicNoise(config.isotropic),
    }


@dataclasses.dataclass(frozen=True)
class _Pulse:
    """A schedule: a level, and 0 from some iteration on."""

    level: float
    until: int

    def __call__(self, iteration: Any) -> Any:
        return jnp.where(iteration < self.until, self.level, 0.0)


def run(config: NoiseAnatomyConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage.

    **Returns:** an `xarray.Dataset` with dimensions noise, seed, time, feature, dt and weights_seed.

    **Raises:** `ValueError` for values that make no sense.
    """
    config.check()
    with jax.enable_x64(True):
        key = jax.random.key(config.problem_seed)
        problem = SparseRegression.sample(key, n=config.n, d=config.d, sparsity=config.sparsity, dtype=jnp.float64)
        network = DiagonalNetwork.init(alpha=config.alpha, d=config.d, dtype=jnp.float64)
        noises = models(config)
        rows = []
        for name, noise in noises.items():
            say(f"{LABELS[name]}: {config.weights_seeds} seeds in weights, {config.seeds} seeds x {config.steps:,} iterations in mirror")
            rows.append({**_theorem(config, problem, network, noise), **_long(config, problem, network, noise)})
        out = Columns()
        dims = {
            "gap": (("dt", "weights_seed"), "relative distance"),
            "weights_shrinkage": (("weights_seed",), "log weight"),
            "law_shrinkage": (("weights_seed",), "log weight"),
            "status": (("seed",), "1"),
            "log_alpha": (("seed", "feature"), "log weight"),
            "landed_error": (("seed",), "(target / input)^2"),
            "fibre_gap": (("seed",), "relative distance"),
            "validation_error": (("seed", "time"), "(target / input)^2"),
        }
        for name, (rest, units) in dims.items():
            out.add(name, ("noise", *rest), np.stack([np.asarray(row[name]) for row in rows]), units)
        coords = {
            "noise": list(noises),
            "dt": ("dt", np.asarray(WIDTHS), {"units": "gamma"}),
            "time": ("time", np.asarray(rows[0]["times"]), {"units": "flow time"}),
            "seed": np.arange(config.seeds),
        }
        attrs = attributes({"study": "noise-anatomy", **dataclasses.asdict(config)}, dtype=jnp.float64, keys=seeds(0, config.seeds))
        return out.dataset(coords, attrs | {"study": "noise-anatomy", "log_alpha_start": repr(float(np.log(config.alpha)))})


def _theorem(config: NoiseAnatomyConfig, problem: SparseRegression, network: DiagonalNetwork, noise: AbstractNoise) -> dict[str, Any]:
    """Theorem 1 at finite time where it can fail, Euler in the weights at three widths on one path; and the law of log alpha."""
    keys, gamma, gaps = seeds(0, config.weights_seeds), config.step_size, []
    for width in WIDTHS:
        fine = round(1 / width)
        flow = StochasticGradientFlow(gamma, noise, dt=gamma * width, brownian_dt=gamma * WIDTHS[-1])
        steps, record = config.weights_steps * fine, Record(times=2)
        runs = simulate(flow, network, problem, keys=keys, steps=steps, coordinates="weights", record=record)
        bad = runs.status == Status.NON_FINITE
        beta, log_alpha = (jnp.where(bad[:, None], s, runs.final[k]) for k, s in (("beta", 0.0), ("log_alpha", network.log_alpha)))
        predicted = select_many(problem, log_alpha, targets=beta @ problem.X.T).beta
        distance = jnp.linalg.norm(beta - predicted, axis=1) / jnp.linalg.norm(beta, axis=1)
        gaps.append(np.where(bad, np.nan, distance))
    mirror = simulate(flow, network, problem, keys=keys, steps=steps, record=LONG)

    def shrinkage(values: Array) -> np.ndarray:
        return np.asarray(jnp.mean(network.log_alpha - values, axis=1))

    return {
        "gap": np.stack(gaps),
        "weights_shrinkage": np.where(bad, np.nan, shrinkage(runs.final["log_alpha"])),
        "law_shrinkage": shrinkage(mirror.final["log_alpha"]),
    }


def _long(config: NoiseAnatomyConfig, problem: SparseRegression, network: DiagonalNetwork, noise: AbstractNoise) -> dict[str, Any]:
    """Effective alpha, the solution it selects, and whether the iterate is the minimiser on its fibre."""
    # Widths as in the other runs, so that the compiled program is theirs.
    flow = StochasticGradientFlow(config.step_size, noise, dt=config.step_size, brownian_dt=config.step_size)
    runs = simulate(flow, network, problem, keys=seeds(0, config.seeds), steps=config.steps, record=LONG)
    bad = runs.status == Status.NON_FINITE
    beta = jnp.where(bad[:, None], 0.0, runs.final["beta"])
    log_alpha = jnp.where(bad[:, None], network.log_alpha, runs.final["log_alpha"])
    landed = select_many(problem, log_alpha).beta
    fibre = select_many(problem, log_alpha, targets=beta @ problem.X.T).beta
    gap = jnp.linalg.norm(beta - fibre, axis=1) / jnp.linalg.norm(beta, axis=1)
    return {
        "status": runs.status,
        "log_alpha": jnp.where(bad[:, None], jnp.nan, log_alpha),
        "landed_error": jnp.where(bad, jnp.nan, jax.vmap(problem.validation_error)(landed)),
        "fibre_gap": jnp.where(bad, jnp.nan, gap),
        "validation_error": runs["validation_error"],
        "times": runs.times,
    }


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    names = [str(name) for name in ds["noise"].values]
    return [
        *(_keeps(ds, name) for name in names if name != "isotropic"),
        _breaks(ds),
        *(_law(ds, name) for name in names),
        _wrong_law(ds),
        *_outcomes(ds),
    ]


def _ladder(ds: Any, name: str) -> tuple[np.ndarray, float, int]:
    """Median gaps over the seeds that survive at every width, their slope in dt, and how many those are."""
    gaps = ds["gap"].sel(noise=name).values
    alive = np.isfinite(gaps).all(axis=0)
    median = np.median(gaps[:, alive], axis=1) if alive.any() else np.full(len(gaps), np.nan)
    return median, float(np.polyfit(np.log(ds["dt"].values), np.log(median), 1)[0]) if alive.any() else np.nan, int(alive.sum())


def _shown(median: np.ndarray, slope: float, alive: int) -> str:
    return " -> ".join(f"{v:.1e}" for v in median) + f" at dt/gamma = 1, 1/4, 1/16: slope {slope:.2f}, {alive} seeds"


def _keeps(ds: Any, name: str) -> Claim:
    median, slope, alive = _ladder(ds, name)
    return judge(
        f"{LABELS[name]}: the iterate minimises phi_alpha_T on its fibre, alpha_T = sqrt(w_+ w_-), in weights coordinates",
        SOURCES.get(name, f"{P21}, Theorem 1"),
        predicted="relative gap -> 0 with dt, strong order >= 1/2",
        measured=_shown(median, slope, alive),
        tolerance="slope >= .4",
        holds=slope >= 0.4,
        reason="this noise leaves the span of the rows",
    )


def _breaks(ds: Any) -> Claim:
    median, slope, alive = _ladder(ds, "isotropic")
    others = max(_ladder(ds, str(name))[0][-1] for name in ds["noise"].values if name != "isotropic")
    return judge(
        "Control: noise with another support, isotropic, fails the same test",
        SSD,
        predicted="a gap that stays",
        measured=_shown(median, slope, alive) + f"; {median[-1] / others:.0f} times the largest of the others at the finest dt",
        tolerance="slope < .2 and at least 3 times",
        holds=slope < 0.2 and median[-1] > 3 * others,
        control=True,
    )


def _law(ds: Any, name: str) -> Claim:
    weights, law = ds["weights_shrinkage"].sel(noise=name).values, ds["law_shrinkage"].sel(noise=name).values
    alive = np.isfinite(weights)
    gap = weights[alive] - law[alive]
    scale = float(np.mean(law[alive]))
    error = float(np.std(gap, ddof=1) / np.sqrt(alive.sum()))
    # Euler's log(w_+ w_-) in weights has a bias of order dt against the law: dt/gamma = 1/16 of the shrinkage is generous.
    return judge(
        f"{LABELS[name]}: log alpha moves as its law says, weights coordinates against the law on the same path",
        SOURCES.get(name, f"{P21}, eq. (8)"),
        predicted=f"mean shrinkage {scale:.4f}",
        measured=f"off by {gap.mean():+.1e} (standard error {error:.1e})",
        tolerance="1/16 of the shrinkage, 3 standard errors and, without noise, 1/16 of gamma",
        holds=abs(gap.mean()) <= scale / 16 + 3 * error + (_gamma(ds) / 16 if name == "none" else 0),
    )


def _wrong_law(ds: Any) -> Claim:
    weights, law = ds["weights_shrinkage"].sel(noise="minibatch").values, ds["law_shrinkage"].sel(noise="minibatch-4").values
    off = abs(np.nanmean(weights) / np.mean(law) - 1)
    return judge(
        "Control: the law of another scale does not fit: batches of 1 against the law of batches of 4",
        f"{P21}, eq. (8)",
        predicted="off by the ratio of the scales",
        measured=f"off by {off:.0%}",
        tolerance="above 50%",
        holds=off > 0.5,
        control=True,
    )


def _gamma(ds: Any) -> float:
    import json

    return float(json.loads(ds.attrs["config"])["step_size"])


def _outcomes(ds: Any) -> list[Claim]:
    start = float(ds.attrs["log_alpha_start"])
    names = [str(name) for name in ds["noise"].values]
    alpha = {name: float(np.exp(np.nanmean(ds["log_alpha"].sel(noise=name).values))) for name in names}
    error = {name: np.where(np.isfinite(v), v, np.inf) for name in names for v in [ds["landed_error"].sel(noise=name).values]}
    interval = {name: median_interval(error[name]) for name in names}
    listed = ", ".join(f"{LABELS[name]} {alpha[name]:.4f}" for name in names)
    c_b = _batch_factor(ds)
    shrinkage = {name: start - np.log(alpha[name]) for name in names}
    share = shrinkage["minibatch-4"] / shrinkage["minibatch"]
    inside = ("mean-loss", "per-sample", "minibatch")
    spread = max(alpha[name] for name in inside) / min(alpha[name] for name in inside)
    features = {name: np.nanmean(ds["log_alpha"].sel(noise=name).values, axis=0) for name in inside}
    differ = float(np.max(np.abs(features["mean-loss"] - features["per-sample"]) / (start - features["per-sample"])))

    def below(a: str, b: str, *, statement: str, source: str) -> Claim:
        (low, high), (low_b, high_b) = interval[a], interval[b]
        return judge(
            statement,
            source,
            predicted=f"median validation error of the selected solution below that of {LABELS[b]}",
            measured=f"{np.median(error[a]):.2e} (99% interval {low:.1e} to {high:.1e}) against {np.median(error[b]):.2e} ({low_b:.1e} to {high_b:.1e})",
            tolerance="the intervals do not touch",
            holds=high < low_b,
        )

    return [
        judge(
            "Effective alpha by noise model, geometric mean",
            f"{P21}, Theorem 1",
            predicted=f"alpha = {np.exp(start):g} without noise, less with any",
            measured=listed,
            tolerance="1e-12; strictly less",
            holds=abs(alpha["none"] / np.exp(start) - 1) < 1e-12 and all(alpha[name] < alpha["none"] for name in names if name != "none"),
        ),
        below("mean-loss", "none", statement="Noise helps: mean-loss noise against none", source=f"{P21}, section 3"),
        below("minibatch", "minibatch-4", statement="Scale matters: batches of 1 against batches of 4", source=f"{P21}, section 2.2"),
        below(
            "label", "mean-loss", statement="Scale matters: label noise for a while against mean-loss noise", source=f"{P21}, section 5.3"
        ),
        judge(
            "Scale enters as c_b: shrinkage of log alpha under batches of 4 without replacement over that under batches of 1",
            "finite-population correction, c_b = (n - b) / (b (n - 1))",
            predicted=f"{c_b:.3f} as gamma -> 0",
            measured=f"{share:.3f}",
            tolerance="25%, for the loss integrals differ",
            holds=abs(share / c_b - 1) < 0.25,
            must_hold=False,
        ),
        judge(
            "Shape matters feature by feature, and little on average: mean-loss, per-sample and exact noise",
            f"{P21}, appendix E.1",
            predicted="one effective alpha on average",
            measured=f"geometric means within a factor {spread:.3f}; single features' shrinkage differs by up to {differ:.0%}",
            tolerance="factor 1.25; features differ by more than 10%",
            holds=spread < 1.25 and differ > 0.1,
            must_hold=False,
        ),
        judge(
            "Support matters: at the end of the long runs the isotropic flow is off its own minimiser, the others are on it",
            SSD,
            predicted="0 for the others, in mirror coordinates by construction",
            measured=f"isotropic, median {np.nanmedian(ds['fibre_gap'].sel(noise='isotropic').values):.1e}; others at most "
            + f"{max(np.nanmax(ds['fibre_gap'].sel(noise=name).values) for name in names if name != 'isotropic'):.1e}",
            tolerance="above 1e-3",
            holds=np.nanmedian(ds["fibre_gap"].sel(noise="isotropic").values) > 1e-3,
            control=True,
        ),
    ]


def _batch_factor(ds: Any) -> float:
    import json

    n = int(json.loads(ds.attrs["config"])["n"])
    return (n - 4) / (4 * (n - 1))


PALETTE = ("#4d4d4d", "#1b70b7", "#5aa9e6", "#d95f02", "#f0a35e", "#2a8f5b", "#7a5195", "#c23b8f")


def plot(ds: Any) -> Any:
    """Four panels: the theorem's gap against dt, effective alpha, validation error along the runs and of the selected solution."""
    figure, axes = new_figure(2, 2, size=(13, 8.2))
    names = [str(name) for name in ds["noise"].values]
    for name, colour in zip(names, PALETTE, strict=False):
        median, _, _ = _ladder(ds, name)
        style = "--" if name == "isotropic" else "-"
        axes[0, 0].plot(ds["dt"].values, median, style, marker="o", color=colour, label=LABELS[name])
        band(axes[1, 0], ds["time"].values, ds["validation_error"].sel(noise=name).values, colour=colour, label=LABELS[name])
    tidy(axes[0, 0], title="Distance from the theorem's solution, weights coordinates", x="dt / γ", y="relative gap, median")
    tidy(axes[1, 0], title="Validation error along the runs", x="flow time", y="validation error")
    for axis, values, title, x in (
        (
            axes[0, 1],
            [np.exp(np.nanmean(ds["log_alpha"].sel(noise=n).values, axis=1)) for n in names],
            "Effective initialisation",
            "α at the end",
        ),
        (
            axes[1, 1],
            [ds["landed_error"].sel(noise=n).values for n in names],
            "Error of the selected solution",
            "validation error",
        ),
    ):
        for row, (value, colour) in enumerate(zip(values, PALETTE, strict=False)):
            known = value[np.isfinite(value)]
            low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
            axis.plot([low, high], [row, row], color=colour, linewidth=4, alpha=0.5)
            axis.plot([middle], [row], "o", color=colour)
        tidy(axis, title=title + ", 5% to 95% of the seeds", x=x, y="", y_scale="linear")
        axis.set_yticks(range(len(names)), [LABELS[n] for n in names])
        axis.invert_yaxis()
    axes[1, 0].legend(frameon=False, fontsize=8, loc="lower left")  # its colours are those of every panel
    return figure
