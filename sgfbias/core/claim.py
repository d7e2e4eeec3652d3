"""Claims: a statement with its source, what theory predicts, what was measured, the tolerance, and a verdict that could have been no."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

Verdict = Literal["holds", "fails", "not applicable"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of a study's table.

    `must_hold`: a failure makes the command line exit non-zero. `control`: a negative control; its statement says that the test breaks.
    `reason`: why it fails or does not apply.
    """

    statement: str
    source: str
    predicted: str
    measured: str
    tolerance: str
    verdict: Verdict
    must_hold: bool = True
    control: bool = False
    reason: str = ""

    @property
    def broken(self) -> bool:
        """Whether this claim must hold and fails."""
        return self.must_hold and self.verdict == "fails"


def judge(
    statement: str,
    source: str,
    *,
    predicted: str,
    measured: str,
    tolerance: str,
    holds: Any,
    must_hold: bool = True,
    control: bool = False,
    reason: str = "",
) -> Claim:
    """A claim with the verdict of a test; `reason` is kept where it fails."""
    verdict: Verdict = "holds" if bool(holds) else "fails"
    return Claim(statement, source, predicted, measured, tolerance, verdict, must_hold, control, "" if holds else reason)


def not_applicable(statement: str, source: str, reason: str, *, must_hold: bool = True, control: bool = False) -> Claim:
    """A claim that says nothing here, and why."""
    return Claim(statement, source, "", "", "", "not applicable", must_hold, control, reason)


def bootstrap(
    statistic: Callable[..., Any], *samples: np.ndarray, level: float = 0.99, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(*samples)`; each sample is resampled on its own. `statistic` works along the last axis."""
    generator = np.random.default_rng(seed)
    resampled = [s[generator.integers(0, len(s), (draws, len(s)))] for s in samples]
    low, high = np.quantile(statistic(*resampled), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def median_interval(sample: np.ndarray, level: float = 0.99) -> tuple[float, float]:
    """Distribution-free interval of the median from order statistics (binomial), infinities allowed."""
    from scipy.stats import binom

    ordered = np.sort(sample)
    n = len(ordered)
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))
    return float(ordered[max(rank - 1, 0)]), float(ordered[min(n - rank, n - 1)])


def kolmogorov(a: np.ndarray, b: np.ndarray) -> Any:
    """Two-sample Kolmogorov distance along the last axis: the largest gap between the two distribution functions, 0 to 1."""
    joint = np.concatenate([a, b], axis=-1)
    order = np.argsort(joint, axis=-1, kind="stable")
    weight = np.concatenate([np.full(a.shape[-1], 1 / a.shape[-1]), np.full(b.shape[-1], -1 / b.shape[-1])])
    steps = np.cumsum(weight[order], axis=-1)
    ranked = np.take_along_axis(joint, order, axis=-1)
    # At ties the distribution functions are compared after the last of them.
    last = np.concatenate([ranked[..., 1:] != ranked[..., :-1], np.ones((*ranked.shape[:-1], 1), bool)], axis=-1)
    return np.max(np.where(last, np.abs(steps), 0.0), axis=-1)


def broken(claims: Sequence[Claim]) -> list[Claim]:
    """The claims that must hold and fail."""
    return [claim for claim in claims if claim.broken]
