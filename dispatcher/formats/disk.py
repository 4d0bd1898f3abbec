"""What the dispatcher's own disk does to it: one error, and the one durable way to put a folder's names on the disk."""

import os

from dispatcher.errors import DispatcherError


class DiskFaultError(DispatcherError):
    """A file of the dispatcher's own could not be written or read: full, read-only, or broken."""


def disk_fault(doing: str, path: str, error: OSError) -> DiskFaultError:
    """Builds the error for the person at the terminal; raise it `from error`."""
    return DiskFaultError(f"cannot {doing} {path}: {error.strerror}; check the disk's space, permissions and health")


def sync_folder(folder: str) -> None:
    """Makes names that were made or renamed in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
