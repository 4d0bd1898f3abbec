"""Requests and answers as values, and the bytes of an answer."""

import random
from collections.abc import Mapping
from enum import Enum, auto
from http import HTTPStatus
from typing import NamedTuple

from msgspec import Struct

from dispatcher.sandbox.blobs import Blob

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request(Struct, frozen=True):
    """The head of a request. Header names are lower case; `path` and `query` are raw bytes."""

    method: bytes
    path: bytes
    query: bytes
    headers: Mapping[bytes, bytes]
    loopback: bool

    def header(self, name: bytes) -> str | None:
        """A header as text, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("utf-8", "replace")


class Part(NamedTuple):
    """Some bytes of a blob."""

    blob: Blob
    start: int
    length: int


class Reply(Struct, frozen=True):
    """An answer. `length` is the Content-Length of an answer to HEAD, which has no body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | Part = b""
    length: int | None = None
    code: str = ""


class Manner(Enum):
    """How an answer reaches the client, or does not."""

    SEND = auto()
    RESET = auto()
    MIDWAY = auto()
    HANG = auto()


class Answer(Struct, frozen=True):
    """A reply and its manner; it is held back for `delay_seconds`."""

    reply: Reply
    manner: Manner = Manner.SEND
    delay_seconds: float = 0.0


def new_id() -> str:
    """A random id in the form of a UUID; not a secret, so it comes from the cheap generator."""
    raw = f"{random.getrandbits(128):032x}"
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def head_bytes(reply: Reply, keep_alive: bool) -> bytes:
    """Status line and headers."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in reply.headers])
    connection = "" if keep_alive else "Connection: close\r\n"
    length = "" if reply.status in {204, 304} else f"Content-Length: {body_length(reply)}\r\n"
    reason = _REASONS.get(reply.status, "Unknown")
    return f"HTTP/1.1 {reply.status} {reason}\r\n{lines}{length}{connection}\r\n".encode("utf-8", "replace")


def body_length(reply: Reply) -> int:
    """What Content-Length says."""
    if reply.length is not None:
        return reply.length
    return reply.body.length if isinstance(reply.body, Part) else len(reply.body)
