"""What is the lane's trouble pauses the lane, with a probe, and kills no job; what is the job's kills that job alone."""

import pytest
from structlog.testing import capture_logs

from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import FailureReason, Released, State, Transport
from tests.core.checks import findings
from tests.core.service import DENIED, INVALID, MISSING, NO_BUCKET, NO_INLINE, Weather
from tests.core.world import MODEL, Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


def paused(process: Process) -> list[FailureReason]:
    return process.lanes[MODEL].paused


@pytest.mark.parametrize("answer", [MISSING, DENIED])
async def test_trouble_that_nothing_gets_through_pauses_the_lane_until_it_is_over(answer: Fault) -> None:
    world = World(weather=Weather(invoke=lambda _: answer))
    await world.add("jobs.jsonl", [Line()] * 200)
    async with world.process() as process:
        await process.until(lambda: paused(process) == [answer.reason])
        with pytest.raises(TimeoutError):
            await process.finished(within=1_800.0)
        assert len(world.service.sends) < world.plan.max_in_flight + 1_800 / 15
        world.weather.invoke = lambda _: None
        await process.finished(within=60.0)
        assert paused(process) == []
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 200


async def test_jobs_claimed_before_the_lane_paused_go_back_unsent() -> None:
    world = World(weather=Weather(invoke=lambda _: MISSING))
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: any(isinstance(move, Released) and move.unsent for move in world.ledger.moves))
        assert len(world.service.sends) <= world.plan.max_in_flight
        assert paused(process) == [FailureReason.ENDPOINT_MISSING]


async def test_a_paused_lane_sends_one_probe_at_a_time() -> None:
    world = World(weather=Weather(invoke=lambda _: MISSING, latency_seconds=lambda: 5.0))
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: bool(paused(process)))
        world.service.most_on_wire.clear()
        await process.until(lambda: world.service.calls["PUT"] > 0 or len(world.service.sends) > 20, within=900.0)
        assert world.service.most_on_wire[MODEL] == 1


async def test_a_file_with_nothing_to_send_takes_no_probe_from_one_that_has() -> None:
    world = World()
    idle = [await world.add(f"idle{n}.jsonl", [Line()]) for n in range(20)]
    async with world.process() as process:
        await process.finished()
        world.weather.invoke = lambda _: MISSING
        for file in idle:
            process.lanes[MODEL].offer(next(q for q in world.ledger.queues() if q.file_id == file.file_id))
        await world.add("jobs.jsonl", [Line()] * 20)
        await process.until(lambda: bool(paused(process)))
        for queue in world.ledger.queues():
            process.lanes[MODEL].offer(queue)
        world.weather.invoke = lambda _: None
        await process.finished(within=5.0)


async def test_refusals_in_a_row_pause_the_lane_before_all_jobs_are_dead() -> None:
    world = World(Plan(staging=False), Weather(invoke=lambda _: INVALID))
    await world.add("jobs.jsonl", [Line()] * 500)
    async with world.process() as process:
        await process.until(lambda: paused(process) == [FailureReason.VALIDATION_ERROR])
        assert world.total(State.DEAD) == 0
        world.weather.invoke = lambda _: None
        await process.finished(within=60.0)
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 500


@pytest.mark.parametrize("staging", [True, False])
async def test_bad_jobs_among_good_ones_die_and_the_others_go_on(staging: bool) -> None:
    world = World(Plan(staging=staging))
    file = await world.add("jobs.jsonl", [Line(size_bytes=7 if n % 10 == 3 else 100) for n in range(300)])
    bad = {row.id for row in await world.rows(file) if row.size_bytes == 7}
    world.weather.invoke = lambda invocation: INVALID if invocation.inference_id in bad else None
    async with world.process() as process:
        await process.finished(within=120.0)
        assert paused(process) == []
    assert await findings(world) == []
    assert (world.total(State.DEAD), world.total(State.SUCCEEDED)) == (30, 270)
    assert len(world.service.sends) <= 270 + 30 * world.plan.max_faults


async def test_a_small_file_of_bad_jobs_ends_dead_within_its_budget() -> None:
    world = World(Plan(staging=False), Weather(invoke=lambda _: INVALID))
    file = await world.add("jobs.jsonl", [Line()] * 10)
    async with world.process() as process:
        await process.finished(within=900.0)
    assert await findings(world) == []
    assert len(world.service.sends) == 10 * world.plan.max_faults
    assert {row.error.code for row in await world.rows(file) if row.error} == {INVALID.code}


# --- inline as a feature -----------------------------------------------------------------------------------------------


def without_inline(invocation: Invocation) -> Fault | None:
    return NO_INLINE if invocation.body is not None else None


async def test_an_endpoint_that_refuses_inline_gets_everything_by_s3_after_one_proof() -> None:
    world = World(weather=Weather(invoke=without_inline))
    await world.add("jobs.jsonl", [Line()] * 200)
    async with world.process() as process:
        await process.finished()
        assert paused(process) == []
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 200
    assert sum(sent.body is not None for sent in world.service.sends) <= 2 * world.plan.max_in_flight


async def test_that_everything_goes_by_s3_from_now_on_is_said_once() -> None:
    """Also of jobs that were refused inline after that was known, since they were under way."""
    world = World(Plan(max_in_flight=32), Weather(invoke=without_inline))
    world.weather.latency_seconds = lambda: world.random.choice([0.01, 0.5, 2.0])
    await world.add("jobs.jsonl", [Line()] * 200)
    with capture_logs() as logs:
        async with world.process() as process:
            await process.finished()
    refused_at = [len(sent.body or b"") > 0 for sent in world.service.sends]
    assert sum(refused_at) > 8, "or this test shows nothing"
    assert sum("falling back to S3" in entry["event"] for entry in logs) == 1


async def test_inline_is_tried_again_after_a_while() -> None:
    world = World(weather=Weather(invoke=without_inline))
    await world.add("first.jsonl", [Line()] * 20)
    async with world.process() as process:
        await process.finished()
        world.weather.invoke = lambda _: None
        soon = await world.add("soon.jsonl", [Line()] * 20)
        await process.until(lambda: not world.outstanding(soon))
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=600.0)
        late = await world.add("late.jsonl", [Line()] * 20)
        await process.finished()
    assert {row.transport for row in await world.rows(soon)} == {Transport.S3}
    assert {row.transport for row in await world.rows(late)} == {Transport.INLINE}
    assert await findings(world) == []


async def test_inline_refused_without_a_staging_prefix_pauses_and_says_so() -> None:
    world = World(Plan(staging=False), Weather(invoke=without_inline))
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: paused(process) == [FailureReason.STAGING_NOT_SET])
        with pytest.raises(TimeoutError):
            await process.finished(within=900.0)
        assert world.total(State.DEAD) == 0
        world.weather.invoke = lambda _: None
        await process.finished()
    assert await findings(world) == []


async def test_one_bad_job_refused_both_ways_does_not_turn_inline_off() -> None:
    world = World()
    file = await world.add("jobs.jsonl", [Line()] * 40)
    bad = (await world.rows(file))[5].id
    world.weather.invoke = lambda invocation: INVALID if invocation.inference_id == bad else None
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert sum(sent.body is not None for sent in world.service.sends) == 40


# --- the bucket --------------------------------------------------------------------------------------------------------


async def test_trouble_of_the_bucket_pauses_the_s3_route_and_not_inline() -> None:
    world = World()
    world.weather.s3 = lambda operation, _: NO_BUCKET if operation == "PUT" else None
    await world.add("jobs.jsonl", [Line(size_bytes=200_000), Line()] * 150)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) == 150, within=30.0)
        assert paused(process) == [FailureReason.BUCKET]
        assert world.total(State.DEAD) == 0
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=120.0)
        assert paused(process) == []
    assert await findings(world) == []


async def test_a_bucket_that_is_gone_for_hours_still_does_not_slow_inline() -> None:
    world = World()
    world.weather.s3 = lambda operation, _: NO_BUCKET if operation == "PUT" else None
    await world.add("large.jsonl", [Line(size_bytes=200_000)] * 100)
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.finished(within=7_200.0)
        small = await world.add("small.jsonl", [Line()] * 1_000)
        await process.finished(small, within=30.0)


async def test_a_run_gone_on_with_without_its_staging_prefix_waits_for_it_and_dispatches_the_rest() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line(size_bytes=200_000), Line()] * 20)
    world.plan = Plan(staging=False)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) == 20)
        assert paused(process) == [FailureReason.STAGING_NOT_SET]
    world.plan = Plan()
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
