"""Decides which files of the inbox stand still. Pure: the entries and the time come in, what is ready goes out.

A file is ready when two observations that lie at least `settle_seconds` apart show the same file: inode, size and time of
change. An observation of a whole folder takes time, so the first one counts from its end and the second one from its
beginning: a slow disk can make the wait longer, never shorter. The clock is monotonic; file times are compared with
each other only, so a wrong clock, here or on the machine that writes, does not matter.

No rule can tell a writer that pauses for longer than that from one that has ended: writers should rename into the inbox.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct


class Entry(NamedTuple):
    """A file of the inbox as one observation shows it. Entries sort oldest first."""

    mtime_ns: int
    name: str
    size: int
    inode: int


class Look(Struct, frozen=True):
    """What an observation tells: files that are ready, oldest first, and when the next one may be (None: nothing waits)."""

    ready: list[Entry]
    next_at: float | None


class Settling:
    """Remembers since when each file of the inbox stands still; nothing else, and nothing of files that are gone."""

    def __init__(self, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self._since: dict[Entry, float] = {}

    def observe(self, entries: Iterable[Entry], began_at: float, ended_at: float) -> Look:
        """Takes in an observation of the whole inbox, made between these two moments (monotonic)."""
        before, self._since = self._since, {}
        ready: list[Entry] = []
        next_at: float | None = None
        for entry in entries:
            since = self._since[entry] = before.get(entry, ended_at)
            ready_at = since + self._settle_seconds
            if ready_at <= began_at or not self._settle_seconds:
                ready.append(entry)
            else:
                next_at = ready_at if next_at is None else min(next_at, ready_at)
        return Look(sorted(ready), next_at)

    def forget(self) -> None:
        """After a time without observations: whatever was seen before proves nothing."""
        self._since = {}
