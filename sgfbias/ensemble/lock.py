"""Locks that decide who may write to a store; a lock ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgfbias.ensemble.disk import LEDGER, StoreError, refused
from sgfbias.ensemble.store import Store


@contextlib.contextmanager
def locked(store: Store, share: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Hold the store while the context is open, so that no other process writes to it.

    Processes that share the work hold one lock each. The lock ends with the process,
    however that ends.

    **Raises:** `StoreError` if another process holds the store.
    """
    with contextlib.ExitStack() as stack:
        for name, mode in (
            ("lock", fcntl.LOCK_EX if share[1] == 1 else fcntl.LOCK_SH),
            (f"lock-{share[0]}-of-{share[1]}", fcntl.LOCK_EX),
        ):
            try:
                store.ledger.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((store.ledger / name).open("a+"))
            except OSError as error:
                raise refused(store.ledger / name, error) from error
            try:
                _flock(file, mode)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise StoreError(
                        f"{store.path} is on a file system without locks ({error.strerror}): "
                        "choose another output"
                    ) from error
                file.seek(0)
                raise StoreError(
                    f"{store.path} is being written by another process "
                    f"({file.read().strip() or 'unknown'}): wait until it ends, or stop it; to let "
                    "several processes share a sweep, give each of them its `share`"
                ) from error
            # A process that is refused shows this text; the lock works without it.
            with contextlib.suppress(OSError):
                file.truncate(0)
                file.write(
                    f"process {os.getpid()} on {socket.gethostname()} since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
                )
                file.flush()
        yield


def _flock(file: Any, mode: int) -> None:
    """Take a lock, or raise the `OSError` if it stays taken.

    There are five attempts, because `is_locked` takes the lock for a moment too.
    """
    for attempt in range(5):
        try:
            return fcntl.flock(file, mode | fcntl.LOCK_NB)
        except OSError as error:
            if attempt == 4 or error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            time.sleep(0.1)


def is_locked(path: Path, share: tuple[int, int] | list[int] | None = None) -> bool:
    """Whether a living process writes to the store.

    With `share`, whether a living process works on that share.
    """
    for name in (path / LEDGER).glob(
        "lock*" if share is None else f"lock-{share[0]}-of-{share[1]}"
    ):
        try:
            with name.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False
