"""Brings a job file that lies in `work/` into the ledger, or says why it cannot be.

Before anything of it is accepted the file is synced, and a compressed one is unpacked to its end into a copy beside it, so
that a damaged archive is found while nothing is known of it. A file that cannot be read gets results like any other (the
sums are zero, `summary.json` and `errors.jsonl` name the reason) and goes to `failed/`; in this order, so that after a
crash the same happens again and finds the results standing. A disk without room for a copy is waited for, with the file in
`work/`: that is no fault of the file. So is a place for its refusal that cannot be written to, and nobody waits with it.

The title, under which its results and later the job file itself stand, is settled here: no other run in the ledger has it,
and no results.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio import CapacityLimiter, from_thread
from msgspec import Struct

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import NoSpaceError, PassingFaultError, check_folder_of, disk_fault, sync_folder
from dispatcher.formats.lines import START
from dispatcher.formats.spool import compression, is_compressed, spool_compressed
from dispatcher.interfaces import Clock, Ledger
from dispatcher.model import FileId, JobFile, NewFile
from dispatcher.results import ERRORS, RESULTS, SUMMARY, Summary
from dispatcher.sources.folder import Folder, Taken
from dispatcher.sources.names import marked
from dispatcher.sources.patience import Waiting, patient
from dispatcher.sources.turns import Turns, size_on_disk

log = structlog.get_logger(__name__)
T = TypeVar("T")

UNREADABLE = "unreadable_file"
"""The error code and, in `errors.jsonl`, with line 0, the status of a file of which no line was read."""
UNPACKERS = 4
"""Small archives that are unpacked side by side, and as many large ones."""
ROOM_RETRY_SECONDS = 10.0
ROOM_RETRY_MAX_SECONDS = 600.0
"""Unpacking in vain costs the disk as much as unpacking, so tries get rarer."""


class NoRoomError(NoSpaceError):
    """There is no room for a copy now; there may be later."""


class UptakeSettings(Struct, frozen=True, kw_only=True):
    """`payload_root`: what `payload_path` is relative to. `work_max_bytes`: the disk budget of one copy.

    `room_bytes` says how much may be written to the spool now without touching the reserve.
    """

    payload_root: str
    work_max_bytes: int
    room_bytes: Callable[[], int]
    deadline_seconds: float | None = None
    room_retry_seconds: float = ROOM_RETRY_SECONDS


class Uptake:
    """Takes up files; several at once. `titles` are those that the ledger knows; `waiting` has what must wait for its place."""

    def __init__(
        self,
        folder: Folder,
        *,
        ledger: Ledger,
        clock: Clock,
        settings: UptakeSettings,
        titles: Iterable[str],
        waiting: Waiting,
    ) -> None:
        self._folder = folder
        self._waiting = waiting
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._titles = set(titles)
        # Who unpacks: in threads of their own number, so that nobody else waits for one.
        self._unpacking = Turns(UNPACKERS)

    def forget(self, title: str) -> None:
        """The ledger knows no run of this title any more."""
        self._titles.discard(title)

    async def take_up(self, taken: Taken, *, rebuilt: bool = False) -> JobFile | None:
        """The ledger's record of a file that it did not know; None if nothing is left to do for the file but to move it.

        `rebuilt`: `Folder.recover` found the file, so that a ledger that was lost may have dispatched it: where its results
        stand it is only moved, else its jobs start in doubt. Waits for room on the disk. Raises DiskFaultError,
        LedgerFaultError. A cancel ends an unpacking at its next chunk and leaves the file in `work/`, for `recover`.
        """
        if rebuilt and await self._finish_standing(taken):
            return None
        title = await self._title(taken)
        try:
            new = await self._read_whole(taken, title, rebuilt=rebuilt)
        except UnreadableFileError as error:
            await self._waiting.make(partial(self._refuse, taken, title, str(error)))
            return None
        return await patient(lambda: self._ledger.add_file(new))

    async def restore(self, file: JobFile) -> None:
        """Makes the uncompressed copy of a file that the ledger knows again, if it is lost. Raises as `take_up` does.

        UnreadableFileError where the archive cannot be read any more, or is gone.
        """
        if file.data_path != file.source and not await anyio.to_thread.run_sync(Path(file.data_path).exists):
            await self._unpack(Path(file.source), Path(file.data_path), file.name)

    async def _title(self, taken: Taken) -> str:
        stands = await anyio.to_thread.run_sync(os.path.lexists, self._folder.results / taken.name)
        # No await between the question and the answer: several files are taken up at once.
        title = marked(taken.name, taken.run_id) if stands or taken.name in self._titles else taken.name
        self._titles.add(title)
        return title

    async def _read_whole(self, taken: Taken, title: str, *, rebuilt: bool) -> NewFile:
        data = await self._data(taken)
        now = self._clock.now()
        deadline = self._settings.deadline_seconds
        return NewFile(
            run_id=taken.run_id,
            name=title,
            source=str(taken.path),
            data_path=str(data),
            payload_root=self._settings.payload_root,
            size_bytes=await patient(lambda: anyio.to_thread.run_sync(_synced_size, data)),
            taken_at=now,
            deadline_at=None if deadline is None else now + deadline,
            rebuilt=rebuilt,
        )

    async def _data(self, taken: Taken) -> Path:
        """Where the uncompressed lines are: the file itself, or a copy made now."""
        if not await self._when_room(partial(is_compressed, str(taken.path)), taken.name):
            return taken.path
        await self._unpack(taken.path, taken.copy, taken.name)
        return taken.copy

    async def _unpack(self, archive: Path, copy: Path, name: str) -> None:
        size = await anyio.to_thread.run_sync(size_on_disk, archive)
        await self._when_room(partial(self._copy, archive, copy), name, self._unpacking.of(size))

    async def _when_room(self, make: Callable[[], T], name: str, limiter: CapacityLimiter | None = None) -> T:
        """What `make` makes in a thread; nobody waits for its turn behind one that waits for room."""
        wait_seconds = first_wait_seconds = self._settings.room_retry_seconds
        while True:
            try:
                return await anyio.to_thread.run_sync(make, limiter=limiter)
            except PassingFaultError as error:
                if wait_seconds == first_wait_seconds:
                    log.error("no room to take up a job file, or no folder; tried again", name=name, error=str(error))
            await anyio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, ROOM_RETRY_MAX_SECONDS)

    async def _finish_standing(self, taken: Taken) -> bool:
        """Whether results of it stand; then it is moved, as soon as it can be."""
        standing = await patient(partial(anyio.to_thread.run_sync, self._folder.standing, taken))
        if standing is None:
            return False
        log.info("results stand already; job file moved", name=standing.folder.name, run_id=taken.run_id)
        file = _nothing_of(taken, standing.folder.name, self._clock.now())

        async def finish() -> None:
            await anyio.to_thread.run_sync(self._folder.finish, file, standing.into)

        await self._waiting.make(finish)
        return True

    async def _refuse(self, taken: Taken, title: str, reason: str) -> None:
        await anyio.to_thread.run_sync(self._give_refusal, taken, title, reason)
        self._titles.discard(title)
        log.error("job file cannot be read; moved to failed/", name=title, run_id=taken.run_id, error=reason)

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _copy(self, archive: Path, copy: Path) -> None:
        compression(str(archive))  # before the rest: what is wrong with a name has no cause either
        budget_bytes = min(self._settings.work_max_bytes, max(self._room_bytes(), 0))
        try:
            spool_compressed(str(archive), str(copy), budget_bytes, from_thread.check_cancelled)
        except UnreadableFileError as error:
            # Whatever is wrong with the archive itself has a cause; more than the budget has none.
            if error.__cause__ is None and budget_bytes < self._settings.work_max_bytes:
                raise NoRoomError(f"{archive} unpacks to more than the {budget_bytes} bytes that are free") from error
            raise

    def _room_bytes(self) -> int:
        try:
            return self._settings.room_bytes()
        except OSError as error:
            raise disk_fault("ask for the free space of", str(self._folder.spool), error) from error

    def _give_refusal(self, taken: Taken, title: str, reason: str) -> None:
        file = _nothing_of(taken, title, self._clock.now())
        self._folder.mend()
        if self._folder.standing(file) is None:
            self._publish_refusal(file, reason)
        self._folder.finish(file, "failed")

    def _publish_refusal(self, file: JobFile, reason: str) -> None:
        place = self._folder.results_place(file.run_id)
        try:
            write_refusal(file, place, reason, self._clock.now())
        except OSError as error:
            raise disk_fault("write", str(place), error) from error
        self._folder.publish(file)


def write_refusal(file: JobFile, folder: Path, reason: str, at: float) -> None:
    """Writes the three result files of a job file of which nothing was accepted, durably but for the folder's own name."""
    error = {"code": UNREADABLE, "message": reason[:500]}
    line = {"line": 0, "status": UNREADABLE, "error": error}
    folder.mkdir(exist_ok=True)
    _write(folder / RESULTS, b"")
    _write(folder / ERRORS, msgspec.json.encode(line) + b"\n")
    _write(folder / SUMMARY, Summary(file).encode(at, error))
    sync_folder(str(folder))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _nothing_of(taken: Taken, title: str, now: float) -> JobFile:
    """The record of a file that never comes into the ledger."""
    return JobFile(
        file_id=FileId(0),
        run_id=taken.run_id,
        name=title,
        source=str(taken.path),
        data_path=str(taken.copy),
        payload_root="",
        size_bytes=0,
        taken_at=now,
        cursor=START,
        intake_done=True,
        lines=0,
        rejected=0,
        published_at=None,
    )


def _synced_size(data: Path) -> int:
    """The size of what is on the disk by now, whoever wrote it."""
    try:
        descriptor = os.open(data, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        check_folder_of(str(data))
        raise UnreadableFileError(f"cannot read {data}: {error.strerror}; check its permissions") from error
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    except OSError as error:
        raise disk_fault("sync", str(data), error) from error
    finally:
        os.close(descriptor)
