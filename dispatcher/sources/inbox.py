"""Watches the inbox: hands over each job file that stands still, taken into `work/`, oldest first.

A scan every `scan_seconds` is the truth. File events only make the next scan sooner: the queue of the kernel overflows
when many files come at once, some file systems have none, and a watch dies with its folder. So nothing here depends on
them, and a watch that fails is begun again. Scans are spaced by what they cost, whatever the events say.

One task scans, takes and hands over, in that order: nothing is taken while the last batch waits to be accepted. A cancel
there leaves files in `work/`, which `Folder.recover` finds. An inbox that cannot be read is told once, and waited for.
Memory: the oldest WATCHED_MAX files are known at a time, about 300 bytes each; the rest has its turn when those are taken.
"""

import heapq
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog
import watchfiles
from msgspec import Struct

from dispatcher.identity import RUN_ID_BYTES, run_id
from dispatcher.interfaces import Clock
from dispatcher.sources.folder import Folder, NotTaken, Taken, entry_of
from dispatcher.sources.names import SUFFIXES, is_job_file, is_like_job_file
from dispatcher.sources.settling import Entry, Look, Settling

log = structlog.get_logger(__name__)

WATCHED_MAX = 50_000
BATCH = 100
"""Files taken at once: two syncs a batch, so that twenty thousand files do not cost forty thousand."""
GAP_SECONDS = 0.1
COST_SHARE = 4
"""After a scan, so many times its own duration pass before the next."""
EVENT_STEP_MS = 50
NAMED_MAX = 10
LEFT_MAX = 1_000
"""What is left alone is remembered by name, to be told once; beyond so many it is not looked at."""


class LeftAlone(NamedTuple):
    """What lies in the inbox, looks like a job file, and will never be taken."""

    name: str
    why: str


class Scanned(Struct, frozen=True):
    """One scan of the inbox. `identity` changes when another folder lies at its path. `left` has at most LEFT_MAX."""

    entries: list[Entry]
    identity: tuple[int, int]
    left: Sequence[LeftAlone] = ()


class Inbox:
    """Runs the folder source. `open_inbox` makes it.

    `look` scans, and raises OSError where it cannot; `take` moves files to `work/`; `hear` calls back after file events
    until it is cancelled, may fail, and may return; `paused` says that nothing may be taken now.
    """

    def __init__(
        self,
        *,
        look: Callable[[], Awaitable[Scanned]],
        take: Callable[[Sequence[Entry]], Awaitable[tuple[list[Taken], list[NotTaken]]]],
        hear: Callable[[Callable[[], None]], Awaitable[None]],
        paused: Callable[[], bool],
        clock: Clock,
        settle_seconds: float,
        scan_seconds: float,
    ) -> None:
        self._look = look
        self._take = take
        self._hear = hear
        self._paused = paused
        self._clock = clock
        self._scan_seconds = scan_seconds
        self._settling = Settling(settle_seconds)
        # Set by file events, seen and replaced by the scanning task: a scan that begins later sees what they told.
        self._hinted = anyio.Event()
        # Around the watch that is on; cancelled when another folder lies at the inbox's path.
        self._hearing = anyio.CancelScope()
        self._identity: tuple[int, int] | None = None
        self._rested_at = 0.0
        self._is_lost = False
        self._is_deaf = False
        self._refused: set[str] = set()
        self._left: set[str] = set()

    async def run(self, accept: Callable[[list[Taken]], Awaitable[None]]) -> None:
        """Hands every file over, in batches of at most BATCH, until it is cancelled. Raises DiskFaultError, and what `accept` does.

        While `accept` has not returned nothing more is taken: what takes long there holds up every other file.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, name="file events")
            while True:
                await self._rest_until(await self._round(accept))

    async def _round(self, accept: Callable[[list[Taken]], Awaitable[None]]) -> float:
        """One scan and what follows; returns when (monotonic) the next one is due."""
        self._hinted = anyio.Event()
        began_at = self._clock.monotonic()
        next_scan_at, self._rested_at = began_at + self._scan_seconds, began_at + GAP_SECONDS
        if self._paused():
            return next_scan_at
        look = await self._observe(began_at)
        if look is None:
            return next_scan_at
        await self._hand_over(look.ready, accept)
        return next_scan_at if look.next_at is None else min(next_scan_at, look.next_at)

    async def _observe(self, began_at: float) -> Look | None:
        try:
            scanned = await self._look()
        except OSError as error:
            self._lose(error)
            return None
        ended_at = self._clock.monotonic()
        self._rested_at = ended_at + max(GAP_SECONDS, COST_SHARE * (ended_at - began_at))
        self._found(scanned.identity)
        self._refused &= {entry.name for entry in scanned.entries}
        self._leave(scanned.left)
        return self._settling.observe(scanned.entries, began_at, ended_at)

    async def _hand_over(self, ready: Sequence[Entry], accept: Callable[[list[Taken]], Awaitable[None]]) -> None:
        rest = iter(ready)
        while (batch := list(islice(rest, BATCH))) and not self._paused():
            taken, refused = await self._take(batch)
            self._complain(refused)
            if taken:
                await accept(taken)

    async def _rest_until(self, at: float) -> None:
        await anyio.sleep(max(0.0, self._rested_at - self._clock.monotonic()))
        with anyio.move_on_after(at - self._clock.monotonic()):
            await self._hinted.wait()

    # --- what is said once --------------------------------------------------------------------------------------------

    def _lose(self, error: OSError) -> None:
        self._settling.forget()
        if not self._is_lost:
            self._is_lost = True
            log.error("inbox cannot be read; looked for until it can", error=str(error))

    def _found(self, identity: tuple[int, int]) -> None:
        if self._is_lost:
            log.info("inbox can be read again")
        if self._is_lost or self._identity not in {None, identity}:
            self._hearing.cancel()
        self._is_lost, self._identity = False, identity

    def _complain(self, refused: Sequence[NotTaken]) -> None:
        new = [one for one in refused if one.name not in self._refused]
        self._refused.update(one.name for one in new)
        for one in new[:NAMED_MAX]:
            log.error("job file cannot be taken; tried again at each scan", name=ascii(one.name), error=str(one.error))
        if len(new) > NAMED_MAX:
            log.error("and other job files", files=len(new) - NAMED_MAX)

    def _leave(self, left: Sequence[LeftAlone]) -> None:
        new = [one for one in left if one.name not in self._left]
        self._left = {one.name for one in left}
        for one in new[:NAMED_MAX]:
            log.warning("left alone in the inbox: never taken", name=ascii(one.name), why=one.why)
        if len(new) > NAMED_MAX:
            log.warning("and others left alone in the inbox", files=len(new) - NAMED_MAX)

    # --- file events --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            with anyio.CancelScope() as self._hearing:
                try:
                    await self._hear(lambda: self._hinted.set())
                except* Exception as errors:
                    # Whatever ails the events, the scans go on: the next one at once, for what the lost event told.
                    self._deafen(_first(errors))
                    self._hinted.set()
            await anyio.sleep(self._scan_seconds)

    def _deafen(self, error: Exception) -> None:
        if not self._is_deaf:
            self._is_deaf = True
            log.info("file events failed; begun again, and the inbox is scanned all the same", error=str(error)[:200])


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """The first error that is no group."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def scan(inbox: Path) -> Scanned:
    """The oldest WATCHED_MAX job files of the inbox, and what looks like one and is left alone.

    Raises OSError where the folder, or nothing in it, can be looked at.
    """
    found = inbox.stat()
    troubled: list[OSError] = []
    left: list[LeftAlone] = []
    with os.scandir(inbox) as listing:
        named = (_look_at(entry, troubled, left) for entry in listing if is_like_job_file(entry.name))
        entries = heapq.nsmallest(WATCHED_MAX, filter(None, named))
    if troubled and not entries:
        raise troubled[0]
    return Scanned(entries, (found.st_dev, found.st_ino), left)


def _look_at(entry: "os.DirEntry[str]", troubled: list[OSError], left: list[LeftAlone]) -> Entry | None:
    try:
        found = entry_of(entry.name, entry.stat(follow_symlinks=False))
        why = "its name does not end in " + ", ".join(SUFFIXES) if found else "it is no regular file"
        if found is not None and is_job_file(entry.name):
            return found
        if len(left) < LEFT_MAX:
            left.append(LeftAlone(entry.name, why))
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        troubled[:] = [error]
        return None


async def events(inbox: Path, hint: Callable[[], None]) -> None:
    """Calls `hint` after changes in the folder, until it is cancelled. Raises where there are no events, in a group."""
    stop = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_set_at_cancel, stop)
        async with aclosing(_changes(inbox, stop)) as changes:
            async for _ in changes:
                hint()
        tasks.cancel_scope.cancel()


async def _set_at_cancel(stop: threading.Event) -> None:
    # The thread that waits for events looks at this every few milliseconds; without it a cancel would wait for seconds.
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()


def _changes(inbox: Path, stop: threading.Event) -> AsyncGenerator[object, None]:
    return watchfiles.awatch(
        inbox,
        watch_filter=None,
        recursive=False,
        force_polling=False,
        debounce=2 * EVENT_STEP_MS,
        step=EVENT_STEP_MS,
        stop_event=stop,
    )


def open_inbox(
    folder: Folder,
    *,
    clock: Clock,
    random: Callable[[int], bytes],
    settle_seconds: float,
    scan_seconds: float,
    paused: Callable[[], bool] = lambda: False,
) -> Inbox:
    """The inbox of a spool. `random` gives that many random bytes."""

    async def take(ready: Sequence[Entry]) -> tuple[list[Taken], list[NotTaken]]:
        return await anyio.to_thread.run_sync(folder.take, ready, lambda: run_id(random(RUN_ID_BYTES)))

    return Inbox(
        look=partial(anyio.to_thread.run_sync, scan, folder.inbox),
        take=take,
        hear=partial(events, folder.inbox),
        paused=paused,
        clock=clock,
        settle_seconds=settle_seconds,
        scan_seconds=scan_seconds,
    )
