"""The contract of `Ledger`, sentence by sentence, on every implementation. Also: the builders that its other tests share."""

from collections.abc import AsyncIterator, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from dispatcher.errors import LedgerFaultError
from dispatcher.interfaces import Ledger
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.lifecycle import IllegalMoveError
from dispatcher.model import (
    Change,
    Claim,
    Cursor,
    EndpointName,
    Error,
    FailureReason,
    FileId,
    Intake,
    JobFile,
    JobKey,
    JobRow,
    Lost,
    Move,
    NewFile,
    NewJob,
    OpenJob,
    Queue,
    QueueId,
    Receipt,
    Rejection,
    Released,
    Reopened,
    RunId,
    Settled,
    State,
    Submitted,
    Transport,
)

A, B = EndpointName("a"), EndpointName("b")
BUSY = FailureReason.THROTTLED


def a_file(run: str = "run1", *, deadline_at: float | None = None, rebuilt: bool = False) -> NewFile:
    return NewFile(
        run_id=RunId(run),
        name="jobs",
        source="/in/jobs.jsonl",
        data_path="/data/jobs.jsonl",
        payload_root="/in",
        size_bytes=10_000,
        taken_at=1.5,
        deadline_at=deadline_at,
        rebuilt=rebuilt,
    )


def a_job(
    line: int, endpoint: EndpointName = A, id: str | None = None, transport: Transport = Transport.INLINE
) -> NewJob:
    return NewJob(
        line=line,
        id=str(line) if id is None else id,
        endpoint=endpoint,
        offset=line * 100,
        length=99,
        size_bytes=80,
        transport=transport,
        has_metadata=line % 2 == 0,
    )


def a_batch(
    file: FileId,
    jobs: Sequence[NewJob],
    rejected: Sequence[Rejection] = (),
    *,
    final: bool = False,
    at: int | None = None,
) -> Intake:
    line = max([job.line for job in jobs] + [each.line for each in rejected]) if at is None else at
    cursor = Cursor(line * 100, line, sha256(str(line).encode()).hexdigest())
    lines = len(jobs) + len(rejected)
    return Intake(file_id=file, jobs=list(jobs), rejections=list(rejected), lines=lines, cursor=cursor, final=final)


def a_receipt(key: JobKey, *, failure: bool = True) -> Receipt:
    folder = f"s3://bucket/out/{key.queue}/"
    return Receipt(f"{folder}{key.line}.out", f"https://s3.example/bucket/fail/{key.line}.err" if failure else None)


def submitted(key: JobKey, *, at: float = 100.0, deadline: float = 500.0) -> Submitted:
    return Submitted(key=key, receipt=a_receipt(key), submitted_at=at, deadline_at=deadline, seconds=0.25)


def settled(key: JobKey, prior: State, state: State, error: Error | None = None) -> Settled:
    return Settled(key=key, prior=prior, state=state, completed_at=200.0, error=error)


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else await open_sqlite(tmp_path / "ledger")
    yield made
    await made.aclose()


async def with_jobs(ledger: Ledger, lines: Iterable[int] = range(1, 6), endpoint: EndpointName = A) -> Queue:
    file = await ledger.add_file(a_file(f"run{len(await ledger.files())}"))
    await ledger.accept(a_batch(file.file_id, [a_job(line, endpoint) for line in lines]))
    return ledger.queues()[-1]


async def claimed(ledger: Ledger, count: int = 5) -> list[JobKey]:
    queue = await with_jobs(ledger, range(1, count + 1))
    return keys(await ledger.claim(queue.queue_id, count, 0.0))


def keys(claims: Iterable[Claim]) -> list[JobKey]:
    return [claim.key for claim in claims]


async def row(ledger: Ledger, key: JobKey) -> JobRow:
    file = next(queue.file_id for queue in ledger.queues() if queue.queue_id == key.queue)
    (found,) = await ledger.rows(file, key.line - 1, 1)
    assert found.key == key
    return found


async def states(ledger: Ledger, file: FileId) -> list[State]:
    return [row.state for row in await ledger.rows(file, 0, 10_000)]


async def assert_tallies_are_true(ledger: Ledger) -> None:
    rows = [row for file in await ledger.files() for row in await ledger.rows(file.file_id, 0, 100_000)]
    for queue in ledger.queues():
        recount = dict.fromkeys(State, 0)
        for each in rows:
            if each.key.queue == queue.queue_id:
                recount[each.state] += 1
        assert ledger.tally(queue.queue_id) == recount


# --- job files -------------------------------------------------------------------------------------------------------


async def test_a_new_file_has_an_empty_cursor(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    assert file.cursor == Cursor(0, 0, sha256().hexdigest())
    assert (file.lines, file.rejected, file.intake_done, file.published_at) == (0, 0, False, None)
    assert (file.run_id, file.source, file.size_bytes, file.taken_at) == ("run1", "/in/jobs.jsonl", 10_000, 1.5)


async def test_files_are_listed_in_the_order_they_were_added(ledger: Ledger) -> None:
    added = [await ledger.add_file(a_file(run)) for run in ("z", "a", "m")]
    assert await ledger.files() == added


async def test_one_file_is_known_as_it_is_now(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    await with_jobs(ledger)
    assert await ledger.file(queue.file_id) == (await ledger.files())[0]
    await ledger.published(queue.file_id, 7.0)
    known = await ledger.file(queue.file_id)
    assert known is not None
    assert (known.published_at, known.lines, known.cursor.line) == (7.0, 5, 5)
    assert await ledger.file(FileId(99)) is None


async def test_a_second_file_with_the_same_run_id_is_a_programming_error(ledger: Ledger) -> None:
    first = await ledger.add_file(a_file())
    with pytest.raises(ValueError, match="run1"):
        await ledger.add_file(a_file())
    assert await ledger.files() == [first]


async def test_published_is_noted_once(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.published(file.file_id, 7.0)
    await ledger.published(file.file_id, 8.0)
    assert (await ledger.files())[0].published_at == 7.0


async def test_a_file_keeps_its_deadline_and_that_it_was_rebuilt(ledger: Ledger) -> None:
    plain = await ledger.add_file(a_file("plain"))
    rebuilt = await ledger.add_file(a_file("rebuilt", deadline_at=99.5, rebuilt=True))
    assert (plain.deadline_at, plain.rebuilt) == (None, False)
    assert (rebuilt.deadline_at, rebuilt.rebuilt) == (99.5, True)
    assert await ledger.files() == [plain, rebuilt]


# --- intake ----------------------------------------------------------------------------------------------------------


async def test_accepted_jobs_are_rows_with_all_that_the_line_said(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    assert await ledger.accept(a_batch(file.file_id, [a_job(4, id="é", transport=Transport.REFERENCE)])) == []
    (found,) = await ledger.rows(file.file_id, 0, 10)
    assert found == JobRow(
        key=JobKey(ledger.queues()[0].queue_id, 4),
        id="é",
        endpoint=A,
        state=State.ACCEPTED,
        shard=0,
        offset=400,
        length=99,
        size_bytes=80,
        transport=Transport.REFERENCE,
        has_metadata=True,
        attempts=0,
        receipt=None,
        submitted_at=None,
        submission_seconds=None,
        completed_at=None,
        due_at=0.0,
        error=None,
    )


async def test_a_batch_moves_the_cursor_and_the_sums(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    bad = Rejection(2, None, FailureReason.INVALID_JSON, "no object")
    batch = a_batch(file.file_id, [a_job(1), a_job(3)], [bad], final=True)
    await ledger.accept(batch)
    (now,) = await ledger.files()
    assert (now.cursor, now.lines, now.rejected, now.intake_done) == (batch.cursor, 3, 1, True)
    assert await ledger.rejections(file.file_id, 0, 10) == [bad]


async def test_a_batch_at_or_before_the_cursor_changes_nothing(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    batches = [a_batch(file.file_id, [a_job(line), a_job(line + 1)]) for line in (1, 3)]
    for batch in batches:
        await ledger.accept(batch)
    before = await ledger.files(), await ledger.rows(file.file_id, 0, 10)
    for batch in batches:
        assert await ledger.accept(batch) == []
    assert (await ledger.files(), await ledger.rows(file.file_id, 0, 10)) == before


async def test_a_batch_that_begins_before_the_cursor_and_ends_after_it_is_a_programming_error(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(1), a_job(2)]))
    bad = Rejection(2, None, FailureReason.INVALID_JSON, "x")
    for batch in (a_batch(file.file_id, [a_job(2), a_job(3)]), a_batch(file.file_id, [a_job(3)], [bad])):
        with pytest.raises(ValueError, match="before line 2"):
            await ledger.accept(batch)
    assert (await ledger.files())[0].lines == 2


async def test_the_end_of_a_file_may_be_seen_after_its_last_line(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(1)]))
    for _ in range(2):
        await ledger.accept(a_batch(file.file_id, [], at=1, final=True))
    (now,) = await ledger.files()
    assert (now.intake_done, now.lines) == (True, 1)


async def test_an_empty_file_ends_at_its_first_cursor(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [], at=0, final=True))
    assert (await ledger.files())[0].intake_done


async def test_a_batch_for_no_file_is_a_programming_error(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no job file"):
        await ledger.accept(a_batch(FileId(9), [a_job(1)]))


async def test_an_id_that_is_in_the_file_is_rejected(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(1, id="x")]))
    (twice,) = await ledger.accept(a_batch(file.file_id, [a_job(2, B, id="x"), a_job(3, id="y")]))
    assert (twice.line, twice.id, twice.reason) == (2, "x", FailureReason.DUPLICATE_ID)
    assert [each.id for each in await ledger.rows(file.file_id, 0, 10)] == ["x", "y"]
    assert await ledger.rejections(file.file_id, 0, 10) == [twice]
    (now,) = await ledger.files()
    assert (now.lines, now.rejected) == (3, 1)


async def test_of_one_id_in_a_batch_the_first_counts_whatever_its_endpoint(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    jobs = [a_job(1, B, id="x"), a_job(2, A, id="x"), a_job(3, A, id="y"), a_job(4, B, id="x")]
    twice = await ledger.accept(a_batch(file.file_id, jobs))
    assert [each.line for each in twice] == [2, 4]
    assert [each.key.line for each in await ledger.rows(file.file_id, 0, 10)] == [1, 3]
    await assert_tallies_are_true(ledger)


async def test_one_duplicate_in_a_long_batch_is_rejected_and_every_other_line_kept_as_it_is(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    jobs = [a_job(line, id="7" if line == 77 else None) for line in range(1, 131)]
    (twice,) = await ledger.accept(a_batch(file.file_id, jobs))
    assert (twice.line, twice.id) == (77, "7")
    kept = [(job.line, job.id, job.offset) for job in jobs if job.line != 77]
    assert [(row.key.line, row.id, row.offset) for row in await ledger.rows(file.file_id, 0, 200)] == kept


async def test_a_batch_of_nothing_but_duplicates_adds_no_job(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    twice = await ledger.accept(a_batch(queue.file_id, [a_job(10 + n, id=str(n)) for n in range(1, 6)]))
    assert len(twice) == 5
    assert ledger.tally(queue.queue_id)[State.ACCEPTED] == 5


async def test_two_files_may_use_the_same_ids(ledger: Ledger) -> None:
    for _ in range(2):
        await with_jobs(ledger)
    assert [file for file, _ in await ledger.find("3")] == [file.file_id for file in await ledger.files()]
    assert await ledger.find("none") == []


async def test_shards_hold_a_thousand_jobs_of_a_queue_in_line_order(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    for start in range(1, 2_701, 450):
        jobs = [a_job(line, B if line % 4 == 0 else A) for line in range(start, start + 450)]
        await ledger.accept(a_batch(file.file_id, jobs))
    rows = await ledger.rows(file.file_id, 0, 5_000)
    by_shard: dict[int, list[JobRow]] = {}
    for each in rows:
        by_shard.setdefault(each.shard, []).append(each)
    assert sorted(len(jobs) for jobs in by_shard.values()) == [25, 675, 1_000, 1_000]
    assert all(len({job.key.queue for job in jobs}) == 1 for jobs in by_shard.values())
    assert list(by_shard) == sorted(by_shard)


async def test_duplicates_take_no_room_in_a_shard(ledger: Ledger) -> None:
    queue = await with_jobs(ledger, range(1, 1_000))
    await ledger.accept(a_batch(queue.file_id, [a_job(1_000, id="5"), a_job(1_001), a_job(1_002)]))
    assert [each.shard for each in await ledger.rows(queue.file_id, 998, 10)] == [0, 0, 1]


async def test_queues_are_made_on_first_use(ledger: Ledger) -> None:
    assert ledger.queues() == []
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(1, A), a_job(2, A)]))
    await ledger.accept(a_batch(file.file_id, [a_job(3, B), a_job(4, A)]))
    assert [(queue.file_id, queue.endpoint) for queue in ledger.queues()] == [(file.file_id, A), (file.file_id, B)]


async def test_the_queues_of_one_file_are_known_apart_from_the_others(ledger: Ledger) -> None:
    files = [await ledger.add_file(a_file(f"{number:016}")) for number in range(3)]
    for file in files:
        await ledger.accept(a_batch(file.file_id, [a_job(1, endpoint=A), a_job(2, endpoint=B)]))
    for file in files:
        queues = ledger.queues(file.file_id)
        assert queues == [queue for queue in ledger.queues() if queue.file_id == file.file_id]
        assert [queue.endpoint for queue in queues] == [A, B]
        assert [ledger.queue(queue.queue_id) for queue in queues] == queues
    await ledger.published(files[0].file_id, 1.0)
    await ledger.prune(2.0, 100)
    assert [len(ledger.queues(file.file_id)) for file in files] == [0, 2, 2]


async def test_the_jobs_of_a_rebuilt_file_begin_ambiguous_and_due(ledger: Ledger) -> None:
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    queue = await rebuilt_jobs(ledger)
    assert heard == [Change(queue, None, State.AMBIGUOUS, 3)]
    jobs = await ledger.ambiguous(0.0, 9)
    assert [(job.key.line, job.maybe_sent, job.due_at, job.receipt) for job in jobs] == [
        (line, True, 0.0, None) for line in (1, 2, 3)
    ]
    assert await ledger.next_ambiguous_at() == 0.0
    assert [each.attempts for each in await ledger.rows(queue.file_id, 0, 9)] == [0, 0, 0]
    await assert_tallies_are_true(ledger)


async def test_a_job_of_a_rebuilt_file_is_claimed_only_when_it_was_reopened(ledger: Ledger) -> None:
    queue = await rebuilt_jobs(ledger)
    assert await ledger.next_due_at(queue.queue_id) is None
    assert await ledger.claim(queue.queue_id, 9, 99.0) == []
    await ledger.record([Reopened(key=JobKey(queue.queue_id, 2), due_at=4.0)])
    assert await ledger.next_due_at(queue.queue_id) == 4.0
    (claim,) = await ledger.claim(queue.queue_id, 9, 4.0)
    assert (claim.key.line, claim.attempt, claim.maybe_sent) == (2, 1, True)


async def test_a_claimed_job_of_a_rebuilt_file_is_recovered(ledger: Ledger) -> None:
    queue = await rebuilt_jobs(ledger)
    await ledger.record([Reopened(key=JobKey(queue.queue_id, 2), due_at=0.0)])
    assert len(await ledger.claim(queue.queue_id, 1, 0.0)) == 1
    assert await ledger.recover(5.0) == 1
    await assert_tallies_are_true(ledger)


async def test_an_id_that_is_twice_in_a_rebuilt_file_is_rejected_as_in_any(ledger: Ledger) -> None:
    queue = await rebuilt_jobs(ledger)
    (twice,) = await ledger.accept(a_batch(queue.file_id, [a_job(4, id="2"), a_job(5)]))
    assert twice.line == 4
    assert ledger.tally(queue.queue_id)[State.AMBIGUOUS] == 4
    assert (ledger.totals(), ledger.lines()) == ({(A, State.AMBIGUOUS): 4}, (4, 1))


async def rebuilt_jobs(ledger: Ledger) -> Queue:
    file = await ledger.add_file(a_file(rebuilt=True))
    await ledger.accept(a_batch(file.file_id, [a_job(line) for line in (1, 2, 3)]))
    return ledger.queues()[-1]


# --- what is known without waiting -----------------------------------------------------------------------------------


async def test_observers_hear_of_a_change_when_the_tally_shows_it_and_before_the_call_returns(ledger: Ledger) -> None:
    heard: list[Change] = []
    shown: list[int] = []

    def observe(changes: Sequence[Change]) -> None:
        heard.extend(changes)
        shown.append(ledger.tally(changes[0].queue.queue_id)[changes[0].state])

    ledger.subscribe(observe)
    queue = await with_jobs(ledger)
    assert (heard, shown) == ([Change(queue, None, State.ACCEPTED, 5)], [5])
    await ledger.claim(queue.queue_id, 3, 0.0)
    assert (heard[1:], shown) == ([Change(queue, State.ACCEPTED, State.CLAIMED, 3)], [5, 3])


async def test_a_call_that_changes_no_job_tells_nobody(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    await ledger.claim(queue.queue_id, 5, 0.0)
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    assert await ledger.claim(queue.queue_id, 5, 0.0) == []
    await ledger.published(queue.file_id, 1.0)
    assert heard == []


async def test_the_tally_has_every_state_and_is_the_callers_own(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    tally = ledger.tally(queue.queue_id)
    assert tally == {**dict.fromkeys(State, 0), State.ACCEPTED: 5}
    tally[State.ACCEPTED] = 0
    assert ledger.tally(queue.queue_id)[State.ACCEPTED] == 5


async def test_totals_count_every_entry_into_a_state_by_endpoint(ledger: Ledger) -> None:
    assert (ledger.totals(), ledger.lines()) == ({}, (0, 0))
    file = await ledger.add_file(a_file())
    bad = Rejection(4, None, FailureReason.INVALID_JSON, "x")
    await ledger.accept(a_batch(file.file_id, [a_job(1), a_job(2), a_job(3, B), a_job(5, id="1")], [bad]))
    queue = ledger.queues()[0].queue_id
    for _ in range(3):
        one, two = keys(await ledger.claim(queue, 2, 0.0))
        await ledger.record([Released(key=key, due_at=0.0, reason=BUSY) for key in (one, two)])
    await ledger.record([settled(one, State.ACCEPTED, State.CANCELLED)])
    assert ledger.totals() == {
        (A, State.ACCEPTED): 2 + 6,
        (A, State.CLAIMED): 6,
        (A, State.CANCELLED): 1,
        (B, State.ACCEPTED): 1,
    }
    assert ledger.lines() == (3, 2)


async def test_totals_and_lines_do_not_count_what_was_refused_or_known(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    batch = a_batch(file.file_id, [a_job(1), a_job(2, id="1")])
    await ledger.accept(batch)
    before = ledger.totals(), ledger.lines()
    await ledger.accept(batch)
    with pytest.raises(IllegalMoveError):
        await ledger.record([submitted(JobKey(ledger.queues()[0].queue_id, 1))])
    with pytest.raises(ValueError, match="no job file"):
        await ledger.accept(a_batch(FileId(9), [a_job(3)]))
    assert (ledger.totals(), ledger.lines()) == before


async def test_totals_are_the_callers_own(ledger: Ledger) -> None:
    await with_jobs(ledger)
    ledger.totals()[A, State.ACCEPTED] = 0
    assert ledger.totals() == {(A, State.ACCEPTED): 5}


# --- claims ----------------------------------------------------------------------------------------------------------


async def test_new_jobs_are_claimed_in_line_order_up_to_the_limit(ledger: Ledger) -> None:
    queue = await with_jobs(ledger, [2, 3, 5, 8])
    first = await ledger.claim(queue.queue_id, 3, 0.0)
    assert [claim.key.line for claim in first] == [2, 3, 5]
    assert [claim.key.line for claim in await ledger.claim(queue.queue_id, 3, 0.0)] == [8]
    assert await ledger.claim(queue.queue_id, 3, 0.0) == []
    assert first[0] == Claim(
        key=JobKey(queue.queue_id, 2),
        file_id=queue.file_id,
        shard=0,
        offset=200,
        length=99,
        size_bytes=80,
        transport=Transport.INLINE,
        attempt=1,
        faults=0,
        maybe_sent=False,
    )
    assert (await row(ledger, first[0].key)).attempts == 1


async def test_a_queue_that_was_empty_gives_what_comes_later(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    await ledger.claim(queue.queue_id, 99, 0.0)
    assert await ledger.claim(queue.queue_id, 99, 0.0) == []
    await ledger.accept(a_batch(queue.file_id, [a_job(7)]))
    assert [claim.key.line for claim in await ledger.claim(queue.queue_id, 99, 0.0)] == [7]


async def test_jobs_due_again_come_first_and_the_oldest_due_of_them_first(ledger: Ledger) -> None:
    one, two, three = await claimed(ledger, 3)
    await ledger.accept(a_batch(ledger.queues()[0].file_id, [a_job(9)]))
    dues = {one: 30.0, two: 10.0, three: 20.0}
    await ledger.record([Released(key=key, due_at=due, reason=BUSY) for key, due in dues.items()])
    claims = await ledger.claim(one.queue, 9, 20.0)
    assert [(claim.key.line, claim.attempt) for claim in claims] == [(2, 2), (3, 2), (9, 1)]
    assert await ledger.claim(one.queue, 9, 29.9) == []
    assert keys(await ledger.claim(one.queue, 9, 30.0)) == [one]


async def test_the_limit_holds_for_both_kinds_together(ledger: Ledger) -> None:
    one, two = await claimed(ledger, 2)
    await ledger.accept(a_batch(ledger.queues()[0].file_id, [a_job(9), a_job(10)]))
    await ledger.record([Released(key=key, due_at=1.0, reason=BUSY) for key in (one, two)])
    assert [claim.key.line for claim in await ledger.claim(one.queue, 3, 1.0)] == [1, 2, 9]


async def test_queues_are_claimed_apart(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(line, B if line % 2 else A) for line in range(1, 7)]))
    queue_a, queue_b = ledger.queues()
    assert [claim.key.line for claim in await ledger.claim(queue_a.queue_id, 9, 0.0)] == [2, 4, 6]
    assert ledger.tally(queue_b.queue_id)[State.ACCEPTED] == 3
    assert [claim.key.line for claim in await ledger.claim(queue_b.queue_id, 9, 0.0)] == [1, 3, 5]


async def test_redirect_changes_inline_for_good_and_nothing_else(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    jobs = [a_job(1), a_job(2, transport=Transport.REFERENCE), a_job(3), a_job(4)]
    await ledger.accept(a_batch(file.file_id, jobs))
    queue = ledger.queues()[0].queue_id
    (first,) = await ledger.claim(queue, 1, 0.0)
    await ledger.record([Released(key=first.key, due_at=0.0, reason=BUSY)])
    claims = await ledger.claim(queue, 3, 0.0, Transport.S3)
    assert [claim.transport for claim in claims] == [Transport.S3, Transport.REFERENCE, Transport.S3]
    transports = [each.transport for each in await ledger.rows(file.file_id, 0, 9)]
    assert transports == [Transport.S3, Transport.REFERENCE, Transport.S3, Transport.INLINE]


async def test_next_due_at_is_zero_for_a_new_job_then_the_least_due_then_none(ledger: Ledger) -> None:
    queue = await with_jobs(ledger, [1, 2])
    assert await ledger.next_due_at(queue.queue_id) == 0.0
    one, two = keys(await ledger.claim(queue.queue_id, 9, 0.0))
    assert await ledger.next_due_at(queue.queue_id) is None
    await ledger.record([Released(key=one, due_at=8.0, reason=BUSY), Released(key=two, due_at=7.0, reason=BUSY)])
    assert await ledger.next_due_at(queue.queue_id) == 7.0


async def test_cancelled_jobs_are_not_claimed(ledger: Ledger) -> None:
    queue = await with_jobs(ledger, [1, 2, 3])
    end = [JobKey(queue.queue_id, line) for line in (1, 3)]
    await ledger.record([settled(key, State.ACCEPTED, State.CANCELLED) for key in end])
    assert (await row(ledger, end[0])).attempts == 0
    assert [claim.key.line for claim in await ledger.claim(queue.queue_id, 9, 0.0)] == [2]
    assert await ledger.next_due_at(queue.queue_id) is None
    assert (await row(ledger, end[1])).state is State.CANCELLED


# --- moves -----------------------------------------------------------------------------------------------------------


async def test_a_receipt_is_kept_as_it_was_given(ledger: Ledger) -> None:
    key, other, bare = await claimed(ledger, 3)
    odd = Receipt("no-slash", "https://h/b//x/")
    moves = [submitted(key), Submitted(key=other, receipt=odd, submitted_at=1.0, deadline_at=2.0, seconds=0.5)]
    await ledger.record(moves)
    await ledger.record(
        [Submitted(key=bare, receipt=a_receipt(bare, failure=False), submitted_at=1.0, deadline_at=2.0, seconds=0.5)]
    )
    now = await row(ledger, key)
    assert (now.state, now.receipt, now.attempts) == (State.SUBMITTED, a_receipt(key), 1)
    assert (now.submitted_at, now.submission_seconds, now.due_at) == (100.0, 0.25, 500.0)
    assert (await row(ledger, other)).receipt == odd
    assert (await row(ledger, bare)).receipt == a_receipt(bare, failure=False)


async def test_a_release_gives_back_what_did_not_count(ledger: Ledger) -> None:
    key, *_ = await claimed(ledger, 1)
    await ledger.record([Released(key=key, due_at=0.0, reason=BUSY, unsent=True)])
    assert (await row(ledger, key)).attempts == 0
    (claim,) = await ledger.claim(key.queue, 1, 0.0)
    assert (claim.attempt, claim.faults) == (1, 0)
    await ledger.record([Released(key=key, due_at=0.0, reason=BUSY, fault=True, transport=Transport.S3)])
    (claim,) = await ledger.claim(key.queue, 1, 0.0)
    assert (claim.attempt, claim.faults, claim.transport) == (2, 1, Transport.S3)


async def test_a_lost_job_is_ambiguous_and_when_reopened_says_so(ledger: Ledger) -> None:
    key, *_ = await claimed(ledger, 1)
    await ledger.record([Lost(key=key, due_at=50.0, reason=FailureReason.TIMEOUT)])
    assert (await row(ledger, key)).state is State.AMBIGUOUS
    await ledger.record([Reopened(key=key, due_at=60.0)])
    (claim,) = await ledger.claim(key.queue, 1, 60.0)
    assert (claim.attempt, claim.maybe_sent) == (2, True)


async def test_settling_keeps_the_receipt(ledger: Ledger) -> None:
    key, *_ = await claimed(ledger, 1)
    error = Error("model_error", "boom")
    await ledger.record([submitted(key)])
    await ledger.record([settled(key, State.SUBMITTED, State.FAILED, error)])
    now = await row(ledger, key)
    assert (now.state, now.receipt, now.error) == (State.FAILED, a_receipt(key), error)
    assert (now.completed_at, now.due_at, now.submitted_at) == (200.0, 500.0, 100.0)


async def test_settling_brings_an_output_location_that_was_not_known(ledger: Ledger) -> None:
    key, known = await claimed(ledger, 2)
    await ledger.record([Lost(key=key, due_at=1.0, reason=FailureReason.TIMEOUT), submitted(known)])
    found = "s3://bucket/elsewhere/x.out"
    await ledger.record(
        [
            Settled(key=each, prior=prior, state=State.SUCCEEDED, completed_at=9.0, output_location=found)
            for each, prior in ((key, State.AMBIGUOUS), (known, State.SUBMITTED))
        ]
    )
    assert (await row(ledger, key)).receipt == Receipt(found, None)
    assert (await row(ledger, known)).receipt == Receipt(found, a_receipt(known).failure_location)


async def test_a_late_result_turns_expired_into_succeeded_without_an_error(ledger: Ledger) -> None:
    key, *_ = await claimed(ledger, 1)
    await ledger.record([submitted(key)])
    await ledger.record([settled(key, State.SUBMITTED, State.EXPIRED, Error("result_missing", "nothing came"))])
    await ledger.record([settled(key, State.EXPIRED, State.SUCCEEDED)])
    now = await row(ledger, key)
    assert (now.state, now.error) == (State.SUCCEEDED, None)


async def test_moves_of_one_job_are_applied_in_their_order(ledger: Ledger) -> None:
    key, other = await claimed(ledger, 2)
    await ledger.record([submitted(key), submitted(other), settled(key, State.SUBMITTED, State.SUCCEEDED)])
    assert (await row(ledger, key)).state is State.SUCCEEDED
    await assert_tallies_are_true(ledger)


async def test_every_kind_of_move_in_one_call(ledger: Ledger) -> None:
    one, two, three, four, five = await claimed(ledger)
    await ledger.record([Lost(key=five, due_at=1.0, reason=BUSY)])
    moves: list[Move] = [
        submitted(one),
        Released(key=two, due_at=1.0, reason=BUSY),
        Lost(key=three, due_at=1.0, reason=BUSY),
        settled(four, State.CLAIMED, State.DEAD, Error("validation_error", "no")),
        Reopened(key=five, due_at=1.0),
    ]
    await ledger.record(moves)
    expected = [State.SUBMITTED, State.ACCEPTED, State.AMBIGUOUS, State.DEAD, State.ACCEPTED]
    assert await states(ledger, ledger.queues()[0].file_id) == expected
    await assert_tallies_are_true(ledger)


async def test_no_moves_are_no_change(ledger: Ledger) -> None:
    await ledger.record([])
    assert ledger.queues() == []


NOBODY = JobKey(QueueId(1), 99)


@pytest.mark.parametrize(
    "wrong",
    [
        submitted(JobKey(NOBODY.queue, 5)),
        submitted(NOBODY),
        Lost(key=JobKey(NOBODY.queue, 4), due_at=1.0, reason=BUSY),
        Released(key=JobKey(NOBODY.queue, 5), due_at=1.0, reason=BUSY),
        Reopened(key=JobKey(NOBODY.queue, 1), due_at=1.0),
        settled(JobKey(NOBODY.queue, 1), State.SUBMITTED, State.SUCCEEDED),
        settled(JobKey(NOBODY.queue, 1), State.ACCEPTED, State.CANCELLED),
        settled(JobKey(NOBODY.queue, 4), State.ACCEPTED, State.DEAD),
        settled(JobKey(NOBODY.queue, 1), State.CLAIMED, State.ACCEPTED),
        settled(JobKey(NOBODY.queue, 4), State.CLAIMED, State.DEAD),
    ],
    ids=lambda move: f"{type(move).__name__}-{move.key.line}",
)
async def test_one_illegal_move_refuses_all_and_changes_nothing(ledger: Ledger, wrong: Move) -> None:
    queue = await with_jobs(ledger)
    one, two, three = keys(await ledger.claim(queue.queue_id, 3, 0.0))
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    before = await ledger.rows(queue.file_id, 0, 9)
    with pytest.raises(IllegalMoveError):
        await ledger.record([submitted(two), Lost(key=three, due_at=1.0, reason=BUSY), wrong])
    assert await ledger.rows(queue.file_id, 0, 9) == before
    assert heard == []
    assert await ledger.ambiguous(99.0, 9) == []
    await ledger.record([submitted(one), submitted(two)])
    await assert_tallies_are_true(ledger)


async def test_a_move_made_twice_is_refused(ledger: Ledger) -> None:
    key, *_ = await claimed(ledger, 1)
    with pytest.raises(IllegalMoveError):
        await ledger.record([submitted(key), submitted(key)])
    assert (await row(ledger, key)).state is State.CLAIMED


# --- recovery --------------------------------------------------------------------------------------------------------


async def test_recover_makes_every_claimed_job_ambiguous(ledger: Ledger) -> None:
    one, two, three = await claimed(ledger, 3)
    await ledger.accept(a_batch(ledger.queues()[0].file_id, [a_job(9)]))
    await ledger.record([submitted(one), Released(key=two, due_at=0.0, reason=BUSY)])
    assert keys(await ledger.claim(one.queue, 1, 0.0)) == [two]
    assert await ledger.recover(77.0) == 2
    expected = [State.SUBMITTED, State.AMBIGUOUS, State.AMBIGUOUS, State.ACCEPTED]
    assert await states(ledger, ledger.queues()[0].file_id) == expected
    jobs = await ledger.ambiguous(77.0, 9)
    assert [(job.key, job.maybe_sent, job.due_at, job.receipt) for job in jobs] == [
        (two, True, 77.0, None),
        (three, True, 77.0, None),
    ]
    assert [(await row(ledger, key)).attempts for key in (two, three)] == [2, 1]
    assert await ledger.recover(88.0) == 0
    assert await ledger.next_ambiguous_at() == 77.0
    await assert_tallies_are_true(ledger)


async def test_after_a_recovery_nothing_waits_longer_than_what_was_recovered(ledger: Ledger) -> None:
    late, soon, lost, sent = await claimed(ledger, 4)
    moves = [Released(key=late, due_at=9_999.0, reason=BUSY), Released(key=soon, due_at=5.0, reason=BUSY)]
    await ledger.record([*moves, Lost(key=lost, due_at=9_999.0, reason=BUSY), submitted(sent)])
    deadline = (await open_job_of(ledger, sent)).due_at
    assert await ledger.recover(77.0) == 0
    assert await ledger.next_due_at(late.queue) == 5.0
    assert keys(await ledger.claim(late.queue, 9, 76.0)) == [soon]
    assert await ledger.next_due_at(late.queue) == 77.0
    assert await ledger.next_ambiguous_at() == 77.0
    assert (await open_job_of(ledger, sent)).due_at == deadline


async def open_job_of(ledger: Ledger, key: JobKey) -> OpenJob:
    (found,) = [job for job in await ledger.open_jobs(key.queue, 0) if job.key == key]
    return found


# --- what ends without having been sent ------------------------------------------------------------------------------

STOP = Error("cancelled", "as the operator wished")


async def one_of_each(ledger: Ledger) -> Queue:
    """Lines 1 to 6: submitted, claimed, ambiguous, released, succeeded, new."""
    one, _, three, four, five = await claimed(ledger)
    queue = ledger.queues()[-1]
    await ledger.accept(a_batch(queue.file_id, [a_job(6)]))
    await ledger.record([submitted(one), submitted(five), Lost(key=three, due_at=1.0, reason=BUSY)])
    await ledger.record([Released(key=four, due_at=9.0, reason=BUSY), settled(five, State.SUBMITTED, State.SUCCEEDED)])
    return queue


async def test_cancelling_ends_what_is_accepted_and_nothing_else(ledger: Ledger) -> None:
    queue = await one_of_each(ledger)
    assert await ledger.end_unsent(queue.file_id, State.CANCELLED, 300.0, STOP) == 2
    submitted_, claimed_, ambiguous_ = State.SUBMITTED, State.CLAIMED, State.AMBIGUOUS
    expected = [submitted_, claimed_, ambiguous_, State.CANCELLED, State.SUCCEEDED, State.CANCELLED]
    assert await states(ledger, queue.file_id) == expected
    ended = [await row(ledger, JobKey(queue.queue_id, line)) for line in (4, 6)]
    assert [(each.completed_at, each.error, each.attempts) for each in ended] == [(300.0, STOP, 1), (300.0, STOP, 0)]
    assert await ledger.next_due_at(queue.queue_id) is None
    assert await ledger.claim(queue.queue_id, 9, 99.0) == []
    await assert_tallies_are_true(ledger)


async def test_the_deadline_leaves_to_the_tracker_what_is_ambiguous(ledger: Ledger) -> None:
    queue = await one_of_each(ledger)
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    assert await ledger.end_unsent(queue.file_id, State.EXPIRED, 300.0, STOP) == 2
    expected = [State.SUBMITTED, State.CLAIMED, State.AMBIGUOUS, State.EXPIRED, State.SUCCEEDED, State.EXPIRED]
    assert await states(ledger, queue.file_id) == expected
    assert heard == [Change(queue, State.ACCEPTED, State.EXPIRED, 2)]
    assert await ledger.next_ambiguous_at() == 1.0
    await assert_tallies_are_true(ledger)


async def test_ending_twice_ends_once(ledger: Ledger) -> None:
    queue = await one_of_each(ledger)
    await ledger.end_unsent(queue.file_id, State.EXPIRED, 300.0, STOP)
    before = await ledger.rows(queue.file_id, 0, 9), ledger.totals()
    for state in (State.EXPIRED, State.CANCELLED):
        assert await ledger.end_unsent(queue.file_id, state, 400.0, STOP) == 0
    assert (await ledger.rows(queue.file_id, 0, 9), ledger.totals()) == before


async def test_what_is_accepted_after_an_ending_is_not_touched(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    assert await ledger.end_unsent(queue.file_id, State.CANCELLED, 1.0, STOP) == 5
    await ledger.accept(a_batch(queue.file_id, [a_job(8), a_job(9)]))
    assert await ledger.next_due_at(queue.queue_id) == 0.0
    assert [claim.key.line for claim in await ledger.claim(queue.queue_id, 9, 0.0)] == [8, 9]
    await assert_tallies_are_true(ledger)


async def test_what_was_claimed_before_an_ending_may_come_back_and_be_claimed_again(ledger: Ledger) -> None:
    one, two = await claimed(ledger, 2)
    file = ledger.queues()[0].file_id
    assert await ledger.end_unsent(file, State.CANCELLED, 1.0, STOP) == 0
    await ledger.record([Released(key=one, due_at=0.0, reason=BUSY), submitted(two)])
    assert keys(await ledger.claim(one.queue, 9, 0.0)) == [one]


async def test_an_ending_takes_in_every_shard_and_queue_of_the_file_and_no_other_file(ledger: Ledger) -> None:
    other = await with_jobs(ledger)
    file = await ledger.add_file(a_file())
    for start in range(1, 12_001, 2_000):
        jobs = [a_job(line, B if line % 3 == 0 else A) for line in range(start, start + 2_000)]
        await ledger.accept(a_batch(file.file_id, jobs))
    queue = ledger.queues()[1].queue_id
    kept = keys(await ledger.claim(queue, 50, 0.0))
    assert await ledger.end_unsent(file.file_id, State.CANCELLED, 1.0, STOP) == 12_000 - 50
    assert ledger.tally(queue)[State.CLAIMED] == len(kept)
    assert ledger.tally(other.queue_id)[State.ACCEPTED] == 5
    await assert_tallies_are_true(ledger)


async def test_only_cancelled_and_expired_are_ends_of_what_was_not_sent(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    for state in (State.DEAD, State.SUBMITTED):
        with pytest.raises(ValueError, match="cannot end as"):
            await ledger.end_unsent(queue.file_id, state, 1.0, STOP)
    with pytest.raises(ValueError, match="no job file"):
        await ledger.end_unsent(FileId(99), State.CANCELLED, 1.0, STOP)


# --- cancelled files -------------------------------------------------------------------------------------------------


async def test_cancelling_a_file_ends_what_is_accepted_and_is_remembered(ledger: Ledger) -> None:
    other, queue = await with_jobs(ledger), await one_of_each(ledger)
    assert await ledger.cancel(queue.file_id, 300.0) == 2
    expected = [State.SUBMITTED, State.CLAIMED, State.AMBIGUOUS, State.CANCELLED, State.SUCCEEDED, State.CANCELLED]
    assert await states(ledger, queue.file_id) == expected
    ended = [await row(ledger, JobKey(queue.queue_id, line)) for line in (4, 6)]
    assert [(each.completed_at, each.attempts) for each in ended] == [(300.0, 1), (300.0, 0)]
    assert {each.error.code for each in ended if each.error} == {FailureReason.CANCELLED}
    assert [file.cancelled_at for file in await ledger.files()] == [None, 300.0]
    assert ledger.tally(other.queue_id)[State.ACCEPTED] == 5
    await assert_tallies_are_true(ledger)


async def test_a_file_is_cancelled_once(ledger: Ledger) -> None:
    queue = await one_of_each(ledger)
    await ledger.cancel(queue.file_id, 300.0)
    before = await ledger.files(), await ledger.rows(queue.file_id, 0, 9), ledger.totals()
    assert await ledger.cancel(queue.file_id, 400.0) == 0
    assert (await ledger.files(), await ledger.rows(queue.file_id, 0, 9), ledger.totals()) == before
    with pytest.raises(ValueError, match="no job file"):
        await ledger.cancel(FileId(99), 1.0)


async def test_what_a_cancelled_file_gets_back_ends_cancelled_in_the_same_change(ledger: Ledger) -> None:
    one, two, three, four = await claimed(ledger, 4)
    queue = ledger.queues()[0]
    await ledger.record([Lost(key=one, due_at=1.0, reason=BUSY)])
    await ledger.cancel(queue.file_id, 300.0)
    heard: list[list[Change]] = []
    ledger.subscribe(lambda changes: heard.append(list(changes)))
    await ledger.record([Reopened(key=one, due_at=0.0), Released(key=two, due_at=0.0, reason=BUSY)])
    cancelled = [change for changes in heard for change in changes if change.state is State.CANCELLED]
    assert cancelled == [Change(queue, State.ACCEPTED, State.CANCELLED, 2)]
    await ledger.record([Lost(key=three, due_at=1.0, reason=BUSY), submitted(four)])
    await ledger.record([Reopened(key=three, due_at=0.0)])
    assert await states(ledger, queue.file_id) == [State.CANCELLED] * 3 + [State.SUBMITTED]
    assert [(await row(ledger, key)).completed_at for key in (one, two, three)] == [300.0] * 3
    assert (await ledger.claim(queue.queue_id, 9, 99.0), await ledger.next_due_at(queue.queue_id)) == ([], None)
    await assert_tallies_are_true(ledger)


async def test_what_was_sent_of_a_cancelled_file_comes_to_its_own_end(ledger: Ledger) -> None:
    one, two, three, four = await claimed(ledger, 4)
    await ledger.record([Lost(key=one, due_at=1.0, reason=BUSY), submitted(two)])
    file = ledger.queues()[0].file_id
    await ledger.cancel(file, 300.0)
    await ledger.record([submitted(three), settled(four, State.CLAIMED, State.DEAD, STOP)])
    await ledger.record([settled(one, State.AMBIGUOUS, State.SUCCEEDED), settled(two, State.SUBMITTED, State.FAILED)])
    assert await states(ledger, file) == [State.SUCCEEDED, State.FAILED, State.SUBMITTED, State.DEAD]


async def test_what_intake_still_brings_of_a_cancelled_file_ends_cancelled(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    assert await ledger.cancel(file.file_id, 300.0) == 0
    bad = Rejection(3, None, FailureReason.INVALID_JSON, "x")
    await ledger.accept(a_batch(file.file_id, [a_job(1), a_job(2, B)], [bad]))
    assert [each.line for each in await ledger.accept(a_batch(file.file_id, [a_job(4), a_job(5, id="1")]))] == [5]
    assert await states(ledger, file.file_id) == [State.CANCELLED] * 3
    known = await ledger.file(file.file_id)
    assert known is not None
    assert (known.lines, known.rejected) == (5, 2)
    assert [await ledger.claim(queue.queue_id, 9, 99.0) for queue in ledger.queues()] == [[], []]
    assert ledger.totals()[A, State.ACCEPTED] == ledger.totals()[A, State.CANCELLED] == 2
    await assert_tallies_are_true(ledger)


async def test_the_jobs_of_a_cancelled_file_that_was_rebuilt_are_looked_for_first(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file(rebuilt=True))
    await ledger.cancel(file.file_id, 300.0)
    await ledger.accept(a_batch(file.file_id, [a_job(1), a_job(2)]))
    one, two = [job.key for job in await ledger.ambiguous(0.0, 9)]
    await ledger.record([settled(one, State.AMBIGUOUS, State.SUCCEEDED), Reopened(key=two, due_at=0.0)])
    assert await states(ledger, file.file_id) == [State.SUCCEEDED, State.CANCELLED]


async def test_after_a_crash_what_was_claimed_of_a_cancelled_file_is_looked_for_and_not_claimed(ledger: Ledger) -> None:
    one, two = await claimed(ledger, 2)
    file = ledger.queues()[0].file_id
    await ledger.cancel(file, 300.0)
    assert await ledger.recover(5.0) == 2
    await ledger.record([settled(one, State.AMBIGUOUS, State.SUCCEEDED), Reopened(key=two, due_at=0.0)])
    assert await ledger.claim(one.queue, 9, 99.0) == []
    assert await states(ledger, file) == [State.SUCCEEDED, State.CANCELLED]


async def test_moves_of_one_job_of_a_cancelled_file_are_applied_before_it_ends(ledger: Ledger) -> None:
    (one,) = await claimed(ledger, 1)
    file = ledger.queues()[0].file_id
    await ledger.cancel(file, 300.0)
    await ledger.record([Released(key=one, due_at=0.0, reason=BUSY), settled(one, State.ACCEPTED, State.EXPIRED, STOP)])
    assert await states(ledger, file) == [State.EXPIRED]


# --- what is forgotten -----------------------------------------------------------------------------------------------


async def a_published_file(ledger: Ledger, at: float, jobs: int = 3, bad: int = 1) -> JobFile:
    """A file of two endpoints, all of it ended, and its results published."""
    file = await ledger.add_file(a_file(f"at{at}"))
    lines = [a_job(line, B if line % 2 else A) for line in range(1, jobs + 1)]
    rejected = [Rejection(jobs + n, None, FailureReason.INVALID_JSON, "x") for n in range(1, bad + 1)]
    await ledger.accept(a_batch(file.file_id, lines, rejected, final=True, at=jobs + bad))
    await ledger.end_unsent(file.file_id, State.CANCELLED, at, STOP)
    await ledger.published(file.file_id, at)
    return (await ledger.files())[-1]


async def prune_all(ledger: Ledger, before: float, limit: int = 1_000) -> int:
    total = 0
    while gone := await ledger.prune(before, limit):
        assert gone <= limit
        total += gone
    return total


async def test_only_files_published_before_then_are_forgotten(ledger: Ledger) -> None:
    open_queue = await with_jobs(ledger)
    _, kept = await a_published_file(ledger, 10.0), await a_published_file(ledger, 20.0)
    assert await prune_all(ledger, 20.0) > 0
    assert [file.file_id for file in await ledger.files()] == [open_queue.file_id, kept.file_id]
    assert len(await ledger.rows(kept.file_id, 0, 9)) == 3
    assert {queue.file_id for queue in ledger.queues()} == {open_queue.file_id, kept.file_id}
    assert await ledger.prune(20.0, 9) == 0
    await assert_tallies_are_true(ledger)


async def test_nothing_of_a_forgotten_file_can_be_found(ledger: Ledger) -> None:
    file = await a_published_file(ledger, 10.0)
    queues = ledger.queues()
    await prune_all(ledger, 99.0)
    assert (await ledger.files(), ledger.queues(), await ledger.find("1")) == ([], [], [])
    assert (await ledger.rows(file.file_id, 0, 9), await ledger.rejections(file.file_id, 0, 9)) == ([], [])
    assert await ledger.shard(queues[0].queue_id, 0) is None
    with pytest.raises(KeyError):
        ledger.tally(queues[0].queue_id)


async def test_forgetting_goes_in_small_slices_the_oldest_file_first(ledger: Ledger) -> None:
    new, old = await a_published_file(ledger, 20.0, 9, 4), await a_published_file(ledger, 10.0, 6, 2)
    assert await ledger.prune(99.0, 5) == 5
    assert len(await ledger.rows(old.file_id, 0, 99)) == 1
    assert len(await ledger.rows(new.file_id, 0, 99)) == 9
    await assert_tallies_are_true(ledger)
    # Rows and the files themselves: 5 went already.
    assert await prune_all(ledger, 99.0, 5) == 6 + 2 + 9 + 4 + 2 - 5


async def test_a_shard_of_which_a_part_was_forgotten_holds_the_rest(ledger: Ledger) -> None:
    file = await a_published_file(ledger, 10.0, 2_500, 0)
    queue = ledger.queues()[0].queue_id
    assert await ledger.prune(99.0, 1_100) == 1_100
    left = [await ledger.shard(queue, number) for number in (0, 1)]
    assert [shard.jobs if shard else None for shard in left] == [None, 150]
    assert len(await ledger.rows(file.file_id, 0, 5_000)) == 1_400


async def test_files_without_lines_are_forgotten_as_well_and_within_the_limit(ledger: Ledger) -> None:
    for at in range(7):
        file = await ledger.add_file(a_file(f"run{at}"))
        await ledger.published(file.file_id, float(at))
    assert [await ledger.prune(6.0, 4) for _ in range(3)] == [4, 2, 0]
    assert len(await ledger.files()) == 1


async def test_totals_and_lines_outlive_what_they_counted(ledger: Ledger) -> None:
    await a_published_file(ledger, 10.0)
    before = ledger.totals(), ledger.lines()
    heard: list[Change] = []
    ledger.subscribe(heard.extend)
    await prune_all(ledger, 99.0)
    assert (ledger.totals(), ledger.lines()) == before == (ledger.totals(), (3, 1))
    assert ledger.totals()[A, State.CANCELLED] == 1
    assert heard == []


async def test_no_number_is_given_twice(ledger: Ledger) -> None:
    file = await a_published_file(ledger, 10.0)
    queues = ledger.queues()
    await prune_all(ledger, 99.0)
    again = await with_jobs(ledger)
    assert again.file_id > file.file_id
    assert again.queue_id > max(queue.queue_id for queue in queues)


async def test_the_run_id_of_a_forgotten_file_may_come_again(ledger: Ledger) -> None:
    file = await a_published_file(ledger, 10.0)
    await prune_all(ledger, 99.0)
    again = await ledger.add_file(a_file(file.run_id))
    assert await ledger.files() == [again]


# --- tracking --------------------------------------------------------------------------------------------------------


async def test_a_shard_sums_up_what_waits(ledger: Ledger) -> None:
    one, two, three, four, _ = await claimed(ledger)
    await ledger.record(
        [submitted(one, at=10.0, deadline=90.0), submitted(two, at=5.0, deadline=80.0), submitted(three)]
    )
    await ledger.record([settled(three, State.SUBMITTED, State.SUCCEEDED), Lost(key=four, due_at=1.0, reason=BUSY)])
    (shard,) = await ledger.shards()
    assert shard == await ledger.shard(one.queue, 0)
    assert (shard.jobs, shard.waiting, shard.unsent) == (5, 2, 2)
    assert (shard.first_submitted_at, shard.last_submitted_at, shard.last_deadline_at) == (5.0, 10.0, 90.0)
    assert (shard.folder, shard.failure_folder) == (f"s3://bucket/out/{one.queue}/", "https://s3.example/bucket/fail/")


async def test_a_shard_of_which_nothing_waits_is_not_listed_but_known(ledger: Ledger) -> None:
    queue = await with_jobs(ledger)
    shard = await ledger.shard(queue.queue_id, 0)
    assert shard is not None
    assert (shard.folder, shard.failure_folder, shard.jobs, shard.waiting, shard.unsent) == (None, None, 5, 0, 5)
    assert (shard.first_submitted_at, shard.last_submitted_at, shard.last_deadline_at) == (0.0, 0.0, 0.0)
    assert await ledger.shards() == []
    assert await ledger.shard(queue.queue_id, 1) is None


async def test_shards_of_two_endpoints_lie_apart(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    await ledger.accept(a_batch(file.file_id, [a_job(line, B if line % 2 else A) for line in range(1, 9)]))
    for queue in ledger.queues():
        await ledger.record([submitted(key) for key in keys(await ledger.claim(queue.queue_id, 9, 0.0))])
    found = [(shard.queue, shard.shard, shard.waiting) for shard in await ledger.shards()]
    assert [each[1:] for each in found] == [(0, 4), (1, 4)]
    jobs = await ledger.open_jobs(*found[1][:2])
    assert [job.key.line for job in jobs] == [1, 3, 5, 7]
    assert await ledger.open_jobs(found[1][0], 0) == []


async def test_open_jobs_are_those_that_a_look_may_settle(ledger: Ledger) -> None:
    one, two, three, four, _ = await claimed(ledger)
    await ledger.record([submitted(key) for key in (one, two, three)])
    await ledger.record([settled(one, State.SUBMITTED, State.SUCCEEDED), settled(two, State.SUBMITTED, State.EXPIRED)])
    await ledger.record([Lost(key=four, due_at=6.0, reason=BUSY)])
    jobs = await ledger.open_jobs(one.queue, 0)
    assert [(job.key, job.state, job.due_at) for job in jobs] == [
        (two, State.EXPIRED, 500.0),
        (three, State.SUBMITTED, 500.0),
        (four, State.AMBIGUOUS, 6.0),
    ]
    assert [job.receipt for job in jobs] == [a_receipt(two), a_receipt(three), None]
    assert [job.submitted_at for job in jobs] == [100.0, 100.0, None]


async def test_expired_shards_are_those_with_a_receipt(ledger: Ledger) -> None:
    one, two, _ = await claimed(ledger, 3)
    queue = ledger.queues()[0]
    await ledger.record([submitted(one), Lost(key=two, due_at=1.0, reason=BUSY)])
    await ledger.record([settled(two, State.AMBIGUOUS, State.EXPIRED)])
    assert await ledger.expired_shards(queue.file_id) == []
    await ledger.record([settled(one, State.SUBMITTED, State.EXPIRED)])
    assert await ledger.expired_shards(queue.file_id) == [(queue.queue_id, 0)]
    assert await ledger.expired_shards(FileId(99)) == []


async def test_ambiguous_jobs_come_oldest_first_when_their_time_has_come(ledger: Ledger) -> None:
    assert await ledger.next_ambiguous_at() is None
    lost = dict(zip(await claimed(ledger, 3), (9.0, 5.0, 7.0), strict=True))
    await ledger.record([Lost(key=key, due_at=due, reason=BUSY) for key, due in lost.items()])
    assert await ledger.next_ambiguous_at() == 5.0
    assert [job.due_at for job in await ledger.ambiguous(7.0, 9)] == [5.0, 7.0]
    assert [job.due_at for job in await ledger.ambiguous(99.0, 2)] == [5.0, 7.0]
    assert await ledger.ambiguous(4.9, 9) == []


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_rows_page_in_line_order_over_all_queues(ledger: Ledger) -> None:
    other = await with_jobs(ledger)
    file = await ledger.add_file(a_file())
    jobs = [a_job(line, EndpointName(f"e{line % 3}")) for line in range(1, 12)]
    await ledger.accept(a_batch(file.file_id, jobs))
    lines: list[int] = []
    while page := await ledger.rows(file.file_id, lines[-1] if lines else 0, 4):
        assert len(page) <= 4
        lines.extend(each.key.line for each in page)
    assert lines == list(range(1, 12))
    assert len(await ledger.rows(other.file_id, 0, 99)) == 5
    assert await ledger.rows(FileId(99), 0, 9) == []


async def test_rejections_page_in_line_order(ledger: Ledger) -> None:
    file = await ledger.add_file(a_file())
    bad = [Rejection(line, None, FailureReason.INVALID_JSON, "x") for line in (3, 5)]
    await ledger.accept(a_batch(file.file_id, [a_job(1, id="x"), a_job(4, id="x")], bad))
    assert [each.line for each in await ledger.rejections(file.file_id, 0, 2)] == [3, 4]
    assert [each.line for each in await ledger.rejections(file.file_id, 4, 2)] == [5]
    assert await ledger.rejections(FileId(99), 0, 9) == []


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_twice_is_closing_once(ledger: Ledger) -> None:
    await ledger.aclose()
    await ledger.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await ledger.files()


async def test_a_memory_ledger_can_be_made_to_fail() -> None:
    ledger = MemoryLedger()
    file: JobFile = await ledger.add_file(a_file())
    ledger.fail("the disk is gone")
    with pytest.raises(LedgerFaultError, match="disk is gone"):
        await ledger.accept(a_batch(file.file_id, [a_job(1)]))
