"""The study `lazy-digits`: made-up data on which every claim holds, changes after which
each must fail, and its data and networks.
"""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias import lazy
from sgfbias.lazy.digits import SmallConvNet, digits
from sgfbias.lazy.own import Examples, network_maker, own_network, read_examples
from sgfbias.lazy.studies import digits as study
from sgfbias.lazy.studies.digits import NETWORKS, SCALES, Config, class_alignment

SEEDS = 2


class TestLazyDigits(StudyCase):
    study = "lazy-digits"
    small = "--images 20 --seeds 2 --width 16 --channels 4 --loss 1.0"
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


NET = """
import equinox as eqx
import jax
from layers import width

class Net(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first = eqx.nn.Linear(6, width, key=a)
        self.last = eqx.nn.Linear(width, 3, key=b)

    def __call__(self, x):
        return self.last(jax.numpy.tanh(self.first(x)))

make, number = Net, 3

def wide(key):
    return eqx.nn.Linear(6, 4, key=key)
"""


@pytest.fixture
def own(tmp_path):
    """A folder with 40 examples of three classes, and with networks."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "layers.py").write_text("width = 12")
    (tmp_path / "broken.py").write_text("1 / 0")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6))
    labels = np.arange(40) % 3
    inputs = centres[labels] + 0.3 * rng.normal(size=(40, 6))
    np.savez(tmp_path / "own.npz", X=inputs, y=np.asarray(["a", "b", "c"])[labels])
    return tmp_path


def test_examples_of_ones_own(own):
    with np.load(own / "own.npz") as stored:
        X, y = stored["X"], stored["y"]
    found = read_examples(own / "own.npz")
    assert found.classes == 3
    np.testing.assert_array_equal(found.inputs, X)
    np.testing.assert_array_equal(np.asarray(["a", "b", "c"])[found.labels], y)
    drawn = found.draw(40, seed=2)
    np.testing.assert_array_equal(np.sort(drawn.inputs, axis=0), np.sort(X, axis=0))
    place = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in np.asarray(drawn.inputs)]
    np.testing.assert_array_equal(drawn.targets, found.labels[place])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.ones((4, 2))}, r"must hold X \(n, ...\) and y \(n,\), but holds X; missing: y"),
        ({"X": np.ones(4), "y": np.arange(4)}, r"X has shape \(4,\)"),
        ({"X": np.ones((4, 2)), "y": np.arange(3)}, r"y has shape \(3,\)"),
        ({"X": np.full((4, 2), "a"), "y": np.arange(4)}, "must have real numbers X"),
        ({"X": np.full((4, 2), np.nan), "y": np.arange(4) % 2}, "X in .* NaN or infinite"),
        ({"X": np.ones((4, 2)), "y": np.ones(4)}, "must be two classes or more, but has 1 diff"),
        ({"X": np.ones((60, 2)), "y": np.arange(60.0)}, "but has 60 different values on 60"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        read_examples(tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("net.make", "must be written as FILE.py:FUNCTION"),
        ("nowhere.py:make", "names the file .*nowhere.py, but there is no such file"),
        ("net.py:missing", "must name a function .* has no missing"),
        ("net.py:number", "must name a function .* has no number"),
        ("broken.py:make", "cannot be run: ZeroDivisionError: division by zero"),
        ("net.py:wide", r"to 3 numbers, one for each class, but its output has shape \(4,\)"),
        ("net.py:len", "has no len"),
    ],
)
def test_networks_that_make_no_sense_are_refused(own, where, words):
    def call():
        make = network_maker(str(own / where))
        own_network(make, jax.random.key(0), read_examples(own / "own.npz"), jnp.float64)

    with pytest.raises(ValueError, match=words):
        call()


def test_a_network_of_ones_own(own):
    """It may import its neighbours; what it raises is an error of `model`."""
    make, examples = network_maker(f"{own}/net.py:make"), read_examples(own / "own.npz")
    net = own_network(make, jax.random.key(1), examples, jnp.float64)
    assert net.first.out_features == 12
    assert str(own) not in sys.path
    wrong = examples._replace(inputs=examples.inputs[:, :5])
    with pytest.raises(ValueError, match=r"an example of shape \(5,\) to 3 numbers, but it raises"):
        own_network(make, jax.random.key(1), wrong, jnp.float64)


def test_images_of_ones_own_have_a_conv_net():
    rng = np.random.default_rng(0)
    for shape, names in (((5, 4), NETWORKS), ((2, 5, 4), NETWORKS), ((7,), ("MLP",))):
        inputs = rng.normal(size=(6, *shape))
        examples = Examples(inputs, np.arange(6) % 2, 2)
        made = study._makers(Config(data="own.npz", width=4, channels=2), examples)
        assert tuple(made) == names
        for make in made.values():
            out = eqx.filter_eval_shape(
                lambda key, make=make, x=inputs[0]: make(key)(jnp.asarray(x, jnp.float32)),
                jax.random.key(0),
            )
            assert out.shape == (2,)


def test_claims_on_ones_own_network_only_inform():
    """A network without kinks, one layer of which starts at 0."""
    ds = TestLazyDigits.make().isel(network=[0])
    ds["flips"] = ds["flips"] * np.nan
    ds["relative_distance"][..., 2] = np.inf
    ds.attrs["config"] = made_up(Config(seeds=SEEDS, model="net.py:make"), {}).attrs["config"]
    found = TestLazyDigits().module.claims(ds)
    assert [claim.verdict for claim in found] == ["holds"] * len(found)
    assert not any(claim.must_hold for claim in found)
    assert "networks leave the kernel" in found[2].statement
    assert TestLazyDigits().module.plot(ds).axes


@pytest.mark.slow
def test_the_command_line_takes_ones_own_data_and_network(own):
    options = [
        "--data",
        str(own / "own.npz"),
        "--model",
        f"{own}/net.py:make",
        "--seeds",
        "2",
        "--out",
        str(own / "out"),
    ]
    command = [sys.executable, "-m", "sgfbias", "run", "lazy-digits", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own network" in done.stdout + done.stderr
    assert (own / "out" / "study.png").exists()
