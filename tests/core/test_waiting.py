"""Steps that lack a place, in virtual time: when they are tried again, in which order, and what is said."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from dispatcher.errors import LedgerFullError
from dispatcher.formats.disk import BarredError, DiskFaultError, MissingFolderError, PassingFaultError, disk_fault
from dispatcher.sources.patience import BACK, LOOK_SECONDS, SIDE_BY_SIDE, Waiting, patient

pytestmark = pytest.mark.looptime(noop_cycles=1)

RESULTS, DONE = Path("/spool/results"), Path("/spool/done")


class Disk:
    """Folders of which some are barred, and what was put into them."""

    def __init__(self) -> None:
        self.waiting = Waiting([RESULTS, DONE])
        self.barred: dict[Path, int] = {}
        self.put: list[str] = []
        self.tries = 0

    async def put_into(self, folder: Path, name: str) -> None:
        self.tries += 1
        await anyio.sleep(0.01)
        for lacked in (folder / name, folder):
            if lacked in self.barred:
                raise disk_fault("write", str(folder / name), OSError(self.barred[lacked], "no"))
        self.put.append(name)

    async def make(self, folder: Path, *names: str) -> None:
        for name in names:
            await self.waiting.make(partial(self.put_into, folder, name))

    @asynccontextmanager
    async def looked(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.waiting.run)
            yield
            tasks.cancel_scope.cancel()


async def test_what_lacks_one_place_is_told_once_costs_one_try_a_look_and_holds_up_no_other() -> None:
    disk, names = Disk(), [f"{n}.jsonl" for n in range(50)]
    disk.barred[RESULTS] = errno.EROFS
    with capture_logs() as logs:
        async with disk.looked():
            await disk.make(RESULTS, *names)
            await disk.make(DONE, "other.jsonl")
            assert disk.put == ["other.jsonl"]
            tries = disk.tries
            await anyio.sleep(10.5 * LOOK_SECONDS)
            assert disk.tries == tries + 10
            disk.barred.clear()
            await anyio.sleep(2 * LOOK_SECONDS)
    assert sorted(disk.put) == sorted(["other.jsonl", *names])
    assert [(entry["log_level"], entry["place"]) for entry in logs] == [("error", str(RESULTS)), ("info", str(RESULTS))]
    assert [entry["event"] for entry in logs] == [BarredError.waited_for, BACK]
    assert "see to it that it is a folder that may be written to" in logs[0]["error"]


async def test_one_steps_own_trouble_holds_up_no_other_of_its_place() -> None:
    disk, names = Disk(), [f"{n}.jsonl" for n in range(3 * SIDE_BY_SIDE)]
    disk.barred = dict.fromkeys([RESULTS, RESULTS / names[0], RESULTS / names[-1]], errno.EPERM)
    async with disk.looked():
        await disk.make(RESULTS, *names)
        del disk.barred[RESULTS]
        await anyio.sleep(3.5 * LOOK_SECONDS)
        assert sorted(disk.put) == sorted(names[1:-1])
        disk.barred.clear()
        await anyio.sleep(2 * LOOK_SECONDS)
    assert sorted(disk.put) == sorted(names)


async def test_a_step_that_lacks_another_place_next_waits_for_that() -> None:
    disk = Disk()
    disk.barred.update({RESULTS: errno.ENOENT, DONE: errno.ENOSPC})

    async def both() -> None:
        await disk.put_into(RESULTS, "a.jsonl")
        await disk.put_into(DONE, "a.jsonl")

    with capture_logs() as logs:
        async with disk.looked():
            await disk.waiting.make(both)
            del disk.barred[RESULTS]
            await anyio.sleep(2.5 * LOOK_SECONDS)
            del disk.barred[DONE]
            await anyio.sleep(2 * LOOK_SECONDS)
    assert [entry["place"] for entry in logs] == [str(path) for path in (RESULTS, DONE, RESULTS, DONE)]
    assert disk.put[-2:] == ["a.jsonl", "a.jsonl"]


async def test_a_full_ledger_is_waited_for_in_silence_since_it_speaks_for_itself() -> None:
    disk, full = Disk(), [True]

    async def note() -> None:
        if full:
            raise LedgerFullError("full")
        disk.put.append("a.jsonl")

    with capture_logs() as logs:
        async with disk.looked():
            await disk.waiting.make(note)
            full.clear()
            await anyio.sleep(2 * LOOK_SECONDS)
    assert (disk.put, logs) == (["a.jsonl"], [])


async def test_a_disk_that_fails_is_not_waited_for() -> None:
    disk = Disk()
    disk.barred[RESULTS] = errno.EIO
    with pytest.raises(DiskFaultError):
        await disk.make(RESULTS, "a.jsonl")
    disk.barred[RESULTS] = errno.EROFS
    await disk.make(RESULTS, "a.jsonl")
    disk.barred[RESULTS] = errno.EIO
    with pytest.RaisesGroup(pytest.RaisesExc(DiskFaultError, match="health")):
        async with disk.looked():
            await anyio.sleep(2 * LOOK_SECONDS)


async def test_who_needs_what_a_step_makes_waits_for_it_where_a_folder_is_barred() -> None:
    tries = iter([errno.EROFS, errno.ENOTDIR, errno.ENOENT])

    async def step() -> str:
        for number in tries:
            raise disk_fault("read", "/spool/work/a.jsonl", OSError(number, "no"))
        return "made"

    with capture_logs() as logs:
        assert await patient(step) == "made"
    assert [entry["event"] for entry in logs] == [BarredError.waited_for, MissingFolderError.waited_for, BACK]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EXDEV, errno.ESTALE])
def test_what_nobody_can_put_right_meanwhile_does_not_pass(number: int) -> None:
    assert not isinstance(disk_fault("write", "/spool", OSError(number, "no")), PassingFaultError)
