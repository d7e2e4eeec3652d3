"""The study `lazy-digits`: made-up data on which every claim holds, changes after which
each must fail, and its data and networks.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias import lazy
from sgfbias.lazy.digits import SmallConvNet, digits
from sgfbias.lazy.studies.digits import NETWORKS, SCALES, Config, class_alignment

SEEDS = 2


class TestLazyDigits(StudyCase):
    study = "lazy-digits"
    small = "--images 20 --seeds 2 --width 16 --channels 4 --loss 1.0"
    draws = (0,)
    mutations = {
        "a run that is lost": (
            "steps",
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 5, np.nan, v),
            "Every run reaches the loss",
        ),
        "a kernel that moves when rescaled": (
            "kernel_drift",
            lambda v: np.where(np.asarray([[[False], [True]]]), 0.5, v),
            "the kernel stays",
        ),
        "a kernel that stays in the standard networks": (
            "kernel_drift",
            lambda v: v * 0.01,
            "both networks leave their kernel",
        ),
        "distances that do not depend on the scale": (
            "relative_distance",
            lambda v: v * 0 + 0.1,
            "Every layer moves further",
        ),
        "units that switch everywhere": (
            "flips",
            lambda v: v * 0 + 0.1,
            "Every layer moves further",
        ),
        "a linearised network that is exact": (
            "tangent_error",
            lambda v: v * 0.01,
            "no description of the standard networks",
        ),
    }

    @classmethod
    def make(cls):
        noise = np.exp(0.05 * np.random.default_rng(0).normal(size=(2, 2, SEEDS)))
        rich = np.asarray([[[True], [False]]])
        before = 0.3 * noise[:, :1]
        rows = {
            "steps": 200 * noise,
            "kernel_drift": np.where(rich, 2, 0.05) * noise,
            "aligned_before": before + 0 * noise,
            "aligned_after": before + np.where(rich, 0.3, 0.01) * noise,
            "tangent_error": np.where(rich, 1, 0.05) * noise,
        }
        moved = np.where(rich, 0.3, 0.01) * noise
        layers = {name: moved[..., None] * np.ones(3) for name in ("relative_distance", "flips")}
        dims = ("network", "scale", "seed")
        return made_up(
            Config(seeds=SEEDS),
            {name: (dims, values) for name, values in rows.items()}
            | {name: ((*dims, "layer"), values) for name, values in layers.items()},
            {"network": list(NETWORKS), "scale": list(SCALES), "layer": [1, 2, 3]},
        )


def test_the_images_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    everything = digits(1797, seed=3)
    some = digits(5, seed=3, dtype=jnp.float32)
    assert some.inputs.dtype == jnp.float32
    np.testing.assert_allclose(some.inputs, everything.inputs[:5])
    rows = np.lexsort(np.asarray(everything.inputs).T)
    wanted = np.lexsort((images / 8 - 1).T)
    np.testing.assert_allclose(np.asarray(everything.inputs)[rows], images[wanted] / 8 - 1)
    assert np.bincount(everything.targets).tolist() == np.bincount(labels).tolist()


@pytest.mark.slow
def test_the_conv_net_has_three_structured_layers():
    net = SmallConvNet(jax.random.key(0), 2)
    assert net(jnp.ones(64)).shape == (10,)
    assert SmallConvNet(jax.random.key(0), 2, dtype=jnp.float32).last.bias.dtype == jnp.float32
    # A constant image in the middle of which one pixel moves changes the outputs.
    moved = jnp.ones(64).at[27].set(0)
    assert np.any(net(moved) != net(jnp.ones(64)))
    kernel = lazy.ntk(net, jnp.ones((2, 64)))
    assert kernel.groups == ("first", "second", "last")
    assert kernel.methods == ("structured",) * 3


def test_the_alignment_with_the_classes():
    """A kernel that is 1 within classes has cosine 1, also with a constant added, and
    one of another grouping has less.
    """
    labels = np.asarray([0, 0, 1, 1])
    same = (labels[:, None] == labels).astype(float)
    of = lambda matrix: class_alignment(matrix[..., None, None] * np.eye(3), labels)  # noqa: E731
    np.testing.assert_allclose([of(same), of(2 * same + 5)], 1, rtol=1e-12)
    other = np.asarray([0, 1, 0, 1])
    np.testing.assert_allclose(of((other[:, None] == other).astype(float)), 0, atol=1e-12)


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="`n` must be a whole number"):
        digits(1798)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"need scikit-learn: pip install 'sgfbias\[lazy\]'"):
        digits(5)
