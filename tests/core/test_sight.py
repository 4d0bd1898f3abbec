"""Where the results of an endpoint cannot be looked for, its looks wait for a probe, say so, and go on by themselves."""

import pytest

from dispatcher.interfaces import Fault
from dispatcher.model import EndpointName, FailureReason, State
from dispatcher.search import SAMPLE
from tests.core.checks import findings
from tests.core.service import DENIED, NO_BUCKET, Run, Weather
from tests.core.world import MODEL, Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

OTHER = EndpointName("other")
SHORT = Line(ttl_seconds=60, timeout_seconds=30)


def reads(world: World) -> int:
    return world.service.calls["LIST"] + world.service.calls["HEAD"]


async def pass_by(process: Process, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await process.until(lambda: False, within=seconds)


@pytest.mark.parametrize(("denied", "calls"), [(DENIED, 1 + SAMPLE), (NO_BUCKET, 1)])
async def test_a_refused_look_holds_all_of_the_endpoint_back_until_a_probe_is_answered(
    denied: Fault, calls: int
) -> None:
    world = World(Plan(max_in_flight=64), Weather(s3=lambda _operation, _place: denied))
    await world.add("jobs.jsonl", [Line(size_bytes=100)] * 5_000)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 5_000)
        assert process.fates.sight.reason(MODEL) is denied.reason
        before = reads(world)
        await pass_by(process, 300.0)
        # At the most every 30 s, at the least every 15 s, and until the pauses are that long five more. A bucket that is
        # not there is said by one LIST; one that denies it may yet answer a few keys.
        assert 300 // 31 * calls <= reads(world) - before <= (300 // 15 + 5) * calls
        world.weather.s3 = lambda _operation, _place: None
        await process.until(lambda: process.fates.sight.reason(MODEL) is None, within=31.0)
        await process.finished(within=3.0)
    assert world.total(State.SUCCEEDED) == 5_000
    assert await findings(world) == []


async def test_no_job_expires_while_its_results_cannot_be_looked_for() -> None:
    world = World(Plan(slack_seconds=10.0), Weather(s3=lambda _operation, _place: DENIED))
    await world.add("jobs.jsonl", [SHORT] * 20)
    async with world.process() as process:
        await pass_by(process, 1_000.0)
        assert world.total(State.SUBMITTED) == 20
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=40.0)
    assert world.total(State.SUCCEEDED) == 20


async def test_an_endpoint_whose_bucket_is_denied_does_not_hold_up_the_others() -> None:
    world = World(Plan(max_in_flight=64))
    world.weather.s3 = lambda _, place: DENIED if "/other/" in place else None
    file = await world.add("jobs.jsonl", [Line(), Line(endpoint=OTHER)] * 50)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED, MODEL) == 50)
        assert process.fates.sight.reason(OTHER) is FailureReason.ACCESS_DENIED
        assert process.fates.sight.reason(MODEL) is None
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(file, within=35.0)


async def test_where_list_alone_is_denied_nothing_is_held_back() -> None:
    world = World(weather=Weather(runs=lambda _: Run(20.0)))
    world.weather.s3 = lambda operation, _: DENIED if operation == "LIST" else None
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: world.service.calls["HEAD"] > 0)
        assert process.fates.sight.reason(MODEL) is None
        await process.finished(within=60.0)
