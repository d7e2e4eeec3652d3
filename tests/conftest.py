"""Settings of the tests: float64, strict dtype promotion, array shapes that are checked
at run time, and warnings as errors.
"""

import gc
import hashlib
import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
# Commands that the tests start write nothing into the user's folder for caches.
os.environ.setdefault("SGFBIAS_KEEP_COMPILED", "0")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

TESTS = Path(__file__).parent

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# More than half of the time goes into compilation. With this cache the workers share
# compiled functions, and a second run of the tests compiles none.
jax.config.update("jax_compilation_cache_dir", str(TESTS.parent / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Shapes are checked in the folders with mathematics: core, gradients, and the systems.
# The folders around them check their own arguments.
UNHOOKED = ("cli", "ensemble", "study")
FOLDERS = [
    path.name
    for path in (TESTS.parent / "sgfbias").iterdir()
    if path.is_dir() and not path.name.startswith(("_", "."))
]

with install_import_hook(
    [f"sgfbias.{name}" for name in FOLDERS if name not in UNHOOKED], "beartype.beartype"
):
    import sgfbias  # noqa: F401

hypothesis.settings.register_profile("default", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("default")

BEGAN = pytest.StashKey()
LONGEST = ("house", "recurrent", "lazy", "diagonal", "gradients", "core", "meanfield")
ORDER = {folder: place for place, folder in enumerate(LONGEST)}


def pytest_generate_tests(metafunc):
    """Make one test of every mutation of a `StudyCase`."""
    if "mutation" in metafunc.fixturenames:
        metafunc.parametrize("mutation", metafunc.cls.mutations)


def cpu_seconds():
    """CPU seconds of this process and of the child processes that it has waited for."""
    return sum(os.times()[:4])


def pytest_runtest_setup(item):
    item.stash[BEGAN] = cpu_seconds()


def pytest_runtest_teardown(item, nextitem):
    """Drop compiled programs before a process has too many.

    Each takes some hundred pieces of memory. Linux allows a process 65,530 of them, and
    one that has no more ends without a word. Programs are dropped between modules only,
    since some tests count what is compiled after a fixture of their module.
    """
    if nextitem is not None and nextitem.path == item.path:
        return
    try:
        with open("/proc/self/maps", "rb") as pieces:
            count = sum(1 for _ in pieces)
    except OSError:  # not Linux
        return
    if count > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to every report the CPU seconds since the last report of this test. They are
    shown for each folder, but no test asserts a limit.
    """
    report = yield
    now = cpu_seconds()
    report.user_properties.append((f"cpu {call.when}", now - item.stash.get(BEGAN, now)))
    item.stash[BEGAN] = now
    return report


def pytest_terminal_summary(terminalreporter):
    """Print the CPU seconds of each folder of tests."""
    spent = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            folder = str(getattr(report, "nodeid", "")).split("::")[0].split("/")
            own = dict(getattr(report, "user_properties", ())).get(
                f"cpu {getattr(report, 'when', '')}", 0.0
            )
            spent["/".join(folder[1:-1]) or folder[0]] += own
    shown = ", ".join(
        f"{folder} {seconds:.0f}"
        for folder, seconds in sorted(spent.items(), key=lambda row: -row[1])
        if seconds >= 0.5
    )
    if shown:
        terminalreporter.write_line(
            f"CPU seconds by folder: {shown}; in all {sum(spent.values()):.0f}, without start-up"
        )


def leave_for_a_release(items):
    """Of a test with the mark `slow(cases=n)`, mark all cases but n as `release`.

    The n cases are those whose names have the least hashes, so they are the same in
    every run, and those of a product of parameters are mixed. A study whose small run
    is compared with stored digests is run on another draw before a release only.
    """
    cases = defaultdict(list)
    for item in items:
        for mark in item.iter_markers("slow"):
            if "cases" in mark.kwargs:
                cases[item.nodeid.split("[")[0]].append((item, mark.kwargs["cases"]))
    for found in cases.values():
        found.sort(key=lambda row: hashlib.sha256(row[0].name.encode()).digest())
        for item, _ in found[found[0][1] :]:
            item.add_marker(pytest.mark.release)
    for item in items:
        case = getattr(item, "cls", None)
        if case is not None and item.function in getattr(case, "drawn", ()) and case.compared():
            item.add_marker(pytest.mark.release)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run the folders with the longest files first, so that short files keep all
    workers busy at the end: a file is run by one worker.
    """
    items.sort(key=lambda item: ORDER.get(item.path.parent.name, len(ORDER)))
    leave_for_a_release(items)
