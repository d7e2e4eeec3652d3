# %% [markdown]
# # 6. Your own model and data
#
# The theory of notebooks 1 to 5 is about diagonal networks, but the simulation is not
# restricted to them: `simulate` trains **any Equinox module on any data**, with SGD and
# with its flow, through the same calls. Here a small network learns to separate two
# moons. Is the stochastic flow a faithful model of SGD, and which noise must it have
# for that?

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.study.plotting import COLOURS, band, line, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Model, data, loss
#
# - The **model** maps *one* example to its output. Here it is an `eqx.nn.MLP` from
#   $\mathbb{R}^2$ to one number. `simulate` maps it over the examples.
# - The **data** are NumPy or JAX arrays whose leading axis is the examples.
# - The **loss** is one of sgfbias's losses, or your own function of one output and one
#   target. Ours is the logistic loss $\ell(f, y) = \log(1 + e^{-yf})$ for labels
#   $y = \pm 1$.
#
# `Problem` holds the data and the loss. The training loss is the mean over the
# examples, $L = \frac1n \sum_i \ell(f(x_i), y_i)$.


# %%
def moons(rng, n):
    angle, label = np.pi * rng.random(n), rng.integers(0, 2, n)
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x[label == 1] = [1.0, 0.4] - x[label == 1]
    x = x + 0.2 * rng.normal(size=(n, 2))
    return x.astype(np.float32), (2 * label - 1).astype(np.float32)


def loss(output, target):
    return jax.nn.softplus(-target * output)


rng = np.random.default_rng(0)
inputs, targets = moons(rng, 64)
test_inputs, test_targets = moons(rng, 512)
problem = sgf.Problem(inputs, targets, loss=loss)
model = eqx.nn.MLP(2, "scalar", 16, 2, activation=jnp.tanh, key=jax.random.key(0))
count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
start_loss = float(problem.risk(model))
print(f"{problem.n} examples, {count} parameters, loss at the start {start_loss:.3f}")

# %% [markdown]
# ## The noise of one step, against theory
#
# One step of SGD with step size $\gamma$ and a batch of $b$ examples (drawn with
# replacement) changes the parameters $w$ by $-\gamma g$, where $g$ is the mean of the
# gradients $g_i$ over the batch. So
#
# $$\mathbb{E}[\Delta w] = -\gamma \nabla L, \qquad
# \operatorname{tr}\operatorname{Cov}(\Delta w)
# = \frac{\gamma^2}{b}\Big[\frac1n\sum_i |g_i|^2 - |\nabla L|^2\Big].$$
#
# In one solver step of length $\gamma$, the flow with `MinibatchNoise(b)` must have the
# same mean and the same covariance. The right-hand sides take a few lines of JAX. The
# left-hand sides are estimates from 2048 seeds of a single step, so you should expect
# deviations of a few per cent, and in the mean deviations of one or two standard
# errors.
#
# We measure this for the network at its start and again after training by gradient
# descent, when some examples are fitted and others are not. The mean-loss noise is
# shown for comparison. It gives every example the same noise, set by the mean loss, so
# **theory promises the right mean for it, but not the right covariance**.

# %%
gamma, batch = 0.1, 4
steps = 1500
names = {"sgd": "SGD", "sgf": "flow, exact noise", "control": "flow, mean-loss noise"}
dynamics = {
    "sgd": sgf.StochasticGradientDescent(gamma, batch),
    "sgf": sgf.StochasticGradientFlow(gamma, sgf.MinibatchNoise(batch)),
    # The mean-loss model has no batch size. A quarter of the step size gives it a
    # quarter of the covariance, which is what batches of 4 have.
    "control": sgf.StochasticGradientFlow(gamma / batch, sgf.MeanLossNoise(), dt=gamma),
}


def flat(tree):
    """Return the parameters of a stack of models, one row per model."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def one_gradient(network, x, y):
    return eqx.filter_grad(lambda m: loss(m(x), y))(network)


trained = sgf.simulate(
    sgf.GradientDescent(gamma), model, problem, steps=steps, record=sgf.Record(times=2)
).networks
for when, network in {"at the start": model, "after training": trained}.items():
    gradients = jax.vmap(lambda x, y: one_gradient(network, x, y))
    each = flat(gradients(problem.inputs, problem.targets))  # (n, parameters)
    mean = each.mean(axis=0)
    variance = gamma**2 / batch * (np.mean(np.sum(each**2, axis=1)) - np.sum(mean**2))
    print(
        f"{when}\n  {'theory':22} mean along the gradient "
        f"{gamma * np.linalg.norm(mean):.4f}          , trace of the covariance {variance:.2e}"
    )
    for name, rule in dynamics.items():
        one = sgf.simulate(
            rule, network, problem, keys=sgf.seeds(0, 2048), steps=1, record=sgf.Record(times=2)
        )
        move = flat(one.networks)
        start = flat(jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, network))
        along = (start - move) @ mean / np.linalg.norm(mean)
        error = along.std() / np.sqrt(len(along))
        trace = np.sum(move.var(axis=0))
        print(
            f"  {names[name]:22} mean along the gradient "
            f"{along.mean():.4f} +- {error:.4f}, trace of the covariance {trace:.2e}"
        )

# %% [markdown]
# ## Whole runs
#
# Flow time makes the curves comparable: one step of SGD, one step of gradient descent
# and $\gamma$ units of time of the flow all count the same. Here the flow takes two
# solver steps per SGD step. `record=` names functions of the model that are evaluated
# along the way. The smallest possible loss of a network is not known, so no run gets
# the status "converged" unless you say with `stop=` which loss counts as converged.


# %%
class TestLoss(eqx.Module):
    inputs: jax.Array
    targets: jax.Array

    def __call__(self, network):
        return jnp.mean(jax.vmap(loss)(jax.vmap(network)(self.inputs), self.targets))


keys = sgf.seeds(0, 48)
times = gamma * np.unique(np.round(np.geomspace(1, steps, 40)))
record = sgf.Record(
    {"test_loss": TestLoss(jnp.asarray(test_inputs), jnp.asarray(test_targets))},
    np.concatenate([[0], times]),
)
flow = sgf.StochasticGradientFlow(gamma, sgf.MinibatchNoise(batch), per_iteration=2)
mean_loss = sgf.StochasticGradientFlow(gamma / batch, sgf.MeanLossNoise(), dt=gamma / 2)
runs = {
    "sgd": sgf.simulate(dynamics["sgd"], model, problem, keys=keys, steps=steps, record=record),
    "sgf": sgf.simulate(flow, model, problem, keys=keys, steps=2 * steps, record=record),
    "control": sgf.simulate(mean_loss, model, problem, keys=keys, steps=2 * steps, record=record),
}
descent = sgf.simulate(sgf.GradientDescent(gamma), model, problem, steps=steps, record=record)
print({names[k]: v.statuses() for k, v in runs.items()})

# %% [markdown]
# ## Is the flow faithful?
#
# The flow follows SGD in *distribution*: means and spreads over seeds agree up to terms
# of the order $\gamma$. We compare averages over the last half of the run. For the
# exact noise, theory predicts a difference from SGD that is close to 0 compared with
# that between gradient descent and SGD, and a ratio of spreads close to 1. (With 48
# seeds, a ratio of standard deviations is known to about 15%.)

# %%
late = np.asarray(descent.times) >= steps * gamma / 2


def summary(one):
    """Return the mean training loss of each seed over the late times."""
    return np.asarray(one["loss"])[..., late].mean(axis=-1)


sgd = summary(runs["sgd"])
print(f"gradient descent minus SGD: {summary(descent) - sgd.mean():+.4f}")
for name in ("sgf", "control"):
    own = summary(runs[name])
    error = np.hypot(own.std(ddof=1), sgd.std(ddof=1)) / np.sqrt(len(sgd))
    gap, ratio = own.mean() - sgd.mean(), own.std(ddof=1) / sgd.std(ddof=1)
    print(
        f"{names[name]:22} minus SGD: predicted 0, measured {gap:+.4f} +- {error:.4f};  "
        f"spread divided by SGD's: predicted 1, measured {ratio:.2f}"
    )

figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
for ax, name, title in ((axes[0], "loss", "Training loss"), (axes[1], "test_loss", "Test loss")):
    for key, one in runs.items():
        recorded = np.asarray(one.times), np.asarray(one[name])
        band(ax, *recorded, colour=COLOURS[key], label=names[key])
    recorded = np.asarray(descent.times), np.asarray(descent[name])
    line(ax, *recorded, colour=COLOURS["gd"], label="gradient descent", style="--")
    tidy(ax, title=title, x="flow time", y="logistic loss", y_scale="linear")
axes[0].legend(frameon=False, fontsize=9)

side = np.linspace(-1.8, 2.8, 80), np.linspace(-1.4, 1.8, 60)
plane = jnp.asarray(np.stack(np.meshgrid(*side), axis=-1).reshape(-1, 2), jnp.float32)
for key in ("sgd", "sgf"):
    networks = eqx.filter(runs[key].networks, eqx.is_array)
    static = eqx.filter(model, eqx.is_array, inverse=True)
    heights = jax.vmap(lambda arrays: jax.vmap(eqx.combine(arrays, static))(plane))(networks)
    for height in np.asarray(heights)[:6]:
        axes[2].contour(
            *side, height.reshape(60, 80), levels=[0.0], colors=COLOURS[key], linewidths=0.8
        )
axes[2].scatter(
    *inputs.T, c=np.where(targets > 0, "black", "white"), edgecolors="black", s=16, zorder=3
)
axes[2].set(title="Decision boundaries, 6 seeds each", xlabel="$x_1$", ylabel="$x_2$")
plt.show()

# %% [markdown]
# **What to look at.** The bands of SGD and of its flow with exact noise lie on top of
# each other, both in the median and in the width. The mean-loss noise is not far off in
# these averages, but the table of single steps shows that it is not SGD's noise: it
# also moves examples that are fitted already. On the right, the decision boundaries of
# single seeds differ, and they vary as much for SGD as for the flow.
#
# ## Only some of the parameters
#
# `trainable=` chooses which arrays are trained, in the same form as the filter of
# `equinox.partition`. Here the biases (vectors) are frozen and the matrices are
# trained.

# %%
frozen = sgf.simulate(
    dynamics["sgf"],
    model,
    problem,
    keys=keys[:8],
    steps=50,
    record=sgf.Record(times=2),
    trainable=lambda leaf: leaf.ndim == 2,
)
for kind, dims in (("biases", 1), ("matrices", 2)):
    pairs = zip(
        *(jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (frozen.networks, model)),
        strict=True,
    )
    change = max(
        float(jnp.max(jnp.abs(after - before))) for after, before in pairs if before.ndim == dims
    )
    print(f"largest change of the {kind}: {change:.2g}{' (predicted 0)' if dims == 1 else ''}")

# %% [markdown]
# **Try next.**
# - Use a larger `gamma`. The flow is a first-order model of SGD, and with `order=2` a
#   second-order one. When does it stop being faithful?
# - Use `sgf.StochasticGradientDescent(gamma, batch, sampling="random_reshuffling")`. It
#   has less noise than the flow, and sgfbias has no flow that models it.
# - Use `sgf.OptaxDescent(optax.adam(1e-3), 1.0, batch)` to train with any Optax
#   optimiser and record the same observables.
# - Use `microbatch=` for a network whose activations on all examples do not fit in
#   memory.
