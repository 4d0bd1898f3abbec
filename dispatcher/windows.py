"""How much a lane may have on the wire and under way. Pure: time is an argument.

    Window        attempts in flight: grows by one a round trip, shrinks by a part when the service throttles, and only then
    Bucket        requests or bytes a second
    Outstanding   jobs submitted and not settled: no more than the model gets done before the first of them would expire

A window below one means less than one attempt at a time: the next one waits until its share of a round trip has passed.
"""

from msgspec import Struct

SHRINK = 0.85
"""What throttling leaves of the window: the mean between two throttles is then 92 % of what is allowed."""
LEAST = 0.05
"""Never less than one attempt in twenty round trips: something must find out that the throttling is over."""
RAMP_FROM = 4.0
"""Where a window starts, and starts again after an outage; from there it doubles in a round trip."""


class Window:
    """The window in flight: additive increase, multiplicative decrease, between `least` and `most`."""

    def __init__(self, least: float, most: float) -> None:
        self.least = least
        self.most = most
        self.size = min(RAMP_FROM, most)
        # Up to here it doubles in a round trip, beyond it grows by one.
        self._ramp_to = most
        # Attempts sent before this time say nothing of the size since it last shrank.
        self._shrunk_at = float("-inf")
        self._round_trip_seconds = 0.0

    def limit(self, least: float, most: float) -> None:
        """New bounds."""
        self.least, self.most = least, most
        self._ramp_to = max(self._ramp_to, most)
        self.size = min(max(self.size, least), most)

    def taken(self, seconds: float) -> None:
        """An attempt was taken, after so long."""
        self._round_trip_seconds += (seconds - self._round_trip_seconds) / 8
        grown = self.size + (1.0 if self.size < self._ramp_to else 1.0 / max(self.size, 1.0))
        self.size = min(grown, self.most)

    def throttled(self, sent_at: float, now: float) -> None:
        """An attempt was throttled; of those that were on the wire together, the first counts."""
        if sent_at < self._shrunk_at:
            return
        self._shrunk_at = now
        self.size = max(self.size * SHRINK, self.least, LEAST)
        self._ramp_to = self.size

    def restart(self) -> None:
        """After an outage: begins small, and doubles up to half of what it was."""
        self._ramp_to = max(self.size / 2, self.least)
        self.size = max(min(self.size, RAMP_FROM), self.least)

    def wait_seconds(self, in_flight: int, last_sent_at: float, now: float) -> float | None:
        """0 if one more may be sent now; None if one must come back first; else how long to wait."""
        if self.size >= 1.0:
            return 0.0 if in_flight < int(self.size) else None
        if in_flight:
            return None
        return max(0.0, last_sent_at + max(self._round_trip_seconds, 0.001) / self.size - now)


class Bucket:
    """At most `per_second` units a second, after a burst of a second's worth. `per_second` None: no limit."""

    def __init__(self, per_second: float | None) -> None:
        self.per_second = per_second
        self._level = per_second or 0.0
        self._at = float("-inf")

    def limit(self, per_second: float | None) -> None:
        """A new rate."""
        self.per_second = per_second
        self._level = min(self._level, per_second or 0.0)

    def wait_seconds(self, now: float) -> float:
        """How long until something may be taken: the level may go below nought by one taking, however large."""
        if self.per_second is None:
            return 0.0
        self._fill(self.per_second, now)
        return max(0.0, -self._level / self.per_second)

    def take(self, units: float) -> None:
        """Something was taken."""
        if self.per_second is not None:
            self._level -= units

    def _fill(self, per_second: float, now: float) -> None:
        if self._at == float("-inf"):
            self._at = now
        self._level = min(per_second, self._level + (now - self._at) * per_second)
        self._at = now


class Flow:
    """What a lane may put on the wire now: its window and its rates. One object decides; the lane tells it what happened."""

    def __init__(self, window: Window, requests: Bucket, payloads: Bucket) -> None:
        self.window = window
        self.requests = requests
        self.payloads = payloads
        self.in_flight = 0
        self._last_sent_at = float("-inf")

    def wait_seconds(self, now: float) -> float | None:
        """0: one more may be sent; None: one must come back first; else how long to wait at least."""
        wait = self.window.wait_seconds(self.in_flight, self._last_sent_at, now)
        if wait is None:
            return None
        return max(wait, self.requests.wait_seconds(now), self.payloads.wait_seconds(now))

    def sent(self, size_bytes: int, now: float) -> None:
        """An attempt begins."""
        self.in_flight += 1
        self._last_sent_at = now
        self.requests.take(1)
        self.payloads.take(size_bytes)

    def returned(self) -> None:
        """An attempt has ended, however."""
        self.in_flight -= 1


class Measured(Struct, frozen=True):
    """Jobs of a lane that reached an end: `jobs` of them within `seconds`."""

    jobs: int
    seconds: float


def outstanding_limit(measured: Measured, ttl_seconds: float, floor: int) -> int:
    """How many jobs may wait for a result: four fifths of what is done within the TTL, but `floor`, so that an endpoint that
    sleeps, or of which nothing is known yet, gets enough to wake for.
    """
    if measured.seconds <= 0:
        return floor
    return max(floor, int(0.8 * ttl_seconds * measured.jobs / measured.seconds))
