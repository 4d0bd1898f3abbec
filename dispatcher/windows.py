"""How much a lane may have on the wire and under way. Pure: time is an argument.

    Window        attempts in flight: grows while they are taken, shrinks by a part when the service throttles, and only then
    Bucket        requests or bytes a second
    Flow          the window and both buckets of a lane as one: whether another attempt may begin
    Lately        jobs that reached an end, from which `outstanding_limit` follows: no more are submitted and not settled than
                  the model gets done before the first of them would expire
    Recent        how many a second of late, which tells how long the rest will take

A window need not be whole: of 2.3, two slots are always there, and the third three tenths of the time. Below one it means
less than one attempt at a time: the next one waits until its share of a round trip has passed. A timer that wakes late,
which a round trip of less than a millisecond feels, is made up for by the attempts after it.
"""

from collections import deque

from msgspec import Struct

SHRINK = 0.85
"""What throttling leaves of the window."""
BEYOND = 1.0
"""How fast it grows beyond that size: to double within as long again, to the ninefold within twice as long."""
RECOVERY_SECONDS = 0.25
RECOVERY_ROUND_TRIPS = 4
"""How long, at least, it takes to come back to the size that was too much. Simulated with limits that jump between 200 and
2,000 a second every 10 s, round trips of 0.5 to 100 ms: 94 to 96 % used at a quarter of a second, 89 to 94 % at a half, 78 to
84 % at one; 1.01 to 1.10 sends for each that was taken. If it grew beyond as it comes back, it were 3 % less."""
LEAST = 0.05
LEAST_SECONDS = 1.0
"""Never less than one attempt in twenty round trips, or in a second where those take less: something must find out that the
throttling is over."""
RAMP_FROM = 4.0
"""Where a window starts, and starts again after an outage; from there it doubles in a round trip."""
RECENT_SECONDS = 60.0
"""What counts as of late: a minute, so that a file's stragglers do not live on the rate of those before them."""
MADE_UP_SECONDS = 0.003
"""How much lateness the attempts of a window's fraction make up for, one after the other: a few ticks of the loop's timers, of a
millisecond each. Without it a window of 0.9 sends 650 a second where a round trip takes 0.4 ms, and one of 1.0 sends 2,500:
the size between is never found. More makes bursts that meet the limit again and again."""
UNKNOWN_SECONDS = 0.001
"""A round trip before one was seen."""
SOON_SECONDS = 1e-6
"""Not worth a timer; and less than what a clock's rounding leaves over of a wait that has ended."""


class Window:
    """The window in flight: doubles at first, then feels its way; shrinks on throttling; between `least` and `most`.

    After a throttle it comes back to the size that was too much as a cubic curve does: fast, then hardly, then faster and
    faster, so that a limit that stands is seldom met and one that is gone is left behind within seconds. Growth by one a
    round trip, as TCP has it, would double a window of one every few milliseconds, and meet the limit as often.
    """

    def __init__(self, least: float, most: float) -> None:
        self.least = least
        self.most = most
        self.size = min(max(RAMP_FROM, least), most)
        # Up to here it doubles in a round trip, beyond it follows the curve.
        self._ramp_to = most
        # The curve: the size that was too much, and when it began. Attempts sent before that time say nothing new.
        self._peak = most
        self._curve_at = float("-inf")
        self._shrunk_at = float("-inf")
        self._round_trip_seconds = 0.0
        # When the last attempt that only the window's fraction allowed was due: up to MADE_UP_SECONDS before it went out.
        self._part_due_at = float("-inf")

    def limit(self, least: float, most: float) -> None:
        """New bounds."""
        if self._ramp_to >= self.most:
            self._ramp_to = most
        self.least, self.most = least, most
        self.size = min(max(self.size, least), most)

    def taken(self, seconds: float, now: float) -> None:
        """An attempt was taken, after so long."""
        self._round_trip_seconds += (seconds - self._round_trip_seconds) / (8 if self._round_trip_seconds else 1)
        if self.size < self._ramp_to:
            self.size = min(self.size + 1.0, self.most)
            self._peak, self._curve_at = self.size, now - self._recovery_seconds
            return
        # Never faster than doubling in a round trip, however long nothing was sent.
        self.size = min(max(self.size, min(self._curve(now), self.size + 1.0)), self.most)

    def throttled(self, sent_at: float, now: float) -> bool:
        """An attempt was throttled. Of those that were on the wire together the first counts: returns whether this was it."""
        if sent_at < self._shrunk_at:
            return False
        self._peak = self.size
        self._shrunk_at = self._curve_at = now
        self.size = max(self.size * SHRINK, self.least, min(LEAST, self._round_trip() / LEAST_SECONDS))
        self._ramp_to = self.size
        return True

    def restart(self) -> None:
        """After an outage: begins small, and doubles up to half of what it was."""
        self._ramp_to = max(self.size / 2, self.least)
        self.size = max(min(self.size, RAMP_FROM), self.least)

    def wait_seconds(self, in_flight: int, now: float) -> float | None:
        """0 if one more may be sent now; None if one must come back first; else how long to wait."""
        if in_flight < int(self.size):
            return 0.0
        if in_flight > int(self.size) or not self.size % 1.0:
            return None
        wait = self._next_part_at() - now
        return wait if wait > SOON_SECONDS else 0.0

    def sent(self, in_flight: int, now: float) -> None:
        """An attempt begins beside `in_flight` others."""
        if in_flight >= int(self.size):
            self._part_due_at = min(max(self._next_part_at(), now - MADE_UP_SECONDS), now)

    def _next_part_at(self) -> float:
        part = self.size % 1.0
        return self._part_due_at + self._round_trip() / part if part else float("inf")

    def _round_trip(self) -> float:
        return self._round_trip_seconds or UNKNOWN_SECONDS

    @property
    def _recovery_seconds(self) -> float:
        return max(RECOVERY_SECONDS, RECOVERY_ROUND_TRIPS * self._round_trip_seconds)

    def _curve(self, now: float) -> float:
        after_peak = (now - self._curve_at) / self._recovery_seconds - 1.0
        return self._peak * (1.0 + (BEYOND if after_peak > 0 else 1.0 - SHRINK) * after_peak**3)


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
        wait = -self._level / self.per_second
        return wait if wait > SOON_SECONDS else 0.0

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

    def wait_seconds(self, now: float) -> float | None:
        """0: one more may be sent; None: one must come back first; else how long to wait at least."""
        wait = self.window.wait_seconds(self.in_flight, now)
        if wait is None:
            return None
        return max(wait, self.requests.wait_seconds(now), self.payloads.wait_seconds(now))

    def sent(self, size_bytes: int, now: float) -> None:
        """An attempt begins."""
        self.window.sent(self.in_flight, now)
        self.in_flight += 1
        self.requests.take(1)
        self.payloads.take(size_bytes)

    def returned(self) -> None:
        """An attempt has ended, however."""
        self.in_flight -= 1


class Measured(Struct, frozen=True):
    """Jobs of a lane that reached an end: `jobs` of them within `seconds`."""

    jobs: int
    seconds: float


class Lately:
    """How many there were within the last `keep_seconds`, and in what time; what came within a second is kept as one."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        # (when the first of them came, how many), oldest first; and how many in all, since it is asked for at every claim.
        self._counts: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, count: int, now: float) -> None:
        """So many more."""
        self._total += count
        if self._counts and now < self._counts[-1][0] + 1.0:
            at, before = self._counts.pop()
            self._counts.append((at, before + count))
        else:
            self._counts.append((now, count))

    def measured(self, now: float) -> Measured:
        """What is still of that time; no seconds where there is nothing."""
        while self._counts and self._counts[0][0] < now - self._keep_seconds:
            self._total -= self._counts.popleft()[1]
        return Measured(self._total, max(now - self._counts[0][0], 1.0) if self._counts else 0.0)


def outstanding_limit(measured: Measured, ttl_seconds: float, floor: int) -> int:
    """How many jobs may wait for a result: four fifths of what is done within the TTL, but `floor`, so that an endpoint that
    sleeps, or of which nothing is known yet, gets enough to wake for.
    """
    if measured.seconds <= 0:
        return floor
    return max(floor, int(0.8 * ttl_seconds * measured.jobs / measured.seconds))


class Recent:
    """How many a second there were over the last RECENT_SECONDS, or since `since` where that is less. Keeps a number a second."""

    def __init__(self, since: float) -> None:
        self._since = since
        # (second, how many in it), oldest first.
        self._counts: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """So many more."""
        second = int(now)
        before = self._counts.pop()[1] if self._counts and self._counts[-1][0] == second else 0
        self._counts.append((second, before + count))
        self._forget(now)

    def rate(self, now: float) -> float | None:
        """The mean; None where there was none of late."""
        self._forget(now)
        total = sum(count for _, count in self._counts)
        return total / min(max(now - self._since, 1.0), RECENT_SECONDS) if total else None

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= int(now) - RECENT_SECONDS:
            self._counts.popleft()
