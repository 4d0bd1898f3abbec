"""The table of a job's life: whatever happens, a job moves along it or not at all."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.lifecycle import TABLE, Event, IllegalMoveError, after, allowed, mermaid
from dispatcher.model import FINAL_STATES, OUTSTANDING_STATES, State


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_any_sequence_of_events_moves_along_the_table_or_changes_nothing(events: list[Event]) -> None:
    state = State.ACCEPTED
    for event in events:
        if (state, event) in TABLE:
            assert allowed(state, after(state, event))
            state = after(state, event)
        else:
            with pytest.raises(IllegalMoveError, match=event.name):
                after(state, event)


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_a_final_state_is_left_only_by_an_output_after_expiry(events: list[Event]) -> None:
    state, path = State.ACCEPTED, [State.ACCEPTED]
    for event in events:
        if (state, event) in TABLE:
            state = after(state, event)
            path.append(state)
    ends = [pair for pair in pairwise(path) if pair[0] in FINAL_STATES]
    assert ends in ([], [(State.EXPIRED, State.SUCCEEDED)])


def test_final_states_have_no_way_out_but_from_expired_to_succeeded() -> None:
    ways = {(state, event, then) for (state, event), then in TABLE.items() if state in FINAL_STATES}
    assert ways == {(State.EXPIRED, Event.OUTPUT, State.SUCCEEDED)}


def test_every_state_can_be_reached_from_accepted() -> None:
    reached: set[State] = {State.ACCEPTED}
    while more := {then for (state, _), then in TABLE.items() if state in reached} - reached:
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize("state", OUTSTANDING_STATES)
def test_from_every_outstanding_state_there_is_a_way_to_an_end(state: State) -> None:
    reached = {state}
    while more := {then for (before, _), then in TABLE.items() if before in reached} - reached:
        reached |= more
    assert State.SUCCEEDED in reached
    assert State.EXPIRED in reached


@given(st.sampled_from(State), st.sampled_from(State))
def test_allowed_says_what_the_table_says(prior: State, state: State) -> None:
    assert allowed(prior, state) == any((prior, event) in TABLE and TABLE[prior, event] == state for event in Event)


def test_states_are_outstanding_or_final_and_never_both() -> None:
    assert set(OUTSTANDING_STATES) | set(FINAL_STATES) == set(State)
    assert not set(OUTSTANDING_STATES) & set(FINAL_STATES)


def test_nothing_is_sent_that_was_not_claimed() -> None:
    assert {state for (state, _), then in TABLE.items() if then is State.SUBMITTED} == {State.CLAIMED}
    assert {state for (state, _), then in TABLE.items() if then is State.CLAIMED} == {State.ACCEPTED}


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in TABLE} == set(Event)


def test_the_diagram_shows_every_move_and_every_end() -> None:
    lines = mermaid().splitlines()
    assert len(lines) == 2 + len(TABLE) + len(FINAL_STATES)
    assert "    claimed --> submitted: 202, receipt durable" in lines
