"""The code that a user writes, as it stands in the design, at a small size."""

import equinox as eqx
import jax
import numpy as np
import pytest

import sgfbias as sgf


@pytest.mark.slow
def test_the_code_of_the_contract_runs():
    mf = sgf.meanfield
    data = mf.GaussianMixture(2.0, spectrum=0.5)
    rule = mf.MaskedDescent(0.1, sgf.PersistentMask(0.3, persistence=10), ridge=0.1)
    theory = mf.solve(
        data,
        sgf.LogisticLoss(),
        rule,
        steps=12,
        start=mf.Start(overlap=0.0, variance=0.01),
        samples=200,
        keys=sgf.seeds(0, 3),
        replicas=2,
    )
    runs = mf.simulate(
        data,
        sgf.LogisticLoss(),
        rule,
        steps=12,
        start=mf.Start(variance=0.01),
        d=40,
        keys=sgf.seeds(0, 3),
        replicas=2,
    )
    for curves in (theory, runs):
        for name in ("overlap", "loss", "test_error", "distance"):
            assert getattr(curves, name).shape == (3, 13)
        assert curves.correlation.shape == (3, 13, 13)
        stored = curves.to_xarray()
        assert stored["correlation"].dims == ("key", "time", "earlier")
        assert all(stored[name].attrs["units"] for name in stored.data_vars)
        assert "status  3 finite" in repr(curves)
    assert theory.response.shape == (3, 13, 13)
    heat = mf.effective_temperature(theory, waiting=4)
    assert heat.drop.shape == heat.response.shape == (3, 9)
    assert heat.temperature.shape == heat.slope(2).shape == (3,)
    with pytest.raises(ValueError, match=r"write simulate\(..., probes=4\)"):
        mf.effective_temperature(runs, waiting=4)
    with pytest.raises(ValueError, match="`waiting` must leave two lags or more"):
        mf.effective_temperature(theory, waiting=11)
    one = mf.simulate(data, sgf.LogisticLoss(), rule, steps=4, d=20, keys=jax.random.key(0))
    assert one.overlap.shape == (5,)
    assert one.distance is None


@pytest.mark.slow
def test_a_report_of_any_network():
    mf, key = sgf.meanfield, jax.random.key(0)
    inputs = jax.random.normal(key, (32, 6))
    labels = jax.numpy.where(inputs[:, 0] > 0, 1.0, -1.0)
    problem = sgf.Problem(inputs, labels, loss=sgf.LogisticLoss())
    model = eqx.nn.MLP(6, "scalar", 5, 1, key=key)
    sgd = sgf.StochasticGradientDescent(0.3, sampling=sgf.PersistentMask(0.2, persistence=20))
    options = {"keys": sgf.seeds(0, 3), "steps": 60, "waiting": 30, "probes": 2}
    report = mf.noise_report(sgd, model, problem, **options)
    assert report.drop.shape == report.response.shape == (3, report.lags.size)
    assert report.temperature.shape == report.stationarity.shape == (3,)
    assert int(report.lags[0]) == 0
    assert int(report.lags[-1]) == 30
    assert "distance of replicas" in repr(report)
    # A force moves w by the step size in its first step.
    np.testing.assert_allclose(report.response[:, 1], 0.3, rtol=1e-10)
    # The ratio from the definition, over every step.
    record = sgf.Record({"weights": lambda net: mf.report.numbers_of(net)}, 0.3 * np.arange(61))
    runs = sgf.simulate(sgd, model, problem, keys=sgf.seeds(0, 3), steps=60, record=record)
    w = np.asarray(runs["weights"])
    g = -(w[:, 31:] - w[:, 30:-1]) / 0.3
    ratio = 2 * np.sum(w[:, 30:-1] * g, axis=(1, 2)) / (0.3 * np.sum(g**2, axis=(1, 2)))
    np.testing.assert_allclose(report.stationarity, ratio, rtol=1e-9)
    spread = w[:, -1] - w[:, -1].mean(axis=0)
    distance = 3 * np.mean(np.sum(spread**2, axis=0)) / 3
    np.testing.assert_allclose(report.distance[-1], distance, rtol=1e-10)
