"""A lane uses what it is allowed and little more: throttling, rates, what waits for results, and what stands at its door."""

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import count

import pytest

from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import EndpointName, FailureReason, Released, State
from tests.core.checks import findings
from tests.core.service import BUSY, MISSING, THROTTLED, Run, Weather
from tests.core.world import MODEL, Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

NO_RESULT = Run(None)


class Throttle:
    """A token bucket whose rate moves: what was allowed, taken and sent since `reset`."""

    def __init__(self, rate: Callable[[float], float], now: Callable[[], float], burst_seconds: float = 0.05) -> None:
        self._rate = rate
        self._now = now
        self._burst_seconds = burst_seconds
        self._level = 0.0
        self._at = now()
        self.reset()

    def reset(self) -> None:
        self.allowed, self.taken, self.sent = 0.0, 0, 0

    def __call__(self, _: Invocation) -> Fault | None:
        now = self._now()
        rate = self._rate(now)
        gained = (now - self._at) * rate
        self._at = now
        self.allowed += gained
        self._level = min(max(1.0, rate * self._burst_seconds), self._level + gained)
        self.sent += 1
        if self._level < 1.0:
            return THROTTLED
        self._level -= 1.0
        self.taken += 1
        return None


def waves(now: float) -> float:
    return 1_100 - 900 * math.cos(2 * math.pi * now / 20)


def steps(now: float) -> float:
    return 2_000 if int(now / 10) % 2 else 200


async def passes(process: Process, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await process.until(lambda: False, within=seconds)


@pytest.mark.parametrize("rate", [waves, steps])
@pytest.mark.parametrize("round_trip", [0.0005, 0.004, 0.03])
async def test_nine_tenths_of_a_moving_throttle_are_used_and_few_sends_are_wasted(
    rate: Callable[[float], float], round_trip: float
) -> None:
    world = World(Plan(max_in_flight=128), Weather(runs=lambda _: NO_RESULT))
    world.weather.latency_seconds = lambda: world.random.uniform(0.5, 1.5) * round_trip
    await world.add("jobs.jsonl", [Line()] * 28_000)
    async with world.process(look=False) as process:
        world.weather.invoke = throttle = Throttle(rate, world.clock.monotonic)
        await passes(process, 4.0)
        throttle.reset()
        await passes(process, 20.0)
        assert world.total(State.ACCEPTED) > 1_000
    assert throttle.taken / throttle.allowed >= 0.9
    assert throttle.sent / throttle.taken <= 1.1
    assert world.violations == []


@pytest.mark.parametrize("round_trip", [0.0003, 0.004])
@pytest.mark.parametrize("least", [1.0, 2.0])
async def test_a_window_that_may_not_shrink_to_what_is_allowed_wastes_sends_and_not_what_is_allowed(
    least: float, round_trip: float
) -> None:
    world = World(Plan(max_in_flight=64, min_in_flight=least), Weather(runs=lambda _: NO_RESULT))
    world.weather.latency_seconds = lambda: world.random.uniform(0.5, 1.5) * round_trip
    await world.add("jobs.jsonl", [Line()] * 3_000)
    async with world.process(look=False) as process:
        world.weather.invoke = throttle = Throttle(lambda _: 200.0, world.clock.monotonic)
        await passes(process, 2.0)
        throttle.reset()
        await passes(process, 10.0)
        assert process.lanes[MODEL].paused == []
    assert throttle.taken / throttle.allowed >= 0.9
    assert world.violations == []


@pytest.mark.parametrize("least", [0.001, 2.0, 64.0])
async def test_a_service_that_throttles_everything_is_only_probed_after_a_second_or_two(least: float) -> None:
    world = World(Plan(max_in_flight=64, min_in_flight=least), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * 3_000)
    async with world.process(look=False) as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 500)
        world.weather.invoke = lambda _: THROTTLED
        await process.until(lambda: process.lanes[MODEL].paused == [FailureReason.THROTTLED], within=2.0)
        sent = len(world.service.sends)
        await passes(process, 60.0)
        assert sent < len(world.service.sends) <= sent + 10
        world.weather.invoke = lambda _: None
        await process.until(lambda: world.total(State.SUBMITTED) == 3_000)


async def test_after_an_outage_the_lane_starts_small_and_doubles() -> None:
    world = World(Plan(max_in_flight=64), Weather(runs=lambda _: NO_RESULT, latency_seconds=lambda: 0.1))
    await world.add("jobs.jsonl", [Line()] * 10_000)
    async with world.process(look=False) as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 2_000)
        world.weather.invoke = lambda _: MISSING
        await process.until(lambda: bool(process.lanes[MODEL].paused))
        await passes(process, 60.0)
        sent: dict[int, int] = defaultdict(int)
        begun: list[float] = []

        def counted(_: Invocation) -> None:
            begun.append(world.clock.monotonic())
            sent[round((begun[-1] - begun[0]) / 0.1)] += 1

        world.weather.invoke = counted
        await process.until(lambda: len(begun) > 500)
    assert [sent[round_trip] for round_trip in range(5)] == [1, 4, 8, 16, 32]


async def test_one_dead_endpoint_of_three_takes_nothing_from_the_others() -> None:
    names = [EndpointName(name) for name in ("one", "two", "dead")]

    async def submitted(mixed: list[EndpointName]) -> list[int]:
        """Jobs that the first two endpoints take in 20 s."""
        world = World(Plan(max_in_flight=4), Weather(runs=lambda _: NO_RESULT))
        world.weather.invoke = lambda invocation: BUSY if invocation.endpoint == "dead" else None
        await world.add("jobs.jsonl", [Line(endpoint=name) for name in mixed] * 6_000)
        async with world.process(look=False) as process:
            await passes(process, 20.0)
            return [world.total(State.SUBMITTED, name) for name in names[:2]]

    alone, beside = await submitted(names[:2]), await submitted(names)
    assert [after / before >= 0.95 for before, after in zip(alone, beside, strict=True)] == [True, True]


async def test_no_more_requests_a_second_are_sent_than_the_limit() -> None:
    world = World(Plan(requests_per_second=50.0), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * 1_000)
    async with world.process(look=False) as process:
        await passes(process, 10.0)
    assert 50 * 10 <= len(world.service.sends) <= 50 * 11 + 1


async def test_no_more_bytes_a_second_are_sent_than_the_limit() -> None:
    world = World(Plan(bytes_per_second=100_000.0), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line(size_bytes=50_000)] * 100)
    async with world.process(look=False) as process:
        await passes(process, 10.0)
    assert 20 <= len(world.service.sends) <= 23


async def results_come(world: World) -> None:
    """For what is outstanding now, and soon for what comes after it."""
    for taken in [one for each in world.service.accepted.values() for one in each]:
        world.service.put(taken.receipt.output_location, world.clock.now(), b"{}")
    world.weather.runs = lambda _: Run(1.0)


@pytest.mark.parametrize("max_in_flight", [1, 8, 64])
@pytest.mark.parametrize("most", [1, 10, 100])
async def test_a_lane_stops_claiming_at_the_outstanding_limit_and_goes_on_as_results_come(
    most: int, max_in_flight: int
) -> None:
    world = World(Plan(max_outstanding=most, max_in_flight=max_in_flight), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * most * 5)
    async with world.process() as process:
        await passes(process, 60.0)
        assert world.total(State.SUBMITTED) == len(world.service.accepted) == most
        await results_come(world)
        await process.finished(within=900.0)
    assert await findings(world) == []


async def test_a_limit_that_is_lowered_below_what_is_outstanding_lets_nothing_out_before_that_is_less() -> None:
    world = World(Plan(max_outstanding=100), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * 500)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 50)
        world.max_outstanding = 30
        # What was claimed under the old limit still goes out.
        await process.until(lambda: world.total(State.CLAIMED) == 0)
        sent = len(world.service.sends)
        await passes(process, 60.0)
        assert len(world.service.sends) == sent
        await results_come(world)
        await process.finished(within=900.0)
    assert await findings(world) == []


async def test_at_the_outstanding_limit_jobs_are_not_claimed_one_by_one() -> None:
    world = World(
        Plan(max_outstanding=40, max_in_flight=64, requests_per_second=20.0), Weather(runs=lambda _: NO_RESULT)
    )
    tries = count()
    world.weather.invoke = lambda _: BUSY if next(tries) % 10 else None
    await world.add("jobs.jsonl", [Line()] * 1_000)
    async with world.process(look=False) as process:
        await passes(process, 10.0)
    assert len(world.service.sends) >= 200
    assert world.ledger.claims <= 2 * 10 + 1
    assert world.violations == []


async def test_neither_lost_answers_nor_refusals_carry_a_lane_beyond_its_outstanding_limit_or_keep_it_below() -> None:
    world = World(Plan(max_outstanding=10), Weather(runs=lambda _: NO_RESULT))
    world.weather.invoke = lambda _: BUSY if world.random.random() < 0.3 else None
    world.weather.cut = lambda _: world.random.random() < 0.3
    await world.add("jobs.jsonl", [Line()] * 50)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 10, within=300.0)
        assert world.ledger.lost
        assert any(isinstance(move, Released) for move in world.ledger.moves)
        world.weather.cut = lambda _: False
        await results_come(world)
        await process.finished(within=900.0)
    assert await findings(world) == []


async def test_a_drain_hands_back_at_once_what_waits_at_the_door() -> None:
    world = World(Plan(requests_per_second=1.0), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process(look=False) as process:
        await passes(process, 5.5)
        sent = len(world.service.sends)
        await process.drain(within=0.1)
    assert len(world.service.sends) == sent
    assert world.total(State.ACCEPTED) == 100 - sent


async def test_a_lane_that_closes_hands_back_at_once_what_waits_at_the_door() -> None:
    world = World(Plan(requests_per_second=1.0), Weather(runs=lambda _: NO_RESULT))
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process(look=False) as process:
        await passes(process, 5.5)
        world.weather.invoke = lambda _: MISSING
        await process.until(lambda: bool(process.lanes[MODEL].paused), within=1.5)
        await process.until(lambda: world.total(State.CLAIMED) == 0, within=0.1)
    moves = [move for move in world.ledger.moves if isinstance(move, Released) and move.unsent]
    assert {move.reason for move in moves} == {FailureReason.ENDPOINT_MISSING}


async def test_nothing_but_throttling_shrinks_the_window() -> None:
    world = World(Plan(max_in_flight=32), Weather(runs=lambda _: NO_RESULT))
    world.weather.invoke = lambda _: BUSY if world.random.random() < 0.2 else None
    await world.add("jobs.jsonl", [Line()] * 2_000)
    async with world.process(look=False) as process:
        await process.until(lambda: world.total(State.SUBMITTED) == 2_000)
        assert process.lanes[MODEL].window == 32
