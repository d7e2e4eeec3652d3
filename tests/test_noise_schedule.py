"""The study `noise-schedule`: a small run is complete, and every claim is told right from wrong on made-up errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, mutated

from sgfbias.diagonal import noise_schedule as study

TINY = study.Config(n=8, d=20, steps=80, pieces=4, train=16, held_out=32, iterations=4, grid=5, budget=4.0)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset():
    return study.run(TINY)


def verdicts(dataset, words):
    """The verdict of the claim whose statement has these words."""
    (claim,) = [claim for claim in study.claims(dataset) if words in claim.statement]
    return claim.verdict


def test_a_small_run_is_complete_keeps_its_budget_and_follows_true_gradients(dataset):
    assert verdicts(dataset, "budget is kept") == "holds"
    assert verdicts(dataset, "true gradients") == "holds"
    assert verdicts(dataset, "No seed diverges") == "holds"
    assert dataset["error"].sizes == {"rule": 6, "seed": 32}
    assert dataset["search_value"][-1] < dataset["search_value"][0]
    cost = dict(zip(dataset["method"].values, dataset["cost"].values, strict=True))
    assert cost["search"] == 4 * 16 * study.GRADIENT_RUNS * 80
    assert cost["search"] <= cost["constant"] <= cost["search"] + 5 * 80
    assert cost["search"] <= cost["pulse"] <= cost["search"] + 12 * 80
    np.testing.assert_array_equal(dataset["delta"].sel(rule="reversed"), dataset["delta"].sel(rule="learned")[::-1])
    assert not np.isin(dataset["error"].sel(rule="none"), dataset["train_error"].sel(rule="none")).any()
    assert study.plot(dataset) is not None


def test_a_schedule_spends_at_most_the_budget_and_has_a_derivative_where_a_part_is_nothing():
    def spent(logits):
        return jnp.sum(jnp.square(study.schedule(TINY, logits))) * TINY.time / TINY.pieces

    assert float(spent(jnp.zeros(5))) == pytest.approx(4 / 5 * 4.0)
    nothing = jnp.array([0.0, -2000.0, 3.0, 1.0, -2000.0])
    assert float(spent(nothing)) == pytest.approx(4.0)
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(lambda z: study.schedule(TINY, z))(nothing))))


def test_noise_goes_where_the_schedule_says():
    """log alpha tells how much noise there was; when, only the error does: noise that comes late has more of it left."""
    early, late = (study.one_run(TINY, jnp.asarray(v), jax.random.key(0)) for v in ([2.0, 0, 0, 0], [0, 0, 0, 2.0]))
    for outcome in (early, late):
        assert float(outcome.spent) == pytest.approx(4.0, rel=1e-12)
    assert float(late.loss) > 2 * float(early.loss)


def made(dataset):
    """The dataset with errors of which every claim holds."""
    copy, rng = dataset.copy(deep=True), np.random.default_rng(0)
    middle = np.array([0.1, 0.5, 0.15, 0.6, 0.7, 2.0])[:, None]  # in the order of the rules
    for name in ("error", "train_error"):
        copy[name].values = middle * np.exp(0.1 * rng.normal(size=copy[name].shape))
    return copy


def only(rule, change):
    """A change of one rule's row."""
    at = study.RULES.index(rule)
    return lambda v: np.stack([change(row) if k == at else row for k, row in enumerate(v)])


def some(row, value=np.nan):
    return np.where(np.arange(row.size) < 2, value, row)


def both(dataset, factor):
    """All the schedules larger, and what the runs spent with them."""
    return mutated(mutated(dataset, "delta", lambda v: v * factor), "spent", lambda v: v * factor**2)


MUTATIONS = {
    "a run that spends otherwise": (lambda ds: mutated(ds, "spent", lambda v: v + 1e-6), "budget is kept"),
    "more than the budget": (lambda ds: both(ds, 1.01), "budget is kept"),
    "a constant as good": (lambda ds: mutated(ds, "error", only("constant", lambda row: row / 5)), "beats the best constant"),
    "a cheaper grid": (lambda ds: mutated(ds, "cost", lambda v: v * np.array([1.0, 0.9, 1.0])), "beats the best constant"),
    "worst of all on two seeds": (lambda ds: mutated(ds, "error", only("learned", lambda row: some(row, 1e12))), "beats the best constant"),
    "fitted to its problems": (lambda ds: mutated(ds, "train_error", only("learned", lambda row: row / 2)), "not fitted to"),
    "no gain in training": (lambda ds: mutated(ds, "train_error", only("learned", lambda row: row * 6)), "not fitted to"),
    "too few seeds to tell": (lambda ds: mutated(ds, "error", only("learned", lambda row: some(row, 1e9))), "not fitted to"),
    "a derivative that is off": (lambda ds: mutated(ds, "slope", lambda v: v + 2e-5 * np.abs(v).max()), "true gradients"),
    "many without a derivative": (lambda ds: mutated(ds, "slope", lambda v: np.where(np.arange(16) < 2, np.nan, v)), "true gradients"),
    "backwards as good": (lambda ds: mutated(ds, "error", only("reversed", lambda row: row / 20)), "Control: the learned schedule backwards"),
}  # fmt: skip


def test_every_claim_can_hold(dataset):
    assert [claim.statement for claim in study.claims(made(dataset)) if claim.verdict != "holds"] == []
    assert len(study.claims(dataset)) == 8


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(dataset, name):
    change, words = MUTATIONS[name]
    assert words in failed(study, change(made(dataset)))


def test_what_informs_can_fail_without_breaking_the_study(dataset):
    changes = {"best pulse": ("pulse", 10), "no label noise": ("none", 10)}
    for words, (rule, factor) in changes.items():
        worse = mutated(made(dataset), "error", only(rule, lambda row, factor=factor: row / factor))
        assert verdicts(worse, words) == "fails"
        assert failed(study, worse) == ""


def test_lost_seeds_are_shown_and_count_against_the_claims(dataset):
    lost = mutated(made(dataset), "error", only("learned", some))
    assert verdicts(lost, "No seed diverges") == "fails"
    claims = {claim.statement[:20]: claim.measured for claim in study.claims(lost)}
    assert "2 of 32 lost" in claims["Within the budget, t"]
    known = np.log(lost["error"][0].values / lost["error"][1].values)
    assert f"{np.exp(np.where(np.isnan(known), np.nanmax(known), known).mean()):.3g} (" in claims["Within the budget, t"]
    assert study.plot(lost) is not None
    none = mutated(made(dataset), "error", only("learned", lambda row: row * np.nan))
    assert "beats the best constant" in failed(study, none)
    logs = np.zeros((2, 40))
    logs[0, :3] = np.nan
    value, error, count = study._means(logs)
    assert np.isinf(value[0])
    assert (value[1], error[1], count.tolist()) == (0, 0, [3, 0])


BAD = {
    "budget": ({"budget": 0.0}, "budget must be positive"),
    "rate": ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    "pieces": ({"pieces": 1}, "pieces must be at least 2"),
    "steps": ({"steps": 1001}, "steps must be a multiple of pieces = 8, but is 1001"),
    "n": ({"n": 50}, "n must be below d = 50"),
    "sparsity": ({"sparsity": 51}, "sparsity must be at most d = 50"),
    "grid": ({"grid": 2}, "grid must be at least 3"),
    "seed": ({"seed": -1}, "seed must be at least 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused(name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))
