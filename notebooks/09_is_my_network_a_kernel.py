# %% [markdown]
# # 9. Is my network a kernel?
#
# A wide network may train without its features changing: its **tangent kernel**
# $K(x, x') = \langle \nabla_w f(x), \nabla_w f(x') \rangle$ stays what it was at the
# start, and training is that of a linear model. Then a result about the network is a
# result about a kernel. Or the kernel changes, and the network learns features. **Which
# of the two is your run?**
#
# The networks here are an MLP and a small conv net on scikit-learn's images of digits.
# Everything works in the same way for any Equinox module and any `Problem`. You need
# `pip install 'sgfbias[lazy]'`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias import lazy
from sgfbias.lazy.digits import SmallConvNet, digits
from sgfbias.study.plotting import COLOURS, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The kernel in one call
#
# `lazy.ntk` computes the kernel of all examples and outputs, with one part for every
# layer. It says how each part was computed, and what the spectrum looks like.

# %%
key = jax.random.key(0)
everything = digits(300, seed=0, dtype=jnp.float32)
problem = sgf.Problem(
    everything.inputs[:100], everything.targets[:100], loss=sgf.SoftmaxCrossEntropyLoss()
)
test_inputs, test_labels = everything.inputs[100:], everything.targets[100:]
nets = {
    "MLP": eqx.nn.MLP(64, 10, 64, 2, key=key),
    "conv net": SmallConvNet(key),
}
kernels = {name: lazy.ntk(net, problem) for name, net in nets.items()}
for name, kernel in kernels.items():
    print(f"{name}\n{kernel}\n")

# %% [markdown]
# The parts of the layers add up to the kernel, and a small change of the weights moves
# the outputs by what the kernel says: one small step of gradient descent with step size
# $\gamma$ changes them by $-\frac{\gamma}{n} K\, \ell'(f)$.

# %%
net, kernel, gamma = nets["MLP"], kernels["MLP"], 1e-3
once = sgf.simulate(sgf.GradientDescent(gamma), net, problem, steps=1).networks
change = jax.vmap(once)(problem.inputs) - jax.vmap(net)(problem.inputs)
predicted = -gamma / problem.n * kernel.product(problem.derivatives(net))
print(
    f"change of the outputs: predicted {jnp.linalg.norm(predicted):.4g}, "
    f"measured {jnp.linalg.norm(change):.4g}"
)

# %% [markdown]
# ## Train, and ask
#
# `lazy.rescale(model, alpha)` is $\alpha\,(f(w) - f(w_0))$. With a large $\alpha$ the
# weights need to move only a little, so this is the lazy version of the same network.
# We train both to the same loss, with step sizes that suit their kernels, and measure.
# `lazy.measure` compares two networks layer by layer.


# %%
def train(model, loss=0.3):
    """The network that gradient descent reaches at this loss."""
    step = problem.n / float(lazy.ntk(model, problem).largest)
    run = sgf.simulate(
        sgf.GradientDescent(step),
        model,
        problem,
        steps=8000,
        stop=loss,
        record=sgf.Record((), times=200),
    )
    assert float(run.final["loss"]) <= loss
    return run.networks


versions = {}
for name, net in nets.items():
    versions[name, "standard"] = net
    versions[name, "rescaled"] = lazy.rescale(net, 100.0)
trained = {which: train(model) for which, model in versions.items()}
found = {which: lazy.measure(versions[which], trained[which], problem) for which in versions}
for which, table in found.items():
    print(f"{', '.join(which)}\n{table}\n")

# %% [markdown]
# **What to look at.** The *drift* is the change of the kernel relative to its size. In
# the standard networks it is about one or more: this kernel is not the one at the
# start, and the linearised model is far off. In the rescaled networks the drift is
# small, few units switch, and the linearised model is nearly the network. The table
# says in which layer the change happens.

# %% [markdown]
# `lazy.linearise(model)` is the linear model of the kernel at the start, and trains by
# the same `simulate`. If the kernel is all there is, it goes as far as the network.

# %%
start, end = versions["MLP", "rescaled"], trained["MLP", "rescaled"]
linear = lazy.linearise(start)


def far(before, after):
    """The distance between the weights of two networks."""
    change = jax.tree.map(jnp.subtract, *eqx.filter((after, before), eqx.is_inexact_array))
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in jax.tree.leaves(change))))


print(
    f"distance of the rescaled MLP: predicted {far(linear, train(linear)):.3f}, "
    f"measured {far(start, end):.3f}"
)

# %% [markdown]
# ## Is the kernel as good?
#
# If training were that of the kernel, its test accuracy would be that of regression
# with the kernel at the start. So compare: ridge regression on $\pm 1$ labels with the
# kernel at the start, and the networks.


# %%
def accuracy(model):
    """The share of test images that are classified correctly."""
    outputs = jax.vmap(model)(test_inputs)
    return float(jnp.mean(jnp.argmax(outputs, axis=1) == test_labels))


def kernel_accuracy(net, ridge=1e-3):
    """The same for regression with the kernel at the start, from its outputs."""
    kernel = lazy.ntk(net, problem)
    across = lazy.ntk(net, test_inputs, other=problem.inputs).matrix
    size = kernel.flat.shape[0]
    left = jax.nn.one_hot(problem.targets, 10) * 2 - 1 - jax.vmap(net)(problem.inputs)
    # The outputs of an example lie side by side.
    system = kernel.flat + ridge * kernel.trace / size * jnp.eye(size)
    weights = jnp.linalg.solve(system, left.reshape(-1)).reshape(left.shape)
    outputs = jax.vmap(net)(test_inputs) + jnp.einsum("ijab,jb->ia", across, weights)
    return float(jnp.mean(jnp.argmax(outputs, axis=1) == test_labels))


for name, net in nets.items():
    print(
        f"{name}: kernel regression {kernel_accuracy(net):.1%}, rescaled "
        f"{accuracy(trained[name, 'rescaled']):.1%}, standard "
        f"{accuracy(trained[name, 'standard']):.1%}"
    )

# %% [markdown]
# ## Along a run
#
# `lazy.Probe` records the same along runs, beside anything else. It also says up to
# which step size gradient descent on the linearised network is stable. A record may add
# up quantities along the run, too, such as the length of the path.


# %%
def length(network, change):
    return jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in jax.tree.leaves(change)))


small = sgf.Problem(problem.inputs[:40], problem.targets[:40], loss=sgf.SoftmaxCrossEntropyLoss())
probe = lazy.Probe(nets["MLP"], small)
print(probe)
chosen = {name: probe.observables[name] for name in ("distance", "kernel_drift", "flips")}
record = sgf.Record(chosen, times=20, sums={"path": length})
run = sgf.simulate(sgf.GradientDescent(0.02), nets["MLP"], small, steps=400, record=record)
distance = np.sqrt(np.sum(np.square(run["distance"][-1])))
print(f"distance {distance:.2f} of a path of length {float(run['path'][-1]):.2f}")
figure, axes = plt.subplots(figsize=(6, 4))
axes.plot(run.steps[1:], run["kernel_drift"][1:], color=COLOURS["gd"], label="change of the kernel")
for k, name in enumerate(probe.layers):
    if np.isfinite(run["flips"][-1, k]):
        axes.plot(run.steps[1:], run["flips"][1:, k], "--", label=f"switched units, {name}")
tidy(axes, title="Leaving the kernel", x="steps", y="relative to the start")
axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **What to look at.** The kernel changes from the first steps on, and by more than the
# share of units that switch. The distance is no longer than the path.
#
# **Try next.**
# - Other scales: `lazy.scaling` trains networks at several widths, scales or step sizes
#   and gives the exponent of every quantity with an interval.
# - Your own model and data: replace `nets` and `problem`. From the command line,
#   `sgfbias run lazy-digits --data mine.npz --model net.py:make` asks the same of your
#   arrays `X` and `y` and of the network that your function `make(key)` returns.
# - `sgfbias run lazy` and `sgfbias run lazy-digits` ask these questions with seeds and
#   claims.
