"""The study `kernel-to-rich`: its constants and exponents against the program, claims
that can fail on a made-up dataset, and a small run.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import failed, made_up, outside_row_space
from scipy.special import lambertw
from study_case import StudyCase, small_run

import sgfbias as sgf
from sgfbias.diagonal.studies import kernel_to_rich as study
from sgfbias.diagonal.theory import limits as theory

DEPTHS, DRAWS, FEATURES = (2, 3, 4), 3, 6


def ideal():
    """A dataset that follows the theory, with terms of the next order."""
    depth, draw, alpha = np.array(DEPTHS), np.arange(DRAWS), np.geomspace(1e-3, 20, 9)
    rise = alpha / (1 + alpha)
    shape = (len(DEPTHS), DRAWS, alpha.size)
    worst = []
    for p in DEPTHS:
        constant, order = theory.worst_excess(p)[0], study.ORDERS
        more = (
            theory.worst_excess_next() * order**2 + 0.01 * order**3
            if p == 2
            else 1.2 * constant * order**2
        )
        worst.append(constant * order + more)
    rich = [
        study.TARGETS * (1 + 0.3 * study.TARGETS ** (0.3 if p == 2 else (p - 2) / p))
        for p in DEPTHS
    ]
    predicted = np.tile(np.linspace(-1, 1, FEATURES), (len(DEPTHS), 2, 1))
    flow = predicted[:, :, None] + 1e-11
    columns = {
        "l1": (("depth", "draw", "alpha"), np.broadcast_to(1 + rise, shape)),
        "l2": (("depth", "draw", "alpha"), np.broadcast_to(2 - rise, shape)),
        "error": (("depth", "draw", "alpha"), np.broadcast_to(rise**2, shape)),
        "l1_slope": (("draw", "alpha"), np.full(shape[1:], 0.1)),
        "l1_least": (("draw",), np.ones(DRAWS)),
        "l2_least": (("draw",), np.ones(DRAWS)),
        "recovered": (("draw",), np.ones(DRAWS, bool)),
        "certificate": (("draw",), np.full(DRAWS, 0.5)),
        "passed_over": ((), 0),
        "rich_excess": (
            ("depth", "draw", "target"),
            np.tile(np.stack(rich)[:, None], (1, DRAWS, 1)),
        ),
        "worst_excess": (("depth", "order"), np.stack(worst)),
        "kernel_distance": (
            ("depth", "draw", "scale"),
            np.broadcast_to(study.SCALES**-2.0, (len(DEPTHS), DRAWS, study.SCALES.size)),
        ),
        "kernel_gap": (
            ("depth", "draw", "scale"),
            np.broadcast_to(0.1 * study.SCALES**-2.0, (len(DEPTHS), DRAWS, study.SCALES.size)),
        ),
        "flow_beta": (("depth", "flow_alpha", "tolerance", "feature"), flow),
        "flow_predicted": (("depth", "flow_alpha", "feature"), predicted),
        "flow_as_two": (
            ("depth", "flow_alpha", "feature"),
            predicted + np.array([0, 0.1, 0.1])[:, None, None],
        ),
        "convention_beta": (
            ("convention", "feature"),
            np.array([[1.0] * 5 + [2.0], [1.0] * 5 + [2.0], [2.0] * 5 + [3.0]]),
        ),
        "convention_potential": (("potential",), np.array([2.0, 2.0])),
    }
    for end in ("rich", "kernel"):
        columns[f"bound_{end}_log_alpha"] = (("draw", "eps"), np.zeros((DRAWS, len(study.EPS))))
        columns[f"bound_{end}_excess"] = (("draw", "eps"), np.full((DRAWS, len(study.EPS)), 1e-3))
    coords = {
        "depth": depth,
        "draw": draw,
        "alpha": alpha,
        "target": study.TARGETS,
        "order": study.ORDERS,
        "scale": study.SCALES,
    }
    coords |= {
        "tolerance": np.array(study.TOLERANCES),
        "flow_alpha": np.array([0.1, 1.0]),
        "eps": np.array(study.EPS),
    }
    config = study.Config(draws=DRAWS, depths=DEPTHS)
    return made_up(
        config, {name: (dims, np.array(value)) for name, (dims, value) in columns.items()}, coords
    )


class TestKernelToRich(StudyCase):
    study = "kernel-to-rich"
    small = (
        "--draws 2 --levels 8 --depths 2 3 --flow-alphas .3 --flow-n 5 --flow-d 10 --n 12 "
        "--d 24 --sparsity 2 --problem-seed 1"
    )
    mutations = {
        "another constant": (
            "worst_excess",
            lambda v: v * np.array([[1.01], [1], [1]]),
            "Depth 2: over all problems",
        ),
        "another next order": (
            "worst_excess",
            lambda v: v * (1 + np.array([[0], [1], [0]]) * study.ORDERS**0.5),
            "Depth 3: over all problems",
        ),
        "depth 3 that needs exponentially small alpha": (
            "worst_excess",
            lambda v: v[[0, 0, 2]] / np.log(1 / study.ORDERS) ** 2,
            "Control: at depth 3",
        ),
        "another exponent at depth 2": (
            "rich_excess",
            lambda v: v ** np.array([1.1, 1, 1])[:, None, None],
            "Depth 2: on any one problem",
        ),
        "another exponent at depth 3": (
            "rich_excess",
            lambda v: v ** np.array([1, 1.1, 1])[:, None, None],
            "Depth 3: on any one problem",
        ),
        "another exponent at depth 4": (
            "rich_excess",
            lambda v: v ** np.array([1, 1, 1.1])[:, None, None],
            "Depth 4: on any one problem",
        ),
        "solutions that were not found": (
            "l1",
            lambda v: np.where(np.arange(v.shape[-1]) == 4, np.nan, v),
            "The transition is monotone",
        ),
        "another correction at large alpha": (
            "kernel_gap",
            lambda v: v + 0.01,
            "Depth 3: at large alpha",
        ),
        "alpha too large for minimum l1": (
            "bound_rich_excess",
            lambda v: v + 0.2,
            "the l1 norm is at most",
        ),
        "alpha too small for minimum l2": (
            "bound_kernel_excess",
            lambda v: v + 0.2,
            "the squared l2 norm is at most",
        ),
        "less than the least": ("bound_rich_excess", lambda v: v - 0.2, "the l1 norm is at most"),
        "an l1 norm that falls": ("l1", lambda v: v[..., ::-1], "The transition is monotone"),
        "an l2 norm that rises": ("l2", lambda v: v[..., ::-1], "The transition is monotone"),
        "a curve that falls": ("l1_slope", lambda v: -v, "The transition is monotone"),
        "an error that falls": ("error", lambda v: v[..., ::-1], "The larger alpha"),
        "one draw's error that falls once": (
            "error",
            lambda v: v * np.where(np.arange(9) == 4, 30, 1),
            "The larger alpha",
        ),
        "a flow that ends elsewhere": ("flow_beta", lambda v: v + 1e-4, "Depth 4: gradient flow"),
        "depth 3 as depth 2": ("flow_as_two", lambda v: v[[0, 0, 0]], "Control: the deeper flows"),
        "another potential": (
            "convention_potential",
            lambda v: v * np.array([1, 4]),
            "The paper's potential",
        ),
        "another clock": ("convention_beta", lambda v: v[[0, 2, 2]], "The paper's loss"),
        "a clock of no consequence": (
            "convention_beta",
            lambda v: v[[0, 0, 0]],
            "The paper's loss",
        ),
    }
    refusals = [
        ({"alpha_high": 1e-9}, "alpha_high must be finite and above"),
        ({"n": 40}, "n must be below d = 40"),
        ({"flow_n": 20}, "flow_n must be below flow_d = 20"),
        ({"sparsity": 30}, "sparsity must be at most d = 40 and flow_d = 20"),
        ({"depths": (3, 4)}, "depths must be increasing"),
        ({"depths": (2,)}, "depths must be increasing"),
        ({"flow_alphas": ()}, "flow_alphas must be at least one number"),
    ]

    @classmethod
    def make(cls):
        return ideal()

    def test_all_that_theory_predicts_passes(self, made):
        assert all(claim.verdict == "holds" for claim in self.module.claims(made))

    @pytest.mark.slow
    def test_a_small_run_passes(self):
        assert failed(self.module, small_run(self.study)) == ""


def test_the_worst_case_constants():
    """The constant is known in closed form at depth 2 and by brute search at depth 4;
    `peak` finds the maximum of a cosine between grid points.
    """
    constant, place = theory.worst_excess(2)
    assert constant == pytest.approx(0.27846454276)
    assert place == pytest.approx(1 + lambertw(np.exp(-1)).real)
    # Values b of beta_2, where s = b^{-1/2} - (1 - b)^{-1/2}.
    b = np.linspace(0.01, 0.99, 20001)
    s = b**-0.5 - (1 - b) ** -0.5
    assert theory.worst_excess(4)[0] == pytest.approx((s * b).max(), rel=1e-6)
    x = np.linspace(-1, 1, 41)
    assert theory.peak(x, np.cos(x - 0.123)) == pytest.approx(1, abs=1e-10)
    assert np.isnan(theory.peak(x, x))


def test_no_second_power_changes_a_local_exponent_by_more_than_the_largest_deviation():
    target, factor = 1e-7, 10.0
    x = np.geomspace(1e-3, 10, 20_001)
    added = x * factor * target**x / (1 + factor * target**x)
    assert theory.largest_deviation(target, factor) == pytest.approx(added.max(), rel=1e-6)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_orders_and_alphas_are_inverse(depth):
    np.testing.assert_allclose(
        theory.order_of(theory.log_alpha_of(study.ORDERS, depth), depth), study.ORDERS
    )


def test_the_certificate_is_that_of_two_features():
    X = np.array([[1.0, 0.7]])
    assert theory.largest_certificate(X, np.array([1.0, 0.0])) == pytest.approx(0.7)
    assert theory.fixed_exponent(2, 0.7) == pytest.approx(0.6)
    assert theory.fixed_exponent(3, 0.7) == 3


@pytest.mark.parametrize("depth", [2, 3])
def test_the_programme_of_two_features_has_the_worst_excess_and_the_kernel_shift(depth):
    order = 1e-3
    constant, place = theory.worst_excess(depth)
    log_alpha = -1 / (2 * order) if depth == 2 else np.log(order) / (depth - 2)
    delta = place * order
    problem = sgf.SparseRegression(jnp.array([[1.0, 1 - delta]]), jnp.ones(1))
    beta = sgf.select(problem, log_alpha, depth=depth).beta
    assert float(delta * beta[1]) == pytest.approx(constant * order, rel=5 * order)
    least = np.asarray(sgf.minimum_l2(problem))
    shift = theory.kernel_shift(np.asarray(problem.X), least, depth)
    assert np.linalg.norm(np.asarray(problem.X) @ shift) < 1e-12
    wide = sgf.SparseRegression(jnp.array([[1.0, 0.4]]), jnp.ones(1))
    least = np.asarray(sgf.minimum_l2(wide))
    shift = theory.kernel_shift(np.asarray(wide.X), least, depth)
    moved = np.asarray(sgf.select(wide, np.log(20.0) / depth, depth=depth).beta) - least
    np.testing.assert_allclose(moved, shift / 20**2, rtol=0.02)
    assert outside_row_space(wide.X, shift) == pytest.approx(np.linalg.norm(shift))
