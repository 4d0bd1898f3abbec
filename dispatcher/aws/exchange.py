"""One HTTP/1.1 connection, and the exchange that it carries: a request, and the answer to it.

* One exchange at a time. Bytes that come while none is under way answer nothing that was asked, so they end the connection,
  as does whatever follows an answer. A connection serves again only if both sides are through with the exchange before.
* An outcome is a value: an `Answer`, or a `Fault` that is UNKNOWN, since a request that was begun may have been taken: a
  cut, a reset, an answer that is no HTTP, too large, or late. Even a write that fails proves nothing: event loops write
  later and in parts. What is known not to have been sent is found out before an exchange begins (`dispatcher.aws.http`).
* Success that is told before the request is whole cannot be true, and is UNKNOWN; any other early answer counts.
* The connection has no timer. Its pool looks at `deadline` now and then and calls `expire`, which also ends the sending of a
  streamed body, whatever it waits for. The codes of faults are those that the SDK's HTTP client has for the same events.
"""

import asyncio
import contextlib
import math
import select
from collections.abc import AsyncIterator, Callable
from typing import cast

from msgspec import Struct

from dispatcher.aws.answers import Answer, Limits, Reader, UnreadableError
from dispatcher.aws.faults import clean, protocol_fault
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

JOIN_MAX_BYTES = 16 << 10
"""A body up to this size is copied behind its head, into one write. At 100 KB two pieces cost the same, without the copy."""

Body = bytes | Callable[[], AsyncIterator[bytes]]
"""All of it, or what makes an iterator over its parts; how long it is stands in the head already.

Behind its last part an iterator ends without waiting: the request is whole only then, and a server that has all of it may
tell success at once.
"""


class Request(Struct, frozen=True, gc=False):
    """`head` is complete: request line, every header, blank line. `expects_continue` if it has that header."""

    head: bytes
    body: Body
    expects_continue: bool = False


class Connection(asyncio.Protocol):
    """Made by `loop.create_connection`. `open` until anything forbids another exchange, `lost` at the very end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.open = False
        self.lost = False
        self.on_lost: Callable[[Connection], None] | None = None
        self.deadline = math.inf
        """When the exchange has to be over, by `time.monotonic`."""
        self.rested_at = 0.0
        """When the exchange before was over; the pool writes and reads it."""
        self.whole = True
        """The request has been given to the transport to its last byte."""
        self._loop = loop
        self._continue_seconds = limits.continue_seconds
        self._reader = Reader(limits)
        self._outcome: asyncio.Future[Answer | Fault] | None = None  # of the exchange under way
        self._sending: asyncio.Timeout | None = None  # ends the sending of a streamed body
        self._paused = False  # the transport takes no more for now
        self._room: asyncio.Future[None] | None = None  # resolved when the transport takes more
        self._word: asyncio.Future[None] | None = None  # resolved when 100 has come

    @property
    def free(self) -> bool:
        """Another exchange may begin."""
        return self.open and self._outcome is None

    def ready(self) -> bool:
        """Whether it is free, and nothing has come that the event loop has not read yet: an end, or rubbish.

        To be asked right before an exchange begins, but not before the first: over TLS, tickets may still be on their way.
        """
        return self.open and self._outcome is None and not self._poll(0)

    def begin(self, request: Request, deadline: float) -> asyncio.Future[Answer | Fault]:
        """Writes the request at once, or only its head: then `whole` is False, and `pour` has to follow."""
        outcome = self._outcome = self._loop.create_future()
        self.deadline = deadline
        self._reader.begin()
        head, body = request.head, request.body
        if not isinstance(body, bytes) or request.expects_continue:
            self.whole = False
            self._transport.write(head)
            return outcome
        self.whole = True
        if len(body) <= JOIN_MAX_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return outcome

    async def pour(self, request: Request) -> None:
        """Writes the body as fast as it is taken, but no further than the exchange lasts. Raises what its iterator raises."""
        try:
            async with asyncio.timeout(None) as scope:
                self._sending = scope
                if request.expects_continue and not self._reader.continued:
                    self._word = self._loop.create_future()
                    await asyncio.wait((self._word,), timeout=self._continue_seconds)
                await self._write_body(request.body)
        except TimeoutError:
            if not scope.expired():
                raise  # the iterator's own
        finally:
            self._sending = self._room = self._word = None

    def expire(self) -> None:
        """The deadline has passed."""
        if not self.whole:
            text = "the request was not taken within the deadline"
        else:
            text = (
                "the answer did not end within the deadline" if self._reader.taken else "no answer within the deadline"
            )
        self._fail(Fault(kind=FaultKind.UNKNOWN, reason=FailureReason.TIMEOUT, code="TimeoutError", message=text))

    def drop(self) -> None:
        """Ends the connection at once: closing with care would let a peer that says nothing keep the socket. Idempotent."""
        self.open = False
        if not self.lost:
            self._transport.abort()

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        look = select.poll()
        look.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._poll = look.poll
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self._outcome is None:
            self.drop()
            return
        reader = self._reader
        try:
            reader.feed(data)
        except UnreadableError as error:
            self._fail(protocol_fault("ClientResponseError", f"the answer cannot be read: {error}"))
            return
        if reader.done:
            self._finish()
        elif reader.continued:
            _open(self._word)

    def eof_received(self) -> None:
        self.open = False
        if self._outcome is not None and self._reader.end():
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open, self.lost = False, True
        self._reader.close()
        self._fail(_cut(exc, self._reader.taken))
        if self.on_lost is not None:
            self.on_lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        _open(self._room)

    # --- within ---

    def _finish(self) -> None:
        reader = self._reader
        through = self.whole and not self._transport.get_write_buffer_size()
        if reader.status < 300 and not through:
            self._fail(protocol_fault("ClientResponseError", "success was told before the request was whole"))
            return
        self._settle(reader.answer())
        if not (reader.keep and through):
            self.drop()

    def _fail(self, fault: Fault) -> None:
        self._settle(fault)
        self.drop()

    def _settle(self, outcome: Answer | Fault) -> None:
        waiting, self._outcome = self._outcome, None
        self.deadline = math.inf
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.reschedule(self._loop.time())

    async def _write_body(self, body: Body) -> None:
        if isinstance(body, bytes):
            self._transport.write(body)
            self.whole = True
            return
        async with _closing(body()) as parts:
            async for part in parts:
                while self._paused:
                    self._room = self._loop.create_future()
                    await self._room
                self._transport.write(part)
            self.whole = True


def _open(gate: asyncio.Future[None] | None) -> None:
    if gate is not None and not gate.done():
        gate.set_result(None)


@contextlib.asynccontextmanager
async def _closing(parts: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Closes an iterator that can be closed, so that a generator lets go of its file now and not when it is collected."""
    try:
        yield parts
    finally:
        if close := getattr(parts, "aclose", None):
            await close()


def _cut(error: Exception | None, taken: int) -> Fault:
    code = "ClientOSError" if error is not None else "ClientPayloadError" if taken else "ServerDisconnectedError"
    when = "within the answer" if taken else "before an answer"
    text = clean(f"the connection ended {when}" + (f": {error}" if error is not None else ""))
    return Fault(kind=FaultKind.UNKNOWN, reason=FailureReason.NETWORK, code=code, message=text)
