"""What is sent for a job, found when it is about to be sent.

What fits a request body is held in memory; anything larger stays on disk, as a slice that is streamed: of the job file
itself, of the job's payload file, or, for base64, of a file spilled for the purpose. A payload that is no longer what
was accepted is never sent: that is a LineError with PAYLOAD_GONE.
"""

import os
import tempfile
from pathlib import Path

from msgspec import Struct

from dispatcher.formats.disk import disk_fault
from dispatcher.formats.faults import LineError, line_error, shown
from dispatcher.formats.joblines import JobLine, Literal, LocationPayload, PathPayload
from dispatcher.formats.opening import open_below
from dispatcher.interfaces import FileSlice
from dispatcher.model import INLINE_MAX_BYTES, FailureReason

_SPILL_PREFIX = "payload-"


class InMemory(Struct, frozen=True, gc=False):
    """At most 128,000 bytes, maybe none."""

    data: bytes


class OnDisk(Struct, frozen=True):
    """Bytes to stream. Where `is_temporary`, the file is the job's own: give it to `discard` when the attempt has ended."""

    slice: FileSlice
    is_temporary: bool = False


class Elsewhere(Struct, frozen=True, gc=False):
    """An object that is in S3 already."""

    uri: str


Loaded = InMemory | OnDisk | Elsewhere


class Place(Struct, frozen=True, kw_only=True):
    """Where a job file's bytes are: its data, the folder that `payload_path` is relative to, a folder for spilling."""

    data_path: str
    payload_root: str
    spill_folder: str


def load(job: JobLine, line: bytes, offset: int, size_bytes: int, place: Place) -> Loaded | LineError:
    """What to send for `job`, decoded from `line`, which stands at `offset` of the data; `size_bytes` is the ledger's.

    Raises DiskFaultError for trouble that is not the job's: spilling fails, the folder of payloads is not there.
    """
    # Not a match, which takes a quarter of a microsecond more for every job.
    payload = job.payload
    if isinstance(payload, LocationPayload):
        return Elsewhere(payload.uri)
    if isinstance(payload, PathPayload):
        return _file(payload.path, size_bytes, place)
    data = payload.data
    if len(data) != size_bytes:
        return _gone("the line", f"holds a payload of {len(data)} bytes")
    if size_bytes <= INLINE_MAX_BYTES:
        return InMemory(data)
    if isinstance(payload, Literal):
        # The first occurrence need not be the payload itself; its bytes are the same.
        return OnDisk(FileSlice(place.data_path, offset + line.find(data), size_bytes))
    return OnDisk(FileSlice(_spill(data, place.spill_folder), 0, size_bytes), is_temporary=True)


def discard(loaded: OnDisk) -> None:
    """Deletes the file of a spilled payload; idempotent, and nothing for any other."""
    if loaded.is_temporary:
        Path(loaded.slice.path).unlink(missing_ok=True)


def empty_spill(folder: str) -> None:
    """Deletes what an earlier process spilled and did not live to discard. Only at start, by the folder's owner."""
    for path in Path(folder).glob(_SPILL_PREFIX + "*"):
        path.unlink(missing_ok=True)


def _file(relative: str, size_bytes: int, place: Place) -> Loaded | LineError:
    descriptor = open_below(place.payload_root, relative)
    if isinstance(descriptor, LineError):
        return LineError(FailureReason.PAYLOAD_GONE, descriptor.message)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor).st_size
        if found != size_bytes:
            return _gone(f"payload_path {shown(relative)}", f"has {found} bytes")
        if size_bytes > INLINE_MAX_BYTES:
            return OnDisk(FileSlice(_resolved(place.payload_root, relative), 0, size_bytes))
        return _read(file.fileno(), relative, size_bytes)


def _read(descriptor: int, relative: str, size_bytes: int) -> InMemory | LineError:
    try:
        data = os.pread(descriptor, size_bytes + 1, 0)
    except OSError as error:
        return _gone(f"payload_path {shown(relative)}", f"cannot be read ({error.strerror})")
    return (
        InMemory(data)
        if len(data) == size_bytes
        else _gone(f"payload_path {shown(relative)}", f"has {len(data)} bytes")
    )


def _resolved(root: str, relative: str) -> str:
    return str(Path(root).resolve() / relative)


def _spill(data: bytes, folder: str) -> str:
    # Not synced: after a crash the payload is decoded again.
    try:
        with tempfile.NamedTemporaryFile(prefix=_SPILL_PREFIX, dir=folder, delete=False) as file:
            file.write(data)
    except OSError as error:
        raise disk_fault("spill a payload into", folder, error) from error
    return file.name


def _gone(what: str, now: str) -> LineError:
    return line_error(
        FailureReason.PAYLOAD_GONE, f"{what} {now}, which is not what was accepted; restore it, then replay the job"
    )
