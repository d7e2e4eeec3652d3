"""Tests of the form of every study: its config refuses values out of bounds, its help
texts stand alone, its sources are in the bibliography, and its tests are complete.
"""

import ast
import dataclasses
import importlib.util
import itertools
import re
import typing
from pathlib import Path

import golden
import pytest

from sgfbias.study import study_named
from sgfbias.study.bibliography import bibliography
from sgfbias.study.config import Config, bounds_of, hints
from sgfbias.study.registry import entries, find, names, places

TESTS = Path(__file__).parents[1]
ENTRIES = list(entries().values())
BY_NAME = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
LEANING = re.compile(r"^(Its|Their|Of|The same|Likewise|That of|Those of|Both|As above|And)\b")
FORBIDDEN = ("json", "polyfit", "enable_x64", ".legend(", "judge(")


def files(entry):
    """The source files of a study."""
    path = Path(importlib.util.find_spec(entry.module).origin)
    return sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]


@BY_NAME
def test_every_name_finds_the_study(entry):
    for name in (entry.name, entry.path, entry.path.replace("-", "_")):
        assert find(name) == entry
    assert entry.system in places()


def test_names_are_unique_and_no_system_takes_a_studys():
    assert len(set(names())) == len(names())
    for system in places():
        assert find(system).system == system


@BY_NAME
def test_the_question_is_one_and_the_time_is_known(entry):
    assert entry.question.endswith("?") or "?" in entry.question, entry.question
    assert entry.seconds is None or entry.seconds > 0


@BY_NAME
def test_the_config_is_a_frozen_dataclass_of_the_studies(entry):
    config = study_named(entry.name).Config
    assert issubclass(config, Config)
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert config.__doc__


@BY_NAME
def test_bounds_refuse_and_name_the_field(entry):
    config = study_named(entry.name).Config()
    seen = 0
    for name, hint in hints(type(config)).items():
        for bound in bounds_of(hint):
            value, outside = getattr(config, name), bound.outside()
            whole = int in _numbers(hint)
            bad = int(outside) if whole else outside
            bad = (bad, *value[1:]) if isinstance(value, tuple) else bad
            if isinstance(value, tuple) and value and isinstance(value[0], tuple):
                bad = ((bad[0], *value[0][1:]), *value[1:])
            with pytest.raises(ValueError, match=name):
                dataclasses.replace(config, **{name: bad})
            seen += 1
    assert seen >= 3


def _numbers(hint):
    """The number types in a field's type."""
    return (
        {hint}
        if hint in (int, float)
        else {kind for part in typing.get_args(hint) for kind in _numbers(part)}
    )


@BY_NAME
def test_the_published_size_is_sound(entry):
    study = study_named(entry.name)
    if study.has_paper:
        assert isinstance(study.paper, study.Config)


@BY_NAME
def test_its_sources_exist_and_each_says_what_it_is_cited_for(entry):
    references = study_named(entry.name).references
    assert references
    assert set(references) <= set(bibliography())
    assert all(references.values())


@BY_NAME
def test_help_texts_stand_alone(entry):
    """Every field has a help text of whole sentences that does not lean on others."""
    config = study_named(entry.name).Config
    for kind in config.__mro__:
        if not dataclasses.is_dataclass(kind) or kind is Config:
            continue
        tree = ast.parse(Path(importlib.util.find_spec(kind.__module__).origin).read_text())
        body = next(
            node.body
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__
        )
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign):
                words = (
                    ast.literal_eval(text.value)
                    if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                    else ""
                )
                assert words, (kind, field.target.id)
                assert words[0] == words[0].upper(), (field.target.id, words)
                assert words.rstrip().endswith((".", "?")), (field.target.id, words)
                assert not LEANING.match(words), (field.target.id, words)


@BY_NAME
def test_the_machinery_is_used(entry):
    """A study does not repeat what `sgfbias.study` does for all studies."""
    for path in files(entry):
        text = path.read_text()
        assert [word for word in FORBIDDEN if word in text] == [], path
        literals = [
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and node.value == entry.name
        ]
        # A name that is a plain word, such as "momentum", may also name a quantity.
        once = len(literals) <= (entry.printed is not None)
        assert once or entry.name.isalpha(), path
        assert text.count("\n") <= 500, path


@BY_NAME
def test_it_has_a_study_case(entry):
    """A subclass of `StudyCase` in the tests of the study's system checks that every
    claim that must hold can fail.
    """
    if entry.system not in {path.name for path in TESTS.iterdir()}:
        pytest.skip("a study of another package")
    found = [
        path
        for path in (TESTS / entry.system).glob("test_*.py")
        if re.search(rf'^    study = "{re.escape(entry.name)}"$', path.read_text(), re.M)
    ]
    assert len(found) == 1
    assert "mutations = " in found[0].read_text()
    assert entry.name in golden.STUDIES


def test_no_two_test_files_have_one_name():
    """pytest imports a file by its name alone and would not collect a second one."""
    files = sorted(TESTS.glob("*/test_*.py"))
    named = {file.name: [] for file in files}
    for file in files:
        named[file.name].append(str(file.relative_to(TESTS)))
    assert len(files) > 20
    assert [same for same in named.values() if len(same) > 1] == []
