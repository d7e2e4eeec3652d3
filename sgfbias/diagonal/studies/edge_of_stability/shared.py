"""What the claims about the gain and those about recovery share."""

from __future__ import annotations

import numpy as np

from sgfbias.diagonal.studies.edge_of_stability import E23
from sgfbias.study.statistics import Estimate

UNCENTRED = f"{E23}, section 4: uncentred inputs"
LEAST = 4  # least number of draws with a known edge for a statistic over draws


def factor(log: Estimate) -> str:
    """The exponential of a mean of logarithms, as text with its interval."""
    return f"{log.map(np.exp):.3g}"
