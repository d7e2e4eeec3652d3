"""Compiled programs are kept between processes: a second process loads them, with the
same numbers and without a word, and nothing fails where they cannot be kept.
"""

import json
import os
import subprocess
import sys

import jax
import pytest

import sgfbias as sgf
from sgfbias.core import kept

SCRIPT = """
import json, sys
import jax
NAMES = [name for name in dir(jax.config) if name.startswith("jax_")]
before = {name: getattr(jax.config, name) for name in NAMES}
import sgfbias as sgf
untouched = before == {name: getattr(jax.config, name) for name in NAMES}
events = []
jax.monitoring.register_event_listener(lambda event, **rest: events.append(event))
folder = sgf.keep_compiled()
class Model(__import__("equinox").Module):
    w: jax.Array
    def __call__(self, x):
        return self.w @ x
x = jax.random.normal(jax.random.key(0), (4, 6))
problem = sgf.Problem(x, x @ jax.numpy.ones(6), loss=sgf.SquaredLoss())
flow = sgf.StochasticGradientFlow(0.05)
runs = sgf.simulate(flow, Model(jax.numpy.zeros(6)), problem, keys=sgf.seeds(0, 3), steps=20)
found = {end: sum(e == f"/jax/compilation_cache/cache_{end}" for e in events)
         for end in ("hits", "misses")}
print(json.dumps({"folder": str(folder), "untouched": untouched, **found,
                  "bits": [float(v).hex() for v in runs.final["loss"]]}))
"""


def run(cache, **env):
    """The words that the script prints in a process of its own, which must be silent
    on standard error.
    """
    names = {k: v for k, v in os.environ.items() if k not in (kept.SWITCH, "TF_CPP_MIN_LOG_LEVEL")}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        env=names | {"XDG_CACHE_HOME": str(cache), **env},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is a convention of Linux")
def test_a_second_process_loads_what_the_first_compiled_with_the_same_bits(tmp_path):
    off = run(tmp_path, **{kept.SWITCH: "0"})
    assert (off["folder"], off["untouched"]) == ("None", True)
    assert list(tmp_path.iterdir()) == []

    first = run(tmp_path)
    folder = tmp_path / "sgfbias" / "compiled" / kept.machine()
    assert first["folder"] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # whoever can write there can run code
    assert first["misses"] > 10

    second = run(tmp_path)
    assert (second["misses"], second["hits"] > 10) == (0, True)
    assert off["bits"] == first["bits"] == second["bits"]

    # Files that a killed process has left half written are compiled again, in silence.
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    damaged = run(tmp_path)
    assert damaged["bits"] == off["bits"]


@pytest.fixture
def unconfigured(monkeypatch):
    """JAX without a cache of compiled programs, which the tests themselves have."""
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir",)}
    monkeypatch.delenv(kept.SWITCH, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_nothing_can_be_written_nothing_fails_and_nothing_changes(unconfigured, tmp_path):
    (tmp_path / "file").write_text("")
    assert sgf.keep_compiled(tmp_path / "file" / "folder") is None
    unconfigured.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    unconfigured.setattr(sys, "platform", "linux")
    assert sgf.keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_the_user_configured_is_left_alone(unconfigured, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert sgf.keep_compiled(tmp_path / "other") == tmp_path / "mine"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("word", ["0", "off", "False", "no"])
def test_the_switch_turns_it_off(unconfigured, tmp_path, word):
    unconfigured.setenv(kept.SWITCH, word)
    assert sgf.keep_compiled(tmp_path / "folder") is None
    assert not (tmp_path / "folder").exists()


def test_the_folder_follows_the_convention_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    expected = {"linux": ".cache", "darwin": "Library/Caches", "win32": "local"}
    for name, folder in expected.items():
        monkeypatch.setattr(sys, "platform", name)
        assert kept._caches() == tmp_path / folder
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kept._caches() == tmp_path / "xdg"


def test_the_programs_not_used_for_the_longest_time_go_first(tmp_path):
    for age in range(6):
        (tmp_path / f"program-{age}").write_bytes(bytes(100))
        os.utime(tmp_path / f"program-{age}", (1e9 - age, 1e9 - age))
    kept._prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program-0", "program-1"]
    kept._prune(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2
