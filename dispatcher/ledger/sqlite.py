"""The ledger on SQLite, as the event loop sees it: each method hands one operation to the ledger's thread and waits.

Nothing here touches the file. State of the loop's side: the tally, and whether the ledger is full, broken or closed; each is
changed on the loop alone, when a commit is delivered.

Every call is one operation, all or nothing, but for `end_unsent` and `cancel`: they walk the file in slices, so that other
calls are answered between them, and one that is broken off has ended a part; made again it ends the rest. A cancel is noted
before its first slice, so that from there on nothing of the file is claimed.

Over 300 lines because it is one class that answers the whole Protocol.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from dispatcher.errors import DispatcherError, LedgerHeldError
from dispatcher.ledger import ending, filing, moving, opening, reading, rules, writer
from dispatcher.ledger.calls import QUEUED_CALLS, Answer, Call, Commit, Operation
from dispatcher.ledger.ending import Ending
from dispatcher.ledger.tally import Observer, Sums, Tally
from dispatcher.ledger.thread import LedgerThread
from dispatcher.ledger.upkeep import Pace
from dispatcher.ledger.writer import Writer
from dispatcher.model import (
    Claim,
    EndpointName,
    Error,
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

log = structlog.get_logger(__name__)

T = TypeVar("T")

HELD_PAUSE_SECONDS = 0.05
"""Between two tries to get a ledger, or a spool, that is held."""

OnCommit = Callable[[float, int], None]
"""Called on the loop after each commit that changed rows: its seconds, and how many rows."""


async def open_sqlite(
    path: Path,
    *,
    on_commit: OnCommit | None = None,
    connect: opening.Connect = opening.connect,
    pace: Pace = Pace(),  # noqa: B008 - frozen
    patience_seconds: float = 0.0,
) -> "SqliteLedger":
    """Opens or makes the ledger `path`; its folder too.

    Raises UsageError (path cannot be used, made by a newer version), LedgerHeldError, LedgerCorruptError,
    LedgerFaultError. A ledger that is held is asked for again for `patience_seconds`: a command that only looks holds it for a
    moment. `connect` is for tests that break the disk, `pace` for those that cannot wait.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + patience_seconds
    while True:
        try:
            return await _open(loop, path, on_commit, connect, pace)
        except LedgerHeldError:
            if loop.time() >= end:
                raise
        await asyncio.sleep(HELD_PAUSE_SECONDS)


async def _open(
    loop: asyncio.AbstractEventLoop, path: Path, on_commit: OnCommit | None, connect: opening.Connect, pace: Pace
) -> "SqliteLedger":
    thread = LedgerThread(loop)
    ledger = SqliteLedger(thread, on_commit)
    worker = Writer(path, thread.inbox, thread.posting(ledger.deliver), connect, pace)
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


class SqliteLedger:
    """A `Ledger` in one SQLite file; made by `open_sqlite`."""

    def __init__(self, thread: LedgerThread, on_commit: OnCommit | None) -> None:
        self._thread = thread
        self._on_commit = on_commit
        self._tally = Tally()
        # One slot for each call that the thread has not answered: whoever finds none waits, and that is the back-pressure.
        self._slots = asyncio.Semaphore(QUEUED_CALLS)
        self._fault: DispatcherError | None = None
        self._ended = False
        self._wal_bytes = 0
        self._full = False
        # Set while nobody has to wait for space: written by `deliver` and `aclose`, read by `free`.
        self._room = asyncio.Event()
        self._room.set()

    # --- the Protocol: job files and intake ---

    async def add_file(self, new: NewFile) -> JobFile:
        return await self._call(partial(filing.add_file, new=new), deferrable=True)

    async def files(self) -> list[JobFile]:
        return await self._call(filing.files)

    async def file(self, file: FileId) -> JobFile | None:
        return await self._call(partial(filing.find_file, file=file))

    async def accept(self, batch: Intake) -> list[Rejection]:
        return await self._call(partial(filing.accept, batch=batch), deferrable=True)

    async def published(self, file: FileId, at: float) -> None:
        await self._call(partial(filing.published, file=file, at=at))

    async def rejections(self, file: FileId, after_line: int, limit: int) -> list[Rejection]:
        return await self._call(partial(filing.rejections, file=file, after_line=after_line, limit=limit))

    # --- what is known without waiting ---

    def queues(self, file: FileId | None = None) -> list[Queue]:
        return self._tally.queues(file)

    def queue(self, id: QueueId) -> Queue:
        return self._tally.queue(id)

    def tally(self, queue: QueueId) -> dict[State, int]:
        return self._tally.of(queue)

    def subscribe(self, observer: Observer) -> None:
        self._tally.subscribe(observer)

    def totals(self) -> dict[tuple[EndpointName, State], int]:
        return self._tally.totals()

    def lines(self) -> tuple[int, int]:
        return self._tally.lines()

    @property
    def full(self) -> bool:
        """Whether the disk is full: then `add_file`, `accept`, `claim`, `cancel`, `end_unsent` and `prune` raise LedgerFullError."""
        return self._full

    async def free(self) -> None:
        """Returns when the disk is not full, mostly at once. Raises what any call would raise."""
        while self._full and self._fault is None and not self._ended:
            await self._room.wait()
        self._assert_usable()

    def wal_bytes(self) -> int:
        """The size of the write-ahead log after the last commit. Does not wait."""
        return self._wal_bytes

    # --- dispatch ---

    async def claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None = None) -> list[Claim]:
        operation = partial(moving.claim, queue=queue, limit=limit, now=now, redirect=redirect)
        return await self._call(operation, deferrable=True)

    async def next_due_at(self, queue: QueueId) -> float | None:
        return await self._call(partial(moving.next_due_at, queue=queue))

    async def record(self, moves: Sequence[Move]) -> None:
        await self._call(partial(moving.record, moves=moves))

    async def recover(self, due_at: float) -> int:
        holding = self._tally.holding(State.CLAIMED)
        lost = await self._call(partial(moving.recover, queues=holding, due_at=due_at))
        for file in await self.files():
            if file.cancelled_at is not None and file.published_at is None:
                await self.cancel(file.file_id, file.cancelled_at)
        return lost

    # --- tracking and results ---

    async def shards(self) -> list[Shard]:
        return await self._call(partial(reading.shards, holding=self._tally.holding(State.SUBMITTED)))

    async def shard(self, queue: QueueId, shard: int) -> Shard | None:
        return await self._call(partial(reading.shard, queue=queue, number=shard))

    async def open_jobs(self, queue: QueueId, shard: int) -> list[OpenJob]:
        return await self._call(partial(reading.open_jobs, queue=queue, number=shard))

    async def expired_shards(self, file: FileId) -> list[tuple[QueueId, int]]:
        holding = self._tally.holding(State.EXPIRED, file)
        return await self._call(partial(reading.expired_shards, holding=holding))

    async def ambiguous(self, now: float, limit: int) -> list[OpenJob]:
        return await self._call(partial(reading.ambiguous, now=now, limit=limit))

    async def next_ambiguous_at(self) -> float | None:
        return await self._call(reading.next_ambiguous_at)

    async def rows(self, file: FileId, after_line: int, limit: int) -> list[JobRow]:
        operation = partial(
            reading.rows, queues=[queue.queue_id for queue in self.queues(file)], after_line=after_line, limit=limit
        )
        return await self._call(operation)

    async def find(self, id: str) -> list[tuple[FileId, JobRow]]:
        return await self._call(partial(reading.find, id=id))

    # --- what ends and what is forgotten ---

    async def cancel(self, file: FileId, at: float) -> int:
        """In slices: see the top."""
        noted = await self._call(partial(filing.cancel, file=file, at=at), deferrable=True)
        since = at if noted.cancelled_at is None else noted.cancelled_at
        return await self._end(noted, State.CANCELLED, since, rules.CANCELLED)

    async def end_unsent(self, file: FileId, state: State, at: float, error: Error) -> int:
        """In slices: see the top."""
        rules.assert_end(state)
        return await self._end(await self._call(partial(filing.file_of, file=file)), state, at, error)

    async def prune(self, published_before: float, limit: int) -> int:
        operation = partial(ending.prune, published_before=published_before, limit=limit)
        return await self._call(operation, deferrable=True)

    async def aclose(self) -> None:
        """Waits for what was handed in. LedgerFaultError if the last checkpoint is what shows that the disk failed."""
        if not self._ended:
            self._ended = True
            self._room.set()
            self._thread.inbox.end()
        error = await self._thread.ended()
        if error is not None:
            raise writer.again(error)

    # --- the thread's end ---

    def begin(self, opened: Sums) -> None:
        """Takes what the file held when it was opened."""
        self._tally = Tally(opened)

    def deliver(self, commit: Commit) -> None:
        """Takes one commit in: sums and observers first, then the answers."""
        self._fault = commit.fault
        self._wal_bytes = commit.wal_bytes
        self._take_full(full=commit.full)
        try:
            self._tally.apply(commit.effects)
            if self._on_commit is not None and commit.rows:
                self._on_commit(commit.seconds, commit.rows)
        finally:
            # Also where an observer raised: its error goes to the loop's handler, and nobody hangs for it.
            for answer in commit.answers:
                self._slots.release()
                _resolve(answer)

    def _say_full(self, *, full: bool) -> None:
        """Whoever meets a full ledger waits without a word: it is told here, once."""
        if full:
            log.error("the ledger's disk is full", hint="free some space; no new jobs begin until then")
        else:
            log.info("the ledger's disk has space again")

    def _take_full(self, *, full: bool) -> None:
        if full != self._full:
            self._say_full(full=full)
        self._full = full
        if full and self._fault is None and not self._ended:
            self._room.clear()
        else:
            self._room.set()

    async def _end(self, file: JobFile, state: State, at: float, error: Error) -> int:
        """Ends what is accepted of the file as far as it was read."""
        spec = Ending(state, at, error, file.cursor.line)
        holding = self._tally.holding(State.ACCEPTED, file.file_id)
        return sum([await self._end_queue(queue, spec) for queue in holding])

    async def _end_queue(self, queue: QueueId, spec: Ending) -> int:
        total, shard = 0, -1
        while ended := await self._call(
            partial(ending.end_slice, queue=queue, after_shard=shard, ending=spec), deferrable=True
        ):
            total, shard = total + ended.jobs, ended.shard
        return total

    async def _call(self, operation: Operation[T], *, deferrable: bool = False) -> T:
        await self._slots.acquire()
        try:
            self._assert_usable()
        except BaseException:
            self._slots.release()
            raise
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._thread.inbox.put(Call(operation, deferrable, future))
        # A cancel here leaves the call with the thread: it may happen or have happened, and its slot is freed with its answer.
        return await future

    def _assert_usable(self) -> None:
        if self._fault is not None:
            raise writer.again(self._fault)
        if self._ended:
            raise RuntimeError("the ledger is closed")


def _resolve(answer: Answer) -> None:
    future: asyncio.Future[Any] = answer.call.future
    if future.done():
        return
    if answer.error is None:
        future.set_result(answer.value)
    else:
        future.set_exception(answer.error)
