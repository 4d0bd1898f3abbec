"""When a file of the inbox stands still."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sources.settling import Entry, Look, Settling

A = Entry(mtime_ns=1, name="a.jsonl", size=10, inode=1)
B = Entry(mtime_ns=2, name="b.jsonl", size=10, inode=2)


def at(settling: Settling, now: float, *entries: Entry) -> Look:
    """An observation that takes no time."""
    return settling.observe(entries, now, now)


def test_a_file_is_ready_once_it_was_seen_unchanged_for_the_settle_time() -> None:
    settling = Settling(2.0)
    assert at(settling, 100.0, A) == Look([], 102.0)
    assert at(settling, 101.9, A) == Look([], 102.0)
    assert at(settling, 102.0, A) == Look([A], None)


def test_every_change_begins_the_wait_again() -> None:
    settling = Settling(2.0)
    at(settling, 0.0, A)
    for now, changed in enumerate([A._replace(size=11), A._replace(mtime_ns=9), A._replace(inode=7)], start=1):
        assert at(settling, float(now), changed) == Look([], now + 2.0)


def test_a_file_that_was_away_begins_anew() -> None:
    settling = Settling(2.0)
    at(settling, 0.0, A)
    at(settling, 1.0)
    assert at(settling, 5.0, A) == Look([], 7.0)


def test_what_was_forgotten_begins_anew() -> None:
    settling = Settling(2.0)
    at(settling, 0.0, A)
    settling.forget()
    assert at(settling, 5.0, A) == Look([], 7.0)


def test_a_slow_observation_makes_the_wait_longer_never_shorter() -> None:
    settling = Settling(2.0)
    assert settling.observe([A], 0.0, 30.0) == Look([], 32.0)
    assert settling.observe([A], 30.1, 60.0) == Look([], 32.0)
    assert settling.observe([A], 60.1, 60.2) == Look([A], None)


def test_the_oldest_file_comes_first_then_the_name_decides() -> None:
    twin = A._replace(name="0.jsonl", inode=3)
    assert at(Settling(0.0), 0.0, B, A, twin).ready == [twin, A, B]


def test_a_file_that_is_not_taken_stays_ready() -> None:
    settling = Settling(1.0)
    at(settling, 0.0, A)
    assert [at(settling, now, A).ready for now in (1.0, 2.0, 3.0)] == [[A]] * 3


def test_the_next_observation_is_due_when_the_first_of_those_that_wait_may_be_ready() -> None:
    settling = Settling(2.0)
    at(settling, 0.0, A)
    assert at(settling, 0.5, A, B) == Look([], 2.0)
    assert at(settling, 2.0, A, B) == Look([A], 2.5)


@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.0, 3.0), st.booleans()), max_size=40))
def test_a_ready_file_did_not_change_for_at_least_the_settle_time(steps: list[tuple[float, float, bool]]) -> None:
    """Each step: a pause, how long the observation takes, and whether the file changes right after it."""
    settling, now, size, first_seen_at = Settling(2.0), 0.0, 0, None
    for pause, takes, changes in steps:
        began_at, now = now + pause, now + pause + takes
        ready = settling.observe([A._replace(size=size)], began_at, now).ready
        assert not ready or (first_seen_at is not None and began_at - first_seen_at > 2.0 - 1e-9)
        first_seen_at = now if first_seen_at is None else first_seen_at
        if changes:
            size, first_seen_at = size + 1, None
