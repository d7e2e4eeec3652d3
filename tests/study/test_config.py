"""Tests of the configs of studies: bad values are refused at construction, values are
converted if nothing is lost, and a stored config can be read back.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import tyro

import sgfbias as sgf
from sgfbias.study import (
    Above,
    AtLeast,
    Between,
    Config,
    Count,
    Positive,
    PositiveOrAuto,
    SeededConfig,
)
from sgfbias.study.config import from_mapping


@dataclasses.dataclass(frozen=True)
class Example(SeededConfig):
    """Settings."""

    seeds: Annotated[int, AtLeast(8)] = 64
    """Seeds."""
    alpha: Positive = 0.1
    """Scale."""
    step_size: PositiveOrAuto = "auto"
    """Step size."""
    momentum: Annotated[float, Between(0.0, 1.0)] = 0.5
    """Momentum."""
    levels: tuple[Positive, ...] = (1.0, 2.0)
    """Levels."""
    pairs: tuple[tuple[Positive, Count], ...] = ((0.5, 2),)
    """Pairs of a number and a count."""
    kind: Literal["one", "two"] = "one"
    """Kind."""
    data: Path | None = None
    """File."""
    on: bool = False
    """Switch."""
    high: Annotated[float, Above(2.0)] = 3.0
    """A number above 2."""
    time: Positive = 1.0
    """Time."""
    dt: Positive | None = None
    """Width."""
    extra: dict = dataclasses.field(default_factory=dict)
    """A type of its own."""
    n: Count = 4
    """Examples."""
    d: Count = 9
    """Features."""

    def check(self):
        self.check_whole("time", "alpha")
        self.check_above("high", "alpha")
        self.check_choice()


REFUSED = [
    ({"seeds": 7}, "seeds must be at least 8, but is 7"),
    ({"seeds": 8.5}, "seeds must be a whole number, but is 8.5"),
    ({"seeds": True}, "seeds must be a whole number, but is True"),
    ({"seeds": float("inf")}, "seeds must be a whole number"),
    ({"alpha": 0.0}, "alpha must be positive and finite, but is 0"),
    ({"alpha": float("nan")}, "alpha must be positive and finite, but is nan"),
    ({"alpha": "0.1"}, "alpha must be a number, but is '0.1'"),
    ({"step_size": -1.0}, "step_size must be positive and finite, or auto, but is -1"),
    ({"step_size": "best"}, "step_size must be a number or 'auto', but is 'best'"),
    ({"momentum": 1.0}, "momentum must be above 0 and below 1, but is 1"),
    ({"levels": (1.0, -1.0)}, "levels must be positive and finite, but is -1"),
    ({"levels": 1.0}, "levels must be several values, but is 1.0"),
    ({"pairs": ((0.5, 0),)}, "pairs must be at least 1, but is 0"),
    ({"pairs": ((0.5, 1, 2),)}, "pairs must be 2 values"),
    ({"kind": "three"}, "kind must be 'one' or 'two', but is 'three'"),
    ({"on": 1}, "on must be True or False, but is 1"),
    ({"high": 2.0}, "high must be finite and above 2, but is 2"),
    ({"root_seed": -1}, "root_seed must be at least 0, but is -1"),
    ({"time": 0.25}, "time must be a whole number of alpha = 0.1, but is 0.25"),
    ({"time": 0.01}, "time must be a whole number of alpha"),
    ({"alpha": 4.0, "time": 4.0}, "high must be finite and above alpha = 4"),
    ({"dt": -3.0}, "dt must be positive and finite, but is -3"),
    ({"extra": 3}, "extra must be a dict, but is 3"),
    ({"n": 9}, "n must be below d = 9, so that many solutions fit the data, but is 9"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_config_that_makes_no_sense_cannot_exist(change, words):
    with pytest.raises(ValueError, match=words):
        Example(**change)


def test_numbers_become_their_fields_types_where_nothing_is_lost():
    config = Example(
        seeds=9.0, alpha=np.float32(0.5), levels=[1, 2, 3], data="a.npz", n=np.int64(3)
    )
    assert (config.seeds, config.levels, config.data, config.n) == (
        9,
        (1.0, 2.0, 3.0),
        Path("a.npz"),
        3,
    )
    assert [type(v) for v in (config.seeds, config.alpha, config.levels[0], config.n)] == [
        int,
        float,
        float,
        int,
    ]


def test_a_stored_config_comes_back():
    config = Example(levels=(1.0, 4.0), pairs=((0.1, 3), (0.2, 4)), data="b.npz", step_size=0.3)
    stored = json.loads(
        json.dumps({"study": "example", **dataclasses.asdict(config), "gone": 3}, default=str)
    )
    assert from_mapping(Example, stored) == config
    assert from_mapping(Example, {"seeds": 16}) == Example(seeds=16)


@dataclasses.dataclass(frozen=True)
class Plain(Example):
    """The example without the field that no command line can have."""

    extra: int = 0
    """A number."""


def test_a_config_is_a_command_line():
    options = (
        "--seeds 9 --levels 1 2 3 --pairs .1 2 .3 4 --step-size .2 --kind two --on --data c.npz"
    )
    found = tyro.cli(Plain, args=options.split())
    expected = Plain(
        seeds=9,
        levels=(1.0, 2.0, 3.0),
        pairs=((0.1, 2), (0.3, 4)),
        step_size=0.2,
        kind="two",
        on=True,
        data=Path("c.npz"),
    )
    assert found == expected


def test_another_root_is_another_draw_of_the_seeds():
    keys = [Example(root_seed=root).keys(3, 5) for root in (0, 1)]
    assert (keys[0] == sgf.seeds(3, 5)).all()
    assert (keys[1] == sgf.seeds(3, 5, root=1)).all()
    assert not (keys[0] == keys[1]).any()


def test_a_config_without_fields_is_fine():
    assert Config() == Config()
