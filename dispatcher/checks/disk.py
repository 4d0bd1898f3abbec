"""The dispatcher's own places: the ledger's folder, the spool's folders, the address to listen on, the SQLite it has."""

import contextlib
import errno
import http.client
import os
import secrets
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dispatcher.admin.server import DEFAULT_LISTEN, parse_address
from dispatcher.checks.findings import Finding, Findings, failed, ok, unknown, warning
from dispatcher.checks.mounts import Mount, Place, holding, mounts, place
from dispatcher.errors import UsageError
from dispatcher.settings import Settings
from dispatcher.sources.folder import Folder

SPOOL_FOLDERS = ("inbox", "work", "done", "failed", "results")
OLDEST_SQLITE = (3, 37, 0)
"""STRICT tables."""
ANSWER_SECONDS = 2.0


def ledger_path(settings: Settings) -> Path | None:
    """Where the ledger of `serve` or `run` would be with these settings."""
    if settings.ledger:
        return Path(settings.ledger)
    folder = settings.spool or settings.output
    return Path(folder) / "ledger.db" if folder else None


def ledger(settings: Settings) -> Findings:
    """The ledger's file and folder. Waits for the disk."""
    return _looked("ledger", _ledger, settings)


def spool(settings: Settings) -> Findings:
    """The spool and those of its folders that exist. Waits for the disk."""
    return _looked("spool", _spool, settings)


def payloads(settings: Settings) -> Findings:
    """The folder that job lines name payload files in, if one is set. Waits for the disk."""
    return _looked("payloads", _payloads, settings)


def sqlite() -> Findings:
    """The SQLite that Python has."""
    return [sqlite_version(sqlite3.sqlite_version_info)]


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """Whether this SQLite can keep a ledger."""
    shown = ".".join(map(str, version))
    if version < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        return failed("SQLite", f"{shown} is too old", f"use a Python whose SQLite is {oldest} or newer")
    # Versions before 3.51.3 can lose commits when several connections reset the log; a ledger has one connection.
    return ok(
        "SQLite", f"{shown}; a ledger has one connection, so that the log-reset fault of old versions cannot occur"
    )


def listen(settings: Settings) -> Findings:
    """Whether the address for metrics is free."""
    address = settings.listen or DEFAULT_LISTEN
    try:
        host, port = parse_address(address)
        family, kind, protocol, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(at)
            probe.listen()
    except UsageError as error:
        return [failed("listen", str(error), "set --listen")]
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE and _is_dispatcher(at):
            return [warning("listen", f"{address}: a dispatcher runs there", "nothing, if it is the one you mean")]
        text = f"{address}: {getattr(error, 'strerror', None) or error}"
        advice = "choose another address with --listen"
        return [failed("listen", text, advice) if settings.listen else warning("listen", text, advice)]
    return [ok("listen", f"{address} is free")]


def _is_dispatcher(at: tuple[Any, ...]) -> bool:
    """Whether what listens at this address answers as our own server does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(at[0], at[0])  # noqa: S104 - asked, not bound
    with contextlib.closing(http.client.HTTPConnection(host, at[1], timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().read(16) in {b"ok\n", b"not ok\n"}
        except (OSError, http.client.HTTPException):
            return False


def _looked(check: str, look: Callable[[Settings], Findings], settings: Settings) -> Findings:
    try:
        return look(settings)
    except OSError as error:
        return [failed(check, f"cannot look at {error.filename}: {error.strerror}", "check its owner and permissions")]


def _ledger(settings: Settings) -> Findings:
    path = ledger_path(settings)
    if path is None:
        return [
            unknown("ledger", "no place is set for it", "set --ledger or --spool; `run` has it in its output folder")
        ]
    if settings.spool and (within := Folder(Path(settings.spool)).holding(path)):
        advice = f"name another place, or leave it out, for {Path(settings.spool) / 'ledger.db'}"
        return [failed("ledger", f"{path} would lie in {within}, among the service's own files", advice)]
    if path.is_dir():
        return [failed("ledger", f"{path} is a folder", "name a file in it")]
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return [failed("ledger", f"{path} cannot be read and written by uid {os.getuid()}", "change its owner")]
    return [_writable("ledger", path.parent), _system("ledger", path.parent), _space("ledger", path.parent, settings)]


def _spool(settings: Settings) -> Findings:
    if settings.spool is None:
        return [unknown("spool", "none is set; the service needs one", "set --spool")]
    folder = Path(settings.spool)
    found = [_writable("spool", folder), _system("spool", folder), _space("spool", folder, settings)]
    found += [_writable("spool", folder / name) for name in SPOOL_FOLDERS if (folder / name).exists()]
    return [*found, *_one_system(folder)]


def _payloads(settings: Settings) -> Findings:
    if settings.payload_root is None:
        return []
    folder = Path(settings.payload_root)
    if not folder.is_dir():
        return [failed("payloads", f"{folder} is no folder that is there", "make or mount it, or correct payload_root")]
    if not os.access(folder, os.R_OK | os.X_OK):
        return [failed("payloads", f"{folder} cannot be read by uid {os.getuid()}", "change its permissions")]
    return [ok("payloads", f"{folder} is there")]


# --- a folder ---------------------------------------------------------------------------------------------------------


def _writable(check: str, folder: Path) -> Finding:
    """Writes, syncs, renames and deletes a small file, as the dispatcher does all day; in the folder above where there is none."""
    at = nearest(folder)
    if not at.is_dir():
        return failed(check, f"{at} is a file, and a folder is wanted", "name another place")
    name = at / f".dispatcher-check-{secrets.token_hex(8)}.tmp"
    renamed = name.with_suffix(".done")
    try:
        _write(name)
        name.rename(renamed)
    except OSError as error:
        advice = f"give uid {os.getuid()} the right to write there, or choose another place"
        return failed(check, f"cannot write in {at}: {error.strerror}", advice)
    finally:
        for left in (name, renamed):
            _remove(left)
    if at == folder.absolute():
        return ok(check, f"{folder} is there and can be written to")
    return ok(check, f"{folder} can be made in {at}")


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, b"dispatcher check\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written to: there is nothing in it
        path.unlink(missing_ok=True)


def _system(check: str, folder: Path) -> Finding:
    mount = holding(nearest(folder).resolve(), mounts())
    if mount is None:
        return unknown(check, "the system does not say on which file system it lies")
    return system_finding(check, folder, mount)


def system_finding(check: str, folder: Path, mount: Mount) -> Finding:
    """Whether files that must last may lie on this mount."""
    text = f"{folder} lies on {mount.kind} ({mount.point})"
    match place(mount.kind):
        case Place.LOCAL:
            return ok(check, text)
        case Place.PASSING:
            return warning(
                check, text + ", which may be gone with the container or the machine", "mount a volume there"
            )
        case Place.NETWORK if check == "spool":
            advice = (
                "a local disk is better: here only the scan finds new files, and a stalled server stalls the service"
            )
            return warning(check, text + ", a network file system", advice)
        case _:
            advice = "put it on a local disk or a block volume: SQLite's log is not safe on a network file system"
            return failed(check, text + ", a network file system", advice)


def _space(check: str, folder: Path, settings: Settings) -> Finding:
    at = nearest(folder)
    free = shutil.disk_usage(at).free
    text, reserve = f"{free:,} bytes are free in {at}", settings.disk_reserve_bytes
    if free >= reserve:
        return ok(check, text)
    if check == "spool":
        return failed(
            check, f"{text}, less than disk_reserve_bytes ({reserve:,}): no job file is taken up", "make room"
        )
    return warning(check, f"{text}, less than disk_reserve_bytes ({reserve:,})", "make room")


def _one_system(spool: Path) -> Findings:
    """Job files and results are moved by rename, which does not cross file systems."""
    there = [spool / name for name in SPOOL_FOLDERS if (spool / name).exists()]
    apart = [str(folder) for folder in there if folder.stat().st_dev != nearest(spool).stat().st_dev]
    if apart:
        text = f"{', '.join(apart)}: on another file system than the rest of the spool"
        return [failed("spool", text, "mount one volume for all of the spool: files are moved by rename")]
    return []


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that there is: a folder, unless a file is in the way."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
