"""Makes an uncompressed copy of a job file's data on the dispatcher's own disk, within a budget, and durably.

The copy appears under its name only when it is whole and synced, so a truncated archive is found before anything of it
is accepted, and a crash leaves at most a `.part` that the next try overwrites. Whatever the archive unpacks to, memory
is bounded by the chunk (for zstd also by the window a frame asks for: libzstd refuses more than 128 MiB), disk by the
budget. It blocks, for minutes where an archive is large: `check` is called before each chunk is written, and whatever it
raises ends the copy and leaves nothing of it.
"""

import gzip
import os
import sys
import zlib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import disk_fault, sync_folder

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError, ZstdFile
else:
    from backports.zstd import ZstdError, ZstdFile

_CHUNK_BYTES = 256 * 1024
_MAGIC_BYTES = 4

Check = Callable[[], None]
"""Raises where the copy is not wanted any more; called in the thread that copies."""


class Compression(Enum):
    """How the bytes of a job file are packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_SUFFIXES = {".gz": Compression.GZIP, ".zst": Compression.ZSTD}


def compression(path: str) -> Compression:
    """How the file is compressed, by its name and its first bytes; UnreadableFileError where these disagree."""
    named = _SUFFIXES.get(Path(path).suffix.lower(), Compression.NONE)
    found = _magic(path)
    if named is found:
        return named
    if named is Compression.NONE:
        raise UnreadableFileError(f"{path} holds {found.value} data; end its name in .gz or .zst, or unpack it first")
    raise UnreadableFileError(
        f"{path} is named as {named.value} but does not start as such a file does; "
        "write it again (it may be empty or cut off), or give it the right name"
    )


def is_compressed(path: str) -> bool:
    """Whether the file must be spooled before it can be read; raises as `compression` does."""
    return compression(path) is not Compression.NONE


def go_on() -> None:
    """The check of a copy that nobody stops."""


def spool_compressed(path: str, destination: str, budget_bytes: int, check: Check = go_on) -> int:
    """Uncompresses `path` into `destination`; returns the size. Several members or frames in a row are one file.

    Raises UnreadableFileError for a damaged, truncated or too large archive, DiskFaultError where it cannot be written,
    and what `check` raises. Then there is no destination.
    """
    kind = compression(path)
    with _open_source(path) as packed, _unpacker(kind, packed) as stream:
        return _spool(lambda: _unpack(stream, path), destination, budget_bytes, path, check)


def spool_stream(stream: BinaryIO, name: str, destination: str, budget_bytes: int, check: Check = go_on) -> int:
    """Copies a stream to its end into `destination`; returns the size. `name` is for messages. Raises as above."""

    def read() -> bytes:
        try:
            return stream.read(_CHUNK_BYTES)
        except OSError as error:
            raise UnreadableFileError(f"cannot read {name} to its end: {error.strerror}; try again") from error

    return _spool(read, destination, budget_bytes, name, check)


def _magic(path: str) -> Compression:
    with _open_source(path) as source:
        start = source.read(_MAGIC_BYTES)
    if start.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    is_skippable = len(start) == _MAGIC_BYTES and start[1:] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50
    return Compression.ZSTD if is_skippable or start == b"\x28\xb5\x2f\xfd" else Compression.NONE


def _open_source(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UnreadableFileError(
            f"cannot read {path}: {error.strerror}; check that it exists and may be read"
        ) from error


def _unpacker(kind: Compression, packed: BinaryIO) -> BinaryIO | gzip.GzipFile | ZstdFile:
    if kind is Compression.GZIP:
        return gzip.GzipFile(fileobj=packed)
    if kind is Compression.ZSTD:
        return ZstdFile(packed)
    return packed


def _unpack(stream: BinaryIO | gzip.GzipFile | ZstdFile, path: str) -> bytes:
    try:
        return stream.read(_CHUNK_BYTES)
    except EOFError as error:
        raise UnreadableFileError(f"{path} is cut off before its end; write it again, whole") from error
    except (gzip.BadGzipFile, zlib.error, ZstdError) as error:
        raise UnreadableFileError(f"{path} is damaged ({str(error)[:200]}); write it again") from error
    except OSError as error:
        raise UnreadableFileError(f"cannot read {path} to its end: {error.strerror}; try again") from error


def _spool(read: Callable[[], bytes], destination: str, budget_bytes: int, name: str, check: Check) -> int:
    part = destination + ".part"
    try:
        size = _write(read, part, budget_bytes, name, check)
        Path(part).replace(destination)
        sync_folder(str(Path(destination).parent))
    except OSError as error:
        _remove(part)
        raise disk_fault("write", destination, error) from error
    except BaseException:
        _remove(part)
        raise
    return size


def _write(read: Callable[[], bytes], part: str, budget_bytes: int, name: str, check: Check) -> int:
    size = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
        while chunk := read():
            check()
            size += len(chunk)
            if size > budget_bytes:
                raise UnreadableFileError(
                    f"{name} holds more than the {budget_bytes} bytes that may be spooled now; "
                    "split it, wait until other files are done, or raise work_max_bytes (--work-max-bytes)"
                )
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size


def _remove(part: str) -> None:
    Path(part).unlink(missing_ok=True)
