"""Ledgers of earlier versions: opened, they keep all they held; a step that breaks off has never been taken."""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dispatcher.ledger import schema
from dispatcher.ledger.codes import TRANSPORTS
from dispatcher.ledger.sqlite import SqliteLedger, open_sqlite
from dispatcher.model import FileId, QueueId, Receipt, Rejection, State
from tests.contract.test_ledger import A, B, a_batch, a_job, assert_tallies_are_true, keys
from tests.integration.test_ledger_faults import Disk

ROOT = Path(__file__).parents[2]

FIRST_DIGEST = "4b8920043ed8bc2431d7285251f80ffdbc583abe817d292ed30d99a4681fc536"
SECOND_DIGEST = "0f0dfd9752332ef209ae7d4a0049329ffa84dce2e072812eac91a1572c9f1153"

# Queue 1, claimed through line 12: one job of every state and way to write it. Columns: line, state, attempts, maybe_sent, sent.
OLD_JOBS = (
    (1, 0, 1, 0, False),
    (2, 4, 1, 0, True),
    (3, 1, 2, 1, False),
    (4, 5, 3, 1, True),
    (7, 2, 1, 0, False),
    (8, 3, 2, 1, False),
    (9, 6, 1, 0, True),
    (10, 7, 1, 0, True),
    (11, 8, 1, 0, False),
    (12, 9, 0, 0, False),
    (14, 0, 1, 0, False),
)
OLD_STATES = [
    State.CLAIMED,
    State.SUBMITTED,
    State.ACCEPTED,
    State.SUCCEEDED,
    State.CLAIMED,
    State.AMBIGUOUS,
    State.FAILED,
    State.EXPIRED,
    State.DEAD,
    State.CANCELLED,
    State.ACCEPTED,
    State.ACCEPTED,
]
"""By line; the last but one is the only job of queue 2."""

SEEDED = {
    (A, State.ACCEPTED): 11,
    (A, State.CLAIMED): 9,
    (A, State.AMBIGUOUS): 3,
    (A, State.SUBMITTED): 4,
    (A, State.SUCCEEDED): 1,
    (A, State.FAILED): 1,
    (A, State.EXPIRED): 1,
    (A, State.DEAD): 1,
    (A, State.CANCELLED): 1,
    (B, State.ACCEPTED): 1,
}


def an_old_ledger(path: Path) -> Path:
    """A ledger as version 1 left it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in schema.FIRST:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO file VALUES (1, 'run1', 'jobs', '/in/jobs', '/data/jobs', '/in', 10000, 1.5, 1400, 14, 'd', 0, 13, 1, 2, NULL)"
        )
        connection.execute("INSERT INTO queue VALUES (1, 1, 'a', 12), (2, 1, 'b', 0)")
        connection.execute("INSERT INTO shard VALUES (1, 0, 1, 14, 11), (2, 1, 13, 13, 1)")
        connection.execute("INSERT INTO rejection VALUES (1, 5, NULL, 'invalid_json', 'no object')")
        connection.execute("INSERT INTO folder VALUES (1, 's3://bucket/out/')")
        for line, state, attempts, maybe_sent, sent in OLD_JOBS:
            insert(connection, 1, line, state, attempts, maybe_sent, sent=sent)
        insert(connection, 2, 13, 0, 1, 0, sent=False)
    return path


def insert(
    connection: sqlite3.Connection, queue: int, line: int, state: int, attempts: int, maybe_sent: int, *, sent: bool
) -> None:
    receipt = (100.0, 1, f"{line}.out") if sent else (None, None, None)
    connection.execute(
        """
        INSERT INTO job (queue, line, file, id, shard, offset, length, size, transport, has_metadata, state, attempts,
                         maybe_sent, due_at, submitted_at, out_folder, out_name)
        VALUES (?, ?, 1, ?, ?, ?, 99, 80, 0, 0, ?, ?, ?, 7.0, ?, ?, ?)
        """,
        (queue, line, str(line), queue - 1, line * 100, state, attempts, maybe_sent, *receipt),
    )


async def test_a_ledger_of_the_second_version_knows_no_cancelled_file_and_can_cancel(tmp_path: Path) -> None:
    path = an_old_ledger(tmp_path / "ledger")
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in schema.SECOND:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 2")
    ledger = await open_sqlite(path)
    await assert_holds_all(ledger)
    assert await ledger.cancel(FileId(1), 9.0) == 3
    await ledger.aclose()
    ledger = await open_sqlite(path)
    assert [file.cancelled_at for file in await ledger.files()] == [9.0]
    await ledger.aclose()


async def assert_holds_all(ledger: SqliteLedger) -> None:
    (file,) = await ledger.files()
    assert (file.run_id, file.lines, file.rejected, file.cursor.line) == ("run1", 13, 1, 14)
    assert (file.deadline_at, file.rebuilt, file.published_at, file.cancelled_at) == (None, False, None, None)
    rows = await ledger.rows(file.file_id, 0, 99)
    assert [row.state for row in rows] == OLD_STATES
    assert {row.transport for row in rows} == {TRANSPORTS[0]}
    assert rows[1].receipt == Receipt("s3://bucket/out/2.out", None)
    assert [type(each) for each in await ledger.rejections(file.file_id, 0, 9)] == [Rejection]
    assert (ledger.totals(), ledger.lines()) == (SEEDED, (12, 1))
    await assert_tallies_are_true(ledger)


def version_of(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as connection:
        (added,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'total'").fetchone()
        return schema.version_of(connection), added


def test_the_schemas_of_earlier_versions_are_those_that_were_released() -> None:
    assert sha256("".join(schema.FIRST).encode()).hexdigest() == FIRST_DIGEST
    assert sha256("".join(schema.SECOND).encode()).hexdigest() == SECOND_DIGEST


async def test_an_old_ledger_keeps_all_it_held_and_its_totals_are_what_its_rows_prove(tmp_path: Path) -> None:
    path = an_old_ledger(tmp_path / "ledger")
    for _ in range(2):
        ledger = await open_sqlite(path)
        await assert_holds_all(ledger)
        await ledger.aclose()
    assert version_of(path) == (len(schema.MIGRATIONS), 1)


async def test_work_goes_on_in_an_old_ledger(tmp_path: Path) -> None:
    ledger = await open_sqlite(an_old_ledger(tmp_path / "ledger"))
    assert await ledger.recover(50.0) == 2
    assert [key.line for key in keys(await ledger.claim(QueueId(1), 9, 7.0))] == [3, 14]
    await ledger.accept(a_batch(FileId(1), [a_job(15)]))
    assert ledger.totals()[A, State.CLAIMED] == 11
    assert ledger.lines() == (13, 1)
    await assert_tallies_are_true(ledger)
    await ledger.aclose()


async def test_whichever_statement_of_a_step_fails_the_ledger_stays_at_its_version(tmp_path: Path) -> None:
    for call in range(1, 60):
        path, disk = an_old_ledger(tmp_path / f"ledger{call}"), Disk()
        with closing(disk.connect(path)) as connection:
            disk.break_at(call, sqlite3.SQLITE_IOERR)
            try:
                schema.migrate(connection)
            except sqlite3.OperationalError:
                assert not connection.in_transaction
            else:
                return
        assert version_of(path) == (1, 0)
        ledger = await open_sqlite(path)
        await assert_holds_all(ledger)
        await ledger.aclose()
    pytest.fail("the step never got through")


@pytest.mark.parametrize("statement", ["CREATE TABLE total", "INSERT INTO total", "PRAGMA user_version =", "COMMIT"])
async def test_a_process_that_is_killed_in_a_step_leaves_the_ledger_at_its_version(
    tmp_path: Path, statement: str
) -> None:
    path = an_old_ledger(tmp_path / "ledger")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, str(path), statement, cwd=ROOT)
    assert await process.wait() == -signal.SIGKILL
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    assert version_of(copy / "ledger") == (1, 0)
    ledger = await open_sqlite(path)
    await assert_holds_all(ledger)
    await ledger.aclose()


def killed_at(statement: str, path: Path) -> sqlite3.Connection:
    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            if args[0].strip().startswith(statement):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(*args)

    return sqlite3.connect(path, isolation_level=None, factory=Connection)


if __name__ == "__main__":
    asyncio.run(open_sqlite(Path(sys.argv[1]), connect=partial(killed_at, sys.argv[2])))
