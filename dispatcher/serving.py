"""The service: watches a folder, dispatches what is dropped there, gives each job file its results back, until it is told to stop.

Start   signal handlers, spool (lock), ledger (lock, check), recovery, clients, admin server, what lies in work/, inbox, ready
Stop    readiness falls; nothing new is taken; no new claims, what is on the wire gets its durable outcome; the rest waits in
        the ledger; checkpoint. A second signal ends the process at once, which costs no more than a crash.

A job file goes inbox → work → done, its results appear in results/ by one rename; `sources/folder.py` says what a crash
leaves at each step. Results that cannot be put where they belong wait for their place, and nothing else waits with them.
Whatever part dies takes the process down: half a dispatcher loses time. Over 300 lines because a file's way through the
service is read best in one place.
"""

import asyncio
import errno
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog
from anyio import from_thread
from anyio.abc import TaskGroup
from msgspec import structs
from prometheus_client import CollectorRegistry

from dispatcher.admin.control import control_socket
from dispatcher.admin.server import DEFAULT_LISTEN, metrics_server
from dispatcher.admin.systemd import notify
from dispatcher.commands import answer
from dispatcher.engine import Engine
from dispatcher.errors import ChangedFileError, SpoolHeldError, UnreadableFileError, UsageError
from dispatcher.formats.disk import check_folder_of, disk_fault
from dispatcher.identity import RUN_ID_BYTES, run_id
from dispatcher.ledger.lock import take_spool
from dispatcher.ledger.sqlite import HELD_PAUSE_SECONDS
from dispatcher.model import Error, FailureReason, FileId, JobFile, State
from dispatcher.replays import Replay, make_replay, original, unfinished
from dispatcher.service import HELD_SECONDS, engine
from dispatcher.settings import Settings
from dispatcher.signals import Stop, StoppedError, stop_on_signals
from dispatcher.sources.disk import Disk, free_bytes, watch_disk
from dispatcher.sources.folder import Folder, Taken
from dispatcher.sources.inbox import open_inbox
from dispatcher.sources.originals import original_lines
from dispatcher.sources.patience import Waiting, patient
from dispatcher.sources.retention import Retention
from dispatcher.sources.turns import Turns, is_small, size_on_disk
from dispatcher.sources.uptake import Uptake, UptakeSettings
from dispatcher.status import Status

log = structlog.get_logger(__name__)

SMALL_FILES_AT_ONCE = 128
"""Small job files that are on their way into the ledger; more of them wait in the inbox."""
READERS = 64
"""Small job files that are read side by side, and as many large ones: far from the 1,024 descriptors that a process may have."""
PUBLISHERS = 4
DEADLINE_SECONDS = 0.5
"""How often what came back, or was read, of a job file after its deadline is ended."""
DEADLINE_SLEEP_SECONDS = 60.0
PRUNE_ROWS = 1_000
PRUNE_SECONDS = 60.0
LOCKLESS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
"""What a file system says that has no locks, as some network ones have none."""
REPLAYS = ".replays"
"""Where in `work/` the job file of a replay is written, until it is one."""


async def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status. Raises DispatcherError."""
    with stop_on_signals() as stop:
        started = time.monotonic()
        folder = Folder(_spool(settings))
        ledger = _ledger(settings, folder)
        async with AsyncExitStack() as stack:
            # Told to stop while it still waits for credentials, it has nothing to drain.
            stack.enter_context(suppress(StoppedError))
            await _own(folder, stack)
            made = await stack.enter_async_context(engine(settings, ledger, registry := CollectorRegistry(), stop))
            disk = watch_disk(folder.spool, settings.disk_reserve_bytes, made.metrics.disk_has)
            service = Service(settings, made, folder, disk, stop)
            await stack.enter_async_context(control_socket(ledger, service.answer))
            listen = settings.listen or DEFAULT_LISTEN
            address = await stack.enter_async_context(
                metrics_server(listen, registry, ready=lambda: service.ready, healthy=made.healthy)
            )
            log.info("metrics", url=f"http://{address}/metrics")
            await service.run(started)
        log.info("stopped")
        return 0


async def _own(folder: Folder, stack: AsyncExitStack) -> None:
    """Makes the spool, if it is missing, and this process's own before anything that lies in it is looked at.

    Raises SpoolHeldError after as much patience as a ledger gets: the last process may be about to end.
    """
    await anyio.to_thread.run_sync(folder.make)
    end = time.monotonic() + HELD_SECONDS
    while True:
        try:
            stack.callback(await anyio.to_thread.run_sync(take_spool, folder.spool))
        except SpoolHeldError:
            if time.monotonic() >= end:
                raise
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise disk_fault("lock", str(folder.spool), error) from error
            log.warning(
                "this file system has no locks: see to it that no other service has this spool", error=str(error)
            )
            return
        else:
            return
        await anyio.sleep(HELD_PAUSE_SECONDS)


def _ledger(settings: Settings, folder: Folder) -> Path:
    """Where the service's ledger is: as set, else in the spool. UsageError where it would be among the job files."""
    ledger = Path(settings.ledger) if settings.ledger else folder.spool / "ledger.db"
    if within := folder.holding(ledger):
        raise UsageError(
            f"the ledger {ledger} would lie in {within}, among the service's own files: name another place with --ledger, "
            f"or leave it out, for {folder.spool / 'ledger.db'}"
        )
    return ledger


def _spool(settings: Settings) -> Path:
    lacking = [] if settings.spool else ["a folder: set --spool DIR (it holds inbox, work, done, failed and results)"]
    if not settings.endpoints():
        lacking.append("an endpoint: set --endpoint, or --allow-endpoint for those that job lines name")
    if lacking or settings.spool is None:
        raise UsageError("the service needs " + "; and ".join(lacking))
    return Path(settings.spool).absolute()


class Service:
    """Job files from inbox to results. `run` returns when it was told to stop and has drained."""

    def __init__(self, settings: Settings, made: Engine, folder: Folder, disk: Disk, stop: Stop) -> None:
        self.ready = False
        """Whether it takes files and claims jobs; falls first when it stops."""
        self._settings = settings
        self._made = made
        self._folder = folder
        self._disk = disk
        self._stop = stop
        # One for each small file that is being taken up and read; whoever finds none waits, and the file waits in the inbox.
        self._slots = anyio.Semaphore(SMALL_FILES_AT_ONCE)
        self._reading = Turns(READERS)
        # Files whose results are being published, or wait for that: an end that is seen twice is worked on once.
        self._publishing: set[FileId] = set()
        # What cannot be put where it belongs for now.
        self._waiting = Waiting(folder.folders)
        # Files by the end of their time, until their results stand.
        self._open: dict[FileId, JobFile] = {}
        # Set when a file was opened: its deadline may be the next. Waited for by the deadlines' task alone.
        self._opened = asyncio.Event()
        # While files are taken: what brings them into the ledger, and the tasks that read them.
        self._taking: tuple[TaskGroup, Uptake] | None = None
        # One replay is made at a time: its number is free until the ledger has it.
        self._replaying = anyio.Lock()

    async def answer(self, request: dict[str, Any]) -> Any:
        """Answers what is asked over the control socket; UsageError for what it cannot."""
        match request:
            case {"command": "replay", "file": str() | None as name, "states": list(states)}:
                async with self._replaying:
                    return await self._replay(name, [State(state) for state in states])
            case _:
                said = await answer(self._made, request)
                return structs.replace(said, disk_low=self._disk.low()) if isinstance(said, Status) else said

    async def run(self, started: float) -> None:
        """The whole life between start and stop."""
        async with anyio.create_task_group() as tasks:
            self._made.start(tasks, look=True, lasting=True)
            await self._disk.look()
            uptake = await self._uptake()
            async with anyio.create_task_group() as sources:
                await self._recover(sources, uptake)
                self._taking = (sources, uptake)
                sources.start_soon(self._watch_inbox, sources, uptake, name="inbox")
                self._start_upkeep(tasks, uptake)
                self.ready = True
                notify("READY=1")
                log.info("ready", spool=str(self._folder.spool), seconds=round(time.monotonic() - started, 3))
                await self._stop.requested.wait()
                self._phase("stopping: nothing new is taken")
                self.ready = False
                self._taking = None
                notify("STOPPING=1")
                sources.cancel_scope.cancel()
            await self._drain()
            tasks.cancel_scope.cancel()

    async def _drain(self) -> None:
        self._phase("draining: no new claims, what is on the wire finishes")
        self._made.stop_lanes()
        with anyio.move_on_after(self._settings.drain_seconds) as limit:
            await self._made.drained()
        if limit.cancelled_caught:
            log.warning("not drained in time; what is on the wire is looked for at the next start")
        self._phase("drained")

    def _phase(self, text: str) -> None:
        log.info(text, signal=self._stop.signal.name if self._stop.signal else None)

    # --- job files come in --------------------------------------------------------------------------------------------

    async def _uptake(self) -> Uptake:
        settings, spool = self._settings, self._folder.spool
        return Uptake(
            self._folder,
            ledger=self._made.ledger,
            clock=self._made.clock,
            settings=UptakeSettings(
                payload_root=self._payload_root(),
                work_max_bytes=settings.work_max_bytes,
                room_bytes=lambda: free_bytes(spool) - settings.disk_reserve_bytes,
                deadline_seconds=settings.file_deadline_seconds,
            ),
            titles=[file.name for file in await self._made.ledger.files()],
            waiting=self._waiting,
        )

    async def _recover(self, sources: TaskGroup, uptake: Uptake) -> None:
        """Goes on with what the last process left in `work/` and in the ledger."""
        known = {file.run_id: file for file in await self._made.ledger.files()}
        unpublished = {run for run, file in known.items() if file.published_at is None}
        lying = await anyio.to_thread.run_sync(self._folder.recover, unpublished)
        strangers = sum(taken.run_id not in known for taken in lying)
        if strangers:
            log.info("job files lie in work/ that the ledger does not know; it is rebuilt from them", files=strangers)
        for taken in lying:
            file = known.get(taken.run_id)
            if file is None:
                sources.start_soon(self._take_up, taken, uptake, ExitStack(), True, name=f"intake of {taken.name}")
            elif file.published_at is not None:
                await self._waiting.make(partial(self._finish, file))
        for run in unpublished:
            sources.start_soon(self._go_on, known[run], uptake, name=f"intake of {known[run].name}")

    async def _watch_inbox(self, sources: TaskGroup, uptake: Uptake) -> None:
        inbox = open_inbox(
            self._folder,
            clock=self._made.clock,
            random=self._made.intaker.random,
            settle_seconds=self._settings.settle_seconds,
            scan_seconds=self._settings.scan_seconds,
            paused=self._disk.is_low,
        )

        async def accept(batch: list[Taken]) -> None:
            sizes = await anyio.to_thread.run_sync(lambda: [size_on_disk(taken.path) for taken in batch])
            for taken, size in zip(batch, sizes, strict=True):
                slot = ExitStack()
                if is_small(size):
                    await self._slots.acquire()
                    slot.callback(self._slots.release)
                sources.start_soon(self._take_up, taken, uptake, slot, False, name=f"intake of {taken.name}")

        await inbox.run(accept)

    async def _take_up(self, taken: Taken, uptake: Uptake, slot: ExitStack, rebuilt: bool) -> None:
        with slot:
            file = await uptake.take_up(taken, rebuilt=rebuilt)
            if file is None:
                return
            if not is_small(file.size_bytes):
                # It was small only while it was packed: nobody in the inbox waits for it.
                slot.close()
            await self._read(file)

    async def _go_on(self, file: JobFile, uptake: Uptake) -> None:
        try:
            await uptake.restore(file)
            if file.intake_done and self._made.unsent_queues(file.file_id):
                await patient(partial(self._made.verify, file.file_id))
        except UnreadableFileError as error:
            await self._give_up(file, str(error))
            return
        await self._read(file)

    async def _read(self, file: JobFile) -> None:
        self._open[file.file_id] = file
        self._opened.set()
        try:
            await patient(lambda: self._add(file))
        except (UnreadableFileError, ChangedFileError) as error:
            await self._give_up(file, str(error))

    async def _add(self, file: JobFile) -> None:
        await anyio.to_thread.run_sync(check_folder_of, file.data_path)
        read = await self._made.ledger.file(file.file_id) or file
        # The folder of payloads is as set now, so that a wrong setting can be corrected for files that wait.
        current = structs.replace(read, payload_root=self._payload_root())
        await self._made.add(current, self._reading.of(file.size_bytes))

    def _payload_root(self) -> str:
        return self._settings.payload_root or str(self._folder.inbox)

    async def _give_up(self, file: JobFile, reason: str) -> None:
        """The file cannot be read to its end: what of it is not on its way ends here, what is gets its result."""
        log.error("job file cannot be read to its end", name=file.name, reason=reason)
        self._open[file.file_id] = file
        self._made.spoiled[file.file_id] = reason
        error = Error(FailureReason.PAYLOAD_GONE, reason[:500])
        now = self._made.clock.now()
        await patient(lambda: self._made.ledger.end_unsent(file.file_id, State.CANCELLED, now, error))
        self._made.read_to_its_end(file.file_id)

    async def _replay(self, name: str | None, states: Sequence[State]) -> dict[str, Any]:
        """Takes up what ended so of a finished file as a job file of its own: its name (None: nothing to do), and how many jobs."""
        made = self._made
        of = await original(made.ledger, name)
        begun = await unfinished(made.ledger, of)
        if begun is not None:
            return {"name": begun.name, "jobs": sum(made.tally(begun.file_id).values())}
        if of.published_at is None:
            raise UsageError(
                f"{of.name} is not finished: its results must stand before what did not succeed is replayed"
            )
        replay = await self._make_replay(of, states)
        if self._taking is None:
            replay.path.unlink()
            raise UsageError("the service starts or stops; ask again when it is ready")
        sources, uptake = self._taking
        if not replay.jobs:
            replay.path.unlink()
            return {"name": None, "jobs": 0}
        run = run_id(made.intaker.random(RUN_ID_BYTES))
        taken = await anyio.to_thread.run_sync(self._folder.adopt, replay.path, replay.name, run)
        file = await uptake.take_up(taken)
        if file is None:
            raise UsageError(f"{replay.name} cannot be read: see results/{replay.name}")
        if self._taking is not None:  # else it was told to stop meanwhile, and goes on with it at the next start
            sources.start_soon(self._read, file, name=f"intake of {file.name}")
        return {"name": file.name, "jobs": replay.jobs}

    async def _make_replay(self, of: JobFile, states: Sequence[State]) -> Replay:
        settings = self._settings
        with ExitStack() as stack:
            found = original_lines(self._folder, of, settings.work_max_bytes, from_thread.check_cancelled)
            lines = await anyio.to_thread.run_sync(stack.enter_context, found)
            keep, folder = settings.endpoint is None, self._folder.work / REPLAYS
            return await make_replay(self._made.ledger, of, states, folder, keep_endpoint=keep, lines=lines)

    # --- results go out -----------------------------------------------------------------------------------------------

    def _start_upkeep(self, tasks: TaskGroup, uptake: Uptake) -> None:
        for number in range(PUBLISHERS):
            tasks.start_soon(self._publish_ends, name=f"publisher {number}")
        tasks.start_soon(self._waiting.run, name="what waits for its place")
        tasks.start_soon(self._disk.run, name="disk")
        tasks.start_soon(self._end_overdue, name="deadlines")
        if self._settings.retention_seconds is not None:
            retention = Retention(self._folder, self._settings.retention_seconds, self._made.clock)
            tasks.start_soon(retention.run, name="retention")
            tasks.start_soon(self._prune, self._settings.retention_seconds, uptake, name="pruning")

    async def _publish_ends(self) -> None:
        while True:
            file = await self._made.ended.get()
            if file in self._publishing or file not in self._open:
                continue
            self._publishing.add(file)
            await self._waiting.make(partial(self._end, self._open[file]))

    async def _end(self, file: JobFile) -> None:
        made = self._made
        await made.tracker.last_look(file.file_id, published=False)
        if made.finished(file.file_id):
            await self._publish(file)
            self._forget(file)
            # On its own from here on: its results stand, and the ledger may forget it while it waits to be moved.
            await self._waiting.make(partial(self._finish, file))
        self._publishing.discard(file.file_id)

    async def _publish(self, file: JobFile) -> None:
        made = self._made
        await anyio.to_thread.run_sync(self._folder.mend)
        standing = await anyio.to_thread.run_sync(self._folder.standing, file)
        if standing is None:
            read = await made.ledger.file(file.file_id)
            await self._write(read or file)
            await anyio.to_thread.run_sync(self._folder.publish, file)
        await made.ledger.published(file.file_id, made.clock.now())

    def _forget(self, file: JobFile) -> None:
        made = self._made
        if file.rebuilt:
            done, found = made.tally(file.file_id), made.found[file.file_id]
            log.info("rebuilt job file is through", name=file.name, jobs=sum(done.values()), outputs_found=found)
        self._open.pop(file.file_id, None)
        made.forget(file.file_id)

    async def _write(self, file: JobFile) -> None:
        place, spoiled = self._folder.results_place(file.run_id), self._made.spoiled
        why = spoiled.get(file.file_id) or await anyio.to_thread.run_sync(unlike_what_was_read, file)
        gone: UnreadableFileError | None = None
        try:
            await self._made.results.write(file, place, spoiled=why)
        except UnreadableFileError as error:
            # What is known of its jobs stands all the same: a file that is gone must not keep the others from their results.
            gone = error
            await self._made.results.write(file, place, metadata=False, spoiled=why or str(error))
        # Said now that it is written: what waits for its place is tried again and again.
        if why is not None and file.file_id not in spoiled:
            log.error("job file is not what was read of it; it goes to failed/", name=file.name, error=why)
        if gone is not None:
            log.error("job file is gone; its results have no metadata", name=file.name, error=str(gone))

    async def _finish(self, file: JobFile) -> None:
        standing = await anyio.to_thread.run_sync(self._folder.standing, file)
        into = standing.into if standing is not None else "done"
        await anyio.to_thread.run_sync(self._folder.finish, file, into)
        log.info("job file finished", name=file.name, run_id=file.run_id, into=into)

    async def _end_overdue(self) -> None:
        """Ends what is not submitted of a file at its deadline; again, since what was claimed then may have come back, and
        what was not read yet been accepted.
        """
        error = Error(FailureReason.RESULT_MISSING, "not submitted before the job file's deadline")
        while True:
            self._opened.clear()
            with anyio.move_on_after(next_deadline(self._open.values(), self._made.clock.now())):
                await self._opened.wait()
            now = self._made.clock.now()
            for file in overdue(list(self._open.values()), now):
                if not self._made.tally(file.file_id)[State.ACCEPTED]:
                    continue
                await patient(partial(self._made.ledger.end_unsent, file.file_id, State.EXPIRED, now, error))

    async def _prune(self, retention_seconds: float, uptake: Uptake) -> None:
        """Forgets old rows of the ledger, in small slices."""
        while True:
            before = {file.file_id: file.name for file in await self._made.ledger.files()}
            old = self._made.clock.now() - retention_seconds
            while await patient(partial(self._made.ledger.prune, old, PRUNE_ROWS)):  # noqa: ASYNC110
                await anyio.sleep(0.05)
            for gone in before.keys() - {file.file_id for file in await self._made.ledger.files()}:
                uptake.forget(before[gone])
                self._made.pruned(gone)
            await anyio.sleep(min(PRUNE_SECONDS, max(1.0, retention_seconds)))


def unlike_what_was_read(file: JobFile) -> str | None:
    """Whether there is more, or less, of the file now than was read of it (blocking); None if neither."""
    try:
        more = Path(file.data_path).stat().st_size - file.cursor.offset
    except OSError as error:
        return f"{file.data_path} is gone: {error.strerror}"
    if more > 0:
        return f"{more} bytes came after it had been read, of which nothing was sent: drop them as a file of their own"
    return f"it is {-more} bytes shorter than when it was read" if more else None


def next_deadline(files: Iterable[JobFile], now: float) -> float:
    """In how many seconds it is to be looked again whether a deadline has passed."""
    deadlines = [file.deadline_at for file in files if file.deadline_at is not None]
    # After a deadline what is left of its file comes back in little time.
    waits = [DEADLINE_SECONDS if deadline_at <= now else deadline_at - now for deadline_at in deadlines]
    return min([*waits, DEADLINE_SLEEP_SECONDS])


def overdue(files: Sequence[JobFile], now: float) -> list[JobFile]:
    """Those whose deadline has passed."""
    return [file for file in files if file.deadline_at is not None and file.deadline_at <= now]
