"""The disk watermark: nothing new is taken while the spool's file system is nearly full.

Intake stops below `reserve_bytes` and goes on above a tenth more than that, so that it does not flap at the border. What
was accepted goes on all the while: it needs little room, and frees it. A file system that cannot be asked changes nothing.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from dispatcher.status import DiskLow

log = structlog.get_logger(__name__)

RESUME_FACTOR = 1.1
POLL_SECONDS = 2.0


class Watermark:
    """Whether there is room; pure. `low` is what `observe` decided last."""

    def __init__(self, reserve_bytes: int) -> None:
        self._reserve_bytes = reserve_bytes
        self.low = False

    @property
    def resume_bytes(self) -> int:
        """What must be free for intake to go on."""
        return int(self._reserve_bytes * RESUME_FACTOR)

    def observe(self, free_bytes: int) -> bool:
        """Takes in how much is free; True where that changed `low`."""
        before = self.low
        border = self.resume_bytes if self.low else self._reserve_bytes
        self.low = free_bytes < border
        return self.low is not before


class Disk:
    """Asks for the free space, says when intake stops and goes on. `seen` gets every figure (for a gauge)."""

    def __init__(
        self, free: Callable[[], int], reserve_bytes: int, seen: Callable[[int], None] = lambda _: None
    ) -> None:
        self._free = free
        self._seen = seen
        self._reserve_bytes = reserve_bytes
        self._watermark = Watermark(reserve_bytes)
        self._is_lost = False
        self._free_bytes = 0

    def is_low(self) -> bool:
        """Whether nothing may be taken now, as of the last look."""
        return self._watermark.low

    def low(self) -> DiskLow | None:
        """What keeps intake stopped, as of the last look that told; None where it is not."""
        if not self._watermark.low:
            return None
        return DiskLow(
            free_bytes=self._free_bytes,
            reserve_bytes=self._reserve_bytes,
            resume_bytes=self._watermark.resume_bytes,
        )

    async def run(self) -> None:
        """Looks every POLL_SECONDS until it is cancelled."""
        while True:
            await self.look()
            await anyio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Looks once; before anything is taken, too."""
        try:
            free_bytes = await anyio.to_thread.run_sync(self._free)
        except OSError as error:
            self._lose(error)
            return
        self._is_lost = False
        self._free_bytes = free_bytes
        self._seen(free_bytes)
        if self._watermark.observe(free_bytes):
            self._say(free_bytes)

    def _say(self, free_bytes: int) -> None:
        given = {"free_bytes": free_bytes, "reserve_bytes": self._reserve_bytes}
        if self._watermark.low:
            resume_bytes = self._watermark.resume_bytes
            log.error(
                "disk nearly full: nothing is taken from the inbox until there is room",
                **given,
                resume_bytes=resume_bytes,
            )
        else:
            log.info("disk has room again: the inbox is taken from", **given)

    def _lose(self, error: OSError) -> None:
        if not self._is_lost:
            log.error("free space of the spool is not known", error=str(error))
        self._is_lost = True


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the file system of `path`. Raises OSError."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def watch_disk(path: Path, reserve_bytes: int, seen: Callable[[int], None] = lambda _: None) -> Disk:
    """The watermark of the file system that holds `path`."""
    return Disk(partial(free_bytes, path), reserve_bytes, seen)
