"""The studies `recurrent-memory`, `recurrent-cells` and `recurrent-cure`: made-up data
on which every claim holds, and changes after which each must fail.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

from sgfbias.recurrent.studies import cells, cure, memory

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 8
TIMES = np.geomspace(10, 2e4, 16)
NOISE = np.exp(0.05 * np.random.default_rng(0).normal(size=SEEDS))


class TestMemory(StudyCase):
    study = "recurrent-memory"
    small = "--seeds 4 --state 5 --time 500"
    mutations = {
        "an error that falls below": (
            "tail",
            lambda v: np.where(np.arange(4)[:, None, None] == 1, v * 10 / TIMES, v),
            "the error at later lags rests",
        ),
        "an error that rests": (
            "tail",
            lambda v: v[:, :, :1] + 0 * v,
            "From the length 5 on the error at later lags falls",
        ),
        "an error that falls too slowly": (
            "tail",
            lambda v: v * np.where(np.arange(4)[:, None, None] < 2, 1.0, TIMES**0.4),
            "From the length 5 on the error at later lags falls",
        ),
        "a small step": (
            "tail",
            lambda v: np.where(np.arange(4)[:, None, None] < 2, 1e-4 * v, v),
            "One more step of training",
        ),
        "a loss that stays": ("loss", lambda v: v + 1e-5, "fits the sequences of training"),
        "a Gaussian start whose error falls": (
            "free_tail",
            lambda v: v / TIMES,
            "from a Gaussian start the error rests",
        ),
        "a Gaussian start that does not fit": (
            "free_loss",
            lambda v: v + 1e-12,
            "from a Gaussian start the error rests",
        ),
        "a negative weight that is fitted": (
            "negative_loss",
            lambda v: 0.5 * v,
            "a teacher with a negative weight",
        ),
    }

    @classmethod
    def make(cls):
        rows = {
            "tail": (
                ("length", "seed", "time"),
                np.asarray([0.04, 0.006, 2e-3, 1e-3])[:, None, None]
                * NOISE[:, None]
                * np.where(np.arange(4)[:, None, None] < 2, 1.0, 10 / TIMES),
            ),
            "loss": (("length", "seed"), np.full((4, SEEDS), 1e-9)),
            "error": (("length", "lag"), 0.5 ** np.arange(20) * np.ones((4, 1))),
            "free_tail": (("seed", "time"), 2e-3 * NOISE[:, None] + 0 * TIMES),
            "free_loss": (("seed",), np.full(SEEDS, 1e-30)),
            "negative_loss": (("seed",), 0.1 * (1 + 0.01 * NOISE)),
            "negative_least": ((), np.asarray(0.1)),
        }
        axes = {"length": list(memory.LENGTHS), "time": TIMES}
        return made_up(memory.Config(seeds=SEEDS), rows, axes)


def test_the_least_loss_of_positive_measures():
    # Moments of a positive measure are reached; h_0 = -1 costs 1/2 at least.
    grid = np.asarray([0.75, -0.45]) ** np.arange(5)[:, None]
    assert memory.least_loss(grid @ [0.3, 0.7]) < 1e-12
    np.testing.assert_allclose(memory.least_loss(np.asarray([-1.0, 0, 0, 0, 0])), 0.5)


LINEAR_CELLS = np.asarray([kind == "linear" for kind, _ in cells.SCALES])
SMALLEST = np.asarray([scale == ("linear", 0.1) for scale in cells.SCALES])
LATE = np.arange(2) == 1  # of the two lengths
PENALTY = np.arange(3)[:, None, None, None] == 2


class TestCells(StudyCase):
    study = "recurrent-cells"
    small = "--seeds 2 --length 6 --hidden 8 --steps 10 --tests 32"
    mutations = {
        "a cell that holds": (
            "horizon",
            lambda v: v * 0 + 64,
            "holds to that length only",
        ),
        "a cell without fault": (
            "loss",
            lambda v: v * 0 + 0.01,
            "holds to that length only",
        ),
        "no use of mixing": (
            "loss",
            lambda v: v[:, :1] + 0 * v,
            "Mixed lengths up to the same one move that length",
        ),
        "no use of mixing in adding": (
            "loss",
            lambda v: v[:, :1] + 0 * v,
            "lower the loss of adding",
        ),
        "a sine that is lost": (
            "loss",
            lambda v: v * np.asarray([1, 1, 1, 9]),
            "A noisy sine is followed",
        ),
        "a penalty that does nothing": (
            "linear_loss",
            lambda v: np.where(PENALTY, v[:1], v),
            "A penalty on the tail makes a linear network hold",
        ),
        "one loss for all starts": (
            "linear_loss",
            lambda v: v[:, -1:] + 0 * v,
            "errs the more on long sequences the larger its start",
        ),
        "another closed form": (
            "linear_predicted",
            lambda v: 2 * v,
            "The closed form of the error",
        ),
        "mixing that does the same": (
            "linear_loss",
            lambda v: np.where(np.arange(3)[:, None, None, None] == 1, v[2:], v),
            "mixed lengths up to that of training do much less",
        ),
        "a lag that is guessed": ("lagged_loss", lambda v: 0.5 * v, "needs a lag beyond"),
        "linear cells that hold alike": (
            "scaled_loss",
            lambda v: np.where(LINEAR_CELLS[:, None, None], 1e-9, v),
            "make a linear cell lose more",
        ),
        "small weights that do not hold": (
            "scaled_loss",
            lambda v: np.maximum(v, np.where(SMALLEST[:, None, None] & LATE, 0.2, 0)),
            "make a linear cell lose more",
        ),
        "gains of other cells": (
            "scaled_gain",
            lambda v: v[::-1],
            "The loss in training and the memory gain beyond it together",
        ),
        "a loss in training that tells all": (
            "scaled_loss",
            lambda v: v[..., 1:] * np.asarray([0.5, 1.0]),
            "The loss in training and the memory gain beyond it together",
        ),
        "a gain that does not fall": (
            "scaled_gain",
            lambda v: v[..., 32:33] + 0 * v,
            "the memory gain at lag 0 does not order",
        ),
    }
    refusals = [
        ({"length": 7}, "length must be even, but is 7"),
        ({"hidden": 8}, "hidden must be above length = 8"),
    ]

    @classmethod
    def make(cls):
        length = np.asarray([8, 16, 32, 64])
        loss = np.full((3, 2, SEEDS, 4), 1e-3)
        loss[:2, 0] = [1e-3, 0.8, 3.0, 5.0]
        loss[:2, 1] = [1e-3, 2e-3, 0.01, 0.2]
        linear = np.full((3, 2, SEEDS, 4), 1e-10)
        linear[:2, 1] = [1e-10, 1e-2, 2e-2, 2e-2]
        linear[:2, 0] *= 10
        # Every cell forgets at a rate of its own. The gain at lag 0 is about 1 for all.
        many = len(cells.SCALES)
        rate = np.asarray([3.0, 1.0, 0.2, 0.1, 2.0, 1.5, 0.3, 0.05, 1.2, 0.8, 0.4, 0.15])
        forgets = -np.arange(64) * rate[:, None] + 0 * NOISE[:2, None, None]
        forgets[..., 0] = 1e-3 * np.random.default_rng(0).normal(size=(2, many))
        first = np.where(LINEAR_CELLS, 1e-9, 1e-4) * np.random.default_rng(1).random((2, many))
        late = np.exp(2 * forgets[..., 8:]).sum(axis=-1)
        scaled = np.stack([first, first + late], axis=-1)
        rows = {
            "scaled_loss": (("scaled", "start", "end"), np.moveaxis(scaled, 0, 1)),
            "scaled_gain": (("scaled", "start", "lag"), np.moveaxis(forgets, 0, 1)),
            "loss": (("task", "arm", "seed", "length"), loss * NOISE[:, None]),
            "horizon": (
                ("task", "arm", "seed"),
                np.asarray([[8, 32], [8, 16], [64, 64]])[..., None] + np.zeros(SEEDS),
            ),
            "gain": (("task", "arm", "lag"), np.zeros((3, 2, 64))),
            "lagged_loss": (("seed",), NOISE),
            "linear_loss": (
                ("linear", "radius", "linear_start", "length"),
                linear * NOISE[:, None],
            ),
            "linear_predicted": (("linear", "radius", "linear_start"), linear[..., -1] * NOISE),
        }
        axes = {
            "task": ["copy", "adding", "sine"],
            "arm": list(cells.ARMS),
            "linear": list(cells.LINEAR),
            "radius": list(cells.RADII),
            "linear_start": np.arange(SEEDS),
            "length": length,
        }
        return made_up(cells.Config(seeds=SEEDS), rows, axes)


@pytest.mark.slow
def test_the_command_line_takes_ones_own_cell_and_sequences(tmp_path):
    random = np.random.default_rng(0)
    wave = np.sin(0.3 * np.arange(400)) + 0.1 * random.normal(size=400)
    (tmp_path / "series.csv").write_text("a\n" + "\n".join(f"{v:.6f}" for v in wave) + "\n")
    (tmp_path / "mine.py").write_text(
        "import equinox as eqx, jax, jax.numpy as jnp\n"
        "class Cell(eqx.Module):\n"
        "    A: jax.Array\n"
        "    B: jax.Array\n"
        "    def __call__(self, x, state):\n"
        "        return jnp.tanh(self.A @ state + self.B @ x)\n"
        "def make(inputs, hidden, key):\n"
        "    a, b = jax.random.split(key)\n"
        "    return Cell(jax.random.normal(a, (hidden, hidden)) / hidden,\n"
        "                jax.random.normal(b, (hidden, inputs)))\n"
    )
    sizes = {"seeds": 2, "length": 6, "hidden": 8, "steps": 20, "tests": 32, "cell": "mine:make"}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]

    def run(*more):
        # As the command `sgfbias` does it, which has no working directory on its path.
        main = "import sys; sys.path = [p for p in sys.path if p]; from sgfbias.cli import main"
        arguments = ["run", "recurrent-cells", *options, *more]
        command = [sys.executable, "-c", f"{main}; sys.exit(main())", *arguments]
        return subprocess.run(
            [*command, "--out", str(tmp_path / "out"), "--overwrite"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    done = run("--data", "series.csv")
    assert done.returncode == 0, done.stderr
    # The printed table wraps its sentences at the width of the terminal.
    stored = json.loads((tmp_path / "out" / "claims.json").read_text())["claims"]
    (own,) = [
        claim for claim in stored if claim["statement"].startswith("On sequences of one's own")
    ]
    assert own["verdict"] == "holds"
    assert (tmp_path / "out" / "study.png").exists()
    lost = run("--cell", "mine:none")
    assert lost.returncode == 2
    assert "cell must be gru, lstm, or MODULE:FUNCTION" in lost.stderr


@pytest.mark.parametrize("kind", ["linear", "tanh", "gru"])
def test_the_family_of_cells_has_the_cells_of_its_kinds(kind):
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from sgfbias.recurrent.studies.cells.scales import start

    d = 5
    net = start(kind, 3.0, d, np.random.default_rng(0))
    cell = jax.tree.map(
        lambda leaf: leaf.astype(float) if eqx.is_inexact_array(leaf) else leaf, net.cell
    )
    x, hidden = jnp.asarray([0.7]), jnp.linspace(-1, 1, d)
    if kind == "gru":
        known = eqx.nn.GRUCell(1, d, key=jax.random.key(0))
        known = eqx.tree_at(
            lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n),
            known,
            (cell.own, cell.recurrent, cell.bias, jnp.zeros(d)),
        )
        wanted = known(x, hidden)
    else:
        wanted = cell.own[2 * d :] @ x + cell.recurrent[2 * d :] @ hidden + cell.bias[2 * d :]
        wanted = jnp.tanh(wanted) if kind == "tanh" else wanted
    np.testing.assert_allclose(cell(x, hidden), wanted, rtol=1e-12)
    # The factor multiplies what the same numbers give, and nothing else.
    single = start(kind, 1.0, d, np.random.default_rng(0))
    np.testing.assert_allclose(net.cell.recurrent, 3 * single.cell.recurrent, rtol=1e-6)
    np.testing.assert_array_equal(net.cell.own, single.cell.own)
    assert bool(jnp.all(net.cell.bias == 0)) == (kind == "linear")


def test_the_factor_of_a_linear_cell_is_its_spectral_radius_for_many_states():
    from sgfbias.recurrent.studies.cells.scales import start

    d = 300
    cell = start("linear", 0.9, d, np.random.default_rng(0)).cell
    radius = np.abs(np.linalg.eigvals(np.asarray(cell.recurrent[2 * d :]))).max()
    np.testing.assert_allclose(radius, 0.9, rtol=0.06)


def test_a_file_that_is_too_short_is_refused(tmp_path):
    from sgfbias.recurrent.studies.cells.measure import tasks_of

    path = tmp_path / "short.npz"
    np.savez(path, X=np.ones((9, 5, 1)), y=np.ones((9, 1)))
    with pytest.raises(ValueError, match="has only 5 steps on one side, fewer than length = 8"):
        tasks_of(cells.Config(data=path))


class TestCure(StudyCase):
    study = "recurrent-cure"
    small = "--seeds 4 --state 5 --steps 200"
    mutations = {
        "a tail that stays": (
            "tail",
            lambda v: v[:, :1] + 0 * v,
            "A penalty on the tail makes the network extrapolate",
        ),
        "a loss that stays": (
            "loss",
            lambda v: v + 1e-5,
            "fits the sequences of training",
        ),
        "a run that is lost": (
            "loss",
            lambda v: np.where(np.arange(SEEDS) == 0, np.nan, v),
            "fits the sequences of training",
        ),
        "one tail for both weights": (
            "tail",
            lambda v: np.where(np.arange(4)[:, None] == 1, v[:, 2:3], v),
            "A stronger penalty leaves a smaller tail",
        ),
        "decay without use": (
            "tail",
            lambda v: np.where(np.arange(4)[:, None] == 3, v[:, :1], v),
            "Weight decay of the transition does the same",
        ),
        "small tails": (
            "tail",
            lambda v: 1e-4 * v,
            "without the penalty the network fits and does not extrapolate",
        ),
        "decay that keeps memory": (
            "loss",
            lambda v: v[:, :1] + 0 * v,
            "weight decay does not do the same for a teacher with memory",
        ),
    }

    @classmethod
    def make(cls):
        tails = np.asarray([[0.1, 1e-5, 1e-6, 1e-5], [0.1, 1e-3, 1e-4, 1e-2]])[..., None]
        losses = np.asarray([[1e-20, 1e-9, 1e-8, 1e-9], [1e-20, 1e-9, 1e-8, 1e-4]])[..., None]
        radius = np.asarray([0.95, 0.9, 0.85, 0.8])[:, None] + np.zeros((2, 4, SEEDS))
        dims = ("teacher", "arm", "seed")
        rows = {
            "tail": (dims, tails * NOISE),
            "loss": (dims, losses * NOISE),
            "radius": (dims, radius),
        }
        axes = {"teacher": list(cure.TEACHERS), "arm": list(cure.ARMS)}
        return made_up(cure.Config(seeds=SEEDS), rows, axes)
