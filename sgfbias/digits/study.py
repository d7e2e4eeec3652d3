"""A small network on handwritten digits: does the flow with exact noise end where SGD ends, in law?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sgfbias.core.brownian import seeds
from sgfbias.core.claim import Claim, judge, kolmogorov
from sgfbias.core.descent import GradientDescent, StochasticGradientDescent
from sgfbias.core.flow import StochasticGradientFlow
from sgfbias.core.loss import SoftmaxCrossEntropyLoss
from sgfbias.core.noise import MeanLossNoise, MinibatchNoise
from sgfbias.core.problem import Problem
from sgfbias.core.provenance import attributes
from sgfbias.core.record import Record
from sgfbias.core.simulate import simulate
from sgfbias.core.table import Columns
from sgfbias.core.trajectory import Status
from sgfbias.plotting import COLOURS, band, line, new_figure, tidy

SOURCE = "Li, Tai, E 2017; Li, Malladi, Arora 2021"
ENSEMBLES = {"sgd": "SGD", "flow": "flow, exact noise", "mean_loss": "flow, mean-loss noise", "coarse": "flow, exact noise, dt = gamma"}
COMPARED = ("sgd", "flow", "mean_loss")
FINE = 4  # solver steps of the flow per SGD step
LATE = 0.75  # runs are compared by their averages over the last quarter
TIMES = 60


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """A small network on scikit-learn's digits: SGD and the flow with exact noise, test loss and accuracy of the bundles compared."""

    seeds: int = 32
    """Seeds of SGD and of each flow; all start from one network."""
    step_size: float = 0.05
    """gamma."""
    batch_size: int = 4
    """Examples per SGD step, drawn with replacement."""
    steps: int = 1200
    """SGD steps; the flow with exact noise takes 4 solver steps to each, and once 1. A multiple of 60."""
    train: int = 512
    """Training examples; the other images are the test set."""
    hidden: int = 32
    """Hidden units."""
    split_seed: int = 0
    """Seed of the split and of the initial network."""

    def check(self) -> None:
        """Refuse values that make no sense.

        **Raises:** `ValueError` naming the value.
        """
        if not (np.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size must be positive and finite, but is {self.step_size}")
        if self.seeds < 8:
            raise ValueError(f"seeds must be at least 8, but is {self.seeds}")
        if self.steps < 1 or self.steps % TIMES:
            raise ValueError(f"steps must be a positive multiple of {TIMES}, but is {self.steps}")
        if not 1 <= self.batch_size <= self.train:
            raise ValueError(f"batch_size must be between 1 and train = {self.train}, but is {self.batch_size}")
        if not 10 <= self.train <= 1697:
            raise ValueError(f"train must be between 10 and 1697, to leave 100 of 1797 images for the test, but is {self.train}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, but is {self.hidden}")


Config = DigitsConfig
REFERENCES = {
    "li2017": "the stochastic modified equation of SGD",
    "li2021": "the flow with SGD's noise, and what it needs",
    "pesme2021": "mean-loss noise, eq. (3), with several outputs",
}


class _Test(eqx.Module):
    """Test loss or accuracy of a classifier."""

    inputs: Float[Array, "m p"]
    labels: Int[Array, " m"]
    accuracy: bool = eqx.field(static=True)

    def __call__(self, model: Any) -> Array:
        logits = jax.vmap(model)(self.inputs)
        if self.accuracy:
            return jnp.mean((jnp.argmax(logits, axis=1).astype(self.labels.dtype) == self.labels).astype(logits.dtype))
        return jnp.mean(SoftmaxCrossEntropyLoss()(logits, self.labels))


def load_digits(split_seed: int, train: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`(inputs, labels)` for training and for testing: 8 x 8 images as 64 numbers in [0, 1], labels 0 to 9.

    **Raises:** `ValueError` without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError("the digits are scikit-learn's: pip install 'sgfbias[digits]'") from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(split_seed).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return (images[:train], labels[:train]), (images[train:], labels[train:])


def run(config: DigitsConfig, *, say: Callable[[str], None] = lambda line: None) -> Any:
    """Run the study; `say` is told one line per stage. In float32.

    **Returns:** an `xarray.Dataset` with dimensions seed and time.

    **Raises:** `ValueError` for values that make no sense, or without scikit-learn.
    """
    config.check()
    fit, held_out = load_digits(config.split_seed, config.train)
    problem = Problem(*fit, loss=SoftmaxCrossEntropyLoss())
    model = eqx.nn.MLP(64, 10, config.hidden, 1, dtype=jnp.float32, key=jax.random.key(config.split_seed))
    test = [jnp.asarray(a) for a in held_out]
    gamma, count = config.step_size, config.steps
    marks = np.arange(TIMES + 1) * (count // TIMES) * gamma
    record = Record({"test_loss": _Test(*test, accuracy=False), "test_accuracy": _Test(*test, accuracy=True)}, marks)
    dynamics = {
        "sgd": StochasticGradientDescent(gamma, config.batch_size, integral="batch"),
        "flow": StochasticGradientFlow(gamma, MinibatchNoise(config.batch_size), per_iteration=FINE),
        # The mean-loss model has no batch size: batches of b divide its covariance by b, as a step size b times smaller does.
        "mean_loss": StochasticGradientFlow(gamma / config.batch_size, MeanLossNoise(), dt=gamma),
        "coarse": StochasticGradientFlow(gamma, MinibatchNoise(config.batch_size), per_iteration=1),
    }
    out, keys = Columns(), seeds(0, config.seeds)
    say(f"gradient descent, {count:,} iterations")
    plain = simulate(GradientDescent(gamma), model, problem, steps=count, record=record)
    for name, rule in dynamics.items():
        steps = count * (FINE if name == "flow" else 1)
        say(f"{ENSEMBLES[name]}, {config.seeds} seeds x {steps:,} steps, batches of {config.batch_size}")
        runs = simulate(rule, model, problem, keys=keys, steps=steps, record=record)
        say("  " + ", ".join(f"{number} {word}" for word, number in runs.statuses().items()))
        for quantity in ("loss", "test_loss", "test_accuracy"):
            out.add(f"{name}_{quantity}", ("seed", "time"), runs[quantity], "1" if "accuracy" in quantity else "loss")
        out.add(f"{name}_status", ("seed",), runs.status, "1")
    for quantity in ("loss", "test_loss", "test_accuracy"):
        out.add(f"gd_{quantity}", ("time",), plain[quantity], "1" if "accuracy" in quantity else "loss")
    coords = {"time": ("time", np.asarray(plain.times, np.float64), {"units": "flow time"}), "seed": np.arange(config.seeds)}
    attrs = attributes({"study": "digits", **dataclasses.asdict(config)}, dtype=jnp.float32, keys=keys)
    return out.dataset(coords, attrs | {"study": "digits"})


def _late(ds: Any, name: str) -> np.ndarray:
    """Averages over the last quarter; per seed where there are seeds, a non-finite seed left out."""
    values = np.asarray(ds[name].values, np.float64)
    late = values[..., ds["time"].values >= LATE * ds["time"].values[-1]].mean(axis=-1)
    return late[np.isfinite(late)] if late.ndim else late


def _gap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Difference of means and the half-width of its 99% interval."""
    error = np.hypot(a.std(ddof=1) / np.sqrt(a.size), b.std(ddof=1) / np.sqrt(b.size))
    return float(a.mean() - b.mean()), float(2.58 * error)


def _chance(a: np.ndarray, b: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """Kolmogorov distance of two samples, and how often a random relabelling has as large a one."""
    joint, rng = np.concatenate([a, b]), np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(joint) for _ in range(draws)])
    distance = float(kolmogorov(a, b))
    return distance, float(np.mean(kolmogorov(shuffled[:, : a.size], shuffled[:, a.size :]) >= distance - 1e-12))


def claims(ds: Any) -> list[Claim]:
    """The study's claims, from its dataset alone."""
    lost = {name: int((ds[f"{name}_status"].values == Status.NON_FINITE).sum()) for name in COMPARED}
    accuracy = {name: _late(ds, f"{name}_test_accuracy") for name in ("sgd", "flow")}
    rows = [
        judge(
            "SGD and the flow with exact noise learn, and no seed is lost",
            SOURCE,
            predicted="test accuracy far above the 10% of guessing",
            measured=", ".join(f"{ENSEMBLES[name]} {v.mean():.1%}" for name, v in accuracy.items())
            + f"; {lost['sgd']} and {lost['flow']} seeds non-finite",
            tolerance="80%; no seed",
            holds=min(v.mean() for v in accuracy.values()) > 0.8 and lost["sgd"] == lost["flow"] == 0,
        )
    ]
    for quantity, label in (("test_loss", "test loss"), ("test_accuracy", "test accuracy")):
        rows += _compared(ds, quantity, label)
    rows.append(_resolved(ds))
    sgd, flow, other = (_late(ds, f"{name}_test_loss").std(ddof=1) for name in COMPARED)
    rows.append(
        judge(
            "Spread of the test loss over seeds, flow over SGD",
            SOURCE,
            predicted="1 as gamma -> 0",
            measured=f"exact noise {flow / sgd:.2f}, mean-loss noise {other / sgd:.2f}",
            tolerance="exact within a factor 1.6 (2.6 standard errors of a ratio at 32 seeds)",
            holds=1 / 1.6 < flow / sgd < 1.6,
            must_hold=False,
        )
    )
    return rows


def _resolved(ds: Any) -> Claim:
    coarse, fine, sgd = (_late(ds, f"{name}_test_loss") for name in ("coarse", "flow", "sgd"))
    effect = abs(float(sgd.mean()) - float(_late(ds, "gd_test_loss")))
    off, width = _gap(coarse, fine)
    return judge(
        "The flow is resolved: its mean test loss at dt = gamma against dt = gamma/4",
        "weak order 1 of Euler",
        predicted="0 as dt -> 0",
        measured=f"{off:+.4f} (99% interval +-{width:.4f}), against an effect of the noise of {effect:.4f}",
        tolerance="interval within half the effect of the noise",
        holds=abs(off) + width < effect / 2,
        must_hold=False,
    )


def _compared(ds: Any, quantity: str, label: str) -> list[Claim]:
    sgd, flow, other = (_late(ds, f"{name}_{quantity}") for name in COMPARED)
    plain = float(_late(ds, f"gd_{quantity}"))
    effect, width = float(sgd.mean() - plain), 2.58 * float(sgd.std(ddof=1)) / np.sqrt(sgd.size)
    near, near_width = _gap(flow, sgd)
    far, far_width = _gap(other, sgd)
    distance, chance = _chance(flow, sgd)
    far_distance, far_chance = _chance(other, sgd)
    return [
        judge(
            f"The noise matters: mean {label} of SGD against gradient descent",
            SOURCE,
            predicted="a difference",
            measured=f"{effect:+.4f} (99% interval +-{width:.4f})",
            tolerance="interval without 0",
            holds=abs(effect) > width,
            reason="without an effect of the noise there is nothing for the flow to explain",
        ),
        judge(
            f"The flow with exact noise explains it: mean {label} of the flow against SGD",
            SOURCE,
            predicted="0 as gamma -> 0",
            measured=f"{near:+.4f} (99% interval +-{near_width:.4f}), against {effect:+.4f} without noise",
            tolerance="interval within half the effect of the noise",
            holds=abs(near) + near_width < abs(effect) / 2,
        ),
        judge(
            f"The two bundles are not told apart, {label}, Kolmogorov distance",
            SOURCE,
            predicted="as two samples of one law",
            measured=f"{distance:.2f}; {chance:.1%} of relabellings have as large a one",
            tolerance="1%",
            holds=chance > 0.01,
        ),
        judge(
            f"Control: mean-loss noise of the same batch size is told apart, {label}",
            "Pesme, Pillaud-Vivien, Flammarion 2021, eq. (3), with several outputs",
            predicted="another law: it kicks every output of every example alike",
            measured=f"{far:+.4f} (99% interval +-{far_width:.4f}); distance {far_distance:.2f}, {far_chance:.1%} of relabellings",
            tolerance="below 1% of relabellings",
            holds=far_chance < 0.01,
            control=True,
            must_hold=quantity == "test_loss",
        ),
    ]


def plot(ds: Any) -> Any:
    """Training loss, test loss and test accuracy of the bundles."""
    figure, axes = new_figure(1, 3, size=(14, 4.2))
    time = ds["time"].values
    colours = {"sgd": COLOURS["sgd"], "flow": COLOURS["sgf"], "mean_loss": COLOURS["control"]}
    for panel, quantity, title in zip(
        axes[0], ("loss", "test_loss", "test_accuracy"), ("Training loss", "Test loss", "Test accuracy"), strict=True
    ):
        for name in COMPARED:
            label = ENSEMBLES[name]
            band(panel, time, ds[f"{name}_{quantity}"].values, colour=colours[name], label=f"{label}, {ds.sizes['seed']} seeds")
        line(panel, time, ds[f"gd_{quantity}"].values, colour=COLOURS["gd"], label="GD", style="--")
        tidy(panel, title=title, x="flow time", y=title.lower(), x_scale="linear", y_scale="linear" if "accuracy" in quantity else "log")
        panel.legend(frameon=False, fontsize=8)
    figure.suptitle("Digits: lines are medians, bands 5% to 95% of the seeds; all start from one network", fontsize=11)
    return figure
