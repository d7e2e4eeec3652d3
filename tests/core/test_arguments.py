"""Odd values of public arguments are converted or refused by name, never in the words
of a library.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_arguments as odd
import optax
import pytest

import sgfbias as sgf

KEYS = sgf.seeds(0, 2)
# What a value may be besides a number: a schedule, a loss that nothing is above.
ALLOWED = {"real step_size class", "real delta class"}
# Truth values and arrays are numbers where arrays are wanted.
TAKEN = {f"real {name} true" for name in ("log_alpha", "offset", "alpha")} | {
    "real integrals array"
}
UNBOUNDED = {f"whole {name} huge" for name in ("n", "d", "depth", "iterations", "batch_size")}


@pytest.fixture(scope="module")
def answers():
    command = [sys.executable, str(Path(odd.__file__))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", odd.REALS)
def test_a_real_number_is_asked_for_by_name(name, answers):
    for kind in odd.NOT_NUMBERS:
        found = answers[f"real {name} {kind}"]
        if f"real {name} {kind}" in ALLOWED:
            assert "schedule" in found
        elif f"real {name} {kind}" in TAKEN:
            assert found.startswith("returned")
        else:
            assert found.startswith("ValueError: "), (kind, found)
            assert name in found, (kind, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", odd.WHOLES)
def test_a_whole_number_is_asked_for_by_name(name, answers):
    for kind in odd.NOT_WHOLE:
        found = answers[f"whole {name} {kind}"]
        if f"whole {name} {kind}" not in UNBOUNDED:
            assert found.startswith("ValueError: "), (kind, found)
            assert name in found, (kind, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", odd.OBJECTS)
def test_an_object_of_another_kind_is_refused_by_name(name, answers):
    words = odd.OBJECTS[name][1]
    for kind in odd.OTHERS:
        found = answers[f"object {name} {kind}"]
        assert found.startswith("ValueError: "), (kind, found)
        assert words in found or (name, kind) == ("coordinates", "word"), (kind, found)


@pytest.mark.slow
def test_without_jit_a_run_gives_the_same(answers):
    """`jax.disable_jit` is the ordinary way to debug a model."""
    slow, fast = map(float, answers["debugged"].removeprefix("returned ").split())
    assert slow == pytest.approx(fast, rel=1e-12)


@pytest.mark.slow
def test_whole_numbers_of_every_type_are_taken(answers):
    assert answers["steps"] == answers["seeds"] == [1] * 6


@pytest.mark.parametrize("half", [0.5, np.float64(0.5), np.longdouble(0.5), np.array(0.5, ">f8")])
def test_real_numbers_of_every_type_are_taken(half):
    assert float(sgf.GradientDescent(half).step_size) == 0.5


def test_seeds_do_not_repeat_beyond_32_bits():
    with pytest.raises(
        ValueError, match=r"`start` must be a whole number >= 0 and <= " r"4,294,967,295"
    ):
        sgf.seeds(2**32, 2**32 + 2)
    assert sgf.seeds(2**32 - 2, 2**32).shape == (2,)


def test_optax_transformations_are_taken():
    found = sgf.tune(odd.square, 1.0, keys=KEYS, optimiser=optax.sgd(0.1), iterations=2)
    assert found.hyper == pytest.approx(0.8)
