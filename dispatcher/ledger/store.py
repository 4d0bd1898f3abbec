"""The ledger's thread side: one connection, what is remembered of the tables, and what the open transaction changed.

Touched by the ledger's thread alone. Everything remembered can be read again, so `forget` is always right; it must be
called whenever something is rolled back. `moved`, `made`, `rejected`, `pruned` and `gone` are what the loop's side is
told after the commit; `save_totals` writes their sums into the same transaction, as its last statements.
"""

import sqlite3
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

from dispatcher.ledger.codes import CODES, split
from dispatcher.ledger.tally import Effects, Moved
from dispatcher.model import EndpointName, FileId, JobKey, Queue, QueueId, State

FOLDERS_KEPT = 4_096

Key = TypeVar("Key", bound=Hashable)

Marker = tuple[int, int, int, int, int]
"""How much the open transaction had changed at some moment."""

_INSERT_QUEUE = """
    INSERT INTO queue (queue, file, endpoint)
    SELECT 1 + max(last_queue, coalesce((SELECT max(queue) FROM queue), 0)), ?, ? FROM ever
"""
_ADD_TOTAL = """
    INSERT INTO total (endpoint, state, jobs) VALUES (?, ?, ?)
    ON CONFLICT (endpoint, state) DO UPDATE SET jobs = jobs + excluded.jobs
"""


class Store:
    """A connection with its open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.moved: list[tuple[Moved, int]] = []
        self.made: list[Queue] = []
        self.rejected = 0
        self.pruned: list[tuple[tuple[QueueId, State], int]] = []
        self.gone: list[Queue] = []
        self._folders: dict[str, int] = {}
        self._marks: dict[QueueId, int] = {}
        self._queues: dict[tuple[FileId, EndpointName], QueueId] = {}
        self._endpoints: dict[QueueId, EndpointName] = {}
        self._cancelled: dict[QueueId, float | None] = {}

    def mark(self, queue: QueueId) -> int:
        """The line through which new jobs of the queue are claimed; 0 for a queue that does not exist."""
        known = self._marks.get(queue)
        if known is not None:
            return known
        row = self.connection.execute("SELECT claimed_through FROM queue WHERE queue = ?", (queue,)).fetchone()
        self._marks[queue] = mark = row[0] if row else 0
        return mark

    def move_mark(self, queue: QueueId, line: int) -> None:
        """Claims every new job of the queue up to and with `line`."""
        self.connection.execute("UPDATE queue SET claimed_through = ? WHERE queue = ?", (line, queue))
        self._marks[queue] = line

    def cancelled_at(self, queue: QueueId) -> float | None:
        """When the queue's file was cancelled; None if it was not, and for a queue that does not exist."""
        if queue not in self._cancelled:
            sql = "SELECT cancelled_at FROM file JOIN queue USING (file) WHERE queue = ?"
            row = self.connection.execute(sql, (queue,)).fetchone()
            self._cancelled[queue] = row[0] if row else None
        return self._cancelled[queue]

    def queue(self, file: FileId, endpoint: EndpointName) -> QueueId:
        """The queue of a file's jobs for an endpoint, made if there is none."""
        known = self._queues.get((file, endpoint))
        if known is None:
            self._queues[file, endpoint] = known = self._find_queue(file, endpoint) or self._make_queue(file, endpoint)
        return known

    def place(self, location: str | None) -> tuple[int | None, str | None]:
        """A location as the number of its folder, and its name."""
        if location is None:
            return None, None
        folder, name = split(location)
        number = self._folders.get(folder)
        return (self._folder(folder) if number is None else number), name

    def count(self, prior: State, state: State, keys: Iterable[JobKey]) -> None:
        """Notes that these jobs went from `prior` to `state`."""
        for queue, jobs in Counter([key.queue for key in keys]).items():
            self.moved.append(((queue, prior, state), jobs))

    def forget(self) -> None:
        """Drops what is remembered of the tables; after any rollback, and when a queue is forgotten or a file cancelled."""
        self._folders.clear()
        self._marks.clear()
        self._queues.clear()
        self._endpoints.clear()
        self._cancelled.clear()

    def marker(self) -> Marker:
        """How much is changed by now, for `undo`."""
        return len(self.moved), len(self.made), self.rejected, len(self.pruned), len(self.gone)

    def undo(self, marker: Marker) -> None:
        """Forgets what was noted since `marker`, after the rollback of what was done since then."""
        moved, made, self.rejected, pruned, gone = marker
        del self.moved[moved:], self.made[made:], self.pruned[pruned:], self.gone[gone:]
        self.forget()

    def save_totals(self) -> None:
        """Adds what the transaction changed to the sums that outlive their rows."""
        self.moved = list(_summed(self.moved).items())
        entered = Counter[tuple[str, int]]()
        for (queue, _, state), jobs in self.moved:
            if jobs:
                entered[self._endpoint(queue), CODES[state]] += jobs
        self.connection.executemany(_ADD_TOTAL, [(*entry, jobs) for entry, jobs in entered.items()])
        accepted = sum(jobs for (_, prior, _), jobs in self.moved if prior is None)
        if accepted or self.rejected:
            sql = "UPDATE ever SET accepted = accepted + ?, rejected = rejected + ?"
            self.connection.execute(sql, (accepted, self.rejected))

    def taken(self) -> Effects:
        """What the transaction changed, summed up; the next one starts with nothing."""
        effects = Effects(
            made=self.made,
            moved=_summed(self.moved),
            rejected=self.rejected,
            pruned=_summed(self.pruned),
            gone=self.gone,
        )
        self.moved, self.made, self.rejected, self.pruned, self.gone = [], [], 0, [], []
        return effects

    def _endpoint(self, queue: QueueId) -> EndpointName:
        known = self._endpoints.get(queue)
        if known is None:
            self._endpoints[queue] = known = self._find_endpoint(queue)
        return known

    def _find_endpoint(self, queue: QueueId) -> EndpointName:
        """Also of a queue that this very transaction forgot."""
        for each in self.gone:
            if each.queue_id == queue:
                return each.endpoint
        (name,) = self.connection.execute("SELECT endpoint FROM queue WHERE queue = ?", (queue,)).fetchone()
        return EndpointName(name)

    def _find_queue(self, file: FileId, endpoint: EndpointName) -> QueueId | None:
        sql = "SELECT queue FROM queue WHERE file = ? AND endpoint = ?"
        row = self.connection.execute(sql, (file, endpoint)).fetchone()
        return QueueId(row[0]) if row else None

    def _make_queue(self, file: FileId, endpoint: EndpointName) -> QueueId:
        cursor = self.connection.execute(_INSERT_QUEUE, (file, endpoint))
        queue = QueueId(cursor.lastrowid or 0)
        self.made.append(Queue(queue, file, endpoint))
        return queue

    def _folder(self, path: str) -> int:
        if len(self._folders) >= FOLDERS_KEPT:
            self._folders.clear()
        row = self.connection.execute("SELECT folder FROM folder WHERE path = ?", (path,)).fetchone()
        number: int | None = row[0] if row else None
        if number is None:
            number = self.connection.execute("INSERT INTO folder (path) VALUES (?)", (path,)).lastrowid or 0
        self._folders[path] = number
        return number


def _summed(noted: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    sums: dict[Key, int] = {}
    for key, jobs in noted:
        sums[key] = sums.get(key, 0) + jobs
    return sums
