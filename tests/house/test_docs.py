"""Tests of the pages in docs/: the table of combinations agrees with what `simulate`
accepts, and everything that a page includes or documents exists.
"""

import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path

import diffrax as dfx
import jax.numpy as jnp
import pytest

import sgfbias as sgf
from sgfbias.study import study_named
from sgfbias.study.registry import names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def combinations():
    return load("combinations")


def rows(page, corner):
    """The table whose first heading is `corner`, as `{row: {column: cell}}`."""
    lines = iter(page.splitlines())
    heading = next(line for line in lines if line.startswith(f"| {corner} |"))
    columns = [cell.strip() for cell in heading.strip("|").split("|")][1:]
    next(lines)
    found = {}
    for line in lines:
        if not line.startswith("|"):
            return found
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[name] = dict(zip(columns, cells, strict=True))


@pytest.mark.slow
def test_the_table_has_every_noise_model_and_the_rows_say_what_simulate_does(combinations):
    """One row of each kind is tested with all solvers, and isotropic noise in all
    places with one solver. The slow test below tests the whole table.
    """
    page = combinations.PAGE.read_text()
    table, where = rows(page, "noise"), combinations.places()
    assert list(table) == list(combinations.NOISES)
    known = {type(noise).__name__ for noise in combinations.NOISES.values()}
    exported = {
        name
        for name in dir(sgf)
        if isinstance(getattr(sgf, name), type)
        and issubclass(getattr(sgf, name), sgf.AbstractNoise)
    }
    assert exported - {"AbstractNoise"} <= known
    for noise, place in (
        ("`NoNoise()`", "diagonal, `mirror`"),
        ("`LabelNoise(schedule)`", "depth p >= 3, `mirror`"),
        ("`MeanLossNoise()`", "diagonal, `log`"),
    ):
        cell = combinations.cell(combinations.NOISES[noise], where[place], combinations.Notes())
        assert re.sub("<.*", "", cell) == re.sub("<.*", "", table[noise][place])
    flow = sgf.StochasticGradientFlow(0.1, sgf.IsotropicNoise(0.1))
    for place, cell in table["`IsotropicNoise(sigma)`"].items():
        assert bool(combinations.refusal(flow, where[place])) == cell.startswith("none"), place
    for name, cells in rows(page, "dynamics").items():
        refused = combinations.refusal(combinations.OTHERS[name], where["diagonal, `log`"])
        assert cells["diagonal, `log`"].startswith("no" if refused else "yes"), name


@pytest.mark.release
def test_the_page_of_combinations_is_up_to_date(combinations):
    assert combinations.PAGE.read_text() == combinations.page(), "run python docs/combinations.py"


@pytest.mark.slow
def test_without_noise_a_stratonovich_solver_is_that_of_the_gradient_flow():
    problem = sgf.SparseRegression(jnp.eye(2, 3, dtype=jnp.float64), jnp.ones(2, jnp.float64))
    network = sgf.DiagonalNetwork.init(alpha=0.1, d=3, dtype=jnp.float64)
    still = sgf.StochasticGradientFlow(0.1, sgf.NoNoise())
    options = {"steps": 4, "record": sgf.Record(times=2)}
    noisy = sgf.simulate(
        still, network, problem, keys=sgf.seeds(0, 1), solver=dfx.Heun(), **options
    )
    plain = sgf.simulate(sgf.GradientFlow(dt=0.1), network, problem, solver=dfx.Heun(), **options)
    assert abs(float(noisy.final["loss"][0] - plain.final["loss"])) < 1e-14
    with pytest.raises(ValueError, match="ItoMilstein needs noise, and there is none"):
        sgf.simulate(
            still, network, problem, keys=sgf.seeds(0, 1), solver=dfx.ItoMilstein(), **options
        )


def test_what_pages_include_and_document_exists():
    hooks = load("hooks")
    for page in PAGES:
        text = page.read_text()
        for kind, what in hooks.INCLUDE.findall(text):
            assert kind == "file" or hooks.included(kind, what, 1), (page.name, what)
        for name in re.findall(r"^::: sgfbias\.(\S+)", text, re.MULTILINE):
            found = sgf
            for part in name.split("."):
                found = getattr(found, part, None) or importlib.import_module(
                    f"{found.__name__}.{part}"
                )
            assert found.__doc__, (page.name, name)
    with pytest.raises(ValueError, match=r"README.md has no section 'Spam'"):
        hooks.included("readme", "Spam", 0)


def test_every_public_name_is_in_the_reference():
    documented = set(
        re.findall(
            r"^::: sgfbias\.(\w+)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE
        )
    )
    public = set(
        re.findall(r" as (\w+)$", (ROOT / "sgfbias" / "__init__.py").read_text(), re.MULTILINE)
    )
    assert public <= documented


def test_links_of_an_included_section_are_seen_from_its_page():
    hooks = load("hooks")
    text = (
        "[a](benchmarks/results/x.json) [b](#here) [c](https://a.b/c) "
        "[d](benchmarks/results/) ![e](notebooks/e.png) [f](docs/g/h.md) [k](no.md)"
    )
    assert hooks.relinked(text, 1, ".") == (
        "[a](../benchmarks/results/x.json) [b](#here) [c](https://a.b/c) [d](../benchmarks.md) "
        "![e](../notebooks/e.png) [f](../g/h.md) k"
    )
    assert (
        hooks.relinked("[a](results/x.json)", 0, "benchmarks") == "[a](benchmarks/results/x.json)"
    )
    assert hooks.sections("# T\nhead\n\n## A\nb\n\n### sub\n\n## C\n")["A"] == "b\n\n### sub"


def test_each_term_of_the_glossary_is_a_section_that_the_search_finds_by_itself():
    hooks = load("hooks")
    table = (
        "<table>\n<thead>\n<tr>\n<th>term</th>\n<th>meaning</th>\n</tr>\n</thead>\n<tbody>\n"
        "<tr>\n<td>row space</td>\n<td>the span of <code>X</code></td>\n</tr>\n"
        "<tr>\n<td>fibre (of X)</td>\n<td>all solutions</td>\n</tr>\n</tbody>\n</table>"
    )
    page = hooks.terms(f"<p>before</p>{table}<p>after</p>")
    assert re.findall(r'<h3 id="(.*?)">(.*?)<a .*?</h3><p>(.*?)</p>', page) == [
        ("row-space", "row space", "the span of <code>X</code>"),
        ("fibre-of-x", "fibre (of X)", "all solutions"),
    ]
    assert "<table" not in page
    assert page.startswith("<p>before</p>")
    assert page.endswith("<p>after</p>")
    # The sections of one page need places of their own.
    rows = re.findall(r"^\| (.+?) \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    places = [re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-") for row in rows]
    kept = [place for place in places if place not in {"", "symbol", "term", "status"}]
    assert len(kept) == len(set(kept)) > 40


@pytest.mark.parametrize("name", ["studies", "robustness"])
def test_the_page_is_what_the_stored_results_say(name):
    """So no number on it outlives the results that it was written from."""
    module = load(name)
    assert module.PAGE.read_text() == module.page()


STORED = sorted((DOCS / "robustness").glob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_counts_are_of_the_present_quick_size_and_say_that_claims_hold(path):
    if path.stem not in names():
        pytest.skip(f"there is no study {path.stem} any more; remove {path.name}")
    stored, study = json.loads(path.read_text()), study_named(path.stem)
    fields = {field.name for field in dataclasses.fields(study.Config)} - {"root_seed"}
    assert stored["config"] == {
        field: json.loads(json.dumps(getattr(study.quick, field), default=str)) for field in fields
    }
    assert len(stored["roots"]) >= 20
    assert stored["robust"]
