# %% [markdown]
# # 5. Gradients of hyperparameters
#
# Which initialisation and which step size generalise best? One can run a sweep
# (notebook 4) or compute a derivative. Every run of sgfbias is differentiable with
# respect to everything that it was given, along each seed's own random numbers. In this
# notebook we compute one such gradient, check it in two ways and follow it downhill.
# Then we learn forty hyperparameters at once, which no grid could do.

# %%
import warnings

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sgfbias as sgf
from sgfbias.study.plotting import tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The outcome
#
# An outcome is a function of the hyperparameters and of the key of **one** seed. Ours
# is the logarithm of the validation error $|\beta_\infty - \beta^*|_2^2$ of the
# solution to which the seed is going: we `simulate` for a short while and then `land`.
# The run is differentiated step by step, and the landed solution is differentiated by
# the implicit function theorem. The result is therefore the derivative of the limit,
# not of the point at which the run happens to stop.
#
# `dt` is the width of a solver step. If it were not given, it would be $\gamma$, and
# the run would become shorter as $\gamma$ falls.

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
# Both signs make sense: a larger initialisation (`log_alpha`) hurts, and more noise
# (`gamma`) helps. The standard errors are over seeds. The last line tells you whether a
# single seed dominates the mean. Near the edge of stability one would, and you would
# get a warning.
#
# ## Two checks
#
# 1. *Central differences*, $[f(\theta + \epsilon) - f(\theta - \epsilon)]/2\epsilon$,
#    with the same keys in both runs. Their error is of the order $\epsilon^2$, and
#    $\epsilon$ is small compared with $\theta$, so about six digits should agree.
# 2. *Theory, without noise.* As $\gamma \to 0$ the limit is
#    `select(problem, log_alpha)`, which needs no run. The gradient in `log_alpha` must
#    tend to the derivative of that solution's outcome.

# %%
epsilon = 1e-4
for name in start:
    moved = [
        sgf.hypergradient(outcome, {**start, name: start[name] + sign * epsilon}, keys=keys).value
        for sign in (1, -1)
    ]
    difference = float((moved[0] - moved[1]) / (2 * epsilon))
    by_gradient = float(gradient.gradient[name])
    print(f"d outcome / d {name:9}  by differences {difference:.7f}, by gradient {by_gradient:.7f}")


def outcome_without_noise(log_alpha):
    return jnp.log(problem.validation_error(sgf.select(problem, log_alpha).beta))


limit = float(jax.grad(outcome_without_noise)(start["log_alpha"]))
for gamma in (0.03, 0.01, 0.003):
    hyper = {**start, "gamma": jnp.asarray(gamma)}
    slope = float(sgf.hypergradient(outcome, hyper, keys=keys).gradient["log_alpha"])
    print(
        f"gamma {gamma:<6} slope in log alpha: "
        f"theory without noise {limit:.4f}, measured {slope:.4f}"
    )

# %% [markdown]
# ## Downhill
#
# `tune` follows the gradient with any Optax optimiser. It changes variables so that the
# hyperparameters stay within `bounds`. The random numbers stay the same in all
# iterations, so the outcome falls smoothly.

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
print(
    f"log error on seeds that the search has not seen: {float(fresh.value):.3f} "
    f"+- {float(fresh.error):.3f}, on the seeds of the search: {found.value:.3f}"
)

# %% [markdown]
# ## One alpha per coordinate
#
# The next question has forty answers. Many small regression tasks share the *support*
# of their truth: the same 4 coordinates of 40 matter in all of them. But each task has
# data and values of its own, and its ten examples are too few. Could the initialisation
# carry what the tasks have in common? The potential $\phi_\alpha$ charges more for a
# coordinate with a small $\alpha_j$, so **theory predicts** that $\alpha_j$ rises on
# the support and falls elsewhere.
#
# Here the key draws the task as well as the noise, and `tune` averages over tasks. It
# is never told the support.

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
learned = sgf.tune(
    task_error,
    uniform,
    keys=sgf.seeds(0, 32),
    optimiser=optax.adam(0.4),
    iterations=10,
    bounds=(-6.0, -0.5),
)
held_out = sgf.seeds(1000, 1032)
with warnings.catch_warnings():
    # Tasks without a limit raise a warning; they are counted below.
    warnings.simplefilter("ignore", UserWarning)
    before, after = (
        sgf.hypergradient(task_error, a, keys=held_out) for a in (uniform, learned.hyper)
    )
on = np.isin(np.arange(d), support)
values = np.asarray(learned.hyper)
print(
    f"log alpha on the support {values[on].min():.2f} to {values[on].max():.2f}, "
    f"elsewhere {values[~on].min():.2f} to {values[~on].max():.2f}"
)
among = int(np.isin(np.argsort(-values)[:4], support).sum())
print(f"coordinates of the support among the 4 largest alphas: predicted 4, measured {among}")
print(
    "geometric mean of the error on 32 unseen tasks: "
    f"uniform {np.exp(float(before.value)):.3f} ({before.excluded} tasks excluded), "
    f"learned {np.exp(float(after.value)):.4f} ({after.excluded} excluded)"
)

# %% [markdown]
# **What to look at.** The left picture shows the outcome falling during the search. The
# middle picture shows the path of the search, from the bottom right towards small
# $\alpha$ and large $\gamma$. The right picture shows the learned initialisation: the
# search found the four coordinates by itself.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for past, style, colour, label in (
    (history, "o-", "#1b70b7", "alpha and gamma"),
    (learned.history, "s-", "#e0a100", "40 alphas"),
):
    axes[0].plot(past["iteration"], np.exp(past["value"]), style, color=colour, label=label)
tidy(
    axes[0], title="Outcome", x="iteration", y="validation error (geometric mean)", x_scale="linear"
)
axes[0].legend(frameon=False)
axes[1].plot(history["log_alpha"], history["gamma"], "o-", color="#1b70b7")
tidy(
    axes[1],
    title="Path of the search",
    x="$\\log\\alpha$",
    y="$\\gamma$",
    x_scale="linear",
    y_scale="linear",
)
axes[2].bar(np.arange(d), np.exp(values), color=np.where(on, "#c23b8f", "#9a9a9a"))
axes[2].axhline(0.1, color="black", linewidth=1, linestyle="--")
tidy(
    axes[2],
    title="Learned $\\alpha_j$ (pink: the true support)",
    x="coordinate $j$",
    y="$\\alpha_j$",
    x_scale="linear",
)
plt.show()

# %% [markdown]
# **Try next.**
# - Move the support in the `held_out` tasks. What was learned should then hurt.
# - Learn a noise schedule: `sgf.LabelNoise(delta)` takes any function of the iteration,
#   and the parameters of that function can be hyperparameters
#   (`sgfbias run noise-schedule`).
# - Use `mode="forward"`, the other way to differentiate the same steps. The two modes
#   agree up to rounding.
# - Use the argument `growth=` of `hypergradient`, which measures how fast tangents
#   grow. Check it first when gradients become very large.
# - Use `checkpoint="search.npz"` in `tune`: a search that was killed is then resumed.
