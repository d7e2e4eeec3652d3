# %% [markdown]
# # 4. A sweep, from plan to picture
#
# How does the solution depend on the initialisation $\alpha$ and on the step size $\gamma$, over seeds and over draws of the data? That is
# a grid of many runs, and a machine that will be switched off at the wrong moment. `sgf.Sweep` runs the grid into a store that survives
# being killed. Here we plan one, interrupt it, resume it, and read a picture from the store.

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
from sgfbias.plotting import tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The experiment
#
# A function of the keys of some seeds and of one value of every axis. It returns a trajectory, a dataset, or named arrays with a leading
# seed axis. It is called with some of the seeds at a time, so a seed's result may depend on its own key only; `simulate` sees to that.
#
# For each $\alpha$, $\gamma$ and draw of the data we keep the loss integral $S = \int L\,dt$ and the validation error $|\beta -
# \beta^*|_2^2$ of the *landed* solution: where each run is going (notebook 1), so that small $\alpha$ need no endless runs.


# %%
def experiment(keys, *, alpha, gamma, draw):
    problem = sgf.SparseRegression.sample(jax.random.key(draw), n=20, d=50, sparsity=3)
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50)
    runs = sgf.simulate(sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=round(40 / gamma), record=sgf.Record(times=2))
    landed = sgf.land(runs)
    return {"loss_integral": runs.final["loss_integral"] + landed.remaining, "landed_error": landed.validation_error, "status": runs.status}


alphas, gammas = np.geomspace(1e-3, 1e-1, 4), [0.02, 0.06]
sweep = sgf.Sweep(experiment, {"alpha": alphas, "gamma": gammas}, seeds=(0, 64), draws=3, chunk=64)
print(sweep)

# %% [markdown]
# ## The plan
#
# `plan` runs the first chunk twice (the first time compiles) and tells runs, memory and time. Nothing is written. On the command line it is
# `sgfbias sweep runs.toml --dry-run`.

# %%
plan = sweep.plan()
print(f"{plan.runs:,} runs in {plan.chunks} chunks of {plan.chunk} seeds, {plan.store_bytes / 1e6:.2f} MB before compression")

# %% [markdown]
# `print(plan)` also shows the device, the seconds a chunk takes and the time that is left. They are your machine's, so the stored notebook
# leaves this output out.

# %% tags=["machine"]
print(plan)

# %% [markdown]
# ## Interrupted
#
# We press Ctrl-C in the middle, by sending ourselves the signal after 8 chunks. The chunk in flight is finished and kept, and `run` raises
# `SweepInterrupted`. (Pulling the plug also loses nothing but the chunks in flight.)

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
print(f"status: {state['done']:,} of {state['runs']:,} runs done, {state['failed']} failed, {state['diverged']} diverged")
print(f"cells with something in them: {sum(cell['done'] > 0 for cell in state['cells'])} of {len(state['cells'])}")

# %% [markdown]
# An unfinished store can be opened; what is missing is NaN. And it knows what it belongs to: a sweep with another grid, other seeds,
# another experiment or precision is refused, so that nothing is mixed.

# %%
partial = sgf.open_sweep(path)
print(f"median error of the first cell, already: {float(partial['landed_error'][0, 0, 0].median()):.2e}")
try:
    sgf.Sweep(experiment, {"alpha": alphas, "gamma": [0.02, 0.03]}, seeds=(0, 64), draws=3, chunk=64).run(path)
except sgf.StoreError as refused:
    print("refused:", str(refused).replace(str(path), "runs.zarr"))

# %% [markdown]
# ## Resumed
#
# The same command again does what is missing. **First check:** the log in the store has a line per chunk; each must be there once, and a
# chunk computed anew must have the stored numbers bit for bit.

# %%
runs = sweep.run(path)
events = [json.loads(line) for line in (path / "ledger" / "log.jsonl").read_text().splitlines()]
done = [(event["cell"], event["chunk"]) for event in events if event["event"] == "chunk"]
print(
    f"chunks computed: predicted {plan.chunks}, measured {len(done)}, of which different {len(set(done))}, in {len({e['session'] for e in events})} sessions"
)
again = experiment(sgf.seeds(0, 64), alpha=alphas[2], gamma=gammas[1], draw=1)
stored = runs["landed_error"].sel(alpha=alphas[2], gamma=gammas[1], draw=1)
print(
    f"a chunk computed again: seeds that differ from the store: predicted 0, measured {int(np.sum(np.asarray(again['landed_error']) != stored.values))}"
)
print(f"the store: {', '.join(sorted(map(str, runs.data_vars)))}; {', '.join(f'{name} {count}' for name, count in runs.sizes.items())}")

# %% [markdown]
# ## What theory says about the grid
#
# Without noise the loss integral is known in closed form:
#
# $$S_0 = \int_0^\infty L\,dt = \tfrac12[\phi_\alpha(\beta_\infty) - \phi_\alpha(0)],\qquad \beta_\infty = \arg\min_{X\beta = y}\phi_\alpha(\beta),$$
#
# with $\phi_\alpha$ the potential of notebook 1, and it grows as $\frac14 |\beta_\infty|_1 \log(1/\alpha)$ as $\alpha$ falls. With noise it
# is larger, by a factor that goes to 1 with $\gamma$: noise slows the descent by about $\frac{\gamma}{2}\langle h, \xi_t +
# \xi_\infty\rangle$ of itself, with $\xi = w_+^2 + w_-^2$, close to $|\beta|$, and $h$ the mean squares of the features. **Second check:**
# the integral over $S_0$, and the same with $1/(1 - \gamma\langle h, \xi_\infty\rangle)$, what the factor would be if $\xi_t$ were at its
# end all the time; it starts near 0, so the truth must lie between 1 and that.


# %%
def noiseless(alpha, draw):
    """The loss integral of the gradient flow, and <h, xi> where it ends."""
    problem = sgf.SparseRegression.sample(jax.random.key(draw), n=20, d=50, sparsity=3)
    log_alpha = jnp.full(50, jnp.log(alpha))
    beta = sgf.select(problem, log_alpha).beta
    xi = jnp.sqrt(beta**2 + 4 * jnp.exp(4 * log_alpha))
    return (potential(beta, log_alpha) - potential(jnp.zeros(50), log_alpha)) / 2, problem.h @ xi, problem.validation_error(beta)


theory = np.array([[[float(v) for v in noiseless(alpha, int(draw))] for draw in runs["draw"]] for alpha in alphas])  # (alpha, draw, 3)
factor = (runs["loss_integral"].mean("seed").transpose("alpha", "draw", "gamma") / theory[:, :, :1]).values
for k, gamma in enumerate(gammas):
    upper = 1 / (1 - gamma * theory[:, :, 1])
    print(
        f"gamma {gamma}: integral over S_0, by alpha:  predicted 1 to {np.round(upper.mean(axis=1), 2)}, measured {np.round(factor[:, :, k].mean(axis=1), 2)}"
    )

# %% [markdown]
# ## The picture
#
# `open_sweep(path)`, or what `run` returns, is an `xarray.Dataset` that reads what is asked of it.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
axes[0].plot(alphas, theory[:, :, 0].mean(axis=1), "--", color="#4d4d4d", label="no noise, closed form")
axes[1].plot(alphas, np.exp(np.log(theory[:, :, 2]).mean(axis=1)), "--", color="#4d4d4d", label="no noise")
axes[2].axhline(1, linestyle="--", color="#4d4d4d")
for gamma, colour in zip(gammas, ("#7fb2e5", "#1b70b7"), strict=True):
    cell = sgf.open_sweep(path).sel(gamma=gamma)
    logs, label = np.log(cell["landed_error"].transpose("alpha", "draw", "seed")), f"$\\gamma$ = {gamma}"
    axes[0].plot(alphas, cell["loss_integral"].mean(["draw", "seed"]), "o-", color=colour, label=label)
    axes[1].plot(alphas, np.exp(logs.mean(["draw", "seed"])), "o-", color=colour, label=label)
    gain = logs - np.log(theory[:, :, 2])[:, :, None]  # against no noise on the same data
    axes[2].fill_between(alphas, *np.exp(gain.quantile([0.05, 0.95], ["draw", "seed"])).values, color=colour, alpha=0.25, linewidth=0)
    axes[2].plot(alphas, np.exp(gain.median(["draw", "seed"])), "o-", color=colour, label=label)
tidy(axes[0], title="Loss integral: noise prolongs the descent", x="$\\alpha$", y="$\\int L\\,dt$, mean", y_scale="linear")
tidy(axes[1], title="Validation error of the landed solution", x="$\\alpha$", y="geometric mean")
tidy(axes[2], title="... over that without noise", x="$\\alpha$", y="median, 5% to 95% of seeds and draws", y_scale="linear")
for ax in axes:
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# **What to look at.** Left: the integral grows in proportion to $\log(1/\alpha)$ and, at a larger step size, lies above the closed form.
# Middle: the error rises with $\alpha$, and noise lowers it, more at the larger step size. Right: noise acts through $\gamma \int L$, and
# the integral is larger at small $\alpha$, so the gain grows to the left.
#
# **Try next.**
# - `sweep.run(path, executor=sgf.processes(2))` for processes; Dask, MPI and job arrays are in notebook 7.
# - The same from a file: `sgfbias sweep runs.toml`, then `sgfbias status` and `sgfbias show` on the store.
# - Make a cell raise an error: it is marked in `runs["error"]`, the rest completes, and `retry_failed=True` tries it again.

# %%
folder.cleanup()
