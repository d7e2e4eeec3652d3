# %% [markdown]
# # 5. Gradients of hyperparameters
#
# Which initialisation and which step size generalise best? One can sweep (notebook 4), or ask the derivative. Every run here is
# differentiable with respect to everything it was given, along each seed's own random numbers. We look at one such gradient, check it two
# ways, follow it downhill, and then learn forty hyperparameters at once, which no grid could.

# %%
import warnings

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sgfbias as sgf
from sgfbias.plotting import tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The outcome
#
# A function of the hyperparameters and of **one** seed's key. Ours is the logarithm of the validation error $|\beta_\infty - \beta^*|_2^2$
# of the solution that the seed is going to: `simulate` for a short while, then `land`. The run is differentiated step by step, and the
# landed solution by the implicit function theorem, so the derivative is that of the limit, not of where the run happens to stop. `dt` is
# the width of a solver step; without it that would be $\gamma$, and the run would become shorter with $\gamma$.

# %%
problem = sgf.SparseRegression.sample(jax.random.key(1), n=20, d=50, sparsity=3)


def outcome(hyper, key):
    network = sgf.DiagonalNetwork.init(log_alpha=hyper["log_alpha"], d=50)
    flow = sgf.StochasticGradientFlow(hyper["gamma"], dt=0.04)
    runs = sgf.simulate(flow, network, problem, keys=key, steps=200, record=sgf.Record(times=2))
    return jnp.log(sgf.land(runs).validation_error)


start = {"log_alpha": jnp.log(0.2), "gamma": jnp.asarray(0.03)}
keys = sgf.seeds(0, 32)
gradient = sgf.hypergradient(outcome, start, keys=keys)
print(gradient)

# %% [markdown]
# Both signs make sense: a larger initialisation (`log_alpha`) hurts, more noise (`gamma`) helps. The standard errors are over seeds. The
# last line says whether a single seed makes up the mean; near the edge of stability it would, and you would be warned.
#
# ## Two checks
#
# 1. *Central differences*, $[f(\theta + \epsilon) - f(\theta - \epsilon)]/2\epsilon$, with the same keys in both runs. Their error is of
#    the order $\epsilon^2$, with $\epsilon$ small against $\theta$: six digits or so should agree.
# 2. *Theory, without noise*: as $\gamma \to 0$ the limit is `select(problem, log_alpha)` and no run is needed. Its derivative must be what
#    the gradient in `log_alpha` tends to.

# %%
epsilon = 1e-4
for name in start:
    moved = [sgf.hypergradient(outcome, {**start, name: start[name] + sign * epsilon}, keys=keys).value for sign in (1, -1)]
    difference = float((moved[0] - moved[1]) / (2 * epsilon))
    print(f"d outcome / d {name:9}  by differences {difference:.7f}, by gradient {float(gradient.gradient[name]):.7f}")

limit = float(jax.grad(lambda a: jnp.log(problem.validation_error(sgf.select(problem, a).beta)))(start["log_alpha"]))
for gamma in (0.03, 0.01, 0.003):
    slope = sgf.hypergradient(outcome, {**start, "gamma": jnp.asarray(gamma)}, keys=keys).gradient["log_alpha"]
    print(f"gamma {gamma:<6} slope in log alpha: without noise, in theory, {limit:.4f}; measured {float(slope):.4f}")

# %% [markdown]
# ## Downhill
#
# `tune` follows the gradient with any Optax optimiser. `bounds` are kept by a change of variables. The random numbers stay the same, so the
# outcome falls smoothly.

# %%
found = sgf.tune(
    outcome,
    start,
    keys=keys,
    optimiser=optax.adam(0.3),
    iterations=12,
    bounds={"gamma": (0.005, 0.06), "log_alpha": (-4.0, 0.0)},
)
history = found.history
print(found)
fresh = sgf.hypergradient(outcome, found.hyper, keys=sgf.seeds(32, 64))
print(f"log error on seeds the search has not seen: {float(fresh.value):.3f} +- {float(fresh.error):.3f}, on its own {found.value:.3f}")

# %% [markdown]
# ## One alpha per coordinate
#
# Now a question with forty answers. Many small regression tasks share the *support* of their truth (the same 4 coordinates of 40 matter),
# but each has its own data and values. Ten examples per task are too few. Could the initialisation carry what the tasks have in common? The
# potential $\phi_\alpha$ charges a coordinate with small $\alpha_j$ more, so **theory predicts**: $\alpha_j$ rises on the support and falls
# elsewhere.
#
# Here the key draws the task as well as the noise, and `tune` averages over tasks. It is never told the support.

# %%
d, n, support = 40, 10, np.array([3, 11, 24, 33])


def task(key):
    inputs, values, noise = jax.random.split(jax.random.fold_in(key, 1), 3)
    X = jax.random.normal(inputs, (n, d))
    beta = jnp.zeros(d).at[support].set(jax.random.normal(values, (support.size,)))
    return sgf.SparseRegression(X, X @ beta + 0.05 * jax.random.normal(noise, (n,)), beta)


def task_error(log_alpha, key):
    network = sgf.DiagonalNetwork.init(log_alpha=log_alpha, d=d)
    flow = sgf.StochasticGradientFlow(0.02, dt=0.03)
    runs = sgf.simulate(flow, network, task(key), keys=key, steps=300, record=sgf.Record(times=2))
    return jnp.log(sgf.land(runs).validation_error)


uniform = jnp.full(d, jnp.log(0.1))
learned = sgf.tune(task_error, uniform, keys=sgf.seeds(0, 32), optimiser=optax.adam(0.4), iterations=10, bounds=(-6.0, -0.5))
held_out = sgf.seeds(1000, 1032)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of tasks without a limit, which are counted below
    before, after = (sgf.hypergradient(task_error, a, keys=held_out) for a in (uniform, learned.hyper))
on = np.isin(np.arange(d), support)
values = np.asarray(learned.hyper)
print(
    f"log alpha on the support {values[on].min():.2f} to {values[on].max():.2f}, elsewhere {values[~on].min():.2f} to {values[~on].max():.2f}"
)
print(
    f"coordinates of the support among the 4 largest alphas: predicted 4, measured {int(np.isin(np.argsort(-values)[:4], support).sum())}"
)
print(
    f"geometric mean error on 32 unseen tasks ({before.excluded} and {after.excluded} lost): uniform {np.exp(float(before.value)):.3f}, learned {np.exp(float(after.value)):.4f}"
)

# %% [markdown]
# **What to look at.** Left: the outcome falls as the search goes on. Middle: its path, from the bottom right, towards small $\alpha$ and
# large $\gamma$. Right: the learned initialisation; the search found the four coordinates by itself.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
axes[0].plot(history["iteration"], np.exp(history["value"]), "o-", color="#1b70b7", label="alpha and gamma")
axes[0].plot(learned.history["iteration"], np.exp(learned.history["value"]), "s-", color="#e0a100", label="40 alphas")
tidy(axes[0], title="Outcome", x="iteration", y="validation error (geometric mean)", x_scale="linear")
axes[0].legend(frameon=False)
axes[1].plot(history["log_alpha"], history["gamma"], "o-", color="#1b70b7")
tidy(axes[1], title="Path of the search", x="$\\log\\alpha$", y="$\\gamma$", x_scale="linear", y_scale="linear")
axes[2].bar(np.arange(d), np.exp(values), color=np.where(on, "#c23b8f", "#9a9a9a"))
axes[2].axhline(0.1, color="black", linewidth=1, linestyle="--")
tidy(axes[2], title="Learned $\\alpha_j$ (pink: the true support)", x="coordinate $j$", y="$\\alpha_j$", x_scale="linear")
plt.show()

# %% [markdown]
# **Try next.**
# - Move the support in `held_out` tasks: what was learned then hurts, as it should.
# - A noise schedule: `sgf.LabelNoise(delta)` takes any function of the iteration, and its parameters can be hyperparameters (`sgfbias run
#   noise-schedule`).
# - `mode="forward"`: the other way to differentiate the same steps; it agrees to rounding.
# - `growth=` of `hypergradient` measures how fast tangents grow: the first thing to look at when gradients become wild.
# - `checkpoint="search.npz"` in `tune`: a search that may be killed and goes on.
