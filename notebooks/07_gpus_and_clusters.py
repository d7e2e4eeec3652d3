# %% [markdown]
# # 7. GPUs and clusters
#
# The same code runs on a laptop, on a GPU and on a hundred nodes, **and it gives the
# same numbers however the work is divided**. This notebook shows what makes that
# possible: tiles, keys by absolute index, precision, and sweeps that many processes
# share. Everything here also runs on a CPU. Where a GPU or a cluster would differ, the
# text says so.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

# This allows float64; each problem has the precision of its own data.
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.core.tiles import tile_size
from sgfbias.study.plotting import COLOURS, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Devices and tiles
#
# You need not do anything to use a GPU: JAX finds it (install
# `pip install 'jax[cuda13]'`). Seeds are run in *tiles* of a fixed number, 64 on a CPU
# and 4096 on a GPU. The last tile is padded, and all local devices take tiles in turn.
# (The next cell prints what your machine has; the stored notebook leaves this output
# out.)

# %% tags=["machine"]
print(jax.devices(), "tiles of", tile_size(0), "seeds")

# %% [markdown]
# A tile has a fixed size because matrix products of different shapes round differently.
# In addition, the random numbers of a seed depend only on the seed's absolute number.
# **The first check** follows from this: a seed has the same result, bit for bit, alone
# or among others. (Between different *kinds* of device, such as a CPU and a GPU,
# rounding differs, and results agree only up to a tolerance.)


# %%
def experiment(keys, *, alpha, dtype="float64", steps=2000):
    # The data are drawn in float64 and then rounded: both precisions have the same.
    drawn = sgf.SparseRegression.sample(jax.random.key(1), n=20, d=50, sparsity=3)
    data = (array.astype(dtype) for array in (drawn.X, drawn.y, drawn.beta_star))
    problem = sgf.SparseRegression(*data)
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50, dtype=dtype)
    return sgf.simulate(sgf.StochasticGradientFlow(0.04), network, problem, keys=keys, steps=steps)


many = experiment(sgf.seeds(0, 1024), alpha=0.1)
some = experiment(sgf.seeds(130, 140), alpha=0.1)
differing = int(np.sum(np.asarray(many.final["beta"][130:140]) != np.asarray(some.final["beta"])))
print(
    "seeds 130 to 139 alone and among 1024, how many numbers differ: "
    f"predicted 0, measured {differing}"
)

# %% [markdown]
# ## float32 or float64
#
# The precision is that of the data (`dtype=`, or the type of your arrays). GPUs for
# gaming and inference are 32 to 64 times slower in float64, while an H100 is only twice
# as slow. The Brownian path is the same in both precisions, so a single seed already
# shows the effect of rounding. The unit of rounding of float32 is
# $\epsilon \approx 10^{-7}$.
#
# **What to expect.** The flow contracts towards its solution and forgets small errors.
# At the end the two runs therefore differ by a few $\epsilon$, far less than two seeds
# do. The loss behaves differently. It is made of the residuals $r = X\beta - y$, which
# are differences of numbers of the size of $y$, so $|r|$ is known only up to about
# $\epsilon |y|$. The relative error of $L = |r|^2/4n$ is thus of the order
# $2\epsilon |y| / |r| = \epsilon |y| / \sqrt{n L}$. It grows as the loss falls, and
# once it reaches 1, float32 can go no further.
#
# `land` and `select` ask for a relative tolerance of $10^{-5}$ in float32 and
# $10^{-12}$ in float64. As a rule, use float32 to explore and for networks, and float64
# where small differences are the subject.

# %%
single = experiment(sgf.seeds(0, 64), alpha=0.1, dtype="float32")
ends = np.asarray(many.final["beta"][:64])
size = np.linalg.norm(ends, axis=1)
off = np.linalg.norm(np.asarray(single.final["beta"], np.float64) - ends, axis=1) / size
spread = np.linalg.norm(ends - ends.mean(axis=0), axis=1) / size
eps = float(np.finfo(np.float32).eps)
print(
    f"relative difference of float32 and float64 at the end: {np.median(off):.1e}, "
    f"or {np.median(off) / eps:.1f} units of rounding; "
    f"relative spread over seeds: {np.median(spread):.1e}"
)
law = many.network.log_alpha - 2 * 0.04 * many.problem.h * many.final["loss_integral"][:64, None]
worst = float(jnp.max(jnp.abs(single.final["log_alpha"].astype(jnp.float64) - law)))
print(
    "largest deviation of float32 from the evolution law of log alpha, "
    f"with the loss integral of float64: {worst:.1e}"
)
T, exact = np.asarray(many.times)[1:], np.asarray(many["loss"][:64, 1:])
loss_off = np.abs(np.asarray(single["loss"][:, 1:], np.float64) / exact - 1)
predicted = eps * np.linalg.norm(many.problem.y) / np.sqrt(many.problem.n * exact)
print(
    "relative error of the loss at the end (medians): predicted to be of the order "
    f"{np.median(predicted[:, -1]):.0e}, measured {np.median(loss_off[:, -1]):.0e}"
)

# %% [markdown]
# ## Why more seeds
#
# The standard error of a mean over $N$ seeds is $\sigma/\sqrt N$. This is the reason to
# want a GPU, and it is also **the second check**. We divide the 1024 seeds into groups
# of $N$, take the mean validation error of each group, and measure how much these means
# scatter. Theory predicts the line $\sigma/\sqrt N$.

# %%
errors = np.asarray(many.final["validation_error"])
sizes = 2 ** np.arange(0, 7)
scatter = np.array([errors.reshape(-1, size).mean(axis=1).std(ddof=1) for size in sizes])
slope = np.polyfit(np.log(sizes), np.log(scatter), 1)[0]
print(f"scatter of the means over N seeds, slope in N: predicted -0.5, measured {slope:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(T, loss_off[:40].T, ".", color=COLOURS["sgd"], markersize=2, alpha=0.4)
axes[0].plot([], [], ".", color=COLOURS["sgd"], label="float32, 40 seeds")
order = np.median(predicted, axis=0)
axes[0].plot(T, order, color="black", linewidth=1, label="$\\epsilon\\,|y|/\\sqrt{nL}$")
axes[0].axhline(eps, color="black", linewidth=1, linestyle=":", label="$\\epsilon$")
tidy(
    axes[0], title="Relative error of the loss in float32", x="flow time", y="$|L_{32}/L_{64} - 1|$"
)
axes[0].set_ylim(1e-9, None)
axes[0].legend(frameon=False)
axes[1].plot(sizes, scatter, "o", color=COLOURS["sgf"], label="measured")
expected = errors.std(ddof=1) / np.sqrt(sizes)
axes[1].plot(sizes, expected, color="black", linewidth=1, label="$\\sigma/\\sqrt{N}$")
tidy(axes[1], title="Scatter of the mean over N seeds", x="N", y="standard deviation")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# **What to look at.** On the left, the points rise with the line and stay mostly below
# it, as one expects of an order of magnitude. On the right, the points follow the line;
# the last ones come from few groups and scatter more.
#
# ## Job arrays: shares of one sweep
#
# On a cluster, each job of an array takes its share of the chunks. All jobs write into
# one store on a file system that all of them see:
#
#     #SBATCH --array=0-2
#     sgfbias sweep runs.toml --out results \
#         --share $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
#
# The jobs do not communicate. The job that ends last completes the store, and a job
# that died is started again with its own share. In Python the option is `share=(i, n)`,
# and under `jax.distributed` every process takes its own share automatically. Below,
# three "jobs" run one after the other, in the wrong order. **The third check:** their
# store must equal the store of a single process.


# %%
def cell(keys, *, alpha):
    runs = experiment(keys, alpha=alpha, steps=500)
    return {
        "validation_error": runs.final["validation_error"],
        "loss_integral": runs.final["loss_integral"],
    }


folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
sweep = sgf.Sweep(cell, {"alpha": [0.05, 0.1, 0.2]}, seeds=256, chunk=64)
for job in (2, 0, 1):
    so_far = sweep.run(root / "shared.zarr", share=(job, 3))
    print(f"share {job}/3 done, runs in the store: {int(so_far['runs_done'].sum())} of 768")
alone = sweep.run(root / "alone.zarr")
names = "validation_error", "loss_integral"
same = all(np.array_equal(so_far[name], alone[name]) for name in names)
print(f"three shares and one process give identical stores: predicted True, measured {same}")

# %% [markdown]
# ## Executors: processes, Dask, MPI
#
# `sweep.run(path, executor=...)` takes any object with the `submit` method of
# `concurrent.futures`. The workers write into the store themselves, each into files of
# its own.
#
# | where | executor |
# | --- | --- |
# | processes of this machine | `sgf.processes(4)` |
# | Dask | `dask.distributed.Client("tcp://host:8786").get_executor()` |
# | MPI | `mpi4py.futures.MPIPoolExecutor()` |
# | one process per GPU | any of these, with a `CUDA_VISIBLE_DEVICES` per worker |
#
# `sgf.processes` replaces a pool that lost a worker. Dask needs
# `pip install 'sgfbias[dask]'`.
#
# Processes import the experiment by its name, so it must live in a module and not in a
# notebook. We write such a module and run it as you would on the command line, with
# `--workers 2`, which means `sgf.processes(2)`. Then we run it a second time, when
# nothing is left to do. (For Dask the script is the same, with
# `--dask tcp://host:8786`.)

# %%
(root / "moved.py").write_text("""
import jax
import sgfbias as sgf

def cell(keys, *, alpha):
    key = jax.random.key(1)
    problem = sgf.SparseRegression.sample(key, n=20, d=50, sparsity=3, dtype="float64")
    network = sgf.DiagonalNetwork.init(alpha=alpha, d=50, dtype="float64")
    flow = sgf.StochasticGradientFlow(0.04)
    final = sgf.simulate(flow, network, problem, keys=keys, steps=500).final
    return {name: final[name] for name in ("validation_error", "loss_integral")}
""")
(root / "runs.toml").write_text("""
function = "moved:cell"
seeds = "0:256"
chunk = 64
[grid]
alpha = [0.05, 0.1, 0.2]
""")
options = ["sweep", "runs.toml", "--out", "results", "--workers", "2"]
command = [sys.executable, "-m", "sgfbias.cli", *options]
environment = os.environ | {"JAX_ENABLE_X64": "1"}
for attempt in ("first", "second"):
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    print(f"{attempt} time: exit status {result.returncode}")
stores = list((root / "results").glob("*.zarr"))
by_processes = sgf.open_sweep(stores[0])
same = np.array_equal(by_processes["validation_error"], alone["validation_error"])
print(
    "two processes of the command line and this process give identical results: "
    f"predicted True, measured {same}"
)

# %% [markdown]
# **Try next.**
# - Run `sgfbias status results/runs.zarr` in another terminal while a sweep runs. It
#   shows how many runs are done, failed or diverged, the rate, and the time left.
# - Kill a worker, or the whole sweep, with `kill -9`, and run the sweep again.
# - On a GPU a tile holds 4096 seeds, and fewer seeds leave the GPU idle. Give a sweep
#   larger chunks there (`chunk=`).
# - To save memory, record few times (`Record(times=2)`). If a device runs out of
#   memory, fewer tiles run at once.

# %%
folder.cleanup()
