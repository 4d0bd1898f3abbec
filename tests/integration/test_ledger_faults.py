"""A ledger whose disk fails: at every call in turn, when it is full, and when a process is killed."""

import asyncio
import itertools
import json
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dispatcher.errors import DispatcherError, LedgerCorruptError, LedgerFaultError
from dispatcher.ledger.ballast import ballast_path
from dispatcher.ledger.sqlite import SqliteLedger, open_sqlite
from dispatcher.model import Error, FileId, JobKey, QueueId, State
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

ROOT = Path(__file__).parents[2]


class Disk:
    """Makes connections that ask `breaks` before each statement, and fail with the code that it gives."""

    def __init__(self) -> None:
        self.breaks: Callable[[], int | None] = lambda: None

    def connect(self, path: Path) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                disk.touch()
                return super().execute(*args)

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                disk.touch()
                return super().executemany(*args)

        return sqlite3.connect(path, isolation_level=None, factory=Connection)

    def touch(self) -> None:
        code = self.breaks()
        if code is not None:
            error = sqlite3.OperationalError("simulated")
            error.sqlite_errorcode = code
            raise error

    def break_at(self, call: int, code: int) -> None:
        calls = itertools.count(1)
        self.breaks = lambda: code if next(calls) == call else None


async def work(ledger: SqliteLedger, acknowledged: list[str]) -> None:
    """A little of everything; notes what was answered."""
    queue = await with_jobs(ledger)
    acknowledged.append("accepted")
    one, two, *_ = keys(await ledger.claim(queue.queue_id, 3, 0.0))
    acknowledged.append("claimed")
    await ledger.record([submitted(one), settled(two, State.CLAIMED, State.DEAD)])
    acknowledged.append("recorded")
    await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more"))
    acknowledged.append("cancelled")
    await forget_a_file(ledger)
    acknowledged.append("pruned")


async def forget_a_file(ledger: SqliteLedger) -> None:
    other = await with_jobs(ledger)
    await ledger.end_unsent(other.file_id, State.CANCELLED, 1.0, Error("cancelled", "no more"))
    await ledger.published(other.file_id, 1.0)
    assert [await ledger.prune(2.0, 4), await ledger.prune(2.0, 4)] == [4, 2]


async def test_whichever_statement_fails_all_later_calls_fail_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    for call in range(1, 200):
        path = tmp_path / str(call) / "ledger"
        disk, acknowledged = Disk(), list[str]()
        ledger = await open_sqlite(path, connect=disk.connect)
        disk.break_at(call, sqlite3.SQLITE_IOERR)
        try:
            await work(ledger, acknowledged)
        except LedgerFaultError:
            await assert_broken(ledger)
        # The failing statement may be the checkpoint at the end.
        with suppress(LedgerFaultError):
            await ledger.aclose()
        await assert_holds(path, acknowledged)
        if "pruned" in acknowledged:
            return
    pytest.fail("the work never got through")


async def assert_broken(ledger: SqliteLedger) -> None:
    for _ in range(2):
        with pytest.raises(LedgerFaultError, match="simulated"):
            await ledger.add_file(a_file("later"))
    await ledger.aclose()


async def assert_holds(path: Path, acknowledged: Sequence[str]) -> None:
    ledger = await open_sqlite(path)
    rows = await ledger.rows(FileId(1), 0, 9)
    states = [row.state for row in rows]
    assert len(rows) in ((5,) if "accepted" in acknowledged else (0, 5))
    if "cancelled" in acknowledged:
        assert states[3:] == [State.CANCELLED] * 2
    if "recorded" in acknowledged:
        assert states[:3] == [State.SUBMITTED, State.DEAD, State.CLAIMED]
    elif "claimed" in acknowledged:
        assert State.ACCEPTED not in states[:3]
    if "pruned" in acknowledged:
        assert [file.file_id for file in await ledger.files()] == [1]
    await assert_tallies_are_true(ledger)
    assert_totals_are_true(ledger, acknowledged)
    await ledger.aclose()


TOTALS: list[dict[State, int]] = [
    {},
    {State.ACCEPTED: 5},
    {State.ACCEPTED: 5, State.CLAIMED: 3},
    {State.ACCEPTED: 5, State.CLAIMED: 3, State.SUBMITTED: 1, State.DEAD: 1},
    {State.ACCEPTED: 5, State.CLAIMED: 3, State.SUBMITTED: 1, State.DEAD: 1, State.CANCELLED: 2},
    {State.ACCEPTED: 10, State.CLAIMED: 3, State.SUBMITTED: 1, State.DEAD: 1, State.CANCELLED: 2},
    {State.ACCEPTED: 10, State.CLAIMED: 3, State.SUBMITTED: 1, State.DEAD: 1, State.CANCELLED: 7},
]
"""After each commit of `work` that moves jobs; its last acknowledgement comes two of them after the one before."""


def assert_totals_are_true(ledger: SqliteLedger, acknowledged: Sequence[str]) -> None:
    totals = {state: jobs for (_, state), jobs in ledger.totals().items()}
    assert totals in TOTALS[len(acknowledged) + ("pruned" in acknowledged) :]
    assert ledger.lines() == (totals.get(State.ACCEPTED, 0), 0)


async def test_damage_found_while_at_work_is_called_damage(tmp_path: Path) -> None:
    disk = Disk()
    ledger = await open_sqlite(tmp_path / "ledger", connect=disk.connect)
    disk.breaks = lambda: sqlite3.SQLITE_CORRUPT
    for _ in range(2):
        with pytest.raises(LedgerCorruptError, match="damaged"):
            await ledger.files()
    await ledger.aclose()


async def test_all_that_waits_fails_with_the_call_that_broke_the_ledger(tmp_path: Path) -> None:
    disk = Disk()
    ledger = await open_sqlite(tmp_path / "ledger", connect=disk.connect)
    disk.break_at(20, sqlite3.SQLITE_IOERR)
    answers = await asyncio.gather(*[ledger.add_file(a_file(f"{n}")) for n in range(300)], return_exceptions=True)
    assert {type(answer) for answer in answers} == {LedgerFaultError}
    await ledger.aclose()


async def test_a_mistake_of_the_ledger_itself_hangs_nobody(tmp_path: Path) -> None:
    def mistaken() -> int | None:
        raise KeyError("mistake")

    disk = Disk()
    ledger = await open_sqlite(tmp_path / "ledger", connect=disk.connect)
    disk.breaks = mistaken
    with pytest.raises(LedgerFaultError, match="bug"):
        await ledger.files()
    await ledger.aclose()


async def test_a_file_that_cannot_be_opened_is_a_fault_and_lets_go_of_the_lock(tmp_path: Path) -> None:
    disk = Disk()
    disk.breaks = lambda: sqlite3.SQLITE_IOERR
    for _ in range(2):
        with pytest.raises(LedgerFaultError):
            await open_sqlite(tmp_path / "ledger", connect=disk.connect)


async def test_on_a_full_disk_no_work_begins_but_what_happened_is_recorded(tmp_path: Path) -> None:
    path, disk = tmp_path / "ledger", Disk()
    ledger = await open_sqlite(path, connect=disk.connect)
    queue = await with_jobs(ledger)
    one, two, *_ = keys(await ledger.claim(queue.queue_id, 3, 0.0))
    disk.breaks = lambda: sqlite3.SQLITE_FULL if ballast_path(path).exists() else None
    with pytest.raises(LedgerFaultError, match="is full"):
        await ledger.accept(a_batch(queue.file_id, [a_job(9)]))
    assert ledger.full
    await ledger.record([submitted(one)])
    with pytest.raises(LedgerFaultError, match="is full"):
        await ledger.claim(queue.queue_id, 1, 0.0)
    await ledger.record([submitted(two)])
    assert ledger.tally(queue.queue_id)[State.SUBMITTED] == 2
    await ledger.aclose()
    again = await open_sqlite(path)
    assert ballast_path(path).exists()
    assert not again.full
    assert again.tally(queue.queue_id)[State.SUBMITTED] == 2
    await again.aclose()


async def test_a_disk_that_is_full_even_without_the_ballast_ends_the_ledger(tmp_path: Path) -> None:
    disk = Disk()
    ledger = await open_sqlite(tmp_path / "ledger", connect=disk.connect)
    disk.breaks = lambda: sqlite3.SQLITE_FULL
    for _ in range(2):
        with pytest.raises(LedgerFaultError, match="is full"):
            await ledger.published(FileId(1), 1.0)
    await ledger.aclose()


# --- real processes --------------------------------------------------------------------------------------------------


async def child(role: str, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, role, str(path)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )


async def test_a_write_that_the_system_refuses_ends_the_ledger(tmp_path: Path) -> None:
    process = await child("limited", tmp_path / "ledger")
    output, _ = await process.communicate()
    first, second, accepted = json.loads(output)
    assert (first, second) == ("LedgerFaultError", "LedgerFaultError")
    ledger = await open_sqlite(tmp_path / "ledger")
    assert ledger.tally(ledger.queues()[0].queue_id)[State.ACCEPTED] == accepted
    await ledger.aclose()


async def test_memory_does_not_grow_with_the_jobs_accepted(tmp_path: Path) -> None:
    process = await child("many", tmp_path / "ledger")
    output, _ = await process.communicate()
    few_kib, many_kib = json.loads(output)
    assert many_kib - few_kib < 8_192


async def test_a_start_with_many_submitted_jobs_takes_little_memory(tmp_path: Path) -> None:
    await submit_many(tmp_path / "ledger", 100_000)
    process = await child("start", tmp_path / "ledger")
    output, _ = await process.communicate()
    recovered, shards, waiting, grown_kib = json.loads(output)
    assert (recovered, shards, waiting) == (200, 100, 99_800)
    assert grown_kib < 24_576


async def submit_many(path: Path, count: int) -> None:
    """All submitted but the last 200, which are claimed."""
    ledger = await open_sqlite(path)
    queue = await with_jobs(ledger, range(1, count + 1))
    jobs = keys(await ledger.claim(queue.queue_id, count, 0.0))
    for start in range(0, count - 200, 5_000):
        await ledger.record([submitted(key) for key in jobs[start : min(start + 5_000, count - 200)]])
    await ledger.aclose()


@pytest.mark.parametrize("answers", [1, 2, 3, 7, 19, 30, 55, 89, 120, 200])
async def test_a_killed_process_loses_nothing_that_it_was_told_is_done(tmp_path: Path, answers: int) -> None:
    process = await child("busy", tmp_path / "ledger")
    told = [await told_by(process) for _ in range(answers)]
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    rest = (await process.stdout.read()).decode().splitlines(keepends=True)
    assert await process.wait() == -signal.SIGKILL
    await assert_kept(tmp_path / "ledger", told + [json.loads(line) for line in rest if line.endswith("\n")])


async def told_by(process: asyncio.subprocess.Process) -> list[Any]:
    assert process.stdout is not None
    told: list[Any] = json.loads(await process.stdout.readline())
    return told


RANK = {State.ACCEPTED: 0, State.CLAIMED: 1, State.SUBMITTED: 2, State.SUCCEEDED: 3}


async def assert_kept(path: Path, told: Sequence[list[Any]]) -> None:
    ledger = await open_sqlite(path)
    (file,) = await ledger.files()
    rows = {row.key.line: row for row in await ledger.rows(file.file_id, 0, 1_000_000)}
    for state, lines in told:
        assert all(RANK[rows[line].state] >= RANK[State(state)] for line in lines)
    assert file.lines == len(rows) == file.cursor.line
    assert ledger.lines() == (file.lines, 0)
    reached = {state: sum(RANK[row.state] >= RANK[state] for row in rows.values()) for state in RANK}
    assert ledger.totals() == {(A, state): jobs for state, jobs in reached.items() if jobs}
    await assert_tallies_are_true(ledger)
    await ledger.aclose()


def tell(state: State, lines: Sequence[int]) -> None:
    sys.stdout.write(json.dumps([state, lines]) + "\n")
    sys.stdout.flush()


async def busy(path: Path) -> None:
    """Accepts, claims, records and settles for ever, all at once, and tells what was answered."""
    ledger = await open_sqlite(path)
    file = (await ledger.add_file(a_file())).file_id
    await feed(ledger, file, 0)
    queue = ledger.queues()[0].queue_id
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed_on(ledger, file))
        for _ in range(4):
            tasks.create_task(dispatch_on(ledger, queue))


async def feed(ledger: SqliteLedger, file: FileId, done: int) -> None:
    lines = range(done + 1, done + 51)
    await ledger.accept(a_batch(file, [a_job(line) for line in lines]))
    tell(State.ACCEPTED, list(lines))


async def feed_on(ledger: SqliteLedger, file: FileId) -> None:
    for done in itertools.count(50, 50):
        await feed(ledger, file, done)


async def dispatch_on(ledger: SqliteLedger, queue: QueueId) -> None:
    while True:
        jobs: list[JobKey] = keys(await ledger.claim(queue, 8, 0.0))
        lines = [key.line for key in jobs]
        tell(State.CLAIMED, lines)
        await ledger.record([submitted(key) for key in jobs])
        tell(State.SUBMITTED, lines)
        await ledger.record([settled(key, State.SUBMITTED, State.SUCCEEDED) for key in jobs])
        tell(State.SUCCEEDED, lines)


async def limited(path: Path) -> None:
    """Accepts until no file may grow further; tells the errors of two calls and how many jobs were acknowledged."""
    ledger = await open_sqlite(path)
    file = (await ledger.add_file(a_file())).file_id
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    accepted, errors = 0, list[str]()
    while len(errors) < 2:
        try:
            await ledger.accept(a_batch(file, [a_job(line) for line in range(accepted + 1, accepted + 101)]))
            accepted += 100
        except DispatcherError as error:
            errors.append(type(error).__name__)
    sys.stdout.write(json.dumps([*errors, accepted]))
    await ledger.aclose()


async def many(path: Path) -> None:
    """Accepts 200,000 jobs; tells the peak of its memory after a quarter of them and at the end."""
    ledger = await open_sqlite(path)
    file = (await ledger.add_file(a_file())).file_id
    peaks = []
    for start in range(1, 200_001, 500):
        await ledger.accept(a_batch(file, [a_job(line) for line in range(start, start + 500)]))
        if start + 499 in (50_000, 200_000):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.stdout.write(json.dumps(peaks))
    await ledger.aclose()


async def start(path: Path) -> None:
    """Opens a ledger as a service does; tells what it found, and by how much its memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ledger = await open_sqlite(path)
    recovered = await ledger.recover(0.0)
    shards = await ledger.shards()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(json.dumps([recovered, len(shards), sum(shard.waiting for shard in shards), grown]))
    await ledger.aclose()


if __name__ == "__main__":
    asyncio.run({"busy": busy, "limited": limited, "many": many, "start": start}[sys.argv[1]](Path(sys.argv[2])))
