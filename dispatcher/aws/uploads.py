"""Payloads on disk as bodies of a PUT: never in memory as a whole, never read on the event loop.

What the SDK does with a body that can be read and sought (botocore 1.43, aiobotocore 3.10, aiohttp 3.14):

* over https it wraps the body for `aws-chunked`, reads 1 MiB at a time on the event loop and adds up a CRC-32 for the trailer;
* over http, where a stand-in for S3 is served, it reads the whole body twice on the event loop before it sends: once for the
  CRC-32 header, once for the SHA-256 of the signature. Then aiohttp reads it a third time, in a thread.

So over https the body is read by a thread, and over http a big one gets its CRC-32 from a thread and goes with an unsigned
payload. What is small and in memory goes the SDK's way; so does, over https, what is to have no checksum
(`AWS_REQUEST_CHECKSUM_CALCULATION=when_required`): the SDK then hashes the body on the event loop.
"""

import asyncio
import io
import os
import stat
import threading
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from zlib import crc32

from aiobotocore.config import AioConfig

from dispatcher.interfaces import FileSlice

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BIG_BODY_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_CRC_HEADER = "x-amz-checksum-crc32"


class PayloadGoneError(OSError):
    """The file is gone, is no regular file, or is shorter than the slice says."""


class SliceReader(io.RawIOBase):
    """The bytes of a FileSlice as a raw file that can be sought; owns its descriptor.

    Read by one thread at a time, closed by the event loop: `_lock` keeps a late read of a cancelled upload from meeting a
    descriptor number that is somebody else's by then. `gone` is set by the read that found the file too short.
    """

    def __init__(self, descriptor: int, piece: FileSlice) -> None:
        self._descriptor = descriptor
        self._piece = piece
        self._position = 0
        self._lock = threading.Lock()
        self.gone = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._piece.length}
        self._position = min(max(bases[whence] + offset, 0), self._piece.length)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)[: self._piece.length - self._position]
        if not view:
            return 0
        with self._lock:
            if self.closed:
                raise ValueError("the payload was closed while it was being sent")
            read = os.preadv(self._descriptor, [view], self._piece.offset + self._position)
        if not read:
            self.gone = True
            raise PayloadGoneError(f"the file ends {self._piece.length - self._position} bytes too early")
        self._position += read
        return read

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                os.close(self._descriptor)
                super().close()


def open_slice(piece: FileSlice) -> SliceReader:
    """Opens the slice (blocking). Raises PayloadGoneError."""
    try:
        # Without O_NONBLOCK a pipe put in the file's place would hold the thread for ever.
        descriptor = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PayloadGoneError(error.strerror or "it cannot be opened") from error
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size >= piece.offset + piece.length:
        return SliceReader(descriptor, piece)
    os.close(descriptor)
    raise PayloadGoneError("it is no regular file, or is shorter than it was")


async def spare_the_loop(params: dict[str, Any], **_: Any) -> None:
    """Hook of the SDK, called before a PUT is signed and sent; `params` is the SDK's request."""
    body = params["body"]
    if params["url"].startswith("https:"):
        if isinstance(body, SliceReader) and _is_chunked(params["context"]):
            params["body"] = _ThreadReads(body)
    elif _size(body) > BIG_BODY_BYTES:
        params["headers"][_CRC_HEADER] = await asyncio.to_thread(crc_header, body)
        _leave_payload_unsigned(params["context"])


class _ThreadReads:
    """A SliceReader whose `read` is a coroutine: the SDK's chunking awaits what `read` returns."""

    def __init__(self, reader: SliceReader) -> None:
        self._reader = reader
        self.seek = reader.seek
        self.tell = reader.tell

    async def read(self, size: int = -1) -> bytes:
        return await asyncio.to_thread(self._reader.read, size)


def _is_chunked(context: dict[str, Any]) -> bool:
    """Whether the checksum comes behind the body. Else the SDK hashes the body before, and its signer awaits nothing."""
    algorithm = context.get("checksum", {}).get("request_algorithm")
    return isinstance(algorithm, dict) and algorithm.get("in") == "trailer"


def _size(body: Any) -> int:
    if not isinstance(body, (SliceReader, io.BytesIO)):
        return 0
    here = body.tell()
    size = body.seek(0, io.SEEK_END) - here
    body.seek(here)
    return size


def crc_header(body: Any) -> str:
    """The header's value for what the body holds from where it stands, to which it goes back (blocking)."""
    here, crc = body.tell(), 0
    while chunk := body.read(_READ_BYTES):
        crc = crc32(chunk, crc)
    body.seek(here)
    return b64encode(crc.to_bytes(4, "big")).decode()


def _leave_payload_unsigned(context: dict[str, Any]) -> None:
    """For this request alone; the CRC-32 still guards the bytes, and over https S3's payloads are never signed either."""
    context["client_config"] = context["client_config"].merge(AioConfig(s3={"payload_signing_enabled": False}))
