"""The inbox on a real disk, with real events: files copied in, renamed in, many at once, folders that go and come back."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from dispatcher.clock import SystemClock
from dispatcher.sources.folder import Folder, Taken
from dispatcher.sources.inbox import BATCH, events, open_inbox, scan

MANY = int(os.environ.get("FOLDER_TEST_FILES", "5000"))


class Landed:
    """Everything that was handed over; `wait_for` waits for so many files."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self._changed = asyncio.Condition()

    async def accept(self, taken: list[Taken]) -> None:
        async with self._changed:
            self.taken += taken
            self._changed.notify_all()

    async def wait_for(self, files: int, within: float = 30.0) -> list[str]:
        with anyio.fail_after(within):
            async with self._changed:
                await self._changed.wait_for(lambda: len(self.taken) >= files)
        return [one.name for one in self.taken]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "spool")
    made.make()
    return made


@asynccontextmanager
async def watched(
    folder: Folder,
    accept: Callable[[list[Taken]], Awaitable[None]],
    *,
    settle_seconds: float = 0.2,
    scan_seconds: float = 0.3,
) -> AsyncIterator[None]:
    inbox = open_inbox(
        folder,
        clock=SystemClock(),
        random=os.urandom,
        settle_seconds=settle_seconds,
        scan_seconds=scan_seconds,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inbox.run, accept)
        yield
        tasks.cancel_scope.cancel()


async def test_a_thousand_files_of_a_hundred_lines_are_all_found(folder: Folder) -> None:
    text = '{"payload": 1}\n' * 100
    landed = Landed()
    async with watched(folder, landed.accept):
        for number in range(1_000):
            (folder.inbox / f"{number:04}.jsonl").write_text(text)
        names = await landed.wait_for(1_000)
    assert sorted(names) == [f"{number:04}.jsonl" for number in range(1_000)]
    assert len({one.run_id for one in landed.taken}) == 1_000
    assert all(one.path.read_text() == text for one in landed.taken)


async def test_files_renamed_in_while_the_reader_is_stalled_are_all_found(folder: Folder) -> None:
    """More than the kernel's queue of events holds, while the event loop stands still."""
    landed = Landed()
    async with watched(folder, landed.accept):
        (folder.inbox / "first.jsonl").write_text("")
        await landed.wait_for(1)
        script = (
            "import os, sys\n"
            "for n in range(int(sys.argv[2])):\n"
            "    open(f'{sys.argv[1]}/.{n}', 'w').close()\n"
            "    os.rename(f'{sys.argv[1]}/.{n}', f'{sys.argv[1]}/{n}.jsonl')\n"
        )
        command = [sys.executable, "-c", script, str(folder.inbox), str(MANY)]
        subprocess.run(command, check=True)  # noqa: ASYNC221 - the loop is to stand still
        names = await landed.wait_for(MANY + 1, within=90.0)
    assert {*names} == {"first.jsonl"} | {f"{number}.jsonl" for number in range(MANY)}
    assert len(names) == MANY + 1


async def test_a_file_that_is_copied_in_slowly_is_not_taken_before_it_stands_still(folder: Folder) -> None:
    landed = Landed()
    lines = 40
    async with watched(folder, landed.accept, settle_seconds=0.5):
        with (folder.inbox / "slow.jsonl").open("w") as slow:
            for _ in range(lines):
                await anyio.to_thread.run_sync(slow.write, "{}\n")
                written_at = time.monotonic()
                slow.flush()
                await anyio.sleep(0.05)
        await landed.wait_for(1)
    assert time.monotonic() - written_at >= 0.5
    assert landed.taken[0].path.read_text() == "{}\n" * lines


async def test_events_tell_of_a_new_file(folder: Folder) -> None:
    hinted = asyncio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(events, folder.inbox, hinted.set)
        with anyio.fail_after(20.0):
            while not hinted.is_set():
                (folder.inbox / "a.jsonl").touch()
                with anyio.move_on_after(0.1):
                    await hinted.wait()
        tasks.cancel_scope.cancel()


async def test_a_name_that_is_no_utf8_breaks_the_watch_and_it_is_begun_again(folder: Folder) -> None:
    landed, odd = Landed(), os.fsencode(folder.inbox) + b"/odd-\xff.jsonl"
    with capture_logs() as logs:
        async with watched(folder, landed.accept, scan_seconds=0.3):
            while not logs:
                os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
                with anyio.move_on_after(0.2):
                    await landed.wait_for(len(landed.taken) + 1)
            (folder.inbox / "next.jsonl").write_text("")
            with anyio.fail_after(20.0):
                while "next.jsonl" not in await landed.wait_for(len(landed.taken)):
                    await landed.wait_for(len(landed.taken) + 1)
    told = [line for line in logs if line["event"].startswith("file events failed")]
    assert ["odd-" in line["error"] for line in told] == [True]


def test_what_looks_like_a_job_file_and_is_left_alone_is_seen_with_the_reason(folder: Folder) -> None:
    for name in ("UPPER.JSONL", "a.jsonl.bz2", "a.png", ".hidden.jsonl", "a.jsonl.part", "a.jsonl.tmp", "good.jsonl"):
        (folder.inbox / name).write_text("")
    (folder.inbox / "link.jsonl").symlink_to(folder.inbox / "good.jsonl")
    (folder.inbox / "dir.jsonl").mkdir()
    os.mkfifo(folder.inbox / "fifo.jsonl")
    seen = scan(folder.inbox)
    assert [one.name for one in seen.entries] == ["good.jsonl"]
    assert {one.name: one.why.partition(" ")[0] for one in seen.left} == {
        **dict.fromkeys(["UPPER.JSONL", "a.jsonl.bz2"], "its"),
        **dict.fromkeys(["link.jsonl", "dir.jsonl", "fifo.jsonl"], "it"),
    }


async def test_a_folder_without_events_fails_instead_of_waiting(folder: Folder) -> None:
    with pytest.raises(ExceptionGroup):
        await events(folder.spool / "missing", lambda: None)


async def test_the_end_does_not_wait_for_an_event(folder: Folder) -> None:
    landed = Landed()
    async with watched(folder, landed.accept):
        (folder.inbox / "a.jsonl").write_text("")
        await landed.wait_for(1)
        began_at = time.monotonic()
    assert time.monotonic() - began_at < 2.0


async def test_the_same_name_again_is_another_run(folder: Folder) -> None:
    landed = Landed()
    async with watched(folder, landed.accept):
        for number in (1, 2):
            (folder.inbox / "a.jsonl").write_text(str(number))
            await landed.wait_for(number)
    first, second = landed.taken
    assert first.name == second.name == "a.jsonl"
    assert first.run_id != second.run_id
    assert (first.path.read_text(), second.path.read_text()) == ("1", "2")


async def test_a_file_removed_while_it_settles_is_no_trouble(folder: Folder) -> None:
    landed = Landed()
    with capture_logs() as logs:
        async with watched(folder, landed.accept):
            (folder.inbox / "gone.jsonl").write_text("")
            (folder.inbox / "gone.jsonl").unlink()
            (folder.inbox / "stays.jsonl").write_text("")
            assert await landed.wait_for(1) == ["stays.jsonl"]
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_an_inbox_that_is_deleted_and_made_again_is_gone_on_with(folder: Folder) -> None:
    landed = Landed()
    with capture_logs() as logs:
        async with watched(folder, landed.accept):
            (folder.inbox / "a.jsonl").write_text("")
            await landed.wait_for(1)
            for number in (2, 3):
                folder.inbox.rename(folder.spool / f"away-{number}")
                await until(partial(logged, logs, "cannot be read", times=number - 1))
                folder.inbox.mkdir()
                (folder.inbox / f"{number}.jsonl").write_text("")
                await landed.wait_for(number)
    assert logged(logs, "can be read again", times=2)


async def test_a_cancel_between_taking_and_accepting_leaves_the_files_for_recovery(folder: Folder) -> None:
    for number in range(BATCH):
        (folder.inbox / f"{number}.jsonl").write_text("")
    offered = asyncio.Event()

    async def never(_: list[Taken]) -> None:
        offered.set()
        await anyio.sleep_forever()

    async with watched(folder, never):
        with anyio.fail_after(20.0):
            await offered.wait()
    assert len(folder.recover(set())) == BATCH
    assert list(folder.inbox.iterdir()) == []


def logged(logs: Sequence[Mapping[str, Any]], text: str, *, times: int) -> bool:
    return len([line for line in logs if text in line["event"]]) == times


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(20.0):
        while not true():  # noqa: ASYNC110 - what is waited for is a log line
            await anyio.sleep(0.02)
