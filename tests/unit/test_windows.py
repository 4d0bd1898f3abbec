"""How much may be on the wire: the window's way up and down, and what rates leave over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.windows import (
    LEAST_SECONDS,
    MADE_UP_SECONDS,
    SHRINK,
    UNKNOWN_SECONDS,
    Bucket,
    Flow,
    Lately,
    Measured,
    Recent,
    Window,
    outstanding_limit,
)

ROUND_TRIP = 0.01


def used(window: Window, seconds: float, since: float = 0.0) -> float:
    """Takes as many attempts, one after the other, as the window allows; the time after that."""
    now = since
    while now < since + seconds:
        now += ROUND_TRIP / window.size
        window.taken(ROUND_TRIP, now)
    return now


def test_a_new_window_doubles_in_a_round_trip_up_to_its_bound() -> None:
    window = Window(1, 64)
    sizes = []
    for n in range(5):
        sizes.append(window.size)
        for _ in range(int(window.size)):
            window.taken(ROUND_TRIP, n * ROUND_TRIP)
    assert sizes == [4, 8, 16, 32, 64]


def test_a_window_begins_within_its_bounds() -> None:
    assert (Window(8, 16).size, Window(1, 2).size, Window(1, 100).size) == (8, 2, 4)


def test_throttling_shrinks_once_a_round_trip() -> None:
    window = Window(1, 64)
    now = used(window, 1.0)
    assert [window.throttled(sent_at=now - 0.005, now=now + n / 1000) for n in range(9)] == [True] + [False] * 8
    assert window.size == pytest.approx(64 * SHRINK)
    assert window.throttled(sent_at=now + 0.001, now=now + 0.02)


def test_after_a_throttle_the_old_size_is_soon_reached_and_then_hardly_passed_until_it_is_left_behind() -> None:
    window = Window(1, 1_000)
    used(window, 0.5)
    window.size = 10.0
    window.throttled(0.5, 0.5)
    now = used(window, 0.25, since=0.5)
    assert window.size == pytest.approx(10.0, rel=0.01)
    now = used(window, 0.1, since=now)
    assert window.size < 10.0 * 1.07
    used(window, 0.5, since=now)
    assert window.size > 10.0 * 10


def test_an_idle_window_does_not_jump_when_it_is_used_again() -> None:
    window = Window(1, 1_000)
    window.throttled(0.0, 0.0)
    before = window.size
    window.taken(ROUND_TRIP, 3_600.0)
    assert window.size == before + 1.0


def test_after_an_outage_it_begins_small_and_doubles_to_half() -> None:
    window = Window(1, 64)
    now = used(window, 1.0)
    window.restart()
    assert window.size == 4.0
    for _ in range(28):
        window.taken(ROUND_TRIP, now)
    assert window.size == 32.0
    window.taken(ROUND_TRIP, now + 0.001)
    assert window.size < 32.1


def test_new_bounds_hold_at_once_and_the_ramp_goes_on_to_the_new_one() -> None:
    window = Window(1, 8)
    used(window, 1.0)
    window.limit(2, 4)
    assert window.size == 4
    window.limit(2, 64)
    used(window, 1.0, since=1.0)
    assert window.size == 64


def test_a_window_below_one_sends_its_share_of_a_round_trip() -> None:
    window = Window(0, 8)
    window.taken(0.1, 0.0)
    window.size = 0.5
    assert window.wait_seconds(0, 0.0) == 0.0
    window.sent(0, 1.0)
    assert window.wait_seconds(1, 1.05) is None
    assert window.wait_seconds(0, 1.1) == pytest.approx(0.1 - MADE_UP_SECONDS)
    assert window.wait_seconds(0, 1.2) == 0.0


def test_the_part_of_a_slot_is_there_for_that_part_of_the_time() -> None:
    window = Window(1, 8)
    window.taken(0.1, 0.0)
    window.size = 2.5
    assert [window.wait_seconds(n, 0.0) for n in range(4)] == [0.0, 0.0, 0.0, None]
    window.sent(2, 0.0)
    assert window.wait_seconds(2, 0.1) == pytest.approx(0.1 - MADE_UP_SECONDS)
    assert window.wait_seconds(1, 0.1) == 0.0


@pytest.mark.parametrize("size", [0.2, 0.5, 0.9])
def test_a_timer_that_wakes_late_takes_nothing_from_a_short_round_trip(size: float) -> None:
    window, round_trip, tick = Window(size, size), 0.0004, 0.001
    window.taken(round_trip, 0.0)
    sent, now = 0, 0.0
    while now < 10.0:
        if wait := window.wait_seconds(0, now):
            now = (int((now + wait) / tick) + 1) * tick
            continue
        window.sent(0, now)
        sent, now = sent + 1, now + round_trip
        window.taken(round_trip, now)
    assert sent == pytest.approx(size / round_trip * 10.0, rel=0.02)


@pytest.mark.parametrize(
    ("round_trip", "longest_seconds"), [(0.0002, LEAST_SECONDS), (0.05, LEAST_SECONDS), (0.5, 10.0)]
)
def test_however_much_is_throttled_an_attempt_goes_out_now_and_then(round_trip: float, longest_seconds: float) -> None:
    window = Window(0.0, 64)
    window.taken(round_trip, 0.0)
    for n in range(200):
        window.throttled(float(n), float(n))
    window.sent(0, 200.0)
    assert window.wait_seconds(0, 200.0) == pytest.approx(longest_seconds, abs=MADE_UP_SECONDS)


EVENTS = st.lists(st.sampled_from(["taken", "throttled", "restart", "limit"]), max_size=200)


@given(
    EVENTS, st.floats(0, 20), st.integers(20, 500), st.lists(st.floats(0, 100), min_size=200, max_size=200, unique=True)
)
def test_the_bounds_hold_whatever_happens(events: list[str], least: float, most: int, times: list[float]) -> None:
    window = Window(least, most)
    for event, now in zip(events, sorted(times), strict=False):
        match event:
            case "taken":
                window.taken(0.02, now)
            case "throttled":
                window.throttled(now, now)
            case "restart":
                window.restart()
            case _:
                window.limit(least / 2, most - 10)
        assert max(window.least, UNKNOWN_SECONDS / LEAST_SECONDS) <= window.size + 1e-9
        assert window.size <= window.most
        assert window.wait_seconds(most + 1, now) is None
        assert window.throttled(now - 1.0, now) or window.size > 0.0


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=100), st.floats(1, 1_000))
def test_a_bucket_gives_no_more_than_its_rate_and_a_second_of_burst(takes: list[float], rate: float) -> None:
    bucket, now, taken = Bucket(rate), 0.0, 0.0
    for units in takes:
        now += bucket.wait_seconds(now)
        assert bucket.wait_seconds(now) == 0.0
        bucket.take(units)
        taken += units
        assert taken <= rate * (now + 1.0) + units + 1e-3


def test_a_bucket_without_rate_never_waits() -> None:
    bucket = Bucket(None)
    bucket.take(1e12)
    assert bucket.wait_seconds(0.0) == 0.0


def test_a_new_rate_counts_from_now_on() -> None:
    bucket = Bucket(None)
    bucket.limit(10.0)
    bucket.take(5)
    assert bucket.wait_seconds(0.0) == pytest.approx(0.5)
    bucket.limit(5.0)
    assert bucket.wait_seconds(0.0) == pytest.approx(1.0)


def test_the_flow_waits_for_whatever_is_shortest() -> None:
    flow = Flow(Window(1, 8), Bucket(2.0), Bucket(1_000.0))
    for _ in range(3):
        assert flow.wait_seconds(0.0) == 0.0
        flow.sent(100, 0.0)
    assert flow.wait_seconds(0.0) == pytest.approx(0.5)
    flow.sent(10_000, 0.5)
    assert flow.wait_seconds(0.5) is None
    flow.returned()
    assert flow.wait_seconds(0.5) == pytest.approx(9.3, abs=0.5)


def test_the_outstanding_limit_is_what_gets_done_within_the_ttl_with_a_floor() -> None:
    assert outstanding_limit(Measured(0, 0.0), 3_600, 1_000) == 1_000
    assert outstanding_limit(Measured(100, 10.0), 3_600, 1_000) == 28_800
    assert outstanding_limit(Measured(1, 100.0), 3_600, 1_000) == 1_000


def test_a_recent_rate_is_the_mean_since_the_beginning_while_that_is_less_than_a_minute() -> None:
    recent = Recent(since=1_000.0)
    assert recent.rate(1_005.0) is None
    for second in range(20):
        recent.add(5, 1_000.0 + second)
    assert recent.rate(1_020.0) == 5.0
    assert recent.rate(1_040.0) == 2.5


def test_a_recent_rate_forgets_what_is_longer_ago_than_a_minute() -> None:
    recent = Recent(since=0.0)
    for tenth in range(6_000):
        recent.add(10, tenth / 10)
    assert recent.rate(600.0) == pytest.approx(100.0, rel=0.02)
    for straggler in range(4):
        recent.add(1, 640.0 + 10 * straggler)
    assert recent.rate(670.0) == pytest.approx(4 / 60)
    assert recent.rate(731.0) is None


def test_a_rate_just_after_the_beginning_does_not_promise_too_much() -> None:
    recent = Recent(since=10.0)
    recent.add(50, 10.001)
    assert recent.rate(10.001) == 50.0


def test_what_ended_lately_is_summed_over_its_time_and_then_forgotten() -> None:
    lately = Lately(300.0)
    assert lately.measured(5.0) == Measured(0, 0.0)
    lately.add(3, 10.0)
    assert lately.measured(10.0) == Measured(3, 1.0)
    for second in range(11, 310):
        lately.add(2, float(second))
        lately.add(1, second + 0.5)
    assert lately.measured(310.0) == Measured(3 + 3 * 299, 300.0)
    assert lately.measured(311.0) == Measured(3 * 299, 300.0)
    assert lately.measured(1_000.0) == Measured(0, 0.0)
