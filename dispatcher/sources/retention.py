"""Deletes what is old in `done/` and `results/`, in small slices, and nothing that others put there.

Ours is, in `results/`: a folder whose summary names a run; of it the three files, and itself when it is empty then. In
`done/`: a regular file with the name of a job file. `failed/` waits for a person, always. The age counts from the last
change of anything about the entry, also its rename (ctime): never earlier than it came there.

Results leave their name at once, by a rename to a hidden one, so that nobody reads half of them; a crash in between is
made good by the next sweep. The files of a slice are deleted in one go in a thread, and between slices the disk has rest.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from dispatcher.interfaces import Clock
from dispatcher.results import ERRORS, RESULTS, SUMMARY
from dispatcher.sources.folder import Folder, results_of
from dispatcher.sources.names import is_title

log = structlog.get_logger(__name__)

SLICE = 50
REST_SECONDS = 0.2
SWEEP_SECONDS = 600.0
REMOVED_SUFFIX = ".removed"
RESULT_FILES = (RESULTS, ERRORS, SUMMARY)


class Retention:
    """Keeps `done/` and `results/` of a spool for `retention_seconds`."""

    def __init__(self, folder: Folder, retention_seconds: float, clock: Clock) -> None:
        self._folder = folder
        self._retention_seconds = retention_seconds
        self._clock = clock
        self._is_troubled = False

    async def run(self) -> None:
        """Sweeps every SWEEP_SECONDS (oftener where the retention is shorter) until it is cancelled."""
        while True:
            await self.sweep()
            await anyio.sleep(min(SWEEP_SECONDS, max(1.0, self._retention_seconds)))

    async def sweep(self) -> int:
        """Deletes all that is old now; returns how many entries went. Trouble is logged once, and the next sweep tries again."""
        removed = looked_at = 0
        with closing(expired(self._folder, self._clock.now() - self._retention_seconds)) as old:
            while paths := await anyio.to_thread.run_sync(lambda: list(islice(old, SLICE))):
                looked_at += len(paths)
                removed += await anyio.to_thread.run_sync(self._remove, paths)
                await anyio.sleep(REST_SECONDS)
        self._is_troubled = self._is_troubled and removed < looked_at
        if removed:
            log.info("old entries of done and results deleted", entries=removed)
        return removed

    def _remove(self, paths: list[Path]) -> int:
        return sum(self._remove_one(path) for path in paths)

    def _remove_one(self, path: Path) -> bool:
        try:
            if path.parent == self._folder.done:
                path.unlink(missing_ok=True)
            else:
                _remove_results(path)
        except OSError as error:
            self._say(path, error)
            return False
        return True

    def _say(self, path: Path, error: OSError) -> None:
        if not self._is_troubled:
            self._is_troubled = True
            log.error("old entries cannot be deleted; tried again later", name=ascii(path.name), error=str(error))


def expired(folder: Folder, before: float) -> Generator[Path, None, None]:
    """What may go: job files in `done/` and folders in `results/` that came there before then, and half deleted ones."""
    for entry in _entries(folder.done):
        if entry.is_file(follow_symlinks=False) and is_title(entry.name) and _is_older(Path(entry), before):
            yield Path(entry)
    for entry in _entries(folder.results):
        if entry.is_dir(follow_symlinks=False) and _may_go(Path(entry), before):
            yield Path(entry)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Lazily: a folder may hold a million. What is deleted meanwhile may hide others from it, until the next sweep."""
    try:
        with os.scandir(folder) as listing:
            yield from listing
    except OSError:
        return  # a folder that is away for now has nothing to delete


def _may_go(results: Path, before: float) -> bool:
    if results.name.startswith("."):
        return results.name.endswith(REMOVED_SUFFIX)
    try:
        return _is_older(results / SUMMARY, before) and results_of(results) is not None
    except OSError:
        return False


def _is_older(path: Path, before: float) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return max(found.st_mtime, found.st_ctime) < before


def _remove_results(folder: Path) -> None:
    hidden = folder
    if not folder.name.endswith(REMOVED_SUFFIX):
        hidden = folder.with_name(f".{folder.name}{REMOVED_SUFFIX}")
        folder.rename(hidden)
    for name in RESULT_FILES:
        (hidden / name).unlink(missing_ok=True)
    try:
        hidden.rmdir()
    except OSError:
        # Somebody put files of their own there: they stay, under the old name.
        hidden.rename(hidden.with_name(hidden.name[1:].removesuffix(REMOVED_SUFFIX)))
