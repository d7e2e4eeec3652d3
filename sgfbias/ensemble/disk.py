"""Files that are either complete or absent, because they are replaced in one piece.

JSON files carry a checksum of their content. A failed write is reported as a
`StoreError`.
"""

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
    """The store of a sweep cannot be read or written, is in use, or is not this
    sweep's.
    """


def digest(data: bytes) -> str:
    """A checksum of the bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one piece: a reader finds either the old content or the new."""
    # The temporary file is kept in the ledger if there is one: a file that a killed
    # process leaves in the root would be taken for a member of the zarr group.
    aside = path.parent / LEDGER
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
    """The error to raise when a write to `path` has failed."""
    what = (
        "the disk is full"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else "the store cannot be written"
    )
    return StoreError(
        f"{what}: {error.strerror or error} ({path}); what is done is kept: make room or allow "
        "writing there, then run the same command again to resume the sweep"
    )


def canonical(body: Any) -> str:
    """The JSON text of a value in a unique form: 1 and 1.0 differ, and NaN equals
    itself.
    """
    return json.dumps(body, sort_keys=True)


def write_json(path: Path, body: Any) -> None:
    """Write a value as JSON together with a checksum of it."""
    text = canonical(body)
    write_whole(
        path, json.dumps({"check": digest(text.encode()), "body": body}, sort_keys=True).encode()
    )


def read_json(path: Path) -> Any:
    """Read a value that `write_json` wrote; None if the file is missing or damaged."""
    try:
        stored = json.loads(path.read_bytes())
        text = canonical(stored["body"])
        return stored["body"] if stored["check"] == digest(text.encode()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
