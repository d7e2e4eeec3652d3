"""Compiled programs that are kept on disk, so that the next process need not compile
them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import jax

SWITCH = "SGFBIAS_KEEP_COMPILED"
LIMIT = 512 * 2**20  # bytes; a program has about 20 kB
_OFF = ("0", "false", "no", "off")

_place: str | None = None


def keep_compiled(folder: str | Path | None = None) -> Path | None:
    """Keep the programs that JAX compiles from now on, and load those that an earlier
    process kept.

    Call it once, at the top of a notebook or a script; the command line does so by
    itself. It sets JAX's persistent compilation cache for this process. Numbers do not
    change: what is loaded is the program that was compiled. Importing sgfbias never
    calls it.

    Nothing happens if the environment variable `SGFBIAS_KEEP_COMPILED` is 0. A cache
    that you have configured yourself, for example with `JAX_COMPILATION_CACHE_DIR`, is
    left as it is. The folder is made for this user alone, because whoever can write to
    it can run code. The call deletes the programs that were not used for the longest
    time, until at most 512 MB are left.

    **Arguments:**

    - `folder`: the folder to keep programs in, made if it does not exist; by default
      `sgfbias/compiled` in the user's folder for caches: `$XDG_CACHE_HOME` or
      `~/.cache`, on macOS `~/Library/Caches`, on Windows `%LOCALAPPDATA%`. Machines
      whose processors differ use different subfolders.

    **Returns:** the folder in use; None if programs are not kept, because this is
    switched off or because the folder cannot be written.
    """
    if os.environ.get(SWITCH, "").strip().lower() in _OFF:
        return None
    configured = getattr(jax.config, "jax_compilation_cache_dir", None)
    if configured:
        return Path(configured)
    try:
        base = _caches() / "sgfbias" / "compiled" if folder is None else Path(folder)
        place = base.expanduser().absolute() / machine()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    _prune(place, LIMIT)
    keep_in(place)
    return place


def keep_in(place: str | Path) -> None:
    """Keep compiled programs in the folder `place`, which exists and can be written."""
    global _place
    _place = str(place)
    # JAX could bound the folder itself, but it needs another package for that, takes a
    # lock at every read, and fails for ever after a process was killed in between.
    jax.config.update("jax_compilation_cache_dir", _place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _hush()


def kept() -> str | None:
    """The folder that `keep_compiled` chose in this process, or None."""
    return _place


def machine() -> str:
    """A short name of this machine's processor and what it can do.

    A program that was compiled for another processor may use instructions that this one
    lacks, which ends the process.
    """
    facts = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _caches() -> Path:
    """The user's folder for caches, by the convention of the platform."""
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The convention says that a relative path is to be ignored.
    return Path(given) if os.path.isabs(given) else Path.home() / ".cache"


def _prune(place: Path, limit: int) -> None:
    """Delete the files that were not used for the longest time, down to `limit` bytes
    in all. Other processes may do the same at the same time.
    """
    found = []
    for path in place.iterdir():
        with contextlib.suppress(OSError):
            facts = path.stat()
            found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    excess = sum(size for _, size, _ in found) - limit
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size


def _hush() -> None:
    """Silence what JAX and XLA say about kept programs.

    A file that another process is still writing, or that is damaged, gives a warning in
    Python and is compiled anew. XLA logs an error in C++ at each program that it loads
    from disk, because the options "prefer-no-gather" and "prefer-no-scatter" of its
    compiler are no features of a processor. Errors that matter raise exceptions too.
    """
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return  # all logs are wanted
    with contextlib.suppress(ImportError, AttributeError):
        from jaxlib import utils

        utils.absl_set_min_log_level(3)
