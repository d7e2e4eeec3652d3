"""Golden digests: a hash of every variable of every study's dataset at test size.

They show whether a refactoring has changed a single bit. The commands are

    python tests/golden.py check [STUDY ...]
        compares with the digests that were stored in the same environment;
    python tests/golden.py record [STUDY ...]
        stores the digests of this environment;
    python tests/golden.py parent [REVISION]
        compares with another revision (default HEAD^), which it runs on this machine in
        a worktree of its own.

The digits of floating-point results depend on the processor, on the versions of the
compiler and the libraries, and on the number of threads. So digests are stored for each
environment, and `check` compares only digests of the same environment. In any other
environment, `parent` compares two revisions on the same machine.
"""

import ast
import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FILE = "golden.json"  # The file lies in the folder of a system's tests.


class Small(NamedTuple):
    """A study at test size.

    - `options`: its options on the command line, which a refactoring does not change.
    - `folder`: the folder of its tests.
    """

    options: str
    folder: Path


def _found() -> dict[str, Small]:
    """The test size of every study, from the attribute `small` of its `StudyCase` in
    `tests/<system>/`. The source is read, but not imported.
    """
    found = {}
    for path in sorted(TESTS.glob("*/test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                said = {
                    target.id: line.value.value
                    for line in node.body
                    if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
                    for target in line.targets
                    if isinstance(target, ast.Name)
                }
                if {"study", "small"} <= set(said):
                    found[said["study"]] = Small(said["small"], path.parent)
    return found


STUDIES = _found()


def environment() -> str:
    """A text with all that the digits of a result depend on, except the code."""
    import jaxlib
    import numpy
    import scipy

    try:
        cpu = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        cpu = platform.processor()
    features = hashlib.sha256(" ".join(sorted(cpu.partition(":")[2].split())).encode()).hexdigest()[
        :12
    ]
    versions = f"jaxlib {jaxlib.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__}"
    settings = (
        f"{os.environ['XLA_FLAGS']} OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '')}"
    )
    return f"{versions}, {platform.machine()} {features}, {os.cpu_count()} threads, {settings}"


@functools.cache
def run(study: str, options: str) -> tuple:
    """A study is run with the command line of this revision.

    **Returns:** the stored dataset, and the stored claims as dictionaries.
    """
    import xarray as xr

    from sgfbias import cli

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        status = cli.main(["run", study, *options.split(), "--out", folder, "--quiet"])
        if status not in (0, 1):
            raise RuntimeError(f"{study} did not run: {errors.getvalue()}")
        dataset = xr.open_zarr(Path(folder) / "study.zarr", consolidated=False).load()
        rows = json.loads((Path(folder) / "claims.json").read_text())["claims"]
    return dataset, rows


def small_run(study: str) -> tuple:
    """The dataset of a study at test size and its digests."""
    if study not in STUDIES:
        raise ValueError(f"no StudyCase says `small = '...'`, a plain text, for {study!r}")
    dataset, rows = run(study, STUDIES[study].options)
    return dataset, digests(dataset, rows)


def digests(dataset, rows: list) -> dict[str, str]:
    """The digest of every variable of a dataset, and the verdicts of its claims."""
    import numpy as np

    found = {}
    for name in sorted(map(str, dataset.variables)):
        variable = dataset[name]
        values = np.asarray(variable.values)
        content = (
            "\n".join(map(str, values.ravel())).encode()
            if values.dtype == object
            else np.ascontiguousarray(values).tobytes()
        )
        head = (
            f"{variable.dims} {values.shape} "
            f"{'text' if values.dtype == object else values.dtype.str} "
            f"{variable.attrs.get('units')}"
        )
        found[name] = hashlib.sha256(head.encode() + b"\0" + content).hexdigest()[:16]
    found["verdicts"] = " ".join(row["verdict"][0] for row in rows)
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The digests that differ, in words."""
    return [
        f"{name}: stored {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def _stored_in(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The digests in a folder, by environment, study and variable."""
    return json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else {}


def stored(study: str) -> dict[str, str] | None:
    """The stored digests of a study in this environment, or None if there are none."""
    return _stored_in(STUDIES[study].folder).get(environment(), {}).get(study)


def record(studies: list[str]) -> None:
    """Store the digests of some studies for this environment."""
    for study in studies:
        folder = STUDIES[study].folder
        found, known = small_run(study)[1], _stored_in(folder)
        known.setdefault(environment(), {})[study] = found
        (folder / FILE).write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
        print(f"{study}: {len(found)} digests stored", flush=True)


def check(studies: list[str], expected: Callable[[str], dict[str, str] | None]) -> int:
    """Compare studies with expected digests.

    **Returns:** the exit status: 1 if a digest has changed or if a study has no
    expected digests, otherwise 0.
    """
    changed = 0
    for study in studies:
        known = expected(study)
        lines = (
            ["no digests are stored for this environment; use `parent`"]
            if known is None
            else differences(known, small_run(study)[1])
        )
        changed += bool(lines)
        print(
            f"{study}: {'equal' if not lines else ''}",
            *lines,
            sep="\n  " if lines else "",
            flush=True,
        )
    return 1 if changed else 0


def of_revision(revision: str, studies: list[str]) -> dict[str, dict[str, str]]:
    """The digests of another revision, which this script runs in its own worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", str(tree), revision],
            cwd=ROOT,
            check=True,
        )
        try:
            code = (
                f"import sys, json; sys.path[:0] = [{str(tree)!r}, "
                f"{str(Path(__file__).parent)!r}]; "
                "import golden, sgfbias\n"
                f"assert sgfbias.__file__.startswith({str(tree)!r}), sgfbias.__file__\n"
                f"print(json.dumps({{study: golden.small_run(study)[1] for study in {studies!r}}}))"
            )
            out = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
            ).stdout
            return json.loads(out.splitlines()[-1])
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True
            )


def main() -> int:
    what, *names = sys.argv[1:] or ["check"]
    if what == "parent":
        return check(list(STUDIES), of_revision(names[0] if names else "HEAD^", list(STUDIES)).get)
    studies = names or list(STUDIES)
    unknown = set(studies) - set(STUDIES)
    if what not in ("check", "record") or unknown:
        print(__doc__, f"unknown: {', '.join(unknown)}" if unknown else "", file=sys.stderr)
        return 2
    if what == "record":
        record(studies)
        return 0
    return check(studies, stored)


if __name__ == "__main__":
    sys.exit(main())
