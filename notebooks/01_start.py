# %% [markdown]
# # 1. A start in ten minutes
#
# A model with more parameters than data has many solutions that fit every example, and
# training picks one of them. **Which one does it pick, and does theory predict it?**
# This notebook asks that question of the smallest model for which the answer is known.
# It uses every main part of sgfbias once: a problem, a network, a flow, `simulate`,
# `land`, `select` and a picture.
#
# You need the package without extras, `pip install .` in a checkout. The notebook takes
# well under a minute on a laptop.

# %%
import jax

jax.config.update("jax_enable_x64", True)  # float64: we are going to compare small numbers

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.diagonal.potential import potential
from sgfbias.study.plotting import COLOURS, band, line, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The problem
#
# There are $n$ examples $x_i \in \mathbb{R}^d$, the rows of a matrix $X$, and $d > n$.
# The targets are $y = X\beta^*$ with a sparse truth $\beta^*$: only 3 of its 50 entries
# are not zero. The training loss is
#
# $$L(\beta) = \frac{1}{4n} \sum_{i=1}^n (\langle \beta, x_i\rangle - y_i)^2 .$$
#
# Infinitely many $\beta$ have $L(\beta) = 0$, and they generalise very differently. We
# measure how well $\beta$ generalises by its *validation error*
# $|\beta - \beta^*|_2^2$.

# %%
problem = sgf.SparseRegression.sample(jax.random.key(5), n=20, d=50, sparsity=3)
print(f"n = {problem.n} examples, d = {problem.d} features")
solutions = {
    "smallest l2 norm": sgf.minimum_l2(problem),
    "smallest l1 norm": sgf.minimum_l1(problem),
}
for name, beta in solutions.items():
    loss = float(jnp.mean((problem.X @ beta - problem.y) ** 2) / 4)
    error = float(problem.validation_error(beta))
    print(f"solution of {name}: training loss {loss:.0e}, validation error {error:.1e}")

# %% [markdown]
# ## The network and its flows
#
# The *diagonal linear network* predicts $\langle \beta, x\rangle$ with
# $\beta = w_+^2 - w_-^2$ (entry by entry). Both weights start at $\alpha > 0$, so
# $\beta$ starts at 0. The network is linear in $x$ but not in its weights, and that is
# enough for training to prefer some solutions to others.
#
# Stochastic gradient descent (SGD) with step size $\gamma$ and one example per step has
# a continuous model, the *stochastic gradient flow*
#
# $$dw_\pm = -\nabla_{w_\pm} L\, dt \pm 2\sqrt{\gamma L/n}\; w_\pm \odot (X^\top dB),$$
#
# where $B \in \mathbb{R}^n$ is a Brownian motion and $\odot$ multiplies entry by entry.
# As in SGD, the noise lies in the span of the examples and vanishes with the loss. One
# SGD step takes $\gamma$ units of flow time, so all curves below share one time axis.
# Without the noise, the equation is the gradient flow.

# %%
alpha, gamma, steps = 0.1, 0.06, 4000
network = sgf.DiagonalNetwork.init(alpha=alpha, d=problem.d)
keys = sgf.seeds(0, 64)
flow = sgf.simulate(sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=steps)
sgd = sgf.simulate(sgf.StochasticGradientDescent(gamma), network, problem, keys=keys, steps=steps)
gradient_flow = sgf.simulate(sgf.GradientFlow(), network, problem, t1=2000.0)
flow

# %% [markdown]
# `flow["loss"]` has shape (seeds, times), `flow.final["beta"]` has shape (seeds, d),
# and `flow.reason(0)` says in words how seed 0 ended.
#
# **What to look at.** Each bundle of curves shows the median and the range from 5% to
# 95% of the seeds. All three methods fit the data, but both bundles end below the
# dashed gradient flow: the noise made the difference. The flow is also a good model of
# SGD: the two bundles are close to each other, and they get closer as $\gamma$ gets
# smaller.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, name, title in (
    (axes[0], "loss", "Training loss"),
    (axes[1], "validation_error", "Validation error"),
):
    for runs, label in ((sgd, "sgd"), (flow, "sgf")):
        text = {"sgd": "SGD, 64 seeds", "sgf": "its flow, 64 seeds"}[label]
        band(ax, np.asarray(runs.times), np.asarray(runs[name]), colour=COLOURS[label], label=text)
    late = np.asarray(gradient_flow.times) > gamma
    end = np.asarray(gradient_flow.times)[late], np.asarray(gradient_flow[name])[late]
    line(ax, *end, colour=COLOURS["gd"], label="gradient flow", style="--")
    tidy(
        ax,
        title=title,
        x="flow time (one SGD step is $\\gamma$)",
        y="$L$" if name == "loss" else "$|\\beta_t - \\beta^*|_2^2$",
    )
axes[0].set_ylim(1e-12, None)
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## What theory says
#
# Theorem 1 of Pesme, Pillaud-Vivien and Flammarion (NeurIPS 2021) says that the flow
# ends at
#
# $$\beta_\infty = \arg\min_\beta \ \phi_{\alpha_\infty}(\beta)
# \quad\text{subject to}\quad X\beta = y, \qquad
# \alpha_\infty = \alpha\, e^{-2\gamma h \int_0^\infty L\,dt}.$$
#
# Here $h_j$ is the mean of $x_{ij}^2$ over the examples, and the potential
#
# $$\phi_\alpha(\beta) = \frac14\sum_j \Big[\beta_j
# \operatorname{arcsinh}\frac{\beta_j}{2\alpha_j^2} -
# \sqrt{\beta_j^2 + 4\alpha_j^4}\Big]$$
#
# behaves like a norm: up to factors it is close to $|\beta|_1$ for small $\alpha$ and
# to $|\beta|_2^2$ for large $\alpha$. So the noise has the effect of **a smaller
# initialisation**, and a smaller initialisation leads nearer to the sparse solution.
#
# `sgf.select` solves this convex program and returns the solution with a certificate.
# The first check is without noise ($\gamma = 0$). The gradient flow must end at
# `select(problem, log_alpha)`, and its loss integral must be
# $\int_0^\infty L\,dt = \frac12 [\phi_\alpha(\beta_\infty) - \phi_\alpha(0)]$, a number
# that is known before anything runs.

# %%
log_alpha = jnp.log(alpha)
selected = sgf.select(problem, log_alpha)
print(selected)
everywhere = jnp.full(problem.d, log_alpha)
predicted = (potential(selected.beta, everywhere) - potential(jnp.zeros(problem.d), everywhere)) / 2
measured = float(gradient_flow.final["loss_integral"])
print(
    f"loss integral of the gradient flow: predicted {float(predicted):.6f}, measured {measured:.6f}"
)
distance = float(jnp.linalg.norm(gradient_flow.final["beta"] - selected.beta))
norm = float(jnp.linalg.norm(selected.beta))
print(
    "distance from its end to the selected solution: predicted 0, "
    f"measured {distance:.1e} (the solution has norm {norm:.2f})"
)

# %% [markdown]
# ## Landing: the limit without the wait
#
# The loss falls ever more slowly, but $\alpha_t$ settles early, and the limit depends
# on the past only through $\alpha_t$. `land` estimates the loss integral that is still
# to come, on average, corrects $\alpha_t$ by it, and solves the program at the
# corrected value. The size of the correction serves as the error estimate.
#
# The second check lands the runs after a twentieth of the time and compares the result
# with where they land at the end. The estimate should cover the measured distance. It
# is a cautious estimate: the error that remains after the correction is usually far
# smaller than the correction.

# %%
early = sgf.land(
    sgf.simulate(sgf.StochasticGradientFlow(gamma), network, problem, keys=keys, steps=steps // 20)
)
landed = sgf.land(flow)
off = np.linalg.norm(np.asarray(early.beta - landed.beta), axis=1)
estimate = np.asarray(early.error)
print(
    "error of landing at a twentieth of the time (medians over seeds): "
    f"estimated {np.median(estimate):.1e}, measured {np.median(off):.1e}"
)
print(f"seeds whose estimate covers the measured error: {np.mean(off <= estimate):.0%}")

# %% [markdown]
# ## All seeds lie on one curve
#
# In this model $\alpha_\infty$ depends on a seed's path through one number, its loss
# integral $S = \int_0^\infty L\,dt$. All seeds of a problem must therefore end on the
# curve $S \mapsto \arg\min_{X\beta = y} \phi_{\alpha e^{-2\gamma h S}}(\beta)$, which
# `solution_curve` computes without running anything.
#
# The dots below are not landed. They are the **iterates themselves** at the end of the
# run, each drawn at its own $S$. Nothing in the simulation uses the curve.

# %%
S = flow.final["loss_integral"]
curve = sgf.solution_curve(
    problem, log_alpha, step_size=gamma, integrals=jnp.linspace(0, 1.1 * float(S.max()), 60)
)
theory = jax.vmap(problem.validation_error)(curve(S))
ratio = np.asarray(flow.final["validation_error"] / theory)
none = float(problem.validation_error(selected.beta))
print(
    "validation error divided by the curve's at the seed's own S: predicted 1, "
    f"measured {np.median(ratio):.4f} (all seeds {ratio.min():.4f} to {ratio.max():.4f})"
)
median = np.median(np.asarray(flow.final["validation_error"]))
print(f"for comparison, divided by the error without noise: {median / none:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
axes[0].plot(
    curve.integrals,
    jax.vmap(problem.validation_error)(curve.beta),
    color="black",
    linewidth=1,
    label="theory",
)
axes[0].plot(
    S,
    flow.final["validation_error"],
    "o",
    markersize=4,
    alpha=0.6,
    color=COLOURS["sgf"],
    label="flow, one dot per seed",
)
axes[0].plot(0, none, "s", color=COLOURS["gd"], label="gradient flow")
tidy(
    axes[0],
    title="Every seed is on the curve",
    x="loss integral $S$",
    y="validation error",
    x_scale="linear",
    y_scale="linear",
)
axes[0].legend(frameon=False)
order = np.argsort(-np.abs(np.asarray(problem.beta_star)), kind="stable")
where = np.arange(12)
axes[1].bar(where - 0.28, np.abs(problem.beta_star)[order][:12], 0.26, color="black", label="truth")
axes[1].bar(
    where,
    np.abs(selected.beta)[order][:12],
    0.26,
    color=COLOURS["gd"],
    alpha=0.6,
    label="selected without noise",
)
axes[1].bar(
    where + 0.28,
    np.abs(landed.beta[0])[order][:12],
    0.26,
    color=COLOURS["sgf"],
    label="selected by seed 0",
)
tidy(
    axes[1],
    title="Three coordinates of the truth and nine others",
    x="coordinate (largest of the truth first)",
    y="$|\\beta_j|$",
    x_scale="linear",
)
axes[1].set_ylim(1e-6, None)
axes[1].legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **What to look at.** On the left, a larger loss integral means a smaller error. This
# is a property of the curve and not of luck. The right-hand picture has a logarithmic
# scale. On the three true coordinates (the black bars) both solutions are near the
# truth. On the other coordinates the truth is 0, and the noisy run is mostly smaller.
#
# **Try next.**
# - Choose another `alpha`: at 1 the solutions look like the one of smallest $\ell_2$
#   norm, at 0.001 like the one of smallest $\ell_1$ norm.
# - Choose another `gamma`. If it is too large, `flow.statuses()` says that seeds
#   diverged; they are marked, not hidden.
# - Call `flow.to_xarray()` to get everything with named dimensions, units and
#   provenance.
# - Read notebook 2, which explains why the quantities that theory speaks of are exact
#   in these runs, whatever the step.
