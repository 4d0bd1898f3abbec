"""A file beside the ledger that holds space back, so that on a full disk what already happened can still be recorded.

SQLite needs free space even to delete or to checkpoint; a mebibyte let go takes some 5,000 receipts or final states.
"""

import os
from pathlib import Path

BALLAST_BYTES = 1 << 20
# What must be free before it is laid again: its own mebibyte, let go, is no sign that somebody made space.
ROOM_BYTES = 8 << 20


def load(ledger: Path) -> None:
    """Makes the ballast of a ledger if it is not there. OSError if there is no space even for this."""
    path = ballast_path(ledger)
    if path.exists() and path.stat().st_size == BALLAST_BYTES:
        return
    try:
        _fill(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def has_room(ledger: Path) -> bool:
    """Whether the disk has space to spare again. Quotas may say otherwise, and `load` then meets them."""
    disk = os.statvfs(ledger.parent)
    return disk.f_bavail * disk.f_frsize >= ROOM_BYTES


def drop(ledger: Path) -> bool:
    """Frees the ballast; False if it is gone already."""
    try:
        ballast_path(ledger).unlink()
    except OSError:
        return False
    return True


def ballast_path(ledger: Path) -> Path:
    """The ballast file of a ledger."""
    return ledger.with_name(ledger.name + ".ballast")


def _fill(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # Random bytes, because a file system may keep zeros, or holes, without any space.
        file.write(os.urandom(BALLAST_BYTES))
        file.flush()
        os.fsync(file.fileno())
