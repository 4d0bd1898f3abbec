"""When to look for results, and how often. Pure.

A full shard's 1,000 jobs may cost 20 S3 calls. Half of that is a loan, spent on looks in vain; what a look finds pays for
further ones. The first look comes when results are likely (the lane's own pace), each next one when the age has grown by
half; when few calls are left, the steps grow so that the last one just reaches the deadline.
"""

from collections import deque
from statistics import quantiles

from msgspec import Struct

LOAN_CALLS = 12
"""S3 calls for a shard before it has given a result."""
RESULTS_PER_CALL = 125
"""Found results that pay for one more call: with the loan, 20 for a full shard."""
_FIRST_GUESS_SECONDS = 0.5
_LEAST_SECONDS = 0.2
_GROWTH = 1.5
_LAST_CALLS = 5
"""So few calls left are spread over the time until the deadline."""


class Pace:
    """How long results of a lane take, from its latest completions."""

    def __init__(self, keep: int = 256) -> None:
        self._latest: deque[float] = deque(maxlen=keep)

    def add(self, seconds: float) -> None:
        """Takes note of one completion."""
        self._latest.append(seconds)

    @property
    def median_seconds(self) -> float:
        """Half of the latest results took no longer; a guess while there are none."""
        return self._quantile(5)

    @property
    def most_seconds(self) -> float:
        """Nine in ten of the latest results took no longer."""
        return self._quantile(9)

    def _quantile(self, tenths: int) -> float:
        if len(self._latest) < 2:
            return self._latest[0] if self._latest else _FIRST_GUESS_SECONDS
        return float(quantiles(self._latest, n=10, method="inclusive")[tenths - 1])


class Progress(Struct, frozen=True, kw_only=True):
    """A shard as far as looking is concerned; times on the wall clock.

    `filling`: jobs of it are still to be submitted. `calls`: S3 calls made for it, `found`: results they found.
    """

    filling: bool
    first_submitted_at: float
    last_submitted_at: float
    deadline_at: float
    calls: int
    found: int


def next_look_at(progress: Progress, now: float, pace_seconds: float) -> float:
    """When to look at the shard next, seen from `now`; never later than just after its deadline."""
    pace = max(pace_seconds, _LEAST_SECONDS) * 1.1
    start = progress.first_submitted_at if progress.filling else progress.last_submitted_at
    if start + pace > now:
        return min(start + pace, max(progress.deadline_at, now))
    if now >= progress.deadline_at:
        return now + pace
    age = now - start
    return min(start + age * _growth(progress, (progress.deadline_at - start) / age), progress.deadline_at)


def _growth(progress: Progress, stretch: float) -> float:
    """By how much the age grows until the next look; `stretch` is how many ages the deadline is away."""
    left = LOAN_CALLS + progress.found // RESULTS_PER_CALL - progress.calls
    if left > _LAST_CALLS:
        return _GROWTH
    return max(float(stretch ** (1 / max(left, 1))), _GROWTH)
