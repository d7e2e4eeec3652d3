"""The study `momentum`: its law on a motion in closed form, claims told right from wrong on made data, and a small run."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from helpers import failed, mutated

from sgfbias.diagonal import momentum as study

CONFIG = study.Config()
FACTOR = {(m, b): 1 / (2 * (1 - b) ** 2) * ((1 + b) if m == 0 else (1 - b + 2 * b * b)) for m in (0, 1) for b in CONFIG.momenta}


@pytest.fixture(scope="module")
def made():
    """A dataset as theory says; the last three lambdas have a weight that goes through 0."""
    rng, d, lam = np.random.default_rng(0), CONFIG.d, np.asarray(CONFIG.lams)
    start, squares = np.log(CONFIG.alpha), 0.1 + 0.2 * rng.random(CONFIG.d)
    derivative, curved = rng.normal(size=(2, d)) / 50
    truth = np.where(np.arange(d) < 3, 1.0, 0.0)

    def lost(lam):
        return lam[..., None] * squares * (1 + lam[..., None])

    def solution(lam):
        return truth + 0.1 + lam[..., None] * derivative + lam[..., None] ** 2 * curved

    crossings = (np.arange(len(lam)) >= 6)[:, None] & (np.arange(d) == 4)[None]
    b = np.asarray(CONFIG.momenta)
    ours = np.broadcast_to(lam[:3], (2, len(b), 3))
    gamma = ours / np.array([[FACTOR[m, v] for v in b] for m in (0, 1)])[..., None]
    printed = gamma / (1 - b[None, :, None]) ** 2
    off = 0.03 * ours[..., None] ** 2 * np.linspace(0.2, 1, 6).reshape(2, 3, 1, 1) * rng.normal(size=d)
    same = np.array([0.005, 0.04, 0.3])
    rates, seeds = np.asarray(CONFIG.sgd_rates)[:, None], CONFIG.seeds
    noise = rates * (0.6 + 0.02 * rng.normal(size=(2, seeds)))
    inertia = np.broadcast_to(rates * 0.7, noise.shape)
    feature = ("lam", "feature")
    discrete = ("method", "momentum", "level", "feature")
    data = {
        "law_log_alpha": (feature, start - lost(lam)),
        "law_offset": (feature, 0 * lost(lam)),
        "law_gap": (feature, np.where(crossings, 80.0, 1e-7)),
        "law_crossings": (feature, crossings),
        "law_distance": (("lam",), np.full(len(lam), 1e-8)),
        "law_no_offset_distance": (("lam",), 0.2 * lam**2),
        "start_distance": (("lam",), 0.08 * lam),
        "flow_loss": (("lam",), np.full(len(lam), 1e-10)),
        "flow_log_alpha": (feature, start - lost(lam)),
        "flow_selected": (feature, solution(lam)),
        "still_squares": (("feature",), squares),
        "still_selected": (("feature",), solution(np.array(0.0))),
        "still_derivative": (("feature",), derivative),
        "beta_star": (("feature",), truth),
        "discrete_log_alpha": (discrete, start - lost(ours)),
        "discrete_selected": (discrete, solution(ours) + off),
        "printed_log_alpha": (discrete, start - lost(printed) * (1 + ours[..., None]) / (1 + printed[..., None])),
        "printed_selected": (discrete, solution(printed)),
        "printed_lam": (discrete[:-1], printed),
        "same_log_alpha": (("momentum", "feature"), start - lost(same)),
        "same_selected": (("momentum", "feature"), solution(same)),
        "same_lam": (("momentum",), same),
        "sgd_noise": (("rate", "seed"), noise),
        "sgd_inertia": (("rate", "seed"), inertia),
        "sgd_shrinkage": (("rate", "seed"), (noise + inertia) * (1 + rates + 0.02 * rng.normal(size=noise.shape))),
        "sgd_plain": (("rate", "seed"), noise),
    }
    ends = {"error_slope": {"centred": -1.0, "shifted": -3.0}, "l1_slope": {"centred": -0.02, "shifted": -0.02}}
    for kind in ("centred", "shifted"):
        for name, value in {**{k: v[kind] for k, v in ends.items()}, "even_slope": -2.0, "share": 0.4, "shrinkage": 0.7}.items():
            data[f"{kind}_{name}"] = (("problem",), value * np.exp(0.1 * rng.normal(size=CONFIG.problems)))
    data["flow_selected"][1][:] = solution(lam)
    coords = {"lam": lam, "method": ["heavy ball", "nesterov"], "momentum": b, "rate": rates[:, 0]}
    return xr.Dataset(data, coords, {"config": json.dumps(dataclasses.asdict(CONFIG))})


def test_the_law_on_a_motion_in_closed_form():
    """`log w_+ = a (1 - (1 + t) exp(-t))`, so s = a t exp(-t) and int s^2 = a^2 / 4; the other sign with b; force-free if the law is used."""
    times = np.concatenate([[0.0], np.geomspace(1e-3, 40, 600)])
    a, b, lam = 0.4, -0.7, 0.3
    shape = 1 - (1 + times) * np.exp(-times)
    logs = np.stack([a * shape, b * shape], axis=1)[:, :, None]
    found = study.law(times, logs, lam)
    np.testing.assert_allclose(found["log_alpha"], [-lam * (a**2 + b**2) / 8], atol=1e-6)
    np.testing.assert_allclose(found["offset"], [-lam * (a**2 - b**2) / 4], atol=1e-6)
    assert not found["crossings"].any()
    # This motion is no solution of the flow: the gap is the force that it would take.
    assert found["gap"][0] > 0.1
    through = np.log(np.abs(1 - times / 17.3))[:, None, None] * np.ones((1, 2, 1))
    assert study.law(times, through, lam)["crossings"].all()


def test_step_sizes_of_one_lambda():
    assert study.step_size(0.3, 0.0, nesterov=False) == pytest.approx(0.6)
    assert study.step_size(0.3, 0.5, nesterov=False) == pytest.approx(0.3 / FACTOR[0, 0.5])
    assert study.step_size(0.3, 0.5, nesterov=True) == pytest.approx(0.3 / FACTOR[1, 0.5])
    assert study.step_size(0.3, 0.99, nesterov=False) == pytest.approx(0.3 * 0.01**2, rel=0.01), "the printed lambda is the limit b -> 1"


def test_what_theory_says_holds_and_is_drawn(made):
    claims = study.claims(made)
    assert failed(study, made) == ""
    assert len(claims) == 20
    assert study.plot(made) is not None


MUTATIONS = {
    "another law": ("law_gap", lambda v: v + 1e-2, "While no weight goes through 0"),
    "a law that never ends": ("law_gap", lambda v: 0 * v + 1e-7, "the law ends"),
    "another reference": ("law_distance", lambda v: v + 1e-3, "is the programme's solution on its fibre"),
    "no effect": ("start_distance", lambda v: 1e-7 + 0 * v, "At the initial alpha".lower()),
    "an offset of first order": ("law_no_offset_distance", lambda v: np.sqrt(v), "The perturbed reference point"),
    "growth": ("flow_log_alpha", lambda v: v[::-1], "The larger lambda, the smaller"),
    "another integral": ("still_squares", lambda v: 1.3 * v, "every feature's log alpha loses"),
    "another derivative": ("still_derivative", lambda v: 1.3 * v, "And the solution moves"),
    "another lambda": ("discrete_selected", lambda v: v + 0.01 * np.asarray(CONFIG.lams[:3])[:, None], "to second order in gamma"),
"the printed one as good": ("printed_selected", None, "printed lambda"),
    "another shrinkage": ("discrete_log_alpha", lambda v: v - 0.01, "falls as much as the flow's"),
    "solutions apart": ("discrete_selected", lambda v: v + 0.05 * np.asarray(CONFIG.momenta)[:, None, None] * np.asarray(CONFIG.lams[:3])[:, None], "lambda is intrinsic"),
    "one gamma, one solution": ("same_selected", lambda v: v[[1, 1, 1]], "pairs of one gamma"),
    "even inertia": ("centred_share", lambda v: 0 * v + 0.1, "Inertia shrinks alpha most"),
    "alpha without effect": ("centred_even_slope", lambda v: np.abs(v), "spread evenly"),
    "another inertia": ("sgd_inertia", lambda v: 1.3 * v, "SGD with momentum"),
    "no inertia": ("sgd_shrinkage", lambda v: 0.46 * v, "without the inertia"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_claims_can_fail(made, name):
    variable, change, words = MUTATIONS[name]
    if change is None:  # as near as ours
        change = lambda v: made["discrete_selected"].values + 2 * (made["flow_selected"].values[:3] - made["discrete_selected"].values)  # noqa: E731
    assert words in failed(study, mutated(made, variable, change))


def test_sparsity_informs_and_crossings_do_not_apply(made):
    worse = mutated(mutated(made, "centred_error_slope", np.abs), "centred_l1_slope", np.abs)
    assert failed(study, worse) == ""
    assert any("centred inputs, to first" in c.statement and c.verdict == "fails" for c in study.claims(worse))
    never = study.claims(mutated(made, "law_crossings", np.zeros_like))
    assert [c.statement[:19] for c in never if c.verdict == "not applicable"] == ["Control: where a we"]
    always = study.claims(mutated(made, "law_crossings", np.ones_like))
    assert sum(c.verdict == "not applicable" for c in always) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"time": -1.0}, "time must be positive"),
        ({"lams": (0.1, 0.2)}, "lams must be at least five"),
        ({"dt": 0.01}, "dt must be at most a fifth"),
        ({"momenta": (0.5, 0.9)}, "momenta must be at least two"),
        ({"momenta": (0.0, 1.0)}, "momenta must be at least two"),
        ({"sgd_momentum": 0.0}, "sgd_momentum must be above 0"),
        ({"sgd_rates": (0.02, 0.02)}, "sgd_rates must be"),
        ({"problems": 2}, "problems must be at least 8"),
        ({"many_n": 30}, "fewer than features"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(study.Config(), **change))


@pytest.mark.slow
def test_a_small_run_holds():
    small = study.Config(
        lams=(0.02, 0.04, 0.08, 0.16, 1.28), momenta=(0.0, 0.6), time=40.0, dt=0.004, records=600, alpha=0.2, n=6, d=14, problems=8, many_n=10,
        many_d=16, seeds=64, problem_seed=0,
    )  # fmt: skip
    dataset = study.run(small)
    assert all(dataset[name].attrs["units"] for name in dataset.data_vars)
    broken = failed(study, dataset)
    for words in (
        "While no weight",
        "on its fibre",
        "to second order in gamma",
        "intrinsic",
        "log alpha loses",
        "SGD with",
    ):
        assert words not in broken
    assert study.plot(dataset) is not None


def test_the_paper_size_is_sound():
    study.PAPER.check()
