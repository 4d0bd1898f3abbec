"""What an error of SQLite or of the file system means: the one door through which they become the program's own."""

import errno
import sqlite3
from pathlib import Path

from dispatcher.errors import DispatcherError, LedgerCorruptError, LedgerFaultError, LedgerFullError, UsageError

_OWN_FAULT = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.InterfaceError)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_CANNOT_USE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def is_own_fault(error: Exception) -> bool:
    """Whether the error tells of a mistake in one call; any other error of SQLite means that the ledger cannot go on."""
    return not isinstance(error, sqlite3.Error) or isinstance(error, _OWN_FAULT)


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk is full."""
    return _code(error) == sqlite3.SQLITE_FULL


def translated(error: sqlite3.Error | OSError, ledger: Path) -> DispatcherError:
    """The error to raise for one of SQLite or of the file system."""
    if isinstance(error, OSError):
        return _of_system(error, ledger)
    if _code(error) in _CORRUPT:
        return corrupt(ledger, str(error))
    if is_full(error):
        return full(ledger)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return LedgerFaultError(
        f"the ledger {ledger} failed ({name}: {error}); nothing was lost that was acknowledged; check the disk and start again"
    )


def full(ledger: Path) -> LedgerFaultError:
    """The disk of the ledger is full."""
    return LedgerFaultError(f"the disk of the ledger {ledger} is full; free some space and start again")


def refused(ledger: Path) -> LedgerFullError:
    """The disk of the ledger is full, and the call is none that must be recorded now."""
    return LedgerFullError(
        f"the disk of the ledger {ledger} is full; no new work is taken until there is space, what was sent is still recorded"
    )


def corrupt(ledger: Path, finding: str) -> LedgerCorruptError:
    """The ledger's file is damaged."""
    return LedgerCorruptError(
        f"the ledger {ledger} is damaged ({finding}); keep a copy of it and of its -wal file, then restore a backup, or "
        f"try `sqlite3 {ledger} .recover` into a new file; a service may also start without it: with the ledger and its -wal "
        "file moved away, one is rebuilt from what lies in work/ and from the outputs"
    )


def _of_system(error: OSError, ledger: Path) -> DispatcherError:
    if error.errno in _CANNOT_USE:
        return UsageError(f"the ledger {ledger} cannot be used: {error.strerror}; name a path that can be written")
    if error.errno == errno.ENOSPC:
        return full(ledger)
    return LedgerFaultError(f"the ledger {ledger} failed ({error.strerror}); check the disk and start again")


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
