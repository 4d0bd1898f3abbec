"""One process owns a ledger: an exclusive `flock` on the file `<ledger>.lock`, whose text names the owner.

The lock ends with the process, however it ends; the file stays, because deleting it would let two processes hold locks
on two files of one name.
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from dispatcher.errors import LedgerHeldError

Release = Callable[[], None]


def take(ledger: Path, started_at: str) -> Release:
    """Takes the lock, or raises LedgerHeldError that names the holder. Call what it returns to let go."""
    descriptor = os.open(lock_path(ledger), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise LedgerHeldError(
            f"the ledger {ledger} is held by {holder}; wait for that process, stop it, or ask it with `dispatcher status`"
        ) from error
    _sign(descriptor, started_at)
    return lambda: os.close(descriptor)


def lock_path(ledger: Path) -> Path:
    """The lock file of a ledger."""
    return ledger.with_name(ledger.name + ".lock")


def _sign(descriptor: int, started_at: str) -> None:
    os.ftruncate(descriptor, 0)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": started_at}
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _holder(descriptor: int) -> str:
    """The owner as it signed; it may be between taking the lock and signing."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}, running since {owner['started_at']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
