"""What the ledger in memory holds, and what happens to one job of it; no rule of a whole file or queue is here."""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop
from typing import assert_never

from dispatcher.ledger import rules
from dispatcher.model import (
    Claim,
    EndpointName,
    Error,
    FileId,
    JobFile,
    JobKey,
    JobRow,
    Lost,
    Move,
    NewFile,
    NewJob,
    OpenJob,
    Queue,
    Receipt,
    Rejection,
    Released,
    Reopened,
    Settled,
    State,
    Submitted,
    Transport,
)


@dataclass(slots=True, kw_only=True)
class Job:
    """One job as it is now."""

    key: JobKey
    new: NewJob
    shard: int
    state: State = State.ACCEPTED
    transport: Transport
    attempts: int = 0
    faults: int = 0
    maybe_sent: bool = False
    due_at: float = 0.0
    receipt: Receipt | None = None
    submitted_at: float | None = None
    seconds: float | None = None
    completed_at: float | None = None
    error: Error | None = None


@dataclass(slots=True)
class Lane:
    """A queue's jobs in line order, its shards, and what can be claimed."""

    queue: Queue
    jobs: dict[int, Job] = field(default_factory=dict)
    shards: dict[int, list[Job]] = field(default_factory=dict)
    fresh: deque[Job] = field(default_factory=deque)
    due: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class File:
    """A job file: its record, its ids, its rejections by line, and how many shards it has."""

    record: JobFile
    ids: dict[str, Job] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    lanes: dict[EndpointName, Lane] = field(default_factory=dict)
    shards: int = 0


def record_of(number: FileId, new: NewFile) -> JobFile:
    """A file as it is taken up."""
    return JobFile(
        file_id=number,
        run_id=new.run_id,
        name=new.name,
        source=new.source,
        data_path=new.data_path,
        payload_root=new.payload_root,
        size_bytes=new.size_bytes,
        taken_at=new.taken_at,
        deadline_at=new.deadline_at,
        rebuilt=new.rebuilt,
        cursor=rules.START,
        intake_done=False,
        lines=0,
        rejected=0,
        published_at=None,
    )


def take(lane: Lane, now: float) -> Job | None:
    """The next job to claim, taken out of what waits."""
    due_at = due(lane)
    if due_at is not None and due_at <= now:
        return lane.jobs[heappop(lane.due)[1]]
    return lane.fresh.popleft() if is_fresh(lane) else None


def due(lane: Lane) -> float | None:
    """When the first released job is due; drops entries whose job has moved on."""
    while lane.due:
        due_at, line = lane.due[0]
        job = lane.jobs.get(line)
        if job is not None and job.state is State.ACCEPTED and job.due_at == due_at:
            return due_at
        heappop(lane.due)
    return None


def is_fresh(lane: Lane) -> bool:
    """Whether a new job waits; drops those that ended before they were claimed."""
    while lane.fresh and lane.fresh[0].state is not State.ACCEPTED:
        lane.fresh.popleft()
    return bool(lane.fresh)


def claimed(lane: Lane, job: Job, redirect: Transport | None) -> Claim:
    """Claims a job."""
    job.state = State.CLAIMED
    job.attempts += 1
    if redirect is not None and job.transport is Transport.INLINE:
        job.transport = redirect
    return Claim(
        key=job.key,
        file_id=lane.queue.file_id,
        shard=job.shard,
        offset=job.new.offset,
        length=job.new.length,
        size_bytes=job.new.size_bytes,
        transport=job.transport,
        attempt=job.attempts,
        faults=job.faults,
        maybe_sent=job.maybe_sent,
    )


def target(move: Move) -> State:
    """Where the move leads."""
    match move:
        case Submitted():
            return State.SUBMITTED
        case Released() | Reopened():
            return State.ACCEPTED
        case Lost():
            return State.AMBIGUOUS
        case Settled(state=state):
            return state
        case _:
            assert_never(move)


def apply(job: Job, move: Move) -> None:
    """Does a move that was found legal."""
    job.state = target(move)
    match move:
        case Submitted():
            job.receipt, job.submitted_at = move.receipt, move.submitted_at
            job.due_at, job.seconds = move.deadline_at, move.seconds
        case Released():
            job.due_at, job.transport = move.due_at, move.transport or job.transport
            job.faults += move.fault
            job.attempts -= move.unsent
        case Lost():
            job.due_at, job.maybe_sent = move.due_at, True
        case Reopened():
            job.due_at = move.due_at
        case Settled():
            _settle(job, move)
        case _:
            assert_never(move)


def _settle(job: Job, move: Settled) -> None:
    job.completed_at, job.error = move.completed_at, move.error
    if move.output_location is not None:
        job.receipt = Receipt(move.output_location, job.receipt.failure_location if job.receipt else None)


def forget(file: File, lane: Lane, line: int) -> State:
    """Drops the lane's first job, which is in `line`; the state it was in."""
    job = lane.jobs.pop(line)
    del file.ids[job.new.id]
    del lane.shards[job.shard][0]
    if not lane.shards[job.shard]:
        del lane.shards[job.shard]
    return job.state


def open_job(job: Job) -> OpenJob:
    """A job as trackers see it."""
    return OpenJob(
        key=job.key,
        state=job.state,
        shard=job.shard,
        transport=job.transport,
        receipt=job.receipt,
        submitted_at=job.submitted_at,
        due_at=job.due_at,
        maybe_sent=job.maybe_sent,
    )


def row(job: Job, endpoint: EndpointName) -> JobRow:
    """A job as results see it."""
    return JobRow(
        key=job.key,
        id=job.new.id,
        endpoint=endpoint,
        state=job.state,
        shard=job.shard,
        offset=job.new.offset,
        length=job.new.length,
        size_bytes=job.new.size_bytes,
        transport=job.transport,
        has_metadata=job.new.has_metadata,
        attempts=job.attempts,
        receipt=job.receipt,
        submitted_at=job.submitted_at,
        submission_seconds=job.seconds,
        completed_at=job.completed_at,
        due_at=job.due_at,
        error=job.error,
    )
