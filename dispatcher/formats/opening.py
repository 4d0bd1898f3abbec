"""Opens payload files that a job names, and nothing else.

The path comes from a job file and is not trusted. It is walked one component at a time, each opened relative to the
folder before it and never through a symlink, so that nobody can lead the walk out of the root, not even by swapping
names while it runs. What is opened is looked at through its descriptor and must be a regular file; opening does not
block (a FIFO would).
"""

import errno
import os
import stat

from dispatcher.formats.disk import disk_fault
from dispatcher.formats.faults import LineError, field_error, line_error, shown
from dispatcher.formats.fields import path_problem
from dispatcher.model import PAYLOAD_MAX_BYTES, FailureReason

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# Trouble of the process or the disk, which says nothing about the job.
_OWN_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
_PROBLEMS = {
    errno.ENOENT: "does not exist",
    errno.ELOOP: "is or passes through a symlink, which is not followed",
    errno.ENOTDIR: "passes through something that is not a folder (symlinks are not followed)",
    errno.EACCES: "may not be read",
    errno.ENXIO: "is not a regular file",
    errno.ENAMETOOLONG: "is too long",
}


def open_below(root: str, relative: str) -> int | LineError:
    """Opens a regular file below `root` for reading; returns its descriptor, which the caller closes.

    `root` itself is trusted. Raises DiskFaultError where it cannot be opened, or for trouble that is not the job's.
    """
    if problem := path_problem(relative):
        return field_error("payload_path", problem)
    folder = _open_root(root)
    try:
        return _regular(_walk(folder, relative), relative)
    except OSError as error:
        if error.errno in _OWN_TROUBLE:
            raise disk_fault("open a payload file below", root, error) from error
        return _refused(relative, _PROBLEMS.get(error.errno or 0, f"cannot be opened: {error.strerror}"))
    except ValueError:
        return _refused(relative, "holds characters that no file name has")


def measure(root: str, relative: str, payload_max_bytes: int = PAYLOAD_MAX_BYTES) -> int | LineError:
    """The size in bytes of a payload file that may be sent as far as one can tell now. Raises as `open_below` does."""
    descriptor = open_below(root, relative)
    if isinstance(descriptor, LineError):
        return descriptor
    try:
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size <= payload_max_bytes:
        return size
    return line_error(
        FailureReason.PAYLOAD_TOO_LARGE,
        f"payload_path {shown(relative)} has {size} bytes; at most {payload_max_bytes} are allowed",
    )


def _open_root(root: str) -> int:
    try:
        return os.open(root, _FOLDER)
    except OSError as error:
        raise disk_fault("open the folder of payloads", root, error) from error


def _walk(folder: int, relative: str) -> int:
    """The descriptor of what the path names below `folder`, whatever it is. Closes `folder`."""
    try:
        *folders, name = [part for part in relative.split("/") if part not in {"", "."}] or ["."]
        for part in folders:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)


def _regular(descriptor: int, relative: str) -> int | LineError:
    names_a_folder = relative.rpartition("/")[2] in {"", "."}
    if stat.S_ISREG(os.fstat(descriptor).st_mode) and not names_a_folder:
        return descriptor
    os.close(descriptor)
    return _refused(relative, "is not a regular file")


def _refused(relative: str, problem: str) -> LineError:
    return line_error(
        FailureReason.PAYLOAD_UNREADABLE,
        f"payload_path {shown(relative)} {problem}; put a readable regular file there, below the folder of payloads",
    )
