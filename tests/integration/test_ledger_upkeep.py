"""What the ledger does by itself: its log shrinks when nothing happens, and it takes new work again when a full disk has space."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from dispatcher.errors import DispatcherError, LedgerFaultError, LedgerFullError
from dispatcher.ledger import filing, opening, writer
from dispatcher.ledger.ballast import ballast_path
from dispatcher.ledger.calls import Call, Commit, Inbox, Operation
from dispatcher.ledger.sqlite import SqliteLedger, open_sqlite
from dispatcher.ledger.upkeep import Pace, Upkeep
from dispatcher.ledger.writer import Writer
from dispatcher.model import Error, State
from tests.contract.test_ledger import a_batch, a_file, a_job, keys, submitted, with_jobs
from tests.integration.test_ledger_faults import Disk

SOON = Pace(idle_seconds=0.01, retry_seconds=0.01)
NEVER = Pace(idle_seconds=1e6, retry_seconds=1e6)


# --- when something is due -------------------------------------------------------------------------------------------


def test_nothing_is_due_where_nothing_has_changed() -> None:
    upkeep = Upkeep(Pace())
    assert upkeep.patience(0.0) is None
    assert not upkeep.wants_checkpoint(1e9)
    assert not upkeep.wants_look(1e9)


def test_a_checkpoint_is_due_a_while_after_the_last_change_and_once() -> None:
    upkeep = Upkeep(Pace(idle_seconds=5.0))
    upkeep.changed(10.0)
    upkeep.changed(12.0)
    assert (upkeep.patience(13.0), upkeep.wants_checkpoint(16.9)) == (4.0, False)
    assert (upkeep.patience(17.5), upkeep.wants_checkpoint(17.0)) == (0.0, True)
    upkeep.checkpointed()
    assert (upkeep.patience(18.0), upkeep.wants_checkpoint(99.0)) == (None, False)


def test_on_a_full_disk_space_is_looked_for_again_and_again_until_there_is_some() -> None:
    upkeep = Upkeep(Pace(idle_seconds=1.0, retry_seconds=5.0))
    upkeep.filled(10.0)
    upkeep.changed(10.0)
    assert not upkeep.wants_checkpoint(15.0)
    assert (upkeep.full, upkeep.patience(11.0), upkeep.wants_look(15.0)) == (True, 4.0, True)
    upkeep.filled(15.0)
    assert (upkeep.full, upkeep.wants_look(19.0), upkeep.wants_look(20.0)) == (True, False, True)
    upkeep.emptied()
    assert (upkeep.full, upkeep.wants_look(99.0), upkeep.wants_checkpoint(20.0)) == (False, False, True)


# --- the log ---------------------------------------------------------------------------------------------------------


class Thread:
    """The ledger's thread without a ledger: what it delivers can be waited for."""

    def __init__(self, path: Path) -> None:
        self.inbox = Inbox()
        self.commits: SimpleQueue[Commit] = SimpleQueue()
        self.ended: SimpleQueue[DispatcherError | None] = SimpleQueue()
        worker = Writer(path, self.inbox, self.commits.put, opening.connect, SOON)
        self.worker = writer.start(worker, lambda store: None, self.ended.put)

    def call(self, operation: Operation[object]) -> Commit:
        self.inbox.put(Call(operation, False, asyncio.get_running_loop().create_future()))
        return self.commits.get(timeout=60)


@pytest.fixture
async def thread(tmp_path: Path) -> AsyncIterator[Thread]:
    made = Thread(tmp_path / "ledger")
    yield made
    made.inbox.end()
    assert made.ended.get(timeout=60) is None
    made.worker.join()


async def test_the_log_is_moved_into_the_file_when_nothing_changes_for_a_while(thread: Thread) -> None:
    for run in ("one", "two"):
        commit = thread.call(lambda store, run=run: filing.add_file(store, a_file(run)))  # type: ignore[misc]
        while commit.answers == []:
            commit = thread.commits.get(timeout=60)
        assert (commit.rows, commit.wal_bytes > 0) == (1, True)
        notice = thread.commits.get(timeout=60)
        assert (notice.answers, notice.wal_bytes, notice.fault) == ([], 0, None)


async def test_reading_asks_for_no_checkpoint(thread: Thread) -> None:
    thread.commits.get(timeout=60)
    first, second = thread.call(filing.files), thread.call(filing.files)
    assert (first.rows, second.rows, second.wal_bytes) == (0, 0, 0)
    assert thread.commits.empty()


# --- a full disk -----------------------------------------------------------------------------------------------------


async def a_full_ledger(path: Path, disk: Disk, pace: Pace) -> SqliteLedger:
    ledger = await open_sqlite(path, connect=disk.connect, pace=pace)
    queue = await with_jobs(ledger)
    disk.breaks = lambda: sqlite3.SQLITE_FULL if ballast_path(path).exists() else None
    with pytest.raises(LedgerFullError):
        await ledger.accept(a_batch(queue.file_id, [a_job(9)]))
    return ledger


async def test_work_begins_again_when_there_is_space(tmp_path: Path) -> None:
    path, disk = tmp_path / "ledger", Disk()
    ledger = await a_full_ledger(path, disk, SOON)
    disk.breaks = lambda: None
    await ledger.free()
    assert not ledger.full
    assert ballast_path(path).exists()
    queue = ledger.queues()[0]
    await ledger.accept(a_batch(queue.file_id, [a_job(9)]))
    assert len(await ledger.claim(queue.queue_id, 9, 0.0)) == 6
    await ledger.aclose()


async def test_a_disk_that_fills_a_second_time_is_met_alike(tmp_path: Path) -> None:
    path, disk = tmp_path / "ledger", Disk()
    ledger = await a_full_ledger(path, disk, SOON)
    disk.breaks = lambda: None
    await ledger.free()
    key, *_ = keys(await ledger.claim(ledger.queues()[0].queue_id, 1, 0.0))
    disk.breaks = lambda: sqlite3.SQLITE_FULL if ballast_path(path).exists() else None
    await ledger.record([submitted(key)])
    with pytest.raises(LedgerFullError):
        await ledger.add_file(a_file("other"))
    await ledger.aclose()


async def test_what_can_be_done_later_is_refused_and_what_happened_is_recorded(tmp_path: Path) -> None:
    ledger = await a_full_ledger(tmp_path / "ledger", Disk(), NEVER)
    queue = ledger.queues()[0]
    refused = [
        ledger.add_file(a_file("other")),
        ledger.claim(queue.queue_id, 1, 0.0),
        ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "x")),
        ledger.prune(9.0, 9),
    ]
    answers = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(answer) for answer in answers} == {LedgerFullError}
    await ledger.published(queue.file_id, 1.0)
    assert (await ledger.files())[0].published_at == 1.0
    await ledger.aclose()


async def test_who_waits_for_space_hears_that_the_ledger_was_closed(tmp_path: Path) -> None:
    ledger = await a_full_ledger(tmp_path / "ledger", Disk(), NEVER)
    waiting = asyncio.ensure_future(ledger.free())
    await asyncio.sleep(0)
    assert not waiting.done()
    await ledger.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting


async def test_who_waits_for_space_hears_that_the_ledger_broke(tmp_path: Path) -> None:
    disk = Disk()
    ledger = await a_full_ledger(tmp_path / "ledger", disk, NEVER)
    waiting = asyncio.ensure_future(ledger.free())
    disk.breaks = lambda: sqlite3.SQLITE_FULL
    with pytest.raises(LedgerFaultError):
        await ledger.files()
    with pytest.raises(LedgerFaultError, match="start again"):
        await waiting
    await ledger.aclose()


async def test_nobody_waits_for_space_where_there_is_some(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    await ledger.free()
    await ledger.aclose()
