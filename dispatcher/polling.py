"""When to look for results, and how often. Pure.

A full shard's 1,000 jobs may cost 20 S3 calls. Most of that is a loan, spent on looks in vain; what a look finds pays for
the rest. The first look comes when results are likely (the lane's own pace). From then on the age grows by one factor from
look to look, such that the calls that are left just reach the deadline: a result is found before its age has grown by much
more than that factor (2.5 where nothing is known of the lane), whenever it comes. A look that S3 did not answer is made
again soon and costs nothing.

A shard that has used up its calls, mostly because it filled slowly, is looked at all the same: the age of its latest job
doubles from look to look, and no pause is longer than five minutes, until the deadline is near by that measure. Such shards
are few, and an output that lies in S3 for hours is worse than a call. While it still fills, and a look finds few, all of its
pauses are that long: its latest job is always new.
"""

from collections import deque
from statistics import quantiles

from msgspec import Struct

LOAN_CALLS = 18
"""S3 calls for a shard before it has given a result."""
RESULTS_PER_CALL = 500
"""Found results that pay for one more call: with the loan, 20 for a full shard."""
FAILURE_LOOKS = 2
"""Failures are looked for in every so-many-th look at a shard, which costs a second call."""
ASK_AGAIN_SECONDS = 2.0
"""Pause after S3 could not say what is there; it doubles from one such answer to the next."""
ASK_AGAIN_CAP_SECONDS = 60.0
DUE_BATCH_SECONDS = 0.75
"""Jobs whose deadlines pass so soon after each other expire in one look."""
_FIRST_GUESS_SECONDS = 0.5
_LEAST_SECONDS = 0.2
_LEAST_GROWTH = 1.5
_MOST_GROWTH = 3.0
OVERDRAWN_SECONDS = 10.0
"""The least pause between two looks at a shard that has used up its calls."""
LONGEST_SECONDS = 300.0
"""The longest pause between two looks at such a shard, and at one that fills."""
FEW = 33
"""Results for each call so far: with fewer, calls that are made more often would not pay."""


class Pace:
    """How long results of a lane take, from its latest completions."""

    def __init__(self, keep: int = 256) -> None:
        self._latest: deque[float] = deque(maxlen=keep)

    def add(self, seconds: float) -> None:
        """Takes note of one completion."""
        self._latest.append(seconds)

    @property
    def is_young(self) -> bool:
        """Whether it knows too few results: the first of a lane are its fastest."""
        return len(self._latest) != self._latest.maxlen

    @property
    def most_seconds(self) -> float:
        """Nine in ten of the latest results took no longer; a guess while there are none."""
        if len(self._latest) < 2:
            return self._latest[0] if self._latest else _FIRST_GUESS_SECONDS
        return float(quantiles(self._latest, n=10, method="inclusive")[-1])


class Progress(Struct, frozen=True, kw_only=True):
    """A shard as far as looking is concerned; times on the wall clock.

    `filling`: jobs of it are still to be submitted. `due_at`: the first deadline of a job in it, as far as known;
    `deadline_at`: the last one. `looks`: how often it was looked at, `unanswered`: how many of the latest of these S3 did not
    answer; `calls`: S3 calls answered, `found`: results they found.
    """

    filling: bool
    first_submitted_at: float
    last_submitted_at: float
    due_at: float
    deadline_at: float
    looks: int
    unanswered: int
    calls: int
    found: int


def next_look_at(progress: Progress, now: float, pace_seconds: float) -> float:
    """When to look at the shard next, seen from `now`."""
    if progress.unanswered:
        return now + ask_again_seconds(progress.unanswered)
    pace = max(pace_seconds, _LEAST_SECONDS) * 1.1
    start = progress.first_submitted_at if progress.filling else progress.last_submitted_at
    due_at = min(progress.due_at + DUE_BATCH_SECONDS, progress.deadline_at)
    if not progress.looks:
        return max(min(start + pace, due_at), now)
    if now >= progress.deadline_at:
        return now + min(max(pace, (now - progress.deadline_at) / 2), ASK_AGAIN_CAP_SECONDS)
    age = max(now - start, _LEAST_SECONDS)
    looks_left, stretch = _looks_left(progress), (progress.deadline_at - start) / age
    # Pace alone would creep: while only the fast ones have come, it says that the rest is due any moment.
    look_at = start + max(pace, age * _growth(looks_left, stretch))
    if looks_left <= 0 and stretch > _LEAST_GROWTH:
        look_at = now + _overdrawn_pause(progress, now)
    elif progress.filling:
        look_at = min(look_at, now + max(pace, LONGEST_SECONDS))
    return max(min(look_at, due_at), now + _LEAST_SECONDS)


def ask_again_seconds(unanswered: int) -> float:
    """The pause after so many looks in a row that S3 did not answer."""
    return min(ASK_AGAIN_CAP_SECONDS, ASK_AGAIN_SECONDS * 2.0 ** min(unanswered - 1, 16))


def _growth(looks_left: float, stretch: float) -> float:
    """By how much the age grows until the next look; `stretch` is how many ages the deadline is away."""
    growth = float(max(stretch, 1.0) ** (1 / max(looks_left, 1.0)))
    return min(max(growth, _LEAST_GROWTH), _MOST_GROWTH)


def _looks_left(progress: Progress) -> float:
    """How many looks the shard's calls are enough for."""
    left = LOAN_CALLS + progress.found // RESULTS_PER_CALL - progress.calls
    return left / (1 + 1 / FAILURE_LOOKS)


def _overdrawn_pause(progress: Progress, now: float) -> float:
    if progress.filling and progress.found < FEW * progress.calls:
        return LONGEST_SECONDS
    return min(max(now - progress.last_submitted_at, OVERDRAWN_SECONDS), LONGEST_SECONDS)
