# %% [markdown]
# # 2. Why mirror coordinates
#
# A flow is simulated in steps, and steps make errors. In a study of *which* solution is selected, an error of the solver looks exactly like
# an effect of the noise. sgfbias therefore moves diagonal networks in coordinates in which the things theory speaks of have no error,
# whatever the step. This notebook shows what that buys, on one Brownian path.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.plotting import COLOURS, tidy

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Two ways to write one process
#
# The stochastic gradient flow of the diagonal network $\beta = w_+^2 - w_-^2$ is
#
# $$dw_\pm = \mp\, w_\pm \odot \frac{X^\top r}{n}\, dt \pm 2\sqrt{\gamma L/n}\; w_\pm \odot (X^\top dB), \qquad r = X\beta - y,$$
#
# with $n$ examples in the rows of $X \in \mathbb{R}^{n\times d}$, step size $\gamma$, loss $L = |r|^2/4n$ and a Brownian motion $B \in
# \mathbb{R}^n$. Every term is $w_\pm$ times something in the span of the rows. Itô's formula for the logarithm gives
#
# $$w_\pm = \alpha_t\, e^{\pm 2 X^\top c}, \qquad dc = -\frac{r}{2n}\,dt + \sqrt{\gamma L/n}\; dB, \qquad
# \log \alpha_t = \log \alpha - 2\gamma h S, \qquad dS = L\,dt,$$
#
# where $h_j$ is the mean of $x_{ij}^2$ over the examples: $n + 1$ numbers $(c, S)$ in place of $2d$ weights, and exactly the same process.
# In these *mirror coordinates* three facts hold to rounding at any step: $w_\pm > 0$; $\log(w_+/w_-)$ is in the span of the rows; and **the
# law of the product**
#
# $$\log(w_+ w_-) = 2\log\alpha - 4\gamma h \int_0^t L\,ds .$$

# %%
problem = sgf.SparseRegression.sample(jax.random.key(0), n=10, d=40, sparsity=3)
network = sgf.DiagonalNetwork.init(alpha=0.1, d=problem.d)
gamma = 0.05
for name in ("mirror", "weights"):
    state = network.coordinates(name, problem, sgf.StochasticGradientFlow(gamma)).encode(network)
    sizes = {"mirror": "n + 1", "weights": "2 d, and d for a sum that tells what lies in the row space"}
    print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(state))} numbers of state ({sizes[name]}; n = {problem.n}, d = {problem.d})")

# %% [markdown]
# ## Strong error on one path
#
# `brownian_dt` fixes the width of the finest Brownian increments; a run with a coarser step sums them, so all runs of a seed see the same
# path. We run Euler's method in both coordinates at `dt` $= 4\gamma$ down to $\gamma/16$, and measure the root mean square over seeds of
# $|\beta_T - \beta_T^{\text{ref}}|$. The reference is the mirror run at $\gamma/64$. The error has two parts. The drift's falls as `dt`;
# the noise's, which is multiplicative and does not commute, as $\sqrt{dt}$, and so it wins in the end. **Theory predicts a slope between
# 1/2 and 1** for both, 1/2 as `dt` goes to 0. The constants are what differs.

# %%
keys, T = sgf.seeds(0, 64), 240 * gamma
finest = gamma / 64
widths = gamma * np.array([4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16])


def run(coordinates, dt):
    flow = sgf.StochasticGradientFlow(gamma, dt=dt, brownian_dt=finest)
    return sgf.simulate(flow, network, problem, keys=keys, steps=round(T / dt), coordinates=coordinates, record=sgf.Record(times=2))


reference = run("mirror", finest).final["beta"]
runs = {name: [run(name, dt) for dt in widths] for name in ("weights", "mirror")}


def strong_error(one):
    return float(np.sqrt(np.mean(np.sum((np.asarray(one.final["beta"]) - np.asarray(reference)) ** 2, axis=1))))


errors = {name: np.array([strong_error(one) for one in row]) for name, row in runs.items()}
for name, values in errors.items():
    fine = np.isfinite(values) & (widths <= gamma)
    slope = np.polyfit(np.log(widths[fine]), np.log(values[fine]), 1)[0]
    print(
        f"{name:8} slope of the strong error: predicted 0.5 to 1, measured {slope:.2f};   error at dt = gamma {values[widths == gamma][0]:.2e}"
    )

# %% [markdown]
# ## The law of the product
#
# Each run also knows its own $\int L$, as its solver computed it. So the law can be held against every run by itself, without a reference:
# the largest violation over features and seeds, $|\log(w_+w_-) - 2\log\alpha + 4\gamma h S|$. Predicted: rounding ($10^{-15}$ or so) in
# mirror coordinates; in weights an error with a slope between 1/2 and 1, as before: one step multiplies $w$ by $1 + x$, and $\log(1 + x)$
# is not $x - x^2/2$ with $x^2$ replaced by its mean.


# %%
def violation(one):
    law = 2 * network.log_alpha - 4 * gamma * problem.h * one.final["loss_integral"][:, None]
    return float(np.nanmax(np.abs(np.asarray(2 * one.final["log_alpha"] - law))))


violations = {name: np.array([violation(one) for one in row]) for name, row in runs.items()}
print("largest violation of the law at dt = gamma")
print(f"  mirror   predicted 0, measured {violations['mirror'][widths == gamma][0]:.0e}")
fine = widths <= gamma
slope = np.polyfit(np.log(widths[fine]), np.log(violations["weights"][fine]), 1)[0]
print(f"  weights  measured {violations['weights'][widths == gamma][0]:.2f};  slope in dt: predicted 0.5 to 1, measured {slope:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
look = {"weights": (COLOURS["sgd"], "o-"), "mirror": (COLOURS["sgf"], "s-")}
for name, (colour, style) in look.items():
    axes[0].plot(widths / gamma, errors[name], style, color=colour, label=f"Euler in {name}")
    axes[1].plot(widths / gamma, np.maximum(violations[name], 1e-17), style, color=colour, label=f"Euler in {name}")
for ax, anchor in ((axes[0], errors["mirror"][-1]), (axes[1], violations["weights"][-1])):
    ax.plot(widths / gamma, 0.7 * anchor * np.sqrt(widths / widths[-1]), "--", color="black", linewidth=1, label="slope 1/2")
    ax.legend(frameon=False)
tidy(axes[0], title="Strong error on one Brownian path", x="dt / $\\gamma$", y="rms of $|\\beta_T - \\beta_T^{ref}|$")
tidy(axes[1], title="Violation of the law of $w_+ w_-$", x="dt / $\\gamma$", y="largest over features and seeds")
plt.show()

# %% [markdown]
# **What to look at.** Left: both lines go down, and towards slope 1/2, but the one of mirror coordinates lies far lower. Read across: the
# step at which Euler in the weights is as good is many times smaller. Right: one line falls slowly, the other is at rounding for every
# step, also at $4\gamma$.
#
# ## What the error would look like in a study
#
# The same seed in both coordinates at `dt` $= 2\gamma$. Every feature's $\log\alpha_t$ must be a straight line in $S$, with slope $-2\gamma
# h_j$. In the weights the features wander off it, and a study of effective initialisations would call that an effect of the noise.

# %%
one_path = {}
spread_out = np.argsort(problem.h)[[0, 13, 26, 39]]  # features from the smallest to the largest h
for name in look:
    flow = sgf.StochasticGradientFlow(gamma, dt=2 * gamma, brownian_dt=finest)
    record = sgf.Record(["log_alpha"], times=60)
    one_path[name] = sgf.simulate(flow, network, problem, keys=keys[0], steps=round(T / (2 * gamma)), coordinates=name, record=record)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharex=True, sharey=True)
for ax, name in zip(axes, look, strict=True):
    S = np.asarray(one_path[name]["loss_integral"])
    shrunk = np.asarray(one_path[name]["log_alpha"] - network.log_alpha)
    for j, colour in zip(spread_out, plt.cm.viridis([0.0, 0.3, 0.6, 0.85]), strict=True):
        ax.plot(S, shrunk[:, j], "o", markersize=3, color=colour, label=f"feature {j}")
        ax.plot(S, -2 * gamma * float(problem.h[j]) * S, color=colour, linewidth=1)
    tidy(
        ax,
        title=f"Euler in {name}; lines: theory",
        x="loss integral $S$",
        y="$\\log\\alpha_t - \\log\\alpha$",
        x_scale="linear",
        y_scale="linear",
    )
    ax.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# **Try next.**
# - `coordinates="log"`: the third way, $2d$ logarithms, an independent check of mirror coordinates.
# - `solver=sgf.PredictorCorrector()`: the same order, a smaller constant, two passes over the data per step.
# - SGD itself must move in the weights, where it *is* its own scheme and nothing is approximated; it obeys a product law of its own.
# - Notebook 3: other noises, and the theorem that rests on these coordinates.
