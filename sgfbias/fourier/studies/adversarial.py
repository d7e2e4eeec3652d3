"""Does stabilising the neurons of a detector help after it was trained against an
attacker, and does it replace such training?
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import xarray as xr

from sgfbias.fourier.adversary import Adversary
from sgfbias.fourier.attack import attack
from sgfbias.fourier.certify import certify
from sgfbias.fourier.detector import draw_detector, new_network, seed_of, train
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

NAME = "fourier-adversarial"
SECONDS = 60
REFERENCES = {"raviv2021": "stabilisation after a short adversarial training"}
RAVIV = source("raviv2021")
OWN = "own experiment"
AT = 4  # flips at which networks are compared
EPOCH = 125  # steps of 32 examples of 4000
LENGTHS = (0, EPOCH // 2, EPOCH, 3 * EPOCH, 10 * EPOCH)  # steps against the attacker
SHORT, LONG = LENGTHS[1], LENGTHS[-1]
SHARE = 0.5  # of each batch that is attacked
HARD = 3  # flips of the attacker that networks meet from their first step on


@dataclasses.dataclass(frozen=True)
class Config(SeededConfig):
    """Trained detectors of 64 bits that are trained on against an attacker who flips
    bits, for a short or a long time, and then stabilised.
    """

    seeds: Annotated[int, AtLeast(6)] = 8
    """Number of seeds, each with data and a network of its own."""
    flips: Annotated[int, Between(1, 8, closed=True)] = 2
    """Number of bits that the attacker flips while the network is trained, 1 to 8."""
    most: Annotated[int, Between(AT, 12, closed=True)] = 8
    """Largest number of bits that the attacker flips after training, from 4 to 12."""
    budget: Annotated[float, Between(0, 1)] = 0.02
    """Validation accuracy that stabilisation may cost."""
    steps: Count = 2500
    """Number of training steps with 32 examples each, before the attacker comes."""


QUICK = Config(seeds=6, most=6)


def measure(config: Config, log: Log) -> Columns:
    """Attacked and certified accuracy before and after stabilisation, for every time of
    training against the attacker.
    """
    out = Columns(
        seed=np.arange(config.seeds),
        length=np.array(LENGTHS),
        flips=np.arange(config.most + 1),
        stage=np.arange(2),
    )
    adversary = Adversary("fgsm", flips=config.flips, share=SHARE)
    rules = {"idle": Adversary("fgsm", flips=0), "scratch": Adversary("fgsm", flips=HARD)}
    rows: dict[str, list] = {}
    for seed in range(config.seeds):
        log(f"seed {seed}")
        own = seed_of(config.root_seed, seed)
        data, start = draw_detector(own), new_network(own)
        plain = train(start, data.train, own, config.steps)
        nets = {
            "": [
                train(plain, data.train, own + 1, length, adversary) if length else plain
                for length in LENGTHS
            ],
            "idle": [train(plain, data.train, own + 1, LONG, rules["idle"])],
            "scratch": [train(start, data.train, own, config.steps, rules["scratch"])],
        }
        for name, several in nets.items():
            stages = [
                (net, select(net, *data.validation, budget=config.budget).network)
                for net in several
            ]
            for kind, method in (("attacked", attack), ("certified", certify)):
                curves = [
                    [np.asarray(method(net, *data.test, config.most).curve) for net in pair]
                    for pair in stages
                ]
                key = f"{kind}_{name}" if name else kind
                rows.setdefault(key, []).append(curves if name == "" else curves[0])
    for name, values in rows.items():
        dims = ("stage", "flips") if "_" in name else ("length", "stage", "flips")
        out.add(name, ("seed", *dims), values, "1, accuracy")
    return out


def claims(ds: xr.Dataset, config: Config) -> list[Claim]:
    """Accuracies are those on test data with 4 flips. Differences are taken seed by
    seed, and their medians have bootstrap intervals.
    """
    before, after = (ds["attacked"].sel(stage=s, flips=AT) for s in (0, 1))
    short, long = ((after - before).sel(length=n).values for n in (SHORT, LONG))
    level = {n: np.median(before.sel(length=n)) for n in LENGTHS}
    new = {n: np.median(after.sel(length=n)) for n in LENGTHS}
    trained = bootstrap_median((before.sel(length=LONG) - before.sel(length=0)).values)
    instead = bootstrap_median((after.sel(length=SHORT) - before.sel(length=LONG)).values)
    first, last = bootstrap_median(short), bootstrap_median(long)
    return [
        claim(
            f"After {SHORT} steps against the attacker stabilisation adds at least 15 points of "
            "attacked accuracy",
            RAVIV,
            predicted="a gain, as without adversarial training",
            measured=f"{level[SHORT]:.3f} -> {new[SHORT]:.3f}, gain {first:.3f}",
            tolerance="interval of the median above 0.15",
            holds=first.low > 0.15,
            main=True,
        ),
        claim(
            f"After {LONG} steps against the attacker stabilisation changes the attacked accuracy "
            "by at most 4 points: there is nothing more to gain",
            OWN,
            predicted="no more than 0.04 in either direction",
            measured=f"{level[LONG]:.3f} -> {new[LONG]:.3f}, change {last:.3f}",
            tolerance="interval of the median within 0.04 of 0",
            holds=max(abs(last.low), abs(last.high)) <= 0.04,
            must_hold=False,
        ),
        claim(
            f"{SHORT} steps and stabilisation give at least four fifths of the attacked accuracy "
            f"that {LONG} steps give, which take {LONG / SHORT:.0f} times as long",
            RAVIV,
            predicted="nearly as much",
            measured=f"{new[SHORT]:.3f} against {level[LONG]:.3f}, difference {instead:.3f}",
            tolerance=f"interval of the median above {-trained.value / 5:.3f}, a fifth of what "
            "the long training gains",
            holds=instead.low > -trained.value / 5,
            main=True,
        ),
        *_proved(ds),
        claim(
            f"{LONG} steps against the attacker add at least 20 points of attacked accuracy by "
            "themselves",
            OWN,
            predicted="more",
            measured=f"{level[0]:.3f} -> {level[LONG]:.3f}, gain {trained:.3f}",
            tolerance="interval of the median above 0.2",
            holds=trained.low > 0.2,
        ),
        *_others(ds, trained),
    ]


def _proved(ds: xr.Dataset) -> list[Claim]:
    """What stabilisation adds to the certified accuracy."""
    proved = ds["certified"].sel(flips=AT)
    gains = {
        n: bootstrap_median((proved.sel(length=n, stage=1) - proved.sel(length=n, stage=0)).values)
        for n in LENGTHS
    }
    least = min(gains.values(), key=lambda gain: gain.low)
    ends = [np.median(proved.sel(length=LONG, stage=s)) for s in (0, 1)]
    return [
        claim(
            "Stabilisation adds at least 30 points of certified accuracy, however long the "
            "network was trained against the attacker",
            "the certificate of boxes",
            predicted="more: the worst cases of the hidden units coincide",
            measured=f"after {LONG} steps {ends[0]:.3f} -> {ends[1]:.3f}; the least gain of "
            f"{len(gains)} lengths is {least:.3f}",
            tolerance="intervals of all medians above 0.3",
            holds=least.low > 0.3,
            main=True,
        )
    ]


def _others(ds: xr.Dataset, trained: Estimate) -> list[Claim]:
    """Training on without flips, and training against the attacker from the start."""
    plain = ds["attacked"].sel(stage=0, flips=AT, length=0).values
    idle = bootstrap_median(ds["attacked_idle"].sel(stage=0, flips=AT).values - plain)
    hard = ds["attacked_scratch"].sel(flips=AT)
    change = bootstrap_median((hard.sel(stage=1) - hard.sel(stage=0)).values)
    ends = [np.median(hard.sel(stage=s)) for s in (0, 1)]
    return [
        claim(
            f"After training against {HARD} flips from the first step on, stabilisation does not "
            "raise the attacked accuracy",
            OWN,
            predicted="no gain",
            measured=f"{ends[0]:.3f} -> {ends[1]:.3f}, change {change:.3f}",
            tolerance="interval of the median below 0.02",
            holds=change.high < 0.02,
            must_hold=False,
        ),
        control(
            f"{LONG} more steps against an attacker who flips nothing add no attacked accuracy",
            OWN,
            predicted="no gain: it is the flips that train",
            measured=f"gain {idle:.3f} against {trained.value:.3f}",
            tolerance="interval of the median below a fifth of the gain with flips",
            holds=idle.high < trained.value / 5,
            main=True,
        ),
    ]


def plot(ds: xr.Dataset, config: Config) -> Figure:
    """Draw attacked and certified accuracy against the length of the training against
    the attacker, and against flips for a short and a long one.
    """
    figure, (left, middle_, right) = panels(columns=3)
    stages = ((0, COLOURS["gd"], "before"), (1, COLOURS["sgf"], "stabilised"))
    place = np.arange(len(LENGTHS))
    for axes, kind in ((left, "attacked"), (middle_, "certified")):
        for stage, colour, label in stages:
            values = ds[kind].sel(stage=stage, flips=AT).values
            axes.plot(place, np.median(values, axis=0), "o-", color=colour, label=label)
            axes.fill_between(
                place, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
        finish(
            axes,
            title=f"{kind.capitalize()} accuracy, {AT} flips: median, all seeds",
            x="steps against the attacker",
            y="accuracy",
            x_scale="linear",
            y_scale="linear",
        )
        axes.set_xticks(place, [str(length) for length in LENGTHS])
        axes.set_ylim(0, 1)
    flips = ds["flips"].values
    for length, style in ((SHORT, "o-"), (LONG, "s--")):
        for stage, colour, label in stages:
            curve = np.median(ds["attacked"].sel(stage=stage, length=length).values, axis=0)
            text = f"{length} steps, {label}"
            right.plot(flips, curve, style, color=colour, markersize=4, label=text)
    finish(
        right,
        title="Attacked accuracy when k bits may be flipped, median",
        x="flips k",
        y="accuracy",
        x_scale="linear",
        y_scale="linear",
    )
    return figure
