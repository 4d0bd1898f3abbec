"""When a lane may send: a gate that troubles close and a success opens. Pure: time and chance are arguments.

A closed gate drops nothing. It names its reason, lets one probe through at `probe_at`, and waits longer after each probe
that fails. Some troubles close it at once (nothing else could succeed either), the rest only as a streak without one
success between, because a service that throttles one request in twenty is healthy; and one that throttles all but one in
twenty still takes what it allows.
"""

from collections.abc import Callable

from dispatcher.model import FailureReason

STREAKS = {
    FailureReason.ENDPOINT_MISSING: 1,
    FailureReason.ACCESS_DENIED: 1,
    FailureReason.CREDENTIALS: 1,
    FailureReason.CLOCK_SKEW: 1,
    FailureReason.BUCKET: 1,
    FailureReason.STAGING_NOT_SET: 1,
    FailureReason.THROTTLED: 16,
    FailureReason.SERVICE_ERROR: 16,
    FailureReason.NETWORK: 16,
    FailureReason.TIMEOUT: 16,
    FailureReason.PROTOCOL: 16,
    FailureReason.VALIDATION_ERROR: 16,
}
"""How many failures in a row, without a success, close the gate."""

LASTING_SECONDS = {FailureReason.THROTTLED: 1.0}
"""A streak of these must have lasted so long, too. Of an endpoint that takes 200 a second, a window that may not shrink below
one meets 16 refusals between two that are taken where a round trip is a third of a millisecond: closed for them, the lane
would live on its probes. As one that throttles everything, it costs a second of what the window allows at its least."""

PROVEN_STREAK = 8
"""So many failures in a row put the lane in doubt before its gate closes."""

PROBE_FIRST_SECONDS = 1.0
PROBE_CAP_SECONDS = 30.0


class Gate:
    """Open, or closed for one reason until a probe succeeds."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._streak = 0
        self._streak_at = 0.0
        self._probes = 0
        self.reason: FailureReason | None = None
        """Why it is closed; None while it is open."""
        self.probe_at = 0.0
        """Monotonic time from which one probe may pass; only meaningful while closed."""
        self._succeeded = False

    @property
    def proven(self) -> bool:
        """Whether the lane takes jobs at present, so that a refusal speaks of the job: a success, and few failures since."""
        return self._succeeded and self._streak < PROVEN_STREAK

    def success(self) -> FailureReason | None:
        """A request was taken. Returns the reason that kept the gate closed, if this opened it."""
        opened, self.reason = self.reason, None
        self._streak = self._probes = 0
        self._succeeded = True
        return opened

    def failure(self, reason: FailureReason, now: float) -> bool:
        """A request was not taken. Returns whether this closed the gate; a gate closed already only waits longer."""
        if not self._streak:
            self._streak_at = now
        self._streak += 1
        if self.reason is not None:
            self._postpone(now)
            return False
        if self._streak < STREAKS.get(reason, 1) or now - self._streak_at < LASTING_SECONDS.get(reason, 0.0):
            return False
        self._succeeded = False
        self.reason = reason
        self._postpone(now)
        return True

    def take_probe(self, now: float) -> bool:
        """Whether the caller may send the one probe that is due; the next one is due later."""
        if self.reason is None or now < self.probe_at:
            return False
        self._postpone(now)
        return True

    def _postpone(self, now: float) -> None:
        if now < self.probe_at:
            return
        longest = min(PROBE_CAP_SECONDS, PROBE_FIRST_SECONDS * 2.0**self._probes)
        self.probe_at = now + longest * (0.5 + self._chance() / 2)
        self._probes = min(self._probes + 1, 16)
