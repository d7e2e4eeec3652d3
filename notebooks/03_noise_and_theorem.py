# %% [markdown]
# # 3. Noise models and the theorem
#
# Which property of SGD's noise decides what is selected: its size, its shape, or where it lives? We run one network on one problem under
# four noises. Three of them live in the span of the examples, one does not. Theory says that the first three keep the theorem, each with an
# effective initialisation of its own, and that the fourth breaks it.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.diagonal.selection import select_many
from sgfbias.plotting import tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The theorem, at finite time
#
# Training moves the weights along $w_\pm \odot X^\top c$, where $c \in \mathbb{R}^n$ has one number per example. A *noise model* is a law
# for the random part of $c$. With $\beta = w_+^2 - w_-^2$ and $\alpha_t^2 = w_+ w_-$ (entry by entry) one has $\beta_t = 2\alpha_t^2
# \sinh(4X^\top c_t)$, and this is the equation of
#
# $$\beta_t = \arg\min_\beta\ \phi_{\alpha_t}(\beta) \quad\text{subject to}\quad X\beta = X\beta_t ,$$
#
# where $\phi_\alpha(\beta) = \frac14 \sum_j [\beta_j \operatorname{arcsinh}(\beta_j/2\alpha_j^2) - \sqrt{\beta_j^2 + 4\alpha_j^4}]$. So
# **at every time the iterate is the best one, by $\phi_{\alpha_t}$, of all that predict the same on the training data**. When the loss has
# gone to 0 the constraint is $X\beta = y$: Theorem 1 of Pesme, Pillaud-Vivien and Flammarion 2021. Nothing here depends on the law of $c$;
# it only must not leave $\mathbb{R}^n$.

# %%
problem = sgf.SparseRegression.sample(jax.random.key(0), n=20, d=50, sparsity=3)
alpha, gamma = 0.1, 0.05
network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
noises = {
    "mean-loss": sgf.MeanLossNoise(),  # the same size for all examples, by the mean loss: the main model of the theory
    "per-sample": sgf.PerSampleNoise(),  # each example by its own residual
    "minibatch": sgf.MinibatchNoise(1),  # the exact covariance of SGD's gradient at batch size 1
    "isotropic": sgf.MeanLossNoise() + sgf.IsotropicNoise(0.5),  # the first one, and noise on every feature: the negative control
}
colours = dict(zip(noises, ("#1b70b7", "#2a9d6f", "#e0a100", "#c23b8f"), strict=True))

# %% [markdown]
# ## A test that can fail
#
# In mirror coordinates the statement holds to rounding by construction (notebook 2), so that would test nothing. We run Euler's method **in
# the weights** instead, which knows nothing of $\phi$, and measure the relative distance of $\beta_T$ to the minimiser among all that
# predict as it does.
#
# If the theorem is true, what is left is the solver's error. One step of width `dt` multiplies $w_\pm$ by $1 \pm x$ with $x = 2X^\top
# \Delta c$ of the order $\sqrt{dt}$, so $\log(w_+/w_-)$ gains $\log\frac{1+x}{1-x} = 2x + \frac23 x^3 + \dots$ The first term is in the
# span, as it should be; the others are not, and over the $T/dt$ steps of a run they sum to something of the order `dt`: **predicted slope
# 1**. If the theorem is false the distance stays: **slope 0**.

# %%
keys, iterations = sgf.seeds(0, 64), 300
ratios = (1, 4, 16)  # solver steps per SGD step


def fibre_gap(runs):
    """Relative distance of each seed's iterate to the minimiser of phi among those with the same predictions."""
    beta, log_alpha = runs.final["beta"], runs.final["log_alpha"]
    best = select_many(problem, log_alpha, targets=beta @ problem.X.T).beta
    return np.asarray(jnp.linalg.norm(beta - best, axis=1) / jnp.linalg.norm(beta, axis=1))


gaps, shrinkage = {}, {}
for name, noise in noises.items():
    rows = []
    for ratio in ratios:
        flow = sgf.StochasticGradientFlow(gamma, noise, dt=gamma / ratio, brownian_dt=gamma / ratios[-1])
        record = sgf.Record(times=2)
        runs = sgf.simulate(flow, network, problem, keys=keys, steps=iterations * ratio, coordinates="weights", record=record)
        rows.append(np.median(fibre_gap(runs)))
    gaps[name] = np.array(rows)
    slope = -np.polyfit(np.log(ratios), np.log(gaps[name]), 1)[0]
    print(
        f"{name:10} slope: predicted {'0' if name == 'isotropic' else '1'}, measured {slope:.2f};   distance at the finest step {rows[-1]:.1e}"
    )
    if name == "mean-loss":
        finest = runs

# %% [markdown]
# ## Which initialisation counts
#
# The theorem is about $\alpha_t$, and each noise moves $\log\alpha_t$ at its own rate, minus twice the variance it has along each feature:
#
# | noise | rate of $\log \alpha$ per unit of flow time |
# | --- | --- |
# | mean-loss | $-2\gamma h L$, with $h_j$ the mean of $x_{ij}^2$ |
# | per-sample | $-\frac{\gamma}{2n} (X^2)^\top r^2$, with residuals $r$ and squares entry by entry |
# | minibatch, size 1 | $-\frac{\gamma}{2} [(X^2)^\top r^2/n - (X^\top r/n)^2]$ |
# | isotropic, added | a further $-2\gamma\sigma^2 L$ for all features alike |
#
# Second check, for the mean-loss runs in the weights at the finest step: the mean of $\log\alpha_T$ over seeds and features against the
# law, from the loss integral $S$ of each run.

# %%
law = network.log_alpha - 2 * gamma * problem.h * finest.final["loss_integral"][:, None]
predicted, measured = (float(jnp.mean(network.log_alpha - value)) for value in (law, finest.final["log_alpha"]))
print(f"mean shrinkage of log alpha: predicted {predicted:.4f}, measured {measured:.4f}")

# %% [markdown]
# ## What is selected
#
# Now to the end, in mirror coordinates: 64 seeds per noise, and the solution each selects, `select_many` at the final $\log\alpha$. For the
# isotropic noise this is what the theorem *would* predict; how far the run itself is from it is the gap above.

# %%
selected, truth, alphas = {}, {}, {}
for name, noise in noises.items():
    runs = sgf.simulate(sgf.StochasticGradientFlow(gamma, noise), network, problem, keys=keys, steps=6000, record=sgf.Record(times=2))
    predicted_beta = select_many(problem, runs.final["log_alpha"]).beta
    selected[name] = np.asarray(jax.vmap(problem.validation_error)(predicted_beta))
    truth[name] = np.asarray(runs.final["validation_error"])
    alphas[name] = np.exp(np.median(np.asarray(runs.final["log_alpha"])))
    miss = np.median(np.abs(truth[name] / selected[name] - 1))
    print(
        f"{name:10} effective alpha {alphas[name]:.3f} (from {alpha});  validation error over the predicted one: off by {miss:.1%} (median)"
    )
without = float(problem.validation_error(sgf.select(problem, jnp.log(alpha)).beta))

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name, values in gaps.items():
    axes[0].plot(1 / np.array(ratios), values, "o-", color=colours[name], label=name)
axes[0].plot([1 / 16, 1], 0.6 * gaps["mean-loss"][-1] * np.array([1, 16]), "--", color="black", linewidth=1, label="slope 1")
tidy(axes[0], title="Distance to the theorem's minimiser", x="dt / $\\gamma$", y="relative, median seed")
axes[0].legend(frameon=False, fontsize=9)
for name in noises:
    axes[1].plot(selected[name], truth[name], "o", markersize=4, alpha=0.6, color=colours[name], label=name)
ends = np.array([min(v.min() for v in selected.values()), without])
axes[1].plot(ends, ends, color="black", linewidth=1, label="theorem")
axes[1].plot(without, without, "s", color="#4d4d4d", label="no noise")
tidy(
    axes[1],
    title="Validation error, one dot per seed",
    x="of the solution the theorem predicts",
    y="of the run",
    x_scale="linear",
    y_scale="linear",
)
axes[1].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **What to look at.** Left: three lines fall with slope 1, and would go on falling. The isotropic one is flat: no step is fine enough, the
# theorem is wrong for it. Right: the three noises in the span are on the line, each seed at its own effective $\alpha$, all better than no
# noise. The isotropic runs scatter around it, to both sides: the effective $\alpha$ alone does not tell where they end.
#
# **Try next.**
# - `sgf.LabelNoise(0.3)` never dies, so there is no end to land on; run it for a while, then go on without it from `runs.networks`.
# - `sgf.MinibatchNoise(4, replace=False)`: a quarter of the noise, nearly.
# - A noise of your own: subclass `sgf.AbstractNoise` and give a square root and its covariance.
# - `sgfbias run noise-anatomy` does all this with claims, tolerances and more seeds.
