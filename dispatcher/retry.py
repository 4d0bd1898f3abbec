"""What becomes of a job whose attempt did not end in a receipt. Pure: time and chance are arguments.

Two budgets. A fault of the job (the service refuses this very request) uses up its attempts and ends `dead`. Trouble of
the lane (throttling, 5xx, network, credentials, clock) never does: such a job goes back and waits, for as long as it
takes. "ValidationError" says both, so behaviour decides: see `verdict`.
"""

from typing import assert_never

from msgspec import Struct

from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

LANE_REFUSALS = (FailureReason.ENDPOINT_MISSING, FailureReason.STAGING_NOT_SET)
"""Refusals that no job is to blame for, however often it meets them."""


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Waits in seconds: full jitter over `base * 2^n`, at most `cap`. `max_faults`: refusals after which a job is dead."""

    base_seconds: float = 0.1
    throttle_base_seconds: float = 0.5
    cap_seconds: float = 20.0
    hint_cap_seconds: float = 300.0
    max_faults: int = 4


class Again(Struct, frozen=True, kw_only=True):
    """Back to accepted, to be tried after `after_seconds`; `fault` says that it used up one of the job's attempts."""

    after_seconds: float
    fault: bool = False


class Reroute(Struct, frozen=True):
    """The same job once more, by S3: inline may be what was refused, not the job."""


class Dead(Struct, frozen=True):
    """Refused for good."""


class Doubt(Struct, frozen=True):
    """It may have been taken: look for its output before anything else."""


Verdict = Again | Reroute | Dead | Doubt


class Standing(Struct, frozen=True, kw_only=True):
    """What counts for a verdict: the attempt's number (from 1), the job's faults so far, and its lane.

    `can_stage`: it went inline and could go by S3. `lane_proven`: the lane answers other jobs with 202 at present.
    """

    attempt: int
    faults: int
    can_stage: bool
    lane_proven: bool


def backoff_seconds(retries: int, base_seconds: float, policy: RetryPolicy, chance: float) -> float:
    """Full jitter: `chance` (0 to 1) of the exponential bound after `retries` earlier tries."""
    return chance * min(policy.cap_seconds, base_seconds * 2.0 ** min(retries, 32))


def wait_seconds(fault: Fault, attempt: int, policy: RetryPolicy, chance: float) -> float:
    """How long a job that was not taken waits; a server's hint is a lower bound."""
    throttled = fault.kind is FaultKind.THROTTLED
    base = policy.throttle_base_seconds if throttled else policy.base_seconds
    hint = min(fault.retry_after_seconds or 0.0, policy.hint_cap_seconds)
    return max(hint, backoff_seconds(attempt - 1, base, policy, chance))


def verdict(fault: Fault, standing: Standing, policy: RetryPolicy, chance: float) -> Verdict:
    """What to do with the job after this fault."""
    match fault.kind:
        case FaultKind.UNKNOWN:
            return Doubt()
        case FaultKind.THROTTLED | FaultKind.TROUBLE | FaultKind.NOT_SENT:
            return Again(after_seconds=wait_seconds(fault, standing.attempt, policy, chance))
        case FaultKind.REFUSED:
            return _refused(fault, standing, policy, chance)
        case _:
            assert_never(fault.kind)


def _refused(fault: Fault, standing: Standing, policy: RetryPolicy, chance: float) -> Verdict:
    """A missing endpoint is the lane's trouble; refused twice by a lane that takes others is bad; else the budget decides."""
    if fault.reason is FailureReason.PAYLOAD_GONE:
        return Dead()
    if fault.reason in LANE_REFUSALS:
        return Again(after_seconds=wait_seconds(fault, standing.attempt, policy, chance))
    if standing.can_stage:
        return Reroute()
    if (standing.lane_proven and standing.faults) or standing.faults + 1 >= policy.max_faults:
        return Dead()
    return Again(after_seconds=wait_seconds(fault, standing.attempt, policy, chance), fault=True)
