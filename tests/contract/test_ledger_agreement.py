"""Both ledgers, driven by the same random calls, must answer alike, and their tallies must be true, after every call.

The SQLite one is closed and opened again on the way, which nobody may notice.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.interfaces import Ledger
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.lifecycle import IllegalMoveError
from dispatcher.model import (
    FINAL_STATES,
    OUTSTANDING_STATES,
    Change,
    EndpointName,
    Error,
    FailureReason,
    FileId,
    Intake,
    JobFile,
    JobRow,
    Lost,
    Move,
    NewJob,
    Receipt,
    Rejection,
    Released,
    Reopened,
    Settled,
    State,
    Submitted,
    Transport,
)
from tests.contract.test_ledger import A, B, a_batch, a_file, a_job, assert_tallies_are_true

Call = Callable[[Ledger], Awaitable[Any]]
TIMES = (0.0, 1.0, 2.0, 2.5)
FOLDERS = ("s3://b/x/", "https://h/b/y/", "")


class Pair:
    """The two ledgers; every call goes to both and gives one answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.memory = MemoryLedger()
        self.sqlite: Ledger = self.memory
        self.heard: tuple[list[Change], list[Change]] = ([], [])
        self.entered: Counter[tuple[EndpointName, State]] = Counter()

    async def open(self) -> None:
        self.sqlite = await open_sqlite(self._path)
        self.sqlite.subscribe(self.heard[1].extend)

    async def call(self, call: Call) -> Any:
        answers = [await outcome(call(ledger)) for ledger in (self.memory, self.sqlite)]
        assert answers[0] == answers[1]
        assert summed(self.heard[0]) == summed(self.heard[1])
        for change in self.heard[0]:
            self.entered[change.queue.endpoint, change.state] += change.jobs
        for heard in self.heard:
            heard.clear()
        return answers[0]


def summed(changes: list[Change]) -> Counter[Any]:
    """What was told, however many commits it took."""
    sums: Counter[Any] = Counter()
    for change in changes:
        sums[change[:3]] += change.jobs
    return sums


async def outcome(answer: Awaitable[Any]) -> Any:
    """What a call returns, or the kind of the mistake it was."""
    try:
        return await answer
    except (IllegalMoveError, ValueError) as error:
        return type(error)


async def everything(ledger: Ledger) -> list[Any]:
    """All that can be asked."""
    queues = [queue.queue_id for queue in ledger.queues()]
    files = [file.file_id for file in await ledger.files()]
    return [
        ledger.queues(),
        ledger.totals(),
        ledger.lines(),
        await ledger.files(),
        [await ledger.file(FileId(file)) for file in range(4)],
        [ledger.tally(queue) for queue in queues],
        [await ledger.next_due_at(queue) for queue in queues],
        await ledger.shards(),
        [await ledger.shard(queue, number) for queue in queues for number in range(4)],
        [await ledger.open_jobs(queue, number) for queue in queues for number in range(4)],
        [await ledger.expired_shards(file) for file in files],
        [await ledger.ambiguous(now, 7) for now in TIMES],
        await ledger.next_ambiguous_at(),
        [await ledger.rows(file, after, 40) for file in files for after in (0, 5)],
        [await ledger.rejections(file, 3, 5) for file in files],
        [await ledger.find(name) for name in ("1", "x", "4")],
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_both_ledgers_answer_alike(random: Random, steps: int) -> None:
    # With a loop of its own and not `asyncio.run`, which leaves its thread without one: other tests may look for it.
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(drive(random, steps, Path(folder) / "ledger"))


async def drive(random: Random, steps: int, path: Path) -> None:
    pair = Pair(path)
    pair.memory.subscribe(pair.heard[0].extend)
    await pair.open()
    try:
        await pair.call(lambda ledger: ledger.add_file(a_file("first")))
        for _ in range(steps):
            await random.choice(ACTS)(pair, random)
            await pair.call(everything)
            await assert_tallies_are_true(pair.sqlite)
            assert pair.sqlite.totals() == pair.entered
    finally:
        await pair.sqlite.aclose()


async def add_file(pair: Pair, random: Random) -> None:
    run = random.choice(["first", "second", "third"])
    new = a_file(run, deadline_at=random.choice([None, 5.0]), rebuilt=random.random() < 0.2)
    await pair.call(lambda ledger: ledger.add_file(new))


async def accept(pair: Pair, random: Random) -> None:
    if files := [file for file in await pair.memory.files() if file.published_at is None]:
        batch = random_batch(random, random.choice(files))
        await pair.call(lambda ledger: ledger.accept(batch))


def random_batch(random: Random, file: JobFile) -> Intake:
    """Mostly the file's next lines; now and then lines that were read already, or many, so that shards fill."""
    start = file.cursor.line if random.random() < 0.9 else random.randint(0, file.cursor.line)
    count = random.choice([0, 1, 3, 8, 8, 8, 700])
    jobs: list[NewJob] = []
    bad: list[Rejection] = []
    for line in range(start + 1, start + 1 + count):
        if random.random() < 0.1:
            bad.append(Rejection(line, random.choice([None, "x"]), FailureReason.INVALID_JSON, "bad"))
        else:
            jobs.append(random_job(random, line))
    return a_batch(file.file_id, jobs, bad, final=random.random() < 0.1, at=start + count)


def random_job(random: Random, line: int) -> NewJob:
    name = random.choice(["x", "1", None]) if random.random() < 0.1 else None
    return a_job(line, random.choice([A, A, B]), name, random.choice(list(Transport)))


async def claim(pair: Pair, random: Random) -> None:
    if queues := pair.memory.queues():
        queue = random.choice(queues).queue_id
        limit, now = random.choice([0, 1, 5, 50]), random.choice(TIMES)
        redirect = random.choice([None, None, Transport.S3])
        await pair.call(lambda ledger: ledger.claim(queue, limit, now, redirect))


async def record(pair: Pair, random: Random) -> None:
    rows = [row for file in await pair.memory.files() for row in await pair.memory.rows(file.file_id, 0, 1_000)]
    chosen = random.sample(rows, min(len(rows), random.choice([1, 4, 30])))
    moves = [random_move(random, row) for row in chosen if row.state not in FINAL_STATES or random.random() < 0.05]
    await pair.call(lambda ledger: ledger.record(moves))


def random_move(random: Random, row: JobRow) -> Move:
    """Nearly always one that is legal, or else most calls would be refused."""
    state = row.state if random.random() < 0.99 else random.choice(list(State))
    kinds = [kind for prior, kind in KINDS if prior is state]
    return random.choice(kinds or [dead])(random, row)


def submit(random: Random, row: JobRow) -> Move:
    folder, failure = random.choice(FOLDERS), random.choice([None, *FOLDERS])
    receipt = Receipt(f"{folder}{row.id}.out", None if failure is None else f"{failure}{row.id}")
    at = random.choice(TIMES)
    return Submitted(key=row.key, receipt=receipt, submitted_at=at, deadline_at=at + 9, seconds=at / 8)


def release(random: Random, row: JobRow) -> Move:
    return Released(
        key=row.key,
        due_at=random.choice(TIMES),
        reason=FailureReason.NETWORK,
        fault=random.random() < 0.5,
        unsent=random.random() < 0.5,
        transport=random.choice([None, Transport.S3]),
    )


def lose(random: Random, row: JobRow) -> Move:
    return Lost(key=row.key, due_at=random.choice(TIMES), reason=FailureReason.TIMEOUT)


def reopen(random: Random, row: JobRow) -> Move:
    return Reopened(key=row.key, due_at=random.choice(TIMES))


def dead(random: Random, row: JobRow) -> Move:
    return Settled(
        key=row.key, prior=State.CLAIMED, state=State.DEAD, completed_at=3.0, error=Error("validation_error", "é")
    )


def settle(random: Random, row: JobRow) -> Move:
    return Settled(
        key=row.key,
        prior=row.state,
        state=random.choice([State.SUCCEEDED, State.SUCCEEDED, State.EXPIRED, State.EXPIRED, State.FAILED]),
        completed_at=random.choice(TIMES),
        output_location=random.choice([None, None, "s3://b/z/found.out"]),
    )


def cancel(random: Random, row: JobRow) -> Move:
    return Settled(
        key=row.key, prior=State.ACCEPTED, state=random.choice([State.CANCELLED, State.EXPIRED]), completed_at=1.0
    )


KINDS = [
    (State.ACCEPTED, cancel),
    (State.CLAIMED, submit),
    (State.CLAIMED, submit),
    (State.CLAIMED, release),
    (State.CLAIMED, lose),
    (State.CLAIMED, dead),
    (State.AMBIGUOUS, reopen),
    (State.AMBIGUOUS, settle),
    (State.SUBMITTED, settle),
    (State.EXPIRED, settle),
]


async def recover(pair: Pair, random: Random) -> None:
    await pair.call(lambda ledger: ledger.recover(2.0))


async def publish(pair: Pair, random: Random) -> None:
    """As the core does it: when nothing of the file is outstanding."""
    held = {file.file_id: 0 for file in await pair.memory.files()}
    for queue in pair.memory.queues():
        held[queue.file_id] += sum(pair.memory.tally(queue.queue_id)[state] for state in OUTSTANDING_STATES)
    if done := [file for file, jobs in held.items() if jobs == 0]:
        file, at = random.choice(done), random.choice(TIMES)
        await pair.call(lambda ledger: ledger.published(file, at))


async def end_unsent(pair: Pair, random: Random) -> None:
    files = [file.file_id for file in await pair.memory.files()]
    file, at = random.choice([*files, FileId(99)]), random.choice(TIMES)
    state = random.choice([State.CANCELLED, State.EXPIRED, State.EXPIRED, State.DEAD])
    await pair.call(lambda ledger: ledger.end_unsent(file, state, at, Error("ended", "é")))


async def cancel_file(pair: Pair, random: Random) -> None:
    files = [file.file_id for file in await pair.memory.files()]
    file, at = random.choice([*files, FileId(99)]), random.choice(TIMES)
    await pair.call(lambda ledger: ledger.cancel(file, at))


async def settle_all(pair: Pair, random: Random) -> None:
    """Brings what is under way to an end, so that now and then a file can be published."""
    rows = [row for file in await pair.memory.files() for row in await pair.memory.rows(file.file_id, 0, 9_999)]
    moves = [dead(random, row) for row in rows if row.state is State.CLAIMED]
    late = [settle(random, row) for row in rows if row.state is State.SUBMITTED]
    await pair.call(lambda ledger: ledger.record([*moves, *late]))


async def prune(pair: Pair, random: Random) -> None:
    before, limit = random.choice([1.5, 3.0, 3.0]), random.choice([0, 1, 7, 400, 5_000])
    await pair.call(lambda ledger: ledger.prune(before, limit))


async def open_again(pair: Pair, random: Random) -> None:
    await pair.sqlite.aclose()
    await pair.open()


ACTS = [
    add_file,
    accept,
    accept,
    accept,
    claim,
    claim,
    claim,
    record,
    record,
    record,
    record,
    recover,
    cancel_file,
    end_unsent,
    end_unsent,
    settle_all,
    publish,
    publish,
    prune,
    prune,
    open_again,
]
