"""Job files and what intake brings, as SQL. Each function is one call of the Ledger, inside a transaction."""

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from dispatcher.ledger import ending, rules
from dispatcher.ledger.codes import TRANSPORT_CODES
from dispatcher.ledger.store import Store
from dispatcher.model import (
    SHARD_JOBS,
    Cursor,
    FailureReason,
    FileId,
    Intake,
    JobFile,
    NewFile,
    NewJob,
    QueueId,
    Rejection,
    RunId,
)

_FILES = """
    SELECT file, run_id, name, source, data_path, payload_root, size, taken_at, cursor_offset, cursor_line,
           cursor_digest, intake_done, lines, rejected, published_at, deadline_at, rebuilt, cancelled_at FROM file
"""
# A number is never given twice: not even that of the last file when it was forgotten.
_INSERT_FILE = """
    INSERT INTO file (file, run_id, name, source, data_path, payload_root, size, taken_at, deadline_at, rebuilt,
                      cursor_offset, cursor_line, cursor_digest)
    SELECT 1 + max(last_file, coalesce((SELECT max(file) FROM file), 0)), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM ever
"""
_JOB = "queue, line, file, id, shard, offset, length, size, transport, has_metadata"
_INSERT_DOUBTFUL = f"""
    INSERT INTO job ({_JOB}, state, attempts, maybe_sent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 3, 0, 1)
"""  # noqa: S608
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_JOB = f"INSERT INTO job ({_JOB}) VALUES {_ROW}"  # noqa: S608
# A statement of many rows costs two thirds of as many statements, and lets go of the interpreter once and not at each row.
_ROWS_AT_ONCE = 50
_INSERT_JOBS = _INSERT_JOB + f", {_ROW}" * (_ROWS_AT_ONCE - 1)


def add_file(store: Store, new: NewFile) -> JobFile:
    """Records a job file; ValueError if its run id is known."""
    paths = (new.run_id, new.name, new.source, new.data_path, new.payload_root)
    start = (rules.START.offset, rules.START.line, rules.START.digest)
    values = (*paths, new.size_bytes, new.taken_at, new.deadline_at, new.rebuilt, *start)
    try:
        cursor = store.connection.execute(_INSERT_FILE, values)
    except sqlite3.IntegrityError as error:
        raise ValueError(f"the run id {new.run_id} is in the ledger already") from error
    return file_of(store, FileId(cursor.lastrowid or 0))


def files(store: Store) -> list[JobFile]:
    """All job files."""
    return [_file(row) for row in store.connection.execute(_FILES + "ORDER BY file")]


def file_of(store: Store, file: FileId) -> JobFile:
    """One job file; ValueError if there is none."""
    found = find_file(store, file)
    if found is None:
        raise ValueError(f"there is no job file {file} in the ledger")
    return found


def find_file(store: Store, file: FileId) -> JobFile | None:
    """One job file; None if there is none."""
    row = store.connection.execute(_FILES + "WHERE file = ?", (file,)).fetchone()
    return None if row is None else _file(row)


def published(store: Store, file: FileId, at: float) -> None:
    """Notes once that the file's results stand."""
    file_of(store, file)
    sql = "UPDATE file SET published_at = ? WHERE file = ? AND published_at IS NULL"
    store.connection.execute(sql, (at, file))


def cancel(store: Store, file: FileId, at: float) -> JobFile:
    """Notes once that the file is cancelled; what it is then. ValueError if there is none."""
    store.connection.execute("UPDATE file SET cancelled_at = coalesce(cancelled_at, ?) WHERE file = ?", (at, file))
    store.forget()
    return file_of(store, file)


def rejections(store: Store, file: FileId, after_line: int, limit: int) -> list[Rejection]:
    """A page of a file's rejections."""
    sql = "SELECT line, id, reason, message FROM rejection WHERE file = ? AND line > ? ORDER BY line LIMIT ?"
    rows = store.connection.execute(sql, (file, after_line, limit))
    return [Rejection(line, name, FailureReason(reason), message) for line, name, reason, message in rows]


def accept(store: Store, batch: Intake) -> list[Rejection]:
    """Adds a batch, unless it is known. The rejections made here."""
    file = file_of(store, batch.file_id)
    if rules.is_known(file, batch):
        return []
    twice = _add_unique(store, file, batch.jobs)
    if file.cancelled_at is not None:
        ending.cancel_lines(store, file, file.cancelled_at, (file.cursor.line + 1, batch.cursor.line))
    _add_rejections(store, file.file_id, [*batch.rejections, *twice])
    _move_cursor(store, batch, len(batch.rejections) + len(twice))
    return twice


def _add_unique(store: Store, file: JobFile, jobs: Sequence[NewJob]) -> list[Rejection]:
    """Inserts as if no id came twice, which is nearly always so; the index says when it is not, and then they are sorted out."""
    marker = store.marker()
    store.connection.execute("SAVEPOINT jobs")
    try:
        _add_jobs(store, file, jobs)
        twice: list[Rejection] = []
    except sqlite3.IntegrityError:
        store.connection.execute("ROLLBACK TO jobs")
        store.undo(marker)
        fresh, twice = rules.parted(jobs, _lines_of(store, file.file_id, jobs))
        _add_jobs(store, file, fresh)
    store.connection.execute("RELEASE jobs")
    return twice


def _lines_of(store: Store, file: FileId, jobs: Sequence[NewJob]) -> dict[str, int]:
    sql = "SELECT line FROM job WHERE file = ? AND id = ?"
    found = ((job.id, store.connection.execute(sql, (file, job.id)).fetchone()) for job in jobs)
    return {name: row[0] for name, row in found if row}


def _add_jobs(store: Store, file: JobFile, jobs: Sequence[NewJob]) -> None:
    """Inserts the jobs and fills shards; IntegrityError if an id or a line is there already."""
    shards = _Shards(store, file.file_id)
    by_endpoint = sorted(jobs, key=lambda job: job.endpoint) if _is_mixed(jobs) else jobs
    for endpoint, group in groupby(by_endpoint, key=lambda job: job.endpoint):
        queue = store.queue(file.file_id, endpoint)
        rows = list(_rows(queue, file.file_id, shards.fill(queue, list(group))))
        if file.rebuilt:
            store.connection.executemany(_INSERT_DOUBTFUL, rows)
        else:
            _insert(store.connection, rows)
        store.moved.append(((queue, None, rules.first_state(file)), len(rows)))
        if file.rebuilt and rows:
            # Nothing of it is ever new to a claim; and `recover` looks for claimed jobs up to the mark only.
            store.move_mark(queue, rows[-1][1])


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    whole = len(rows) - len(rows) % _ROWS_AT_ONCE
    for start in range(0, whole, _ROWS_AT_ONCE):
        connection.execute(_INSERT_JOBS, [*chain.from_iterable(rows[start : start + _ROWS_AT_ONCE])])
    connection.executemany(_INSERT_JOB, rows[whole:])


def _is_mixed(jobs: Sequence[NewJob]) -> bool:
    return len({job.endpoint for job in jobs}) > 1


def _rows(queue: QueueId, file: FileId, filled: Iterator[tuple[int, Sequence[NewJob]]]) -> Iterator[tuple[Any, ...]]:
    for shard, jobs in filled:
        for job in jobs:
            transport = TRANSPORT_CODES[job.transport]
            place = (job.offset, job.length, job.size_bytes)
            yield queue, job.line, file, job.id, shard, *place, transport, job.has_metadata


class _Shards:
    """Deals a file's jobs out to shards: the last one of a queue is filled up before the next number is taken."""

    def __init__(self, store: Store, file: FileId) -> None:
        self._connection = store.connection
        self._file = file

    def fill(self, queue: QueueId, jobs: Sequence[NewJob]) -> Iterator[tuple[int, Sequence[NewJob]]]:
        """The jobs, in order, each part with the shard that takes it."""
        start = 0
        while start < len(jobs):
            shard, room = self._last(queue)
            part = jobs[start : start + room]
            if part:
                self._extend(queue, shard, part)
                yield shard, part
            else:
                self._open(queue, jobs[start].line)
            start += len(part)

    def _last(self, queue: QueueId) -> tuple[int, int]:
        """The queue's last shard and how many jobs it can take."""
        sql = "SELECT shard, jobs FROM shard WHERE queue = ? ORDER BY shard DESC LIMIT 1"
        row = self._connection.execute(sql, (queue,)).fetchone()
        return (row[0], SHARD_JOBS - row[1]) if row else (0, 0)

    def _open(self, queue: QueueId, line: int) -> None:
        self._connection.execute("UPDATE file SET shards = shards + 1 WHERE file = ?", (self._file,))
        sql = """
            INSERT INTO shard (queue, shard, first_line, last_line, jobs)
            SELECT ?, shards - 1, ?, ?, 0 FROM file WHERE file = ?
        """
        self._connection.execute(sql, (queue, line, line, self._file))

    def _extend(self, queue: QueueId, shard: int, part: Sequence[NewJob]) -> None:
        sql = "UPDATE shard SET jobs = jobs + ?, last_line = ? WHERE queue = ? AND shard = ?"
        self._connection.execute(sql, (len(part), part[-1].line, queue, shard))


def _add_rejections(store: Store, file: FileId, rejections: Sequence[Rejection]) -> None:
    sql = "INSERT INTO rejection (file, line, id, reason, message) VALUES (?, ?, ?, ?, ?)"
    rows = [(file, each.line, each.id, each.reason.value, each.message) for each in rejections]
    store.connection.executemany(sql, rows)
    store.rejected += len(rows)


def _move_cursor(store: Store, batch: Intake, rejected: int) -> None:
    sql = """
        UPDATE file SET cursor_offset = ?, cursor_line = ?, cursor_digest = ?, intake_done = max(intake_done, ?),
                        lines = lines + ?, rejected = rejected + ? WHERE file = ?
    """
    cursor = batch.cursor
    place = (cursor.offset, cursor.line, cursor.digest)
    store.connection.execute(sql, (*place, batch.final, batch.lines, rejected, batch.file_id))


def _file(row: tuple[Any, ...]) -> JobFile:
    file, run, name, source, data, root, size, taken, *state = row
    offset, line, digest, done, lines, rejected, published_at, deadline_at, rebuilt, cancelled_at = state
    return JobFile(
        file_id=FileId(file),
        run_id=RunId(run),
        name=name,
        source=source,
        data_path=data,
        payload_root=root,
        size_bytes=size,
        taken_at=taken,
        deadline_at=deadline_at,
        rebuilt=bool(rebuilt),
        cursor=Cursor(offset, line, digest),
        intake_done=bool(done),
        lines=lines,
        rejected=rejected,
        published_at=published_at,
        cancelled_at=cancelled_at,
    )
