"""What the dispatcher's own disk does to it: one error, and the one durable way to put a folder's names on the disk."""

import errno
import os
from pathlib import Path
from typing import ClassVar

from dispatcher.errors import DispatcherError


class DiskFaultError(DispatcherError):
    """A file of the dispatcher's own could not be written or read: full, read-only, or broken."""


class PassingFaultError(DiskFaultError):
    """What a person can put right while the process waits for it. `path`: what could not be used; `waited_for`: what the log says."""

    waited_for: ClassVar[str]

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class MissingFolderError(PassingFaultError):
    """A folder of the dispatcher's own is not there; it may come back."""

    waited_for = "a folder is missing; waited for until it is back"


class NoSpaceError(PassingFaultError):
    """The disk, or what of it may be used, is full; there may be room later."""

    waited_for = "no room on the disk; waited for until there is some"


class BarredError(PassingFaultError):
    """A folder of the dispatcher's own may not be used: read-only, not permitted, or something else lies in its place."""

    waited_for = "a folder cannot be used; waited for until it can"


_FULL = {errno.ENOSPC, errno.EDQUOT}
_BARRED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def disk_fault(doing: str, path: str, error: OSError) -> DiskFaultError:
    """Builds the error for the person at the terminal; raise it `from error`."""
    if error.errno == errno.ENOENT:
        return MissingFolderError(f"cannot {doing} {path}: a folder is missing; put it back", path)
    if error.errno in _BARRED:
        advice = "see to it that it is a folder that may be written to: what lies there, mount, permissions, attributes"
        return BarredError(f"cannot {doing} {path}: {error.strerror}; {advice}", path)
    text = f"cannot {doing} {path}: {error.strerror}; check the disk's space, permissions and health"
    return NoSpaceError(text, path) if error.errno in _FULL else DiskFaultError(text)


def check_folder_of(path: str) -> None:
    """Raises MissingFolderError where not the file alone is gone, but the folder that it was in."""
    folder = Path(path).parent
    if not folder.exists():
        raise MissingFolderError(f"cannot read {path}: the folder {folder} is missing; put it back", str(folder))


def sync_folder(folder: str) -> None:
    """Makes names that were made or renamed in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
