"""One process owns a ledger, and one a spool: an exclusive `flock` on a file beside it, whose text names the owner.

The lock ends with the process, however it ends; the file stays, because deleting it would let two processes hold locks
on two files of one name. A spool has a lock of its own, since two services may share it that have a ledger each.
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dispatcher.errors import LedgerHeldError, SpoolHeldError

Release = Callable[[], None]


def take(ledger: Path, started_at: str) -> Release:
    """Takes the lock, or raises LedgerHeldError that names the holder. Call what it returns to let go."""
    try:
        return _take(lock_path(ledger), started_at)
    except _HeldError as error:
        raise LedgerHeldError(
            f"the ledger {ledger} is held by {error}; wait for that process, stop it, or ask it with `dispatcher status`"
        ) from error


def take_spool(spool: Path) -> Release:
    """Takes the lock of a spool that is there, or raises SpoolHeldError that names the holder; OSError where it cannot be made."""
    try:
        return _take(spool / "spool.lock", datetime.now(UTC).isoformat(timespec="seconds"))
    except _HeldError as error:
        raise SpoolHeldError(
            f"the spool {spool} is served by {error}; stop that process, or serve another folder: two would both run every job"
        ) from error


def lock_path(ledger: Path) -> Path:
    """The lock file of a ledger."""
    return ledger.with_name(ledger.name + ".lock")


class _HeldError(Exception):
    """Another process holds it; the text says which."""


def _take(path: Path, started_at: str) -> Release:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise _HeldError(holder) from error
    except OSError:
        os.close(descriptor)
        raise
    with suppress(OSError):  # a full disk must not keep who owns it from starting; the text is for people alone
        _sign(descriptor, started_at)
    return lambda: os.close(descriptor)


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
