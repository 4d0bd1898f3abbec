"""The tables of the ledger and the steps that lead to them.

`PRAGMA application_id` marks the file as a ledger, `PRAGMA user_version` counts the steps it has taken. All steps that
a file lacks are applied in one transaction, in order; a step that was released is never changed, a new one is added.
A crash on the way leaves the file at the version that it had.

A job is one row of about 60 bytes. `state` 0 is a job as intake wrote it: it is claimed, by its first attempt, when
its line is at or before its queue's `claimed_through`, else accepted. So a claim of any number of new jobs changes one
row. Every other state is written out (`codes`). `attempts` is stored as 1 from the start for the same reason, and counts as 0
while a new job is not claimed.

`total` counts every entry into a state (written by `codes`), and `ever` the lines; both only grow, also when rows are forgotten. `ever`
has one row, which remembers the highest numbers of forgotten files and queues too, so that no number is given twice.
"""

import sqlite3

from dispatcher.errors import UsageError

APPLICATION_ID = 0x534D4A4C

FIRST = (
    """
    CREATE TABLE file (
        file INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        source TEXT NOT NULL,
        data_path TEXT NOT NULL,
        payload_root TEXT NOT NULL,
        size INTEGER NOT NULL,
        taken_at REAL NOT NULL,
        cursor_offset INTEGER NOT NULL,
        cursor_line INTEGER NOT NULL,
        cursor_digest TEXT NOT NULL,
        intake_done INTEGER NOT NULL DEFAULT 0,
        lines INTEGER NOT NULL DEFAULT 0,
        rejected INTEGER NOT NULL DEFAULT 0,
        shards INTEGER NOT NULL DEFAULT 0,
        published_at REAL
    ) STRICT
    """,
    """
    CREATE TABLE queue (
        queue INTEGER PRIMARY KEY,
        file INTEGER NOT NULL REFERENCES file,
        endpoint TEXT NOT NULL,
        claimed_through INTEGER NOT NULL DEFAULT 0,
        UNIQUE (file, endpoint)
    ) STRICT
    """,
    """
    CREATE TABLE shard (
        queue INTEGER NOT NULL REFERENCES queue,
        shard INTEGER NOT NULL,
        first_line INTEGER NOT NULL,
        last_line INTEGER NOT NULL,
        jobs INTEGER NOT NULL,
        PRIMARY KEY (queue, shard)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE rejection (
        file INTEGER NOT NULL REFERENCES file,
        line INTEGER NOT NULL,
        id TEXT,
        reason TEXT NOT NULL,
        message TEXT NOT NULL,
        PRIMARY KEY (file, line)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE folder (
        folder INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE
    ) STRICT
    """,
    # No foreign keys here: they cost a look-up for each row.
    """
    CREATE TABLE job (
        queue INTEGER NOT NULL,
        line INTEGER NOT NULL,
        file INTEGER NOT NULL,
        id TEXT NOT NULL,
        shard INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        length INTEGER NOT NULL,
        size INTEGER NOT NULL,
        transport INTEGER NOT NULL,
        has_metadata INTEGER NOT NULL,
        state INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 1,
        faults INTEGER NOT NULL DEFAULT 0,
        maybe_sent INTEGER NOT NULL DEFAULT 0,
        due_at REAL NOT NULL DEFAULT 0,
        submitted_at REAL,
        submission_seconds REAL,
        completed_at REAL,
        out_folder INTEGER,
        out_name TEXT,
        fail_folder INTEGER,
        fail_name TEXT,
        error_code TEXT,
        error_message TEXT,
        PRIMARY KEY (queue, line)
    ) STRICT, WITHOUT ROWID
    """,
    # The file first: the ids of one file, often counted up, then lie side by side and a batch touches few pages.
    "CREATE UNIQUE INDEX job_by_id ON job (file, id)",
    "CREATE INDEX job_due ON job (queue, due_at) WHERE state = 1",
    "CREATE INDEX job_ambiguous ON job (due_at) WHERE state = 3",
)

# What the rows prove: a job was accepted once, and once in each state that it shows a trace of.
_SEED_TOTALS = """
    INSERT INTO total (endpoint, state, jobs)
    WITH shown AS MATERIALIZED (
        SELECT q.endpoint AS endpoint, count(*) AS accepted,
               sum(CASE j.state WHEN 0 THEN j.line <= q.claimed_through ELSE j.attempts > 0 END) AS claimed,
               sum(j.maybe_sent) AS ambiguous, sum(j.submitted_at IS NOT NULL) AS submitted,
               sum(j.state = 5) AS succeeded, sum(j.state = 6) AS failed, sum(j.state = 7) AS expired,
               sum(j.state = 8) AS dead, sum(j.state = 9) AS cancelled
        FROM job j JOIN queue q ON q.queue = j.queue GROUP BY j.queue
    ), entered (endpoint, state, jobs) AS (
        SELECT endpoint, 1, accepted FROM shown UNION ALL SELECT endpoint, 2, claimed FROM shown
        UNION ALL SELECT endpoint, 3, ambiguous FROM shown UNION ALL SELECT endpoint, 4, submitted FROM shown
        UNION ALL SELECT endpoint, 5, succeeded FROM shown UNION ALL SELECT endpoint, 6, failed FROM shown
        UNION ALL SELECT endpoint, 7, expired FROM shown UNION ALL SELECT endpoint, 8, dead FROM shown
        UNION ALL SELECT endpoint, 9, cancelled FROM shown
    )
    SELECT endpoint, state, sum(jobs) FROM entered GROUP BY endpoint, state HAVING sum(jobs) > 0
"""

SECOND = (
    "ALTER TABLE file ADD COLUMN deadline_at REAL",
    "ALTER TABLE file ADD COLUMN rebuilt INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX file_published ON file (published_at, file) WHERE published_at IS NOT NULL",
    """
    CREATE TABLE total (
        endpoint TEXT NOT NULL,
        state INTEGER NOT NULL,
        jobs INTEGER NOT NULL,
        PRIMARY KEY (endpoint, state)
    ) STRICT, WITHOUT ROWID
    """,
    _SEED_TOTALS,
    """
    CREATE TABLE ever (
        accepted INTEGER NOT NULL,
        rejected INTEGER NOT NULL,
        last_file INTEGER NOT NULL DEFAULT 0,
        last_queue INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    """
    INSERT INTO ever (accepted, rejected)
    SELECT (SELECT count(*) FROM job), coalesce(sum(rejected), 0) FROM file
    """,
)

THIRD = ("ALTER TABLE file ADD COLUMN cancelled_at REAL",)

MIGRATIONS = (FIRST, SECOND, THIRD)


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the file to this build's schema, all or nothing. UsageError if the file is newer or no ledger."""
    version = version_of(connection)
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _apply(connection, version)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def version_of(connection: sqlite3.Connection) -> int:
    """How many steps the file has taken. UsageError if this build cannot read it."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise UsageError("this SQLite file is not a ledger; name another path")
    if version > len(MIGRATIONS):
        raise UsageError(
            f"the ledger was made by a newer version of this program (schema {version}, this build knows "
            f"{len(MIGRATIONS)}); use that version, or name another ledger"
        )
    return int(version)


def _apply(connection: sqlite3.Connection, version: int) -> None:
    for step in MIGRATIONS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
