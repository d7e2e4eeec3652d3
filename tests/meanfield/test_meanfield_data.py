"""The law that is fitted to data; and the study `meanfield-data`: made-up data on which
every claim holds, and changes after which each must fail.
"""

import jax
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

import sgfbias as sgf
from sgfbias import meanfield as mf
from sgfbias.meanfield.bundled import balanced, two_classes
from sgfbias.meanfield.studies.data import Config, loaded

CONFIG = Config(seeds=4)


class TestData(StudyCase):
    study = "meanfield-data"
    small = "--steps 10 --samples 300 --solves 2 --seeds 3"
    mutations = {
        "a run that is lost": (
            "runs_loss",
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 9, np.nan, v),
            "Every curve is finite",
        ),
        "another loss": ("theory_loss", lambda v: 1.3 * v, "predict the training loss"),
        "another overlap": ("theory_overlap", lambda v: 1.2 * v, "predict the overlap"),
        "an isotropic theory that is right": (
            lambda ds: ds.assign(isotropic_loss=ds["theory_loss"]),
            "isotropic covariance",
        ),
    }
    refusals = [({"tau": 0.1}, "tau must be at least 0.233333")]

    @classmethod
    def make(cls):
        time = np.arange(CONFIG.steps + 1)
        curve = np.tile(np.exp(-time / 20), (3, 1)) + 0.1
        rows = {}
        for quantity in ("loss", "overlap", "test_error"):
            rows[f"theory_{quantity}"] = (("set", "time"), 1.05 * curve)
            rows[f"isotropic_{quantity}"] = (("set", "time"), 0.6 * curve)
            runs = np.repeat(curve[:, None], CONFIG.seeds, axis=1)
            rows[f"runs_{quantity}"] = (("set", "seed", "time"), runs)
        rows |= {name: (("set",), [200, 400, 300]) for name in ("examples", "dimensions")}
        return made_up(CONFIG, rows, {"set": ["three-eight", "even-odd", "cancer"], "time": time})


def made_data(n=400, p=8, seed=0):
    """Two normal classes with known covariance, as the model sees them."""
    rng = np.random.default_rng(seed)
    y = np.repeat([-1.0, 1.0], n // 2)
    scales = np.linspace(0.5, 1.5, p)
    return (y[:, None] * 0.3 + scales * rng.normal(size=(n, p))) / np.sqrt(p), y


def test_a_fitted_law_has_the_means_and_the_covariance():
    X, y = made_data()
    law = mf.fit(X, y)
    assert float(law.alpha) == 50
    means = [X[y == sign].mean(axis=0) for sign in (1, -1)]
    np.testing.assert_allclose(law.direction, 8 * (means[0] - means[1]) / 2, rtol=1e-12)
    within = 8 * sum(np.cov(X[y == s].T, bias=True) for s in (1, -1)) / 2
    np.testing.assert_allclose(law.covariance, within, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.sum(law.values), np.trace(within), rtol=1e-12)
    np.testing.assert_allclose(law.bins().energy, np.mean(law.direction**2), rtol=1e-12)
    plain = law.isotropic()
    np.testing.assert_allclose(np.ptp(plain.values), 0, atol=1e-12)
    np.testing.assert_allclose(np.sum(plain.values), np.trace(within), rtol=1e-12)


def test_labels_of_other_kinds_and_unequal_classes_are_refused():
    X, y = made_data()
    np.testing.assert_array_equal(mf.fit(X, (y > 0).astype(int)).targets, y)
    with pytest.raises(ValueError, match="their shares are 57.1% and 42.9%"):
        mf.fit(X[:350], y[:350])
    with pytest.raises(ValueError, match="labels -1 and 1, or 0 and 1, but has 1, 2"):
        mf.fit(X, y / 2 + 1.5)
    with pytest.raises(ValueError, match=r"`X` must have shape \(n, p\)"):
        mf.fit(X[:, 0], y)


@pytest.mark.slow
def test_runs_are_on_the_data_themselves():
    X, y = made_data()
    law = mf.fit(X, y)
    rule = mf.MaskedDescent(0.002)
    run = mf.simulate(law, sgf.LogisticLoss(), rule, steps=3, keys=jax.random.key(0))
    centred = X - (X[y > 0].mean(axis=0) + X[y < 0].mean(axis=0)) / 2
    w = 0.002 * 0.5 * centred.T @ y
    np.testing.assert_allclose(run.overlap[1], w @ law.direction / 8, rtol=1e-5)
    with pytest.raises(ValueError, match="these data have 8 dimensions of their own"):
        mf.simulate(law, sgf.LogisticLoss(), rule, steps=3, keys=jax.random.key(0), d=9)
    with pytest.raises(ValueError, match="finite runs need fit"):
        other = mf.fit(X, y, alpha=2.0)
        mf.simulate(other, sgf.LogisticLoss(), rule, steps=3, keys=jax.random.key(0))
    half = law.take(np.arange(100, 300))
    assert float(half.alpha) == 25


def test_balanced_data_are_standardised():
    X, y = made_data()
    inputs, labels = balanced(np.c_[X, np.ones(400)], y, 200, 0)
    assert inputs.shape == (200, 8)
    assert labels.sum() == 0
    np.testing.assert_allclose(np.mean(inputs**2, axis=0), 1 / 8)
    with pytest.raises(ValueError, match="an even number from 2 to 400, but is 401"):
        balanced(X, y, 401, 0)
    with pytest.raises(ValueError, match="must be one of three-eight, even-odd, cancer"):
        two_classes("faces")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"pip install 'sgfbias\[meanfield\]'"):
        two_classes("cancer")


def test_files_that_are_not_two_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*missing\.npz; expected a \.npz file"):
        loaded(Config(data=tmp_path / "missing.npz"))
    np.savez(tmp_path / "other.npz", X=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"must hold X \(n, p\) and y \(n,\).*missing: y"):
        loaded(Config(data=tmp_path / "other.npz"))
    np.savez(tmp_path / "one.npz", X=np.ones((4, 2)), y=np.ones(4))
    with pytest.raises(ValueError, match="labels y of two classes, .* but has 1: 1.0"):
        loaded(Config(data=tmp_path / "one.npz"))
    np.savez(tmp_path / "many.npz", X=np.ones((4, 2)), y=np.arange(4))
    with pytest.raises(ValueError, match="labels y of two classes, .* but has 4: 0, 1, 2, 3"):
        loaded(Config(data=tmp_path / "many.npz"))
    np.savez(tmp_path / "long.npz", X=np.ones((4, 2)), y=np.ones(3))
    with pytest.raises(ValueError, match=r"they have shapes \(4, 2\) and \(3,\)"):
        loaded(Config(data=tmp_path / "long.npz"))


def test_files_may_have_any_two_labels(tmp_path):
    X, y = made_data(n=20, p=3)
    np.savez(tmp_path / "two.npz", X=X, y=np.where(y > 0, 5, 3))
    _, labels = loaded(Config(data=tmp_path / "two.npz"))["own"]
    np.savez(tmp_path / "signs.npz", X=X, y=y)
    _, expected = loaded(Config(data=tmp_path / "signs.npz"))["own"]
    np.testing.assert_array_equal(labels, expected)
