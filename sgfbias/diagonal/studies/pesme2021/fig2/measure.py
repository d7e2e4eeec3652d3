"""The runs of figure 2, as columns of its dataset."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sgfbias import (
    GradientDescent,
    StochasticGradientDescent,
    StochasticGradientFlow,
    simulate,
    solution_curve,
)
from sgfbias.diagonal.setup import draw, step_size
from sgfbias.diagonal.studies.pesme2021 import common
from sgfbias.diagonal.studies.pesme2021.alphas import LAST, UNITS
from sgfbias.diagonal.studies.pesme2021.fig2 import Config
from sgfbias.diagonal.theory.effective import gradient_flow_integral, mean_loss_law, per_sample_law
from sgfbias.diagonal.theory.selected import selected_errors
from sgfbias.diagonal.theory.selection import select_many
from sgfbias.study import Columns, Log

# Step sizes of gradient descent at which its loss integral is measured, in units of
# gamma.
WIDTHS = (1.0, 0.5, 0.25)
# Steps dt of Euler's method in the weights, in units of gamma; the last is the paper's.
SCHEME_WIDTHS = (0.4, 0.1)
# Number of points on the curve of Theorem 1.
POINTS = 200


def measure(config: Config, log: Log) -> Columns:
    """Simulate gradient descent, SGD and its flow, and measure the errors that SGD's
    path predicts, the distance of the paper's scheme from the minimiser of Theorem 1,
    and `int L` of gradient descent as its step size falls.
    """
    problem, network = draw(config)
    gamma, keys = step_size(config, problem, network, log), config.keys(0, config.seeds)
    log(f"gradient descent, SGD and its flow: {config.seeds} seeds x {config.steps:,} iterations")
    gd = simulate(GradientDescent(gamma), network, problem, steps=config.steps)
    sgd = simulate(
        StochasticGradientDescent(gamma, integral="examples"),
        network,
        problem,
        keys=keys,
        steps=config.steps,
    )
    sgf = simulate(StochasticGradientFlow(gamma), network, problem, keys=keys, steps=config.steps)
    out = common.columns(
        config,
        gamma,
        gd,
        width=np.asarray(WIDTHS),
        scheme=np.asarray(SCHEME_WIDTHS),
        scheme_seed=np.arange(config.scheme_seeds),
    )
    for name, runs in (("gd", gd), ("sgd", sgd), ("sgf", sgf)):
        common.add_runs(out, name, runs, log=log)
    common.add_laws(out, problem, network, gamma, config.steps, flows={"sgf": 1.0})

    log("solutions predicted from SGD's path by the mean-loss and the per-sample evolution law")
    laws = {
        "mean_loss": mean_loss_law(problem, network.log_alpha, gamma, sgd.final["loss_integral"]),
        "per_sample": per_sample_law(
            problem, network.log_alpha, gamma, sgd.final["example_integral"]
        ),
        "alpha": sgd.final["log_alpha"],
    }
    for name, law in laws.items():
        chosen = select_many(problem, jnp.where(sgd.diverged[:, None], network.log_alpha, law)).beta
        errors = jax.vmap(problem.validation_error)(chosen)
        out.add(f"sgd_{name}_error", ("seed",), jnp.where(sgd.diverged, jnp.nan, errors), UNITS)
    out.add("sgd_own_error", ("seed",), selected_errors(sgd, problem), UNITS)

    log(
        f"the paper's scheme: Euler in the weights, {config.scheme_seeds} seeds x "
        f"{config.scheme_steps:,} SGD steps"
    )
    few, ends = config.keys(0, config.scheme_seeds), []
    for width in SCHEME_WIDTHS:
        euler = StochasticGradientFlow(
            gamma, dt=gamma * width, brownian_dt=gamma * SCHEME_WIDTHS[-1]
        )
        steps = round(config.scheme_steps / width)
        ends.append(
            simulate(
                euler, network, problem, keys=few, steps=steps, coordinates="weights", record=LAST
            )
        )
    alive = ~jnp.any(jnp.stack([end.diverged for end in ends]), axis=0)
    integrals = [jnp.where(alive, end.final["loss_integral"], 0) for end in ends]
    reached = [
        *integrals,
        *(jnp.where(runs.diverged, 0, runs.final["loss_integral"]) for runs in (sgf, sgd)),
    ]
    grid = np.linspace(0, max(float(jnp.max(each)) for each in reached), POINTS)
    curve = solution_curve(problem, network.log_alpha, step_size=gamma, integrals=grid)
    # At a finite time the theorem holds on the fibre of the iterate, the solutions of
    # X beta = X beta_t, so that what is left to converge does not count as a distance.
    for name, part in (("curve", 1.0), ("half", 0.5)):
        off = []
        for end, used in zip(ends, integrals, strict=True):
            beta = jnp.where(alive[:, None], end.final["beta"], 0)
            law = mean_loss_law(problem, network.log_alpha, gamma, part * used)
            chosen = select_many(problem, law, targets=beta @ problem.X.T).beta
            off.append(jnp.linalg.norm(beta - chosen, axis=1))
        out.add(
            f"weights_{name}_distance",
            ("scheme", "scheme_seed"),
            jnp.where(alive, jnp.stack(off), jnp.nan),
            "target / input",
        )
    for name in common.QUANTITIES:
        out.add(
            f"weights_{name}",
            ("scheme_seed",),
            jnp.where(alive, ends[-1].final[name], jnp.nan),
            out.data[f"gd_{name}"][2]["units"],
        )
    out.axes["point"] = np.asarray(curve.integrals)
    out.add("curve_error", ("point",), jax.vmap(problem.validation_error)(curve.beta), UNITS)

    log("loss integral of gradient descent at gamma, gamma/2 and gamma/4")
    sums = [
        simulate(
            GradientDescent(gamma * f), network, problem, steps=round(config.steps / f), record=LAST
        )
        for f in WIDTHS
    ]
    out.add(
        "gd_integrals",
        ("width",),
        [float(runs.final["loss_integral"]) for runs in sums],
        "target^2 time",
    )
    out.add(
        "flow_integral", (), gradient_flow_integral(problem, network.log_alpha), "target^2 time"
    )
    return out
