"""How much does stabilisation help on real data, and when is training against the
attacker better?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from sgfbias.fourier.adversary import Adversary
from sgfbias.fourier.attack import attack
from sgfbias.fourier.bundled import cancer, digits
from sgfbias.fourier.certify import certify
from sgfbias.fourier.detector import Split, new_network, seed_of, train
from sgfbias.fourier.layers import first_layer
from sgfbias.fourier.selection import select
from sgfbias.study import (
    AtLeast,
    Between,
    Claim,
    Columns,
    Count,
    Log,
    SeededConfig,
    claim,
    control,
    source,
)
from sgfbias.study.plotting import COLOURS, Figure, finish, panels
from sgfbias.study.statistics import Estimate, bootstrap_median

NAME = "fourier-digits"
SECONDS = 60
REFERENCES = {"raviv2021": "stabilisation of networks on binary features of real data"}
RAVIV = source("raviv2021")
OWN = "own experiment"
AT = 2  # flips at which networks are compared
FLIPS, SHARE = 2, 0.5  # of the attacker while networks are trained against it
# Training and validation examples; the rest is for testing.
DATA = {"digits": (digits, (900, 400)), "cancer": (cancer, (250, 120))}
NETWORKS = {
    "plain": "as trained",
    "stable": "stabilised",
    "refit": "stabilised, thresholds refitted",
    "against": "trained against the attacker",
    "both": "trained against it, stabilised",
    "random": "stabilised, with random signs",
}
IMAGES = 1797
UNITS = 5  # whose weights are drawn


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Networks with one hidden layer of 16 units that tell odd from even digits by 64
    pixels, and benign from malignant samples by 30 features.
    """

    seeds: Annotated[int, AtLeast(6)] = 8
    """Number of seeds, each with a split of the data and a network of its own."""
    flips: Annotated[int, Between(AT, 10, closed=True)] = 6
    """Largest number of bits that the attacker flips, from 2 to 10."""
    budget: Annotated[float, Between(0, 1)] = 0.02
    """Validation accuracy that stabilisation may cost."""
    epochs: Count = 20
    """Number of passes through the training examples, with batches of 32."""


QUICK = Config(seeds=6, flips=3)


def measure(config: Config, log: Log) -> Columns:
    """Attacked and certified accuracy of every network of every seed, on test data."""
    out = Columns(seed=np.arange(config.seeds), flips=np.arange(config.flips + 1))
    rows: dict[str, list] = {}
    for seed in range(config.seeds):
        log(f"seed {seed}")
        own = seed_of(config.root_seed, seed)
        for name, (load, sizes) in DATA.items():
            fit, held, test = (
                Split(np.asarray(part.inputs), np.asarray(part.labels))
                for part in load().split(*sizes, seed=own)
            )
            nets = _networks(config, own, fit, held)
            for which, net in nets.items():
                for kind, method in (("attacked", attack), ("certified", certify)):
                    curve = np.asarray(method(net, *test, config.flips).curve)
                    rows.setdefault(f"{name}_{kind}_{which}", []).append(curve)
            if seed == 0 and name == "digits":
                weights = [first_layer(nets[which]).weight[:UNITS] for which in ("plain", "stable")]
                out.axes["stage"] = np.arange(2)
                out.add("weights", ("stage", "unit", "pixel"), weights, "1, weight")
    for key, values in rows.items():
        out.add(key, ("seed", "flips"), values, "1, accuracy")
    return out


def _networks(config: Config, seed: int, fit: Split, held: Split) -> dict[str, Any]:
    """The networks that are compared."""
    start = new_network(seed, bits=fit.inputs.shape[1])
    steps = round(config.epochs * len(fit.labels) / 32)
    plain = train(start, fit, seed, steps)
    adversary = Adversary("fgsm", flips=FLIPS, share=SHARE)
    against = train(start, fit, seed, steps, adversary)
    stable = select(plain, *held, budget=config.budget).network
    cut = first_layer(stable)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=cut.weight.shape)
    return {
        "plain": plain,
        "stable": stable,
        "random": cut.replace(cut.weight * jnp.asarray(signs, cut.dtype)),
        "refit": select(plain, *held, budget=config.budget, refit_bias=fit.inputs).network,
        "against": against,
        "both": select(against, *held, budget=config.budget).network,
    }


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Differences are taken seed by seed, and their medians have bootstrap
    intervals.
    """
    hit = {name: ds[f"digits_attacked_{name}"].values for name in NETWORKS}
    gain = bootstrap_median(hit["stable"][:, AT], hit["plain"][:, AT])
    clean = bootstrap_median(hit["plain"][:, 0], hit["stable"][:, 0])
    better = bootstrap_median(hit["against"][:, AT], hit["stable"][:, AT])
    lost = bootstrap_median(hit["both"][:, AT], hit["against"][:, AT])
    held, tested = DATA["digits"][1][1], IMAGES - sum(DATA["digits"][1])
    most = config.budget + 2 * np.sqrt(0.09 / held + 0.09 / tested)
    guess = bootstrap_median(hit["random"][:, 0])
    refit = bootstrap_median(hit["refit"][:, AT], hit["stable"][:, AT])
    return [
        claim(
            f"Digits: with {AT} flips stabilisation adds attacked accuracy",
            RAVIV,
            predicted="more",
            measured=f"{_arrow(hit, 'plain', 'stable')}, gain {gain:.3f}",
            tolerance="interval of the median above 0",
            holds=gain.low > 0,
            main=True,
        ),
        claim(
            "Digits: the clean accuracy that stabilisation costs is within its budget and the "
            "noise of the validation and test data",
            RAVIV,
            predicted=f"a loss near the budget of {config.budget:.1%} on validation data",
            measured=f"loss {clean:.3f}",
            tolerance=f"interval of the median below {most:.3f}, the budget and two standard "
            "deviations of accuracies of 0.9 on the validation and the test images",
            holds=clean.high < most,
        ),
        claim(
            f"Digits: with {AT} flips training against the attacker leaves more than "
            "stabilisation does",
            OWN,
            predicted="training helps more",
            measured=f"{_arrow(hit, 'stable', 'against')}, difference {better:.3f}",
            tolerance="interval of the median above 0",
            holds=better.low > 0,
            main=True,
        ),
        claim(
            "Digits: stabilising a network that was trained against the attacker lowers its "
            "attacked accuracy",
            OWN,
            predicted="lower",
            measured=f"{_arrow(hit, 'against', 'both')}, change {lost:.3f}",
            tolerance="interval of the median below 0",
            holds=lost.high < 0,
            main=True,
        ),
        claim(
            "Digits: thresholds refitted to the old labels change the attacked accuracy by at "
            "most 8 points",
            OWN,
            predicted="little",
            measured=f"{_arrow(hit, 'stable', 'refit')}, change {refit:.3f}",
            tolerance="interval of the median within 0.08 of 0",
            holds=max(abs(refit.low), abs(refit.high)) < 0.08,
            must_hold=False,
        ),
        *_cancer(ds, gain),
        control(
            "digits: random signs in place of those of the stabilised weights destroy the network",
            RAVIV,
            predicted="an accuracy near 0.5, that of guessing",
            measured=f"{guess:.3f}",
            tolerance="interval of the median below 0.75",
            holds=guess.high < 0.75,
            main=True,
        ),
    ]


def _cancer(ds: xr.Dataset, gain: Estimate) -> list[Claim]:
    """The data for which stabilisation proves more and protects no more."""
    hit = {name: ds[f"cancer_attacked_{name}"].values for name in NETWORKS}
    proved = {name: ds[f"cancer_certified_{name}"].values for name in NETWORKS}
    change = bootstrap_median(hit["stable"][:, AT], hit["plain"][:, AT])
    rise = bootstrap_median(proved["stable"][:, AT], proved["plain"][:, AT])
    return [
        claim(
            f"Breast cancer, with {AT} flips: stabilisation adds no attacked accuracy",
            OWN,
            predicted="no gain, unlike for digits",
            measured=f"{_arrow(hit, 'plain', 'stable')}, change {change:.3f}",
            tolerance="interval of the median below half of the gain for digits",
            holds=change.high < gain.value / 2,
            must_hold=False,
        ),
        claim(
            f"Breast cancer, with {AT} flips: stabilisation adds certified accuracy all the same",
            "the certificate of boxes",
            predicted="more: the worst cases of the hidden units coincide",
            measured=f"{_arrow(proved, 'plain', 'stable')}, gain {rise:.3f}",
            tolerance="interval of the median above 0",
            holds=rise.low > 0,
            main=True,
        ),
    ]


def _arrow(curves: dict[str, np.ndarray], first: str, second: str) -> str:
    """Two medians, as text."""
    return f"{np.median(curves[first][:, AT]):.3f} -> {np.median(curves[second][:, AT]):.3f}"


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw attacked and certified accuracy against flips for both data sets, and the
    weights of some hidden units before and after as images.
    """
    figure, (left, middle_, right) = panels(columns=3)
    flips = ds["flips"].values
    styles = {
        "plain": (COLOURS["gd"], "o-"),
        "stable": (COLOURS["sgf"], "o-"),
        "against": (COLOURS["sgd"], "s--"),
        "both": (COLOURS["control"], "^--"),
    }
    for axes, name, title in (
        (left, "digits", "Digits, 64 bits: accuracy, median"),
        (middle_, "cancer", "Breast cancer, 30 bits: accuracy, median"),
    ):
        for which, (colour, style) in styles.items():
            curve = np.median(ds[f"{name}_attacked_{which}"].values, axis=0)
            axes.plot(flips, curve, style, color=colour, markersize=4, label=NETWORKS[which])
            if which in ("plain", "stable"):
                proved = np.median(ds[f"{name}_certified_{which}"].values, axis=0)
                axes.fill_between(flips, proved, curve, color=colour, alpha=0.15, linewidth=0)
        axes.fill_between([], [], [], color="0.7", label="down to what is certified")
        finish(
            axes, title=title, x="flips k", y="accuracy", x_scale="linear", y_scale="linear",
            legend="lower left",
        )  # fmt: skip
        axes.set_ylim(0, 1.02)
    weights = ds["weights"].values
    tiles = (weights / np.abs(weights).max(axis=2, keepdims=True)).reshape(*weights.shape[:2], 8, 8)
    framed = np.pad(tiles, [(0, 0)] * 2 + [(1, 0), (0, 1)], constant_values=np.nan)
    image = np.concatenate([np.hstack(framed[stage]) for stage in (0, 1)])
    right.imshow(image, cmap="RdBu", vmin=-1, vmax=1)
    right.set_yticks([4.5, 13.5], ["before", "after"])
    right.set_xticks(9 * np.arange(len(weights[0])) + 3.5, range(1, len(weights[0]) + 1))
    right.set_title("Weights as images, before and after")
    right.set_xlabel("hidden unit")
    right.set_ylabel("stabilisation")
    return figure
