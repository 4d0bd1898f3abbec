"""What becomes of a job after a fault: the whole table of kinds, reasons and standings."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason
from dispatcher.retry import (
    LANE_REFUSALS,
    Again,
    Dead,
    Doubt,
    Reroute,
    RetryPolicy,
    Standing,
    backoff_seconds,
    verdict,
    wait_seconds,
)

POLICY = RetryPolicy()
STANDINGS = [
    Standing(attempt=attempt, faults=faults, can_stage=can_stage, lane_proven=proven)
    for attempt, faults, can_stage, proven in product([1, 2, 50], [0, 1, 3, 10], [True, False], [True, False])
]
CASES = list(product(FailureReason, STANDINGS))
LANES_OWN = [FaultKind.THROTTLED, FaultKind.TROUBLE, FaultKind.NOT_SENT]


def fault(kind: FaultKind, reason: FailureReason, retry_after: float | None = None) -> Fault:
    return Fault(kind=kind, reason=reason, code="", message="", retry_after_seconds=retry_after)


@pytest.mark.parametrize("kind", LANES_OWN)
def test_trouble_of_the_lane_never_costs_a_job_anything(kind: FaultKind) -> None:
    for reason, standing in CASES:
        decided = verdict(fault(kind, reason), standing, POLICY, 0.5)
        assert isinstance(decided, Again)
        assert not decided.fault


def test_an_unknown_answer_is_always_a_doubt() -> None:
    for reason, standing in CASES:
        assert verdict(fault(FaultKind.UNKNOWN, reason), standing, POLICY, 0.5) == Doubt()


def test_refusals_are_judged_by_reason_and_standing() -> None:
    for reason, standing in CASES:
        decided = verdict(fault(FaultKind.REFUSED, reason), standing, POLICY, 0.5)
        assert (type(decided), getattr(decided, "fault", None)) == expected(reason, standing)


def expected(reason: FailureReason, standing: Standing) -> tuple[type, bool | None]:
    """The rules of design.md once more, as a list: the first that fits holds."""
    rules = [
        (reason is FailureReason.PAYLOAD_GONE, (Dead, None)),
        (reason in (FailureReason.ENDPOINT_MISSING, FailureReason.STAGING_NOT_SET), (Again, False)),
        (standing.can_stage, (Reroute, None)),
        (standing.faults >= 1 and standing.lane_proven, (Dead, None)),
        (standing.faults >= POLICY.max_faults - 1, (Dead, None)),
        (True, (Again, True)),
    ]
    return next(outcome for holds, outcome in rules if holds)


def test_no_job_is_blamed_for_what_only_the_lane_can_mend() -> None:
    assert set(LANE_REFUSALS) == {FailureReason.ENDPOINT_MISSING, FailureReason.STAGING_NOT_SET}


def test_a_job_refused_by_a_lane_in_doubt_is_dead_after_its_budget() -> None:
    refused = fault(FaultKind.REFUSED, FailureReason.VALIDATION_ERROR)
    faults = 0
    while isinstance(decided := verdict(refused, standing(faults), POLICY, 0.5), Again):
        faults += decided.fault
    assert (decided, faults + 1) == (Dead(), POLICY.max_faults)


def standing(faults: int) -> Standing:
    return Standing(attempt=faults + 1, faults=faults, can_stage=False, lane_proven=False)


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_wait_is_never_longer_than_the_cap(retries: int, chance: float) -> None:
    assert 0 <= backoff_seconds(retries, POLICY.base_seconds, POLICY, chance) <= POLICY.cap_seconds


@given(st.integers(0, 40))
def test_the_longest_wait_never_shrinks_from_try_to_try(retries: int) -> None:
    one, next_one = (backoff_seconds(n, 0.1, POLICY, 1.0) for n in (retries, retries + 1))
    assert one <= next_one


@given(st.sampled_from(LANES_OWN), st.integers(1, 100), st.floats(0, 1), st.floats(0, 1e9))
def test_a_servers_hint_is_a_lower_bound_up_to_a_cap(kind: FaultKind, n: int, chance: float, hint: float) -> None:
    wait = wait_seconds(fault(kind, FailureReason.THROTTLED, hint), n, POLICY, chance)
    assert wait >= min(hint, POLICY.hint_cap_seconds)
    assert wait <= max(POLICY.cap_seconds, POLICY.hint_cap_seconds)


def test_throttling_waits_longer_than_other_trouble() -> None:
    throttled, busy = (
        wait_seconds(fault(kind, FailureReason.THROTTLED), 1, POLICY, 1.0)
        for kind in (FaultKind.THROTTLED, FaultKind.TROUBLE)
    )
    assert throttled > busy
