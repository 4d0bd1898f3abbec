"""Jobs go out once, fairly, and within the limits, whatever the service answers for a while."""

import pytest

from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import EndpointName, State, Transport
from tests.core.checks import findings
from tests.core.service import BUSY, NO_CONNECTION, THROTTLED, Run
from tests.core.world import Line, Plan, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


async def test_every_job_of_a_plain_run_is_sent_once_and_succeeds() -> None:
    world = World(Plan(share=0.2))
    file = await world.add(
        "jobs.jsonl", [Line(size_bytes=size) for size in (0, 1, 128_000, 128_001) * 50], rejections=3
    )
    routed = [row.transport for row in await world.rows(file)]
    async with world.process() as process:
        await process.finished()
    assert [row.transport for row in await world.rows(file)] == routed
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 200
    assert len(world.service.sends) == 200


async def test_a_payload_that_is_in_s3_already_is_not_staged_again() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line(transport=Transport.REFERENCE)] * 20)
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert world.service.calls["PUT"] == 0


async def test_a_small_file_is_done_long_before_a_huge_one_that_came_first() -> None:
    world = World()
    await world.add("huge.jsonl", [Line()] * 3_000)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 500)
        small = await world.add("small.jsonl", [Line()] * 10)
        await process.finished(small, within=4.0)
        assert world.outstanding() > 1_500
        await process.finished()
    assert await findings(world) == []


async def test_one_dead_endpoint_does_not_slow_another() -> None:
    world = World()
    bad, good = EndpointName("bad"), EndpointName("good")
    world.weather.invoke = lambda invocation: BUSY if invocation.endpoint == bad else None
    await world.add("jobs.jsonl", [Line(endpoint=bad), Line(endpoint=good)] * 200)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED, good) == 200, within=5.0)
        world.weather.invoke = lambda _: None
        await process.finished(within=120.0)
    assert await findings(world) == []


@pytest.mark.parametrize("answer", [THROTTLED, BUSY, NO_CONNECTION])
async def test_one_refusal_for_now_in_twenty_kills_no_job_and_closes_no_lane(answer: Fault) -> None:
    world = World()
    world.weather.invoke = lambda _: answer if world.random.random() < 0.05 else None
    await world.add("jobs.jsonl", [Line()] * 600)
    async with world.process() as process:
        await process.finished(within=30.0)
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 600
    assert len(world.service.sends) < 600 * 1.1


@pytest.mark.parametrize("answer", [THROTTLED, BUSY, NO_CONNECTION])
async def test_an_outage_of_an_hour_kills_no_job_and_is_left_within_a_minute(answer: Fault) -> None:
    world = World()
    world.weather.invoke = lambda _: answer
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.finished(within=3_600.0)
        assert world.total(State.DEAD) == 0
        assert len(world.service.sends) < 100 + 3_600 / 15
        world.weather.invoke = lambda _: None
        await process.finished(within=60.0)
    assert await findings(world) == []


async def test_never_more_attempts_are_on_the_wire_than_the_limit() -> None:
    world = World(Plan(max_in_flight=3))
    world.weather.latency_seconds = lambda: world.random.uniform(0.01, 2.0)
    await world.add("jobs.jsonl", [Line()] * 60)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert world.service.most_on_wire == {EndpointName("model"): 3}


async def test_a_job_whose_payload_is_gone_is_dead_unsent_and_the_others_go_on() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line(gone=n % 10 == 0) for n in range(50)])
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert (world.total(State.DEAD), world.total(State.SUCCEEDED), len(world.service.sends)) == (5, 45, 45)


async def test_no_wait_submits_everything_and_looks_for_nothing() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process(look=False) as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 100)
        await process.drain()
    assert await findings(world, all_final=False) == []
    assert world.service.calls["LIST"] == world.service.calls["HEAD"] == 0


async def test_the_results_of_a_submitted_file_are_found_by_a_later_process() -> None:
    world = World()
    world.weather.runs = lambda _: Run(300.0)
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process(look=False) as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 100)
    async with world.process() as process:
        await process.finished(within=900.0)
    assert await findings(world) == []


async def test_a_job_sent_again_keeps_its_names() -> None:
    world = World()
    seen: list[Invocation] = []
    world.weather.invoke = lambda invocation: seen.append(invocation) or (BUSY if len(seen) < 4 else None)  # type: ignore[func-returns-value]
    await world.add("jobs.jsonl", [Line()])
    async with world.process() as process:
        await process.finished()
    assert len(seen) == 4
    assert len(set(seen)) == 1
