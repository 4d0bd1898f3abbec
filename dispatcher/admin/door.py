"""Who may be connected to the admin server, and for how long: descriptors are for dispatching first.

At most CONNECTIONS at once. One more is let in all the same, and the one that asked longest ago (or came, where it never
asked) is closed for it: a check of health gets through, however many others stand open and say nothing. Nobody stays who

* has begun a request and not ended it within `request_seconds`, or has not begun one since it came;
* does not read its answer within `unread_seconds`;
* asked `idle_seconds` ago and not again.

What came in one piece with the request before counts as idleness. A connection that ends so is dropped, not closed: a close
would wait until what was written is read.
"""

import asyncio
from typing import Any

import structlog
from msgspec import Struct

log = structlog.get_logger(__name__)

CONNECTIONS = 64
ACCEPTED_AT_ONCE = CONNECTIONS // 4
"""It takes four turns of the loop until a request that came at once is known as one: no more than CONNECTIONS may follow by then."""
WAITING = 1024
"""Connections that the kernel holds until they are accepted; whoever finds no room there tries again a second later."""
FAILED_SECONDS = 60.0
"""Connections that cannot be accepted, for want of descriptors say, are tried again many times a second, and told so seldom."""


class Patience(Struct, frozen=True, kw_only=True):
    """How long is waited for a request, for an answer to be read, and for the next request."""

    request_seconds: float = 5.0
    unread_seconds: float = 10.0
    idle_seconds: float = 75.0
    """Longer than Prometheus's usual scrape interval, so that its connection lasts."""


PATIENCE = Patience()


class Door:
    """The connections of one server, the one that asked longest ago first. For its loop alone."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._inside: dict[asyncio.BaseTransport, _Connection] = {}

    def let_in(self, handler: asyncio.Protocol) -> asyncio.Protocol:
        """The protocol of one connection, in front of the server's own."""
        return _Connection(handler, self._patience, self._inside)

    def asked(self, transport: asyncio.BaseTransport) -> None:
        """A whole request has come over this one."""
        connection = self._inside.pop(transport, None)
        if connection is not None:
            self._inside[transport] = connection
            connection.asked()


class _Connection(asyncio.Protocol):
    """Hands on to the server's own protocol whatever happens, and ends the connection when its time is up."""

    def __init__(
        self, handler: asyncio.Protocol, patience: Patience, inside: "dict[asyncio.BaseTransport, _Connection]"
    ) -> None:
        self._handler = handler
        self._patience = patience
        self._inside = inside
        self._transport: asyncio.Transport | None = None
        self._end: asyncio.TimerHandle | None = None
        # Whether a time runs, for a request or for reading an answer, that bytes from the other side do not begin anew.
        self._is_due = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self._inside) >= CONNECTIONS:
            next(iter(self._inside.values())).drop()
        self._transport = transport
        self._inside[transport] = self
        self._due_in(self._patience.request_seconds)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._is_due:
            self._due_in(self._patience.request_seconds)
        self._handler.data_received(data)

    def asked(self) -> None:
        """A request is whole."""
        self._is_due = False
        self._end_in(self._patience.idle_seconds)

    def pause_writing(self) -> None:
        self._due_in(self._patience.unread_seconds)
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self.asked()
        self._handler.resume_writing()

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._leave()
        self._handler.connection_lost(exc)

    def drop(self) -> None:
        """Ends it now; its place is free at once."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        if self._transport is not None:
            self._inside.pop(self._transport, None)

    def _due_in(self, seconds: float) -> None:
        self._is_due = True
        self._end_in(seconds)

    def _end_in(self, seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(seconds, self.drop)


class Seldom:
    """The exception handler of the server's loop: says once in FAILED_SECONDS that connections cannot be accepted."""

    def __init__(self) -> None:
        self._again_at = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" not in context or not isinstance(error, OSError):
            loop.default_exception_handler(context)
        elif loop.time() >= self._again_at:
            self._again_at = loop.time() + FAILED_SECONDS
            log.warning(
                "connections to the admin server cannot be accepted; tried again all the while", error=str(error)
            )
