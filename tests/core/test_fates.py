"""What becomes of submitted jobs: success beats failure, failure beats the deadline, and no answer settles nothing."""

from collections import Counter

import anyio
import pytest
from structlog.testing import capture_logs

from dispatcher.fates import EXCERPT_BYTES, excerpt
from dispatcher.identity import inference_id
from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import State
from tests.core.checks import findings
from tests.core.service import BUSY, DENIED, EPOCH, SLOW_DOWN, STAGING, Run, Weather
from tests.core.world import Line, Plan, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

NEVER = Run(None)
SHORT = Line(ttl_seconds=60, timeout_seconds=30)


async def test_a_job_without_result_expires_at_its_deadline_to_the_second() -> None:
    world = World(Plan(slack_seconds=10.0), Weather(runs=lambda _: NEVER))
    file = await world.add("jobs.jsonl", [SHORT])
    async with world.process() as process:
        await process.finished(within=110.0)
    row = (await world.rows(file))[0]
    assert row.state is State.EXPIRED
    assert row.due_at <= world.ledger.settled_at[row.key][0] <= row.due_at + 1.0
    assert await findings(world) == []


async def test_the_default_deadline_is_ttl_and_timeout_and_slack() -> None:
    world = World(weather=Weather(runs=lambda _: NEVER))
    file = await world.add("jobs.jsonl", [Line()] * 3)
    async with world.process() as process:
        await process.finished(within=30_000.0)
    for row in await world.rows(file):
        assert row.state is State.EXPIRED
        assert row.submitted_at is not None
        assert row.due_at - row.submitted_at == pytest.approx(21_600 + 900 + 120)
        assert world.ledger.settled_at[row.key][0] == pytest.approx(row.due_at, abs=1.0)


async def test_jobs_of_one_shard_expire_each_at_its_own_deadline() -> None:
    world = World(Plan(slack_seconds=10.0), Weather(runs=lambda _: NEVER))
    lines = [Line(ttl_seconds=ttl, timeout_seconds=30) for ttl in (60, 600, 3_600)]
    file = await world.add("jobs.jsonl", lines)
    async with world.process() as process:
        await process.finished(within=4_000.0)
    late = [world.ledger.settled_at[row.key][0] - row.due_at for row in await world.rows(file)]
    assert max(late) <= 1.0
    assert await findings(world) == []


async def test_an_output_that_comes_after_expiry_is_found_by_the_last_look() -> None:
    world = World(Plan(slack_seconds=10.0), Weather(runs=lambda _: Run(130.0)))
    file = await world.add("jobs.jsonl", [SHORT] * 5)
    async with world.process() as process:
        await process.until(lambda: world.total(State.EXPIRED) == 5, within=120.0)
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=60.0)
        await process.tracker.last_look(file.file_id, published=False)
    assert world.total(State.SUCCEEDED) == 5
    assert await findings(world) == []


async def test_an_output_that_comes_after_publishing_changes_nothing() -> None:
    world = World(Plan(slack_seconds=10.0), Weather(runs=lambda _: Run(130.0)))
    file = await world.add("jobs.jsonl", [SHORT] * 5)
    async with world.process() as process:
        await process.until(lambda: world.total(State.EXPIRED) == 5, within=120.0)
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=60.0)
        await process.tracker.last_look(file.file_id, published=True)
    assert world.total(State.EXPIRED) == 5


@pytest.mark.parametrize(("output", "failure"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
async def test_an_output_beats_a_failure_object(output: float, failure: float) -> None:
    world = World(weather=Weather(runs=lambda _: Run(output, failure_after=failure)))
    await world.add("jobs.jsonl", [Line()] * 20)
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []


async def test_an_output_that_appears_while_failures_are_looked_for_wins() -> None:
    world = World(weather=Weather(runs=lambda _: Run(None, failure_after=0.1)))
    await world.add("jobs.jsonl", [Line()] * 20)

    def output_comes_late(operation: str, place: str) -> None:
        if operation == "LIST" and place.startswith("s3://failures/"):
            for (taken,) in world.service.accepted.values():
                world.service.put(taken.receipt.output_location, world.clock.now(), b"{}")

    world.weather.s3 = output_comes_late
    async with world.process() as process:
        await process.finished()
    assert world.total(State.SUCCEEDED) == 20


async def test_a_failure_object_without_output_fails_the_job_with_its_text() -> None:
    world = World(weather=Weather(runs=lambda _: Run(None, failure_after=2.0)))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    async with world.process() as process:
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert {(row.state, row.error.message) for row in await world.rows(file) if row.error} == {
        (State.FAILED, "the model failed")
    }


async def test_without_a_failure_location_a_failed_job_expires() -> None:
    world = World(
        Plan(slack_seconds=10.0), Weather(has_failure_path=False, runs=lambda _: Run(None, failure_after=1.0))
    )
    await world.add("jobs.jsonl", [SHORT] * 3)
    async with world.process() as process:
        await process.finished(within=110.0)
    assert world.total(State.EXPIRED) == 3


async def test_results_are_found_by_head_where_list_is_denied() -> None:
    world = World(weather=Weather(runs=lambda _: Run(world.random.uniform(1.0, 600.0))))
    world.weather.s3 = lambda operation, _: DENIED if operation == "LIST" else None
    await world.add("jobs.jsonl", [Line()] * 200)
    async with world.process() as process:
        await process.finished(within=3_600.0)
    assert await findings(world) == []
    assert world.service.calls["LIST"] <= 8


async def test_results_are_found_by_head_in_a_folder_that_all_share() -> None:
    world = World(weather=Weather(flat=True))
    for n in range(3_000):
        world.service.put(f"s3://out/model/stranger{n}", EPOCH, b"")
    await world.add("jobs.jsonl", [Line()] * 300)
    async with world.process() as process:
        await process.finished(within=300.0)
    assert await findings(world) == []
    assert world.service.calls["LIST"] <= 2 * 8


@pytest.mark.parametrize("answer", [BUSY, SLOW_DOWN])
async def test_nothing_is_settled_while_s3_is_down_and_all_goes_on_after_it(answer: object) -> None:
    world = World(weather=Weather(runs=lambda _: world.random.choice([Run(1.0), Run(None, failure_after=1.0)])))
    await world.add("jobs.jsonl", [SHORT] * 100)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 0)
        world.weather.s3 = lambda _operation, _place: answer  # type: ignore[assignment,return-value]
        with pytest.raises(TimeoutError):
            await process.finished(within=3_600.0)
        settled = 100 - world.outstanding()
        assert world.service.calls.total() < 3_600 / 10
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=120.0)
    assert settled == 0
    assert await findings(world) == []


async def test_a_short_outage_of_s3_delays_results_by_little() -> None:
    world = World(weather=Weather(runs=lambda _: Run(600.0)))
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 100)
        with pytest.raises(TimeoutError):
            await process.finished(within=500.0)
        world.weather.s3 = lambda _operation, _place: BUSY
        with pytest.raises(TimeoutError):
            await process.finished(within=2_000.0)
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=90.0)
    assert await findings(world) == []


async def test_staged_inputs_are_deleted_before_the_final_state_is_recorded() -> None:
    world = World(weather=Weather(runs=lambda _: world.random.choice([Run(1.0), Run(None, failure_after=1.0), NEVER])))
    await world.add("jobs.jsonl", [Line(size_bytes=200_000, ttl_seconds=60, timeout_seconds=30)] * 60)
    async with world.process() as process:
        await process.finished(within=600.0)
    assert await findings(world) == []
    assert len(world.service.discards) == 60


async def test_an_input_that_cannot_be_deleted_holds_nothing_up() -> None:
    world = World()
    world.weather.s3 = lambda operation, _: DENIED if operation == "DELETE" else None
    await world.add("jobs.jsonl", [Line(size_bytes=200_000)] * 10)
    async with world.process() as process:
        await process.finished()
    assert len(world.service.staged) == world.total(State.SUCCEEDED) == 10


async def test_what_a_look_settles_is_deleted_by_one_request() -> None:
    world = World(weather=Weather(runs=lambda _: Run(600.0)))
    await world.add("jobs.jsonl", [Line(size_bytes=200_000)] * 60)
    async with world.process() as process:
        await process.finished(within=3_600.0)
    assert (world.service.staged, len(world.service.discards)) == ({}, 60)
    assert 1 <= world.service.calls["DELETE"] <= 4


async def test_only_what_was_not_deleted_is_tried_again() -> None:
    world, asked = World(), Counter[str]()

    def twice(operation: str, place: str) -> Fault | None:
        asked[place] += operation == "DELETE"
        return SLOW_DOWN if operation == "DELETE" and ord(place[-1]) % 2 and asked[place] <= 2 else None

    world.weather.s3 = twice
    await world.add("jobs.jsonl", [Line(size_bytes=200_000)] * 60)
    async with world.process() as process:
        await process.finished()
    assert world.service.staged == {}
    assert Counter(asked[STAGING + key] for key in world.service.discards).keys() == {1, 3}
    assert await findings(world) == []


async def test_what_was_not_deleted_is_told_once_for_each_reason_with_its_number() -> None:
    world = World(weather=Weather(runs=lambda _: Run(600.0)))
    faults: dict[str, Fault] = {}

    def denied(operation: str, place: str) -> Fault | None:
        return faults.setdefault(place, (DENIED, BUSY)[len(faults) % 2]) if operation == "DELETE" else None

    world.weather.s3 = denied
    await world.add("jobs.jsonl", [Line(size_bytes=200_000)] * 60)
    with capture_logs() as logs:
        async with world.process() as process:
            await process.finished(within=3_600.0)
    told = [line for line in logs if line["event"] == "staged inputs not deleted"]
    assert sum(line["number"] for line in told if line["code"] == DENIED.code) == 30
    assert sum(line["number"] for line in told if line["code"] == BUSY.code) == 30
    assert len(told) <= 8


async def test_a_shard_that_fills_during_a_look_is_not_looked_at_twice_at_once() -> None:
    world = World(Plan(max_in_flight=64), Weather(runs=lambda _: Run(0.0), s3_seconds=lambda: 1.5))
    await world.add("jobs.jsonl", [Line()] * 2_500)
    async with world.process() as process:
        await process.finished(within=300.0)
    assert await findings(world) == []


def test_an_excerpt_is_one_printable_line_of_bounded_length() -> None:
    assert excerpt(b" a\nb\x00c\xff ") == "a b c\ufffd"
    assert len(excerpt(b"x" * 10_000)) == EXCERPT_BYTES


async def test_a_failure_object_that_could_not_be_read_is_asked_for_again_soon() -> None:
    world = World(weather=Weather(runs=lambda _: Run(None, failure_after=300.0)))
    await world.add("jobs.jsonl", [Line()] * 20)
    refused_at: dict[str, float] = {}

    def once(operation: str, place: str) -> Fault | None:
        if operation != "GET" or place in refused_at:
            return None
        refused_at[place] = world.clock.now()
        return SLOW_DOWN

    world.weather.s3 = once
    async with world.process() as process:
        await process.finished(within=6_000.0)
    assert world.total(State.FAILED) == 20
    assert world.clock.now() - min(refused_at.values()) < 10.0


async def test_a_look_for_failures_that_s3_did_not_answer_is_made_again_soon() -> None:
    world = World(weather=Weather(runs=lambda _: Run(None, failure_after=1.0)))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 20)
        places = {row.receipt.failure_location for row in await world.rows(file) if row.receipt}
        folders = {str(place).rpartition("/")[0] + "/" for place in places}
        untold = [2]

        def twice(_: str, place: str) -> Fault | None:
            if place not in places | folders or not untold[0]:
                return None
            untold[0] -= 1
            return SLOW_DOWN

        world.weather.s3 = twice
        await process.finished(within=12.0)
    assert (world.total(State.FAILED), untold) == (20, [0])


async def test_after_a_restart_what_is_missing_of_a_shard_that_has_results_is_looked_for_among_the_failures_at_once() -> (
    None
):
    def runs(invocation: Invocation) -> Run:
        return Run(None, failure_after=60.0) if invocation.inference_id in last else Run(1.0)

    world, last = World(), set[str]()
    file = await world.add("jobs.jsonl", [Line()] * 20)
    last.add(inference_id(file.run_id, 20))
    world.weather.runs = runs
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUCCEEDED) == 19)
    await anyio.sleep(600.0)
    async with world.process() as process:
        await process.finished(within=5.0)
    assert world.total(State.FAILED) == 1
    assert await findings(world) == []
