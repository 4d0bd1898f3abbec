"""Reads lines of a job file again, by offset and length, when they are about to be sent."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import check_folder_of, disk_fault
from dispatcher.formats.faults import LineError, line_error
from dispatcher.model import FailureReason

_READ_MAX_BYTES = 1024 * 1024
_GAP_MAX_BYTES = 64 * 1024


class LineSource:
    """One job file's data, open for positioned reads from any thread; `open_source` makes it."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; idempotent. Nothing may be reading."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, offset: int, length: int) -> bytes | LineError:
        """The bytes of one line; PAYLOAD_GONE where the file is too short. DiskFaultError where it cannot be read."""
        return self.read_many([(offset, length)])[0]

    def read_many(self, spans: Sequence[tuple[int, int]]) -> list[bytes | LineError]:
        """The bytes of each span (offset and length), in the order given. Spans that follow each other closely share a read."""
        found: list[bytes | LineError] = []
        while len(found) < len(spans):
            run = spans[len(found) : _run_end(spans, len(found))]
            start, (last, length) = run[0][0], run[-1]
            data = self._read(start, last + length - start)
            for offset, length in run:
                line = data[offset - start : offset - start + length]
                found.append(line if len(line) == length else _gone(self._path, offset + length))
        return found

    def _read(self, offset: int, length: int) -> bytes:
        """What the file has of these bytes: less only at its end."""
        parts: list[bytes] = []
        while length > 0:
            try:
                part = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise disk_fault("read", self._path, error) from error
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def open_source(path: str) -> LineSource:
    """Opens a job file's data. Raises UnreadableFileError."""
    try:
        return LineSource(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
    except OSError as error:
        check_folder_of(path)
        raise UnreadableFileError(f"cannot read {path}: {error.strerror}; put the job file back as it was") from error


def _run_end(spans: Sequence[tuple[int, int]], first: int) -> int:
    """Where the run that begins with the span at `first` ends: it goes forward, leaves small gaps, and fits a read."""
    start, length = spans[first]
    end, limit = start + length, start + _READ_MAX_BYTES
    for position in range(first + 1, len(spans)):
        offset, length = spans[position]
        if not (end <= offset <= end + _GAP_MAX_BYTES and offset + length <= limit):
            return position
        end = offset + length
    return len(spans)


def _gone(path: str, end: int) -> LineError:
    return line_error(
        FailureReason.PAYLOAD_GONE,
        f"{path} is shorter than when its jobs were accepted (byte {end} is missing); restore the file",
    )
