"""The code that the design of this system promises, as printed there."""

import jax.random
import numpy as np
import pytest

CODE = """
import jax, jax.numpy as jnp, equinox as eqx, sgfbias as sgf
from sgfbias import margin

problem = sgf.Problem(X, y, loss=margin.ExponentialLoss())
model = eqx.nn.MLP(64, "scalar", 32, 1, use_bias=False, use_final_bias=False, activation=jax.nn.relu, key=key)
print(margin.homogeneity(model, problem.inputs))

flow = margin.MarginFlow(margin.AdaGrad(eps=1e-8))
run = sgf.simulate(flow, model, problem, t1=2302.6)
rule = margin.MarginDescent(margin.Adam(b1=0.9, b2=0.999, eps=0.0), step_size=1e-2)
steps = sgf.simulate(rule, model, problem, steps=100_000)
run["nu"], run["log10_loss"], run["log_time"], run["margin_l2"], run["margin_linf"], run["surrogate_margin"], run.final["conditioner"]

print(margin.certify(run, geometry="l2"))
print(margin.which(run))
landed = margin.land(run, geometry="l2")
best = margin.max_margin(X, y, norm="l2")
margin.adagrad_limit(x, w0, eps=1e-8), margin.crossover(G, n=n, eps=1e-8), margin.adam_rate(gamma_inf, lr, b1=.9, b2=.999)
"""  # noqa: E501


@pytest.mark.slow
def test_the_code_of_the_design_runs_as_printed(capsys):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 64))
    y = np.where(np.arange(20) % 2, -1.0, 1.0)
    names = {
        "X": X, "y": y, "key": jax.random.key(0), "x": np.ones(3), "w0": np.zeros(3),
        "G": np.ones(3), "n": 20, "gamma_inf": 0.37, "lr": 1e-2,
    }  # fmt: skip
    exec(CODE, names)
    printed = capsys.readouterr().out
    assert "homogeneous of degree 2, residual" in printed
    assert "Certificate in l2: margin" in printed
    assert "metric  gap" in printed
    run, steps = names["run"], names["steps"]
    assert run.statuses() == {"moving": 1}
    np.testing.assert_allclose(run.final["nu"], 2302.6, rtol=1e-3)
    np.testing.assert_allclose(run.final["log10_loss"], -1001.3, atol=0.3)
    assert run.final["conditioner"].shape == (65 * 32,)
    assert float(steps.final["nu"]) > 10
    assert names["landed"].certificate.margin >= float(run.final["margin_l2"]) * (1 - 1e-9)
    assert names["landed"].moved_degrees >= 0
    assert names["best"].gap < 1e-9
