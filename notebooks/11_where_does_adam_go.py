# %% [markdown]
# # 11. Where does Adam go?
#
# A classifier that fits its training data is not done: its loss falls for ever, its
# weights grow, and only their **direction** matters. Gradient descent turns towards the
# max-margin solution in $\ell_2$. Papers disagree about Adam: some prove $\ell_2$, some
# $\ell_\infty$. They take different **eps**, and both are right, at different times.
#
# The times are far beyond what a float can hold: at a sum of losses of $10^{-400}$ the
# loss is 0.0. So the clock here is $\nu = -\log \sum_i l_i$, and nothing underflows.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgfbias as sgf
from sgfbias import margin
from sgfbias.study.plotting import COLOURS, tidy

jax.config.update("jax_enable_x64", True)
sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Two solutions
#
# Few examples in more dimensions, so that the best linear classifier depends on the
# norm. `max_margin` computes it, and a proof: no other weights have a larger margin
# than the printed one by more than the `gap`.

# %%
rng = np.random.default_rng(7)
y = np.where(np.arange(4) % 2, -1.0, 1.0)
X = rng.normal(size=(4, 6))
best = {norm: margin.max_margin(X, y, norm=norm) for norm in ("l2", "linf")}
for norm, found in best.items():
    print(
        f"{norm:5} margin {found.margin:.4f}, gap {found.gap:.1e}, weights", found.weights.round(2)
    )
problem = sgf.Problem(jnp.asarray(X), jnp.asarray(y), loss=margin.ExponentialLoss())
start = margin.Linear(jnp.zeros(6))

# %% [markdown]
# ## Adam without eps goes to the infinity norm
#
# `MarginDescent` runs Adam as Optax does, in a frame that moves with the loss. Without
# eps its steps never shrink, and $\nu$ grows at a constant rate. Theory knows the rate:
# it is set by the $\ell_\infty$ margin and by the two decays.

# %%
lr, steps = 1e-2, 40_000
record = sgf.Record(dict.fromkeys(("nu", "margin_l2", "margin_linf")), times=200)
runs = {}
for name, rule, rate in (
    ("Adam, eps = 0", margin.Adam(eps=0.0), margin.adam_rate(best["linf"].margin, lr)),
    ("sign descent", margin.Sign(), lr * best["linf"].margin),
):
    run = sgf.simulate(margin.MarginDescent(rule, lr), start, problem, steps=steps, record=record)
    nu, taken = np.asarray(run["nu"]), np.asarray(run.steps)
    half = int(np.searchsorted(taken, steps // 2))
    seen = (nu[-1] - nu[half]) / (taken[-1] - taken[half])
    runs[name] = run
    print(
        f"{name:14} nu per step: predicted {rate:.4g}, measured {seen:.4g}; l_inf margin "
        f"{float(run['margin_linf'][-1]) / best['linf'].margin:.4f} of the best"
    )

# %% [markdown]
# ## With eps it leaves again
#
# The average of the squared gradients falls with the loss. Once it is below eps, here
# inside the square root, the conditioner is constant, and what remains is gradient
# descent. `crossover` says when: at $\nu_\times = \log(\max_i |G_i| s) - \log n -
# \frac12 \log \epsilon$. As a flow, so that all times are seen:

# %%
nus = np.linspace(0.5, 60, 600)
record = sgf.Record(dict.fromkeys(("conditioner", "margin_l2", "margin_linf")), nus)
forgets = best["linf"].margin / 0.37
multipliers = best["linf"].multipliers
G = (X * y[:, None]).T @ multipliers / multipliers.sum()  # at the l_inf solution
figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for k, eps in enumerate((1e-8, 1e-16, 1e-24)):
    flow = margin.MarginFlow(margin.RMSProp(0.0, eps, step_size=1 / forgets))
    run = sgf.simulate(flow, start, problem, t1=nus[-1], record=record)
    average = np.max(np.asarray(run["conditioner"]) ** -2 - eps, axis=1)
    seen = nus[np.flatnonzero(average > eps)[-1]]
    predicted = margin.crossover(G, n=4, eps=eps, forgets=forgets)
    print(f"eps = {eps:g}: crossover predicted at nu = {predicted:.2f}, measured {seen:.1f}")
    colour = plt.cm.viridis(k / 3)
    for panel, norm in zip(panels, ("linf", "l2"), strict=True):
        panel.plot(nus, np.asarray(run[f"margin_{norm}"]) / best[norm].margin, color=colour,
                   label=f"eps = {eps:g}")  # fmt: skip
        panel.axvline(predicted, color=colour, linewidth=0.8, linestyle=":")
gd = sgf.simulate(margin.MarginFlow(), start, problem, t1=nus[-1], record=record)
for panel, norm in zip(panels, ("linf", "l2"), strict=True):
    panel.plot(nus, np.asarray(gd[f"margin_{norm}"]) / best[norm].margin, "--",
               color=COLOURS["gd"], label="gradient flow")  # fmt: skip
    tidy(panel, title=f"{norm} margin over the best one", x="nu", y="ratio",
         x_scale="linear", y_scale="linear")  # fmt: skip
    panel.legend(fontsize=8)
plt.show()

# %% [markdown]
# **What to look at.** Left: up to the dotted line, which is the predicted crossover,
# the direction approaches the $\ell_\infty$ solution. Right: after it, it turns to the
# $\ell_2$ solution, as that of gradient flow does all the time. With Adam's usual eps
# of $10^{-8}$ outside the root, which is $10^{-16}$ inside, the crossover is at a loss
# of about $10^{-7}$: in float32, most experiments end before it.

# %% [markdown]
# ## A network
#
# The same for any homogeneous model. `homogeneity` tests it, and finds the degree. On a
# squared-ReLU network we compare the *alignment gap*: 0 exactly where the weights are
# stationary for the margin in that norm.


# %%
def squared_relu(z):
    return jnp.square(jax.nn.relu(z))


keys = jax.random.split(jax.random.key(1), 2)
inputs = jax.random.normal(keys[0], (16, 5))
labels = jnp.where(inputs[:, 0] + inputs[:, 1] > 0, 1.0, -1.0)
net = eqx.nn.MLP(
    5, "scalar", 8, 1, use_bias=False, use_final_bias=False, activation=squared_relu, key=keys[1]
)
data = sgf.Problem(inputs, labels, loss=margin.ExponentialLoss())
print(margin.homogeneity(net, inputs))
ends = {}
for name, conditioner in (("gradient flow", margin.Identity()), ("AdaGrad", margin.AdaGrad())):
    ends[name] = sgf.simulate(margin.MarginFlow(conditioner), net, data, t1=300.0)
    print(f"\n{name}, {ends[name].reason()}\n{margin.which(ends[name])}")

# %% [markdown]
# The gap of gradient flow goes to zero in $\ell_2$ (its own metric is the same), and
# that of AdaGrad in the metric of its own conditioner only, as theory predicts. Gaps of
# networks close slowly. `land` goes on to a KKT point of the $\ell_2$ problem below
# each run. Its
# certificate has multipliers that anyone can check: $w = J^\top \lambda$, $\lambda \ge
# 0$, and $\lambda_i > 0$ only where the margin is the least.

# %%
for name, run in ends.items():
    landed = margin.land(run)
    multipliers, margins = landed.certificate.multipliers, landed.certificate.margins
    weights = jax.tree.leaves(eqx.filter(landed.network, eqx.is_inexact_array))
    square = float(sum(jnp.sum(leaf**2) for leaf in weights))
    print(
        f"{name:14} margin {float(run['margin_l2'][-1]):.5f} -> {landed.certificate.margin:.5f}, "
        f"moved by {landed.moved_degrees:.1f} degrees\n"
        f"{'':14} |w|^2: predicted 3 sum lambda q = {3 * float(multipliers @ margins):.6f}, "
        f"measured {square:.6f}"
    )

# %% [markdown]
# ## What to take home
#
# Ask at which loss your experiment ends, and where eps is. Before the crossover Adam
# maximises the $\ell_\infty$ margin, long after it the $\ell_2$ margin, and in between
# neither. `margin.which(run)` says what *your* run obeys, `margin.certify(run)` gives
# the multipliers, and `sgfbias run margin-crossover` tests the formulas above.
