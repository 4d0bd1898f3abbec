"""What passes between the event loop and the ledger's thread: calls one way, commits the other."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from dispatcher.errors import DispatcherError
from dispatcher.ledger.store import Store
from dispatcher.ledger.tally import Effects

T = TypeVar("T")
Operation = Callable[[Store], T]

GROUP_CALLS = 128
QUEUED_CALLS = 1_024


class Call(NamedTuple):
    """One call and where its answer goes. `deferrable` says that it can be made later as well, so that a full disk refuses it."""

    operation: Operation[Any]
    deferrable: bool
    future: "asyncio.Future[Any]"


class Answer(NamedTuple):
    """What a call returns or raises."""

    call: Call
    value: Any
    error: BaseException | None


class Commit(Struct, frozen=True):
    """One group, durable or failed; without answers, what the thread did by itself.

    `rows` is how many rows it changed, `full` whether the disk is full, `fault` what ended the ledger in it.
    """

    answers: list[Answer]
    effects: Effects
    seconds: float
    rows: int
    wal_bytes: int
    full: bool
    fault: DispatcherError | None = None


Deliver = Callable[[Commit], None]


class Inbox:
    """The calls that wait for the thread, and the sign that no more come."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()

    def put(self, call: Call) -> None:
        """Hands a call in; from the event loop."""
        self._calls.put(call)

    def end(self) -> None:
        """No call follows; from the event loop, once."""
        self._calls.put(None)

    def group(self, patience: float | None, gather_seconds: float) -> tuple[list[Call], bool]:
        """Waits for a call, at most `patience` seconds, and a moment for others to join it; whether more may come."""
        calls: list[Call] = []
        with suppress(Empty):
            while len(calls) < GROUP_CALLS:
                call = self._calls.get(block=not calls, timeout=patience)
                if call is None:
                    return calls, False
                if not calls:
                    time.sleep(gather_seconds)
                calls.append(call)
        return calls, True
