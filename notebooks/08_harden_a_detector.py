# %% [markdown]
# # 8. Harden a detector in ten minutes
#
# A detector reads bits: which features a file has, which words a text contains, which
# pixels are dark. An attacker may flip a few of them. **How accurate is the detector
# then, what can be proved, and what can be done without training it again?**
#
# The detector here tells odd from even digits by the 64 pixels of scikit-learn's small
# images. Everything works in the same way for any Equinox module whose first linear
# layer sees bits. You need `pip install 'sgfbias[fourier]'`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sgfbias as sgf
from sgfbias import fourier
from sgfbias.fourier.bundled import digits
from sgfbias.study.plotting import COLOURS, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Data and detector
#
# Bits are $-1$ and $+1$. Your own data come from a file or a frame by
# `fourier.read_bits`: it makes one-hot groups of categories, and says which columns
# need a threshold. We keep three parts: for training, for choices, and for the final
# numbers.

# %%
data = digits()
fit, held, test = data.split(900, 400, seed=0)
print(f"{len(data.labels)} examples of {data.inputs.shape[1]} bits, classes {data.classes}")


def trained(perturb=None):
    """A network with 16 hidden units after 1,000 steps of Adam."""
    net = eqx.nn.MLP(64, "scalar", 16, 1, lambda z: jnp.tanh(z / 2), key=jax.random.key(1))
    labels = 2.0 * fit.labels.astype(fit.inputs.dtype) - 1
    problem = sgf.Problem(fit.inputs, labels, loss=sgf.LogisticLoss(), perturb=perturb)
    adam = sgf.OptaxDescent(optax.adam(1e-3), 1.0, 32)
    return sgf.simulate(adam, net, problem, keys=jax.random.key(0), steps=1000).networks


net = trained()

# %% [markdown]
# ## How robust is it?
#
# One call attacks every test image with 0, 1, 2, ... flips, proves a bound that holds
# against *every* attack, and searches through all sets of flips as far as that can be
# done. The true accuracy lies between the last column and the first.

# %%
before = fourier.robustness(net, test.inputs, test.labels, flips=4)
print(before)
attacked, true, proved = (
    np.asarray(part.margin)[: len(before.truth.margin)]
    for part in (before.attack, before.truth, before.certificate)
)
share = [np.mean(low <= high + 1e-5) for low, high in ((proved, true), (true, attacked))]
print(
    "certificate below the truth, truth below the attack: predicted 100% and 100% of the margins, "
    f"measured {share[0]:.0%} and {share[1]:.0%}"
)

# %% [markdown]
# ## Stabilise
#
# A hidden unit decides by the sign of $\langle w, x\rangle + b$. Its distance from this
# threshold *in flips* is largest, in the mean over inputs, if all weights have the same
# size: $v = c\,\mathrm{sgn}(w)$. Most decisions stay. `select` stabilises the units one
# by one, as long as the accuracy on held-out data stays within a budget. Nothing is
# trained.

# What a pixel means to a unit is its Chow parameter $t_i = \mathbb{E}[h(x)\,x_i]$ under
# random bits. It has the sign of $w_i$, so the signs are what must stay. `chow`
# computes it exactly, in any dimension.

# %%
t = fourier.chow(net).coefficients
random = jax.random.rademacher(jax.random.key(2), (100_000, 64), jnp.float32)
hidden = jnp.tanh((random @ net.layers[0].weight.T + net.layers[0].bias) / 2)
sampled = hidden.T @ random / len(random)
print(f"largest Chow parameter: theory {t.max():.3f}, measured {sampled.max():.3f}")
agree = jnp.mean(jnp.sign(t) == jnp.sign(net.layers[0].weight))
print(f"signs of weights and Chow parameters that agree: theory 100%, measured {agree:.0%}")

# %%
pick = fourier.select(net, held.inputs, held.labels, budget=0.03)
print(f"{int(pick.neurons.sum())} of 16 units are stabilised")
after = fourier.robustness(pick.network, test.inputs, test.labels, flips=4)
print(after)

# %%
figure, axes = plt.subplots(figsize=(6, 4))
for found, colour, label in (
    (before, COLOURS["gd"], "as trained"),
    (after, COLOURS["sgf"], "stabilised"),
):
    table = found.to_xarray()
    attacked, certified = table["attacked_accuracy"], table["certified_accuracy"]
    axes.plot(table.flips, attacked, "o-", color=colour, label=f"{label}, attacked")
    axes.plot(table.flips, certified, "v--", color=colour, label=f"{label}, certified")
    axes.fill_between(table.flips, certified, attacked, color=colour, alpha=0.15, linewidth=0)
tidy(
    axes,
    title="Accuracy when k pixels may be flipped",
    x="flips k",
    y="accuracy",
    x_scale="linear",
    y_scale="linear",
)
axes.set_xticks(table.flips)
axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **What to look at.** The truth lies in the shaded bands, between proof and attack.
# After stabilisation the band is hardly wider than a line, since stabilised units agree
# on their worst flips: the proof says nearly what an attacker can do.
#
# ## Your threat model
#
# An attacker can often add features and not remove them, and some cannot be touched at
# all. Here ink can be added, on the inner pixels only.

# %%
inner = np.zeros((8, 8), bool)
inner[1:-1, 1:-1] = True
ink = fourier.BitFlips(mutable=inner.ravel(), direction="add")
for name, network in (("as trained", net), ("stabilised", pick.network)):
    found = fourier.robustness(network, test.inputs, test.labels, flips=4, moves=ink)
    print(f"{name}\n{found}\n")

# %% [markdown]
# Both tables are better than those above, since this attacker can do less. But do not
# expect the same gain: stabilisation makes distances larger for flips of *any* bit in
# *any* direction, and against an attacker with less choice it may even cost accuracy.
# Measure under your own threat model.
#
# Here is what such an attack does to some images that it turns, with added ink in
# orange.

# %%
found = fourier.attack(net, test.inputs, test.labels, flips=4, moves=ink)
turned = np.flatnonzero((np.asarray(found.margin[0]) > 0) & (np.asarray(found.margin[-1]) < 0))[:6]
figure, panels = plt.subplots(1, len(turned), figsize=(9, 1.9))
for panel, i in zip(np.atleast_1d(panels), turned, strict=True):
    old, new = (np.asarray(x[i]).reshape(8, 8) for x in (test.inputs, found.inputs))
    shade = np.where(old > 0, 0.0, 1.0)[..., None] * np.ones(3)
    shade[new != old] = (0.85, 0.37, 0.01)
    panel.imshow(shade)
    panel.set_title(
        f"{test.classes[int(test.labels[i])]}, {int((new != old).sum())} added", fontsize=9
    )
    panel.set_xticks([])
    panel.set_yticks([])
plt.show()

# %% [markdown]
# ## How much to stabilise, and is training better?
#
# `frontier` tries every number of units and many clipping levels at once. If you *can*
# train again, training against the attacker is the stronger remedy on these data:
# `Problem(..., perturb=fourier.Adversary(...))` flips bits of half of every batch.

# %%
frontier = fourier.frontier(
    net, held.inputs, held.labels, test.inputs, test.labels, flips=(2,), levels=20
)
against = trained(fourier.Adversary("fgsm", flips=2, share=0.5))
both = fourier.select(against, held.inputs, held.labels, budget=0.02).network
figure, axes = plt.subplots(figsize=(6, 4))
axes.plot(
    frontier.clean, frontier.robust[:, 0], "o", color=COLOURS["sgf"], label="copies of one network"
)
for network, colour, label in (
    (net, COLOURS["gd"], "as trained"),
    (against, COLOURS["sgd"], "trained against the attacker"),
    (both, COLOURS["control"], "trained against it, then stabilised"),
):
    curve = fourier.attack(network, test.inputs, test.labels, flips=2).curve
    axes.plot(curve[0], curve[2], "*", markersize=14, color=colour, label=label)
tidy(
    axes,
    title="Clean and attacked accuracy",
    x="accuracy without flips",
    y="accuracy with 2 flips",
    x_scale="linear",
    y_scale="linear",
)
axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# **What to look at.** The copies of the trained network reach from its own point
# upwards: robustness for no training at all. The network that was trained against the
# attacker is higher. Stabilising it as well does not help, and on these data it may
# harm. The studies `fourier-adversarial` and `fourier-digits` measure when it does.
#
# **Try next.**
# - `budget=0.05` in `select`, and `method="robust"`, which chooses by attacks.
# - `method="beam"` or `"pgd"` in `attack`: do they find more than the greedy attack?
# - `fourier.OneHotSwaps` for categories, where one move changes two bits.
# - `sgfbias run fourier-stabilise` for the same on made-up detectors, with controls.
