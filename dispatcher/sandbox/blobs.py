"""Bytes that came in: a small blob in memory, a large one in a file that goes away with it.

A blob never changes, so an echoed output is its input's blob. Digests are made when first asked for, and of a large
blob while it comes in: a body is never held in memory beyond `MEMORY_MAX_BYTES`.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MEMORY_MAX_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18


class Blob:
    """`size` bytes, in memory (`data`) or in the file `path`."""

    __slots__ = ("__weakref__", "_crc32", "_md5", "_sha256", "data", "path", "size")

    def __init__(self, data: bytes | None, path: Path | None = None, size: int = 0) -> None:
        self.data = data
        self.path = path
        self.size = size if data is None else len(data)
        self._md5: bytes | None = None
        self._sha256: str | None = None
        self._crc32: int | None = None

    def md5(self) -> bytes:
        """The MD5, as its 16 bytes."""
        if self._md5 is None:
            self._md5 = hashlib.md5(self.data or b"", usedforsecurity=False).digest()
        return self._md5

    def sha256(self) -> str:
        """The SHA-256, in hex."""
        if self._sha256 is None:
            self._sha256 = hashlib.sha256(self.data or b"").hexdigest()
        return self._sha256

    def crc32(self) -> str:
        """The CRC-32 as S3 writes it: base64 of four bytes."""
        if self._crc32 is None:
            self._crc32 = binascii.crc32(self.data or b"")
        return base64.b64encode(self._crc32.to_bytes(4)).decode()

    def read(self, start: int, length: int) -> bytes:
        """A small part, at once."""
        return b"".join(self.chunks(start, length))

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        """A part, in pieces of at most `CHUNK_BYTES` where it is on disk."""
        if self.data is not None:
            yield self.data[start : start + length]
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk

    @classmethod
    def on_disk(cls, path: Path, size: int, md5: bytes, sha256: str, crc32: int) -> "Blob":
        """A blob that owns the file: it is removed when nothing refers to the blob any more."""
        blob = cls(None, path, size)
        blob._md5, blob._sha256, blob._crc32 = md5, sha256, crc32
        weakref.finalize(blob, _remove, str(path))
        return blob


class Spool:
    """Collects a body as it comes in and ends as a blob."""

    __slots__ = ("_crc32", "_file", "_folder", "_md5", "_path", "_pieces", "_sha256", "size")

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._pieces: list[bytes] = []
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        self.size += len(data)
        if self._file is not None:
            self._store(data)
            return
        self._pieces.append(data)
        if self.size > MEMORY_MAX_BYTES:
            self._overflow()

    def finish(self) -> Blob:
        """The blob; nothing may be fed after it."""
        if self._file is None:
            pieces = self._pieces
            return Blob(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._file.close()
        assert self._path is not None
        return Blob.on_disk(self._path, self.size, self._md5.digest(), self._sha256.hexdigest(), self._crc32)

    def discard(self) -> None:
        """Forgets a body that will not come to its end."""
        if self._file is not None and not self._file.closed and self._path is not None:
            self._file.close()
            _remove(str(self._path))

    def _overflow(self) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder)
        self._file, self._path = os.fdopen(handle, "wb"), Path(name)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            self._store(piece)

    def _store(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._md5.update(data)
        self._sha256.update(data)
        self._crc32 = binascii.crc32(data, self._crc32)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
