# %% [markdown]
# # 10. How long does it hold?
#
# A recurrent network is trained on sequences of length $k$ and used on longer ones. On
# short sequences infinitely many networks are perfect. **Which one does training pick,
# to which length does it hold, and why not further?**
#
# First a linear network, of which everything is known in closed form; then a GRU on a
# task of memory; then how to move the length to which it holds. Everything about the
# GRU works for any Equinox cell.

# %%
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sgfbias as sgf
from sgfbias import recurrent as rec
from sgfbias.study.plotting import COLOURS, tidy

sgf.keep_compiled()  # on disk, so the next run need not compile again
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## A linear network, and what it does at lag j
#
# The network $s_t = A s_{t-1} + B x_t$, $y_t = C s_t$ weighs the input $j$ steps ago by
# $h_j = C A^j B$. The teacher is the last input: $h_0 = 1$, all others 0. On white
# sequences of length $k$ the risk sees $h_0, \dots, h_{k-1}$ only. We train two starts
# on $k = 5$: a Gaussian one, and a symmetric one with $A = A^\top$, $C = B^\top$. The
# third network is made by hand: a scaled cyclic shift, with zero risk and zero
# gradient.

# %%
k = 5
key = jax.random.key(0)
risk = rec.PopulationRisk(1.0, k)
starts = {
    "symmetric start": rec.LinearRNN.symmetric(key, state=20, scale=0.6, gain=0.5),
    "Gaussian start": rec.LinearRNN.gaussian(key, state=20, scale=0.6, gain=0.5),
}
ends = {
    name: sgf.simulate(sgf.GradientDescent(0.1), start, risk, steps=5000).networks
    for name, start in starts.items()
}
ends["cyclic shift"] = rec.bad_interpolator(k, state=8, scale=0.98)
styles = {
    "symmetric start": COLOURS["sgf"],
    "Gaussian start": COLOURS["sgd"],
    "cyclic shift": "black",
}
figure, axes = plt.subplots(figsize=(6, 4))
for name, net in ends.items():
    h = np.abs(net.impulse_response(50))[:, 0, 0]
    axes.plot(np.flatnonzero(h), h[h > 0], "o-", ms=3, color=styles[name], label=name)
axes.axvline(k - 0.5, color="grey", linestyle="--", label="length of training")
tidy(axes, title="Impulse responses after training", x="lag", y="|h|", x_scale="linear")
axes.legend(frameon=False, fontsize=9)
plt.show()
for name, net in ends.items():
    print(
        f"{name}: risk at length {k} {float(risk.risk(net)):.1e}, error at all later lags "
        f"{float(rec.tail(net, 1.0, k)):.1e}"
    )

# %% [markdown]
# **What to look at.** All three fit the sequences of training. The symmetric start also
# holds beyond them: its $h_j$ are moments of a positive measure, and the first few
# decide all others. What the Gaussian start does at later lags is inherited from its
# start. The cyclic shift comes back after eight steps.
#
# `rec.tail` is the energy of the error from lag $k$ to infinity. So the loss at any
# length is known before it is measured:


# %%
def echo(key, length):
    # One sequence and its target.
    x = jax.random.normal(key, (length, 1))
    return x, x[-1]


squared = sgf.SquaredLoss(scale=0.5)
keys = sgf.seeds(1000, 3000)
lengths = (5, 10, 20, 40, 80)
net = ends["Gaussian start"]
curve = rec.extrapolate(net, echo, lengths=lengths, trained=k, keys=keys, loss=squared)
for length, loss, error in zip(curve.lengths, curve.loss, curve.error, strict=True):
    predicted = float(risk.risk(net)) + 0.5 * (
        float(rec.tail(net, 1.0, k, length)) if length > k else 0.0
    )
    print(f"length {length:2}: predicted {predicted:.3e}, measured {loss:.3e} +- {error:.1e}")

# %% [markdown]
# ## Perfect extrapolation takes for ever
#
# From a symmetric start the error $e$ at lag 2 falls only as $1/(2 w t)$ in flow time
# $t$, for a teacher $w$: over any time, $1/e$ grows by $2 w t$.

# %%
small = rec.LinearRNN.symmetric(key, state=20, scale=0.1, gain=0.5)
record = sgf.Record({"h": lambda n: n.impulse_response(3)[:, 0, 0]}, np.asarray([1e3, 2e3]))
flow = sgf.GradientFlow(dt=0.2)
run = sgf.simulate(flow, small, risk, steps=10_000, solver=dfx.Heun(), record=record)
early, late = (float(h[2]) for h in run["h"])
print(
    f"1/e from t = 1,000 to 2,000: predicted to grow by {1 / rec.late_error(1.0, 1e3):.0f}, "
    f"measured {1 / late - 1 / early:.0f}; e is still {late:.1e}"
)

# %% [markdown]
# ## A GRU that has to remember
#
# Now a task of memory. Every step has a number; the first one is marked and has to be
# returned at the end. The GRU is trained on 12 steps. No theorem says what it does on
# more, so we measure. The last channel says whether a step counts; `rec.Masked` skips
# the others, which we need later.


# %%
def recall(key, length):
    x = jax.random.uniform(key, (length,), minval=-1.0)
    first = jnp.zeros(length).at[0].set(1.0)
    return jnp.stack([x, first, jnp.ones(length)], axis=1), x[:1]


def make(key):
    k1, k2 = jax.random.split(key)
    cell = rec.Masked(eqx.nn.GRUCell(2, 12, key=k1))
    return rec.Unroll(cell, eqx.nn.Linear(12, 1, key=k2))


k = 12
inputs, targets = jax.vmap(lambda key: recall(key, k))(sgf.seeds(0, 4096))
mse = sgf.SquaredLoss(scale=1.0)
adam = sgf.OptaxDescent(optax.adam(1e-2), 1.0, 32)
rules = {"one length": None, "mixed lengths": rec.MixedLengths(2, keep=1)}
trained = {}
for name, rule in rules.items():
    problem = sgf.Problem(inputs, targets, loss=mse, perturb=rule)
    runs = sgf.simulate(
        adam, make(key), problem, keys=sgf.seeds(0, 1), steps=1000, record=sgf.Record((), times=20)
    )
    trained[name] = jax.tree.map(lambda leaf: leaf[0], runs.networks)
lengths = (12, 24, 48, 96, 192)
curves = {
    name: rec.extrapolate(
        net, recall, lengths=lengths, trained=k, keys=sgf.seeds(5000, 5512), loss=mse
    )
    for name, net in trained.items()
}
print(curves["one length"])

# %% [markdown]
# `horizon(factor)` is the length up to which the loss stays within a factor of that in
# training. To compare networks, give a level instead: here a tenth of the variance of
# the target, which is 1/3.
#
# ## Why not further?
#
# `rec.memory` is the gain of the output over the input at every lag, and
# `rec.lyapunov` says how fast states come together. A network that has to hold a number
# needs a leading exponent near 0: if it is $-\lambda$, states that differ come together
# within about $1/\lambda$ steps.

# %%
probe, _ = jax.vmap(lambda key: recall(key, 192))(sgf.seeds(6000, 6064))
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, colour in (("one length", COLOURS["gd"]), ("mixed lengths", COLOURS["sgf"])):
    curve = curves[name]
    left.errorbar(curve.lengths, curve.loss, curve.error, fmt="o-", color=colour, label=name)
    left.axvline(curve.horizon(level=1 / 30), color=colour, linestyle=":")
    gain = rec.memory(trained[name], probe).log_gain
    right.plot(gain, color=colour, label=name)
    exponent = float(rec.lyapunov(trained[name], probe[0], warmup=50, count=1)[0])
    print(
        f"{name}: holds to length {curve.horizon(level=1 / 30)}; leading exponent "
        f"{exponent:.4f}, a time of {1 / abs(exponent):.0f} steps"
    )
left.axhline(1 / 30, color="grey", linestyle="--", label="a tenth of the variance")
tidy(left, title="Loss against length", x="length", y="loss")
left.legend(frameon=False, fontsize=9)
tidy(right, title="Memory", x="lag", y="log of the gain", x_scale="linear", y_scale="linear")
right.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## Moving the horizon
#
# `rec.MixedLengths` is a rule for `Problem(perturb=)`: in every iteration it removes a
# random number of steps from each sequence, but never a marked one. The targets stay.
# Nothing longer than 12 steps was ever seen.
#
# For a linear network there is a cure in closed form: `rec.TailPenalty` adds the error
# at all later lags to the loss.

# %%
cured = rec.PopulationRisk(1.0, 5, penalty=rec.TailPenalty(1.0, 5))
run = sgf.simulate(sgf.GradientDescent(0.05), starts["Gaussian start"], cured, steps=3000)
for name, net in {"without": ends["Gaussian start"], "with the penalty": run.networks}.items():
    print(f"{name}: error at later lags {float(rec.tail(net, 1.0, 5)):.1e}")

# %% [markdown]
# **Try next.**
# - Your own cell: anything with `(input, hidden) -> hidden` in place of `GRUCell`.
# - Your own data: `rec.read_sequences("series.csv").task` in place of `recall`, or
#   `sgfbias run recurrent-cells --data series.csv`.
# - `sgfbias run recurrent`, `recurrent-memory`, `recurrent-cells` and `recurrent-cure`
#   ask these questions with seeds and claims.
