"""The study `kernel-at-start`: made-up data on which every claim holds, and changes
after which each must fail.
"""

import numpy as np
from helpers import made_up
from study_case import StudyCase

from sgfbias.lazy import norm_variance
from sgfbias.lazy.studies.kernel_at_start import DISTANCES, NARROW, Config

WIDTHS, SEEDS, DEPTH, DRAWS = (64, 256, 1024), 4, 3, 2000


def standardised(rng, size, mean, variance):
    """Numbers with this mean of themselves, or of their squares, up to rounding."""
    drawn = rng.normal(size=size)
    drawn = (drawn - drawn.mean()) / drawn.std()
    return mean + np.sqrt(variance) * drawn


class TestKernelAtStart(StudyCase):
    study = "kernel-at-start"
    small = (
        "--widths 32 128 512 --seeds 4 --draws 1000 --trained 64 --examples 12 --inputs 16 "
        "--depth 2"
    )
    mutations = {
        "an error that stays": ("error", lambda v: v * 0 + v[:1], "approach their closed forms"),
        "an error that falls too fast": (
            "error",
            lambda v: np.square(v),
            "approach their closed forms",
        ),
        "an error without gates that falls": (
            lambda ds: ds.assign(ungated_error=ds["error"]),
            "without the gates of the units",
        ),
        "norms that spread more": ("norm", lambda v: 1 + 1.2 * (v - 1), "variance of |x_l|^2"),
        "norms of a start of twice the variance": (
            "norm",
            lambda v: v * 2.0 ** np.arange(1, DEPTH + 1),
            "weights from N(0, 1/m) miss",
        ),
        "more pre-activations near zero": (
            "near_zero_excess",
            lambda v: v + 0.01,
            "fraction of pre-activations",
        ),
        "larger outputs": ("output", lambda v: v * 1.3, "variance of the output is"),
        "outputs of variance 1": (
            "output",
            lambda v: v / np.sqrt(np.mean(v**2)),
            "refuses the variance 1",
        ),
        "an eigenvalue that falls": (
            "least_eigenvalue",
            lambda v: v[::-1],
            "grows with the distance",
        ),
        "training that takes longer": ("steps", lambda v: v[::-1], "order of training times"),
        "a run that is lost": (
            "steps",
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 5, np.nan, v),
            "order of training times",
        ),
    }
    refusals = [
        ({"widths": (512, 128)}, "widths must be two or more, increasing"),
        ({"widths": (127, 512)}, "widths must be even"),
        ({"trained": 65}, "trained must be even"),
        ({"examples": 9}, "examples must be even"),
    ]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        spread = np.exp(0.1 * rng.normal(size=(len(WIDTHS), SEEDS, DEPTH)))
        width = np.asarray(WIDTHS)[:, None, None]
        layers = np.arange(1, DEPTH + 1)
        variances = np.asarray(norm_variance(layers.astype(np.float64), NARROW))
        norms = np.stack([standardised(rng, DRAWS, 1, v) for v in variances], axis=1)
        excess = np.stack([standardised(rng, DRAWS, 0, 0.003)] * DEPTH, axis=1)
        least = np.asarray(DISTANCES)[:, None] * np.exp(0.02 * rng.normal(size=(4, SEEDS)))
        return made_up(
            Config(widths=WIDTHS, seeds=SEEDS, draws=DRAWS),
            {
                "error": (("width", "seed", "layer"), 4 * spread / np.sqrt(width)),
                "ungated_error": (("width", "seed", "layer"), 0.5 * spread),
                "norm": (("draw", "layer"), norms),
                "near_zero_excess": (("draw", "layer"), excess),
                "output": (("draw",), standardised(rng, DRAWS, 0, 1 - 1 / np.pi)),
                "least_eigenvalue": (("distance", "seed"), least),
                "steps": (("distance", "seed"), 80 / least),
            },
            {"width": list(WIDTHS), "layer": layers, "distance": list(DISTANCES)},
        )
