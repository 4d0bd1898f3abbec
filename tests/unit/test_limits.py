"""The gate: what closes it, how often a probe may pass, what opens it."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.limits import LASTING_SECONDS, PROBE_CAP_SECONDS, PROBE_FIRST_SECONDS, PROVEN_STREAK, STREAKS, Gate
from dispatcher.model import FailureReason

AT_ONCE = [reason for reason, streak in STREAKS.items() if streak == 1]
IN_A_ROW = [reason for reason, streak in STREAKS.items() if streak > 1]


def gate(chance: Callable[[], float] = lambda: 1.0) -> Gate:
    return Gate(chance)


def closed(reason: FailureReason = FailureReason.ENDPOINT_MISSING) -> Gate:
    made = gate()
    assert made.failure(reason, 0.0)
    return made


@pytest.mark.parametrize("reason", AT_ONCE)
def test_what_nothing_can_get_through_closes_the_gate_at_once(reason: FailureReason) -> None:
    assert closed(reason).reason is reason


@pytest.mark.parametrize("reason", IN_A_ROW)
def test_passing_trouble_closes_the_gate_only_as_a_streak(reason: FailureReason) -> None:
    made = gate()
    results = [made.failure(reason, float(n)) for n in range(STREAKS[reason])]
    assert results == [False] * (STREAKS[reason] - 1) + [True]
    assert made.reason is reason


@pytest.mark.parametrize("reason", IN_A_ROW)
def test_one_success_in_between_begins_the_streak_anew(reason: FailureReason) -> None:
    made = gate()
    for n in range(10):
        for _ in range(STREAKS[reason] - 1):
            assert not made.failure(reason, float(n))
        made.success()
    assert made.reason is None


@pytest.mark.parametrize("reason", LASTING_SECONDS)
def test_a_streak_that_must_last_closes_the_gate_no_sooner_and_begins_anew_with_a_success(
    reason: FailureReason,
) -> None:
    made, lasting = gate(), LASTING_SECONDS[reason]
    assert not any(made.failure(reason, lasting * n / 100) for n in range(100))
    made.success()
    assert not any(made.failure(reason, lasting * (1 + n / 100)) for n in range(100))
    assert made.failure(reason, lasting * 2)


def test_a_success_opens_the_gate_and_says_what_kept_it_closed() -> None:
    made = closed()
    assert made.success() is FailureReason.ENDPOINT_MISSING
    assert made.reason is None
    assert made.success() is None


def test_only_the_failure_that_closes_the_gate_says_so() -> None:
    made = closed()
    assert not any(made.failure(FailureReason.ENDPOINT_MISSING, now) for now in range(100))


def test_an_open_gate_gives_no_probes() -> None:
    assert not gate().take_probe(1e9)


def test_one_probe_passes_in_each_interval() -> None:
    made = closed()
    assert not made.take_probe(made.probe_at - 0.001)
    due_at = made.probe_at
    assert made.take_probe(due_at)
    assert not made.take_probe(due_at)
    assert made.probe_at > due_at


@given(st.floats(0, 1), st.integers(1, 40))
def test_probes_come_ever_more_rarely_up_to_a_cap(chance: float, probes: int) -> None:
    made = Gate(lambda: chance)
    made.failure(FailureReason.ENDPOINT_MISSING, 0.0)
    waits, now = [made.probe_at], 0.0
    for _ in range(probes):
        now = made.probe_at
        assert made.take_probe(now)
        waits.append(made.probe_at - now)
    assert PROBE_FIRST_SECONDS / 2 <= waits[0] <= PROBE_FIRST_SECONDS
    assert waits == pytest.approx(sorted(waits))
    assert max(waits) <= PROBE_CAP_SECONDS


def test_failures_while_a_probe_is_out_postpone_nothing() -> None:
    made = closed()
    made.take_probe(made.probe_at)
    due_at = made.probe_at
    for _ in range(50):
        made.failure(FailureReason.ENDPOINT_MISSING, due_at - 0.1)
    assert made.probe_at == due_at


def test_a_gate_that_opened_waits_little_when_it_closes_again() -> None:
    made = closed()
    for _ in range(10):
        made.take_probe(made.probe_at)
    made.success()
    now = made.probe_at + 100.0
    made.failure(FailureReason.ENDPOINT_MISSING, now)
    assert made.probe_at - now <= PROBE_FIRST_SECONDS


def test_a_lane_is_proven_by_a_success_and_in_doubt_after_a_few_failures() -> None:
    made = gate()
    assert not made.proven
    made.success()
    for _ in range(PROVEN_STREAK - 1):
        made.failure(FailureReason.VALIDATION_ERROR, 0.0)
        assert made.proven
    made.failure(FailureReason.VALIDATION_ERROR, 0.0)
    assert not made.proven


def test_a_gate_that_closed_proves_nothing_until_the_next_success() -> None:
    made = gate()
    made.success()
    made.failure(FailureReason.CREDENTIALS, 0.0)
    assert not made.proven
    made.success()
    assert made.proven
