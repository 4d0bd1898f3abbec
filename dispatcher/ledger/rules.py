"""What both ledgers decide alike, apart from how they keep it."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, assert_never

from dispatcher.lifecycle import TABLE, IllegalMoveError
from dispatcher.model import (
    FINAL_STATES,
    Cursor,
    Error,
    FailureReason,
    Intake,
    JobFile,
    JobKey,
    Lost,
    Move,
    NewJob,
    Rejection,
    Released,
    Reopened,
    Settled,
    State,
    Submitted,
)

START: Final = Cursor(0, 0, sha256().hexdigest())
"""Where a new file's cursor stands."""

CANCELLED: Final = Error(FailureReason.CANCELLED, "cancelled by an operator")
"""Why the jobs of a cancelled file ended."""

_SETTLING: Final = frozenset((prior, state) for (prior, _), state in TABLE.items() if state in FINAL_STATES)

_UNSENT_ENDS: Final = (State.CANCELLED, State.EXPIRED)


def prior_of(move: Move) -> State:
    """The state that the ledger must hold for the move to be legal. IllegalMoveError if the table has no such move."""
    match move:
        case Submitted() | Released() | Lost():
            return State.CLAIMED
        case Reopened():
            return State.AMBIGUOUS
        case Settled():
            return settling(move.key, move.prior, move.state)
        case _:
            assert_never(move)


def settling(key: JobKey, prior: State, state: State) -> State:
    """`prior`, if a job may be settled from it as `state`; else IllegalMoveError."""
    if (prior, state) not in _SETTLING:
        raise IllegalMoveError(f"job {tuple(key)} cannot be settled from {prior} as {state}")
    return prior


def first_state(file: JobFile) -> State:
    """Where the jobs of a file begin: those of a rebuilt one may have been sent."""
    return State.AMBIGUOUS if file.rebuilt else State.ACCEPTED


def assert_end(state: State) -> None:
    """ValueError if `end_unsent` cannot end a job so."""
    if state not in _UNSENT_ENDS:
        raise ValueError(f"what was not sent cannot end as {state}; it is cancelled or expires")


def is_known(file: JobFile, batch: Intake) -> bool:
    """Whether the batch was accepted already. ValueError if only a part of it was, which no reader may bring about.

    A last batch that brings nothing may stand at the cursor itself: the end of a file is seen after its last line.
    """
    if batch.cursor.offset == file.cursor.offset and batch.final and not file.intake_done:
        return bool(batch.jobs or batch.rejections)
    if batch.cursor.offset <= file.cursor.offset:
        return True
    if any(each[0].line <= file.cursor.line for each in (batch.jobs, batch.rejections) if each):
        raise ValueError(f"the batch begins before line {file.cursor.line}, to which job file {file.file_id} is read")
    return False


def duplicate(job: NewJob, first_line: int) -> Rejection:
    """The rejection of a job whose id was used in `first_line`."""
    message = f"line {first_line} has the same id; the first one counts"
    return Rejection(job.line, job.id, FailureReason.DUPLICATE_ID, message)


def parted(jobs: Sequence[NewJob], known: dict[str, int]) -> tuple[list[NewJob], list[Rejection]]:
    """The jobs to add, and a rejection for each whose id is in `known` (id to line) or earlier in `jobs`."""
    lines = dict(known)
    fresh = [job for job in jobs if lines.setdefault(job.id, job.line) == job.line]
    return fresh, [duplicate(job, lines[job.id]) for job in jobs if lines[job.id] != job.line]
