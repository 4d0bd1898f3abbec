"""The ledger on SQLite, as the event loop sees it: each method hands one operation to the ledger's thread and waits.

Nothing here touches the file. State of the loop's side: the tally, and whether the ledger is broken or closed; each is
changed on the loop alone, when a commit is delivered.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from dispatcher.errors import DispatcherError
from dispatcher.ledger import filing, moving, opening, reading, writer
from dispatcher.ledger.store import Store
from dispatcher.ledger.tally import Observer, Tally
from dispatcher.ledger.writer import QUEUED_CALLS, Call, Commit, Inbox, Operation, Writer
from dispatcher.model import (
    Claim,
    FileId,
    Intake,
    JobFile,
    JobRow,
    Move,
    NewFile,
    OpenJob,
    Queue,
    QueueId,
    Rejection,
    Shard,
    State,
    Transport,
)

T = TypeVar("T")

OnCommit = Callable[[float, int], None]
"""Called on the loop after each commit that changed rows: its seconds, and how many rows."""


async def open_sqlite(
    path: Path, *, on_commit: OnCommit | None = None, connect: opening.Connect = opening.connect
) -> "SqliteLedger":
    """Opens or makes the ledger `path`; its folder too.

    Raises UsageError (path cannot be used, made by a newer version), LedgerHeldError, LedgerCorruptError,
    LedgerFaultError. `connect` is for tests that break the disk.
    """
    loop = asyncio.get_running_loop()
    thread = _Thread(loop)
    ledger = SqliteLedger(thread, on_commit)
    worker = Writer(path, thread.inbox, thread.posting(ledger.deliver), connect)
    thread.worker = writer.start(worker, thread.report_open, thread.report_closed)
    try:
        ledger.begin(await asyncio.shield(thread.opened))
    except DispatcherError:
        await thread.ended()
        raise
    except asyncio.CancelledError:
        # The thread cannot be stopped while it opens; it closes again by itself as soon as it can.
        thread.inbox.end()
        raise
    return ledger


class _Opened(NamedTuple):
    queues: list[Queue]
    counts: dict[tuple[QueueId, State], int]


class _Thread:
    """The loop's end of the ledger's thread. `opened` and `closed` are set once, by the thread's two reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.inbox = Inbox()
        self.opened: asyncio.Future[_Opened] = loop.create_future()
        self.closed: asyncio.Future[DispatcherError | None] = loop.create_future()
        self.worker: Thread | None = None
        self._loop = loop

    async def ended(self) -> DispatcherError | None:
        """Waits for the thread's end; the error that closing met."""
        error = await asyncio.shield(self.closed)
        if self.worker is not None:
            # Its report was the last thing it did, so this takes no time.
            self.worker.join()
        return error

    def posting(self, take: Callable[[T], None]) -> Callable[[T], None]:
        """`take`, called from the thread, run on the loop; nothing where the loop is gone and nobody waits any more."""

        def post(value: T) -> None:
            try:
                self._loop.call_soon_threadsafe(take, value)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise

        return post

    def report_open(self, store: Store) -> None:
        """From the thread: the file is open; reads all that the loop's side must know of it."""
        self.posting(self._set_opened)(_Opened(reading.queues(store), reading.counts(store)))

    def report_closed(self, error: DispatcherError | None) -> None:
        """From the thread: it ends, with the error that closing or opening met."""
        self.posting(self._set_closed)(error)

    def _set_opened(self, opened: _Opened) -> None:
        if not self.opened.done():
            self.opened.set_result(opened)

    def _set_closed(self, error: DispatcherError | None) -> None:
        if error is not None and not self.opened.done():
            self.opened.set_exception(error)
        self.closed.set_result(error)


class SqliteLedger:
    """A `Ledger` in one SQLite file; made by `open_sqlite`."""

    def __init__(self, thread: _Thread, on_commit: OnCommit | None) -> None:
        self._thread = thread
        self._on_commit = on_commit
        self._tally = Tally()
        # One slot for each call that the thread has not answered: whoever finds none waits, and that is the back-pressure.
        self._slots = asyncio.Semaphore(QUEUED_CALLS)
        self._fault: DispatcherError | None = None
        self._ended = False
        self._wal_bytes = 0

    # --- the Protocol: job files and intake ---

    async def add_file(self, new: NewFile) -> JobFile:
        return await self._call(partial(filing.add_file, new=new), begins=True)

    async def files(self) -> list[JobFile]:
        return await self._call(filing.files)

    async def accept(self, batch: Intake) -> list[Rejection]:
        return await self._call(partial(filing.accept, batch=batch), begins=True)

    async def published(self, file: FileId, at: float) -> None:
        await self._call(partial(filing.published, file=file, at=at))

    async def rejections(self, file: FileId, after_line: int, limit: int) -> list[Rejection]:
        return await self._call(partial(filing.rejections, file=file, after_line=after_line, limit=limit))

    # --- what is known without waiting ---

    def queues(self) -> list[Queue]:
        return self._tally.queues()

    def tally(self, queue: QueueId) -> dict[State, int]:
        return self._tally.of(queue)

    def subscribe(self, observer: Observer) -> None:
        self._tally.subscribe(observer)

    def wal_bytes(self) -> int:
        """The size of the write-ahead log after the last commit. Does not wait."""
        return self._wal_bytes

    # --- dispatch ---

    async def claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None = None) -> list[Claim]:
        operation = partial(moving.claim, queue=queue, limit=limit, now=now, redirect=redirect)
        return await self._call(operation, begins=True)

    async def next_due_at(self, queue: QueueId) -> float | None:
        return await self._call(partial(moving.next_due_at, queue=queue))

    async def record(self, moves: Sequence[Move]) -> None:
        await self._call(partial(moving.record, moves=moves))

    async def recover(self, due_at: float) -> int:
        holding = self._tally.holding(State.CLAIMED)
        return await self._call(partial(moving.recover, queues=holding, due_at=due_at))

    # --- tracking and results ---

    async def shards(self) -> list[Shard]:
        return await self._call(partial(reading.shards, holding=self._tally.holding(State.SUBMITTED)))

    async def shard(self, queue: QueueId, shard: int) -> Shard | None:
        return await self._call(partial(reading.shard, queue=queue, number=shard))

    async def open_jobs(self, queue: QueueId, shard: int) -> list[OpenJob]:
        return await self._call(partial(reading.open_jobs, queue=queue, number=shard))

    async def expired_shards(self, file: FileId) -> list[tuple[QueueId, int]]:
        expired = set(self._tally.holding(State.EXPIRED))
        holding = [queue for queue in self._queues_of(file) if queue in expired]
        return await self._call(partial(reading.expired_shards, holding=holding))

    async def ambiguous(self, now: float, limit: int) -> list[OpenJob]:
        return await self._call(partial(reading.ambiguous, now=now, limit=limit))

    async def next_ambiguous_at(self) -> float | None:
        return await self._call(reading.next_ambiguous_at)

    async def rows(self, file: FileId, after_line: int, limit: int) -> list[JobRow]:
        operation = partial(reading.rows, queues=self._queues_of(file), after_line=after_line, limit=limit)
        return await self._call(operation)

    async def find(self, id: str) -> list[tuple[FileId, JobRow]]:
        return await self._call(partial(reading.find, id=id))

    async def aclose(self) -> None:
        """Waits for what was handed in. LedgerFaultError if the last checkpoint is what shows that the disk failed."""
        if not self._ended:
            self._ended = True
            self._thread.inbox.end()
        error = await self._thread.ended()
        if error is not None:
            raise writer.again(error)

    # --- the thread's end ---

    def begin(self, opened: _Opened) -> None:
        """Takes what the file held when it was opened."""
        self._tally = Tally(opened.queues, opened.counts)

    def deliver(self, commit: Commit) -> None:
        """Takes one commit in: sums and observers first, then the answers."""
        self._fault = commit.fault
        self._wal_bytes = commit.wal_bytes
        try:
            self._tally.apply(commit.made, commit.moved)
            if self._on_commit is not None and commit.rows:
                self._on_commit(commit.seconds, commit.rows)
        finally:
            # Also where an observer raised: its error goes to the loop's handler, and nobody hangs for it.
            for answer in commit.answers:
                self._slots.release()
                _resolve(answer)

    async def _call(self, operation: Operation[T], *, begins: bool = False) -> T:
        await self._slots.acquire()
        if self._ended or self._fault is not None:
            self._slots.release()
            self._refuse()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._thread.inbox.put(Call(operation, begins, future))
        # A cancel here leaves the call with the thread: it may happen or have happened, and its slot is freed with its answer.
        return await future

    def _refuse(self) -> None:
        if self._fault is not None:
            raise writer.again(self._fault)
        raise RuntimeError("the ledger is closed")

    def _queues_of(self, file: FileId) -> list[QueueId]:
        return [queue.queue_id for queue in self._tally.queues() if queue.file_id == file]


def _resolve(answer: writer.Answer) -> None:
    future: asyncio.Future[Any] = answer.call.future
    if future.done():
        return
    if answer.error is None:
        future.set_result(answer.value)
    else:
        future.set_exception(answer.error)
