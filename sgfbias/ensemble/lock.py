"""Who may write a store: locks that go with their process, however it ends."""

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

from sgfbias.ensemble.files import LEDGER, StoreError, refused
from sgfbias.ensemble.store import Store


@contextlib.contextmanager
def locked(store: Store, share: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Hold the store, so that no second process writes it by mistake; the lock goes with the process, however it ends. Processes that share
    the work hold one lock each.

    **Raises:** `StoreError` if another process holds it.
    """
    with contextlib.ExitStack() as stack:
        for name, mode in (("lock", fcntl.LOCK_EX if share[1] == 1 else fcntl.LOCK_SH), (f"lock-{share[0]}-of-{share[1]}", fcntl.LOCK_EX)):
            try:
                store.ledger.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((store.ledger / name).open("a+"))
            except OSError as error:
                raise refused(store.ledger / name, error) from error
            try:
                _flock(file, mode)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise StoreError(f"{store.path} is on a file system without locks ({error.strerror}): choose another output") from error
                file.seek(0)
                raise StoreError(
                    f"{store.path} is being written by another process ({file.read().strip() or 'unknown'}): wait for it, or stop it; to let "
                    "several processes share a sweep give each its share"
                ) from error
            with contextlib.suppress(OSError):  # a nicety for the one that is refused
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
                file.flush()
        yield


def _flock(file: Any, mode: int) -> None:
    """Take a lock; one that is only being looked at is free again at once."""
    for attempt in range(5):
        try:
            return fcntl.flock(file, mode | fcntl.LOCK_NB)
        except OSError as error:
            if attempt == 4 or error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            time.sleep(0.1)


def is_locked(path: Path, share: tuple[int, int] | list[int] | None = None) -> bool:
    """Whether a living process writes this store; or the one that has this share of the work."""
    for name in (path / LEDGER).glob("lock*" if share is None else f"lock-{share[0]}-of-{share[1]}"):
        try:
            with name.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False
