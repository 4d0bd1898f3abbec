"""The ledger's thread: it alone touches the file, and makes one transaction of all calls that wait.

What is sequential: calls take effect in the order in which they were made. What is grouped: the thread lets others join the
first call for a moment (`Pace.gather_seconds`), takes whatever is queued, up to GROUP_CALLS, commits once, and hands all
answers to the event loop in one callback. A commit costs as much CPU as fifty jobs in it, so the moment saves a third of
what the ledger costs under load, where a lane's next claim joins the outcomes that made room for it.

No answer is given before the commit returned. A call that raises is rolled back alone, to its savepoint. An error of
the file or disk ends the ledger: the group, all that is queued and every later call get it, and nothing is tried
again, because after a failed fsync no later success can be believed. Only a full disk gets one more try, with the
ballast let go. From then on calls that can be made later are refused, so that what has happened can still be recorded,
until there was space to lay the ballast again. A full disk without a ballast ends the ledger like any other fault.

When nothing changes for a while the log is moved into the file (`upkeep`).

After a crash the file holds every committed group and nothing of any other.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

from dispatcher.errors import DispatcherError, LedgerFaultError
from dispatcher.ledger import ballast, faults
from dispatcher.ledger.calls import Answer, Call, Commit, Deliver, Inbox
from dispatcher.ledger.lock import Release
from dispatcher.ledger.opening import WAL_LIMIT_BYTES, Connect, open_file
from dispatcher.ledger.store import Store
from dispatcher.ledger.tally import Effects
from dispatcher.ledger.upkeep import Pace, Upkeep


class Writer:
    """What the thread does. Every method but the constructor runs on it."""

    def __init__(self, path: Path, inbox: Inbox, deliver: Deliver, connect: Connect, pace: Pace) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._inbox = inbox
        self._deliver = deliver
        self._connect = connect
        self._upkeep = Upkeep(pace)
        self._fault: DispatcherError | None = None

    def run(self, opened: Callable[[Store], None], closed: Callable[[DispatcherError | None], None]) -> None:
        """Opens the ledger, tells so, serves until the inbox ends, closes the ledger, tells so. Raises what opening raises."""
        connection, release = open_file(self._path, self._connect)
        store = Store(connection)
        try:
            opened(store)
            self._serve(store)
        except sqlite3.Error as error:
            raise faults.translated(error, self._path) from error
        finally:
            fault = self._close(connection, release)
        closed(fault)

    def _serve(self, store: Store) -> None:
        # A log that the last process left may wait from the start.
        self._upkeep.changed(time.monotonic())
        more = True
        while more:
            calls, more = self._inbox.group(self._patience(), self._upkeep.gather_seconds)
            if calls:
                self._deliver(self._commit(store, calls))
                self._checkpoint_if_long(store)
            if more and self._fault is None:
                self._look_after(store, time.monotonic())

    def _patience(self) -> float | None:
        return None if self._fault is not None else self._upkeep.patience(time.monotonic())

    def _look_after(self, store: Store, now: float) -> None:
        """Does what is due, and tells of it."""
        checkpoint, look = self._upkeep.wants_checkpoint(now), self._upkeep.wants_look(now)
        if checkpoint:
            self._checkpoint(store.connection)
        if look:
            self._look_for_space(now)
        if checkpoint or look:
            self._deliver(self._notice())

    def _look_for_space(self, now: float) -> None:
        self._upkeep.filled(now)
        with suppress(OSError):
            if ballast.has_room(self._path):
                ballast.load(self._path)
                self._upkeep.emptied()

    def _notice(self) -> Commit:
        return Commit([], Effects(), 0.0, 0, self._wal_bytes(), self._upkeep.full, self._fault)

    def _commit(self, store: Store, calls: Sequence[Call]) -> Commit:
        before, start = store.connection.total_changes, time.perf_counter()
        answers = self._answers(store, calls)
        seconds = time.perf_counter() - start
        rows = store.connection.total_changes - before
        if rows:
            self._upkeep.changed(time.monotonic())
        return Commit(answers, store.taken(), seconds, rows, self._wal_bytes(), self._upkeep.full, self._fault)

    def _answers(self, store: Store, calls: Sequence[Call]) -> list[Answer]:
        if self._fault is not None:
            return self._failed(calls)
        try:
            return self._transact(store, calls)
        except sqlite3.Error as error:
            self._roll_back(store)
            return self._after(error, store, calls)
        except Exception as error:
            # A mistake of this module; without an answer its callers would wait for ever.
            self._roll_back(store)
            self._fault = LedgerFaultError(f"the ledger's thread failed: {error!r}; this is a bug, start again")
            self._fault.__cause__ = error
            return self._failed(calls)

    def _after(self, error: sqlite3.Error, store: Store, calls: Sequence[Call]) -> list[Answer]:
        """What becomes of a group whose transaction failed."""
        if faults.is_full(error) and not self._upkeep.full and ballast.drop(self._path):
            self._upkeep.filled(time.monotonic())
            return self._answers(store, calls)
        self._fault = faults.translated(error, self._path)
        self._fault.__cause__ = error
        return self._failed(calls)

    def _transact(self, store: Store, calls: Sequence[Call]) -> list[Answer]:
        store.connection.execute("BEGIN")
        answers = [self._answer(store, call) for call in calls]
        store.save_totals()
        store.connection.execute("COMMIT")
        return answers

    def _answer(self, store: Store, call: Call) -> Answer:
        if call.deferrable and self._upkeep.full:
            return Answer(call, None, faults.refused(self._path))
        return _isolated(store, call)

    def _roll_back(self, store: Store) -> None:
        """SQLite has rolled back by itself after some errors; on a broken disk this may fail as well, and changes nothing."""
        with suppress(sqlite3.Error):
            if store.connection.in_transaction:
                store.connection.execute("ROLLBACK")
        store.taken()
        store.forget()

    def _failed(self, calls: Sequence[Call]) -> list[Answer]:
        assert self._fault is not None
        return [Answer(call, None, again(self._fault)) for call in calls]

    def _checkpoint_if_long(self, store: Store) -> None:
        if self._fault is None and self._wal_bytes() >= WAL_LIMIT_BYTES:
            self._checkpoint(store.connection)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Moves the log into the file. A full disk is no fault here: the log stays, and a commit that needs space says so."""
        self._upkeep.checkpointed()
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            if not faults.is_full(error):
                self._fault = faults.translated(error, self._path)
                self._fault.__cause__ = error

    def _wal_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size  # noqa: PTH116 - a third of what Path.stat costs, for every commit
        except OSError:
            return 0

    def _close(self, connection: sqlite3.Connection, release: Release) -> DispatcherError | None:
        """Closes the file and lets go of the lock; the fault, if closing is what brought it to light."""
        known = self._fault
        try:
            if known is None:
                self._checkpoint(connection)
            with suppress(sqlite3.Error):
                connection.close()
        finally:
            release()
        return None if known else self._fault


def _isolated(store: Store, call: Call) -> Answer:
    """Runs a call so that its failure undoes it and nothing else."""
    marker = store.marker()
    store.connection.execute("SAVEPOINT call")
    try:
        answer = Answer(call, call.operation(store), None)
    except Exception as error:
        # Whatever a call raises is its caller's to see, unless it tells that the file cannot be trusted.
        if not faults.is_own_fault(error):
            raise
        store.connection.execute("ROLLBACK TO call")
        store.undo(marker)
        answer = Answer(call, None, ValueError(str(error)) if isinstance(error, sqlite3.Error) else error)
    store.connection.execute("RELEASE call")
    return answer


def again(fault: DispatcherError) -> DispatcherError:
    """The same error for another caller: one instance raised in many places would gather all their tracebacks."""
    copy = type(fault)(*fault.args)
    copy.__cause__ = fault.__cause__
    return copy


def start(writer: Writer, opened: Callable[[Store], None], closed: Callable[[DispatcherError | None], None]) -> Thread:
    """Starts the thread; a daemon, because a loop that broke down must not leave a process that hangs."""

    def run() -> None:
        try:
            writer.run(opened, closed)
        except DispatcherError as error:
            closed(error)
        except Exception as error:
            # Nobody else would hear of it, and `aclose` would wait for ever.
            closed(LedgerFaultError(f"the ledger's thread ended: {error!r}; this is a bug, start again"))

    thread = Thread(target=run, name="ledger", daemon=True)
    thread.start()
    return thread
