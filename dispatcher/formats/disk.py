"""What the dispatcher's own disk does to it: one error, and the one durable way to put a folder's names on the disk."""

import errno
import os
from pathlib import Path

from dispatcher.errors import DispatcherError


class DiskFaultError(DispatcherError):
    """A file of the dispatcher's own could not be written or read: full, read-only, or broken."""


class MissingFolderError(DiskFaultError):
    """A folder of the dispatcher's own is not there; it may come back."""


class NoSpaceError(DiskFaultError):
    """The disk, or what of it may be used, is full; there may be room later."""


def disk_fault(doing: str, path: str, error: OSError) -> DiskFaultError:
    """Builds the error for the person at the terminal; raise it `from error`."""
    if error.errno == errno.ENOENT:
        return MissingFolderError(f"cannot {doing} {path}: a folder is missing; put it back")
    kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else DiskFaultError
    return kind(f"cannot {doing} {path}: {error.strerror}; check the disk's space, permissions and health")


def check_folder_of(path: str) -> None:
    """Raises MissingFolderError where not the file alone is gone, but the folder that it was in."""
    folder = Path(path).parent
    if not folder.exists():
        raise MissingFolderError(f"cannot read {path}: the folder {folder} is missing; put it back")


def sync_folder(folder: str) -> None:
    """Makes names that were made or renamed in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
