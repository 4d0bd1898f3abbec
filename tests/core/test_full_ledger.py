"""While the ledger's disk is full nothing new begins and nothing ends the process; what is on its way gets its receipt."""

from pathlib import Path

import anyio
import pytest
from prometheus_client import CollectorRegistry

from dispatcher.formats.joblines import LineRules
from dispatcher.intake import IntakeSettings, take_in
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.metrics import Metrics
from dispatcher.model import NewFile, RunId, State
from tests.core.checks import findings
from tests.core.service import Weather
from tests.core.world import MODEL, Line, World

pytestmark = pytest.mark.looptime(noop_cycles=1)


async def test_lanes_wait_while_the_ledger_is_full_and_go_on_when_it_is_not() -> None:
    world = World(weather=Weather(latency_seconds=lambda: 0.5))
    await world.add("jobs.jsonl", [Line()] * 200)
    async with world.process() as process:
        await process.until(lambda: world.total(State.SUBMITTED) > 20)
        world.ledger.full = True
        with pytest.raises(TimeoutError):
            await process.finished(within=600.0)
        assert world.total(State.CLAIMED) == 0
        assert world.total(State.SUCCEEDED) == len(world.service.sends) > 20
        world.ledger.full = False
        await process.finished(within=60.0)
    assert await findings(world) == []
    assert len(world.service.sends) == 200


async def test_a_lane_with_a_full_ledger_can_be_drained() -> None:
    world = World()
    await world.add("jobs.jsonl", [Line()] * 50)
    world.ledger.full = True
    async with world.process() as process:
        with pytest.raises(TimeoutError):
            await process.until(lambda: False, within=5.2)
        await process.drain(within=0.1)
    assert world.total(State.ACCEPTED) == 50


async def test_intake_waits_while_the_ledger_is_full_and_goes_on_when_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n' * 1_200)
    ledger = MemoryLedger()
    new = NewFile(
        run_id=RunId("run"),
        name=path.name,
        source=str(path),
        data_path=str(path),
        payload_root=str(tmp_path),
        size_bytes=path.stat().st_size,
        taken_at=0.0,
    )
    file = await ledger.add_file(new)
    rules = LineRules(endpoint=MODEL, allowed_endpoints=frozenset([MODEL]), staging=False)
    settings = IntakeSettings(rules=rules, share=0.0, line_max_bytes=1_000)
    async with anyio.create_task_group() as tasks:
        ledger.full = True
        tasks.start_soon(
            lambda: take_in(file, ledger=ledger, settings=settings, metrics=Metrics(CollectorRegistry(), [MODEL]))
        )
        await anyio.sleep(3_600.0)
        assert ledger.queues() == []
        ledger.full = False
    (read,) = await ledger.files()
    assert (read.lines, read.intake_done) == (1_200, True)
