"""The life of a job is this table; a move that is not in it is a bug with a story.

    accepted   in the ledger, fsynced; nothing of it has been sent
    claimed    may be on the wire; recorded before the first byte is sent
    ambiguous  was claimed, and nobody knows whether the service took it
    submitted  the service took it and its receipt is recorded
    the rest   final: nothing leaves them, but for an output that turns up after `expired`

Pure: no I/O, no clock. The README's diagram is printed from here (`mermaid`) and a test compares them.
"""

from enum import StrEnum
from types import MappingProxyType

from dispatcher.model import FINAL_STATES, State


class Event(StrEnum):
    """What can happen to a job."""

    CLAIM = "claimed for sending"
    RELEASE = "not sent, or refused for now"
    RECEIPT = "202, receipt durable"
    REFUSE = "refused for good, or attempts used up"
    LOSE = "sent, answer unknown; or the process died"
    OUTPUT = "output found"
    NOTHING = "nothing found after a wait"
    FAILURE = "failure found, and no output"
    DEADLINE = "deadline passed"
    CANCEL = "cancelled by an operator"


TABLE = MappingProxyType(
    {
        (State.ACCEPTED, Event.CLAIM): State.CLAIMED,
        (State.ACCEPTED, Event.DEADLINE): State.EXPIRED,
        (State.ACCEPTED, Event.CANCEL): State.CANCELLED,
        (State.CLAIMED, Event.RELEASE): State.ACCEPTED,
        (State.CLAIMED, Event.RECEIPT): State.SUBMITTED,
        (State.CLAIMED, Event.REFUSE): State.DEAD,
        (State.CLAIMED, Event.LOSE): State.AMBIGUOUS,
        (State.AMBIGUOUS, Event.OUTPUT): State.SUCCEEDED,
        (State.AMBIGUOUS, Event.NOTHING): State.ACCEPTED,
        (State.AMBIGUOUS, Event.DEADLINE): State.EXPIRED,
        (State.SUBMITTED, Event.OUTPUT): State.SUCCEEDED,
        (State.SUBMITTED, Event.FAILURE): State.FAILED,
        (State.SUBMITTED, Event.DEADLINE): State.EXPIRED,
        (State.EXPIRED, Event.OUTPUT): State.SUCCEEDED,
    }
)


class IllegalMoveError(AssertionError):
    """A move that the table does not have."""


def after(state: State, event: Event) -> State:
    """The state that follows, or IllegalMoveError."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalMoveError(f"a job that is {state} cannot see {event.name}: {event}") from None


def allowed(prior: State, state: State) -> bool:
    """Whether some event leads from `prior` to `state`."""
    return any(before == prior and then == state for (before, _), then in TABLE.items())


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    moves = [f"    {before} --> {then}: {event}" for (before, event), then in TABLE.items()]
    ends = [f"    {state} --> [*]" for state in FINAL_STATES]
    return "\n".join(["stateDiagram-v2", "    [*] --> accepted: in the ledger, fsynced", *moves, *ends])
