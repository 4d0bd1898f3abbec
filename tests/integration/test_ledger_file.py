"""What only a ledger on disk promises: it survives closing, it has one owner, it refuses what it cannot trust."""

import asyncio
import os
import random
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from dispatcher.errors import LedgerCorruptError, LedgerHeldError, UsageError
from dispatcher.ledger import schema
from dispatcher.ledger.ballast import BALLAST_BYTES, ballast_path
from dispatcher.ledger.calls import QUEUED_CALLS
from dispatcher.ledger.opening import WAL_LIMIT_BYTES
from dispatcher.ledger.sqlite import SqliteLedger, open_sqlite
from dispatcher.lifecycle import IllegalMoveError
from dispatcher.model import Change, Error, FailureReason, Move, Rejection, State
from tests.contract.test_ledger import (
    A,
    a_batch,
    a_file,
    a_job,
    assert_tallies_are_true,
    keys,
    settled,
    submitted,
    with_jobs,
)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    made = await open_sqlite(tmp_path / "ledger")
    yield made
    await made.aclose()


async def a_closed_ledger(path: Path) -> Path:
    ledger = await open_sqlite(path)
    await with_jobs(ledger, range(1, 401))
    await ledger.aclose()
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def test_all_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    queue = await with_jobs(ledger)
    one, two, _ = keys(await ledger.claim(queue.queue_id, 3, 0.0))
    await ledger.record([submitted(one), settled(two, State.CLAIMED, State.DEAD)])
    before = await ledger.files(), ledger.queues(), await ledger.rows(queue.file_id, 0, 9), ledger.tally(queue.queue_id)
    await ledger.aclose()
    again = await open_sqlite(tmp_path / "ledger")
    assert before == (
        await again.files(),
        again.queues(),
        await again.rows(queue.file_id, 0, 9),
        again.tally(queue.queue_id),
    )
    await again.aclose()


async def test_totals_outlive_the_process_and_what_they_counted(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    queue = await with_jobs(ledger)
    await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more"))
    await ledger.published(queue.file_id, 1.0)
    await ledger.prune(2.0, 99)
    await ledger.aclose()
    again = await open_sqlite(tmp_path / "ledger")
    assert again.totals() == {(A, State.ACCEPTED): 5, (A, State.CANCELLED): 5}
    assert (again.lines(), await again.files()) == ((5, 0), [])
    assert (await with_jobs(again)).queue_id > queue.queue_id
    await again.aclose()


async def test_a_job_that_moves_and_is_forgotten_in_one_commit_is_counted(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    key, *_ = keys(await ledger.claim((await with_jobs(ledger, [1])).queue_id, 1, 0.0))
    file = ledger.queues()[0].file_id
    moves: list[Move] = [submitted(key), settled(key, State.SUBMITTED, State.SUCCEEDED)]
    await asyncio.gather(ledger.record(moves), ledger.published(file, 1.0), ledger.prune(2.0, 9))
    assert ledger.queues() == []
    assert ledger.totals()[A, State.SUCCEEDED] == 1
    await ledger.aclose()


async def test_other_calls_are_answered_while_a_large_file_is_cancelled(ledger: SqliteLedger) -> None:
    queue = await with_jobs(ledger, range(1, 20_001))
    order: list[str] = []

    async def cancel() -> None:
        assert await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more")) == 20_000
        order.append("cancelled")

    async def ask() -> None:
        await ledger.next_ambiguous_at()
        order.append("answered")

    await asyncio.gather(cancel(), ask(), ask())
    assert order == ["answered", "answered", "cancelled"]


async def test_what_is_accepted_while_a_file_is_cancelled_is_not_touched(ledger: SqliteLedger) -> None:
    queue = await with_jobs(ledger, range(1, 20_501))
    begun = asyncio.Event()
    ledger.subscribe(lambda changes: begun.set())
    ending = ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more"))
    task = asyncio.ensure_future(ending)
    await begun.wait()
    # The first of them fill the last shard, the others make new ones.
    await ledger.accept(a_batch(queue.file_id, [a_job(line) for line in range(20_501, 22_001)]))
    assert not task.done()
    assert await task == 20_500
    assert [claim.key.line for claim in await ledger.claim(queue.queue_id, 2, 0.0)] == [20_501, 20_502]


async def test_claims_read_nothing_of_what_was_cancelled(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    queue = await with_jobs(ledger, range(1, 6))
    await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more"))
    await ledger.aclose()
    with closing(sqlite3.connect(tmp_path / "ledger")) as connection:
        assert connection.execute("SELECT claimed_through FROM queue").fetchall() == [(5,)]


async def test_an_ending_that_was_broken_off_is_ended_by_the_next(ledger: SqliteLedger) -> None:
    queue = await with_jobs(ledger, range(1, 20_001))
    error, first = Error("cancelled", "no more"), asyncio.Event()
    ledger.subscribe(lambda changes: first.set())
    task = asyncio.ensure_future(ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, error))
    await first.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ended = ledger.tally(queue.queue_id)[State.CANCELLED]
    assert 0 < ended < 20_000
    rest = await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, error)
    assert ledger.tally(queue.queue_id)[State.CANCELLED] == 20_000
    assert rest <= 20_000 - ended


@pytest.mark.parametrize("again", ["cancelled again", "opened again"])
async def test_a_cancel_that_was_broken_off_gives_nothing_to_claim_and_is_brought_to_its_end(
    tmp_path: Path, again: str
) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    queue, first = await with_jobs(ledger, range(1, 20_001)), asyncio.Event()
    ledger.subscribe(lambda changes: first.set())
    task = asyncio.ensure_future(ledger.cancel(queue.file_id, 1.0))
    await first.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await ledger.accept(a_batch(queue.file_id, [a_job(line) for line in range(20_001, 22_001)]))
    ended = ledger.tally(queue.queue_id)[State.CANCELLED]
    assert 2_000 < ended < 22_000
    assert (await ledger.claim(queue.queue_id, 5, 9.0), await ledger.next_due_at(queue.queue_id)) == ([], None)
    if again == "opened again":
        await ledger.aclose()
        ledger = await open_sqlite(tmp_path / "ledger")
        assert await ledger.recover(0.0) == 0
    else:
        await ledger.cancel(queue.file_id, 2.0)
    assert ledger.tally(queue.queue_id)[State.CANCELLED] == 22_000
    assert {row.completed_at for row in await ledger.rows(queue.file_id, 0, 22_000)} == {1.0}
    await assert_tallies_are_true(ledger)
    await ledger.aclose()


async def test_a_ledger_that_is_held_for_a_moment_is_waited_for_and_no_longer_than_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    holder = await open_sqlite(path)
    with pytest.raises(LedgerHeldError):
        await open_sqlite(path, patience_seconds=0.1)
    waiting = asyncio.ensure_future(open_sqlite(path, patience_seconds=30.0))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()
    await holder.aclose()
    await (await waiting).aclose()


async def test_closing_leaves_no_log_and_no_thread(tmp_path: Path) -> None:
    await a_closed_ledger(tmp_path / "ledger")
    assert names_in(tmp_path) == ["ledger", "ledger.ballast", "ledger.lock"]
    assert "ledger" not in [thread.name for thread in threading.enumerate()]


async def test_only_the_owner_of_the_process_can_read_it(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "new" / "folder" / "ledger")
    await with_jobs(ledger)
    folder = tmp_path / "new" / "folder"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 4
    await ledger.aclose()


async def test_calls_made_at_once_share_a_commit_and_a_wrong_one_fails_alone(tmp_path: Path) -> None:
    commits: list[int] = []
    ledger = await open_sqlite(tmp_path / "ledger", on_commit=lambda seconds, rows: commits.append(rows))
    queue = await with_jobs(ledger, range(1, 101))
    jobs = keys(await ledger.claim(queue.queue_id, 100, 0.0))
    commits.clear()
    calls = [ledger.record([submitted(key)]) for key in [*jobs, jobs[0]]]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None)] * 100 + [IllegalMoveError]
    assert len(commits) < 50
    assert ledger.tally(queue.queue_id)[State.SUBMITTED] == 100
    await ledger.aclose()


async def test_more_calls_than_the_queue_holds_wait_and_are_all_answered(ledger: SqliteLedger) -> None:
    calls = [ledger.files() for _ in range(3 * QUEUED_CALLS)]
    assert await asyncio.gather(*calls) == [[]] * len(calls)


async def test_a_cancelled_call_frees_its_place(ledger: SqliteLedger) -> None:
    tasks = [asyncio.ensure_future(ledger.files()) for _ in range(2 * QUEUED_CALLS)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.gather(*[ledger.files() for _ in range(2 * QUEUED_CALLS)]) == [[]] * 2 * QUEUED_CALLS


async def test_closing_answers_what_was_handed_in(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger")
    added = [asyncio.ensure_future(ledger.add_file(a_file(f"run{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(ledger.aclose(), ledger.aclose())
    assert len({(await task).file_id for task in added}) == 20


async def test_an_observer_that_raises_hangs_nobody(ledger: SqliteLedger) -> None:
    seen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(str(context["exception"])))

    def broken(changes: object) -> None:
        raise ZeroDivisionError("observer")

    ledger.subscribe(broken)
    queue = await with_jobs(ledger)
    assert ledger.tally(queue.queue_id)[State.ACCEPTED] == 5
    assert seen == ["observer"]


async def test_a_value_that_sqlite_cannot_hold_is_the_callers_mistake(ledger: SqliteLedger) -> None:
    queue = await with_jobs(ledger)
    before = await ledger.files()
    for wrong in (a_job(1 << 70), a_job(7, id="\ud800"), a_job(3, id="new")):
        with pytest.raises((OverflowError, ValueError)):
            await ledger.accept(a_batch(queue.file_id, [a_job(6), wrong], at=9))
    assert await ledger.files() == before
    bad = Rejection(7, None, FailureReason.INVALID_JSON, "x")
    with pytest.raises(OverflowError):
        await ledger.accept(a_batch(queue.file_id, [a_job(6)], [bad], at=1 << 70))
    assert await ledger.files() == before
    assert (ledger.tally(queue.queue_id)[State.ACCEPTED], ledger.lines()) == (5, (5, 0))
    await ledger.published(queue.file_id, 1.0)
    assert ledger.lines() == (5, 0)


async def test_the_log_stays_bounded(ledger: SqliteLedger) -> None:
    file = await ledger.add_file(a_file())
    ids = random.Random(7)
    sizes = []
    for start in range(1, 100_001, 500):
        jobs = [a_job(line, id=f"{ids.getrandbits(128):032x}") for line in range(start, start + 500)]
        await ledger.accept(a_batch(file.file_id, jobs))
        sizes.append(ledger.wal_bytes())
    assert max(sizes) < 2 * WAL_LIMIT_BYTES
    assert any(later < earlier for earlier, later in pairwise(sizes))


# --- one owner -------------------------------------------------------------------------------------------------------


async def test_a_second_process_is_told_who_holds_the_ledger(ledger: SqliteLedger, tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from dispatcher.errors import LedgerHeldError\n"
        "from dispatcher.ledger.sqlite import open_sqlite\n"
        "try:\n"
        "    asyncio.run(open_sqlite(pathlib.Path(sys.argv[1])))\n"
        "except LedgerHeldError as error:\n"
        "    print(error)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(tmp_path / "ledger")),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    output, _ = await process.communicate()
    assert f"held by process {os.getpid()} on " in output.decode()


async def test_a_second_owner_in_the_same_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first = await open_sqlite(tmp_path / "ledger")
    with pytest.raises(LedgerHeldError, match=str(os.getpid())):
        await open_sqlite(tmp_path / "ledger")
    await first.aclose()
    await (await open_sqlite(tmp_path / "ledger")).aclose()


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_a_folder_or_a_path_through_a_file_cannot_be_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "ledger", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="ledger"):
            await open_sqlite(path)


async def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = await a_closed_ledger(tmp_path / "ledger")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(UsageError, match="made by a newer version"):
        await open_sqlite(path)


async def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(UsageError, match="not a ledger"):
        await open_sqlite(tmp_path / "other")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "zeros"])
async def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = await a_closed_ledger(tmp_path / "ledger")
    whole = path.read_bytes()
    zeros = whole[:8192] + bytes(len(whole) - 8192)
    path.write_bytes({"empty": b"", "text": b"not a database" * 99, "cut": whole[:9000], "zeros": zeros}[damage])
    with pytest.raises(LedgerCorruptError, match="restore a backup"):
        await open_sqlite(path)


async def test_a_start_that_broke_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ledger.new").write_bytes(b"half")
    ledger = await open_sqlite(tmp_path / "ledger")
    assert await ledger.files() == []
    await ledger.aclose()


async def test_a_ballast_lies_beside_the_ledger(ledger: SqliteLedger, tmp_path: Path) -> None:
    assert ballast_path(tmp_path / "ledger").stat().st_size == BALLAST_BYTES


async def test_changes_of_one_commit_are_told_in_one_piece(ledger: SqliteLedger) -> None:
    queue = await with_jobs(ledger, range(1, 11))
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    await asyncio.gather(*[ledger.claim(queue.queue_id, 1, 0.0) for _ in range(10)])
    assert sum(change.jobs for change in heard) == 10
