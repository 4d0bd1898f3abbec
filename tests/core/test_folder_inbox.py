"""The inbox's loop in virtual time: when it scans, takes, waits, and what it says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from dispatcher.model import RunId
from dispatcher.sources.folder import NotTaken, Taken
from dispatcher.sources.inbox import BATCH, Inbox, LeftAlone, Scanned
from dispatcher.sources.settling import Entry
from tests.core.service import LoopClock

pytestmark = pytest.mark.looptime(noop_cycles=1)

SETTLE, SCAN = 2.0, 5.0


def now() -> float:
    return asyncio.get_running_loop().time()


def entry(number: int) -> Entry:
    return Entry(mtime_ns=number, name=f"{number}.jsonl", size=1, inode=number)


class Shore:
    """What the inbox looks at, told by the test; and what came of it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.identity = (1, 1)
        self.left: list[LeftAlone] = []
        self.error: OSError | None = None
        self.scan_seconds = 0.0
        self.stuck: set[str] = set()
        self.paused = False
        self.scans: list[float] = []
        self.taken: list[tuple[float, list[str]]] = []
        self.heard: list[float] = []
        self.hint: Callable[[], None] = lambda: None
        self.deaf: Exception | None = None
        self.accept_seconds = 0.0

    async def look(self) -> Scanned:
        self.scans.append(now())
        await anyio.sleep(self.scan_seconds)
        if self.error:
            raise self.error
        return Scanned(list(self.entries), self.identity, self.left)

    async def take(self, ready: Sequence[Entry]) -> tuple[list[Taken], list[NotTaken]]:
        await anyio.lowlevel.checkpoint()
        refused = [NotTaken(one.name, PermissionError("denied")) for one in ready if one.name in self.stuck]
        taken = [one for one in ready if one.name not in self.stuck]
        self.entries = [one for one in self.entries if one not in taken]
        return [Taken(run_id=RunId("a" * 16), name=one.name, path=Path(one.name)) for one in taken], refused

    async def accept(self, taken: list[Taken]) -> None:
        self.taken.append((now(), [one.name for one in taken]))
        await anyio.sleep(self.accept_seconds)

    async def hear(self, hint: Callable[[], None]) -> None:
        self.heard.append(now())
        self.hint = hint
        if self.deaf:
            raise self.deaf
        await anyio.sleep_forever()

    @property
    def names(self) -> list[str]:
        return [name for _, names in self.taken for name in names]


@asynccontextmanager
async def watched(shore: Shore) -> AsyncIterator[None]:
    inbox = Inbox(
        look=shore.look,
        take=shore.take,
        hear=shore.hear,
        paused=lambda: shore.paused,
        clock=LoopClock(),
        settle_seconds=SETTLE,
        scan_seconds=SCAN,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inbox.run, shore.accept)
        yield
        tasks.cancel_scope.cancel()


async def test_a_file_is_handed_over_when_it_has_settled_without_any_event() -> None:
    shore = Shore()
    shore.deaf = OSError("no watches left")
    async with watched(shore):
        await anyio.sleep(1.0)
        shore.entries = [entry(1)]
        await anyio.sleep(1.0 + SCAN + SETTLE)
    assert shore.names == ["1.jsonl"]
    assert shore.taken[0][0] == pytest.approx(SCAN + SETTLE, abs=0.2)


async def test_an_event_makes_the_next_scan_sooner() -> None:
    shore = Shore()
    async with watched(shore):
        await anyio.sleep(1.0)
        shore.entries = [entry(1)]
        shore.hint()
        await anyio.sleep(SETTLE + 0.3)
    assert shore.taken[0][0] == pytest.approx(1.0 + SETTLE, abs=0.2)


async def test_a_storm_of_events_does_not_become_a_storm_of_scans() -> None:
    shore = Shore()
    shore.scan_seconds = 0.5
    async with watched(shore):
        for _ in range(2_000):
            await anyio.sleep(0.01)
            shore.hint()
    assert len(shore.scans) <= 20.0 / (5 * 0.5) + 2


async def test_an_event_counts_once() -> None:
    shore = Shore()
    async with watched(shore):
        await anyio.sleep(1.0)
        shore.hint()
        await anyio.sleep(10 * SCAN)
    assert len(shore.scans) <= 13


async def test_events_while_paused_do_not_spin() -> None:
    shore = Shore()
    shore.paused = True
    async with watched(shore):
        for _ in range(100):
            shore.hint()
            await anyio.sleep(0.01)
        await anyio.sleep(SCAN)
    assert shore.scans == []


async def test_nothing_is_taken_while_paused_and_all_of_it_after() -> None:
    shore = Shore()
    async with watched(shore):
        await anyio.sleep(0.5)
        shore.paused = True
        shore.entries = [entry(number) for number in range(3)]
        await anyio.sleep(60.0)
        assert shore.names == []
        shore.paused = False
        await anyio.sleep(2 * SCAN + SETTLE)
    assert shore.names == ["0.jsonl", "1.jsonl", "2.jsonl"]


async def test_a_pause_stops_in_the_middle_of_many_files() -> None:
    shore = Shore()
    shore.entries = [entry(number) for number in range(5 * BATCH)]
    shore.accept_seconds = 1.0
    async with watched(shore):
        await anyio.sleep(SETTLE + 1.5)
        shore.paused = True
        await anyio.sleep(30.0)
        assert len(shore.names) == 2 * BATCH
        shore.paused = False
        await anyio.sleep(30.0)
    assert len(shore.names) == len(set(shore.names)) == 5 * BATCH


async def test_nothing_more_is_taken_until_the_last_batch_was_accepted() -> None:
    shore = Shore()
    shore.entries = [entry(number) for number in range(2 * BATCH)]
    shore.accept_seconds = 100.0
    async with watched(shore):
        await anyio.sleep(50.0)
        assert [len(names) for _, names in shore.taken] == [BATCH]
        await anyio.sleep(100.0)
    assert shore.names == [entry(number).name for number in range(2 * BATCH)]


async def test_a_file_that_cannot_be_taken_is_told_once_and_does_not_stop_others() -> None:
    shore = Shore()
    shore.entries, shore.stuck = [entry(1), entry(2)], {"1.jsonl"}
    with capture_logs() as logs:
        async with watched(shore):
            await anyio.sleep(60.0)
            assert shore.names == ["2.jsonl"]
            shore.stuck = set()
            await anyio.sleep(SCAN + SETTLE)
    assert shore.names == ["2.jsonl", "1.jsonl"]
    assert len([line for line in logs if "cannot be taken" in line["event"]]) == 1


async def test_many_files_that_cannot_be_taken_do_not_flood_the_log() -> None:
    shore = Shore()
    shore.entries = [entry(number) for number in range(BATCH)]
    shore.stuck = {one.name for one in shore.entries}
    with capture_logs() as logs:
        async with watched(shore):
            await anyio.sleep(60.0)
    assert len(logs) == 11


async def test_an_inbox_that_is_away_is_told_once_and_gone_on_with_when_it_is_back() -> None:
    shore = Shore()
    shore.error = FileNotFoundError("no inbox")
    with capture_logs() as logs:
        async with watched(shore):
            await anyio.sleep(60.0)
            shore.error, shore.entries = None, [entry(1)]
            await anyio.sleep(SCAN + SETTLE + 0.5)
    assert shore.names == ["1.jsonl"]
    assert [line["event"] for line in logs] == [
        "inbox cannot be read; looked for until it can",
        "inbox can be read again",
    ]


async def test_another_folder_at_the_same_path_is_watched_anew() -> None:
    shore = Shore()
    async with watched(shore):
        await anyio.sleep(SCAN + 1.0)
        assert shore.heard == [0.0]
        shore.identity = (1, 2)
        await anyio.sleep(3 * SCAN)
    assert len(shore.heard) == 2


async def test_events_that_fail_are_tried_again_and_told_once() -> None:
    shore = Shore()
    shore.deaf = ExceptionGroup("a group", [ExceptionGroup("another", [RuntimeError("watch limit reached")])])
    with capture_logs() as logs:
        async with watched(shore):
            await anyio.sleep(4 * SCAN + 1.0)
    assert len(shore.heard) == 5
    assert [line["error"] for line in logs] == ["watch limit reached"]


async def test_what_is_left_alone_is_told_once_and_not_without_bound() -> None:
    shore = Shore()
    shore.left = [LeftAlone(f"{number}.JSONL", "its name") for number in range(30)]
    with capture_logs() as logs:
        async with watched(shore):
            await anyio.sleep(10 * SCAN)
    assert [line.get("name") for line in logs[:2]] == ["'0.JSONL'", "'1.JSONL'"]
    assert (len(logs), logs[-1]["files"]) == (11, 20)
