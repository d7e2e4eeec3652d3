"""The measurements: runs of gradient descent, of SGD and of three flows."""

from __future__ import annotations

import numpy as np

from sgfbias import (
    GradientDescent,
    MeanLossNoise,
    MinibatchNoise,
    Record,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
)
from sgfbias.digits.problem import draw_digits
from sgfbias.digits.studies.main import ENSEMBLES, TIMES, UNITS, Config
from sgfbias.study import Columns, Log, counted

FINE = 4  # solver steps of the flow per SGD step


def measure(config: Config, log: Log) -> Columns:
    """Training loss, test loss and test accuracy against time.

    They are computed for gradient descent, and for every seed of SGD and of three
    flows.
    """
    problem, network, observables = draw_digits(
        config.data_seed("split_seed"), train=config.train, hidden=config.hidden
    )
    gamma, exact = config.step_size, MinibatchNoise(config.batch_size)
    record = Record(observables, np.arange(TIMES + 1) * (config.steps // TIMES) * gamma)
    dynamics = {
        "gd": GradientDescent(gamma),
        "sgd": StochasticGradientDescent(gamma, config.batch_size, integral="batch"),
        "flow": StochasticGradientFlow(gamma, exact, per_iteration=FINE),
        # The mean-loss model has no batch size. A batch of b examples divides the
        # covariance by b, and so does a step size that is b times smaller.
        "mean_loss": StochasticGradientFlow(gamma / config.batch_size, MeanLossNoise(), dt=gamma),
        "coarse": StochasticGradientFlow(gamma, exact, per_iteration=1),
    }
    out = Columns(seed=np.arange(config.seeds))
    for name, rule in dynamics.items():
        steps, single = config.steps * (FINE if name == "flow" else 1), name == "gd"
        log(
            f"gradient descent, {steps:,} steps"
            if single
            else f"{ENSEMBLES[name]}, {config.seeds} seeds x {steps:,} steps"
        )
        runs = simulate(
            rule,
            network,
            problem,
            keys=None if single else config.keys(0, config.seeds),
            steps=steps,
            record=record,
        )
        for quantity, units in UNITS.items():
            out.add(
                f"{name}_{quantity}",
                ("time",) if single else ("seed", "time"),
                runs[quantity],
                units,
            )
        if single:
            out.axes["time"] = ("time", np.asarray(runs.times, np.float64), {"units": "flow time"})
        else:
            out.add(f"{name}_status", ("seed",), runs.status, "1")
            log(f"  {counted(runs)}")
    return out
