"""The study `meanfield-replicas`: made-up data on which every claim holds, and changes
after which each must fail; and the runs of a perceptron from which it measures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import made_up
from study_case import StudyCase

import sgfbias as sgf
from sgfbias.meanfield.perceptron import Tasks, fluctuations, solutions
from sgfbias.meanfield.studies.replicas import EDGES, NAMES, Config, lags_of

CONFIG = Config()


def at(k, change):
    def changed(values):
        values = values.copy()
        values[k] = change(values[k])
        return values

    return changed


class TestReplicas(StudyCase):
    study = "meanfield-replicas"
    small = "--unsat-d 20 --burn 100 --lags 40 --sat-d 20 --sat-steps 400 --seeds 4 --sat-alpha 0.5"
    mutations = {
        "labels that are not fitted": ("violation", lambda v: v + 1e-3, "every run fits them"),
        "full batches that separate": (
            "distance",
            at(0, lambda v: v + 1e-4),
            "replicas stay together",
        ),
        "full batches that are hot": (
            "drop",
            at(0, lambda v: v + 1e-3),
            "no temperature is left",
        ),
        "shares that do nothing": ("drop", at(4, lambda v: 0.01 * v), "Smaller shares"),
        "memories that do nothing": (
            "distance",
            at(8, lambda v: 0.01 * v),
            "longer memories drive replicas",
        ),
        "memories that cool": ("drop", at(5, lambda v: 0.1 * v), "Every memory makes"),
        "two noises": ("drop", lambda v: v[[0, 4, 3, 2, 1, 8, 7, 6, 5]], "ranks the settings"),
        "one noise": (
            "distance",
            at(5, lambda v: 3 * v),
            "not one number",
        ),
        "gaps that stay": ("mean_gap", lambda v: 0 * v + v[0], "ends further"),
        "as many near the boundary": ("near", lambda v: 0 * v + v[0], "ends further"),
        "shuffles that change nothing": (
            "shuffled",
            lambda v: 0 * v + np.arange(v.shape[1]),
            "the settings shuffled",
        ),
    }
    refusals = [
        ({"unsat_alpha": 4.001}, "unsat_alpha times unsat_d must be a whole number"),
        ({"sat_step": 0.2}, "sat_step must be below 0.15"),
    ]

    @classmethod
    def make(cls):
        rng = np.random.default_rng(0)
        lags = lags_of(CONFIG)
        heat = np.array([1e-4, 0.0015, 0.003, 0.007, 0.02, 0.027, 0.043, 0.053, 0.047])
        distance = np.array([0, 6e-4, 0.0016, 0.0031, 0.0131, 0.0073, 0.0133, 0.0193, 0.0272])
        shape = (len(NAMES), CONFIG.seeds)
        response = np.tile(np.linspace(0, 2, lags.size), (*shape, 1))
        near = 1 + 0.05 * rng.normal(size=(CONFIG.seeds, 1))
        base = rng.normal(size=CONFIG.seeds)
        level = np.linspace(0, 1, len(NAMES))[:, None]
        rows = {
            "drop": (("setting", "seed", "lag"), heat[:, None, None] * response * near),
            "response": (("setting", "seed", "lag"), response),
            "distance": (("setting", "seed"), distance[:, None] * near[:, 0]),
            "violation": (("setting", "seed"), np.full(shape, 1e-6)),
            "mean_gap": (("setting", "seed"), 0.46 + 0.01 * base + 0.04 * level),
            "near": (("setting", "seed"), 0.39 + 0.01 * base - 0.07 * level),
            "density": (("setting", "gap"), np.ones((len(NAMES), EDGES.size - 1))),
            "shuffled": (
                ("shuffle", "setting"),
                np.stack([rng.permutation(len(NAMES)) for _ in range(200)]),
            ),
        }
        middle = (EDGES[1:] + EDGES[:-1]) / 2
        return made_up(CONFIG, rows, {"setting": NAMES, "lag": lags, "gap": middle})


def descended(x, y, w, step, looks, force, since):
    """Weights of gradient descent on the sphere after each number of steps in `looks`,
    with a force from one step on.
    """
    found, d = [], w.size
    for k in range(max(looks) + 1):
        if k in looks:
            found.append(w)
        short = np.maximum(-y * (x @ w), 0)
        w = w + step * (x.T @ (y * short) + (force if k >= since else 0))
        w = w * np.sqrt(d) / np.linalg.norm(w)
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drops_and_responses_are_those_of_gradient_descent_on_the_sphere(dtype):
    """With all examples at every step, by NumPy and central differences."""
    tasks = Tasks.draw(np.random.default_rng(0), 2, 2.0, 10, dtype)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (2, 10))
    every = jax.vmap(lambda b: sgf.PersistentMask(b, persistence=1.0))(jnp.ones(1))
    step, looks, tiny = 0.05, (20, 21, 30), 1e-6
    drop, response = fluctuations(
        tasks, every, step, looks, sgf.seeds(0, 2), jnp.asarray(signs, dtype)
    )
    for k in range(2):
        x, y, w = (np.asarray(v[k], float) for v in (tasks.inputs, tasks.targets, tasks.start))
        plain, up, down = (
            descended(x, y, w, step, looks, size * signs[k], looks[0]) for size in (0, tiny, -tiny)
        )
        rough = 1e-5 if dtype == "float32" else 1e-8
        away = np.sum(np.square(plain - plain[0]), axis=-1) / 20
        np.testing.assert_allclose(drop[0, k], away, atol=rough)
        chi = (up - down) @ signs[k] / (2 * tiny) / 10
        np.testing.assert_allclose(response[0, k], chi, atol=rough)


@pytest.mark.slow
def test_replicas_without_noise_end_together_and_with_masks_apart():
    tasks = Tasks.draw(np.random.default_rng(0), 2, 0.75, 40)
    masks = jax.vmap(lambda b: sgf.PersistentMask(b, persistence=4.0))(jnp.asarray([1.0, 0.4]))
    keys = sgf.seeds(0, 4).reshape(2, 2)
    distance, gaps = solutions(tasks, masks, 0.1, 2000, keys)
    assert gaps.shape == (2, 2, 2, 30)
    np.testing.assert_array_equal(distance[0], 0)
    assert np.all(np.asarray(distance[1]) > 1e-4)
    assert np.all(np.asarray(gaps) > -1e-4)
