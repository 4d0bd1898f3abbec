"""The record of all that the sandbox accepted and of how it ended: JSON lines, appended, never read by the sandbox.

Lines are written together, at the latest `FLUSH_SECONDS` after they were made, when asked, and at the end. The file
belongs to this process alone, so it outlives whatever happens to the process under test.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

FLUSH_SECONDS = 0.2
FLUSH_BYTES = 1 << 16


Verdict = Literal["told", "slow", "cut", "hang", "bare", "wrong_id"]


class Accepted(Struct, frozen=True, kw_only=True, gc=False, tag="accepted", tag_field="event"):
    """A job that was taken. `verdict` is what the client was (or was not) told; `payload_sha256` is None for an input in S3."""

    time: float
    endpoint: str
    inference_id: str
    transport: Literal["inline", "s3"]
    input_location: str | None
    payload_sha256: str | None
    bytes: int
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    ttl: int | None
    timeout: int | None
    output_location: str
    failure_location: str | None
    verdict: Verdict


class Finished(Struct, frozen=True, kw_only=True, gc=False, tag="finished", tag_field="event"):
    """A job that ended. `payload_sha256` and `bytes` are the input's as the model read it, None where it did not."""

    time: float
    endpoint: str
    inference_id: str
    output_location: str
    result: str
    payload_sha256: str | None
    bytes: int | None


class Recorder:
    """Writes the record, or nothing where it has no path."""

    def __init__(self, path: str | None, later: Callable[[float, Callable[[], None]], asyncio.TimerHandle]) -> None:
        self._path = path
        self._later = later
        self._encode = msgspec.json.Encoder().encode
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None  # set while lines wait
        self._file: int | None = None

    @property
    def kept(self) -> bool:
        """Whether there is a record."""
        return self._path is not None

    def add(self, line: Accepted | Finished) -> None:
        """Takes a line."""
        self._buffer += self._encode(line)
        self._buffer += b"\n"
        if len(self._buffer) >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = self._later(FLUSH_SECONDS, self.flush)

    def open(self) -> None:
        """Opens the file; its folder is made if need be."""
        if self._path is not None:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def flush(self) -> None:
        """Hands all lines to the operating system."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        view = memoryview(bytes(self._buffer))
        self._buffer.clear()
        while self._file is not None and view:
            view = view[os.write(self._file, view) :]

    def close(self) -> None:
        """Writes what is left. Idempotent."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None
