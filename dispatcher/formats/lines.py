"""Lines of an uncompressed file, in batches, in constant memory, from any cursor.

A line ends at LF; a CR before it belongs to the terminator. The last line needs none. A BOM at the start of the file
belongs to no line. Blank lines count in the numbering and are otherwise passed over. A line longer than the cap is
never held: it is skipped to its end and reported. A batch always ends at the end of a line, and the cursor carries the
SHA-256 of every byte before it, so that a reader can go on later and know that it is the same file.

What must never happen: that the lines, numbers or offsets depend on how the file was cut into batches or reads.
"""

import hashlib
import os
from types import TracebackType
from typing import Self

from msgspec import Struct

from dispatcher.errors import ChangedFileError, UnreadableFileError
from dispatcher.model import Cursor

LINE_MAX_BYTES = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"

START = Cursor(0, 0, hashlib.sha256().hexdigest())


class RawLine(Struct, frozen=True, gc=False):
    """A line without its terminator, which starts `offset` bytes into the file."""

    number: int
    offset: int
    data: bytes


class TooLong(Struct, frozen=True, gc=False):
    """A line of `length` bytes that was skipped."""

    number: int
    offset: int
    length: int


class Batch(Struct, frozen=True):
    """What was read up to `cursor`. `blank` counts blank lines; `done` says that the file has no more."""

    lines: list[RawLine]
    too_long: list[TooLong]
    blank: int
    cursor: Cursor
    done: bool


class LineReader:
    """Reads one file forward. Owned by one thread at a time; `open_lines` makes it."""

    def __init__(
        self, descriptor: int, path: str, cursor: Cursor, digest: "hashlib._Hash", max_line_bytes: int, read_bytes: int
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._max_line_bytes = max_line_bytes
        self._read_bytes = read_bytes
        # _buffer[_start:] was read and is not taken yet; _buffer[_hashed:_start] is taken and not in _digest yet.
        self._buffer = b""
        self._start = 0
        self._hashed = 0
        self._offset = cursor.offset
        self._line = cursor.line
        self._digest = digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read_batch(self, max_lines: int, max_bytes: int) -> Batch:
        """Reads lines until `max_lines` are found, `max_bytes` of the file are taken, or it ends; at least one line, maybe a blank one.

        Raises UnreadableFileError where the disk does not give the bytes.
        """
        lines: list[RawLine] = []
        too_long: list[TooLong] = []
        self._skip_bom()
        first_line, stop_at = self._line, self._offset + max_bytes
        while len(lines) + len(too_long) < max_lines and self._offset < stop_at:
            if self._take_plain(lines, max_lines - len(too_long), stop_at):
                continue
            line = self._next_line()
            if line is None:
                break
            if isinstance(line, TooLong):
                too_long.append(line)
            elif line.data and not line.data.isspace():
                lines.append(line)
        blank = self._line - first_line - len(lines) - len(too_long)
        return Batch(lines, too_long, blank, self._cursor(), self._at_end())

    def _cursor(self) -> Cursor:
        self._hash_taken()
        return Cursor(self._offset, self._line, self._digest.hexdigest())

    def _at_end(self) -> bool:
        return self._start == len(self._buffer) and not self._fill()

    def _skip_bom(self) -> None:
        if self._offset:
            return
        while len(self._buffer) < len(_BOM) and self._fill():
            pass
        if self._buffer.startswith(_BOM):
            self._take(len(_BOM))

    def _take_plain(self, lines: list[RawLine], max_lines: int, stop_at: int) -> bool:
        """Takes lines as `_next_line` does, at half its cost, up to one that is not plain; False where that is the first.

        A plain line ends in the buffer, in a bare LF, is not blank and not too long: nearly every line is.
        """
        buffer, start, number = self._buffer, self._start, self._line
        before = self._offset - start
        while len(lines) < max_lines and before + start < stop_at and (end := buffer.find(b"\n", start)) >= 0:
            data = buffer[start:end]
            if not data or data[-1] == 0x0D or data.isspace() or len(data) > self._max_line_bytes:
                break
            number += 1
            lines.append(RawLine(number, before + start, data))
            start = end + 1
        taken, self._line = start - self._start, number
        self._take(taken)
        return taken > 0

    def _next_line(self) -> RawLine | TooLong | None:
        searched = self._start
        while (end := self._buffer.find(b"\n", searched)) < 0:
            held = len(self._buffer) - self._start
            if held > self._max_line_bytes + 1:
                return self._skip_line()
            if not self._fill():
                return self._line_of(held, held) if held else None
            searched = held  # _fill moved what was held to the front
        length = end - self._start
        is_crlf = length > 0 and self._buffer[end - 1] == 0x0D
        return self._line_of(length - is_crlf, length + 1)

    def _line_of(self, length: int, taken: int) -> RawLine | TooLong:
        """The line at the front, of `length` bytes, which with its terminator takes `taken`."""
        offset, start = self._offset, self._start
        self._line += 1
        self._take(taken)
        if length > self._max_line_bytes:
            return TooLong(self._line, offset, length)
        return RawLine(self._line, offset, self._buffer[start : start + length])

    def _skip_line(self) -> TooLong:
        """Takes the line at the front, whose end is not in the buffer, without keeping it."""
        offset, last = self._offset, b""
        self._line += 1
        while (end := self._buffer.find(b"\n", self._start)) < 0:
            last = self._buffer[-1:]
            self._take(len(self._buffer) - self._start)
            if not self._fill():
                return TooLong(self._line, offset, self._offset - offset)
        before = self._buffer[self._start : end][-1:] or last
        self._take(end + 1 - self._start)
        return TooLong(self._line, offset, self._offset - offset - 1 - (before == b"\r"))

    def _take(self, count: int) -> None:
        self._start += count
        self._offset += count

    def _fill(self) -> bool:
        """Moves what is held to the front of the buffer and reads more behind it; False at the end of the file."""
        held = len(self._buffer) - self._start
        try:
            # As much again as is held, so that a long line is not copied once for every read.
            more = os.pread(self._descriptor, max(self._read_bytes, held), self._offset + held)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        self._hash_taken()
        self._buffer = self._buffer[self._start :] + more
        self._start = self._hashed = 0
        return bool(more)

    def _hash_taken(self) -> None:
        self._digest.update(memoryview(self._buffer)[self._hashed : self._start])
        self._hashed = self._start


def open_lines(
    path: str, cursor: Cursor = START, max_line_bytes: int = LINE_MAX_BYTES, read_bytes: int = _READ_BYTES
) -> LineReader:
    """Opens a file at a cursor; close the reader, or use it in a `with`.

    What lies before the cursor is read again, both to check it and to go on with its hash. Raises ChangedFileError where
    it is not what the cursor saw, UnreadableFileError where the file cannot be read.
    """
    descriptor = _open(path)
    try:
        digest = _prefix_digest(descriptor, path, cursor.offset)
        if cursor.offset and (digest is None or digest.hexdigest() != cursor.digest):
            raise ChangedFileError(f"{path} was changed after it was taken up; give the changed file a new name")
    except BaseException:
        os.close(descriptor)
        raise
    return LineReader(descriptor, path, cursor, digest or hashlib.sha256(), max_line_bytes, read_bytes)


def verify_prefix(path: str, cursor: Cursor) -> bool:
    """Whether the file still starts with the bytes that the cursor has behind it."""
    descriptor = _open(path)
    try:
        digest = _prefix_digest(descriptor, path, cursor.offset)
    finally:
        os.close(descriptor)
    return cursor.offset == 0 or (digest is not None and digest.hexdigest() == cursor.digest)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error


def _prefix_digest(descriptor: int, path: str, length: int) -> "hashlib._Hash | None":
    """The hash of the first `length` bytes; None where the file is shorter."""
    digest, offset = hashlib.sha256(), 0
    while offset < length:
        try:
            chunk = os.pread(descriptor, min(_READ_BYTES, length - offset), offset)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not chunk:
            return None
        digest.update(chunk)
        offset += len(chunk)
    return digest


def _unreadable(path: str, error: OSError) -> UnreadableFileError:
    return UnreadableFileError(f"cannot read {path}: {error.strerror}; check that the file exists and may be read")
