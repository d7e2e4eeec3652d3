"""Execute the notebooks. Each numbered script in the percent format is run, and an
.ipynb with its outputs is written beside it.

`make notebooks` builds all of them, `python notebooks/build.py 01 03` only those two.
The stored notebooks leave out whatever depends on the machine: times, paths, and the
outputs of cells tagged `machine`.
"""

import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
MOST = 400_000  # the largest size of a stored notebook, in bytes
PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|private|var)/")


def scripts() -> list[Path]:
    """Return the numbered scripts, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def parse(script: Path) -> nbformat.NotebookNode:
    """Return the notebook of a script, without outputs.

    Each cell is identified by its number, so cells that did not change are stored
    unchanged.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return all text that the outputs show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "") for output in outputs]
    return "\n".join(
        [
            *texts,
            *(
                str(v)
                for o in outputs
                for k, v in o.get("data", {}).items()
                if k.startswith("text/")
            ),
        ]
    )


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """List the reasons why a notebook must not be stored: an error, output on stderr,
    no picture, a path of this machine, or too large a file.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = [
        f"a cell raised {output['ename']}: {output['evalue']}"
        for output in outputs
        if output["output_type"] == "error"
    ]
    found += [
        f"a cell printed to stderr: {output['text'][:200]}"
        for output in outputs
        if output.get("name") == "stderr"
    ]
    if not any("image/png" in output.get("data", {}) for output in outputs):
        found.append("there is no picture")
    if match := PATHS.search(printed(notebook)):
        found.append(
            "an output contains a path of this machine: "
            f"{printed(notebook)[match.start() : match.start() + 60]!r}"
        )
    size = len(nbformat.writes(notebook).encode())
    return (
        [*found, f"the notebook has {size:,} bytes, more than {MOST:,}"] if size > MOST else found
    )


def execute(script: Path) -> nbformat.NotebookNode:
    """Execute the notebook of a script and return it with its outputs.

    **Raises:** `nbclient.exceptions.CellExecutionError` if a cell fails, with the cell
    and its traceback; `ValueError` if the notebook has faults and must not be stored.
    """
    from nbclient import NotebookClient

    notebook = parse(script)
    options = {
        "timeout": 600,
        "kernel_name": "python3",
        "record_timing": False,
        "coalesce_streams": True,
    }
    NotebookClient(notebook, resources={"metadata": {"path": HERE}}, **options).execute()
    notebook["metadata"] = parse(script)["metadata"]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "machine" in cell.metadata.get("tags", []):
            cell["outputs"] = []
        for output in cell.get("outputs", []):
            # Only numbers, pictures and plain text are kept: xarray's HTML tables are
            # large and contain identifiers that change.
            output.get("data", {}).pop("text/html", None)
    if wrong := faults(notebook):
        raise ValueError(f"{script.name}: " + "; ".join(wrong))
    return notebook


def main(asked: list[str]) -> None:
    """Execute and write the notebooks whose names start as asked, or all of them."""
    # Keep XLA from printing about the machine.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for script in scripts():
        if asked and not any(script.name.startswith(name) for name in asked):
            continue
        began = time.perf_counter()
        notebook = execute(script)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(
            f"{script.stem}: {time.perf_counter() - began:.0f} s, "
            f"{script.with_suffix('.ipynb').stat().st_size / 1000:.0f} kB",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
