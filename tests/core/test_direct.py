"""What a repeated run finds again: methods without wrappers, and kept grids."""

import types

import numpy as np

import sgfbias as sgf
from sgfbias.core.direct import direct
from sgfbias.core.grid import MOST_KEPT, cut, step_grid


def test_a_direct_method_is_the_method_that_python_binds():
    flow = sgf.StochasticGradientFlow(0.1)
    method = direct(flow).brownian_steps
    assert isinstance(method, types.MethodType)
    assert method.__self__ is flow
    assert method(7) == flow.brownian_steps(7) == 7


def test_kept_grids_cannot_be_written_to_and_depend_on_every_argument():
    grid = step_grid(5, 100, None, np.float32)
    np.testing.assert_array_equal(grid, step_grid(5, 100, None, np.float32))
    assert not grid.flags.writeable
    whole, halves = cut(grid, 100, 100, False), cut(grid, 100, 50, False)
    assert whole.start.shape[0] == 1
    assert halves.start.shape[0] == 2
    # Recorded steps are looked at, and the quarter of the run only if it is one.
    assert set(whole.ends[whole.check[0, : len(whole.ends)]]) == set(grid)
    every = cut(np.array([0, 100]), 100, 100, False)
    assert set(every.ends[every.check[0, : len(every.ends)]]) == {0, 100}


def test_large_grids_are_not_kept():
    many = MOST_KEPT + 1
    first, second = (step_grid(many, 10 * many, None, np.float32) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first is not second
