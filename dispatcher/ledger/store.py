"""The ledger's thread side: one connection, what is remembered of the tables, and what the open transaction changed.

Touched by the ledger's thread alone. Everything remembered can be read again, so `forget` is always right; it must be
called whenever something is rolled back. `moved` and `made` are what the loop's side is told after the commit.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable

from dispatcher.ledger.codes import split
from dispatcher.ledger.tally import Moved
from dispatcher.model import EndpointName, FileId, JobKey, Queue, QueueId, State

FOLDERS_KEPT = 4_096


class Store:
    """A connection with its open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.moved: list[tuple[Moved, int]] = []
        self.made: list[Queue] = []
        self._folders: dict[str, int] = {}
        self._marks: dict[QueueId, int] = {}
        self._queues: dict[tuple[FileId, EndpointName], QueueId] = {}

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
        """Drops what is remembered of the tables; after any rollback."""
        self._folders.clear()
        self._marks.clear()
        self._queues.clear()

    def taken(self) -> tuple[list[Queue], dict[Moved, int]]:
        """What the transaction changed, summed up; the next one starts with nothing."""
        made, moved = self.made, dict[Moved, int]()
        for pair, jobs in self.moved:
            moved[pair] = moved.get(pair, 0) + jobs
        self.made, self.moved = [], []
        return made, moved

    def _find_queue(self, file: FileId, endpoint: EndpointName) -> QueueId | None:
        sql = "SELECT queue FROM queue WHERE file = ? AND endpoint = ?"
        row = self.connection.execute(sql, (file, endpoint)).fetchone()
        return QueueId(row[0]) if row else None

    def _make_queue(self, file: FileId, endpoint: EndpointName) -> QueueId:
        cursor = self.connection.execute("INSERT INTO queue (file, endpoint) VALUES (?, ?)", (file, endpoint))
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
