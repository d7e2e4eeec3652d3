"""Estimates with intervals, in the form in which claims state them: means, medians,
ratios, exponents, and distances of distributions.

The functions need only NumPy and SciPy. An interval has the level 99% unless another
level is given. `bootstrap` and functions named `..._interval` return the two ends of an
interval; `mean_and_error` and `mean_difference` a number and its standard error; most
others an `Estimate`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.99
_ROOT: contextvars.ContextVar[int] = contextvars.ContextVar("root of the resampling", default=0)


@contextlib.contextmanager
def resampling(root: int) -> Iterator[None]:
    """Within this context all resampling has this root. The frame enters it with the
    root of a study's config.
    """
    before = _ROOT.set(root)
    try:
        yield
    finally:
        _ROOT.reset(before)


def resampler() -> np.random.Generator:
    """A new generator for resampling, from the root of the context."""
    return np.random.default_rng(_ROOT.get())


class Estimate(NamedTuple):
    """A number and the two ends of its interval.

    `f"{estimate:.2f}"` shows both: `-1.02 (99% interval -1.10 to -0.95)`.
    """

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ({LEVEL:.0%} interval {self.low:{form}} to {self.high:{form}})"

    def map(self, function: Callable[[Any], Any]) -> Estimate:
        """The estimate of `function(number)`, for an increasing function."""
        return Estimate(*(float(function(v)) for v in self))

    def contains(self, value: float) -> bool:
        """Whether the interval contains a value."""
        return bool(self.low <= value <= self.high)


def finite(sample: Any) -> np.ndarray:
    """The finite values of a sample, as a vector."""
    sample = np.asarray(sample)
    return sample[np.isfinite(sample)]


def jointly_finite(*samples: Any) -> tuple[np.ndarray, ...]:
    """Paired samples, with only the members that are finite in all of the samples."""
    keep = np.all([np.isfinite(sample) for sample in samples], axis=0)
    return tuple(np.asarray(sample)[keep] for sample in samples)


def listed(values: Any, form: str = ".2g") -> str:
    """The values as text, `a, b, c`; an `Estimate` is shown with its interval."""
    return ", ".join(format(v if isinstance(v, Estimate) else float(v), form) for v in values)


def span(values: Any, form: str = ".2g") -> str:
    """The range of the values as text, `smallest to largest`, or the single value if
    all are equal.
    """
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


def arrow(values: Any, form: str = ".1e") -> str:
    """The values as text, `a -> b -> c`."""
    return " -> ".join(format(float(v), form) for v in values)


def bootstrap(
    statistic: Callable[..., Any],
    *samples: np.ndarray,
    level: float = 0.99,
    draws: int = 2000,
    seed: int | None = None,
) -> tuple[float, float]:
    """Bootstrap interval (percentiles) of `statistic(*samples)`.

    **Arguments:**

    - `statistic`: a function of the samples that works along the last axis.
    - `samples`: arrays (members,). Each is resampled independently of the others.
    - `level`: level of the interval.
    - `draws`: number of resampled data sets.
    - `seed`: seed of the resampling; by default that of `resampling`.

    **Returns:** the lower and the upper end.
    """
    generator = resampler() if seed is None else np.random.default_rng(seed)
    resampled = [s[generator.integers(0, len(s), (draws, len(s)))] for s in samples]
    low, high = np.quantile(statistic(*resampled), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def median_interval(sample: np.ndarray, level: float = 0.99) -> tuple[float, float]:
    """Interval of the median from order statistics, by the binomial distribution.

    It is valid for every distribution, and the sample may contain infinities.

    **Returns:** the lower and the upper end.
    """
    from scipy.stats import binom

    ordered = np.sort(sample)
    n = len(ordered)
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))
    return float(ordered[max(rank - 1, 0)]), float(ordered[min(n - rank, n - 1)])


def kolmogorov(a: np.ndarray, b: np.ndarray) -> Any:
    """Two-sample Kolmogorov distance along the last axis.

    It is the largest difference between the two distribution functions, from 0 to 1.
    """
    joint = np.concatenate([a, b], axis=-1)
    order = np.argsort(joint, axis=-1, kind="stable")
    weight = np.concatenate(
        [np.full(a.shape[-1], 1 / a.shape[-1]), np.full(b.shape[-1], -1 / b.shape[-1])]
    )
    steps = np.cumsum(weight[order], axis=-1)
    ranked = np.take_along_axis(joint, order, axis=-1)
    # Among equal values, the distribution functions are compared after the last one.
    last = np.concatenate(
        [ranked[..., 1:] != ranked[..., :-1], np.ones((*ranked.shape[:-1], 1), bool)], axis=-1
    )
    return np.max(np.where(last, np.abs(steps), 0.0), axis=-1)


def estimate(
    statistic: Callable[..., Any], *samples: Any, paired: bool = False, draws: int = 2000
) -> Estimate:
    """A statistic of samples, with its bootstrap interval.

    **Arguments:**

    - `statistic`: a function of the samples that works along the last axis.
    - `samples`: arrays (members,).
    - `paired`: whether the members of all samples are resampled together. Otherwise
      each sample is resampled independently of the others.
    - `draws`: number of resampled data sets.

    **Returns:** an `Estimate`; NaN if a sample is empty.
    """
    arrays = [np.asarray(sample) for sample in samples]
    if not all(a.size for a in arrays):
        # Without data every claim about the statistic must fail, as comparisons with
        # NaN do.
        return Estimate(np.nan, np.nan, np.nan)
    value = float(statistic(*arrays))
    if paired:
        return Estimate(
            value,
            *bootstrap(
                lambda index: statistic(*(a[index.astype(int)] for a in arrays)),
                np.arange(len(arrays[0])),
                draws=draws,
            ),
        )
    return Estimate(value, *bootstrap(statistic, *arrays, draws=draws))


def _mean(sample: Any) -> Any:
    return np.mean(sample, axis=-1)


def mean(sample: Any) -> Estimate:
    """Mean with its bootstrap interval.

    If a value is not finite, the estimate is NaN, so that every claim about it fails.
    """
    sample = np.asarray(sample)
    return (
        estimate(_mean, sample) if np.isfinite(sample).all() else Estimate(np.nan, np.nan, np.nan)
    )


def geometric_mean(sample: Any) -> float:
    """Geometric mean of the values that are finite and positive; NaN if none are."""
    known = finite(sample)
    known = known[known > 0]
    return float(np.exp(np.log(known).mean())) if known.size else float("nan")


def mean_t(sample: Any, *, tests: int = 1) -> Estimate:
    """Mean with an interval from Student's t distribution.

    **Arguments:**

    - `sample`: the values.
    - `tests`: how many intervals must hold at the same time. The interval is widened
      accordingly (Bonferroni).
    """
    from scipy.stats import t

    sample = np.asarray(sample, np.float64)
    half = (
        t.ppf(1 - (1 - LEVEL) / (2 * tests), sample.size - 1)
        * sample.std(ddof=1)
        / np.sqrt(sample.size)
    )
    return Estimate(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half))


def median(sample: Any, *, lost: float | None = np.inf) -> Estimate:
    """Median with its interval from `median_interval`.

    **Arguments:**

    - `sample`: the values.
    - `lost`: the number that replaces each value that is not finite. If it is None,
      these values are left out.
    """
    sample = finite(sample) if lost is None else np.where(np.isfinite(sample), sample, lost)
    if not sample.size:
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(float(np.median(sample)), *median_interval(sample))


def medians(rows: Any, *, lost: float | None = np.inf) -> np.ndarray:
    """`median` of every row, as an array (3, rows): medians, lower ends, upper ends."""
    return np.array([median(row, lost=lost) for row in rows]).T


def mean_and_error(sample: Any) -> tuple[float, float]:
    """Mean of the finite values of a sample, and the standard error of the mean."""
    kept = finite(sample)
    return float(kept.mean()), float(kept.std(ddof=1) / np.sqrt(kept.size))


def mean_difference(sample: Any, reference: Any) -> tuple[float, float]:
    """Difference of the means of two independent samples, and its standard error.

    Values that are not finite are left out. The difference is `sample` minus
    `reference`.
    """
    a, b = finite(sample), finite(reference)
    error = np.hypot(a.std(ddof=1) / np.sqrt(a.size), b.std(ddof=1) / np.sqrt(b.size))
    return float(a.mean() - b.mean()), float(error)


class LogRatio(NamedTuple):
    """Logarithms of the ratios of two paired samples.

    - `values`: (members,): the logarithms. A lost pair has the worst value seen.
    - `lost`: number of lost pairs, those without a finite logarithm.
    """

    values: np.ndarray
    lost: int

    @property
    def ratio(self) -> Estimate:
        """Geometric mean of the ratios, with its bootstrap interval."""
        return estimate(_mean, self.values).map(np.exp)

    def words(self) -> str:
        """How many pairs were lost, in words; an empty text if none were."""
        return (
            f"{self.lost} of {self.values.size} pairs lost, each counted as the worst ratio seen"
            if self.lost
            else ""
        )

    def shown(self, *words: str) -> str:
        """The geometric mean of the ratios with its interval, then the texts `words`,
        and then the number of lost pairs.
        """
        return "; ".join(filter(None, (f"{self.ratio:.3g}", *words, self.words())))


def log_ratio(first: Any, second: Any, *, lost_as: int) -> LogRatio:
    """Logarithms of `first / second`, pair by pair.

    A pair is lost if its logarithm is not finite. It must not help the claim, so it
    counts as the worst ratio seen.

    **Arguments:**

    - `first`, `second`: (members,).
    - `lost_as`: 1 if the largest ratio is the worst, -1 if the smallest is. If all
      pairs are lost, their logarithms are 10 or -10.

    **Returns:** a `LogRatio`.
    """
    with np.errstate(all="ignore"):
        ratio = np.log(np.asarray(first)) - np.log(np.asarray(second))
    known = np.isfinite(ratio)
    worst = (
        (ratio[known].max() if lost_as > 0 else ratio[known].min())
        if known.any()
        else 10.0 * lost_as
    )
    return LogRatio(np.where(known, ratio, worst), int(np.sum(~known)))


def variance_ratio(sample: Any, reference: Any, *, draws: int = 2000) -> Estimate:
    """Variance of `sample` divided by that of the independent sample `reference`, with
    its bootstrap interval. Values that are not finite are left out.
    """
    return estimate(
        lambda a, b: np.var(a, axis=-1, ddof=1) / np.var(b, axis=-1, ddof=1),
        finite(sample),
        finite(reference),
        draws=draws,
    )


def distance_of_laws(a: Any, b: Any, *, draws: int = 200) -> Estimate:
    """Kolmogorov distance of two samples, with its bootstrap interval.

    Values that are not finite are left out. The interval of two samples of one
    distribution lies above 0, so it cannot show that they are equal: compare with the
    distance of two samples that are.
    """
    return estimate(kolmogorov, finite(a), finite(b), draws=draws)


def slope(x: Any, y: Any) -> Any:
    """Slope of the least-squares line through points.

    **Arguments:**

    - `x`: (points,).
    - `y`: (points,), or (rows, points) for one line for each row.

    **Returns:** a number, or an array (rows,).
    """
    found = np.polyfit(np.asarray(x, np.float64), np.asarray(y, np.float64).T, 1)[0]
    return float(found) if np.ndim(found) == 0 else found


def log_slope(x: Any, y: Any) -> Any:
    """Exponent of a power law, by least squares of the logarithms, without an interval.

    **Arguments:**

    - `x`: (points,), positive.
    - `y`: (points,), or (rows, points) for one power law for each row. Signs are
      ignored.

    **Returns:** a number, or an array (rows,); NaN if a value of y is 0 or not finite.
    """
    x, y = np.asarray(x, np.float64), np.abs(np.asarray(y, np.float64))
    known = (np.isfinite(y) & (y > 0)).all(axis=-1)
    with np.errstate(all="ignore"):
        found = np.where(
            known, slope(np.log(x), np.where(np.expand_dims(known, -1), np.log(y), 0.0)), np.nan
        )
    return float(found) if found.ndim == 0 else found


def power_law(x: Any, y: Any, error: Any, *, draws: int = 4000) -> Estimate:
    """Exponent of a power law, by least squares of the logarithms, with its interval.

    The interval follows from redrawing y with independent normal errors.

    **Arguments:**

    - `x`: (points,), positive.
    - `y`: (points,). Signs are ignored.
    - `error`: (points,): standard errors of y.
    - `draws`: number of redrawn y.
    """
    drawn = y + error * resampler().normal(size=(draws, len(y)))
    found = slope(np.log(x), np.log(np.abs(np.vstack([y, drawn]))))
    return Estimate(
        float(found[0]),
        *(float(v) for v in np.quantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])),
    )


def sign_test(count: int, *, level: float = 0.01) -> int:
    """Smallest k for which at least k of `count` fair coins show heads with a
    probability of at most `level`: the critical value of a one-sided sign test.
    """
    from scipy.stats import binom

    return int(binom.ppf(1 - level, count, 0.5)) + 1


def bootstrap_median(*rows: np.ndarray) -> Estimate:
    """The median over seeds, with its bootstrap interval, of a number for each seed, or
    of the difference of two.

    It is for few seeds, for which `median` has no finite interval. The interval lies
    within the range of the sample, which covers the median with probability
    `1 - 2^(1 - n)` for n seeds: less than 99% for fewer than eight.

    **Arguments:**

    - `rows`: one array (seeds,), or two whose difference is taken seed by seed.
    """
    values = rows[0] if len(rows) == 1 else rows[0] - rows[1]
    return estimate(lambda v: np.median(v, axis=-1), values)
