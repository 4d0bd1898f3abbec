"""The machine's time, made steady: it never jumps, whatever is done to the clock of the machine.

Due times and deadlines are kept as wall times, because they outlive the process. A wall clock that is set an hour ahead would
expire results that are still coming, one that is set back would let everything that waits wait an hour longer. So time is
taken from the clock once, at start; from then on it goes by the seconds that pass, and follows the clock no faster than
FORWARD and BACK say. A restart takes the clock's time at once. What AWS signs for is not told from here: the SDK reads the
clock itself, and a clock that is off is refused there.
"""

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

FORWARD = 0.005
"""How much faster than time it goes to catch up: the default deadline of 22,500 s comes at most 113 s early, and has 120 s of
slack."""
BACK = 0.1
"""How much slower it goes while it is ahead, which costs nothing but that share of each wait."""
TOLD_SECONDS = 5.0


class SteadyTime:
    """Wall time from two clocks: `wall` may be set by anybody, `elapsed` counts seconds. Pure; each call brings both."""

    def __init__(self, wall: float, elapsed: float) -> None:
        self._now = wall
        self._elapsed = elapsed
        self.ahead_seconds = 0.0
        """How far the wall clock was ahead of what the latest call gave."""

    def now(self, wall: float, elapsed: float) -> float:
        """Seconds since the epoch; never less than before."""
        passed = max(0.0, elapsed - self._elapsed)
        self._elapsed = max(elapsed, self._elapsed)
        off = wall - (self._now + passed)
        self._now += passed + min(max(off, -BACK * passed), FORWARD * passed)
        self.ahead_seconds = wall - self._now
        return self._now


class SystemClock:
    """The clock of a process. May be asked from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steady = SteadyTime(time.time(), _elapsed())
        # How far the wall clock was ahead when that was last told.
        self._told_seconds = 0.0

    def now(self) -> float:
        with self._lock:
            return self._steady.now(time.time(), _elapsed())

    def monotonic(self) -> float:
        return time.monotonic()

    def tell_jumps(self) -> None:
        """Logs that the wall clock was set since the last call, if it was."""
        self.now()
        ahead = self._steady.ahead_seconds
        if abs(ahead - self._told_seconds) < TOLD_SECONDS:
            return
        by_seconds, self._told_seconds = round(ahead - self._told_seconds, 1), ahead
        log.warning("the machine's clock was set; what waits goes on by the time that passes", by_seconds=by_seconds)


def _counter() -> Callable[[], float]:
    """Counts the time that a machine was suspended, too, where it can: then that is no jump."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boottime is None else lambda: time.clock_gettime(boottime)


_elapsed = _counter()
