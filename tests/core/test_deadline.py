"""What is in doubt when its job file's deadline passes is looked for once more, and then expires; it is not sent again."""

import pytest

from dispatcher.model import Error, Reopened, State
from tests.core.checks import findings
from tests.core.service import CUT, NO_CONNECTION, Run, Weather
from tests.core.world import Line, Plan, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

OVERDUE = Error("result_missing", "too late")


async def test_a_doubt_that_outlives_the_deadline_expires() -> None:
    world = World(weather=Weather(invoke=lambda _: CUT, runs=lambda _: Run(None)))
    file = await world.add("jobs.jsonl", [Line(size_bytes=200_000)], deadline_at=world.clock.now() + 0.03)
    async with world.process() as process:
        await process.finished(within=120.0)
    row = (await world.rows(file))[0]
    assert (row.state, len(world.service.sends)) == (State.EXPIRED, 1)
    assert row.error is not None
    assert row.error.code == "result_missing"
    assert await findings(world) == []


async def test_an_output_that_is_there_beats_the_deadline() -> None:
    world = World(weather=Weather(runs=lambda _: Run(0.2)))
    file = await world.add("jobs.jsonl", [Line()] * 20, deadline_at=world.clock.now() + 0.5)
    unlucky = {row.id for row in (await world.rows(file))[15:]}
    world.weather.cut = lambda invocation: invocation.inference_id in unlucky
    async with world.process() as process:
        await process.finished(within=120.0)
    assert world.total(State.SUCCEEDED) == len(world.service.sends) == 20


async def test_before_the_deadline_a_doubt_is_sent_again() -> None:
    world = World(weather=Weather(cut=lambda _: len(world.service.sends) < 2))
    await world.add("jobs.jsonl", [Line()], deadline_at=world.clock.now() + 600.0)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert any(isinstance(move, Reopened) for move in world.ledger.moves)
    assert world.total(State.SUCCEEDED) == 1


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_nothing_is_sent_after_the_deadline_though_it_was_claimed_before(seconds: float) -> None:
    world = World(Plan(requests_per_second=20.0))
    began = world.clock.now()
    file = await world.add("jobs.jsonl", [Line()] * 100, deadline_at=began + seconds)
    sent_at: list[float] = []
    world.weather.invoke = lambda _: sent_at.append(world.clock.now())
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=seconds + 3.0)
        assert world.total(State.CLAIMED) == 0
        await world.ledger.end_unsent(file.file_id, State.EXPIRED, world.clock.now(), OVERDUE)
        await process.finished()
    assert world.total(State.EXPIRED) == 100 - len(world.service.sends) == 100 - world.total(State.SUCCEEDED)
    assert (len(sent_at) > 0) == (seconds > 0)
    assert all(at <= began + seconds + 0.02 for at in sent_at)


async def test_a_job_at_the_door_goes_back_at_the_deadline() -> None:
    world = World(Plan(requests_per_second=0.001))
    await world.add("jobs.jsonl", [Line()] * 4, deadline_at=world.clock.now() + 5.0)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) == 1)
        await process.until(lambda: world.total(State.CLAIMED) == 0, within=6.0)
    assert len(world.service.sends) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_ending_what_is_unsent_never_meets_a_look_at_a_doubt(seed: int) -> None:
    world = World(Plan(seed=seed, doubt_cap_seconds=1.0))
    world.weather.cut = lambda _: world.random.random() < 0.3
    world.weather.s3_seconds = lambda: world.random.choice([0.01, 1.0])
    world.weather.s3 = lambda _operation, _place: NO_CONNECTION if world.random.random() < 0.2 else None
    file = await world.add("jobs.jsonl", [Line()] * 300, deadline_at=world.clock.now() + 0.4)
    async with world.process() as process:
        for _ in range(200):
            with pytest.raises(TimeoutError):
                await process.until(lambda: False, within=0.1)
            if file.deadline_at is not None and world.clock.now() >= file.deadline_at:
                await world.ledger.end_unsent(file.file_id, State.EXPIRED, world.clock.now(), OVERDUE)
        await process.finished(within=300.0)
    assert world.outstanding() == 0
    assert world.total(State.EXPIRED) > 0
    assert world.total(State.SUCCEEDED) > 0
