"""Claims and moves as SQL. Each public function is one call of the Ledger, inside a transaction.

Every update is a compare-and-set: it names the state it starts from, and the number of rows that it changed must be
the number of moves. If it is not, IllegalMoveError is raised and the caller of the call rolls back all of it.

Over 300 lines: a statement and a step for each kind of move.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, assert_never

from dispatcher.ledger import rules
from dispatcher.ledger.codes import CODES, INLINE, TRANSPORT_CODES, TRANSPORTS, state_of
from dispatcher.ledger.store import Store
from dispatcher.lifecycle import IllegalMoveError
from dispatcher.model import (
    Claim,
    FileId,
    JobKey,
    Lost,
    Move,
    QueueId,
    Released,
    Reopened,
    Settled,
    State,
    Submitted,
    Transport,
)

# The last two parameters of an update are its queue and line; where a job may be new, the queue's mark follows.
_CLAIMED = "WHERE queue = ? AND line = ? AND (state = 2 OR (state = 0 AND line <= ?))"
_ACCEPTED = "WHERE queue = ? AND line = ? AND (state = 1 OR (state = 0 AND line > ?))"

_SUBMIT = f"""
    UPDATE job SET state = 4, submitted_at = ?, due_at = ?, submission_seconds = ?, out_folder = ?, out_name = ?,
                   fail_folder = ?, fail_name = ? {_CLAIMED}
"""  # noqa: S608
_RELEASE = f"""
    UPDATE job SET state = 1, due_at = ?, faults = faults + ?, attempts = attempts - ?,
                   transport = coalesce(?, transport) {_CLAIMED}
"""  # noqa: S608
_LOSE = f"UPDATE job SET state = 3, maybe_sent = 1, due_at = ? {_CLAIMED}"  # noqa: S608
_REOPEN = "UPDATE job SET state = 1, due_at = ? WHERE queue = ? AND line = ? AND state = 3"
_SETTLE = "UPDATE job SET state = ?, completed_at = ?, error_code = ?, error_message = ?"
_SETTLE_CLAIMED = f"{_SETTLE} {_CLAIMED}"
_SETTLE_ACCEPTED = f"{_SETTLE}, attempts = attempts * (state <> 0) {_ACCEPTED}"
_SETTLE_OTHER = f"{_SETTLE} WHERE queue = ? AND line = ? AND state = ?"
_SET_OUTPUT = "UPDATE job SET out_folder = ?, out_name = ? WHERE queue = ? AND line = ?"

_CLAIMABLE = "SELECT line, file, shard, offset, length, size, transport"
_DUE = f"""
    {_CLAIMABLE}, attempts, faults, maybe_sent FROM job
    WHERE queue = ? AND state = 1 AND due_at <= ? ORDER BY due_at, line LIMIT ?
"""
# A new job has no history to read: that saves a fifth of what reading it costs.
_FRESH = f"{_CLAIMABLE} FROM job WHERE queue = ? AND line > ? AND state = 0 ORDER BY line LIMIT ?"
_CLAIM_DUE = "UPDATE job SET state = 2, attempts = attempts + 1, transport = ? WHERE queue = ? AND line = ?"
_REROUTE = "UPDATE job SET transport = ? WHERE queue = ? AND line = ?"

Step = Callable[[Store, Sequence[Any]], None]
"""Applies moves of one kind; for `Settled`, of one prior."""


def claim(store: Store, queue: QueueId, limit: int, now: float, redirect: Transport | None) -> list[Claim]:
    """Claims what is due again, then new jobs; nothing of a cancelled file, which may hold accepted jobs while they are ended."""
    if store.cancelled_at(queue) is not None:
        return []
    route = None if redirect is None else TRANSPORT_CODES[redirect]
    due = _claim_due(store, queue, limit, now, route)
    claims = due + _claim_fresh(store, queue, limit - len(due), route)
    if claims:
        store.moved.append(((queue, State.ACCEPTED, State.CLAIMED), len(claims)))
    return claims


def next_due_at(store: Store, queue: QueueId) -> float | None:
    """When the queue's next accepted job may be claimed."""
    if store.cancelled_at(queue) is not None:
        return None
    sql = "SELECT 1 FROM job WHERE queue = ? AND line > ? AND state = 0 LIMIT 1"
    if store.connection.execute(sql, (queue, store.mark(queue))).fetchone():
        return 0.0
    sql = "SELECT due_at FROM job WHERE queue = ? AND state = 1 ORDER BY due_at LIMIT 1"
    row = store.connection.execute(sql, (queue,)).fetchone()
    return row[0] if row else None


def record(store: Store, moves: Sequence[Move]) -> None:
    """Applies the moves, in their order where a job has several."""
    returned: list[Move] = []
    for step, group in _grouped(moves):
        step(store, group)
        if step in (_release, _reopen):
            returned += group
    _cancel_returned(store, returned)


def recover(store: Store, queues: Sequence[QueueId], due_at: float) -> int:
    """Makes every claimed job of `queues` ambiguous; how many. What waits is due at `due_at`, too, if it was due later."""
    sql = """
        UPDATE job SET state = 3, maybe_sent = 1, due_at = ? WHERE queue = ? AND line <= ? AND state IN (0, 2)
    """
    total = 0
    for queue in queues:
        jobs = store.connection.execute(sql, (due_at, queue, store.mark(queue))).rowcount
        store.moved.append(((queue, State.CLAIMED, State.AMBIGUOUS), jobs))
        total += jobs
    for waiting in ("state = 1", "state = 3"):  # each has an index of its own
        store.connection.execute(f"UPDATE job SET due_at = ? WHERE {waiting} AND due_at > ?", (due_at, due_at))  # noqa: S608
    return total


# --- claims ----------------------------------------------------------------------------------------------------------


def _claim_due(store: Store, queue: QueueId, limit: int, now: float, route: int | None) -> list[Claim]:
    rows = store.connection.execute(_DUE, (queue, now, limit)).fetchall()
    claims = [
        _claim(queue, place, route, attempts + 1, faults, maybe_sent=bool(maybe_sent))
        for *place, attempts, faults, maybe_sent in rows
    ]
    updates = [(TRANSPORT_CODES[claim.transport], *claim.key) for claim in claims]
    store.connection.executemany(_CLAIM_DUE, updates)
    return claims


def _claim_fresh(store: Store, queue: QueueId, limit: int, route: int | None) -> list[Claim]:
    if limit <= 0:
        return []
    rows = store.connection.execute(_FRESH, (queue, store.mark(queue), limit)).fetchall()
    _pass_over(store, queue, rows[-1][0] if len(rows) == limit else _last_line(store, queue))
    if route is not None:
        store.connection.executemany(_REROUTE, [(route, queue, row[0]) for row in rows if row[6] == INLINE])
    return [_claim(queue, row, route, 1, 0, maybe_sent=False) for row in rows]


def _pass_over(store: Store, queue: QueueId, line: int) -> None:
    if line > store.mark(queue):
        store.move_mark(queue, line)


def _last_line(store: Store, queue: QueueId) -> int:
    """The queue's end: a claim that takes all that is new moves past what was cancelled, too, so that no later one reads it again."""
    (line,) = store.connection.execute("SELECT max(line) FROM job WHERE queue = ?", (queue,)).fetchone()
    return line or 0


def _claim(
    queue: QueueId, row: Sequence[Any], route: int | None, attempt: int, faults: int, *, maybe_sent: bool
) -> Claim:
    line, file, shard, offset, length, size, transport = row
    return Claim(
        key=JobKey(queue, line),
        file_id=FileId(file),
        shard=shard,
        offset=offset,
        length=length,
        size_bytes=size,
        transport=TRANSPORTS[transport if route is None or transport != INLINE else route],
        attempt=attempt,
        faults=faults,
        maybe_sent=maybe_sent,
    )


# --- moves -----------------------------------------------------------------------------------------------------------


def _grouped(moves: Sequence[Move]) -> Iterator[tuple[Step, list[Move]]]:
    """The moves by the statement that applies them. Where a job has several their order counts, so only neighbours are grouped."""
    steps = [(_step(move), move) for move in moves]
    if len({step for step, _ in steps}) > 1 and len({move.key for move in moves}) == len(moves):
        steps.sort(key=lambda pair: pair[0].__name__)
    for step, pairs in groupby(steps, key=itemgetter(0)):
        yield step, [move for _, move in pairs]


def _step(move: Move) -> Step:
    match move:
        case Submitted():
            return _submit
        case Settled():
            return _SETTLING[rules.settling(move.key, move.prior, move.state)]
        case Released():
            return _release
        case Lost():
            return _lose
        case Reopened():
            return _reopen
        case _:
            assert_never(move)


def _submit(store: Store, moves: Sequence[Submitted]) -> None:
    place, mark = store.place, store.mark
    rows = [
        (
            move.submitted_at,
            move.deadline_at,
            move.seconds,
            *place(move.receipt.output_location),
            *place(move.receipt.failure_location),
            *move.key,
            mark(move.key.queue),
        )
        for move in moves
    ]
    _update(store, _SUBMIT, rows, moves, State.CLAIMED)
    store.count(State.CLAIMED, State.SUBMITTED, (move.key for move in moves))


def _release(store: Store, moves: Sequence[Released]) -> None:
    rows = [
        (
            move.due_at,
            move.fault,
            move.unsent,
            None if move.transport is None else TRANSPORT_CODES[move.transport],
            *move.key,
            store.mark(move.key.queue),
        )
        for move in moves
    ]
    _update(store, _RELEASE, rows, moves, State.CLAIMED)
    store.count(State.CLAIMED, State.ACCEPTED, (move.key for move in moves))


def _lose(store: Store, moves: Sequence[Lost]) -> None:
    rows = [(move.due_at, *move.key, store.mark(move.key.queue)) for move in moves]
    _update(store, _LOSE, rows, moves, State.CLAIMED)
    store.count(State.CLAIMED, State.AMBIGUOUS, (move.key for move in moves))


def _reopen(store: Store, moves: Sequence[Reopened]) -> None:
    _update(store, _REOPEN, [(move.due_at, *move.key) for move in moves], moves, State.AMBIGUOUS)
    store.count(State.AMBIGUOUS, State.ACCEPTED, (move.key for move in moves))


def _settle_claimed(store: Store, moves: Sequence[Settled]) -> None:
    _settle(store, _SETTLE_CLAIMED, State.CLAIMED, moves, [store.mark(move.key.queue) for move in moves])


def _settle_accepted(store: Store, moves: Sequence[Settled]) -> None:
    _settle(store, _SETTLE_ACCEPTED, State.ACCEPTED, moves, [store.mark(move.key.queue) for move in moves])


def _settle_ambiguous(store: Store, moves: Sequence[Settled]) -> None:
    _settle(store, _SETTLE_OTHER, State.AMBIGUOUS, moves, [CODES[State.AMBIGUOUS]] * len(moves))


def _settle_submitted(store: Store, moves: Sequence[Settled]) -> None:
    _settle(store, _SETTLE_OTHER, State.SUBMITTED, moves, [CODES[State.SUBMITTED]] * len(moves))


def _settle_expired(store: Store, moves: Sequence[Settled]) -> None:
    _settle(store, _SETTLE_OTHER, State.EXPIRED, moves, [CODES[State.EXPIRED]] * len(moves))


_SETTLING: dict[State, Step] = {
    State.ACCEPTED: _settle_accepted,
    State.CLAIMED: _settle_claimed,
    State.AMBIGUOUS: _settle_ambiguous,
    State.SUBMITTED: _settle_submitted,
    State.EXPIRED: _settle_expired,
}


def _settle(store: Store, sql: str, prior: State, moves: Sequence[Settled], guards: Sequence[int]) -> None:
    rows = [
        (
            CODES[move.state],
            move.completed_at,
            None if move.error is None else move.error.code,
            None if move.error is None else move.error.message,
            *move.key,
            guard,
        )
        for move, guard in zip(moves, guards, strict=True)
    ]
    _update(store, sql, rows, moves, prior)
    found = [(*store.place(move.output_location), *move.key) for move in moves if move.output_location is not None]
    store.connection.executemany(_SET_OUTPUT, found)
    for (queue, state), jobs in Counter((move.key.queue, move.state) for move in moves).items():
        store.moved.append(((queue, prior, state), jobs))


def _cancel_returned(store: Store, returned: Sequence[Move]) -> None:
    """Ends what these moves left accepted though its file is cancelled."""
    ended = Counter[QueueId]()
    for queue, line in {move.key for move in returned}:
        at = store.cancelled_at(queue)
        if at is not None:
            values = (CODES[State.CANCELLED], at, rules.CANCELLED.code, rules.CANCELLED.message, queue, line)
            ended[queue] += store.connection.execute(
                f"{_SETTLE} WHERE queue = ? AND line = ? AND state = 1", values
            ).rowcount
    store.moved.extend(((queue, State.ACCEPTED, State.CANCELLED), jobs) for queue, jobs in ended.items())


def _update(store: Store, sql: str, rows: Sequence[tuple[Any, ...]], moves: Sequence[Move], prior: State) -> None:
    changed = store.connection.executemany(sql, rows).rowcount
    if changed != len(moves):
        raise IllegalMoveError(_illegal(store, moves, prior, len(moves) - changed))


def _illegal(store: Store, moves: Sequence[Move], prior: State, missing: int) -> str:
    text = f"{missing} of {len(moves)} {type(moves[0]).__name__} found no job that is {prior}"
    return f"{text}; job {tuple(moves[0].key)} is {_state_now(store, moves[0].key)}" if len(moves) == 1 else text


def _state_now(store: Store, key: JobKey) -> str:
    row = store.connection.execute("SELECT state FROM job WHERE queue = ? AND line = ?", key).fetchone()
    return "unknown" if row is None else state_of(row[0], key.line, store.mark(key.queue))
