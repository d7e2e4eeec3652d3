"""Claims about the results of a study.

A claim has a statement, its source, the prediction of theory, the measured value, the
tolerance, and a verdict. The statement must be able to fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sgfbias.core.trajectory import Status

Verdict = Literal["holds", "fails", "not applicable"]
CONTROL = "Control: "
MANY = 8  # A table of more claims than this has a summary.


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of a study's table of claims. Make it with `claim`, `control` or
    `not_applicable`.

    - `statement`, `source`: what is claimed, and the paper that it comes from.
    - `predicted`, `measured`, `tolerance`: numbers in words.
    - `verdict`: "holds", "fails" or "not applicable".
    - `must_hold`: if such a claim fails, the command line exits with a non-zero status.
    - `control`: whether this is a negative control. The statement of a control says
      that the test of another claim fails when it should.
    - `reason`: why the claim fails or does not apply.
    - `main`: whether this claim is one of those that answer the study's question, see
      `summary`.
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
    main: bool = False

    @property
    def told(self) -> str:
        """The claim with what was measured and, if there is one, the reason."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.statement}: {self.measured}{reason}"

    @property
    def broken(self) -> bool:
        """Whether this claim must hold, but fails."""
        return self.must_hold and self.verdict == "fails"


def claim(
    statement: str,
    source: str,
    *,
    holds: Any,
    predicted: str = "",
    measured: str = "",
    tolerance: str = "",
    must_hold: bool = True,
    reason: str = "",
    main: bool = False,
) -> Claim:
    """A claim whose verdict is the result of a test.

    **Arguments:**

    - `statement`: what is claimed, as a sentence that can be false.
    - `source`: the paper that the claim comes from; see `study.source`.
    - `holds`: whether the test passed.
    - `predicted`, `measured`, `tolerance`: numbers in words.
    - `must_hold`: False for a claim that only informs.
    - `reason`: why the claim may fail. It is kept only if the claim does fail.
    - `main`: True for a claim that answers the study's question, see `summary`.

    **Returns:** a `Claim` that holds or fails.
    """
    verdict: Verdict = "holds" if bool(holds) else "fails"
    return Claim(
        statement,
        source,
        predicted,
        measured,
        tolerance,
        verdict,
        must_hold,
        reason="" if holds else reason,
        main=main,
    )


def control(statement: str, source: str, **row: Any) -> Claim:
    """A negative control: the claim that the test of another claim can fail.

    The statement says that the other test fails on data that should make it fail. The
    control holds if it does fail on them. "Control: " is put before the
    statement, which therefore begins in lower case.

    **Arguments:** the same as for `claim`.
    """
    return dataclasses.replace(claim(f"{CONTROL}{statement}", source, **row), control=True)


def not_applicable(statement: str, source: str, reason: str, *, must_hold: bool = True) -> Claim:
    """A claim that cannot be tested at these settings.

    **Arguments:**

    - `statement`, `source`, `must_hold`: as for `claim`. If the statement begins with
      "Control: ", the claim is a negative control.
    - `reason`: why it cannot be tested.
    """
    return Claim(
        statement,
        source,
        "",
        "",
        "",
        "not applicable",
        must_hold,
        statement.startswith(CONTROL),
        reason,
    )


def few_lost(
    statement: str,
    source: str,
    statuses: Mapping[str, Any],
    *,
    share: float = 0.05,
    reason: str = "the step size is too large",
) -> Claim:
    """The claim that hardly any seed diverges.

    A seed has diverged if its status is `NON_FINITE` or `STALLED`: one that settles on
    a level of noise counts too.

    **Arguments:**

    - `statement`, `source`, `reason`: as for `claim`.
    - `statuses`: name of the runs -> `Status` of every seed, (seeds,) or (cells,
      seeds).
    - `share`: fraction of the seeds of each cell that may diverge.
    """
    lost = {
        word: np.atleast_2d(np.isin(np.asarray(status), (Status.NON_FINITE, Status.STALLED)))
        for word, status in statuses.items()
    }
    most = {
        word: f" (at most {bad.sum(axis=1).max()} of {bad.shape[1]:,} in one cell)"
        if len(bad) > 1
        else ""
        for word, bad in lost.items()
    }
    return claim(
        statement,
        source,
        predicted="no seed diverges",
        measured="diverged: "
        + "; ".join(
            f"{word} {bad.sum()} of {bad.size:,}{most[word]}" for word, bad in lost.items()
        ),
        tolerance=f"at most {share:.0%} of the seeds",
        holds=all((bad.mean(axis=1) <= share).all() for bad in lost.values()),
        reason=reason,
    )


def summary(claims: Sequence[Claim], rows: int = 5) -> list[Claim]:
    """The most important claims, and all that fail, in their order.

    These are the claims that the study marks as `main`. If it marks fewer than `rows`,
    its first negative control is added, and then its first claims that must hold. Up to
    eight claims are few enough to be returned as they are.

    **Arguments:**

    - `claims`: the claims of a study.
    - `rows`: the number of claims, to which those that fail are added.
    """
    if len(claims) <= MANY:
        return list(claims)
    order = sorted(
        range(len(claims)),
        key=lambda k: (
            not claims[k].main,
            not claims[k].must_hold or claims[k].verdict == "not applicable",
            claims[k].control,
        ),
    )
    controls = [k for k in order if claims[k].control and claims[k].must_hold]
    marked = [k for k in order if claims[k].main][:rows]
    if len(marked) < rows and not any(claims[k].control for k in marked):
        marked += controls[:1]
    marked += [k for k in order if k not in marked][: rows - len(marked)]
    return [row for k, row in enumerate(claims) if k in marked or row.verdict == "fails"]


def informing(claim: Claim) -> Claim:
    """The same claim, which now only informs.

    Claims about a user's own data do: the data may be unlike those for which a theory
    was made.
    """
    reason = claim.reason
    if claim.verdict == "fails":
        reason = "on these data of your own" + (f": {reason}" if reason else "")
    return dataclasses.replace(claim, must_hold=False, reason=reason)


def broken(claims: Sequence[Claim]) -> list[Claim]:
    """The claims that must hold, but fail."""
    return [claim for claim in claims if claim.broken]
