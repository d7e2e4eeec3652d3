"""What is refused or warned of in words, and what a run says of itself."""

import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import sgfbias as sgf
from sgfbias import margin
from sgfbias.core.trajectory import Status
from sgfbias.margin.data import read_two_classes
from sgfbias.margin.recorded import warn_of_rounding

INPUTS = jax.random.normal(jax.random.key(1), (7, 4))
LABELS = jnp.where(INPUTS[:, 0] > 0, 1.0, -1.0)
PROBLEM = sgf.Problem(INPUTS, LABELS, loss=margin.ExponentialLoss())


def test_on_models_with_kinks_the_default_budget_reaches_a_loss_of_1e_1000():
    """With steps as wide as the conditioner allows, to nu = 1000 log 10."""
    for conditioner, widest in ((margin.Identity(), 0.1), (margin.RMSProp(), 0.01)):
        flow = margin.MarginFlow(conditioner, kinks=True)
        assert flow.most_steps * widest > 4 * 1000 * np.log(10)
        words = flow.explain(Status.GAVE_UP, {"nu": 3.0})
        assert f"ran out of its 2,000,000 steps, each at most {widest:g} wide in nu" in words
        assert margin.MarginFlow(conditioner, kinks=False).most_steps == 200_000
        assert margin.MarginFlow(conditioner, kinks=True, most_steps=7).most_steps == 7
    words = margin.MarginFlow(kinks=False).explain(Status.GAVE_UP, {"nu": 3.0})
    assert "200,000 steps (most_steps); if the model has kinks that were not recognised, " in words
    assert "give MarginFlow(kinks=True)" in words


def test_damaged_files_are_refused(tmp_path):
    """An empty file, one that is cut off, and one with other bytes in the middle."""
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez_compressed(buffer, X=rng.normal(size=(60, 3)), y=np.arange(60) % 2)
    whole = buffer.getvalue()
    other = bytearray(whole)
    other[300:600] = bytes(300)
    for content in (b"", whole[:200], whole[:-30], bytes(other)):
        (tmp_path / "own.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable .npz file"):
            read_two_classes(tmp_path / "own.npz")


def test_classes_are_numbered_from_0():
    X = np.eye(3)
    with pytest.raises(ValueError, match="least class label is 1, .*: number the classes from 0"):
        margin.max_margin(X, [1, 2, 3])
    assert margin.max_margin(X, [0, 1, 2]).weights.shape == (3, 3)


def test_a_gap_has_a_geometry_that_there_is():
    w = jnp.arange(1.0, 4.0)
    for name in ("l1", "metric", "L2"):
        with pytest.raises(ValueError, match="`geometry` must be 'l2', 'linf' or a metric"):
            margin.alignment_gap(w, w, name)
    assert float(margin.alignment_gap(w, jnp.sign(w), "linf")) == pytest.approx(1 - 6 / (3 * 3))


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e3), ("float64", 1e9)])
def test_numbers_of_nu_that_a_precision_does_not_resolve(dtype, most):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rounding(np.array([most, -np.inf, np.nan]), jnp.dtype(dtype))
    with pytest.warns(UserWarning, match=f"{dtype} resolves differences of margins up to nu = "):
        warn_of_rounding(np.array([0.0, 2 * most, np.nan]), jnp.dtype(dtype))


def test_a_discrete_algorithm_warns_of_it_too():
    x = jnp.ones((1, 1), jnp.float32)
    single = sgf.Problem(x, x[0], loss=margin.ExponentialLoss())
    descent = margin.MarginDescent(margin.Sign(), 0.1)
    with pytest.warns(UserWarning, match=r"nu goes to 2000.*float32.*use float64 data"):
        sgf.simulate(descent, margin.Linear(jnp.full(1, 2e3, jnp.float32)), single, steps=2)


def test_a_run_that_has_not_fitted_yet_says_so():
    descent = margin.MarginDescent(margin.Sign(), 1e-3)
    run = sgf.simulate(descent, margin.Linear(-jnp.eye(4)[0]), PROBLEM, steps=2)
    assert run.reason().startswith("stalled: the data are not fitted yet: q_min = -")
    assert "take more steps" in run.reason()


def test_problems_that_take_too_many_iterations_say_so(monkeypatch):
    def ends(*arguments, **options):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(scipy.optimize, "nnls", ends)
    model = margin.Linear(jnp.eye(4)[0])
    for call in (
        lambda: margin.max_margin(INPUTS, LABELS),
        lambda: margin.certify(model, PROBLEM),
        lambda: margin.land(model, PROBLEM),
    ):
        with pytest.raises(ValueError, match="non-negative least squares did not end within"):
            call()


def test_a_gap_that_has_grown_is_larger():
    found = margin.Which(("l2", "linf"), (0.2, 0.05), (0.5, 8.0))
    assert repr(found).splitlines() == [
        "l2      gap 2.00e-01, 2 times larger than at a tenth of nu: stays",
        "linf    gap 5.00e-02, 8 times smaller than at a tenth of nu: goes to zero",
    ]


def test_what_each_rule_cites():
    """Without eps the direction goes to l_inf, as Zhang, Zou, Cao 2024 say."""
    for rule, cited, other in (
        (margin.Sign(), "zhang2024", "wang2021"),
        (margin.Adam(eps=0.0), "zhang2024", "wang2021"),
        (margin.Adam(eps=1e-8), "wang2021", "zhang2024"),
        (margin.RMSProp(), "wang2021", "zhang2024"),
        (margin.Identity(), "lyu2020", "zhang2024"),
    ):
        entries = str(sgf.cite(margin.MarginDescent(rule)))
        assert f"{{{cited}," in entries
        assert f"{{{other}," not in entries
