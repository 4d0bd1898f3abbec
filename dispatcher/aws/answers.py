"""Reads the answers that come over one connection, on llhttp's strict rules; knows nothing of sockets.

What an answer may cost is capped whatever the peer sends: its heads (interim ones and trailers too), the number of its
fields, its body, and the bytes that none of these hold, such as a status line or a trailer that never ends.
"""

from typing import Any

import httptools
from msgspec import Struct

_FIELD_BYTES = 32  # what a field of a head counts besides its text, so that one cap bounds size and number


_NAMES: dict[bytes, str] = {}
"""Names of headers in lower case, as they came; a service has few, and a peer with many gets no more than this."""
_NAMES_MAX = 256


class Answer(Struct, frozen=True, gc=False):
    """A final answer. Names of headers are in lower case; the values of one that came more than once stand side by side."""

    status: int
    headers: dict[str, str]
    body: bytes


class Limits(Struct, frozen=True):
    """The most an answer may have: in all its heads together, each field counted with 32 bytes more, and in its body.

    `continue_seconds` is how long a `100 Continue` is waited for; servers may leave it out, so then the body goes all the same.
    """

    head_bytes: int
    body_bytes: int
    continue_seconds: float


class UnreadableError(Exception):
    """What came is no answer, or too much of one."""


class Reader:
    """`begin` before each answer, then `feed` until it is `done`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser: Any = httptools.HttpResponseParser(self)  # None once it is closed
        self.begin()

    def begin(self) -> None:
        """Forgets the answer before."""
        self.done = False
        """A final answer is complete; nothing may follow before the next `begin`."""
        self.keep = False
        """The peer lets the connection live on, and nothing followed the answer."""
        self.continued = False
        """A `100 Continue` has come."""
        self.ends_with_connection = False
        """The answer tells no length: unless it is done without a body, it is when the connection ends in order."""
        self.status = 0
        self.taken = 0  # bytes, of everything
        self._headers: dict[str, str] = {}
        self._headed = False
        self._parts: list[bytes] = []
        self._room, self._body_room = self._limits.head_bytes, self._limits.body_bytes

    def feed(self, data: bytes) -> None:
        """Raises UnreadableError; not for what follows an answer, which only costs it the connection."""
        self.taken += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keep = False
            if not self.done:
                cause = error.__context__ if isinstance(error.__context__, UnreadableError) else error
                raise UnreadableError(str(cause)) from error
        if self.taken > self._limits.head_bytes and not self.done:
            self._check_taken()

    def _check_taken(self) -> None:
        # A body in chunks takes more than its bytes; one that takes twice as many is made of hardly anything but seams.
        if not self._headed or self.taken > self._limits.head_bytes + 2 * self._limits.body_bytes:
            raise UnreadableError("the answer is too large")

    def end(self) -> bool:
        """The peer has ended the connection in order. Whether that completes the answer."""
        if self.ends_with_connection and not self.done:
            self.done = True
            return True
        return False

    def answer(self) -> Answer:
        """The answer that is done."""
        parts = self._parts
        return Answer(self.status, self._headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self) -> None:
        """Lets go of the parser, which holds the reader: else only the garbage collector could free the two."""
        self._parser = None

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        if self.done:
            raise UnreadableError("more than one answer")
        self._headers = {}
        self._headed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        room = self._room = self._room - len(name) - len(value) - _FIELD_BYTES
        if room < 0:
            raise UnreadableError("the head of the answer is too large")
        if self._headed:
            return  # a trailer
        key = _NAMES.get(name) or _lower(name)
        text = value.decode().rstrip()  # not UTF-8 is an error like the others
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        status = self.status = self._parser.get_status_code()
        headers = self._headers
        coding = headers.get("transfer-encoding")
        if status < 100 or (coding is not None and coding.lower() != "chunked"):
            raise UnreadableError("the answer is of a kind that was not asked for")
        self._headed = status >= 200
        lengthless = coding is None and "content-length" not in headers
        self.ends_with_connection = lengthless and self._headed

    def on_body(self, data: bytes) -> None:
        self._body_room -= len(data)
        if self._body_room < 0:
            raise UnreadableError("the body of the answer is too large")
        self._parts.append(data)

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.done = True
            self.keep = self._parser.should_keep_alive()
        elif self.status == 100:
            self.continued = True


def _lower(name: bytes) -> str:
    lower = name.decode().lower()
    if len(_NAMES) < _NAMES_MAX:
        _NAMES[name] = lower
    return lower
