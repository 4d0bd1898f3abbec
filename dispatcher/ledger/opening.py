"""Opens a ledger's file: the lock first, then the checks, then the schema. All of it on the ledger's thread.

A ledger is made under another name and renamed when it is whole, so an empty or short file under the ledger's own name was never
a ledger of ours: it is refused as damaged and not taken for a new one, which would send every job again.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from dispatcher.errors import LedgerFaultError, UsageError
from dispatcher.ledger import ballast, faults, lock, schema

Connect = Callable[[Path], sqlite3.Connection]

CHECK_SECONDS = 2.0
PAGE_LEAST_BYTES = 512
"""SQLite takes what is shorter than a page for a new database and writes over it."""
CACHE_KIB = 8_192
WAL_LIMIT_BYTES = 16 << 20


def connect(path: Path) -> sqlite3.Connection:
    """A connection without implicit transactions."""
    return sqlite3.connect(path, isolation_level=None)


def open_file(path: Path, connect: Connect) -> tuple[sqlite3.Connection, lock.Release]:
    """A connection that is ready for use, and how to let go of the lock. Raises only errors of `dispatcher.errors`."""
    try:
        release = _held(path)
    except OSError as error:
        raise faults.translated(error, path) from error
    try:
        return _opened(path, connect), release
    except (sqlite3.Error, OSError) as error:
        release()
        raise faults.translated(error, path) from error
    except BaseException:
        release()
        raise


def _held(path: Path) -> lock.Release:
    if path.is_dir():
        raise UsageError(f"the ledger {path} is a folder; name a file in it")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return lock.take(path, datetime.now(UTC).isoformat(timespec="seconds"))


def _opened(path: Path, connect: Connect) -> sqlite3.Connection:
    if not path.exists():
        _make(path, connect)
    elif path.stat().st_size < PAGE_LEAST_BYTES:
        raise faults.corrupt(path, "the file is empty or cut off")
    path.chmod(0o600)
    ballast.load(path)
    connection = connect(path)
    try:
        _prepare(connection)
        _check(connection, path)
        schema.migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path, connect: Connect) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = connect(draft)
    try:
        _prepare(connection)
        schema.migrate(connection)
    finally:
        connection.close()
    draft.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare(connection: sqlite3.Connection) -> None:
    """Exclusive before WAL, so that no shared-memory file is made; checkpoints are the writer's, because those that
    SQLite makes by itself hide their errors."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerFaultError(
            f"the ledger's file system cannot keep a write-ahead log (mode {mode}); use a local disk"
        )
    for setting in (
        "synchronous = FULL",
        "trusted_schema = OFF",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        "wal_autocheckpoint = 0",
        f"journal_size_limit = {WAL_LIMIT_BYTES}",
        f"cache_size = -{CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """SQLite's own check of the file, as far as it comes in the time that a start may take."""
    end = time.monotonic() + CHECK_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    try:
        finding = "; ".join(row[0] for row in connection.execute("PRAGMA quick_check(3)"))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        finding = "ok"
    finally:
        connection.set_progress_handler(None, 0)
    if finding != "ok":
        raise faults.corrupt(path, finding)
