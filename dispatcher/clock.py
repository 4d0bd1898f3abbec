"""The machine's time, made steady: it never jumps, whatever is done to the clock of the machine.

Due times and deadlines are kept as wall times, because they outlive the process. A wall clock that is set an hour ahead would
expire results that are still coming, one that is set back would let everything that waits wait an hour longer. So time is
taken from the clock once, at start; from then on it goes by the seconds that pass, a little faster or slower where the clock
was found ahead or behind, at most as FORWARD and BACK say. A restart takes the clock's time at once. Signatures are not made
by this time: they take the clock's own, and AWS refuses one that is off.
"""

import time
from collections.abc import Callable
from functools import partial

import structlog

log = structlog.get_logger(__name__)

FORWARD = 0.005
"""How much faster than time it goes to catch up: the default deadline of 22,500 s comes at most 113 s early, and has 120 s of
slack."""
BACK = 0.1
"""How much slower it goes while it is ahead, which costs nothing but that share of each wait."""
FOLLOW_SECONDS = 10.0
"""In about so long a small difference is made up."""
TOLD_SECONDS = 5.0
"""A smaller difference is not told: time servers set clocks by less."""


class SteadyTime:
    """Wall time by the seconds that pass (`elapsed`). Pure. `follow` is called now and then, by one thread; `now` by any."""

    def __init__(self, wall: float, elapsed: float) -> None:
        # A time, the seconds that had passed then, and how fast time goes since: replaced as one.
        self._line = (wall, elapsed, 1.0)
        self.ahead_seconds = 0.0
        """How far the wall clock was ahead when it was last looked at."""

    def now(self, elapsed: float) -> float:
        """Seconds since the epoch; never less than before, as long as `elapsed` is not."""
        began_at, began, rate = self._line
        return began_at + (elapsed - began) * rate

    def follow(self, wall: float, elapsed: float) -> None:
        """The wall clock says so: from now on time goes a little faster or slower until it agrees."""
        now = self.now(elapsed)
        self.ahead_seconds = wall - now
        self._line = (now, elapsed, 1.0 + min(max(self.ahead_seconds / FOLLOW_SECONDS, -BACK), FORWARD))


class SystemClock:
    """The clock of a process. May be asked from any thread; whoever owns it calls `follow` about once a second."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._steady = SteadyTime(time.time(), _elapsed())
        # How far the wall clock was ahead when that was last told.
        self._told_seconds = 0.0

    def now(self) -> float:
        return self._steady.now(_elapsed())

    def follow(self) -> None:
        """Looks at the wall clock, and logs that it was set since the last call, if it was."""
        self._steady.follow(time.time(), _elapsed())
        ahead = self._steady.ahead_seconds
        if abs(ahead - self._told_seconds) < TOLD_SECONDS:
            return
        by_seconds, self._told_seconds = round(ahead - self._told_seconds, 1), ahead
        log.warning("the machine's clock was set; what waits goes on by the time that passes", by_seconds=by_seconds)


def _counter() -> Callable[[], float]:
    """Counts the time that a machine was suspended, too, where it can: then that is no jump."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boottime is None else partial(time.clock_gettime, boottime)


_elapsed = _counter()
