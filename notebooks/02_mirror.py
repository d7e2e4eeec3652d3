# %% [markdown]
# # 2. Why mirror coordinates
#
# A flow is simulated in steps, and steps make errors. In a study of *which* solution is
# selected, an error of the solver looks exactly like an effect of the noise. sgfbias
# therefore simulates diagonal networks in *mirror coordinates*, in which the quantities
# that theory speaks of carry no discretisation error, whatever the step. This notebook
# measures the benefit on one Brownian path.

# %%
import jax

jax.config.update("jax_enable_x64", True)

import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias.study.plotting import COLOURS, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Two ways to write one process
#
# The stochastic gradient flow of the diagonal network $\beta = w_+^2 - w_-^2$ is
#
# $$dw_\pm = \mp\, w_\pm \odot \frac{X^\top r}{n}\, dt
# \pm 2\sqrt{\gamma L/n}\; w_\pm \odot (X^\top dB), \qquad r = X\beta - y,$$
#
# where the rows of $X \in \mathbb{R}^{n\times d}$ are the $n$ examples, $\gamma$ is the
# step size, $L = |r|^2/4n$ is the loss and $B \in \mathbb{R}^n$ is a Brownian motion.
# Every term is $w_\pm$ times a vector in the span of the rows. Applying Itô's formula
# to the logarithm gives
#
# $$w_\pm = \alpha_t\, e^{\pm 2 X^\top c}, \qquad
# dc = -\frac{r}{2n}\,dt + \sqrt{\gamma L/n}\; dB, \qquad
# \log \alpha_t = \log \alpha - 2\gamma h S, \qquad dS = L\,dt,$$
#
# where $h_j$ is the mean of $x_{ij}^2$ over the examples. These are $n + 1$ numbers
# $(c, S)$ in place of $2d$ weights, and they describe exactly the same process. In
# mirror coordinates, three facts hold up to rounding at any step: $w_\pm > 0$;
# $\log(w_+/w_-)$ is in the span of the rows; and the product of the weights obeys its
# **evolution law**
#
# $$\log(w_+ w_-) = 2\log\alpha - 4\gamma h \int_0^t L\,ds .$$

# %%
problem = sgf.SparseRegression.sample(jax.random.key(0), n=10, d=40, sparsity=3)
network = sgf.DiagonalNetwork.init(alpha=0.1, d=problem.d)
gamma = 0.05
for name in ("mirror", "weights"):
    state = network.coordinates(name, problem, sgf.StochasticGradientFlow(gamma)).encode(network)
    sizes = {
        "mirror": f"n + 1 with n = {problem.n}",
        "weights": f"2 d with d = {problem.d}, and d for a sum that shows what is in the row space",
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    print(f"{name}: the state has {size} numbers ({sizes[name]})")

# %% [markdown]
# ## Strong error on one path
#
# `brownian_dt` fixes the width of the finest Brownian increments. A run with a coarser
# step sums them, so all runs of a seed see the same path. We run Euler's method in both
# coordinates, with `dt` from $4\gamma$ down to $\gamma/16$, and measure the root mean
# square over seeds of $|\beta_T - \beta_T^{\text{ref}}|$. The reference is the run in
# mirror coordinates at $\gamma/64$.
#
# The error has two parts. The part that comes from the drift falls as `dt`. The part
# that comes from the noise, which is multiplicative and does not commute, falls only as
# $\sqrt{dt}$, so it dominates in the end. **Theory therefore predicts a slope between
# 1/2 and 1** in both coordinates, with 1/2 in the limit `dt` $\to 0$. The two
# coordinates differ in the constants.

# %%
keys, T = sgf.seeds(0, 64), 240 * gamma
finest = gamma / 64
widths = gamma * np.array([4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16])


def run(coordinates, dt):
    flow = sgf.StochasticGradientFlow(gamma, dt=dt, brownian_dt=finest)
    return sgf.simulate(
        flow,
        network,
        problem,
        keys=keys,
        steps=round(T / dt),
        coordinates=coordinates,
        record=sgf.Record(times=2),
    )


reference = run("mirror", finest).final["beta"]
runs = {name: [run(name, dt) for dt in widths] for name in ("weights", "mirror")}


def strong_error(one):
    return float(
        np.sqrt(
            np.mean(np.sum((np.asarray(one.final["beta"]) - np.asarray(reference)) ** 2, axis=1))
        )
    )


errors = {name: np.array([strong_error(one) for one in row]) for name, row in runs.items()}
for name, values in errors.items():
    fine = np.isfinite(values) & (widths <= gamma)
    slope = np.polyfit(np.log(widths[fine]), np.log(values[fine]), 1)[0]
    at_gamma = values[widths == gamma][0]
    print(
        f"{name:8} slope of the strong error: predicted 0.5 to 1, measured {slope:.2f};   "
        f"error at dt = gamma: {at_gamma:.2e}"
    )

# %% [markdown]
# ## The evolution law of the product
#
# Each run also knows its own $\int L$, as its solver computed it. So every run can be
# compared with the evolution law by itself, without a reference. We measure the largest
# violation over features and seeds, $|\log(w_+w_-) - 2\log\alpha + 4\gamma h S|$.
#
# In mirror coordinates theory predicts rounding error ($10^{-15}$ or so). In the
# weights it predicts an error with a slope between 1/2 and 1, as before. The reason is
# that one Euler step multiplies $w$ by $1 + x$. The law would need
# $\log(1 + x) = x - q/2$, where $q$ is the mean of $x^2$, but $\log(1 + x)$ is
# $x - x^2/2 + \dots$


# %%
def violation(one):
    law = 2 * network.log_alpha - 4 * gamma * problem.h * one.final["loss_integral"][:, None]
    return float(np.nanmax(np.abs(np.asarray(2 * one.final["log_alpha"] - law))))


violations = {name: np.array([violation(one) for one in row]) for name, row in runs.items()}
at_gamma = {name: values[widths == gamma][0] for name, values in violations.items()}
print("largest violation of the evolution law at dt = gamma")
print(f"  mirror   predicted 0, measured {at_gamma['mirror']:.0e}")
fine = widths <= gamma
slope = np.polyfit(np.log(widths[fine]), np.log(violations["weights"][fine]), 1)[0]
print(
    f"  weights  measured {at_gamma['weights']:.2f};  "
    f"slope in dt: predicted 0.5 to 1, measured {slope:.2f}"
)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
look = {"weights": (COLOURS["sgd"], "o-"), "mirror": (COLOURS["sgf"], "s-")}
for name, (colour, style) in look.items():
    axes[0].plot(widths / gamma, errors[name], style, color=colour, label=f"Euler in {name}")
    axes[1].plot(
        widths / gamma,
        np.maximum(violations[name], 1e-17),
        style,
        color=colour,
        label=f"Euler in {name}",
    )
for ax, anchor in ((axes[0], errors["mirror"][-1]), (axes[1], violations["weights"][-1])):
    ax.plot(
        widths / gamma,
        0.7 * anchor * np.sqrt(widths / widths[-1]),
        "--",
        color="black",
        linewidth=1,
        label="slope 1/2",
    )
    ax.legend(frameon=False)
tidy(
    axes[0],
    title="Strong error on one Brownian path",
    x="dt / $\\gamma$",
    y="rms of $|\\beta_T - \\beta_T^{ref}|$",
)
tidy(
    axes[1],
    title="Violation of the evolution law of $w_+ w_-$",
    x="dt / $\\gamma$",
    y="largest over features and seeds",
)
plt.show()

# %% [markdown]
# **What to look at.** On the left, both lines go down and approach slope 1/2, but the
# one of mirror coordinates lies far lower. Read the picture horizontally: Euler's
# method in the weights needs a step many times smaller to be as accurate. On the right,
# one line falls slowly; the other is at rounding error for every step, even at
# $4\gamma$.
#
# ## What the error would look like in a study
#
# Here is the same seed in both coordinates at `dt` $= 2\gamma$. Theory says that the
# $\log\alpha_t$ of every feature is a straight line in $S$ with slope $-2\gamma h_j$.
# In the weights the features wander off their lines, and a study of effective
# initialisations would mistake that for an effect of the noise.

# %%
one_path = {}
spread_out = np.argsort(problem.h)[[0, 13, 26, 39]]  # features from the smallest to the largest h
for name in look:
    flow = sgf.StochasticGradientFlow(gamma, dt=2 * gamma, brownian_dt=finest)
    record = sgf.Record(["log_alpha"], times=60)
    one_path[name] = sgf.simulate(
        flow,
        network,
        problem,
        keys=keys[0],
        steps=round(T / (2 * gamma)),
        coordinates=name,
        record=record,
    )

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
# - Use `coordinates="log"`, a third way to simulate the network. Its state is $2d$
#   logarithms, and it is an independent check of mirror coordinates.
# - Use `solver=sgf.PredictorCorrector()`. It has the same order as Euler's method and a
#   smaller constant, and it makes two passes over the data per step.
# - SGD itself must be simulated in the weights. There nothing is approximated, because
#   SGD *is* its own numerical scheme. The product of SGD's weights obeys an evolution
#   law of its own.
# - Read notebook 3 about other noises and about the theorem that rests on these
#   coordinates.
