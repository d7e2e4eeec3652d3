# %% [markdown]
# # 7. GPUs and clusters
#
# The same code runs on a laptop, on a GPU and on a hundred nodes, **and gives the same numbers however the work is divided**. This notebook
# shows on what that rests: tiles, keys by absolute index, precision, and sweeps that many processes share. All of it runs on a CPU too;
# where a GPU or a cluster would differ, the text says so.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)  # allows float64; each problem has the precision of its own data

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.core.tiles import tile_size
from sgfbias.plotting import COLOURS, tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Devices and tiles
#
# Nothing has to be said to use a GPU: JAX finds it (`pip install 'jax[cuda12]'`). Seeds are run in *tiles* of a fixed number, 64 on a CPU
# and 4096 on a GPU, the last one padded; all local devices take tiles in turn. (What your machine has is printed here and left out of the
# stored notebook.)

# %% tags=["machine"]
print(jax.devices(), "tiles of", tile_size(0), "seeds")

# %% [markdown]
# A tile has a fixed size because matrix products of different shapes round differently. And a seed's random numbers depend on its absolute
# number alone. So **first check:** a seed has the same result, bit for bit, alone or among others. (Between *kinds* of device, a CPU and a
# GPU say, rounding differs, and results agree to a tolerance only.)


# %%
def experiment(keys, *, alpha, dtype="float64", steps=2000):
    drawn = sgf.SparseRegression.sample(jax.random.key(1), n=20, d=50, sparsity=3)  # in float64, and rounded: the same data in both
    problem = sgf.SparseRegression(*(array.astype(dtype) for array in (drawn.X, drawn.y, drawn.beta_star)))
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50, dtype=dtype)
    return sgf.simulate(sgf.StochasticGradientFlow(0.04), network, problem, keys=keys, steps=steps)


many = experiment(sgf.seeds(0, 1024), alpha=0.1)
some = experiment(sgf.seeds(130, 140), alpha=0.1)
differing = int(np.sum(np.asarray(many.final["beta"][130:140]) != np.asarray(some.final["beta"])))
print(f"seeds 130 to 139, alone and among 1024: numbers that differ: predicted 0, measured {differing}")

# %% [markdown]
# ## float32 or float64
#
# The precision is that of the data (`dtype=`, or of your arrays). GPUs for gaming and inference are 32 to 64 times slower in float64, an
# H100 only twice. The Brownian path is the same in both, so one can see on a single seed what rounding does. The unit of rounding of
# float32 is $\epsilon \approx 10^{-7}$.
#
# **What to expect.** The flow contracts towards its solution and forgets small errors, so at the end the two runs are a few $\epsilon$
# apart, far less than two seeds are. The loss is another matter: it is made of residuals $r = X\beta - y$, differences of numbers the size
# of $y$, and $|r|$ is known to about $\epsilon |y|$ only. So the relative error of $L = |r|^2/4n$ is of the order $2\epsilon |y| / |r| =
# \epsilon |y| / \sqrt{n L}$: it grows as the loss falls, and where it reaches 1 float32 can go no further. *Landing* and `select` ask for a
# relative tolerance of $10^{-5}$ in float32 and $10^{-12}$ in float64. So: float32 to explore and for networks; float64 where small
# differences are the subject.

# %%
single = experiment(sgf.seeds(0, 64), alpha=0.1, dtype="float32")
ends = np.asarray(many.final["beta"][:64])
off = np.linalg.norm(np.asarray(single.final["beta"], np.float64) - ends, axis=1) / np.linalg.norm(ends, axis=1)
spread = np.linalg.norm(ends - ends.mean(axis=0), axis=1) / np.linalg.norm(ends, axis=1)
eps = float(np.finfo(np.float32).eps)
print(
    f"float32 against float64 at the end: {np.median(off):.1e} relative, {np.median(off) / eps:.1f} units of rounding; spread over seeds {np.median(spread):.1e}"
)
law = many.network.log_alpha - 2 * 0.04 * many.problem.h * many.final["loss_integral"][:64, None]
worst = float(jnp.max(jnp.abs(single.final["log_alpha"].astype(jnp.float64) - law)))
print(f"law of log alpha from the float64 run's integral: largest deviation of float32 {worst:.1e}")
T, exact = np.asarray(many.times)[1:], np.asarray(many["loss"][:64, 1:])
loss_off = np.abs(np.asarray(single["loss"][:, 1:], np.float64) / exact - 1)
predicted = eps * np.linalg.norm(many.problem.y) / np.sqrt(many.problem.n * exact)
print(
    f"relative error of the loss at the end: of the order {np.median(predicted[:, -1]):.0e} predicted, {np.median(loss_off[:, -1]):.0e} measured (medians)"
)

# %% [markdown]
# ## Why more seeds
#
# The standard error of a mean over $N$ seeds is $\sigma/\sqrt N$. That is the reason to want a GPU, and the **second check**: we cut the
# 1024 seeds in groups of $N$, take the mean validation error in each, and measure how the means scatter. Predicted: the line $\sigma/\sqrt
# N$.

# %%
errors = np.asarray(many.final["validation_error"])
sizes = 2 ** np.arange(0, 7)
scatter = np.array([errors.reshape(-1, size).mean(axis=1).std(ddof=1) for size in sizes])
slope = np.polyfit(np.log(sizes), np.log(scatter), 1)[0]
print(f"scatter of means of N seeds, slope in N: predicted -0.5, measured {slope:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(T, loss_off[:40].T, ".", color=COLOURS["sgd"], markersize=2, alpha=0.4)
axes[0].plot([], [], ".", color=COLOURS["sgd"], label="float32, 40 seeds")
axes[0].plot(T, np.median(predicted, axis=0), color="black", linewidth=1, label="$\\epsilon\\,|y|/\\sqrt{nL}$")
axes[0].axhline(eps, color="black", linewidth=1, linestyle=":", label="$\\epsilon$")
tidy(axes[0], title="Relative error of the loss in float32", x="flow time", y="$|L_{32}/L_{64} - 1|$")
axes[0].set_ylim(1e-9, None)
axes[0].legend(frameon=False)
axes[1].plot(sizes, scatter, "o", color=COLOURS["sgf"], label="measured")
axes[1].plot(sizes, errors.std(ddof=1) / np.sqrt(sizes), color="black", linewidth=1, label="$\\sigma/\\sqrt{N}$")
tidy(axes[1], title="Scatter of the mean over N seeds", x="N", y="standard deviation")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# **What to look at.** Left: the points rise with the line and stay mostly below it, as they should with an order of magnitude. Right: the
# points follow the line; the last ones are from few groups and scatter more.
#
# ## Job arrays: shares of one sweep
#
# On a cluster each job of an array takes its share of the chunks, all into one store on a file system that all see:
#
#     #SBATCH --array=0-2
#     sgfbias sweep runs.toml --out results --share $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
#
# Shares do not talk to each other. Whichever ends last completes the store; one that died is started again with its own share. In Python it
# is `share=(i, n)`, and under `jax.distributed` every process takes its share by itself. Below, three "jobs" run one after the other, in
# the wrong order. **Third check:** the store must be the same as that of a single process.


# %%
def cell(keys, *, alpha):
    runs = experiment(keys, alpha=alpha, steps=500)
    return {"validation_error": runs.final["validation_error"], "loss_integral": runs.final["loss_integral"]}


folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
sweep = sgf.Sweep(cell, {"alpha": [0.05, 0.1, 0.2]}, seeds=256, chunk=64)
for job in (2, 0, 1):
    so_far = sweep.run(root / "shared.zarr", share=(job, 3))
    print(f"share {job}/3 done, runs in the store: {int(so_far['runs_done'].sum())} of 768")
alone = sweep.run(root / "alone.zarr")
same = all(np.array_equal(so_far[name], alone[name]) for name in ("validation_error", "loss_integral"))
print(f"three shares against one process: identical, predicted True, measured {same}")

# %% [markdown]
# ## Executors: processes, Dask, MPI
#
# `sweep.run(path, executor=...)` takes anything with the `submit` of `concurrent.futures`. Workers write the store themselves, in disjoint
# files.
#
# | where | executor |
# | --- | --- |
# | processes of this machine | `sgf.processes(4)`, which replaces a pool that lost a worker |
# | Dask (`pip install 'sgfbias[dask]'`) | `dask.distributed.Client("tcp://host:8786").get_executor()` |
# | MPI | `mpi4py.futures.MPIPoolExecutor()` |
# | one process per GPU | any of these, each worker started with its own `CUDA_VISIBLE_DEVICES` |
#
# Processes import the experiment by name, so it must live in a module, not in a notebook. We write one, and run it as a user of the command
# line would: with `--workers 2`, which is `sgf.processes(2)`, and then again, when nothing is left to do. (The script is the same for Dask:
# `--dask tcp://host:8786`.)

# %%
(root / "moved.py").write_text("""
import jax
import sgfbias as sgf

def cell(keys, *, alpha):
    problem = sgf.SparseRegression.sample(jax.random.key(1), n=20, d=50, sparsity=3, dtype="float64")
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50, dtype="float64")
    runs = sgf.simulate(sgf.StochasticGradientFlow(0.04), network, problem, keys=keys, steps=500)
    return {"validation_error": runs.final["validation_error"], "loss_integral": runs.final["loss_integral"]}
""")
(root / "runs.toml").write_text("""
function = "moved:cell"
seeds = "0:256"
chunk = 64
[grid]
alpha = [0.05, 0.1, 0.2]
""")
command = [sys.executable, "-m", "sgfbias.cli", "sweep", "runs.toml", "--out", "results", "--workers", "2"]
for attempt in ("first", "second"):
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"JAX_ENABLE_X64": "1"})
    print(f"{attempt} time: exit status {result.returncode}")
stores = list((root / "results").glob("*.zarr"))
by_processes = sgf.open_sweep(stores[0])
same = np.array_equal(by_processes["validation_error"], alone["validation_error"])
print(f"two processes, from the command line, against this one: identical, predicted True, measured {same}")

# %% [markdown]
# **Try next.**
# - `sgfbias status results/runs.zarr` from another terminal while a sweep runs: done, failed, diverged, rate and time left.
# - Kill a worker, or the whole sweep, with `kill -9`; run it again.
# - On a GPU a tile holds 4096 seeds, and fewer leave it idle: give a sweep larger chunks (`chunk=`).
# - Memory: record few times (`Record(times=2)`); where a device runs out, fewer tiles run at once.

# %%
folder.cleanup()
