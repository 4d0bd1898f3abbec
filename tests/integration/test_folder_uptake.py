"""Taken files become job files of the ledger, or results that say why not."""

import gzip
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from dispatcher.clock import SystemClock
from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import DiskFaultError
from dispatcher.identity import run_id
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.model import JobFile
from dispatcher.results import Results
from dispatcher.sources.folder import Folder, Taken
from dispatcher.sources.inbox import scan
from dispatcher.sources.patience import Waiting
from dispatcher.sources.turns import SMALL_BYTES
from dispatcher.sources.uptake import UNPACKERS, UNREADABLE, Uptake, UptakeSettings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b'{"payload": 1}\n' * 1000
PLENTY = 1 << 40


class Station:
    """A spool, a ledger, and what brings files from one to the other."""

    def __init__(self, spool: Path) -> None:
        self.folder = Folder(spool)
        self.folder.make()
        self.ledger = MemoryLedger()
        self.clock = SystemClock()
        self.numbers = count(1)
        self.settings = UptakeSettings(payload_root="/payloads", work_max_bytes=PLENTY, room_bytes=lambda: PLENTY)
        self.uptake = self.opened()

    def opened(self, **changes: object) -> Uptake:
        settings = replace(self.settings, **changes)
        waiting = Waiting(self.folder.folders)
        return Uptake(self.folder, ledger=self.ledger, clock=self.clock, settings=settings, titles=[], waiting=waiting)

    def dropped(self, name: str, content: bytes = TEXT) -> Taken:
        """A file that came into the inbox and was taken."""
        (self.folder.inbox / name).write_bytes(content)
        taken, _ = self.folder.take(scan(self.folder.inbox).entries, lambda: run_id(next(self.numbers).to_bytes(10)))
        return taken[0]

    async def taken_up(self, name: str, content: bytes = TEXT) -> JobFile:
        file = await self.uptake.take_up(self.dropped(name, content))
        assert file
        return file

    async def completed(self, file: JobFile) -> None:
        """All its jobs are final: there are none."""
        place = self.folder.results_place(file.run_id)
        await Results(self.ledger, self.clock, None, 0).write(file, place)
        self.folder.publish(file)
        await self.ledger.published(file.file_id, self.clock.now())
        self.folder.finish(file, "done")

    def listed(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.folder.spool / name).iterdir())


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(tmp_path / "spool")


async def test_a_plain_file_is_read_where_it_lies(station: Station) -> None:
    station.uptake = station.opened(deadline_seconds=60.0)
    file = await station.taken_up("a.jsonl")
    assert file.name == "a.jsonl"
    assert file.source == file.data_path == str(station.folder.work / f"{file.run_id}-a.jsonl")
    assert file.payload_root == "/payloads"
    assert file.size_bytes == len(TEXT)
    assert file.deadline_at == file.taken_at + 60.0
    assert not file.rebuilt
    assert await station.ledger.files() == [file]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
async def test_a_compressed_file_is_read_from_a_copy_beside_it(
    station: Station, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    file = await station.taken_up(f"a.jsonl{suffix}", pack(TEXT))
    assert Path(file.data_path).read_bytes() == TEXT
    assert file.size_bytes == len(TEXT)
    await station.completed(file)
    assert station.listed("work") == []
    assert station.listed("done") == [f"a.jsonl{suffix}"]


async def test_a_small_archive_does_not_wait_for_large_ones_that_are_being_unpacked(station: Station) -> None:
    asked, begun, unpacked = count(), threading.Semaphore(0), threading.Event()

    def room() -> int:
        if next(asked) < UNPACKERS:
            begun.release()
            unpacked.wait()
        return PLENTY

    station.uptake = station.opened(room_bytes=room)
    large = gzip.compress(os.urandom(SMALL_BYTES), compresslevel=0)
    waiting = [station.dropped(f"{n}.jsonl.gz", large) for n in range(UNPACKERS + 1)]
    async with anyio.create_task_group() as tasks:
        for taken in waiting:
            tasks.start_soon(station.uptake.take_up, taken)
        for _ in range(UNPACKERS):
            await anyio.to_thread.run_sync(begun.acquire)
        try:
            with anyio.fail_after(10.0):
                file = await station.taken_up("small.jsonl.gz", gzip.compress(TEXT))
            assert await station.ledger.files() == [file]
        finally:
            unpacked.set()
    assert len(await station.ledger.files()) == len(waiting) + 1


BROKEN = {
    "cut off": ("a.jsonl.gz", gzip.compress(TEXT)[:-9]),
    "empty": ("a.jsonl.gz", b""),
    "misnamed": ("a.jsonl", gzip.compress(TEXT)),
    "not packed": ("a.jsonl.zst", TEXT),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_file_that_cannot_be_read_goes_to_failed_and_its_results_say_why(station: Station, how: str) -> None:
    name, content = BROKEN[how]
    with capture_logs() as logs:
        assert await station.uptake.take_up(station.dropped(name, content)) is None
    assert await station.ledger.files() == []
    assert (station.listed("work"), station.listed("failed"), station.listed("results")) == ([], [name], [name])
    results = station.folder.results / name
    assert (results / "results.jsonl").read_bytes() == b""
    summary = json.loads((results / "summary.json").read_bytes())
    assert summary["error"]["code"] == UNREADABLE
    assert {summary[sum_] for sum_ in ("lines", "rejected", "accepted", "succeeded", "outstanding")} == {0}
    [line] = (json.loads(line) for line in (results / "errors.jsonl").read_text().splitlines())
    assert line == {"line": 0, "status": UNREADABLE, "error": summary["error"]}
    assert [entry["event"] for entry in logs] == ["job file cannot be read; moved to failed/"]


async def test_a_refused_name_is_free_for_the_next_try_but_for_its_results(station: Station) -> None:
    await station.uptake.take_up(station.dropped("a.jsonl.gz", b""))
    file = await station.taken_up("a.jsonl.gz", gzip.compress(TEXT))
    assert file.name == f"a.jsonl.gz-{file.run_id}"


async def test_an_archive_beyond_the_budget_is_refused(station: Station) -> None:
    station.uptake = station.opened(work_max_bytes=len(TEXT) - 1)
    assert await station.uptake.take_up(station.dropped("a.jsonl.gz", gzip.compress(TEXT))) is None
    assert station.listed("failed") == ["a.jsonl.gz"]


async def test_a_full_disk_is_waited_for(station: Station) -> None:
    room = iter([-5, 10, len(TEXT)])
    station.uptake = station.opened(room_bytes=lambda: next(room), room_retry_seconds=0.01)
    with capture_logs() as logs:
        file = await station.taken_up("a.jsonl.gz", gzip.compress(TEXT))
    assert file.size_bytes == len(TEXT)
    assert len(logs) == 1


async def test_a_damaged_archive_is_refused_also_where_room_is_short(station: Station) -> None:
    station.uptake = station.opened(room_bytes=lambda: len(TEXT), room_retry_seconds=0.01)
    with anyio.fail_after(20.0):
        assert await station.uptake.take_up(station.dropped("a.jsonl.gz", gzip.compress(TEXT)[:-9])) is None


async def test_a_disk_that_fails_is_a_fault_and_the_file_stays_in_work(station: Station) -> None:
    taken = station.dropped("a.jsonl.gz", gzip.compress(TEXT))
    taken.copy.mkdir()
    with pytest.raises(DiskFaultError):
        await station.uptake.take_up(taken)
    assert taken.path.exists()


# --- titles -----------------------------------------------------------------------------------------------------------


async def test_the_same_name_gets_results_of_its_own_while_the_first_is_at_work_and_after(station: Station) -> None:
    first = await station.taken_up("a.jsonl")
    second = await station.taken_up("a.jsonl")
    await station.completed(second)
    await station.completed(first)
    third = await station.taken_up("a.jsonl")
    await station.completed(third)
    titles = ["a.jsonl", f"a.jsonl-{second.run_id}", f"a.jsonl-{third.run_id}"]
    assert station.listed("results") == station.listed("done") == titles
    summary = json.loads((station.folder.results / "a.jsonl" / "summary.json").read_bytes())
    assert summary["run_id"] == first.run_id


async def test_a_forgotten_title_is_free_again(station: Station) -> None:
    file = await station.taken_up("a.jsonl")
    await station.completed(file)
    shutil.rmtree(station.folder.results / "a.jsonl")
    station.uptake.forget("a.jsonl")
    assert (await station.taken_up("a.jsonl")).name == "a.jsonl"


async def test_titles_differ_however_many_are_taken_up_at_once(station: Station) -> None:
    taken = [station.dropped("a.jsonl") for _ in range(20)]
    async with anyio.create_task_group() as tasks:
        for one in taken:
            tasks.start_soon(station.uptake.take_up, one)
    names = [file.name for file in await station.ledger.files()]
    assert len(set(names)) == 20
    assert names.count("a.jsonl") == 1


# --- after a crash ----------------------------------------------------------------------------------------------------


async def test_a_file_of_a_lost_ledger_starts_in_doubt(station: Station) -> None:
    [taken] = station.folder.recover(set()) or [station.dropped("a.jsonl")]
    file = await station.uptake.take_up(taken, rebuilt=True)
    assert file
    assert file.rebuilt
    assert file.run_id == taken.run_id


async def test_a_file_of_a_lost_ledger_whose_results_stand_is_only_moved(station: Station) -> None:
    file = await station.taken_up("a.jsonl.gz", gzip.compress(TEXT))
    place = station.folder.results_place(file.run_id)
    await Results(station.ledger, station.clock, None, 0).write(file, place)
    station.folder.publish(file)
    station.ledger = MemoryLedger()
    [taken] = station.folder.recover(set())
    assert await station.opened().take_up(taken, rebuilt=True) is None
    assert (station.listed("work"), station.listed("done")) == ([], ["a.jsonl.gz"])
    assert await station.ledger.files() == []


async def test_a_refusal_that_crashed_before_the_move_is_made_good(station: Station) -> None:
    await station.uptake.take_up(station.dropped("a.jsonl.gz", b""))
    run = json.loads((station.folder.results / "a.jsonl.gz" / "summary.json").read_bytes())["run_id"]
    (station.folder.failed / "a.jsonl.gz").rename(station.folder.work / f"{run}-a.jsonl.gz")
    [taken] = station.folder.recover(set())
    assert await station.uptake.take_up(taken, rebuilt=True) is None
    assert (station.listed("failed"), station.listed("results")) == (["a.jsonl.gz"], ["a.jsonl.gz"])


async def test_a_lost_copy_is_made_again(station: Station) -> None:
    file = await station.taken_up("a.jsonl.gz", gzip.compress(TEXT))
    Path(file.data_path).unlink()
    await station.uptake.restore(file)
    assert Path(file.data_path).read_bytes() == TEXT
    Path(file.data_path).unlink()
    Path(file.source).unlink()
    with pytest.raises(UnreadableFileError):
        await station.uptake.restore(file)


# --- without permission -----------------------------------------------------------------------------------------------


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder in which nobody has a privilege."""
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-test-"))
    is_root = os.geteuid() == 0
    if is_root:
        shutil.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


async def test_a_file_without_permission_fails_alone(unprivileged: Path) -> None:
    station = Station(unprivileged / "spool")
    denied = station.dropped("denied.jsonl")
    denied.path.chmod(0)
    assert await station.uptake.take_up(denied) is None
    assert station.listed("failed") == ["denied.jsonl"]
    assert (await station.taken_up("a.jsonl")).name == "a.jsonl"


async def test_an_inbox_that_may_not_be_looked_into_is_an_error_not_an_empty_one(unprivileged: Path) -> None:
    station = Station(unprivileged / "spool")
    (station.folder.inbox / "a.jsonl").write_bytes(TEXT)
    for mode in (0o600, 0o300):
        station.folder.inbox.chmod(mode)
        with pytest.raises(PermissionError):
            scan(station.folder.inbox)
    station.folder.inbox.chmod(0o700)
