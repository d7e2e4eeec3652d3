"""Tests of `cite`: it cites what a run used and nothing else, all keys exist, and every
paper that the package names is in the bibliography.
"""

import dataclasses
import re
import tomllib
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import network, small_problem

import sgfbias as sgf
from sgfbias import cli
from sgfbias.core.references import SOFTWARE, SOLVERS
from sgfbias.diagonal.theory.certificate import Selection
from sgfbias.study import store
from sgfbias.study.citing import bibliography, bibtex
from sgfbias.study.frame import study_named
from sgfbias.study.registry import names

PACKAGE = Path(sgf.__file__).parent
# Matches citations such as "Pesme, Flammarion 2023" and "Woodworth et al. 2020".
NAMED = re.compile(r"\b((?:[A-Z][\w-]*, )*[A-Z][\w-]*)( et al\.)? ((?:19|20)\d\d)\b")


def keys(text):
    return set(re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE))


def test_entries_are_whole():
    for key, entry in bibliography().items():
        assert entry.count("{") == entry.count("}"), key
        depth = 0
        for mark in re.findall(r"[{}]", entry):
            depth += 1 if mark == "{" else -1
            assert depth >= 0, key
        for field in ("author", "title") if key == "sgfbias" else ("author", "title", "year"):
            assert re.search(rf"^  {field} = \{{.+\}},$", entry, re.MULTILINE), (key, field)
    assert len(bibliography()) == sum(
        path.read_text().count("\n@") for path in PACKAGE.rglob("references.bib")
    )
    version = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["version"]
    assert f"version = {{{version}}}" in bibliography()["sgfbias"]


def papers():
    """A mapping (surnames, year) -> key of all entries with a year."""
    found = {}
    for key, entry in bibliography().items():
        year = re.search(r"year = \{(\d+)\}", entry)
        authors = re.search(r"author = \{(.*)\},", entry)[1].split(" and ")
        if year:
            found[tuple(author.split(",")[0] for author in authors), year[1]] = key
    return found


def named_in(path):
    """Keys of the papers that a file names by authors and year. A paper that the
    bibliography lacks is given as it is written in the file.
    """
    known = papers()
    text = " ".join(path.read_text().split())
    for authors_named, others, year in NAMED.findall(text):
        surnames = tuple(authors_named.split(", "))
        if others:
            fits = [
                key
                for (authors, when), key in known.items()
                if authors[0] == surnames[-1] and when == year
            ]
        else:  # The first words found may be capitalised words before the names.
            fits = [
                key
                for (authors, when), key in known.items()
                if surnames[-len(authors) :] == authors and when == year
            ]
        yield fits[0] if fits else f"{authors_named}{others} {year}"


def test_every_paper_named_in_the_package_is_in_the_bibliography():
    missing = {
        (path.name, key)
        for path in PACKAGE.rglob("*.py")
        for key in named_in(path)
        if key not in bibliography()
    }
    assert not missing


@pytest.mark.parametrize("name", names())
def test_a_study_cites_the_papers_its_claims_name(name):
    study = study_named(name)
    assert set(study.references) <= set(bibliography())
    file = Path(study.design.__file__)
    files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
    assert {key for path in files for key in named_in(path)} <= set(study.references)
    assert keys(sgf.cite(name)) == set(study.references) | set(SOFTWARE)


def test_every_key_of_a_class_exists():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    used = [*SOLVERS.values(), SOFTWARE]
    used += [
        kind.references
        for kind in below(eqx.Module)
        if kind.__module__.startswith("sgfbias") and hasattr(kind, "references")
    ]
    used = [one for one in used if not isinstance(one, property)]
    assert sum(map(bool, used)) >= 12
    assert {key for one in used for key in one} <= set(bibliography())


@pytest.fixture(scope="module")
def runs():
    return sgf.simulate(
        sgf.StochasticGradientFlow(0.05),
        network(d=6),
        small_problem(n=4, d=6),
        keys=sgf.seeds(0, 1),
        steps=2,
    )


def instead(runs, dynamics=None, model=None, **parts):
    """A copy of a trajectory with other dynamics, network or parts. `cite` reads only
    these, so no other run needs to be compiled.
    """
    parts |= {"dynamics": dynamics or runs.dynamics, "network": model or runs.network}
    if not parts["dynamics"].is_flow or model is not None:
        parts |= {"coordinates": "weights", "solver": "Iteration"}
    return dataclasses.replace(runs, **parts)


def test_a_mirror_flow_cites_its_theory_and_says_for_what(runs):
    text = sgf.cite(runs)
    assert keys(text) == {"pesme2021", "li2017", *SOFTWARE}
    comment = text.split("\n@inproceedings{pesme2021")[0].splitlines()[-1]
    assert comment.startswith("% for ")
    for words in ("mean-loss noise", "mirror coordinates, Lemma 1", "diagonal linear network"):
        assert words in comment
    assert repr(text) == str(text)
    assert isinstance(text, str)
    dataset = runs.to_xarray()
    assert sgf.cite(dataset) == text
    in_weights = instead(runs, coordinates="weights", solver="PredictorCorrector")
    assert "mirror coordinates" not in sgf.cite(in_weights)
    assert "kloeden1992" in keys(sgf.cite(in_weights))


def mlp():
    return eqx.nn.MLP(6, "scalar", 3, 1, key=jax.random.key(0), dtype=jnp.float64)


def test_what_was_not_used_is_not_cited(runs):
    plain = sgf.simulate(sgf.GradientDescent(0.05), mlp(), small_problem(n=4, d=6), steps=2)
    assert keys(sgf.cite(plain)) == set(SOFTWARE)
    assert keys(sgf.cite(instead(runs, sgf.OptaxDescent(optax.adam(1e-3), 1.0), mlp()))) == {
        "optax2020",
        *SOFTWARE,
    }
    assert keys(sgf.cite(instead(runs, sgf.GradientDescent(0.05)))) == {"pesme2021", *SOFTWARE}
    assert keys(sgf.cite(sgf.SVAG(0.05, 2), mlp())) == {"li2021", *SOFTWARE}
    assert "sander2024" not in keys(sgf.cite(sgf.StochasticGradientFlow(0.05)))


PARTS = {
    "sum of noises": (sgf.MinibatchNoise(1) + sgf.IsotropicNoise(0.1), {"pesme2021", "sander2024"}),
    "two-point": (
        sgf.StochasticGradientFlow(0.1, sgf.NoNoise(), increments="two-point"),
        {"li2017", "kloeden1992"},
    ),
    "momentum": (sgf.MomentumFlow(0.1), {"papazov2024"}),
    "product": (sgf.ProductNetwork.init(alpha=0.1, d=3), {"even2023", "pesme2023"}),
    "solver": (sgf.PredictorCorrector(), {"kloeden1992"}),
    "stabilised solver": (sgf.RungeKuttaChebyshev(), {"sommeijer1998"}),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    part, expected = PARTS[name]
    assert keys(sgf.cite(part)) == expected | set(SOFTWARE)


def test_adaptive_solvers_results_and_sweeps(runs):
    by = {
        name: keys(sgf.cite(instead(runs, sgf.GradientFlow(), solver=name)))
        for name in ("Kvaerno5", "Tsit5", "Euler")
    }
    assert by["Kvaerno5"] - by["Euler"] == {"kvaerno2004", "optimistix2024", "lineax2023"}
    assert by["Tsit5"] - by["Euler"] == {"tsitouras2011"}
    assert all(hasattr(dfx, name) for name in SOLVERS)
    number = jnp.zeros(())
    selection = Selection(jnp.zeros(6), jnp.zeros(4), number, number, number, number, number)
    used = {"li2017", "pesme2021", "woodworth2020", "oettli1964"}
    assert keys(sgf.cite(runs, selection)) == {*used, *SOFTWARE}
    swept = runs.to_xarray()
    swept.attrs = {"sweep": '{"experiment": "sgfbias.diagonal.studies.alpha_sweep.cell"}'}
    assert sgf.cite(swept) == sgf.cite("alpha-sweep")


def test_a_sweep_of_a_function_called_as_a_study_is_not_that_studys(runs):
    swept = runs.to_xarray()
    swept.attrs = {"sweep": '{"experiment": "__main__.svag"}'}
    with pytest.raises(ValueError, match="does not say what it used"):
        sgf.cite(swept)
    swept.attrs = {"sweep": '{"experiment": "svag"}'}
    assert sgf.cite(swept) == sgf.cite("svag")


def test_unknown_things_are_refused(runs, capsys):
    with pytest.raises(ValueError, match="no study 'spam'; the studies are"):
        sgf.cite("spam")
    with pytest.raises(ValueError, match="Trajectory, a flow"):
        sgf.cite(3)
    dataset = runs.to_xarray()
    dataset.attrs.pop("references")
    with pytest.raises(ValueError, match="does not say what it used"):
        sgf.cite(dataset)
    with pytest.raises(ValueError, match="no entry 'nobody1900'"):
        bibtex({"nobody1900": "nothing"})
    assert cli.main(["cite", "nowhere"]) == 2
    assert "neither a store nor a study" in capsys.readouterr().err


def test_the_command_line_cites_studies_and_stores(runs, capsys, tmp_path):
    assert cli.main(["cite", "svag"]) == 0
    assert keys(capsys.readouterr().out) == {"li2021", "li2017", "pesme2021", *SOFTWARE}
    store.save(instead(runs, sgf.GradientDescent(0.05)).to_xarray(), tmp_path / "study.zarr")
    assert cli.main(["cite", str(tmp_path / "study.zarr")]) == 0
    assert "pesme2021" in keys(capsys.readouterr().out)
    assert cli.main(["cite", "svag", "noisy-sgd", str(tmp_path / "study.zarr")]) == 0
    told = capsys.readouterr().out
    assert {"li2021", "sander2024", "pesme2021"} <= keys(told)
    assert told.count("{pesme2021,") == 1
    assert cli.main(["cite"]) == 2
    assert "name what to cite" in capsys.readouterr().err
