"""HTTP/1.1 on an asyncio protocol with httptools: the hot path of the sandbox.

Requests of a connection are answered in the order they came, one at a time: while an answer is held back or a large
one is under way, requests that follow wait in `_waiting`. A request that is hung up on blocks its connection for good.
A connection that is lost takes its requests with it; what they did stays done.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import cast

import httptools

from dispatcher.sandbox.app import App, Exchange
from dispatcher.sandbox.messages import Answer, Manner, Part, Reply, Request, head_bytes
from dispatcher.sandbox.settings import FaultKind

WAITING_MAX = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_REQUEST_BODY = b"not HTTP\n"
_BAD_REQUEST = Reply(400, (("Content-Type", "text/plain"),), _BAD_REQUEST_BODY)
_LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends a reset at once


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, app: App, connections: set["Connection"]) -> None:
        self._app = app
        self._connections = connections  # those open, for the server to close at its end
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._loopback = False
        self._exchange: Exchange | None = None  # whose body is coming in
        self._current: Exchange | None = None  # which is being answered, not at once
        self._hangs = False  # `_current` is never answered
        self._waiting: deque[tuple[Exchange, bool]] = deque()
        self._later: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()  # set while the transport takes more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._app.counts.connected()
        self._writable.set()
        peer = transport.get_extra_info("peername")
        self._loopback = bool(peer) and peer[0] in {"127.0.0.1", "::1"}

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._app.counts.disconnected()
        self._writable.set()
        for handle in (self._later, self._sending):
            if handle is not None:
                handle.cancel()
        under_way = [self._exchange, self._current, *(exchange for exchange, _ in self._waiting)]
        for exchange in filter(None, under_way):
            exchange.discard()
            self._app.leave(exchange, "hung_up" if self._hangs and exchange is self._current else "client_gone")
        self._exchange = self._current = None
        self._waiting.clear()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(head_bytes(_BAD_REQUEST, keep_alive=False) + _BAD_REQUEST_BODY)
            self._transport.close()

    def close(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        known = self._headers.get(name)
        self._headers[name] = value if known is None else known + b"," + value

    def on_headers_complete(self) -> None:
        path, _, query = self._url.partition(b"?")
        request = Request(self._parser.get_method(), path, query, self._headers, self._loopback)
        exchange = self._exchange = self._app.begin(request)
        kind = None if exchange.fault is None else exchange.fault.kind
        if kind is FaultKind.RESET_BEFORE:
            self._exchange = None
            self._app.leave(exchange, "reset")
            self._reset()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and kind is not FaultKind.NO_CONTINUE:
            self._transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.feed(data)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        keep_alive = self._parser.should_keep_alive()
        if self._current is None:
            self._answer(exchange, keep_alive)
        elif len(self._waiting) < WAITING_MAX:
            self._waiting.append((exchange, keep_alive))
        else:
            self._app.leave(exchange, "too_many")
            self._transport.abort()

    # --- answering ---

    def _answer(self, exchange: Exchange, keep_alive: bool) -> None:
        answer = self._app.finish(exchange)
        if answer.manner is Manner.HANG:
            self._current, self._hangs = exchange, True
        elif answer.delay_seconds > 0:
            self._current = exchange
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(answer.delay_seconds, self._deliver_late, exchange, answer, keep_alive)
        else:
            self._deliver(exchange, answer, keep_alive)

    def _deliver_late(self, exchange: Exchange, answer: Answer, keep_alive: bool) -> None:
        self._later = self._current = None
        self._deliver(exchange, answer, keep_alive)
        self._next()

    def _deliver(self, exchange: Exchange, answer: Answer, keep_alive: bool) -> None:
        reply = answer.reply
        match answer.manner:
            case Manner.RESET:
                self._app.leave(exchange, "reset")
                self._reset()
            case Manner.MIDWAY:
                self._app.leave(exchange, "midway")
                self._break_off(reply)
            case _ if isinstance(reply.body, Part):
                self._current = exchange
                self._sending = asyncio.create_task(self._stream(exchange, reply, reply.body, keep_alive))
            case _:
                self._transport.write(head_bytes(reply, keep_alive) + reply.body)
                self._done(exchange, reply, keep_alive)

    def _done(self, exchange: Exchange, reply: Reply, keep_alive: bool) -> None:
        self._app.leave(exchange, f"{reply.status} {reply.code}" if reply.code else str(reply.status))
        if not keep_alive:
            self._transport.close()

    async def _stream(self, exchange: Exchange, reply: Reply, part: Part, keep_alive: bool) -> None:
        """Sends a body from disk, as fast as the client takes it. Cancelled when the connection is lost."""
        self._transport.write(head_bytes(reply, keep_alive))
        for chunk in part.blob.chunks(part.start, part.length):
            await self._writable.wait()
            self._transport.write(chunk)
        self._sending = self._current = None
        self._done(exchange, reply, keep_alive)
        self._next()

    def _next(self) -> None:
        while self._waiting and self._current is None and not self._transport.is_closing():
            self._answer(*self._waiting.popleft())

    def _reset(self) -> None:
        """Closes with a reset, so that the client sees an error and no end of stream."""
        found = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._transport.abort()

    def _break_off(self, reply: Reply) -> None:
        head = head_bytes(reply, keep_alive=True)
        body = reply.body if isinstance(reply.body, bytes) else reply.body.blob.read(0, 2)
        self._transport.write((head + body[: len(body) // 2]) if body else head[: len(head) // 2])
        self._transport.close()
