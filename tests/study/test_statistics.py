"""Tests of the statistics that studies share: they agree with SciPy and with known
powers, and their intervals cover the truth.
"""

import numpy as np
import pytest
from scipy import stats

from sgfbias.study.statistics import (
    Estimate,
    arrow,
    bootstrap_median,
    distance_of_laws,
    estimate,
    finite,
    jointly_finite,
    kolmogorov,
    listed,
    log_ratio,
    log_slope,
    mean,
    mean_difference,
    mean_t,
    median,
    median_interval,
    medians,
    power_law,
    sign_test,
    slope,
    variance_ratio,
)

RNG = np.random.default_rng(0)


def test_kolmogorov_distance_is_scipys_with_ties():
    a, b = RNG.normal(size=40), RNG.normal(size=60) + 0.5
    a[:5] = b[:5]
    np.testing.assert_allclose(kolmogorov(a, b), stats.ks_2samp(a, b).statistic, atol=1e-12)
    assert distance_of_laws(a, b).value == pytest.approx(stats.ks_2samp(a, b).statistic)


COVERED = {
    "median": lambda sample: Estimate(0.0, *median_interval(sample)),
    "mean": mean,
    "mean by Student's t": mean_t,
}


@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_the_truth(name):
    """Exact 99% intervals miss the truth in more than 13 of 400 samples with a
    probability below 1e-4 (binomial). The limit here is 15 misses, because bootstrap
    intervals are slightly too short at this sample size.
    """
    misses = sum(not COVERED[name](RNG.normal(size=101)).contains(0.0) for _ in range(400))
    assert misses <= 15


def test_a_power_law_is_found_with_its_interval():
    x = np.array([1.0, 2, 4, 8, 16])
    error = 0.02 * x**-1.5
    covered = 0
    for _ in range(100):
        found = power_law(x, 3 * x**-1.5 + error * RNG.normal(size=5), error)
        covered += found.contains(-1.5)
    assert covered >= 95
    assert not power_law(x, 3 * x**-1.0, error).contains(-1.5)
    assert log_slope(x, -3 * x**0.7) == pytest.approx(0.7)
    np.testing.assert_allclose(
        log_slope(x, np.stack([x**2, x * np.nan, 0 * x])), [2, np.nan, np.nan]
    )
    assert slope(x, 2 * x + 1) == pytest.approx(2)
    np.testing.assert_allclose(slope(x, np.stack([x, 3 * x])), [1, 3])


def test_lost_values_speak_against_the_claim():
    first, second = np.array([1.0, 2.0, np.nan]), np.array([2.0, 2.0, 1.0])
    worse = log_ratio(first, second, lost_as=1)
    np.testing.assert_allclose(worse.values, np.log([0.5, 1, 1]))
    np.testing.assert_allclose(log_ratio(first, second, lost_as=-1).values, np.log([0.5, 1, 0.5]))
    assert worse.words() == "1 of 3 pairs lost, each counted as the worst ratio seen"
    assert log_ratio(second, second, lost_as=1).words() == ""
    assert median([1.0, np.nan, np.nan, 2.0, np.inf]).value == np.inf
    assert median([1.0, np.nan, 2.0], lost=None).value == 1.5
    assert np.isnan(mean([1.0, np.nan])).all()
    np.testing.assert_allclose(medians(np.ones((4, 9))), np.ones((3, 4)))
    assert [len(v) for v in jointly_finite([1, np.nan, 3], [1, 2, np.inf])] == [1, 1]
    assert finite([[1.0, np.inf], [2.0, 3.0]]).tolist() == [1, 2, 3]


def test_ratios_and_differences():
    a, b = RNG.normal(size=4000), 2 * RNG.normal(size=5000) + 0.3
    assert variance_ratio(b, a).contains(4.0)
    difference, error = mean_difference(b, a)
    assert abs(difference - 0.3) < 4 * error
    assert error == pytest.approx(np.sqrt(1 / 4000 + 4 / 5000), rel=0.05)
    ratio = log_ratio(np.exp(a), np.exp(a) * 2, lost_as=1).ratio
    assert ratio == pytest.approx((0.5, 0.5, 0.5))


def test_where_nothing_is_left_estimates_are_nan_and_claims_on_them_fail():
    lost = np.full(4, np.nan)
    for found in (
        median(lost, lost=None),
        distance_of_laws(lost, np.ones(3)),
        variance_ratio(lost, np.ones(3)),
    ):
        assert np.isnan(found).all()
        assert not found.high < 1


def test_paired_resampling_keeps_pairs_together():
    x = RNG.normal(size=200)
    difference = estimate(lambda a, b: np.mean(a - b, axis=-1), x + 1, x, paired=True)
    assert difference == pytest.approx((1, 1, 1))
    assert estimate(lambda a, b: np.mean(a, axis=-1) - np.mean(b, axis=-1), x + 1, x).high > 1.1


def test_a_sign_test_is_exact():
    for count in (7, 10, 48):
        need = sign_test(count)
        assert stats.binom.sf(need - 1, count, 0.5) <= 0.01 < stats.binom.sf(need - 2, count, 0.5)


def test_estimates_are_shown_with_their_intervals():
    assert f"{Estimate(-1.016, -2.3, 0.2):.2f}" == "-1.02 (99% interval -2.30 to 0.20)"
    assert f"{Estimate(0.0, -1.0, 1.0).map(np.exp):+.1f}" == "+1.0 (99% interval +0.4 to +2.7)"
    assert listed([1, 2.5]) == "1, 2.5"
    assert arrow([1e-3, 2e-3]) == "1.0e-03 -> 2.0e-03"


def test_the_bootstrap_median_is_that_of_the_differences_and_within_their_range():
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    found = bootstrap_median(first, second)
    rest = first - second
    assert found.value == np.median(rest)
    assert rest.min() <= found.low < found.value < found.high <= rest.max()
    assert bootstrap_median(rest) == found
