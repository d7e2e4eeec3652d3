"""The study `momentum`: its evolution law on a motion in closed form, claims that can
fail on made-up data, and a small run.
"""

import numpy as np
import pytest
from helpers import failed, made_up, mutated
from study_case import StudyCase, small_run

from sgfbias.diagonal.studies.momentum import Config
from sgfbias.diagonal.theory.momentum_law import momentum_law, step_size_following

CONFIG = Config()
SMALL = np.asarray(CONFIG.lams[:3])
FACTOR = {
    (m, b): 1 / (2 * (1 - b) ** 2) * ((1 + b) if m == 0 else (1 - b + 2 * b * b))
    for m in (0, 1)
    for b in CONFIG.momenta
}


def as_near(ds):
    """A dataset in which the flows with the printed lambda are nearly as close to the
    discrete methods as the flows with our lambda.
    """
    ours = ds["discrete_selected"].values
    return ds.assign(
        printed_selected=ds["printed_selected"].copy(
            data=ours + 2 * (ds["flow_selected"].values[:3] - ours)
        )
    )


class TestMomentum(StudyCase):
    study = "momentum"
    small = (
        "--lams .02 .04 .08 .16 1.28 --momenta 0 .6 --time 40 --dt .004 --records 600 --alpha .2 "
        "--n 6 --d 14 --problems 8 --many-n 10 --many-d 16 --seeds 64 --problem-seed 0"
    )
    mutations = {
        "another law": ("law_gap", lambda v: v + 1e-2, "While no weight goes through 0"),
        "a law that never ends": ("law_gap", lambda v: 0 * v + 1e-7, "the equation fails"),
        "another reference": (
            "law_distance",
            lambda v: v + 1e-3,
            "is the program's solution among",
        ),
        "no effect": ("start_distance", lambda v: 1e-7 + 0 * v, "with the initial alpha"),
        "an offset of first order": (
            "law_no_offset_distance",
            np.sqrt,
            "momentum acts through alpha",
        ),
        "growth": ("flow_log_alpha", lambda v: v[::-1], "The larger lambda, the smaller"),
        "another integral": (
            "still_squares",
            lambda v: 1.3 * v,
            "the log alpha of every feature falls by",
        ),
        "another derivative": (
            "still_derivative",
            lambda v: 1.3 * v,
            "the selected solution moves",
        ),
        "another lambda": (
            "discrete_selected",
            lambda v: v + 0.01 * SMALL[:, None],
            "to second order in gamma",
        ),
        "the printed one as good": (as_near, "printed lambda"),
        "another shrinkage": (
            "discrete_log_alpha",
            lambda v: v - 0.01,
            "falls as much as the flow's",
        ),
        "solutions apart": (
            "discrete_selected",
            lambda v: v + 0.05 * np.asarray(CONFIG.momenta)[:, None, None] * SMALL[:, None],
            "lambda is intrinsic",
        ),
        "one gamma, one solution": ("same_selected", lambda v: v[[1, 1, 1]], "with the same gamma"),
        "even inertia": ("centred_share", lambda v: 0 * v + 0.1, "Inertia shrinks alpha most"),
        "alpha without effect": ("centred_even_slope", np.abs, "spread evenly"),
        "another inertia": ("sgd_inertia", lambda v: 1.3 * v, "SGD with momentum"),
        "no inertia": ("sgd_shrinkage", lambda v: 0.46 * v, "without the inertia"),
    }
    refusals = [
        ({"lams": (0.1, 0.2)}, "lams must be at least five"),
        ({"lams": (0.1, 0.2, 0.4, 0.3, 0.5)}, "lams must be at least five increasing"),
        ({"dt": 0.01}, "dt must be at most a fifth"),
        ({"momenta": (0.0,)}, "momenta must be at least two"),
        ({"momenta": (0.5, 0.9)}, "momenta must be at least two"),
        ({"momenta": (0.0, 1.0)}, "momenta must be at least two"),
        ({"sgd_rates": (0.02, 0.02)}, "sgd_rates must be"),
        ({"n": 25}, "n must be below d"),
        ({"many_n": 30}, "many_n must be below many_d"),
    ]

    @classmethod
    def make(cls):
        """A dataset that follows the theory; at the last three lambdas a weight goes
        through 0.
        """
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
        ours = np.broadcast_to(SMALL, (2, len(b), 3))
        gamma = ours / np.array([[FACTOR[m, v] for v in b] for m in (0, 1)])[..., None]
        printed = gamma / (1 - b[None, :, None]) ** 2
        off = (
            0.03
            * ours[..., None] ** 2
            * np.linspace(0.2, 1, 6).reshape(2, 3, 1, 1)
            * rng.normal(size=d)
        )
        same = np.array([0.005, 0.04, 0.3])
        rates, seeds = np.asarray(CONFIG.sgd_rates)[:, None], CONFIG.seeds
        noise = rates * (0.6 + 0.02 * rng.normal(size=(2, seeds)))
        inertia = np.broadcast_to(rates * 0.7, noise.shape)
        feature, discrete = ("lam", "feature"), ("method", "momentum", "level", "feature")
        data = {
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
            "printed_log_alpha": (
                discrete,
                start - lost(printed) * (1 + ours[..., None]) / (1 + printed[..., None]),
            ),
            "printed_selected": (discrete, solution(printed)),
            "printed_lam": (discrete[:-1], printed),
            "same_selected": (("momentum", "feature"), solution(same)),
            "same_lam": (("momentum",), same),
            "sgd_noise": (("rate", "seed"), noise),
            "sgd_inertia": (("rate", "seed"), inertia),
            "sgd_shrinkage": (
                ("rate", "seed"),
                (noise + inertia) * (1 + rates + 0.02 * rng.normal(size=noise.shape)),
            ),
            "sgd_plain": (("rate", "seed"), noise),
        }
        for kind, error in (("centred", -1.0), ("shifted", -3.0)):
            for name, value in {
                "error_slope": error,
                "l1_slope": -0.02,
                "even_slope": -2.0,
                "share": 0.4,
            }.items():
                data[f"{kind}_{name}"] = (
                    ("problem",),
                    value * np.exp(0.1 * rng.normal(size=CONFIG.problems)),
                )
        return made_up(
            CONFIG,
            data,
            {"lam": lam, "method": ["heavy ball", "nesterov"], "momentum": b, "rate": rates[:, 0]},
        )

    def test_sparsity_informs_and_crossings_do_not_apply(self, made):
        assert len(self.module.claims(made)) == 20
        worse = mutated(mutated(made, "centred_error_slope", np.abs), "centred_l1_slope", np.abs)
        assert failed(self.module, worse) == ""
        assert any(
            "centred inputs, to first" in c.statement and c.verdict == "fails"
            for c in self.module.claims(worse)
        )
        never = self.module.claims(mutated(made, "law_crossings", np.zeros_like))
        assert [c.statement[:19] for c in never if c.verdict == "not applicable"] == [
            "Control: where a we"
        ]
        always = self.module.claims(mutated(made, "law_crossings", np.ones_like))
        assert sum(c.verdict == "not applicable" for c in always) == 2

    @pytest.mark.slow
    def test_a_small_run_holds(self):
        broken = failed(self.module, small_run(self.study))
        for words in (
            "While no weight",
            "solution among",
            "to second order in gamma",
            "intrinsic",
            "falls by lambda int",
            "SGD with",
        ):
            assert words not in broken


def test_the_law_on_a_motion_in_closed_form():
    """`log w_+ = a (1 - (1 + t) exp(-t))` has s = a t exp(-t) and int s^2 = a^2 / 4,
    and `log w_-` the same with b, from which alpha and the offset follow.
    """
    times = np.concatenate([[0.0], np.geomspace(1e-3, 40, 600)])
    a, b, lam = 0.4, -0.7, 0.3
    shape = 1 - (1 + times) * np.exp(-times)
    found = momentum_law(times, np.stack([a * shape, b * shape], axis=1)[:, :, None], lam)
    np.testing.assert_allclose(found.log_alpha, [-lam * (a**2 + b**2) / 8], atol=1e-6)
    np.testing.assert_allclose(found.offset, [-lam * (a**2 - b**2) / 4], atol=1e-6)
    assert not found.crossings.any()
    # This motion does not solve the flow's equation, and the gap shows it.
    assert found.gap[0] > 0.1
    through = np.log(np.abs(1 - times / 17.3))[:, None, None] * np.ones((1, 2, 1))
    assert momentum_law(times, through, lam).crossings.all()


def test_step_sizes_of_one_lambda():
    assert step_size_following(0.3, 0.0, nesterov=False) == pytest.approx(0.6)
    assert step_size_following(0.3, 0.5, nesterov=False) == pytest.approx(0.3 / FACTOR[0, 0.5])
    assert step_size_following(0.3, 0.5, nesterov=True) == pytest.approx(0.3 / FACTOR[1, 0.5])
    assert step_size_following(0.3, 0.99, nesterov=False) == pytest.approx(
        0.3 * 0.01**2, rel=0.01
    ), "the printed lambda is the limit b -> 1"
