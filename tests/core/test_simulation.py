"""Whole lives by seed: random jobs, faults of all kinds, crashes at random times; then fair weather, and all must be right.

SIMULATION_SEEDS runs that many seeds instead, SIMULATION_FIRST_SEED begins elsewhere. A seed that fails is
in the test's name: the same seed gives the same life.
"""

import os
from random import Random

import pytest

from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import EndpointName, State, Transport
from tests.core.checks import findings
from tests.core.service import (
    BUSY,
    CUT,
    DENIED,
    INVALID,
    MISSING,
    NO_BUCKET,
    NO_CONNECTION,
    NO_INLINE,
    SLOW_DOWN,
    THROTTLED,
    Run,
)
from tests.core.world import Line, Plan, Process, World

pytestmark = pytest.mark.looptime(noop_cycles=1)

FIRST = int(os.environ.get("SIMULATION_FIRST_SEED", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("SIMULATION_SEEDS", "150")))
ENDPOINTS = [EndpointName("model"), EndpointName("other")]
ANSWERS = [THROTTLED, BUSY, NO_CONNECTION, MISSING, DENIED, CUT, INVALID]
S3_ANSWERS = [SLOW_DOWN, BUSY, NO_CONNECTION, NO_BUCKET]


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_every_job_ends_right_and_every_duplicate_is_explained(seed: int) -> None:
    chance = Random(seed)
    world = World(random_plan(seed, chance))
    bad = chance.random() < 0.3
    for n in range(chance.randint(1, 4)):
        deadline_at = world.clock.now() + chance.choice([1.0, 60.0, 2_000.0]) if chance.random() < 0.2 else None
        await world.add(
            f"file{n}.jsonl", random_lines(chance, world), rejections=chance.randint(0, 3), deadline_at=deadline_at
        )
    for _ in range(chance.randint(0, 6)):
        stormy(world, chance, bad=bad)
        async with world.process() as process:
            await lives(process, chance)
            if chance.random() < 0.1:
                await world.cancel(chance.choice(list(world.files.values())))
                await lives(process, chance)
        assert await findings(world, all_final=False) == []
        if chance.random() < 0.05:
            await world.lose_ledger()
    fair(world)
    async with world.process() as process:
        await process.finished(within=100_000.0)
        await process.look_last()
    assert await findings(world) == []
    if not bad:
        gone = sum(line.gone for line in world.lines)
        assert gone - world.total(State.EXPIRED) - world.total(State.CANCELLED) <= world.total(State.DEAD) <= gone


def random_plan(seed: int, chance: Random) -> Plan:
    staging = chance.random() < 0.8
    return Plan(
        seed=seed,
        staging=staging,
        share=chance.choice([0.0, 0.01, 0.5]) if staging else 0.0,
        max_in_flight=chance.choice([1, 2, 8, 32]),
        doubt_cap_seconds=chance.choice([0.0, 5.0, 60.0]),
        slack_seconds=chance.choice([5.0, 120.0]),
        commit_seconds=chance.choice([0.0, 0.002, 0.3]),
        chosen_keys=chance.random() < 0.9,
        requests_per_second=chance.choice([None, None, None, 20.0]),
        max_outstanding=chance.choice([None, None, None, 40]),
    )


def random_lines(chance: Random, world: World) -> list[Line]:
    return [random_line(chance, staging=world.plan.staging) for _ in range(chance.choice([1, 10, 60, 150]))]


def random_line(chance: Random, *, staging: bool) -> Line:
    return Line(
        endpoint=chance.choice(ENDPOINTS),
        size_bytes=chance.choice([0, 1, 500, 128_000, 128_001, 5_000_000]) if staging else 100,
        transport=chance.choice([None, None, None, Transport.REFERENCE]),
        ttl_seconds=chance.choice([60, 600, 21_600]),
        timeout_seconds=chance.choice([10, 900]),
        gone=chance.random() < 0.02,
    )


async def lives(process: Process, chance: Random) -> None:
    """The process does what it can for a while; sometimes it is drained before it ends, mostly it dies."""
    with pytest.raises(TimeoutError):
        await process.until(
            lambda: False, within=chance.choice([0.01, 0.3, 3.0, 30.0, 600.0]) * (0.5 + chance.random())
        )
    if chance.random() < 0.3:
        await process.drain(within=200.0)


def stormy(world: World, chance: Random, *, bad: bool) -> None:
    """Faults of every kind, each with a probability of its own; each kind is absent from about half of the lives."""

    def odds() -> float:
        return chance.choice([0.0, 0.0, 0.02, 0.3])

    weather, dice = world.weather, world.random
    answers = {answer.reason: (answer, odds()) for answer in ANSWERS if bad or answer is not INVALID}
    s3 = [(answer, odds()) for answer in S3_ANSWERS]
    list_denied, no_inline, cut, fails, never = chance.random() < 0.1, chance.random() < 0.1, odds(), odds(), odds() / 5
    longest = chance.choice([0.1, 5.0, 900.0])

    def invoke(invocation: Invocation) -> Fault | None:
        if no_inline and invocation.body is not None:
            return NO_INLINE
        return next((answer for answer, share in answers.values() if dice.random() < share / 4), None)

    def on_s3(operation: str, _: str) -> Fault | None:
        if list_denied and operation == "LIST":
            return DENIED
        # An input that could not be deleted is left behind, knowingly: that would say nothing of orphans.
        return next((answer for answer, share in s3 if dice.random() < share / 4 and operation != "DELETE"), None)

    def runs(_: Invocation) -> Run:
        took = dice.uniform(0.0, longest)
        if dice.random() < never:
            return Run(None)
        if dice.random() < fails:
            return dice.choice(
                [Run(None, failure_after=took), Run(took, failure_after=took / 2), Run(took, failure_after=took)]
            )
        return Run(took)

    weather.invoke, weather.s3, weather.runs = invoke, on_s3, runs
    weather.cut = lambda _: dice.random() < cut
    weather.latency_seconds = lambda: dice.choice([0.0, 0.02, 0.5])
    weather.s3_seconds = lambda: dice.choice([0.0, 0.01, 0.5])
    weather.flat = weather.flat or chance.random() < 0.05


def fair(world: World) -> None:
    weather = world.weather
    weather.invoke = lambda _: None
    weather.cut = lambda _: False
    weather.s3 = lambda _operation, _place: None
    weather.runs = lambda _: Run(1.0)
