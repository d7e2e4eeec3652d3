# %% [markdown]
# # 4. A sweep, from plan to picture
#
# How does the selected solution depend on the initialisation $\alpha$ and on the step
# size $\gamma$, over many seeds and several draws of the data? Answering this takes a
# grid of many runs, on a machine that may be switched off at the wrong moment.
# `sgf.Sweep` runs the grid and keeps its results in a store that survives being killed.
# In this notebook we plan a sweep, interrupt it, resume it, and draw a picture from the
# store.

# %%
import json
import signal
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.diagonal.potential import potential
from sgfbias.ensemble.status import status
from sgfbias.study.plotting import tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The experiment
#
# An experiment is a function of the keys of some seeds and of one value of every axis.
# It returns a trajectory, a dataset, or named arrays whose leading axis is the seeds.
# The sweep calls it with some of the seeds at a time, so the result of a seed may
# depend on that seed's key only; `simulate` guarantees this.
#
# For each $\alpha$, $\gamma$ and draw of the data we keep the loss integral
# $S = \int L\,dt$ and the validation error $|\beta - \beta^*|_2^2$ of the *landed*
# solution, which is the predicted limit of the run (notebook 1). Because of the
# landing, runs with a small $\alpha$ need not be long.


# %%
def experiment(keys, *, alpha, gamma, draw):
    problem = sgf.SparseRegression.sample(jax.random.key(draw), n=20, d=50, sparsity=3)
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50)
    runs = sgf.simulate(
        sgf.StochasticGradientFlow(gamma),
        network,
        problem,
        keys=keys,
        steps=round(40 / gamma),
        record=sgf.Record(times=2),
    )
    landed = sgf.land(runs)
    return {
        "loss_integral": runs.final["loss_integral"] + landed.remaining,
        "landed_error": landed.validation_error,
        "status": runs.status,
    }


alphas, gammas = np.geomspace(1e-3, 1e-1, 4), [0.02, 0.06]
sweep = sgf.Sweep(experiment, {"alpha": alphas, "gamma": gammas}, seeds=(0, 64), draws=3, chunk=64)
print(sweep)

# %% [markdown]
# ## The plan
#
# `plan` runs the first chunk twice (the first run compiles) and reports the number of
# runs, the memory and the time. It writes nothing. On the command line it is
# `sgfbias sweep runs.toml --dry-run`.

# %%
plan = sweep.plan()
print(
    f"{plan.runs:,} runs in {plan.chunks} chunks of {plan.chunk} seeds, "
    f"{plan.store_bytes / 1e6:.2f} MB before compression"
)

# %% [markdown]
# `print(plan)` also shows the device, the seconds that a chunk takes and the time that
# is left. These depend on your machine, so the stored notebook leaves this output out.

# %% tags=["machine"]
print(plan)

# %% [markdown]
# ## Interrupted
#
# We press Ctrl-C in the middle, by sending ourselves the signal after 8 chunks. The
# sweep finishes the chunk in flight, keeps it, and raises `SweepInterrupted`. (A power
# cut would lose nothing but the chunks in flight.)

# %%
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "runs.zarr"


def impatient(state):
    if state["chunks_done"] == 8:
        signal.raise_signal(signal.SIGINT)


try:
    sweep.run(path, progress=impatient)
except sgf.SweepInterrupted as stopped:
    print(stopped)
state = status(path)
print(
    f"status: {state['done']:,} of {state['runs']:,} runs done, "
    f"{state['failed']} failed, {state['diverged']} diverged"
)
started = sum(cell["done"] > 0 for cell in state["cells"])
print(f"cells with at least one finished run: {started} of {len(state['cells'])}")

# %% [markdown]
# An unfinished store can be opened; results that are missing are NaN. The store also
# knows which sweep it belongs to. A sweep with another grid, other seeds, another
# experiment or another precision is refused, so that results are never mixed.

# %%
partial = sgf.open_sweep(path)
median = float(partial["landed_error"][0, 0, 0].median())
print(f"median error of the first cell, read from the unfinished store: {median:.2e}")
other_grid = {"alpha": alphas, "gamma": [0.02, 0.03]}
try:
    sgf.Sweep(experiment, other_grid, seeds=(0, 64), draws=3, chunk=64).run(path)
except sgf.StoreError as refused:
    print("refused:", str(refused).replace(str(path), "runs.zarr"))

# %% [markdown]
# ## Resumed
#
# The same call computes the chunks that are missing. **The first check** has two parts.
# The log in the store has one line per chunk, and every chunk must be there exactly
# once. A chunk that we compute again must equal the stored numbers bit for bit.

# %%
runs = sweep.run(path)
events = [json.loads(line) for line in (path / "ledger" / "log.jsonl").read_text().splitlines()]
done = [(event["cell"], event["chunk"]) for event in events if event["event"] == "chunk"]
sessions = len({e["session"] for e in events})
print(
    f"chunks computed: predicted {plan.chunks}, measured {len(done)} "
    f"({len(set(done))} different ones) in {sessions} sessions"
)
again = experiment(sgf.seeds(0, 64), alpha=alphas[2], gamma=gammas[1], draw=1)
stored = runs["landed_error"].sel(alpha=alphas[2], gamma=gammas[1], draw=1)
differing = int(np.sum(np.asarray(again["landed_error"]) != stored.values))
print(
    "a chunk computed again, number of seeds that differ from the store: "
    f"predicted 0, measured {differing}"
)
print(f"variables of the store: {', '.join(sorted(map(str, runs.data_vars)))}")
sizes = ", ".join(f"{name} {count}" for name, count in runs.sizes.items())
print(f"dimensions of the store: {sizes}")

# %% [markdown]
# ## What theory says about the grid
#
# Without noise the loss integral is known in closed form:
#
# $$S_0 = \int_0^\infty L\,dt = \tfrac12[\phi_\alpha(\beta_\infty) - \phi_\alpha(0)],
# \qquad \beta_\infty = \arg\min_{X\beta = y}\phi_\alpha(\beta),$$
#
# where $\phi_\alpha$ is the potential of notebook 1. As $\alpha$ falls, $S_0$ grows as
# $\frac14 |\beta_\infty|_1 \log(1/\alpha)$.
#
# With noise the integral is larger, by a factor that goes to 1 with $\gamma$. The
# reason is that noise slows the descent by a fraction of about
# $\frac{\gamma}{2}\langle h, \xi_t + \xi_\infty\rangle$, where $\xi = w_+^2 + w_-^2$ is
# close to $|\beta|$ and $h$ holds the mean squares of the features.
#
# **The second check** divides the measured integral by $S_0$. If $\xi_t$ were at its
# final value all the time, this ratio would be
# $1/(1 - \gamma\langle h, \xi_\infty\rangle)$. In truth $\xi_t$ starts near 0, so the
# ratio must lie between 1 and that value.


# %%
def noiseless(alpha, draw):
    """Return the loss integral of the gradient flow, and <h, xi> and the validation
    error at its end.
    """
    problem = sgf.SparseRegression.sample(jax.random.key(draw), n=20, d=50, sparsity=3)
    log_alpha = jnp.full(50, jnp.log(alpha))
    beta = sgf.select(problem, log_alpha).beta
    xi = jnp.sqrt(beta**2 + 4 * jnp.exp(4 * log_alpha))
    return (
        (potential(beta, log_alpha) - potential(jnp.zeros(50), log_alpha)) / 2,
        problem.h @ xi,
        problem.validation_error(beta),
    )


# The shape is (alpha, draw, 3).
theory = np.array(
    [[[float(v) for v in noiseless(alpha, int(draw))] for draw in runs["draw"]] for alpha in alphas]
)
integrals = runs["loss_integral"].mean("seed").transpose("alpha", "draw", "gamma")
factor = (integrals / theory[:, :, :1]).values
for k, gamma in enumerate(gammas):
    upper = 1 / (1 - gamma * theory[:, :, 1])
    print(
        f"gamma {gamma}: integral divided by S_0, for each alpha:  "
        f"predicted 1 to {np.round(upper.mean(axis=1), 2)}, "
        f"measured {np.round(factor[:, :, k].mean(axis=1), 2)}"
    )

# %% [markdown]
# ## The picture
#
# `open_sweep(path)` returns an `xarray.Dataset`, as `run` does. It reads only the parts
# of the store that you ask for.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
grey = "#4d4d4d"
closed_form = theory[:, :, 0].mean(axis=1)
axes[0].plot(alphas, closed_form, "--", color=grey, label="no noise, closed form")
error_without = np.exp(np.log(theory[:, :, 2]).mean(axis=1))
axes[1].plot(alphas, error_without, "--", color=grey, label="no noise")
axes[2].axhline(1, linestyle="--", color=grey)
for gamma, colour in zip(gammas, ("#7fb2e5", "#1b70b7"), strict=True):
    cell = sgf.open_sweep(path).sel(gamma=gamma)
    label = f"$\\gamma$ = {gamma}"
    logs = np.log(cell["landed_error"].transpose("alpha", "draw", "seed"))
    integral = cell["loss_integral"].mean(["draw", "seed"])
    axes[0].plot(alphas, integral, "o-", color=colour, label=label)
    axes[1].plot(alphas, np.exp(logs.mean(["draw", "seed"])), "o-", color=colour, label=label)
    gain = logs - np.log(theory[:, :, 2])[:, :, None]  # relative to no noise on the same data
    axes[2].fill_between(
        alphas,
        *np.exp(gain.quantile([0.05, 0.95], ["draw", "seed"])).values,
        color=colour,
        alpha=0.25,
        linewidth=0,
    )
    axes[2].plot(alphas, np.exp(gain.median(["draw", "seed"])), "o-", color=colour, label=label)
tidy(
    axes[0],
    title="Loss integral: noise prolongs the descent",
    x="$\\alpha$",
    y="$\\int L\\,dt$, mean",
    y_scale="linear",
)
tidy(axes[1], title="Validation error of the landed solution", x="$\\alpha$", y="geometric mean")
tidy(
    axes[2],
    title="Validation error / error without noise",
    x="$\\alpha$",
    y="median, 5% to 95% of seeds and draws",
    y_scale="linear",
)
for ax in axes:
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# **What to look at.** On the left, the loss integral grows in proportion to
# $\log(1/\alpha)$, and at the larger step size it lies above the closed form. In the
# middle, the error rises with $\alpha$; noise lowers it, and the larger step size
# lowers it more. On the right, the gain is largest at small $\alpha$: noise acts
# through $\gamma \int L$, and the integral is larger there.
#
# **Try next.**
# - Use processes: `sweep.run(path, executor=sgf.processes(2))`. Notebook 7 covers Dask,
#   MPI and job arrays.
# - Run the same sweep from a file: `sgfbias sweep runs.toml`, then `sgfbias status` and
#   `sgfbias show` on the store.
# - Make a cell raise an error. The error is stored in `runs["error"]`, the other cells
#   are completed, and `retry_failed=True` tries the cell again.

# %%
folder.cleanup()
