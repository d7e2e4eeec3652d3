"""A fingerprint changes if, and only if, something changes that the code reads."""

import enum
import fractions
import functools
import pathlib
import subprocess
import sys
import threading
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import sgfbias as sgf
from sgfbias.core.fingerprint import fingerprint

HELPER = """
SCALE = {scale}
UNUSED = {unused_global}
TABLE = [1, {table}]
class Base:
    factor = {class_attribute}
    ignored = {unused_class_attribute}
    def boost(self, x):
        return x * {method}
    def never(self, x):
        return x * {unused_method}
    @property
    def width(self):
        return {property}
    @staticmethod
    def shift(x):
        return x + {static}
def apply(x):
    return inner(x) + SCALE
def inner(x):
    return x * {inner}
def aside(x):
    return x + {unused_function}
"""
MAIN = '''
"""{module_docstring}"""
import functools
import numpy as np
import helper_of_test
from helper_of_test import Base, apply
RATE = {rate}
OTHER = {other}
DATA = np.array([1.0, {array}])
PLACES = {{"a": ({mapping}, None)}}
CHOSEN = frozenset(["b", "{set}"])
class Own(Base):
    def __init__(self, gain):
        self.gain = gain
        self.note = {unused_attribute}
    def __call__(self, x):
        """{docstring}"""
        return self.shift(self.boost(x)) * self.gain * self.factor * self.width
def make(k):
    def closed(x):
        return x * k
    return closed
CLOSED = make({closure})
OBJECT = Own({attribute})
PART = functools.partial(apply, {partial})
def experiment(keys, *, a={default}):
    """{docstring}"""
    {local} = apply(a) * RATE  # {comment}
    import imported_by_test
    return (OBJECT({local}) + CLOSED(a) + DATA.sum() + PLACES["a"][0] + helper_of_test.TABLE[1]
            + len(CHOSEN) + PART() + imported_by_test.VALUE + {literal})
'''
IMPORTED = "VALUE = {imported}\nUNREAD = {unread}\n"
READ = [
    "array",
    "attribute",
    "class_attribute",
    "closure",
    "default",
    "imported",
    "inner",
    "literal",
    "mapping",
    "method",
    "partial",
    "property",
    "rate",
    "scale",
    "set",
    "static",
    "table",
]
UNREAD = {
    "comment": "another comment",
    "docstring": "Another docstring.",
    "local": "renamed",
    "module_docstring": "Another module.",
    **dict.fromkeys(
        [
            "other",
            "unread",
            "unused_attribute",
            "unused_class_attribute",
            "unused_function",
            "unused_global",
            "unused_method",
        ],
        "7.5",
    ),
}


def experiment(**edits):
    """The experiment of these sources, imported afresh."""
    words = dict.fromkeys(READ, "2.5") | dict.fromkeys(UNREAD, "3.5") | {"local": "x"} | edits
    sources = {"imported_by_test": IMPORTED, "helper_of_test": HELPER, "main_of_test": MAIN}
    for name, source in sources.items():
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(source.format(**words), f"<{name}>", "exec"), vars(module))
    return sys.modules["main_of_test"].experiment


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    yield
    for name in ("imported_by_test", "helper_of_test", "main_of_test"):
        sys.modules.pop(name, None)


ORIGINAL = None


def original():
    global ORIGINAL
    if ORIGINAL is None:
        function = experiment()
        function(None)  # it runs
        ORIGINAL = fingerprint(function)
    return ORIGINAL


@pytest.mark.parametrize("edit", READ)
def test_an_edit_of_what_is_read_is_noticed(edit):
    assert fingerprint(experiment(**{edit: "9.25"})) != original()


@pytest.mark.parametrize("edit", UNREAD)
def test_an_edit_of_what_is_not_read_is_not(edit):
    assert fingerprint(experiment(**{edit: UNREAD[edit]})) == original()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from([*READ, *UNREAD])), st.floats(4, 100, allow_nan=False))
def test_random_edits_are_noticed_if_any_is_read(edits, value):
    changed = {edit: UNREAD.get(edit, repr(value)) for edit in edits}
    noticed = fingerprint(experiment(**changed)) != original()
    assert noticed == bool(edits & set(READ))


def test_running_changes_nothing():
    function = experiment()
    before = fingerprint(function)
    function(None)
    assert fingerprint(function) == before


def test_it_is_the_same_in_another_process(tmp_path):
    words = dict.fromkeys(READ, "2.5") | dict.fromkeys(UNREAD, "3.5") | {"local": "x"}
    for name, source in (
        ("imported_by_test", IMPORTED),
        ("helper_of_test", HELPER),
        ("main_of_test", MAIN),
    ):
        (tmp_path / f"{name}.py").write_text(source.format(**words))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import main_of_test\n"
        "from sgfbias.core.fingerprint import fingerprint\n"
        "print(fingerprint(main_of_test.experiment))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.strip() == original()


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Loss(sgf.AbstractLoss):
    weight: float = 1.0

    def __call__(self, outputs, targets):
        return self.weight * (outputs - targets) ** 2


def frame(last):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"a": [1, last], "b": ["x", "y"]})


VALUES = {
    "numbers": lambda v: v,
    "int and float": lambda v: v if v == 1 else 1.0,
    "bool and int": lambda v: v if v == 1 else True,
    "nested": lambda v: {"a": [1, (2, {v})]},
    "order of a list": lambda v: [v, 1, 2],
    "path": lambda v: pathlib.Path(f"folder{v}"),
    "fraction": lambda v: fractions.Fraction(1, v + 1),
    "enum": lambda v: Colour(v),
    "array": lambda v: np.array([1.0, v]),
    "dtype": lambda v: np.ones(2, f"f{4 * v}"),
    "shape": lambda v: np.ones((v, 2 // v)),
    "objects": lambda v: np.array([1, "a", v], dtype=object),
    "masked": lambda v: np.ma.masked_equal([1, 2, 3], v),
    "JAX array": lambda v: jnp.array([1.0, v]),
    "typed key": lambda v: jax.random.key(v),
    "generator": lambda v: np.random.default_rng(v),
    "DataFrame": frame,
    "Dataset": lambda v: xr.Dataset({"a": ("n", [1.0, v])}, attrs={"unit": "m"}),
    "DataArray": lambda v: xr.DataArray([1.0, 2.0], dims="n", coords={"n": [0, v]}),
    "model": lambda v: eqx.nn.MLP(2, 1, 2, 1, key=jax.random.key(v)),
    "problem": lambda v: sgf.Problem(np.ones((3, 2)), np.array([0.0, 1.0, v])),
    "loss": lambda v: Loss(float(v)),
    "flow": lambda v: sgf.StochasticGradientFlow(0.1 * v, sgf.MinibatchNoise(2)),
    "optimiser": lambda v: optax.adam(0.1 * v),
    "optimiser's schedule": lambda v: optax.sgd(optax.cosine_decay_schedule(0.1, 10 * v)),
    "partial": lambda v: functools.partial(np.add, v),
    "lambda": lambda v: lambda keys: keys * v,
    "jitted": lambda v: jax.jit(lambda keys: keys * v),
    "bound method": lambda v: Loss(float(v)).__call__,
    "class": lambda v: type("Made", (), {"__call__": lambda self: v}),
    "slots": lambda v: slotted(v),
}


class Slotted:
    __slots__ = ("value",)

    def __call__(self):
        return self.value


def slotted(value):
    one = Slotted()
    one.value = value
    return one


@pytest.mark.parametrize("kind", VALUES)
def test_data_count_by_their_content(kind):
    make = VALUES[kind]
    assert fingerprint(make(1)) == fingerprint(make(1))
    assert fingerprint(make(1)) != fingerprint(make(2))


def test_order_of_dictionaries_and_sets_does_not_count():
    assert fingerprint({"a": 1, "b": {2}}) == fingerprint({"b": {2}, "a": 1})
    many = [f"word{k}" for k in range(100)]
    assert fingerprint(set(many)) == fingerprint({many[-k] for k in range(100)})


def test_shared_and_equal_parts_are_the_same():
    part = (1, "a")
    assert fingerprint([part, part]) == fingerprint([(1, "a"), (1, "a")])


def test_what_contains_itself_has_a_fingerprint():
    first, second = [1], [2]
    first.append(first)
    second.append(second)
    assert fingerprint(first) != fingerprint(second)

    def again(n):
        return again(n - 1)

    assert fingerprint(again)


def test_an_open_file_is_refused_by_name(tmp_path):
    with open(tmp_path / "data.txt", "w") as data:

        def reads(keys):
            return data

        with pytest.raises(
            ValueError, match=r"the experiment -> reads: data is a _io\.Text.*plain data"
        ):
            fingerprint(reads, "the experiment")


def test_a_lock_is_no_data():
    lock = threading.Lock()

    def reads(keys):
        with lock:
            return keys

    assert fingerprint(reads)


def test_names_that_are_computed_make_everything_count():
    class Holder:
        def __init__(self, value):
            self.value = value

    def reads(holder):
        return lambda name: getattr(holder, name)

    assert fingerprint(reads(Holder(1))) != fingerprint(reads(Holder(2)))


def test_what_a_library_calls_counts():
    """`derivative` is not named in the user's code, but the loss's base class has
    it.
    """

    def made(factor):
        class Mine(sgf.AbstractLoss):
            def __call__(self, outputs, targets):
                return outputs

            def derivative(self, outputs, targets):
                return factor * outputs

        return Mine()

    assert fingerprint(made(1.0)) != fingerprint(made(2.0))
