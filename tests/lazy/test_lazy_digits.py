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
from sgfbias.lazy.studies.digits import NETWORKS, SCALES, Config

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
            lambda v: np.where(np.asarray([[[False], [True]]]), 0.2, v),
            "the kernel stays",
        ),
        "a kernel that stays in the standard networks": (
            "kernel_drift",
            lambda v: v * 0.01,
            "both networks learn features",
        ),
        "an alignment that does not grow": (
            lambda ds: ds.assign(aligned_after=ds["aligned_before"]),
            "aligns with the labels",
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
        layers = {name: noise[..., None] * np.ones(3) for name in ("relative_distance", "flips")}
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


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="`n` must be a whole number"):
        digits(1798)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"need scikit-learn: pip install 'sgfbias\[lazy\]'"):
        digits(5)
