"""Reads lines of a job file again, by offset and length, when they are about to be sent."""

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import check_folder_of, disk_fault
from dispatcher.formats.faults import LineError, line_error
from dispatcher.model import FailureReason

_READ_MAX_BYTES = 1024 * 1024
_GAP_MAX_BYTES = 64 * 1024


class Span(NamedTuple):
    """Where a line stands in the file, in bytes."""

    offset: int
    length: int


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
        """The bytes of each span, in the order given. Spans that follow each other closely share a read."""
        found: list[bytes | LineError] = []
        for run in _runs(spans):
            start = run[0].offset
            data = self._read(start, run[-1].offset + run[-1].length - start)
            found.extend(self._cut(data, span, span.offset - start) for span in run)
        return found

    def _cut(self, data: bytes, span: Span, at: int) -> bytes | LineError:
        line = data[at : at + span.length]
        return line if len(line) == span.length else _gone(self._path, span)

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


def _runs(spans: Sequence[tuple[int, int]]) -> Iterator[list[Span]]:
    """Splits the spans into runs that go forward, leave small gaps, and fit a read."""
    run: list[Span] = []
    for span in map(Span._make, spans):
        if run and not _follows(run, span):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


def _follows(run: list[Span], span: Span) -> bool:
    end = run[-1].offset + run[-1].length
    is_near = end <= span.offset <= end + _GAP_MAX_BYTES
    return is_near and span.offset + span.length - run[0].offset <= _READ_MAX_BYTES


def _gone(path: str, span: Span) -> LineError:
    return line_error(
        FailureReason.PAYLOAD_GONE,
        f"{path} is shorter than when its jobs were accepted (byte {span.offset + span.length} is missing); restore the file",
    )
