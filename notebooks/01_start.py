# %% [markdown]
# # 1. A start in ten minutes
#
# A model with more parameters than data has many solutions that fit every example. Training picks one of them. **Which one, and does theory
# predict it?** This notebook asks that of the smallest model for which the answer is known, and uses the whole of sgfbias once: a problem,
# a network, a flow, `simulate`, `land`, `select`, and a picture.
#
# It needs nothing but `pip install sgfbias` and takes well under a minute on a laptop.

# %%
import jax

jax.config.update("jax_enable_x64", True)  # float64: we are going to compare small numbers

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.diagonal.potential import potential
from sgfbias.plotting import COLOURS, band, line, tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The problem
#
# There are $n$ examples $x_i \in \mathbb{R}^d$, the rows of a matrix $X$, with $d > n$. The targets are $y = X\beta^*$ with a sparse truth
# $\beta^*$: only 3 of its 50 entries are not zero. The training loss is
#
# $$L(\beta) = \frac{1}{4n} \sum_{i=1}^n (\langle \beta, x_i\rangle - y_i)^2 .$$
#
# Infinitely many $\beta$ have $L(\beta) = 0$, and they generalise very differently. The *validation error* is $|\beta - \beta^*|_2^2$.

# %%
problem = sgf.SparseRegression.sample(jax.random.key(5), n=20, d=50, sparsity=3)
print(f"n = {problem.n} examples, d = {problem.d} features")
for name, beta in {"smallest l2 norm": sgf.minimum_l2(problem), "smallest l1 norm": sgf.minimum_l1(problem)}.items():
    loss, error = float(jnp.mean((problem.X @ beta - problem.y) ** 2) / 4), float(problem.validation_error(beta))
    print(f"solution of {name}: training loss {loss:.0e}, validation error {error:.1e}")

# %% [markdown]
# ## The network and its flows
#
# The *diagonal linear network* predicts $\langle \beta, x\rangle$ with $\beta = w_+^2 - w_-^2$ (entry by entry). Both weights start at
# $\alpha > 0$, so $\beta$ starts at 0. It is linear in $x$ but not in its weights, and that is enough for training to have a preference.
#
# Stochastic gradient descent (SGD) with step size $\gamma$ and one example per step has a continuous model, the *stochastic gradient flow*
#
# $$dw_\pm = -\nabla_{w_\pm} L\, dt \pm 2\sqrt{\gamma L/n}\; w_\pm \odot (X^\top dB),$$
#
# with a Brownian motion $B \in \mathbb{R}^n$ ($\odot$: entry by entry). Its noise lies in the span of the examples and dies with the loss,
# as SGD's does. One SGD step is $\gamma$ units of flow time, so all curves below share one time axis. Without the noise it is the gradient
# flow.

# %%
alpha, gamma, steps = 0.1, 0.06, 4000
network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
keys = sgf.seeds(0, 64)
flow = sgf.simulate(sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=steps)
sgd = sgf.simulate(sgf.StochasticGradientDescent(gamma), network, problem, keys=keys, steps=steps)
gradient_flow = sgf.simulate(sgf.GradientFlow(), network, problem, t1=2000.0)
flow

# %% [markdown]
# `flow["loss"]` has shape (seeds, times), `flow.final["beta"]` (seeds, d), and `flow.reason(0)` says in words how a seed ended.
#
# **What to look at:** the two bundles (median, and 5% to 95% of the seeds) end below the dashed gradient flow. All three fit the data;
# noise made the difference. And the flow is a good model of SGD: the bundles are close to each other, and closer at a smaller $\gamma$.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, name, title in ((axes[0], "loss", "Training loss"), (axes[1], "validation_error", "Validation error")):
    for runs, label in ((sgd, "sgd"), (flow, "sgf")):
        text = {"sgd": "SGD, 64 seeds", "sgf": "its flow, 64 seeds"}[label]
        band(ax, np.asarray(runs.times), np.asarray(runs[name]), colour=COLOURS[label], label=text)
    late = np.asarray(gradient_flow.times) > gamma
    end = np.asarray(gradient_flow.times)[late], np.asarray(gradient_flow[name])[late]
    line(ax, *end, colour=COLOURS["gd"], label="gradient flow", style="--")
    tidy(ax, title=title, x="flow time (one SGD step is $\\gamma$)", y="$L$" if name == "loss" else "$|\\beta_t - \\beta^*|_2^2$")
axes[0].set_ylim(1e-12, None)
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## What theory says
#
# Theorem 1 of Pesme, Pillaud-Vivien and Flammarion (NeurIPS 2021): the flow ends at
#
# $$\beta_\infty = \arg\min_\beta \ \phi_{\alpha_\infty}(\beta) \quad\text{subject to}\quad X\beta = y, \qquad
# \alpha_\infty = \alpha\, e^{-2\gamma h \int_0^\infty L\,dt},$$
#
# where $h_j$ is the mean of $x_{ij}^2$ over the examples and $\phi_\alpha(\beta) = \frac14\sum_j \big[\beta_j
# \operatorname{arcsinh}\frac{\beta_j}{2\alpha_j^2} - \sqrt{\beta_j^2 + 4\alpha_j^4}\big]$ is a norm-like function: close to $|\beta|_1$ for
# small $\alpha$ and to $|\beta|_2^2$ for large $\alpha$, up to factors. So noise acts **as a smaller initialisation would**, and a smaller
# one is nearer to the sparse solution.
#
# `sgf.select` solves this programme and returns the solution with a certificate. First check, without noise ($\gamma = 0$): the gradient
# flow must end at `select(problem, log_alpha)`, and its loss integral must be $\int_0^\infty L\,dt = \frac12 [\phi_\alpha(\beta_\infty) -
# \phi_\alpha(0)]$, a number known before anything runs.

# %%
log_alpha = jnp.log(alpha)
selected = sgf.select(problem, log_alpha)
print(selected)
everywhere = jnp.full(problem.d, log_alpha)
predicted = (potential(selected.beta, everywhere) - potential(jnp.zeros(problem.d), everywhere)) / 2
print(f"loss integral of the gradient flow: predicted {float(predicted):.6f}, measured {float(gradient_flow.final['loss_integral']):.6f}")
distance = jnp.linalg.norm(gradient_flow.final["beta"] - selected.beta)
print(
    f"distance of its end to the selected solution: predicted 0, measured {float(distance):.1e} (norm {float(jnp.linalg.norm(selected.beta)):.2f})"
)

# %% [markdown]
# ## Landing: the limit without the wait
#
# The loss falls ever more slowly, but $\alpha_t$ settles early, and the limit depends on the past through $\alpha_t$ alone. `land` solves
# the programme where a run is now, adds the loss integral that is still to come in the mean, and gives an error estimate, the size of that
# correction. Second check: land the runs after a twentieth of the time, and compare with where they land at the end. The estimate should
# cover the distance measured, and it is a cautious one: what the correction leaves is usually far smaller than the correction.

# %%
early = sgf.land(sgf.simulate(sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=steps // 20))
landed = sgf.land(flow)
off = np.linalg.norm(np.asarray(early.beta - landed.beta), axis=1)
estimate = np.asarray(early.error)
print(
    f"error of landing at a twentieth of the time: estimated {np.median(estimate):.1e}, measured {np.median(off):.1e} (medians over seeds)"
)
print(f"seeds whose estimate covers the measured error: {np.mean(off <= estimate):.0%}")

# %% [markdown]
# ## All seeds lie on one curve
#
# In this model $\alpha_\infty$ depends on a seed's path through one number, its loss integral $S = \int_0^\infty L\,dt$. So all seeds of a
# problem must end on the curve $S \mapsto \arg\min \phi_{\alpha e^{-2\gamma h S}}$, which `solution_curve` computes without running
# anything.
#
# The dots below are not landed: they are the **iterates themselves** at the end of the run, at their own $S$. They know nothing of the
# curve.

# %%
S = flow.final["loss_integral"]
curve = sgf.solution_curve(problem, log_alpha, step_size=gamma, integrals=jnp.linspace(0, 1.1 * float(S.max()), 60))
theory = jax.vmap(problem.validation_error)(curve(S))
ratio = np.asarray(flow.final["validation_error"] / theory)
none = float(problem.validation_error(selected.beta))
print(
    f"validation error over the curve's at the seed's own S: predicted 1, measured {np.median(ratio):.4f} (all seeds {ratio.min():.4f} to {ratio.max():.4f})"
)
print(f"... over that of no noise, for comparison: {np.median(np.asarray(flow.final['validation_error'])) / none:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(curve.integrals, jax.vmap(problem.validation_error)(curve.beta), color="black", linewidth=1, label="theory")
axes[0].plot(S, flow.final["validation_error"], "o", markersize=4, alpha=0.6, color=COLOURS["sgf"], label="flow, one dot per seed")
axes[0].plot(0, none, "s", color=COLOURS["gd"], label="gradient flow")
tidy(axes[0], title="Every seed on the curve", x="loss integral $S$", y="validation error", x_scale="linear", y_scale="linear")
axes[0].legend(frameon=False)
order = np.argsort(-np.abs(np.asarray(problem.beta_star)), kind="stable")
where = np.arange(12)
axes[1].bar(where - 0.28, np.abs(problem.beta_star)[order][:12], 0.26, color="black", label="truth")
axes[1].bar(where, np.abs(selected.beta)[order][:12], 0.26, color=COLOURS["gd"], alpha=0.6, label="selected without noise")
axes[1].bar(where + 0.28, np.abs(landed.beta[0])[order][:12], 0.26, color=COLOURS["sgf"], label="selected by seed 0")
tidy(
    axes[1],
    title="Three coordinates of the truth, nine others",
    x="coordinate (largest of the truth first)",
    y="$|\\beta_j|$",
    x_scale="linear",
)
axes[1].set_ylim(1e-6, None)
axes[1].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **What to look at.** Left: a larger loss integral means a smaller error, and that is a property of the curve, not of luck. Right, on a
# logarithmic scale: on the three true coordinates (the black bars) all are near the truth; on the others the truth is 0, and the noisy run
# is mostly smaller.
#
# **Try next.**
# - Another `alpha`: at 1 the solutions look like the smallest $\ell_2$ norm, at .001 like the smallest $\ell_1$ norm.
# - Another `gamma`. Too large, and `flow.statuses()` says that seeds diverged; they are marked, not hidden.
# - `flow.to_xarray()`: everything with named dimensions, units and provenance.
# - Notebook 2: why these runs are exact in what matters, whatever the step.
