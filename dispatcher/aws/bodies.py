"""Payloads as S3 gets them, guarded the way the SDK guards them, and hashed once.

Over https the SDK sends what cannot be changed on the way anyhow with a CRC-32 behind it (`aws-chunked`, unsigned); over http
with a CRC-32 and a signed SHA-256 before it, and `uploads` has it leave the SHA-256 of a big payload out. With
`AWS_REQUEST_CHECKSUM_CALCULATION=when_required` there is no CRC-32, and the SHA-256 is signed. Which of these it is stands
in a request that the SDK made (`guard`).

What is small is in memory. What is big is read in pieces by a thread: once if its checksum goes behind it, else twice.
"""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from functools import partial
from hashlib import file_digest, sha256
from io import SEEK_END, BytesIO
from typing import TypeGuard
from zlib import crc32

from msgspec import Struct

from dispatcher.aws.http import Body
from dispatcher.aws.knowledge import Rehearsed
from dispatcher.aws.uploads import BIG_BODY_BYTES, SliceReader, crc_header, open_slice
from dispatcher.interfaces import FileSlice

UNSIGNED = "UNSIGNED-PAYLOAD"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_CRC_HEADER = "x-amz-checksum-crc32"
_PIECE_BYTES = 1 << 20
"""The SDK's chunks are as long."""

Readable = BytesIO | SliceReader


class Guard(Struct, frozen=True, kw_only=True):
    """How the SDK has S3 check a payload. `algorithm` is its name for the checksum, where it says one."""

    secure: bool
    trailer: bool
    checksum: bool
    signed: bool
    algorithm: str | None


class Upload(Struct, frozen=True, kw_only=True):
    """A payload as it stands on the wire. `headers` are signed; `sha256` may be a word instead; chunked where `length` is None."""

    body: Body
    headers: dict[str, str]
    sha256: str
    length: int | None


def guard(rehearsed: Rehearsed) -> Guard:
    """What the SDK did with a small payload."""
    headers = rehearsed.headers
    return Guard(
        secure=rehearsed.url.startswith("https:"),
        trailer=headers.get("x-amz-trailer") == _CRC_HEADER,
        checksum=_CRC_HEADER in headers,
        signed=headers.get("x-amz-content-sha256") not in {UNSIGNED, UNSIGNED_TRAILER},
        algorithm=headers.get("x-amz-sdk-checksum-algorithm"),
    )


def open_payload(payload: FileSlice) -> bytes | SliceReader:
    """What is small as bytes; what is big as a reader, for the caller to close (blocking). Raises PayloadGoneError."""
    reader = open_slice(payload)
    if payload.length > BIG_BODY_BYTES:
        return reader
    with reader:
        return reader.readall() if payload.length else b""


def is_small(payload: bytes | SliceReader) -> TypeGuard[bytes]:
    """Whether `small` is for it, else `big`."""
    return isinstance(payload, bytes) and len(payload) <= BIG_BODY_BYTES


def small(payload: bytes, how: Guard) -> Upload:
    """Prepares what is in memory, at once."""
    if how.trailer:
        framed = b"".join([*_framed(payload), *_trailer(crc32(payload))])
        return _trailed(framed, len(payload), how)
    headers = {_CRC_HEADER: _encoded(crc32(payload))} if how.checksum else {}
    hashed = sha256(payload).hexdigest() if how.signed else UNSIGNED
    return Upload(body=payload, headers=headers | _named(how), sha256=hashed, length=len(payload))


async def big(payload: bytes | SliceReader, how: Guard) -> Upload:
    """Prepares what a thread reads. Raises PayloadGoneError."""
    reader = BytesIO(payload) if isinstance(payload, bytes) else payload
    size = reader.seek(0, SEEK_END)
    if how.trailer:
        return _trailed(partial(_chunks, reader), size, how)
    if how.signed and how.secure:
        hashed, headers = await asyncio.to_thread(_sha256, reader), {}
    else:
        hashed, headers = UNSIGNED, {_CRC_HEADER: await asyncio.to_thread(_crc, reader)}
    return Upload(body=partial(_pieces, reader), headers=headers | _named(how), sha256=hashed, length=size)


def _trailed(body: Body, size: int, how: Guard) -> Upload:
    headers = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": _CRC_HEADER,
        "X-Amz-Decoded-Content-Length": str(size),
    }
    return Upload(body=body, headers=headers | _named(how), sha256=UNSIGNED_TRAILER, length=None)


def _named(how: Guard) -> dict[str, str]:
    return {"x-amz-sdk-checksum-algorithm": how.algorithm} if how.algorithm else {}


def _encoded(crc: int) -> str:
    return b64encode(crc.to_bytes(4, "big")).decode()


# --- pieces ----------------------------------------------------------------------------------------------------------


async def _pieces(reader: Readable) -> AsyncIterator[bytes]:
    """Up to the last byte, without one more read to find the end: what follows the last piece must not wait (see Body)."""
    end = reader.seek(0, SEEK_END)
    reader.seek(0)
    while reader.tell() < end:
        yield await asyncio.to_thread(reader.read, _PIECE_BYTES)


async def _chunks(reader: Readable) -> AsyncIterator[bytes]:
    """The pieces in the frames of `aws-chunked`, these in the frames of HTTP, and the checksum of them all."""
    crc = 0
    async for piece in _pieces(reader):
        crc = crc32(piece, crc)
        for part in _framed(piece):
            yield part
    for part in _trailer(crc):
        yield part


def _framed(piece: bytes) -> tuple[bytes, ...]:
    """A chunk within a chunk; nothing for an empty piece, which would be the end."""
    if not piece:
        return ()
    inner = b"%x\r\n" % len(piece)
    return b"%x\r\n%b" % (len(inner) + len(piece) + 2, inner), piece, b"\r\n\r\n"


def _trailer(crc: int) -> tuple[bytes, ...]:
    last = b"0\r\n%b:%b\r\n\r\n" % (_CRC_HEADER.encode(), _encoded(crc).encode())
    return (b"%x\r\n%b\r\n" % (len(last), last), b"0\r\n\r\n")


def _sha256(reader: Readable) -> str:
    reader.seek(0)
    return file_digest(reader, "sha256").hexdigest()


def _crc(reader: Readable) -> str:
    reader.seek(0)
    return crc_header(reader)
