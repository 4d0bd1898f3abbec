"""When a shard is looked at: within its budget, in time for its deadline, and soon after a result by the measure of its age."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.polling import (
    ASK_AGAIN_CAP_SECONDS,
    FAILURE_LOOKS,
    Pace,
    Progress,
    ask_again_seconds,
    next_look_at,
)

DEADLINE = 22_620.0
TIMES = [0.05, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 21_600.0]


def progress(**given: float) -> Progress:
    known = {"first_submitted_at": 0.0, "last_submitted_at": 0.0, "due_at": DEADLINE, "deadline_at": DEADLINE}
    counts = {"looks": 0, "unanswered": 0, "calls": 0, "found": 0}
    return Progress(filling=False, **{**known, **counts, **given})  # type: ignore[arg-type]


def looks_until(result_at: float, pace_seconds: float) -> tuple[float, int]:
    """When a shard's results, all there from `result_at` on, are found, and what that has cost with the looks for failures."""
    now, looks, calls = 0.0, 0, 0
    while True:
        now = next_look_at(progress(looks=looks, calls=calls), now, pace_seconds)
        looks, calls = looks + 1, calls + 1
        if now >= result_at:
            return now, calls
        calls += looks % FAILURE_LOOKS == 0


@pytest.mark.parametrize("result_at", TIMES)
@pytest.mark.parametrize("pace", [0.5, 5.0, 600.0])
def test_a_full_shard_costs_at_most_twenty_calls_whenever_its_results_come(result_at: float, pace: float) -> None:
    assert looks_until(result_at, pace)[1] <= 20


@pytest.mark.parametrize("result_at", TIMES)
def test_a_result_is_found_before_its_age_has_grown_by_much(result_at: float) -> None:
    assert looks_until(result_at, 0.5)[0] <= max(0.6, 2.6 * result_at)


@pytest.mark.parametrize("result_at", TIMES)
def test_where_the_pace_is_known_the_first_look_finds_the_results(result_at: float) -> None:
    found_at, calls = looks_until(result_at, result_at)
    assert found_at == pytest.approx(max(0.22, min(1.1 * result_at, DEADLINE)))
    assert calls == 1


@pytest.mark.parametrize("calls", range(31))
@pytest.mark.parametrize("age", [1.0, 60.0, 3_600.0])
def test_however_many_calls_a_shard_has_cost_it_is_looked_at_soon_by_the_measure_of_its_latest_job(
    calls: int, age: float
) -> None:
    spent = progress(looks=9, calls=calls, last_submitted_at=4_000.0, due_at=30_000.0, deadline_at=30_000.0)
    assert next_look_at(spent, 4_000.0 + age, 0.5) <= 4_000.0 + max(3.0 * age, age + 10.0)


def test_a_shard_that_has_used_up_its_calls_is_looked_at_every_five_minutes_at_least() -> None:
    now, looks = 10.0, 0
    while now < DEADLINE:
        before, now = now, next_look_at(progress(looks=9, calls=20 + looks), now, 0.5)
        looks += 1
        assert now - before <= 300.0 or (now, before >= DEADLINE / 1.5) == (DEADLINE, True)
    assert looks < 90


@pytest.mark.parametrize("calls", [1, 17, 30])
@pytest.mark.parametrize("newest", [0.0, 7_000.0, 7_199.0])
def test_while_a_shard_fills_it_is_looked_at_every_five_minutes_at_least(calls: int, newest: float) -> None:
    shard = replace(progress(looks=9, calls=calls, last_submitted_at=newest), filling=True)
    assert next_look_at(shard, 7_200.0, 0.5) == 7_500.0


def test_a_shard_that_fills_as_its_results_are_found_is_looked_at_by_the_age_of_its_latest_job() -> None:
    """Where a lane may have few jobs under way, it waits for these looks."""
    shard = replace(progress(looks=20, calls=20, found=700, last_submitted_at=7_180.0), filling=True)
    assert next_look_at(shard, 7_200.0, 0.5) == 7_220.0


@given(
    st.floats(0, DEADLINE - 1),
    st.floats(0, 30_000),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 1_000),
    st.booleans(),
)
def test_a_look_is_never_later_than_the_deadline_nor_in_the_past(
    now: float, pace: float, looks: int, calls: int, found: int, filling: bool
) -> None:
    shard = Progress(
        filling=filling,
        first_submitted_at=0.0,
        last_submitted_at=now / 2,
        due_at=DEADLINE,
        deadline_at=DEADLINE,
        looks=looks,
        unanswered=0,
        calls=calls,
        found=found,
    )
    look_at = next_look_at(shard, now, pace)
    assert now <= look_at <= max(DEADLINE, now + 0.2)


@given(st.floats(0, 1e6), st.integers(1, 1_000))
def test_after_the_first_look_no_two_looks_follow_at_once(now: float, looks: int) -> None:
    assert next_look_at(progress(looks=looks), now, 0.0) >= now + 0.199


def test_the_first_deadline_in_a_shard_is_looked_at_in_time() -> None:
    assert 600.0 <= next_look_at(progress(looks=5, due_at=600.0), 500.0, 1.0) <= 601.0


def test_a_shard_taken_up_after_a_restart_is_looked_at_at_once() -> None:
    assert next_look_at(progress(), 3_600.0, 0.5) == 3_600.0
    assert next_look_at(progress(), 2 * DEADLINE, 0.5) == 2 * DEADLINE


def test_a_look_without_an_answer_is_made_again_soon_and_then_less_often() -> None:
    pauses = [next_look_at(progress(looks=9, unanswered=n), 5_000.0, 1.0) - 5_000.0 for n in range(1, 10)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2.0, ASK_AGAIN_CAP_SECONDS)
    assert pauses == [ask_again_seconds(n) for n in range(1, 10)]


def test_a_shard_past_its_deadline_is_asked_ever_more_rarely() -> None:
    pauses = [next_look_at(progress(looks=9), DEADLINE + late, 0.5) - DEADLINE - late for late in (0, 10, 100, 1_000)]
    assert pauses == pytest.approx([0.55, 5.0, 50.0, 60.0])


def test_the_pace_is_that_of_the_latest_completions() -> None:
    pace = Pace(keep=10)
    assert pace.most_seconds == 0.5
    for seconds in [1_000.0] * 10 + [float(n) for n in range(1, 11)]:
        pace.add(seconds)
    assert pace.most_seconds == pytest.approx(9.1)
