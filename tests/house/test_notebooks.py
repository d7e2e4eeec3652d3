"""Tests of the notebooks: every script runs with warnings as errors, and the .ipynb
file beside it has the same cells and no output that depends on the machine.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")

FOLDER = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
NAMES = [script.stem for script in SCRIPTS]
# The warnings that are errors. A deprecation is an error only if the script itself
# causes it, because importing one dependency may use deprecated parts of another.
ERRORS = (
    "error::UserWarning",
    "error::RuntimeWarning",
    "error::FutureWarning",
    "error::DeprecationWarning:__main__",
)


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook):
    """The cells of a notebook without their outputs: type, source and tags."""
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def test_the_notebooks_are_numbered_and_each_has_its_pair():
    assert len(NAMES) >= 7
    assert [name[:2] for name in NAMES] == [f"{k:02}" for k in range(1, len(NAMES) + 1)]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_pair_is_up_to_date_and_holds_for_any_machine(script, build):
    stored = nbformat.read(script.with_suffix(".ipynb"), 4)
    nbformat.validate(stored)
    stale = (
        f"notebooks/{script.stem}.ipynb does not match notebooks/{script.name}; run `make "
        f"notebooks`, or python notebooks/build.py {script.stem}"
    )
    assert cells(stored) == cells(build.parse(script)), stale
    assert build.faults(stored) == []
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), stale
    for cell in code:
        machine = "machine" in cell.metadata.get("tags", [])
        assert not (machine and cell.outputs), "the output of a cell tagged `machine` is stored"
        assert (
            machine or cell.outputs or not ("print(" in cell.source or "plt.show()" in cell.source)
        ), f"no output, {stale}"
    # A reader must see that results are checked against theory.
    assert build.printed(stored).count("predicted") + build.printed(stored).count("theory") >= 2


def test_what_must_not_be_stored_is_found(build):
    """Errors, warnings, paths and notebooks without a picture are each refused."""
    from nbformat import v4

    def of(*outputs):
        return build.faults(v4.new_notebook(cells=[v4.new_code_cell("x", outputs=list(outputs))]))

    picture = v4.new_output("display_data", {"image/png": "/tmp/iVBO"})
    assert (
        of(
            picture,
            v4.new_output("stream", name="stdout", text="3/4 of a/tmp/b, https://arxiv.org/home/x"),
        )
        == []
    )
    assert of() == ["there is no picture"]
    assert (
        "raised ValueError"
        in of(picture, v4.new_output("error", ename="ValueError", evalue="no"))[0]
    )
    assert "stderr" in of(picture, v4.new_output("stream", name="stderr", text="a warning"))[0]
    assert (
        "path of this machine"
        in of(picture, v4.new_output("stream", name="stdout", text="in /home/me/runs.zarr"))[0]
    )
    assert (
        "path of this machine"
        in of(picture, v4.new_output("execute_result", {"text/plain": "'/tmp/x'"}))[0]
    )
    assert "more than" in of(v4.new_output("display_data", {"image/png": "x" * build.MOST}))[0]


@pytest.mark.slow(cases=4)
@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_script_runs(script, tmp_path):
    """The script is run as a reader would run it: in its own process without the tests'
    settings, and from another folder. Warnings are errors.
    """
    ours = {"JAX_ENABLE_X64", "JAX_NUMPY_DTYPE_PROMOTION", "XLA_FLAGS"}
    environment = {key: value for key, value in os.environ.items() if key not in ours} | {
        "MPLBACKEND": "Agg"
    }
    command = [sys.executable, *(f"-W{rule}" for rule in ERRORS), str(script)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # The script has removed all files that it wrote.
    assert list(tmp_path.iterdir()) == []
