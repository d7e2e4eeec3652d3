"""Attacked, certified and, where it can be found, true accuracy in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from sgfbias.core.checks import as_whole
from sgfbias.core.types import Dataset
from sgfbias.fourier.attack import Attack, attack
from sgfbias.fourier.certify import Certificate, certify
from sgfbias.fourier.exhaust import sets
from sgfbias.fourier.layers import first_layer
from sgfbias.fourier.moves import AbstractMoves, BitFlips


class Robustness(eqx.Module):
    """The accuracy of a network under at most 0, 1, ... moves.

    **Arguments:**

    - `attack`: what the attack found: upper bounds of the accuracy.
    - `certificate`: what is proved: lower bounds, or None for a network that cannot be
      certified.
    - `truth`: the search through all sets of moves, up to as many as could be tried.
    - `why`: why there is no certificate, or an empty text.
    """

    attack: Attack
    certificate: Certificate | None
    truth: Attack
    why: str = eqx.field(static=True)

    def _columns(self) -> dict[str, np.ndarray]:
        """The curves, with NaN where nothing is known."""
        attacked = np.asarray(self.attack.curve)
        certified, true = np.full(len(attacked), np.nan), np.full(len(attacked), np.nan)
        if self.certificate is not None:
            certified = np.asarray(self.certificate.curve)
        true[: len(self.truth.curve)] = np.asarray(self.truth.curve)
        return {"attacked": attacked, "true": true, "certified": certified}

    def to_xarray(self) -> Dataset:
        """The accuracies over flips, and the margins over flips and examples."""
        import xarray as xr

        columns = self._columns()
        found = xr.Dataset(
            {f"{name}_accuracy": ("flips", values) for name, values in columns.items()},
            coords={"flips": np.arange(len(columns["attacked"]))},
            attrs={"method": self.attack.method},
        )
        found["attacked_margin"] = ("flips", "example"), np.asarray(self.attack.margin)
        if self.certificate is not None:
            found["certified_margin"] = ("flips", "example"), np.asarray(self.certificate.margin)
        return found

    def __str__(self) -> str:
        columns = self._columns()
        rows = [f"{'flips':>5}" + "".join(f"{name:>11}" for name in columns)]
        for k in range(len(columns["attacked"])):
            cells = [f"{values[k]:.1%}" if values[k] >= 0 else "-" for values in columns.values()]
            rows.append(f"{k:>5}" + "".join(f"{cell:>11}" for cell in cells))
        n = self.attack.margin.shape[1]
        rows.append(f"accuracy of {n:,} examples; attack: {self.attack.method}")
        if self.why:
            rows.append(f"no certificate: {self.why}")
        return "\n".join(rows)

    __repr__ = __str__


def robustness(
    net: Any,
    inputs: Any,
    y: Any,
    flips: int,
    *,
    method: str = "greedy",
    moves: AbstractMoves = BitFlips(),
    most: int = 10**7,
    layer: Callable[[Any], eqx.nn.Linear] | None = None,
    activation: Callable | None = None,
    **options: Any,
) -> Robustness:
    """Attack a network, certify it, and find the truth where it can be enumerated.

    **Arguments:**

    - `net`, `inputs`, `y`, `flips`, `method`, `moves`, `layer`, `activation`, and
      further options: as for `attack`.
    - `most`: how many evaluations the search through all sets of moves may take.

    **Returns:** a `Robustness`; printed, it is the table of accuracies.

    **Raises:** `ValueError` for what `attack` refuses. Of a network that `certify`
    refuses, the reason is kept.
    """
    most = as_whole(most, "most", least=0, most=10**8)
    given: dict[str, Any] = {"moves": moves, "layer": layer, "activation": activation}
    found = attack(net, inputs, y, flips, method=method, **given, **options)
    proved, why = None, ""
    try:
        proved = certify(net, inputs, y, flips, **given)
    except ValueError as error:
        why = str(error)
    n, d = found.inputs.shape
    candidates = moves.candidates(first_layer(net, d, layer=layer, activation=activation).d)
    tried = 0
    while tried < flips and n * sets(candidates, tried + 1) <= most:
        tried += 1
    truth = attack(net, inputs, y, tried, method="exhaustive", **given)
    return Robustness(found, proved, truth, why)
