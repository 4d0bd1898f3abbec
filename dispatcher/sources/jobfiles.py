"""Takes up job files that a command names: plain ones where they lie, compressed ones and stdin as a copy in the work folder.

A file that the ledger knows is gone on with, if it still is the same: same size, and the same bytes as far as they were
read. Whatever is accepted must be readable again until its job is done, so copies are synced before the first line is.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio.to_thread
from anyio import from_thread
from msgspec import Struct

from dispatcher.errors import ChangedFileError, UnreadableFileError, UsageError
from dispatcher.formats.lines import verify_prefix
from dispatcher.formats.spool import is_compressed, spool_compressed, spool_stream
from dispatcher.identity import RUN_ID_BYTES, run_id
from dispatcher.interfaces import Clock, Ledger
from dispatcher.model import JobFile, NewFile, RunId

STDIN = "-"
STDIN_NAME = "stdin"


class Intaker(Struct, frozen=True, kw_only=True):
    """What taking up needs. `random` gives that many random bytes; `work_max_bytes` is the disk budget of one copy."""

    ledger: Ledger
    clock: Clock
    random: Callable[[int], bytes]
    work: Path
    work_max_bytes: int


async def take_up(source: str, given: Intaker, *, payload_root: str | None = None, name: str | None = None) -> JobFile:
    """The ledger's record of this job file (a path, or `-`), new or gone on with.

    Raises UsageError where there is no such file, UnreadableFileError where an archive is not whole, ChangedFileError
    where the ledger knows another file by this name. A cancel ends a copy at its next chunk and leaves nothing of it.
    """
    source = source if source == STDIN else os.path.abspath(source)
    known = next((file for file in await given.ledger.files() if file.source == source), None)
    if known is not None:
        await anyio.to_thread.run_sync(_go_on, known, given)
        return known
    new = await anyio.to_thread.run_sync(
        partial(
            _new,
            source,
            given,
            payload_root=payload_root,
            name=name,
            taken={f.name for f in await given.ledger.files()},
        )
    )
    return await given.ledger.add_file(new)


def _new(source: str, given: Intaker, *, payload_root: str | None, name: str | None, taken: set[str]) -> NewFile:
    run = run_id(given.random(RUN_ID_BYTES))
    own = name or (STDIN_NAME if source == STDIN else Path(source).name)
    data = _data(source, given, run, own)
    return NewFile(
        run_id=run,
        name=own if own not in taken else f"{own}-{run}",
        source=source,
        data_path=str(data),
        payload_root=payload_root or (str(Path.cwd()) if source == STDIN else str(Path(source).parent)),
        size_bytes=_synced_size(data),
        taken_at=given.clock.now(),
    )


def _data(source: str, given: Intaker, run: RunId, name: str) -> Path:
    """Where the uncompressed lines are: the file itself, or a copy made now."""
    if source != STDIN and not _needs_copy(source):
        return Path(source)
    copy = given.work / f"{run}-{name}"
    _copy(source, copy, given)
    return copy


def _needs_copy(source: str) -> bool:
    path = Path(source)
    if not path.exists():
        raise UsageError(f"no such job file: {source}")
    if path.is_dir():
        raise UsageError(f"{source} is a folder; name the job files in it")
    return not path.is_file() or is_compressed(source)


def _copy(source: str, destination: Path, given: Intaker) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    check = from_thread.check_cancelled
    if source == STDIN:
        spool_stream(sys.stdin.buffer, STDIN_NAME, str(destination), given.work_max_bytes, check)
    elif Path(source).is_file():
        spool_compressed(source, str(destination), given.work_max_bytes, check)
    else:
        with Path(source).open("rb") as stream:
            spool_stream(stream, source, str(destination), given.work_max_bytes, check)


def _synced_size(data: Path) -> int:
    try:
        with data.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UnreadableFileError(f"cannot read {data}: {error.strerror}; check its permissions") from error


def _go_on(known: JobFile, given: Intaker) -> None:
    """Makes sure that the file is still what was accepted; a copy is made again, which also restores a lost one."""
    if known.source == known.data_path:
        _compare(known, known.data_path)
        return
    again = Path(known.data_path + ".again")
    try:
        _copy(known.source, again, given)
        _compare(known, str(again))
        again.replace(known.data_path)
    finally:
        again.unlink(missing_ok=True)


def _compare(known: JobFile, data: str) -> None:
    what = STDIN_NAME if known.source == STDIN else known.source
    try:
        size = Path(data).stat().st_size
    except OSError as error:
        raise ChangedFileError(f"{what} was begun and is not there any more: {error.strerror}; put it back") from error
    if size != known.size_bytes or not verify_prefix(data, known.cursor):
        raise ChangedFileError(
            f"{what} is not the file that was begun (run {known.run_id}, {known.size_bytes} bytes): put that one back to go on, "
            "or give the new one another name or another --output"
        )
