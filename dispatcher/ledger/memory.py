"""The ledger in memory: the same rules on dictionaries, for tests and virtual time. Nothing survives it.

Every change is made at once and whole, then told, and only then does the call yield, so that callers meet the same
interleavings as with a disk. Jobs are looked up by key; what waits is found by heaps that may hold stale entries: an
entry counts only while its job is still in that state with that `due_at`. Over 300 lines because it is one class that
answers the whole Protocol.
"""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import heappush
from operator import attrgetter
from typing import TypeVar

from msgspec.structs import replace

from dispatcher.errors import LedgerFaultError, LedgerFullError
from dispatcher.ledger import rules
from dispatcher.ledger.codes import split
from dispatcher.ledger.held import (
    File,
    Job,
    Lane,
    apply,
    claimed,
    due,
    forget,
    is_fresh,
    open_job,
    record_of,
    row,
    take,
    target,
)
from dispatcher.ledger.tally import Effects, Moved, Observer, Tally
from dispatcher.lifecycle import IllegalMoveError
from dispatcher.model import (
    SHARD_JOBS,
    Claim,
    EndpointName,
    Error,
    FileId,
    Intake,
    JobFile,
    JobKey,
    JobRow,
    Move,
    NewFile,
    NewJob,
    OpenJob,
    Queue,
    QueueId,
    Rejection,
    Shard,
    State,
    Transport,
)

T = TypeVar("T")
_OPEN_STATES = (State.SUBMITTED, State.AMBIGUOUS, State.EXPIRED)
_UNSENT_STATES = (State.ACCEPTED, State.CLAIMED, State.AMBIGUOUS)
_line = attrgetter("line")


class MemoryLedger:
    """A `Ledger` that forgets."""

    def __init__(self) -> None:
        self._files: dict[FileId, File] = {}
        self._lanes: dict[QueueId, Lane] = {}
        self._ambiguous: list[tuple[float, JobKey]] = []
        self._tally = Tally()
        # The highest numbers given: none is given twice, also when its file is forgotten.
        self._last_file = self._last_queue = 0
        self._fault: str | None = None
        self._closed = False
        self.full = False
        """While it is set, what takes space raises LedgerFullError, as with a full disk."""

    def fail(self, message: str) -> None:
        """From now on every call raises LedgerFaultError, as after a fault of the disk."""
        self._fault = message

    # --- job files and intake ---

    async def add_file(self, new: NewFile) -> JobFile:
        self._assert_room()
        return await self._done(lambda: self._add_file(new))

    async def files(self) -> list[JobFile]:
        return await self._done(lambda: [file.record for file in self._files.values()])

    async def file(self, file: FileId) -> JobFile | None:
        return await self._done(lambda: self._files[file].record if file in self._files else None)

    async def accept(self, batch: Intake) -> list[Rejection]:
        self._assert_room()
        return await self._done(lambda: self._accept(batch))

    async def published(self, file: FileId, at: float) -> None:
        await self._done(lambda: self._published(file, at))

    async def rejections(self, file: FileId, after_line: int, limit: int) -> list[Rejection]:
        return await self._done(lambda: self._rejections(file, after_line, limit))

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

    # --- dispatch ---

    async def claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None = None) -> list[Claim]:
        self._assert_room()
        return await self._done(lambda: self._claim(queue, limit, now, redirect))

    async def next_due_at(self, queue: QueueId) -> float | None:
        return await self._done(lambda: self._next_due_at(queue))

    async def record(self, moves: Sequence[Move]) -> None:
        await self._done(lambda: self._record(moves))

    async def recover(self, due_at: float) -> int:
        return await self._done(lambda: self._recover(due_at))

    # --- tracking and results ---

    async def shards(self) -> list[Shard]:
        keys = [(queue, shard) for queue, lane in self._lanes.items() for shard in lane.shards]
        found = await self._done(lambda: [self._shard(*key) for key in keys])
        return [shard for shard in found if shard is not None and shard.waiting]

    async def shard(self, queue: QueueId, shard: int) -> Shard | None:
        return await self._done(lambda: self._shard(queue, shard))

    async def open_jobs(self, queue: QueueId, shard: int) -> list[OpenJob]:
        return await self._done(lambda: self._open_jobs(queue, shard))

    async def expired_shards(self, file: FileId) -> list[tuple[QueueId, int]]:
        return await self._done(lambda: self._expired_shards(file))

    async def ambiguous(self, now: float, limit: int) -> list[OpenJob]:
        return await self._done(lambda: [open_job(job) for job in self._lost() if job.due_at <= now][:limit])

    async def next_ambiguous_at(self) -> float | None:
        return await self._done(lambda: next((job.due_at for job in self._lost()), None))

    async def rows(self, file: FileId, after_line: int, limit: int) -> list[JobRow]:
        return await self._done(lambda: self._rows(file, after_line, limit))

    async def find(self, id: str) -> list[tuple[FileId, JobRow]]:
        return await self._done(lambda: self._find(id))

    async def cancel(self, file: FileId, at: float) -> int:
        self._assert_room()
        return await self._done(lambda: self._cancel(file, at))

    async def end_unsent(self, file: FileId, state: State, at: float, error: Error) -> int:
        self._assert_room()
        return await self._done(lambda: self._end_unsent(file, state, at, error))

    async def prune(self, published_before: float, limit: int) -> int:
        self._assert_room()
        return await self._done(lambda: self._prune(published_before, limit))

    async def aclose(self) -> None:
        """Idempotent; every later call is a programming error."""
        self._closed = True

    def _assert_room(self) -> None:
        if self.full:
            raise LedgerFullError("the ledger is full")

    async def _done(self, act: Callable[[], T]) -> T:
        if self._fault is not None:
            raise LedgerFaultError(self._fault)
        if self._closed:
            raise RuntimeError("the ledger is closed")
        result = act()
        await asyncio.sleep(0)
        return result

    # --- intake ---

    def _add_file(self, new: NewFile) -> JobFile:
        if any(file.record.run_id == new.run_id for file in self._files.values()):
            raise ValueError(f"the run id {new.run_id} is in the ledger already")
        self._last_file += 1
        number = FileId(self._last_file)
        self._files[number] = File(record_of(number, new))
        return self._files[number].record

    def _file(self, file: FileId) -> File:
        try:
            return self._files[file]
        except KeyError:
            raise ValueError(f"there is no job file {file} in the ledger") from None

    def _published(self, number: FileId, at: float) -> None:
        file = self._file(number)
        if file.record.published_at is None:
            file.record = replace(file.record, published_at=at)

    def _rejections(self, number: FileId, after_line: int, limit: int) -> list[Rejection]:
        rejections = self._files[number].rejections if number in self._files else []
        start = bisect_right(rejections, after_line, key=_line)
        return rejections[start : start + limit]

    def _accept(self, batch: Intake) -> list[Rejection]:
        file = self._file(batch.file_id)
        if rules.is_known(file.record, batch):
            return []
        known = {job.id: file.ids[job.id].key.line for job in batch.jobs if job.id in file.ids}
        jobs, twice = rules.parted(batch.jobs, known)
        made, added = self._add_jobs(file, jobs)
        file.rejections.extend(sorted([*batch.rejections, *twice], key=_line))
        self._move_cursor(file, batch, len(batch.rejections) + len(twice))
        first = rules.first_state(file.record)
        moved: dict[Moved, int] = {(queue, None, first): jobs for queue, jobs in added.items()}
        self._tally.apply(Effects(made=made, moved=moved, rejected=len(batch.rejections) + len(twice)))
        self._end_cancelled(file)
        return twice

    def _add_jobs(self, file: File, jobs: Sequence[NewJob]) -> tuple[list[Queue], Counter[QueueId]]:
        """New queues are made in the order of their names within a batch."""
        before = len(self._lanes)
        for endpoint in sorted({job.endpoint for job in jobs}):
            for job in jobs:
                if job.endpoint == endpoint:
                    self._add_job(file, self._lane(file, endpoint), job)
        made = [lane.queue for lane in list(self._lanes.values())[before:]]
        return made, Counter(file.lanes[job.endpoint].queue.queue_id for job in jobs)

    def _lane(self, file: File, endpoint: EndpointName) -> Lane:
        if endpoint not in file.lanes:
            self._last_queue += 1
            queue = Queue(QueueId(self._last_queue), file.record.file_id, endpoint)
            file.lanes[endpoint] = self._lanes[queue.queue_id] = Lane(queue)
        return file.lanes[endpoint]

    def _add_job(self, file: File, lane: Lane, new: NewJob) -> None:
        if not lane.shards or len(lane.shards[max(lane.shards)]) == SHARD_JOBS:
            lane.shards[file.shards] = []
            file.shards += 1
        shard = max(lane.shards)
        job = Job(key=JobKey(lane.queue.queue_id, new.line), new=new, shard=shard, transport=new.transport)
        lane.jobs[new.line] = file.ids[new.id] = job
        lane.shards[shard].append(job)
        if file.record.rebuilt:
            job.state, job.maybe_sent = State.AMBIGUOUS, True
            self._wait(job)
        else:
            lane.fresh.append(job)

    def _move_cursor(self, file: File, batch: Intake, rejected: int) -> None:
        old = file.record
        file.record = replace(
            old,
            cursor=batch.cursor,
            intake_done=old.intake_done or batch.final,
            lines=old.lines + batch.lines,
            rejected=old.rejected + rejected,
        )

    # --- claims ---

    def _claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None) -> list[Claim]:
        lane = self._lanes.get(queue)
        if lane is None or self._is_cancelled(lane):
            return []
        claims: list[Claim] = []
        while len(claims) < limit and (job := take(lane, now)):
            claims.append(claimed(lane, job, redirect))
        self._tally.apply(Effects(moved={(queue, State.ACCEPTED, State.CLAIMED): len(claims)}))
        return claims

    def _next_due_at(self, queue: QueueId) -> float | None:
        lane = self._lanes.get(queue)
        if lane is None or self._is_cancelled(lane):
            return None
        if is_fresh(lane):
            return 0.0
        return due(lane)

    # --- moves ---

    def _record(self, moves: Sequence[Move]) -> None:
        """All moves are checked first, each on the state that those before it lead to: one that is refused leaves nothing changed."""
        states: dict[JobKey, State] = {}
        for move in moves:
            self._check(move, states)
        changes: Counter[Moved] = Counter()
        for move in moves:
            job = self._job(move.key)
            prior = job.state
            apply(job, move)
            self._wait(job)
            changes[job.key.queue, prior, job.state] += 1
        self._tally.apply(Effects(moved=changes))
        for number in {self._lanes[move.key.queue].queue.file_id for move in moves}:
            self._end_cancelled(self._files[number])

    def _check(self, move: Move, states: dict[JobKey, State]) -> None:
        prior = rules.prior_of(move)
        now = states.get(move.key) or self._job(move.key).state
        if now != prior:
            raise IllegalMoveError(
                f"{type(move).__name__} found no job that is {prior}; job {tuple(move.key)} is {now}"
            )
        states[move.key] = target(move)

    def _job(self, key: JobKey) -> Job:
        lane = self._lanes.get(key.queue)
        if lane is None or key.line not in lane.jobs:
            raise IllegalMoveError(f"there is no job {tuple(key)}")
        return lane.jobs[key.line]

    def _holds(self, key: JobKey) -> bool:
        return key.queue in self._lanes and key.line in self._lanes[key.queue].jobs

    def _wait(self, job: Job) -> None:
        """Notes when the job is to be taken up again."""
        if job.state is State.ACCEPTED:
            heappush(self._lanes[job.key.queue].due, (job.due_at, job.key.line))
        if job.state is State.AMBIGUOUS:
            heappush(self._ambiguous, (job.due_at, job.key))

    def _recover(self, due_at: float) -> int:
        lost: Counter[Moved] = Counter()
        for job in self._jobs():
            if job.state is State.CLAIMED:
                job.state, job.maybe_sent, job.due_at = State.AMBIGUOUS, True, due_at
                self._wait(job)
                lost[job.key.queue, State.CLAIMED, State.AMBIGUOUS] += 1
            elif job.state in {State.ACCEPTED, State.AMBIGUOUS} and job.due_at > due_at:
                job.due_at = due_at
                self._wait(job)
        self._tally.apply(Effects(moved=lost))
        return lost.total()

    # --- what ends and what is forgotten ---

    def _cancel(self, number: FileId, at: float) -> int:
        file = self._file(number)
        if file.record.cancelled_at is None:
            file.record = replace(file.record, cancelled_at=at)
        return self._end_cancelled(file)

    def _is_cancelled(self, lane: Lane) -> bool:
        return self._files[lane.queue.file_id].record.cancelled_at is not None

    def _end_cancelled(self, file: File) -> int:
        at = file.record.cancelled_at
        return 0 if at is None else self._end(file, State.CANCELLED, at, rules.CANCELLED)

    def _end_unsent(self, number: FileId, state: State, at: float, error: Error) -> int:
        rules.assert_end(state)
        return self._end(self._file(number), state, at, error)

    def _end(self, file: File, state: State, at: float, error: Error) -> int:
        ended: Counter[Moved] = Counter()
        for job in [job for lane in file.lanes.values() for job in lane.jobs.values() if job.state is State.ACCEPTED]:
            ended[job.key.queue, job.state, state] += 1
            job.state, job.completed_at, job.error = state, at, error
        self._tally.apply(Effects(moved=ended))
        return ended.total()

    def _prune(self, published_before: float, limit: int) -> int:
        pruned: Counter[tuple[QueueId, State]] = Counter()
        gone: list[Queue] = []
        left = limit
        for number in self._published_before(published_before):
            left -= self._shrink(self._files[number], left, pruned)
            if left <= 0:
                break
            gone.extend(lane.queue for lane in self._forget(number))
            left -= 1
        self._tally.apply(Effects(pruned=pruned, gone=gone))
        return limit - left

    def _published_before(self, at: float) -> list[FileId]:
        dated = [(file.record.published_at, number) for number, file in self._files.items()]
        return [
            number for _, number in sorted((when, number) for when, number in dated if when is not None and when < at)
        ]

    def _shrink(self, file: File, limit: int, pruned: Counter[tuple[QueueId, State]]) -> int:
        """Forgets up to `limit` jobs, then rejections, of a file; how many."""
        jobs = [(lane, line) for lane in file.lanes.values() for line in lane.jobs][: max(0, limit)]
        for lane, line in jobs:
            pruned[lane.queue.queue_id, forget(file, lane, line)] += 1
        bad = min(limit - len(jobs), len(file.rejections))
        del file.rejections[:bad]
        return len(jobs) + bad

    def _forget(self, number: FileId) -> list[Lane]:
        lanes = list(self._files.pop(number).lanes.values())
        for lane in lanes:
            del self._lanes[lane.queue.queue_id]
        return lanes

    # --- reading ---

    def _jobs(self) -> Iterator[Job]:
        return (job for lane in self._lanes.values() for job in lane.jobs.values())

    def _lost(self) -> list[Job]:
        """The ambiguous jobs, oldest first; stale entries are dropped on the way."""
        held = [entry for entry in self._ambiguous if self._holds(entry[1])]
        entries = {entry: self._job(entry[1]) for entry in held}
        live = {entry: job for entry, job in entries.items() if job.state is State.AMBIGUOUS and job.due_at == entry[0]}
        self._ambiguous = sorted(live)
        return [live[entry] for entry in self._ambiguous]

    def _shard(self, queue: QueueId, number: int) -> Shard | None:
        jobs = self._jobs_of(queue, number)
        if not jobs:
            return None
        waiting = [job for job in jobs if job.state is State.SUBMITTED]
        times = [job.submitted_at for job in waiting if job.submitted_at is not None]
        receipts = [job.receipt for job in jobs if job.receipt is not None]
        failures = [receipt.failure_location for receipt in receipts if receipt.failure_location is not None]
        return Shard(
            queue=queue,
            shard=number,
            folder=split(receipts[0].output_location)[0] if receipts else None,
            failure_folder=split(failures[0])[0] if failures else None,
            jobs=len(jobs),
            waiting=len(waiting),
            unsent=sum(job.state in _UNSENT_STATES for job in jobs),
            first_submitted_at=min(times, default=0.0),
            last_submitted_at=max(times, default=0.0),
            last_deadline_at=max((job.due_at for job in waiting), default=0.0),
        )

    def _jobs_of(self, queue: QueueId, shard: int) -> list[Job]:
        lane = self._lanes.get(queue)
        return lane.shards.get(shard, []) if lane else []

    def _open_jobs(self, queue: QueueId, shard: int) -> list[OpenJob]:
        return [open_job(job) for job in self._jobs_of(queue, shard) if job.state in _OPEN_STATES]

    def _expired_shards(self, file: FileId) -> list[tuple[QueueId, int]]:
        lanes = [(queue, lane) for queue, lane in self._lanes.items() if lane.queue.file_id == file]
        expired = [
            (queue, job.shard)
            for queue, lane in lanes
            for job in lane.jobs.values()
            if job.state is State.EXPIRED and job.receipt is not None
        ]
        return list(dict.fromkeys(expired))

    def _rows(self, number: FileId, after_line: int, limit: int) -> list[JobRow]:
        lanes = self._files[number].lanes.values() if number in self._files else ()
        found = [(job, lane) for lane in lanes for line, job in lane.jobs.items() if line > after_line]
        found.sort(key=lambda pair: pair[0].key.line)
        return [row(job, lane.queue.endpoint) for job, lane in found[:limit]]

    def _find(self, id: str) -> list[tuple[FileId, JobRow]]:
        found = [(number, file.ids[id]) for number, file in self._files.items() if id in file.ids]
        return [(number, row(job, self._lanes[job.key.queue].queue.endpoint)) for number, job in found]
