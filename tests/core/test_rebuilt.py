"""A ledger that was lost is made anew of the job files: what the outputs show to be finished is not run again."""

import pytest

from dispatcher.model import EndpointName, InferenceId, JobFile, State
from tests.core.checks import findings
from tests.core.service import CUT, INVALID, MISSING, NO_CONNECTION, THROTTLED, Weather
from tests.core.world import Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

ENDPOINTS = [EndpointName("model"), EndpointName("other"), EndpointName("third")]


async def passes(process: Process, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await process.until(lambda: False, within=seconds)


async def loses_its_ledger(world: World, lines: list[Line], finished: int) -> JobFile:
    """A file whose ledger is lost when at least so many of its jobs have finished."""
    await world.add("jobs.jsonl", lines)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) >= finished, within=600.0)
    await world.lose_ledger()
    world.service.calls.clear()
    return next(iter(world.files.values()))


def run_again(world: World) -> int:
    """How many jobs the service took more than once."""
    return sum(len(taken) > 1 for taken in world.service.accepted.values())


def finished_before(world: World) -> set[InferenceId]:
    return {name for name, (taken, *_) in world.service.accepted.items() if taken.at + 1.0 <= world.clock.now()}


async def test_finished_jobs_are_not_run_again_but_one_for_its_receipt() -> None:
    world = World()
    await loses_its_ledger(world, [Line()] * 2_500, 2_000)
    done = finished_before(world)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 2_500
    assert len(done) >= 2_000
    assert sum(len(world.service.accepted[name]) > 1 for name in done) <= 1


async def test_one_list_tells_of_a_shard() -> None:
    world = World()
    await loses_its_ledger(world, [Line()] * 3_000, 3_000)
    async with world.process() as process:
        await process.until(lambda: world.total(State.AMBIGUOUS) == 0)
    # Of the shard of the one job that was sent there is one more look.
    assert world.service.calls["LIST"] <= 2 * 3 + 2
    assert world.service.calls["HEAD"] <= 1


async def test_each_endpoint_sends_one_job_for_its_receipt() -> None:
    world = World()
    await loses_its_ledger(world, [Line(endpoint=name) for name in ENDPOINTS] * 200, 600)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert run_again(world) == 3


async def test_a_receipt_of_another_file_shows_the_place_too() -> None:
    world = World()
    await loses_its_ledger(world, [Line()] * 200, 200)
    await world.add("new.jsonl", [Line()] * 20)
    before = finished_before(world)
    world.weather.invoke = lambda invocation: THROTTLED if invocation.inference_id in before else None
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) == 219)
    assert run_again(world) == 0


async def test_a_dead_endpoint_keeps_only_its_own_jobs_in_doubt() -> None:
    world = World()
    dead, well = ENDPOINTS[:2]
    await loses_its_ledger(world, [Line(endpoint=dead)] * 1_500 + [Line(endpoint=well)] * 100, 1_600)
    world.weather.invoke = lambda invocation: MISSING if invocation.endpoint == dead else None
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED, well) == 100, within=60.0)
        await passes(process, 600.0)
        assert world.total(State.AMBIGUOUS, dead) == 1_499
        world.weather.invoke = lambda _: None
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert run_again(world) == 2


async def test_an_endpoint_that_does_not_honour_our_keys_gets_all_again() -> None:
    world = World(weather=Weather(own_names=True))
    await loses_its_ledger(world, [Line()] * 1_300, 1_300)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert run_again(world) == 1_300


async def test_without_chosen_keys_all_is_sent_again_at_once() -> None:
    world = World(Plan(chosen_keys=False))
    await loses_its_ledger(world, [Line()] * 100, 100)
    async with world.process() as process:
        await process.finished(within=60.0)
    assert await findings(world) == []


async def test_a_refused_job_is_followed_by_another_for_the_receipt() -> None:
    world = World(Plan(staging=False))
    file = await loses_its_ledger(world, [Line()] * 50, 50)
    bad = {row.id for row in (await world.rows(file))[48:]}
    world.weather.invoke = lambda invocation: INVALID if invocation.inference_id in bad else None
    async with world.process() as process:
        await process.finished(within=300.0)
    assert (world.total(State.DEAD), world.total(State.SUCCEEDED)) == (2, 48)
    assert run_again(world) == 1


async def test_a_lost_answer_of_the_one_that_was_sent_is_no_receipt() -> None:
    world = World()
    await loses_its_ledger(world, [Line()] * 50, 50)
    cuts = [True, True]
    world.weather.invoke = lambda _: CUT if cuts and cuts.pop() else None
    async with world.process() as process:
        await process.finished(within=300.0)
    assert await findings(world) == []
    assert run_again(world) == 1


async def test_what_s3_does_not_answer_stays_in_doubt() -> None:
    world = World()
    await loses_its_ledger(world, [Line()] * 50, 50)
    world.weather.s3 = lambda _operation, _place: NO_CONNECTION
    async with world.process() as process:
        await passes(process, 600.0)
        assert world.total(State.AMBIGUOUS) == 49
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert run_again(world) == 1


async def test_a_crash_in_the_middle_of_it_is_gone_on_with() -> None:
    world = World(Plan(seed=3))
    await loses_its_ledger(world, [Line()] * 500, 400)
    for _ in range(8):
        async with world.process() as process:
            await passes(process, world.random.uniform(0.001, 0.2))
    async with world.process() as process:
        await process.finished(within=120.0)
    assert [finding for finding in await findings(world) if "taken" not in finding] == []
    assert world.total(State.SUCCEEDED) == 500


async def test_rebuilt_jobs_expire_at_the_deadline_if_no_receipt_has_shown_the_place() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line()] * 50, deadline_at=world.clock.now() + 100.0)
    async with world.process() as process:
        await process.finished()
    await world.lose_ledger()
    world.weather.invoke = lambda _: MISSING
    async with world.process() as process:
        await process.until(lambda: world.total(State.EXPIRED) == 50, within=120.0)
