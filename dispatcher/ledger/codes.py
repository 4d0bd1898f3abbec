"""How states, transports and locations stand in a row."""

from typing import Final

from dispatcher.model import State, Transport

NEW: Final = 0
AGAIN: Final = 1
CLAIMED: Final = 2
AMBIGUOUS: Final = 3
SUBMITTED: Final = 4
EXPIRED: Final = 7

CODES: Final = {
    State.ACCEPTED: AGAIN,
    State.CLAIMED: CLAIMED,
    State.AMBIGUOUS: AMBIGUOUS,
    State.SUBMITTED: SUBMITTED,
    State.SUCCEEDED: 5,
    State.FAILED: 6,
    State.EXPIRED: EXPIRED,
    State.DEAD: 8,
    State.CANCELLED: 9,
}
STATES: Final = {code: state for state, code in CODES.items()}

INLINE: Final = 0
TRANSPORTS: Final = (Transport.INLINE, Transport.S3, Transport.REFERENCE)
TRANSPORT_CODES: Final = {transport: code for code, transport in enumerate(TRANSPORTS)}


def state_of(code: int, line: int, claimed_through: int) -> State:
    """The state of a row, the mark of its queue considered."""
    if code == NEW:
        return State.CLAIMED if line <= claimed_through else State.ACCEPTED
    return STATES[code]


def split(location: str) -> tuple[str, str]:
    """A location as folder (up to and with the last `/`) and name; joined they are the location again."""
    folder, slash, name = location.rpartition("/")
    return folder + slash, name
