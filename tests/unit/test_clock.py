"""Time that never jumps, under clocks that do."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.clock import BACK, FORWARD, SteadyTime, SystemClock

DAY = 86_400.0
STEPS = st.lists(st.tuples(st.floats(0, 1_000), st.floats(-DAY, DAY)), max_size=20)


def test_a_clock_that_is_left_alone_is_followed() -> None:
    steady = SteadyTime(1_000.0, 5.0)
    steady.follow(1_030.0, 35.0)
    assert steady.now(65.0) == 1_060.0
    assert steady.ahead_seconds == 0.0


@given(STEPS)
def test_however_the_clock_is_set_what_is_due_is_due_when_its_time_has_passed(steps: list[tuple[float, float]]) -> None:
    steady, elapsed, wall = SteadyTime(0.0, 0.0), 0.0, 0.0
    for passed, jump in steps:
        before = steady.now(elapsed)
        elapsed, wall = elapsed + passed, wall + passed + jump
        gone = steady.now(elapsed) - before
        assert (1 - BACK) * passed - 1e-6 <= gone <= (1 + FORWARD) * passed + 1e-6
        steady.follow(wall, elapsed)


def test_a_clock_that_was_put_right_is_agreed_with_in_the_end() -> None:
    for error in (600.0, -600.0):
        steady = SteadyTime(0.0, 0.0)
        for second in range(int(DAY * 3)):
            steady.follow(second + error, float(second))
        assert abs(steady.ahead_seconds) < 1e-3


def test_the_machines_clock_is_agreed_with() -> None:
    clock = SystemClock()
    before = clock.now()
    clock.follow()
    assert before <= clock.now()
    assert clock.monotonic() <= clock.monotonic()
