"""Sequences of mixed lengths in training, and sequences of one's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgfbias as sgf
from sgfbias import recurrent as rec

KEY = jax.random.key(0)


def with_mask(x):
    """The sequences with a last channel of ones."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def test_a_masked_cell_skips_steps():
    x = with_mask(jax.random.normal(KEY, (7, 2)))
    left = np.asarray([2, 3, 6])
    holes = jnp.zeros_like(x).at[left].set(x[left])
    gru = rec.Unroll(rec.Masked(eqx.nn.GRUCell(2, 3, key=KEY)))
    np.testing.assert_array_equal(gru(holes), gru(x[left]))
    assert np.abs(gru(holes) - gru(x)).max() > 1e-3
    pair = (jnp.ones(3), jnp.zeros(3))
    lstm = rec.Unroll(rec.Masked(eqx.nn.LSTMCell(2, 3, key=KEY)), initial=pair)
    np.testing.assert_array_equal(lstm(holes), lstm(x[left]))
    with pytest.raises(ValueError, match="give initial="):
        rec.Unroll(rec.Masked(eqx.nn.LSTMCell(2, 3, key=KEY)))
    with pytest.raises(ValueError, match="`cell` must be a module that can be called"):
        rec.Masked(3)


def test_lengths_are_equally_likely():
    x = with_mask(jax.random.normal(KEY, (30_000, 5, 1)))
    changed = np.asarray(rec.MixedLengths(3)(None, x, None, KEY))
    left = np.asarray(changed[..., -1] != 0)
    counts = np.bincount(left.sum(axis=1), minlength=6)
    assert counts[:3].sum() == 0
    # The standard deviation of a count is sqrt(30000 (1/3) (2/3)) = 82.
    assert np.abs(counts[3:] - 10_000).max() < 5 * 82
    # What is left is the end, unchanged.
    assert np.all(np.diff(left.astype(int), axis=1) >= 0)
    np.testing.assert_array_equal(changed[left], np.asarray(x)[left])
    assert np.all(changed[~left] == 0)


def test_marked_steps_are_kept():
    marks = jnp.zeros((30_000, 5, 1)).at[:, (0, 3)].set(1.0)
    x = with_mask(jnp.concatenate([jax.random.normal(KEY, (30_000, 5, 1)), marks], axis=-1))
    left = np.asarray(rec.MixedLengths(1, keep=1)(None, x, None, KEY)[..., -1] != 0)
    assert np.all(left[:, (0, 3)])
    # Of the lengths 1 to 5 both 1 and 2 leave the marked steps only.
    counts = np.bincount(left.sum(axis=1), minlength=6)[2:]
    assert np.abs(counts - 30_000 * np.asarray([0.4, 0.2, 0.2, 0.2])).max() < 5 * 85
    # The others are equally often left.
    free = left[:, (1, 2, 4)].mean(axis=0)
    assert np.abs(free - (1 + 2 + 3) / 15).max() < 5 * np.sqrt(0.24 / 30_000)


def test_a_linear_network_does_not_see_what_is_removed():
    network = rec.LinearRNN.gaussian(KEY, state=4, scale=0.9, gain=1.0)
    x = jax.random.normal(KEY, (6, 8, 1))
    changed = rec.MixedLengths(2)(network, x, None, KEY)
    for one, short in zip(x, changed, strict=True):
        steps = int(np.sum(np.asarray(short) != 0))
        np.testing.assert_allclose(network(short), network(one[8 - steps :]), rtol=1e-12)


@pytest.mark.slow
def test_mixed_lengths_in_training():
    cell = rec.Masked(eqx.nn.GRUCell(1, 3, key=KEY))
    model = rec.Unroll(cell, eqx.nn.Linear(3, 1, key=KEY))
    x = with_mask(jax.random.normal(KEY, (8, 6, 1)))

    def run(rule, inputs=x):
        problem = sgf.Problem(inputs, inputs[:, -1, :1], perturb=rule)
        descent = sgf.StochasticGradientDescent(0.1, 4)
        return sgf.simulate(descent, model, problem, keys=sgf.seeds(0, 2), steps=3)

    assert np.all(np.isfinite(run(rec.MixedLengths(2)).final["loss"]))
    for rule, words in (
        (rec.MixedLengths(7), r"needs sequences \(n, T, i\) with T of at least 7"),
        (rec.MixedLengths(2, keep=2), "`keep` must be one of the 2 channels"),
    ):
        with pytest.raises(ValueError, match=words):
            run(rule)
    with pytest.raises(ValueError, match="`least` must be a whole number >= 1"):
        rec.MixedLengths(0)
    with pytest.raises(ValueError, match="`keep` must be a whole number >= 0"):
        rec.MixedLengths(2, keep=-1)


def numbered(many, steps):
    """Inputs that say where they are, and targets at every time."""
    x = 100.0 * np.arange(many)[:, None, None] + np.arange(steps)[:, None]
    return x, -x


@pytest.mark.slow
def test_windows_end_at_their_target():
    data = rec.Sequences(*numbered(3, 10))
    x, y = jax.vmap(lambda key: data.task(key, 4))(sgf.seeds(0, 400))
    np.testing.assert_array_equal(y, -x[:, -1])
    np.testing.assert_array_equal(np.diff(x[..., 0], axis=1), 1)
    # All 3 times 7 windows occur: each is missed with the probability 3e-9.
    assert len(np.unique(x[:, 0, 0])) == 21
    ends = rec.Sequences(numbered(3, 10)[0], np.arange(3.0)[:, None])
    x, y = jax.vmap(lambda key: ends.task(key, 4))(sgf.seeds(0, 50))
    np.testing.assert_array_equal(x[:, -1, 0], 100 * y[:, 0] + 9)
    with pytest.raises(ValueError, match="have 10 steps, so there is no window of 11"):
        data.task(KEY, 11)


def test_the_parts_of_sequences():
    first, second = rec.Sequences(*numbered(9, 4)).split(seed=1)
    assert (first.inputs.shape, second.inputs.shape) == ((6, 4, 1), (3, 4, 1))
    every = np.concatenate([first.inputs, second.inputs])[:, 0, 0]
    np.testing.assert_array_equal(np.sort(every), 100 * np.arange(9))
    np.testing.assert_array_equal(second.targets, -second.inputs)
    one = rec.Sequences(numbered(1, 30)[0][0], numbered(1, 30)[1][0])
    early, late = one.split(0.5)
    np.testing.assert_array_equal(late.inputs[0, :, 0], np.arange(15, 30))
    assert early.longest == 15
    with pytest.raises(ValueError, match="a share of 1 leaves nothing of 9 sequences"):
        rec.Sequences(*numbered(9, 4)).split(1.0)


def test_sequences_from_files(tmp_path):
    x, y = numbered(3, 5)
    np.savez(tmp_path / "own.npz", X=x, y=y)
    found = rec.read_sequences(tmp_path / "own.npz")
    np.testing.assert_array_equal(found.inputs, x)
    np.testing.assert_array_equal(found.targets, y)
    series = tmp_path / "series.csv"
    series.write_text("a,b\n" + "\n".join(f"{k},{2 * k}" for k in range(6)) + "\n")
    found = rec.read_sequences(series)
    assert found.inputs.shape == found.targets.shape == (1, 5, 2)
    np.testing.assert_array_equal(found.targets[0, :, 1], [2, 4, 6, 8, 10])
    for name, content, words in (
        ("none.npz", None, "there is no file"),
        ("text.csv", "a,b\n1,x\n", "a line of names and then lines of numbers"),
        ("short.csv", "a\n1\n2\n", "must have three times or more, but has 2"),
        ("text.npz", "words", "is not a .npz file of plain numbers"),
        ("other.npz", {"X": x}, "but holds X; missing: y"),
        ("shapes.npz", {"X": x, "y": y[:2]}, r"have shapes \(3, 5, 1\) and \(2, 5, 1\)"),
        ("nan.npz", {"X": x * np.nan, "y": y}, "`inputs` must be finite"),
    ):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            np.savez(path, **content)
        with pytest.raises(ValueError, match=words):
            rec.read_sequences(path)
