"""Files that are whole or not there: replaced in one piece, JSON with a checksum of itself, and what is said where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

LEDGER = "ledger"


class StoreError(Exception):
    """The store cannot be written, is in use, or is another one's."""


def digest(data: bytes) -> str:
    """Checksum of some bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one piece: at any moment it is the old one or the new one."""
    aside = path.parent / LEDGER  # if there is one: what a killed process leaves in the root would be taken for a member of it
    part = (aside if aside.is_dir() else path.parent) / f"{path.name}.{secrets.token_hex(8)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> StoreError:
    """What to say of a write that failed."""
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "the store cannot be written"
    return StoreError(
        f"{what}: {error.strerror or error} ({path}); what is done is kept: make room, then run the same command again to go on"
    )


def canonical(body: Any) -> str:
    """JSON in one form: 1 and 1.0 differ, NaN equals itself."""
    return json.dumps(body, sort_keys=True)


def write_json(path: Path, body: Any) -> None:
    """JSON with a checksum of itself."""
    text = canonical(body)
    write_whole(path, json.dumps({"check": digest(text.encode()), "body": body}, sort_keys=True).encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if there is nothing whole."""
    try:
        stored = json.loads(path.read_bytes())
        text = canonical(stored["body"])
        return stored["body"] if stored["check"] == digest(text.encode()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
