"""Requests to one origin over a bounded number of HTTP/1.1 connections that are kept alive.

What a fault says, and why that is certain:

* NOT_SENT: `make` has not been called, or no connection could be made. The request did not exist when the call ended.
* UNKNOWN: the request was begun (see `dispatcher.aws.exchange`). That a server closes a kept connection at the moment of
  the write is one of these; it cannot be told from a server that took the request and died. So such moments are kept rare:
  no connection rests longer than `idle_seconds`, which has to be less than the server's own limit.

An answer belongs to the request before it. So every connection that was used before, whether it rested or passes from one
caller to the next, is looked at with `poll` right before its request is made, and ended if an end or a byte came: nothing
was sent on it. Only what crosses the request on its way cannot be told from an answer to it.

The connection used last is used next, so that few are kept warm. Callers wait in the order they came. A call costs no task
and no timer: while anything is under way one sweep for all looks at the deadlines, every 50 ms.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from dispatcher.aws.answers import Answer, Limits
from dispatcher.aws.connecting import Connector, Origin
from dispatcher.aws.exchange import Body, Connection, Request
from dispatcher.aws.resolver import BoundedResolver
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

__all__ = ["Answer", "Body", "Origin", "Pool", "Request"]

SWEEP_SECONDS = 0.05

_TURN = None  # what a waiter gets that may make a connection


class Pool:
    """Owns the connections of one origin. Each of `connections` permits is a connection that is, or that is being made."""

    def __init__(
        self,
        origin: Origin,
        *,
        connections: int,
        connect_seconds: float = 5.0,
        idle_seconds: float = 12.0,
        body_max_bytes: int = 1 << 20,
        head_max_bytes: int = 32 << 10,
        continue_seconds: float = 1.0,
        resolver: BoundedResolver | None = None,
    ) -> None:
        limits = Limits(head_max_bytes, body_max_bytes, continue_seconds)
        self._connector = Connector(origin, limits, connect_seconds, resolver)
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._permits = connections  # that nobody has
        self._open: set[Connection] = set()
        self._resting: list[Connection] = []  # the one that rested longest first
        self._waiters: OrderedDict[asyncio.Future[Connection | Fault | None], float] = OrderedDict()  # with deadlines
        self._sweeping: asyncio.TimerHandle | None = None
        self._brisk = False  # the sweep comes every SWEEP_SECONDS
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None  # resolved when, after closing, nobody has a permit

    async def send(self, make: Callable[[], Request], seconds: float) -> Answer | Fault:
        """Sends one request, and is done with it within `seconds`, up to 0.05 s more, however the peer behaves.

        `make` is called when a connection is at hand, right before the request is written. What it raises, or what a
        streamed body raises, is raised here: nothing, or too little, of the request was sent then to be taken. A cancelled
        call ends its connection.
        """
        now = monotonic()
        deadline = now + seconds
        connection = self._take(now) or await self._obtain(deadline)
        if isinstance(connection, Fault):
            return connection
        try:
            request = make()
            outcome = connection.begin(request, deadline)
            if not self._brisk:
                self._sweep_briskly()
            if not connection.whole:
                await connection.pour(request)
            return await outcome
        finally:
            self._give_back(connection)

    async def aclose(self) -> None:
        """Ends every connection and every call at once, and returns when all sockets are closed. Idempotent."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._waiters:
            _answer_next(self._waiters, _not_sent("ServerDisconnectedError", "the client was closed"))
        for connection in tuple(self._open):
            connection.drop()
        await self._connector.aclose()
        if self._permits < self._connections:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    # --- who has which connection ---

    def _take(self, now: float) -> Connection | None:
        while self._resting:
            connection = self._resting.pop()
            if now - connection.rested_at < self._idle_seconds and connection.ready():
                return connection
            connection.drop()
        return None

    async def _obtain(self, deadline: float) -> Connection | Fault:
        disappointed = False
        while not self._closed:
            if self._permits:
                self._permits -= 1
                got: Connection | Fault | None = _TURN
            else:
                got = await self._wait(deadline, first=disappointed)
            if got is _TURN:
                got = await self._connect(deadline)
            elif isinstance(got, Connection) and not got.ready():
                got.drop()
                disappointed = True
                continue
            return got if isinstance(got, Fault) else self._in_time(got, deadline)
        return _not_sent("ServerDisconnectedError", "the client was closed")

    def _in_time(self, connection: Connection, deadline: float) -> Connection | Fault:
        if monotonic() < deadline:
            return connection
        self._give_back(connection)
        return _LATE

    async def _wait(self, deadline: float, *, first: bool) -> Connection | Fault | None:
        """Waits at the end; `first` of all who was given a connection that is of no use."""
        waiter: asyncio.Future[Connection | Fault | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = deadline
        if first:
            self._waiters.move_to_end(waiter, last=False)
        self._sweep_briskly()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            if not waiter.cancelled():
                self._pass_on(waiter.result())
            raise

    def _pass_on(self, got: Connection | Fault | None) -> None:
        """What a waiter was given that was cancelled before it could take it."""
        if isinstance(got, Connection):
            self._give_back(got)
        elif got is _TURN:
            self._release()

    async def _connect(self, deadline: float) -> Connection | Fault:
        """Makes a connection on a permit that the caller has; from then on the connection has it."""
        made: Connection | Fault | None = None
        try:
            made = await self._connector.connect(deadline - monotonic())
        finally:
            if not isinstance(made, Connection) or made.lost:
                self._release()
        if isinstance(made, Fault):
            return made
        made.on_lost = self._lost
        if not made.lost:
            self._open.add(made)
        if self._closed or not made.free:
            made.drop()
            return _not_sent("ServerDisconnectedError", "the connection ended before it could be used")
        return made

    def _give_back(self, connection: Connection) -> None:
        if not connection.free or self._closed:
            connection.drop()
        elif not _answer_next(self._waiters, connection):
            connection.rested_at = monotonic()
            self._resting.append(connection)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._resting:
            self._resting.remove(connection)
        self._release()

    def _release(self) -> None:
        if _answer_next(self._waiters, _TURN):
            return
        self._permits += 1
        if self._permits == self._connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    # --- time ---

    def _sweep_briskly(self) -> None:
        if self._closed or self._brisk:
            return
        self._brisk = True
        self._sweep_in(SWEEP_SECONDS)

    def _sweep_in(self, seconds: float) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        now = monotonic()
        for connection in tuple(self._open):
            if connection.deadline <= now:
                connection.expire()
        for waiter, deadline in tuple(self._waiters.items()):
            if deadline <= now:
                del self._waiters[waiter]
                waiter.set_result(_LATE)
        self._end_the_rested(now - self._idle_seconds)
        self._brisk = bool(self._waiters) or len(self._open) > len(self._resting)
        if self._brisk:
            self._sweep_in(SWEEP_SECONDS)
        elif self._resting:
            self._sweep_in(self._resting[0].rested_at + self._idle_seconds - now)

    def _end_the_rested(self, limit: float) -> None:
        for connection in self._resting:
            if connection.rested_at > limit:
                return  # those that follow rest less long
            connection.drop()


def _answer_next(
    waiters: OrderedDict[asyncio.Future[Connection | Fault | None], float], got: Connection | Fault | None
) -> bool:
    """Gives the first waiter that still waits what it waits for. False: nobody waits."""
    while waiters:
        waiter, _ = waiters.popitem(last=False)
        if not waiter.done():
            waiter.set_result(got)
            return True
    return False


def _not_sent(code: str, message: str) -> Fault:
    return Fault(kind=FaultKind.NOT_SENT, reason=FailureReason.NETWORK, code=code, message=message)


_LATE = _not_sent("ConnectionTimeoutError", "no connection was free within the deadline")
