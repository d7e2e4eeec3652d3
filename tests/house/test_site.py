"""Tests of the site: what its pages are made of, and the built site as a reader opens
it from a disk.
"""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sgfbias
from sgfbias.study import report
from sgfbias.study.bibliography import bibliography
from sgfbias.study.claim import Claim
from sgfbias.study.registry import find, names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python", "latex2mathml")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LONGEST = 180  # seconds for a page, or for all pages one after another
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery, theorems, notebook_pages = map(load, ("gallery", "theorems", "notebook_pages"))
MAPS = theorems.maps()


@pytest.mark.parametrize("system", MAPS)
def test_every_function_of_a_map_can_be_imported_and_every_paper_and_study_exists(system):
    text = MAPS[system]
    functions, papers = theorems.FUNCTION.findall(text), theorems.PAPER.findall(text)
    assert functions
    assert papers
    for name in functions:
        found = sgfbias
        for part in name.split(".")[1:]:
            inside = getattr(found, part, None)
            found = inside or importlib.import_module(f"{found.__name__}.{part}")
        assert found.__doc__, name
    assert set(papers) <= set(bibliography())
    for _, study in gallery.LINK.findall(text):
        assert find(study).name == study
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, f"not four cells: {row}"


def test_a_map_names_the_papers_and_a_page_documents_what_no_other_does():
    assert theorems.named("[@pesme2021], theorem 1") == (
        "[Pesme, Pillaud-Vivien, Flammarion 2021](https://arxiv.org/abs/2106.09524), theorem 1"
    )
    with pytest.raises(ValueError, match="no references.bib has an entry 'nobody1900'"):
        theorems.named("[@nobody1900]")
    page = theorems.reference("## Name\n[`a`][sgfbias.select] [`b`][sgfbias.nowhere.b]")
    assert "# Name: theory" in page
    assert "::: sgfbias.nowhere.b" in page
    assert "::: sgfbias.select" not in page
    assert theorems.reference("## Name\n[`a`][sgfbias.select]") == ""


def test_the_answers_of_the_gallery_rest_on_stored_claims_that_hold():
    told = gallery.stored()
    for name, answer in gallery.answers().items():
        assert answer["rests_on"], name
        assert not told[name].claims or not gallery.unsupported(answer, told[name].claims), name


def test_the_questions_and_other_settings_that_are_stored_are_those_of_the_studies():
    studies = load("studies")
    for name in set(gallery.stored()) & set(names()):
        assert gallery.stored()[name].question == find(name).question, "run python docs/studies.py"
        if (path := studies.RESULTS / f"{name}.json").exists():
            report = json.loads(path.read_text())
            assert report["changed"] == studies.changed(report), "run python docs/studies.py"


def test_an_answer_is_left_out_when_a_claim_on_which_it_rests_fails():
    def card(verdict):
        claim = {"statement": "It falls as x_1", "verdict": verdict, "control": True}
        told = gallery.Told("Does it fall?", [claim], draws=0, picture=True)
        return gallery._card("a.b", told, {"answer": "Yes.", "rests_on": ["It falls"]})

    good, bad = card("holds"), card("fails")
    assert "**Yes.**" in good
    assert "1 of 1 claims hold at the default size; negative controls among them: 1." in good
    assert "![The picture of the study a.b](results/a.b.png)" in good
    assert "(studies.md#ab)" in good
    assert "Yes." not in bad
    assert r"0 of 1 claims hold at the default size; not so: “It falls as x\_1”." in bad
    assert r"; not applicable: “It falls as x\_1”." in card("not applicable")
    # One failure in twenty draws is allowed, two are not, and a claim has to hold once.
    counts = {"nan": 0, "missing": 0, "not applicable": 0}
    assert gallery.holds(counts | {"holds": 19, "fails": 1})
    assert not gallery.holds(counts | {"holds": 18, "fails": 2})
    assert not gallery.holds(counts | {"holds": 0, "fails": 0})
    assert gallery.unsupported({"rests_on": ["not said"]}, []) == ["not said"]


def test_the_page_of_a_notebook_has_its_text_code_and_pictures(tmp_path):
    for path in notebook_pages.stored():
        text, pictures = notebook_pages.page(path)
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert len(pictures) == sum("image/png" in out.get("data", {}) for out in outputs) > 0
        assert all(data.startswith(b"\x89PNG") for data in pictures.values())
        assert all(f"]({name})" in text for name in pictures)
        assert all("".join(c["source"]) in text for c in cells if c["cell_type"] == "code")
    odd = tmp_path / "odd.ipynb"

    def page(*outputs):
        cell = {"cell_type": "code", "source": "x", "outputs": outputs}
        odd.write_text(json.dumps({"cells": [cell]}))
        return notebook_pages.page(odd)[0]

    text = page({"output_type": "stream", "text": ["\x1b[1mbold\x1b[0m\n```\n"]})
    assert "````{ .text .output}\nbold\n```\n````" in text
    with pytest.raises(ValueError, match=r"odd.ipynb has an output of type display_data"):
        page({"output_type": "display_data", "data": {"video/mp4": ""}})


class Page(HTMLParser):
    """The places, links, pictures and other files that a page names."""

    def __init__(self, path):
        super().__init__()
        self.places, self.links, self.files, self.unnamed = {""}, [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe") and "src" in given:
            self.files.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.files.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.unnamed.append(given.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [name for name in NEEDED if not installed(name)]
    if missing:
        pytest.skip(f"pip install '.[docs]' first: {', '.join(missing)} cannot be imported")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def in_browser(address, milliseconds=10_000):
    """The page at an address as Chromium shows it, after its scripts have run."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed, so no page can be opened in it")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    command = [CHROMIUM, *options, f"--virtual-time-budget={milliseconds}", "--dump-dom", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        pytest.fail(f"Chromium had not loaded {address} after {LONGEST} seconds")
    assert done.returncode == 0, done.stderr
    return done.stdout


# A page for servers, which name it by its address from the root: not part of the site
# on a disk.
ELSEWHERE = {"404.html"}


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_comes_from_the_network(site):
    pages = {
        path: Page(path) for path in sorted(site.rglob("*.html")) if path.name not in ELSEWHERE
    }
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        here = path.relative_to(site)
        broken += [f"{here}: no alt text of {source}" for source in page.unnamed]
        for address in (*page.links, *page.files):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.files and parts.scheme != "data":
                    broken.append(f"{here}: {address} is loaded from the network")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{here}: there is no {address}")
            elif target in pages and unquote(parts.fragment) not in pages[target].places:
                broken.append(f"{here}: there is no place {address}")
    assert not broken, "\n".join(broken)


@pytest.mark.slow
def test_formulas_are_written_as_mathml_without_commands_that_are_not_known(site):
    number = 0
    for path in site.rglob("*.html"):
        for formula in re.findall(r"<math.*?</math>", path.read_text(), re.DOTALL):
            number += 1
            assert "\\" not in formula, (path.name, re.sub("<[^>]+>", "", formula))
    assert number > 200
    assert "$" not in re.sub(r"<[^>]*>", "", (site / "glossary.html").read_text()).split("Terms")[1]


@pytest.mark.slow
def test_search_finds_pages_of_a_site_on_a_disk(site):
    shown = in_browser(f"{(site / 'index.html').as_uri()}?q=landing")
    assert re.search(r'class="md-search" (?![^>]*hidden)', shown)
    assert int(re.search(r"(\d+) matching documents", shown)[1]) >= 3
    found = re.findall(r'href="(file:[^"]+)" class="md-search-result__link"', shown)
    assert found
    assert {Path(unquote(urlsplit(one).path)).is_file() for one in found} == {True}


@pytest.mark.slow
def test_search_finds_a_term_of_the_glossary_with_its_explanation(site):
    index = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    found = {entry["location"]: entry for entry in index}
    assert found["glossary.html#fibre"]["title"] == "fibre"
    assert "all β with the same predictions" in found["glossary.html#fibre"]["text"]
    assert len(found["glossary.html#terms"]["text"]) < 100
    # A fraction or a power is left out: its letters alone would be another number.
    assert "14n" not in found["glossary.html#l"]["text"]
    assert found["glossary.html#gamma"]["title"] == "γ"
    shown = in_browser(f"{(site / 'index.html').as_uri()}?q=fibre")
    assert "glossary.html" in shown
    assert "all β with the same predictions" in re.sub(r"<[^>]+>", "", shown)


LOOK = """<!doctype html><body></body><script>
(async () => {
  const found = [];
  const soon = (start) => new Promise((done) => (start(done), setTimeout(done, 20_000)));
  for (const width of [1280, 420]) for (const page of PAGES) {
    const frame = document.createElement("iframe");
    Object.assign(frame, { width, height: 900, src: page });
    await soon((done) => ((frame.onload = done), document.body.append(frame)));
    const inside = frame.contentDocument;
    for (const image of inside.images) {
      image.loading = "eager";
      if (!image.complete) await soon((done) => (image.onload = image.onerror = done));
      if (!image.naturalWidth) found.push(`${page}: broken picture ${image.src}`);
    }
    if (inside.documentElement.scrollWidth > width) found.push(`${page}: wider than ${width}`);
    for (const code of inside.querySelectorAll("pre > code"))
      if (width === 1280 && code.scrollWidth > code.clientWidth)
        found.push(`${page}: code scrolls: ${code.textContent.slice(0, 60)}`);
    frame.remove();
  }
  document.body.textContent = "LOOKED" + found.map((line) => "\\n" + line).join("") + "\\nEND";
})();
</script>"""


@pytest.mark.slow
def test_on_wide_and_narrow_pages_pictures_show_and_nothing_sticks_out(site):
    """Lines of code fit a page of 1280 pixels, so that nobody scrolls for them."""
    pages = [path.as_uri() for path in sorted(site.rglob("*.html")) if path.name not in ELSEWHERE]
    (site / "look.html").write_text(LOOK.replace("PAGES", json.dumps(pages)))
    shown = in_browser((site / "look.html").as_uri(), milliseconds=600_000)
    (site / "look.html").unlink()
    assert (report := re.search("LOOKED(.*)\nEND", shown, re.DOTALL)), shown[-500:]
    assert report[1] == "", report[1]


NARROW = """<!doctype html><body></body><script>
const frame = document.createElement("iframe");
Object.assign(frame, { width: 420, height: 900, src: "index.html" });
frame.onload = () => {
  const inside = frame.contentDocument;
  const cells = [...inside.querySelectorAll("td")].map((cell) => cell.clientWidth);
  const page = inside.documentElement.scrollWidth;
  document.body.textContent = `LOOKED ${page} ${Math.min(...cells)} ${cells.length} END`;
};
document.body.append(frame);
</script>"""


@pytest.mark.slow
def test_the_report_of_studies_breaks_no_words_on_a_narrow_page(tmp_path):
    """Each cell has the width of the page, so that words of usual length fit."""
    texts = ["the initialisation of " * 5, "theorem 1", "as predicted", "distance 1e-3", "1e-2"]
    claim = Claim(*texts, verdict="holds", must_hold=True)
    name = names()[0]
    stored = {"config": {"numbers": list(range(100))}, "provenance": {"seconds": 3}}
    page = report.render([report.Entry(name, find(name).question, stored, [claim], "")])
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "look.html").write_text(NARROW)
    shown = in_browser((tmp_path / "look.html").as_uri())
    width, narrowest, number = map(int, re.search(r"LOOKED (\d+) (\d+) (\d+) END", shown).groups())
    assert number >= 10
    assert width <= 420
    assert narrowest > 300
