# %% [markdown]
# This script contains the ten lines of the README and draws their picture. `make
# figures` runs it and writes `notebooks/readme_example.png`.

# %%
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

# %%
import jax.numpy as jnp

import sgfbias as sgf

problem = sgf.SparseRegression.sample(jax.random.key(0), n=40, d=100, sparsity=5)
network = sgf.DiagonalNetwork.init(alpha=0.01, d=100)
sgf_runs = sgf.simulate(
    sgf.StochasticGradientFlow(0.1), network, problem, keys=sgf.seeds(0, 256), steps=10_000
)
sgd_runs = sgf.simulate(
    sgf.StochasticGradientDescent(0.1), network, problem, keys=sgf.seeds(0, 256), steps=10_000
)
gd_run = sgf.simulate(sgf.GradientDescent(0.1), network, problem, steps=10_000)
landed = sgf.land(sgf_runs)  # where each seed is going, with an error estimate
curve = sgf.solution_curve(
    problem, jnp.log(0.01), step_size=0.1, integrals=jnp.linspace(0, 12, 100)
)
print(sgf_runs, landed, sep="\n")

# %%
import numpy as np

from sgfbias.study.plotting import COLOURS, band, line, new_figure, save, tidy

figure, axes = new_figure(1, 2, size=(11, 4))
left, right = axes[0]
for runs, name in ((sgd_runs, "sgd"), (sgf_runs, "sgf")):
    band(
        left,
        np.asarray(runs.times),
        np.asarray(runs["validation_error"]),
        colour=COLOURS[name],
        label=f"{name.upper()}, 256 seeds",
    )
line(
    left,
    np.asarray(gd_run.times),
    np.asarray(gd_run["validation_error"]),
    colour=COLOURS["gd"],
    label="GD",
    style="--",
)
tidy(
    left,
    title="Validation error",
    x="flow time (one SGD step = γ)",
    y="$|\\beta_t - \\beta^*|_2^2$",
)
left.legend(frameon=False)

grid = np.asarray(curve.integrals)
error = np.asarray(jax.vmap(problem.validation_error)(curve.beta))
right.plot(grid, error, color="black", linewidth=1, label="theory: the curve of solutions")
done = np.asarray(sgf_runs.final["loss_integral"] + landed.remaining)
right.plot(
    done,
    np.asarray(landed.validation_error),
    ".",
    color=COLOURS["sgf"],
    alpha=0.6,
    label="SGF landed, one dot per seed",
)
right.plot(0, error[0], "s", color=COLOURS["gd"], label="gradient flow: no noise acts")
tidy(
    right,
    title="Noise selects: the more it acts, the smaller the error",
    x="loss integral $\\int L$ through which noise acts",
    y="validation error of the limit",
    x_scale="linear",
)
right.legend(frameon=False)
save(figure, Path(__file__).with_suffix(".png"))
