"""The origin of a result: versions, device, precision, generator and revision.

They are stored as flat attributes of a Dataset.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sgfbias.core.types import Dataset

PACKAGES = ("sgfbias", "jax", "jaxlib", "diffrax", "equinox", "numpy")


def version() -> str:
    """The version of this package, or "unknown" if it is not installed."""
    try:
        return importlib.metadata.version("sgfbias")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _versions() -> str:
    """The versions of Python and of `PACKAGES`, as JSON."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return json.dumps(versions)


@functools.cache
def _revision() -> str:
    """The Git revision of the source tree, or "unknown" for an installed package.

    It ends with `+changed` if files differ from the revision.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changed" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def attributes(config: dict[str, Any], *, dtype: Any, keys: Any = None) -> dict[str, str]:
    """The attributes of every Dataset, in which `config` is stored as JSON.

    `dtype` is the precision of the run, and `keys` are its keys, or None.
    """
    device = jax.devices()[0]
    return {
        "config": json.dumps(config, default=str, sort_keys=True),
        "versions": _versions(),
        "revision": _revision(),
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "host": f"{platform.machine()} {platform.system()}",
        "precision": jnp.dtype(dtype).name,
        "prng": "none" if keys is None else str(jax.random.key_impl(keys)),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def config_of(dataset: Dataset, name: str) -> Any:
    """The field `name` of the config with which a study's dataset was made."""
    return json.loads(dataset.attrs["config"])[name]
