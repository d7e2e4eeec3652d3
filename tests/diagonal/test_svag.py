"""The study `svag`: SVAG(l) approaches the flow, SGD with small steps does not, and
every claim can fail.
"""

import numpy as np
import pytest
from study_case import StudyCase


@pytest.mark.slow
class TestSvag(StudyCase):
    study = "svag"
    small = "--seeds 4096 --time 2"
    mutations = {
        "a gap that stays": (
            "svag_shrinkage",
            lambda v: np.broadcast_to(v[:1], v.shape),
            "falls as 1/l",
        ),
        "SGD that approaches too": (
            lambda ds: ds.assign(sgd_shrinkage=ds["svag_shrinkage"]),
            "Control",
        ),
        "another distribution": (
            "svag_shrinkage",
            lambda v: np.concatenate([v[:-1], 2 * v[-1:]]),
            "distribution of the shrinkage",
        ),
    }
    refusals = [({"time": 0.1}, "time must be a whole number of step_size")]
