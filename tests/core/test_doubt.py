"""An attempt whose answer is lost: its output is looked for under its own key, and only then is the job sent again."""

import pytest

from dispatcher.interfaces import Invocation
from dispatcher.model import Lost, State
from tests.core.checks import findings
from tests.core.service import CUT, NO_CONNECTION, Run, Weather
from tests.core.world import Line, Plan, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


def first_of(world: World, unlucky: set[str]) -> None:
    """The first answer to each of these jobs is lost."""

    def cut(invocation: Invocation) -> bool:
        return invocation.inference_id in unlucky and len(world.service.accepted[invocation.inference_id]) == 1

    world.weather.cut = cut


async def test_a_job_whose_202_was_lost_is_not_sent_again_if_its_output_is_there() -> None:
    world = World(weather=Weather(runs=lambda _: Run(0.2)))
    file = await world.add("jobs.jsonl", [Line()] * 50)
    first_of(world, {row.id for row in (await world.rows(file))[10:20]})
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert world.ledger.lost.total() == 10
    assert world.total(State.SUCCEEDED) == len(world.service.sends) == 50


@pytest.mark.parametrize("most", [0.2, 2.0, 4.5])
async def test_results_that_take_one_longer_than_the_other_are_waited_for(most: float) -> None:
    world = World()
    world.weather.runs = lambda _: Run(world.random.uniform(0.0, most))
    world.weather.cut = lambda _: world.random.random() < 0.2
    await world.add("jobs.jsonl", [Line()] * 500)
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    lost = world.ledger.lost.total()
    assert lost > 50
    assert len(world.service.sends) - 500 <= lost / 20


async def test_a_job_that_was_lost_and_not_taken_is_sent_again_under_the_same_keys() -> None:
    world = World()
    file = await world.add("jobs.jsonl", [Line()] * 30)
    unlucky = (await world.rows(file))[20].id
    tried: list[Invocation] = []

    def lose_once(invocation: Invocation) -> bool:
        tried.append(invocation)
        return sum(one.inference_id == unlucky for one in tried) == 1 and invocation.inference_id == unlucky

    world.weather.invoke = lambda invocation: CUT if lose_once(invocation) else None
    async with world.process() as process:
        await process.finished()
    sent = [one for one in tried if one.inference_id == unlucky]
    assert await findings(world) == []
    assert len(sent) == 2
    assert sent[0] == sent[1]


async def test_a_lost_job_without_a_sibling_receipt_is_sent_again() -> None:
    world = World()
    file = await world.add("jobs.jsonl", [Line()])
    first_of(world, {row.id for row in await world.rows(file)})
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert len(world.service.sends) == 2


async def test_a_doubt_is_kept_while_s3_does_not_answer() -> None:
    world = World(weather=Weather(runs=lambda _: Run(0.2)))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    first_of(world, {(await world.rows(file))[15].id})
    world.weather.s3 = lambda _operation, _place: NO_CONNECTION
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.finished(within=600.0)
        assert world.total(State.AMBIGUOUS) == 1
        assert world.service.calls.total() < 100
        world.weather.s3 = lambda _operation, _place: None
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert len(world.service.sends) == 20


async def test_doubts_are_looked_for_by_head_where_list_is_not_worth_it() -> None:
    world = World(weather=Weather(flat=True, runs=lambda _: Run(0.2)))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    first_of(world, {row.id for row in (await world.rows(file))[10:14]})
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert len(world.service.sends) == 20


async def test_without_chosen_keys_a_lost_job_is_sent_again() -> None:
    world = World(Plan(chosen_keys=False))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    first_of(world, {(await world.rows(file))[3].id})
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert len(world.service.sends) == 21


async def test_answers_lost_in_a_row_pause_the_lane_and_lose_nothing() -> None:
    world = World(weather=Weather(cut=lambda _: True))
    await world.add("jobs.jsonl", [Line()] * 100)
    async with world.process() as process:
        await process.until(lambda: any(lane.paused for lane in process.lanes.values()))
        assert any(isinstance(move, Lost) for move in world.ledger.moves)
        world.weather.cut = lambda _: False
        await process.finished(within=120.0)
    assert await findings(world) == []
    assert world.total(State.SUCCEEDED) == 100


async def test_a_failure_of_a_job_that_may_have_been_sent_twice_waits_for_the_other() -> None:
    world = World()
    file = await world.add("jobs.jsonl", [Line()] * 20)
    twice = (await world.rows(file))[10].id
    first_of(world, {twice})

    def runs(invocation: Invocation) -> Run:
        if invocation.inference_id != twice:
            return Run(1.0)
        again = len(world.service.accepted[invocation.inference_id]) > 1
        return Run(None, failure_after=0.1) if again else Run(4.0)

    world.weather.runs = runs
    async with world.process() as process:
        await process.finished()
    assert await findings(world) == []
    assert (await world.row(twice)).state is State.SUCCEEDED


async def test_a_failure_that_had_to_wait_is_settled_as_soon_as_the_wait_is_over() -> None:
    world = World(weather=Weather(runs=lambda _: Run(1.0)))
    file = await world.add("jobs.jsonl", [Line()] * 20)
    twice = (await world.rows(file))[10].id
    first_of(world, {twice})
    world.weather.runs = lambda invocation: Run(None, 0.1) if invocation.inference_id == twice else Run(1.0)
    async with world.process() as process:
        await process.finished(within=world.plan.doubt_cap_seconds + 15.0)
    assert (await world.row(twice)).state is State.FAILED
