"""What trackers, results and operators ask, as SQL. Nothing here changes anything."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any

from dispatcher.ledger.codes import STATES, TRANSPORTS, state_of
from dispatcher.ledger.store import Store
from dispatcher.ledger.tally import Sums, Totals
from dispatcher.model import EndpointName, Error, FileId, JobKey, JobRow, OpenJob, Queue, QueueId, Receipt, Shard, State

_LOCATIONS = "LEFT JOIN folder o ON o.folder = j.out_folder LEFT JOIN folder f ON f.folder = j.fail_folder"
_OPEN = f"""
    SELECT j.queue, j.line, j.state, j.shard, j.transport, j.submitted_at, j.due_at, j.maybe_sent,
           o.path, j.out_name, f.path, j.fail_name FROM job j {_LOCATIONS}
"""  # noqa: S608
_ROW = f"""
    SELECT j.line, j.queue, j.file, j.id, q.endpoint, j.state, q.claimed_through, j.shard, j.offset, j.length, j.size,
           j.transport, j.has_metadata, j.attempts, o.path, j.out_name, f.path, j.fail_name, j.submitted_at,
           j.submission_seconds, j.completed_at, j.due_at, j.error_code, j.error_message
    FROM job j JOIN queue q ON q.queue = j.queue {_LOCATIONS}
"""  # noqa: S608
_HELD = """
    SELECT s.queue, s.shard FROM shard s WHERE s.queue = ? AND EXISTS (
        SELECT 1 FROM job j WHERE j.queue = s.queue AND j.line BETWEEN s.first_line AND s.last_line AND j.state = {})
    ORDER BY s.shard
"""
_WAITING = _HELD.format(4)
_EXPIRED = _HELD.format("7 AND j.out_folder IS NOT NULL")


def queues(store: Store) -> list[Queue]:
    """All queues, in the order they were made."""
    rows = store.connection.execute("SELECT queue, file, endpoint FROM queue ORDER BY queue")
    return [Queue(QueueId(queue), FileId(file), EndpointName(endpoint)) for queue, file, endpoint in rows]


def counts(store: Store) -> dict[tuple[QueueId, State], int]:
    """How many jobs of each queue are in each state: the one reading of all rows, when the ledger is opened.

    Sums for each queue and not a GROUP BY over states, because that would sort all rows; these come in queue order.
    """
    codes = "".join(f", sum(j.state = {code})" for code in range(1, 10))
    sql = f"""
        SELECT j.queue, sum(j.state = 0 AND j.line > q.claimed_through), sum(j.state = 0 AND j.line <= q.claimed_through)
               {codes} FROM job j JOIN queue q ON q.queue = j.queue GROUP BY j.queue
    """  # noqa: S608
    return dict(pair for row in store.connection.execute(sql) for pair in _sums(*row))


def sums(store: Store) -> Sums:
    """What the loop's side must know when the ledger is opened."""
    accepted, rejected = store.connection.execute("SELECT accepted, rejected FROM ever").fetchone()
    return Sums(queues(store), counts(store), totals(store), accepted, rejected)


def totals(store: Store) -> Totals:
    """How many jobs ever came into each state."""
    rows = store.connection.execute("SELECT endpoint, state, jobs FROM total")
    return {(EndpointName(endpoint), STATES[code]): jobs for endpoint, code, jobs in rows}


def shards(store: Store, holding: Iterable[QueueId]) -> list[Shard]:
    """The shards of the queues that have submitted jobs."""
    keys = [key for queue in holding for key in store.connection.execute(_WAITING, (queue,)).fetchall()]
    return [found for key in keys if (found := shard(store, *key))]


def shard(store: Store, queue: QueueId, number: int) -> Shard | None:
    """One shard."""
    bounds = _bounds(store, queue, number)
    if bounds is None:
        return None
    first, last, jobs = bounds
    sql = """
        SELECT count(*) FILTER (WHERE state = 4), count(*) FILTER (WHERE state < 4),
               min(submitted_at) FILTER (WHERE state = 4), max(submitted_at) FILTER (WHERE state = 4),
               max(due_at) FILTER (WHERE state = 4)
        FROM job WHERE queue = ? AND line BETWEEN ? AND ?
    """
    waiting, unsent, first_at, last_at, deadline = store.connection.execute(sql, (queue, first, last)).fetchone()
    return Shard(
        queue=queue,
        shard=number,
        folder=_folder(store, "out_folder", (queue, first, last)),
        failure_folder=_folder(store, "fail_folder", (queue, first, last)),
        jobs=jobs,
        waiting=waiting,
        unsent=unsent,
        first_submitted_at=first_at or 0.0,
        last_submitted_at=last_at or 0.0,
        last_deadline_at=deadline or 0.0,
    )


def open_jobs(store: Store, queue: QueueId, number: int) -> list[OpenJob]:
    """The shard's jobs that a look at its folder may settle."""
    bounds = _bounds(store, queue, number)
    if bounds is None:
        return []
    sql = _OPEN + "WHERE j.queue = ? AND j.line BETWEEN ? AND ? AND j.state IN (3, 4, 7) ORDER BY j.line"
    return [_open_job(row) for row in store.connection.execute(sql, (queue, *bounds[:2]))]


def expired_shards(store: Store, holding: Sequence[QueueId]) -> list[tuple[QueueId, int]]:
    """The shards of the queues that hold expired jobs with a receipt."""
    return [(queue, row[1]) for queue in holding for row in store.connection.execute(_EXPIRED, (queue,))]


def ambiguous(store: Store, now: float, limit: int) -> list[OpenJob]:
    """Ambiguous jobs whose time to look has come."""
    sql = _OPEN + "WHERE j.state = 3 AND j.due_at <= ? ORDER BY j.due_at, j.queue, j.line LIMIT ?"
    return [_open_job(row) for row in store.connection.execute(sql, (now, limit))]


def next_ambiguous_at(store: Store) -> float | None:
    """The least time to look."""
    row = store.connection.execute("SELECT due_at FROM job WHERE state = 3 ORDER BY due_at LIMIT 1").fetchone()
    return row[0] if row else None


def rows(store: Store, queues: Sequence[QueueId], after_line: int, limit: int) -> list[JobRow]:
    """A page of a file's jobs: each queue is in line order, so they are merged, and no more is read than is wanted."""
    sql = _ROW + "WHERE j.queue = ? AND j.line > ? ORDER BY j.line"
    cursors = [store.connection.execute(sql, (queue, after_line)) for queue in queues]
    try:
        return [_job_row(row) for row in islice(merge(*cursors, key=itemgetter(0)), limit)]
    finally:
        for cursor in cursors:
            cursor.close()


def find(store: Store, id: str) -> list[tuple[FileId, JobRow]]:
    """Every job with this id, through the index of each file."""
    sql = _ROW + "WHERE j.file IN (SELECT file FROM file) AND j.id = ? ORDER BY j.file"  # noqa: S608
    return [(FileId(row[2]), _job_row(row)) for row in store.connection.execute(sql, (id,))]


def _bounds(store: Store, queue: QueueId, number: int) -> tuple[int, int, int] | None:
    sql = "SELECT first_line, last_line, jobs FROM shard WHERE queue = ? AND shard = ?"
    found: tuple[int, int, int] | None = store.connection.execute(sql, (queue, number)).fetchone()
    return found


def _folder(store: Store, column: str, place: tuple[int, int, int]) -> str | None:
    sql = f"""
        SELECT path FROM job JOIN folder ON folder = {column} WHERE queue = ? AND line BETWEEN ? AND ?
        ORDER BY line LIMIT 1
    """  # noqa: S608
    row = store.connection.execute(sql, place).fetchone()
    return row[0] if row else None


def _sums(queue: QueueId, new: int, claimed: int, *coded: int) -> Iterator[tuple[tuple[QueueId, State], int]]:
    sums = dict(zip(State, _in_order(new, claimed, *coded), strict=True))
    return (((queue, state), jobs) for state, jobs in sums.items())


def _in_order(new: int, newly_claimed: int, again: int, claimed: int, *others: int) -> tuple[int, ...]:
    """The sums by code, folded to the states in their order."""
    return new + again, newly_claimed + claimed, *others


def _receipt(out_path: str | None, out: str | None, fail_path: str | None, fail: str | None) -> Receipt | None:
    if out_path is None or out is None:
        return None
    return Receipt(out_path + out, None if fail_path is None or fail is None else fail_path + fail)


def _open_job(row: tuple[Any, ...]) -> OpenJob:
    queue, line, state, shard, transport, submitted_at, due_at, maybe_sent, *locations = row
    return OpenJob(
        key=JobKey(queue, line),
        state=state_of(state, line, 0),
        shard=shard,
        transport=TRANSPORTS[transport],
        receipt=_receipt(*locations),
        submitted_at=submitted_at,
        due_at=due_at,
        maybe_sent=bool(maybe_sent),
    )


def _job_row(row: tuple[Any, ...]) -> JobRow:
    line, queue, _, name, endpoint, code, mark, shard, offset, length, size, transport, metadata, attempts, *rest = row
    out_path, out, fail_path, fail, submitted_at, seconds, completed_at, due_at, error, message = rest
    state = state_of(code, line, mark)
    return JobRow(
        key=JobKey(queue, line),
        id=name,
        endpoint=EndpointName(endpoint),
        state=state,
        shard=shard,
        offset=offset,
        length=length,
        size_bytes=size,
        transport=TRANSPORTS[transport],
        has_metadata=bool(metadata),
        attempts=0 if code == 0 and state is State.ACCEPTED else attempts,
        receipt=_receipt(out_path, out, fail_path, fail),
        submitted_at=submitted_at,
        submission_seconds=seconds,
        completed_at=completed_at,
        due_at=due_at,
        error=None if error is None else Error(error, message),
    )
