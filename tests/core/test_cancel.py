"""A cancelled file: what is in doubt is looked for, what is found counts, and nothing of it is sent any more."""

import anyio
import pytest

from dispatcher.identity import inference_id, input_key
from dispatcher.model import Error, JobFile, Lost, Released, Reopened, State
from tests.core.checks import findings
from tests.core.service import BUSY, CUT, NO_CONNECTION, THROTTLED, Run, Weather
from tests.core.world import Line, Plan, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


async def test_a_doubt_of_a_cancelled_file_is_looked_for_and_not_sent_again() -> None:
    world = World(Plan(doubt_cap_seconds=5.0), Weather(runs=lambda _: Run(0.5)))
    file = await world.add("jobs.jsonl", [Line()] * 8)
    names = [row.id for row in await world.rows(file)]
    world.weather.invoke = lambda invocation: CUT if invocation.inference_id in names[4:] else None
    world.weather.cut = lambda invocation: invocation.inference_id in names[1:4]
    async with world.process() as process:
        await process.until(lambda: world.total(State.AMBIGUOUS) == 7)
        await world.cancel(file)
        await process.finished()
    states = [row.state for row in await world.rows(file)]
    assert states == [State.SUCCEEDED] * 4 + [State.CANCELLED] * 4
    assert len(world.service.sends) == 8
    assert sum(isinstance(move, Reopened) for move in world.ledger.moves) == 4
    assert await findings(world) == []


async def test_the_staged_input_of_a_doubt_that_is_cancelled_is_deleted() -> None:
    world = World(Plan(doubt_cap_seconds=5.0), Weather(invoke=lambda _: CUT, runs=lambda _: Run(None)))
    file = await world.add("jobs.jsonl", [Line(size_bytes=200_000)])
    async with world.process() as process:
        await process.until(lambda: world.total(State.AMBIGUOUS) == 1)
        assert len(world.service.staged) == 1
        await world.cancel(file)
        await process.finished()
        await process.look_last()
    assert (world.total(State.CANCELLED), world.service.staged) == (1, {})


STAGED = 40
TOO_LATE = Error("result_missing", "too late")


async def staged_and_throttled() -> tuple[World, JobFile]:
    """A file of which many inputs were staged, and their jobs throttled then; as many others were never tried."""
    world = World(Plan(max_in_flight=STAGED))
    file = await world.add("jobs.jsonl", [Line(size_bytes=200_000), Line()] * 2 * STAGED)
    (queue,) = world.ledger.queues(file.file_id)
    claims = await world.ledger.claim(queue.queue_id, 2 * STAGED, world.clock.now())
    for claim in claims[::2]:
        await world.service.stage(input_key(inference_id(file.run_id, claim.key.line)), b"", None)
    again_at = world.clock.now() + 600.0
    await world.ledger.record([Released(key=claim.key, due_at=again_at, reason=THROTTLED.reason) for claim in claims])
    assert len(world.service.staged) == STAGED
    return world, file


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
async def test_what_was_staged_of_jobs_that_end_while_they_wait_to_be_sent_again_is_deleted(state: State) -> None:
    world, file = await staged_and_throttled()
    if state is State.CANCELLED:
        await world.cancel(file)
    else:
        await world.ledger.end_unsent(file.file_id, state, world.clock.now(), TOO_LATE)
    async with world.process() as process:
        await process.look_last()
    assert world.total(state) == 4 * STAGED
    assert (world.service.staged, len(world.service.discards), world.service.calls["DELETE"]) == ({}, STAGED, 1)


async def test_a_crash_while_these_are_deleted_leaves_none_behind() -> None:
    world, file = await staged_and_throttled()
    await world.cancel(file)
    seconds, busy = iter([0.01]), set(list(world.service.staged)[::2])
    world.weather.s3_seconds = lambda: next(seconds, 5.0)
    world.weather.s3 = lambda _, place: BUSY if place in busy else None
    async with world.process() as process:
        with anyio.move_on_after(1.0):
            await process.look_last()
    assert world.service.staged.keys() == busy
    busy.clear()
    async with world.process() as process:
        await process.look_last()
    assert await findings(world) == []


async def test_an_s3_that_does_not_answer_holds_the_results_of_a_cancelled_file_up_for_a_minute() -> None:
    world, file = await staged_and_throttled()
    await world.cancel(file)
    world.weather.s3, world.weather.s3_seconds = lambda _operation, _place: NO_CONNECTION, lambda: 20.0
    before = world.clock.now()
    async with world.process() as process:
        await process.look_last()
    assert world.clock.now() - before == pytest.approx(60.0, abs=1.0)


async def test_what_was_on_the_wire_when_its_file_was_cancelled_and_was_refused_for_now_ends() -> None:
    world = World(weather=Weather(invoke=lambda _: THROTTLED, latency_seconds=lambda: 1.0))
    file = await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process() as process:
        await process.until(lambda: len(world.service.sends) == world.plan.max_in_flight)
        await world.cancel(file)
        await process.finished()
    assert world.total(State.CANCELLED) == 100
    assert any(isinstance(move, Released) for move in world.ledger.moves)
    assert await findings(world) == []


@pytest.mark.parametrize("known", [True, False])
async def test_the_jobs_of_a_cancelled_file_whose_ledger_was_lost_end_at_once(known: bool) -> None:
    """None of them is sent to learn where the outputs are, and they do not wait for that."""
    world = World(Plan(commit_seconds=0.01), Weather(runs=lambda _: Run(0.1)))
    await world.add("jobs.jsonl", [Line()] * 300)
    async with world.process() as process:
        await process.finished()
    await world.lose_ledger()
    (file,) = world.files.values()
    if known:
        await world.add("other.jsonl", [Line()])
    await world.cancel(file)
    async with world.process() as process:
        await process.finished(within=1.0)
    assert {row.state for row in await world.rows(file)} <= {State.SUCCEEDED, State.CANCELLED}
    assert len(world.service.sends) == 300 + known


@pytest.mark.parametrize("seed", range(20))
async def test_a_crash_after_a_cancel_sends_nothing_more(seed: int) -> None:
    world = World(Plan(seed=seed, doubt_cap_seconds=1.0, commit_seconds=0.05))
    world.weather.cut = lambda _: world.random.random() < 0.3
    world.weather.invoke = lambda _: THROTTLED if world.random.random() < 0.3 else None
    file = await world.add("jobs.jsonl", [Line()] * 300)
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=0.3 + 0.05 * seed)
        await world.cancel(file)
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=0.02 * (seed % 3))
    async with world.process() as process:
        await process.finished(within=600.0)
    assert await findings(world) == []
    assert any(isinstance(move, Lost) for move in world.ledger.moves)
    assert 0 < world.total(State.CANCELLED) < 300
