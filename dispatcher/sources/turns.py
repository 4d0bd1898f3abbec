"""Whose turn it is: small and large job files wait in two lines, so that large ones, however many, never keep a small one waiting.

Within its line each waits for those before it. A small file is through in a moment, so its line always moves on; a large one
may take its turn for hours. What is bounded by turns: descriptors, threads, and the memory of a reader, about half a mebibyte.
"""

from pathlib import Path

from anyio import CapacityLimiter

SMALL_BYTES = 4 * 1024 * 1024
"""A file of so much is read in about a second."""


class Turns:
    """At most `at_once` small files have their turn, and as many large ones."""

    def __init__(self, at_once: int) -> None:
        self._small = CapacityLimiter(at_once)
        self._large = CapacityLimiter(at_once)

    def of(self, size_bytes: int) -> CapacityLimiter:
        """The line of a file of this size; to be held while it has its turn, by one task."""
        return self._small if is_small(size_bytes) else self._large


def is_small(size_bytes: int) -> bool:
    """Whether a file of this size is soon through."""
    return size_bytes <= SMALL_BYTES


def size_on_disk(path: Path) -> int:
    """The file's size; 0 for one that cannot be asked, which whoever opens it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
