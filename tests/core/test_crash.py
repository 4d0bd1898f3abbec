"""What a stop or a death of the process leaves behind is gone on with; nothing is lost, and no duplicate is unexplained."""

import pytest

from dispatcher.model import Released, State
from tests.core.checks import findings
from tests.core.service import NO_BUCKET, Run, Weather
from tests.core.world import Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


async def lives_for(process: Process, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await process.until(lambda: False, within=seconds)


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.05, 0.3])
async def test_a_drain_hands_back_what_was_not_sent_and_leaves_nothing_in_doubt(seconds: float) -> None:
    world = World(weather=Weather(latency_seconds=lambda: 0.5))
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process() as process:
        await process.until(lambda: world.total(State.CLAIMED) > 0)
        await lives_for(process, seconds) if seconds else None
        await process.drain()
    assert world.total(State.CLAIMED) == world.total(State.AMBIGUOUS) == 0
    assert any(isinstance(move, Released) and move.unsent for move in world.ledger.moves)
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert len(world.service.sends) == 100


@pytest.mark.parametrize("seed", range(30))
async def test_a_crash_at_any_time_loses_nothing(seed: int) -> None:
    world = World(Plan(seed=seed, share=0.3), Weather(runs=lambda _: Run(world.random.uniform(0.0, 5.0))))
    await world.add("jobs.jsonl", [Line()] * 120)
    for _ in range(5):
        async with world.process() as process:
            await lives_for(process, world.random.uniform(0.001, 0.4))
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 120


async def test_a_crash_puts_no_more_than_the_open_attempts_in_doubt() -> None:
    world = World(Plan(max_in_flight=4))
    await world.add("jobs.jsonl", [Line()] * 200)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 50)
    assert 0 < world.total(State.CLAIMED) <= 2 * 4
    async with world.process() as process:
        assert world.total(State.AMBIGUOUS) <= 2 * 4
        await process.finished()
    assert await findings(world) == []


async def test_recovery_that_dies_is_made_again() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 10)
    for _ in range(5):
        async with world.process():
            pass
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []


async def test_a_job_that_was_taken_before_the_crash_is_not_sent_again_if_its_output_is_there() -> None:
    world = World(Plan(min_in_flight=8), Weather(runs=lambda _: Run(0.5), latency_seconds=lambda: 0.2))
    await world.add("jobs.jsonl", [Line()] * 16)
    async with world.process() as process:
        await lives_for(process, 0.33)
    assert len(world.service.accepted) == 16
    assert world.total(State.CLAIMED) == 8
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert len(world.service.sends) == 16


async def test_a_deadline_that_passed_while_no_process_lived_is_acted_on_at_once() -> None:
    world = World(Plan(slack_seconds=1.0), Weather(runs=lambda _: Run(None)))
    await world.add("jobs.jsonl", [Line(ttl_seconds=60, timeout_seconds=1)] * 10)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 10)
    async with world.process(look=False) as process:
        await lives_for(process, 300.0)
    async with world.process() as process:
        await process.finished(within=5.0)
    assert world.total(State.EXPIRED) == 10
    assert await findings(world) == []


async def test_a_lane_that_stands_still_can_be_drained() -> None:
    world = World()
    world.weather.s3 = lambda operation, _: NO_BUCKET if operation == "PUT" else None
    await world.add("jobs.jsonl", [Line(size_bytes=200_000)] * 20)
    async with world.process() as process:
        await process.until(lambda: any(lane.paused for lane in process.lanes.values()))
        await process.drain(within=5.0)
    assert world.total(State.ACCEPTED) == 20
