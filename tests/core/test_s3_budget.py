"""What finding results costs: S3 calls and memory, at ten thousand jobs and more, however long the results take."""

import tracemalloc
from collections.abc import Callable
from random import Random

import pytest

from dispatcher.model import State, Submission
from tests.core.checks import findings
from tests.core.service import EPOCH, Run, Weather
from tests.core.world import Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

JOBS = 10_000
FAST = Plan(max_in_flight=256, commit_seconds=0.005)

TIMES: dict[str, Callable[[Random], float]] = {
    "at_once": lambda _: 0.05,
    "a_second": lambda chance: chance.expovariate(1.0),
    "minutes": lambda chance: chance.uniform(0.0, 600.0),
    "heavy_tail": lambda chance: chance.lognormvariate(2.0, 1.5),
    "two_kinds": lambda chance: chance.choice([0.3, 1_800.0]),
    "an_hour": lambda chance: 3_600.0 + chance.random(),
}


def looks(world: World) -> int:
    return world.service.calls["LIST"] + world.service.calls["HEAD"]


@pytest.mark.parametrize("times", TIMES)
async def test_full_shards_cost_at_most_one_call_for_fifty_results(times: str) -> None:
    world = World(FAST)
    world.weather.runs = lambda _: Run(TIMES[times](world.random))
    await world.add("jobs.jsonl", [Line()] * JOBS)
    async with world.process() as process:
        await process.finished(within=20_000.0)
    assert await findings(world) == []
    assert looks(world) <= 0.02 * JOBS


async def test_a_shard_that_fills_slowly_costs_no_more() -> None:
    world = World(Plan(max_in_flight=1), Weather(latency_seconds=lambda: 0.2, runs=lambda _: Run(0.3)))
    await world.add("jobs.jsonl", [Line()] * 2_000)
    async with world.process() as process:
        await process.finished(within=3_600.0)
    assert await findings(world) == []
    assert looks(world) <= 0.02 * 2_000


@pytest.mark.parametrize(("every_seconds", "took"), [(60.0, 1_200.0), (600.0, 3_600.0)])
async def test_a_shard_that_fills_over_half_a_day_has_its_results_soon_after_the_last(
    every_seconds: float, took: float
) -> None:
    world = World(Plan(requests_per_second=1 / every_seconds), Weather(runs=lambda _: Run(took)))
    jobs = int(12 * 3_600 / every_seconds)
    await world.add("jobs.jsonl", [Line()] * jobs)
    async with world.process() as process:
        await process.until(lambda: len(world.service.sends) == jobs, within=50_000.0)
        await process.finished(within=took + 300.0)
    assert await findings(world) == []
    assert looks(world) <= 18 + 1.5 * (13 * 12 + 10)


async def test_failures_and_expiries_cost_at_most_four_calls_each() -> None:
    world = World(Plan(max_in_flight=256, slack_seconds=10.0))
    bad = [Run(None, failure_after=1.0), Run(None)]
    world.weather.runs = lambda _: world.random.choice(bad) if world.random.random() < 0.05 else Run(1.0)
    await world.add("jobs.jsonl", [Line(ttl_seconds=600, timeout_seconds=60)] * JOBS)
    async with world.process() as process:
        await process.finished(within=1_000.0)
    assert await findings(world) == []
    bad_jobs = world.total(State.FAILED) + world.total(State.EXPIRED)
    assert bad_jobs > 0.04 * JOBS
    assert looks(world) + world.service.calls["GET"] <= 0.02 * world.total(State.SUCCEEDED) + 4 * bad_jobs


async def test_a_result_is_found_soon_after_it_is_there_by_the_measure_of_its_age() -> None:
    world = World(FAST)
    world.weather.runs = lambda _: Run(world.random.lognormvariate(4.0, 2.0))
    file = await world.add("jobs.jsonl", [Line()] * 3_000)
    async with world.process() as process:
        await process.finished(within=30_000.0)
    for row in await world.rows(file):
        if row.state is State.SUCCEEDED and row.completed_at is not None and row.submitted_at is not None:
            found_at = world.ledger.settled_at[row.key][0]
            assert found_at - row.submitted_at <= 3.5 * (row.completed_at - row.submitted_at) + 5.0


async def test_a_hundred_thousand_submitted_jobs_take_the_memory_of_a_hundred_records() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line()])
    tracker = Process(world).tracker
    queue = world.ledger.queues()[0].queue_id
    tracemalloc.start()
    for n in range(100_000):
        tracker.note(
            Submission(queue=queue, shard=n // 1_000, jobs=1, submitted_at=EPOCH + n, deadline_at=EPOCH + n + 22_620)
        )
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 100 * 2_000
