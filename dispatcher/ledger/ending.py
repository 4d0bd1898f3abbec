"""What ends without having been sent, and what is forgotten, as SQL. Each public function is one transaction of bounded size.

Ending walks a queue's shards in their order and moves the queue's mark along, because behind it nothing is new any
more; that holds as long as a walk begins at the queue's first shard. Forgetting takes the oldest published file first,
and of it jobs in line order, rejections, then the file.
"""

from collections import Counter
from typing import NamedTuple

from dispatcher.ledger import rules
from dispatcher.ledger.codes import CODES, state_of
from dispatcher.ledger.store import Store
from dispatcher.model import EndpointName, Error, FileId, JobFile, Queue, QueueId, State

SLICE_SHARDS = 4
"""Shards that one transaction ends: up to 4,000 jobs, some 20 ms."""

_END = "UPDATE job SET state = ?, completed_at = ?, error_code = ?, error_message = ?"
_RANGE = "WHERE queue = ? AND line BETWEEN ? AND ?"
_END_ACCEPTED = f"""
    {_END}, attempts = attempts * (state <> 0) {_RANGE} AND (state = 1 OR (state = 0 AND line > ?))
"""


class Ending(NamedTuple):
    """How jobs end, and the last line that is meant."""

    state: State
    at: float
    error: Error
    through: int


class Ended(NamedTuple):
    """What one slice did: how many jobs it ended, and the last shard it looked at."""

    jobs: int
    shard: int


def end_slice(store: Store, queue: QueueId, after_shard: int, ending: Ending) -> Ended | None:
    """Ends what is not on its way in the next shards of a queue; None where no more follow."""
    sql = "SELECT shard, first_line, last_line FROM shard WHERE queue = ? AND shard > ? AND first_line <= ? ORDER BY shard LIMIT ?"
    shards = store.connection.execute(sql, (queue, after_shard, ending.through, SLICE_SHARDS)).fetchall()
    if not shards:
        return None
    first, last = shards[0][1], min(shards[-1][2], ending.through)
    jobs = _end(store, queue, (first, last), ending)
    if last > store.mark(queue):
        store.move_mark(queue, last)
    return Ended(jobs, shards[-1][0])


def cancel_lines(store: Store, file: JobFile, at: float, lines: tuple[int, int]) -> None:
    """Cancels what is accepted in these lines of a file. The marks stay: a walk over the lines before may not be through."""
    sql = "SELECT queue FROM queue WHERE file = ?"
    for (queue,) in store.connection.execute(sql, (file.file_id,)).fetchall():
        _end(store, queue, lines, Ending(State.CANCELLED, at, rules.CANCELLED, lines[1]))


def _end(store: Store, queue: QueueId, lines: tuple[int, int], ending: Ending) -> int:
    values = (CODES[ending.state], ending.at, ending.error.code, ending.error.message, queue, *lines)
    jobs = store.connection.execute(_END_ACCEPTED, (*values, store.mark(queue))).rowcount
    store.moved.append(((queue, State.ACCEPTED, ending.state), jobs))
    return jobs


def prune(store: Store, published_before: float, limit: int) -> int:
    """Forgets up to `limit` rows, a file itself counted as one; how many."""
    gone = 0
    while gone < limit and (file := _oldest(store, published_before)) is not None:
        gone += _shrink(store, file, limit - gone)
    return gone


def _oldest(store: Store, published_before: float) -> FileId | None:
    sql = "SELECT file FROM file WHERE published_at < ? ORDER BY published_at, file LIMIT 1"
    row = store.connection.execute(sql, (published_before,)).fetchone()
    return FileId(row[0]) if row else None


def _shrink(store: Store, file: FileId, limit: int) -> int:
    sql = "SELECT queue, endpoint FROM queue WHERE file = ? ORDER BY queue"
    rows = store.connection.execute(sql, (file,)).fetchall()
    queues = [Queue(QueueId(queue), file, EndpointName(endpoint)) for queue, endpoint in rows]
    gone = 0
    for queue in queues:
        gone += _delete_jobs(store, queue.queue_id, limit - gone)
    gone += _delete_rejections(store, file, limit - gone)
    if gone < limit:
        _forget(store, file, queues)
        gone += 1
    return gone


def _delete_jobs(store: Store, queue: QueueId, limit: int) -> int:
    sql = "SELECT line, state FROM job WHERE queue = ? ORDER BY line LIMIT ?"
    rows = store.connection.execute(sql, (queue, limit)).fetchall()
    if rows:
        mark, last = store.mark(queue), rows[-1][0]
        store.connection.execute("DELETE FROM job WHERE queue = ? AND line <= ?", (queue, last))
        _cut_shards(store, queue, last)
        states = Counter(state_of(code, line, mark) for line, code in rows)
        store.pruned.extend(((queue, state), jobs) for state, jobs in states.items())
    return len(rows)


def _cut_shards(store: Store, queue: QueueId, last: int) -> None:
    """Shards keep only what is left of them."""
    store.connection.execute("DELETE FROM shard WHERE queue = ? AND last_line <= ?", (queue, last))
    sql = """
        UPDATE shard SET first_line = ?, jobs = (
            SELECT count(*) FROM job j WHERE j.queue = shard.queue AND j.line BETWEEN shard.first_line AND shard.last_line)
        WHERE queue = ? AND first_line <= ?
    """
    store.connection.execute(sql, (last + 1, queue, last))


def _delete_rejections(store: Store, file: FileId, limit: int) -> int:
    sql = """
        DELETE FROM rejection WHERE file = ? AND line <= (
            SELECT max(line) FROM (SELECT line FROM rejection WHERE file = ? ORDER BY line LIMIT ?))
    """
    return store.connection.execute(sql, (file, file, limit)).rowcount


def _forget(store: Store, file: FileId, queues: list[Queue]) -> None:
    """The file and its queues; their numbers are remembered, so that nobody gets them again."""
    last = max((queue.queue_id for queue in queues), default=0)
    sql = "UPDATE ever SET last_file = max(last_file, ?), last_queue = max(last_queue, ?)"
    store.connection.execute(sql, (file, last))
    store.connection.execute("DELETE FROM queue WHERE file = ?", (file,))
    store.connection.execute("DELETE FROM file WHERE file = ?", (file,))
    store.forget()
    store.gone.extend(queues)
