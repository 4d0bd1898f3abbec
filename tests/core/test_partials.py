"""Results so far: a file that is finished while they are written is told of; one that is really gone is an error."""

from pathlib import Path

import pytest
from msgspec import Struct

from dispatcher.errors import UnreadableFileError, UsageError
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.model import Cursor, EndpointName, Intake, JobFile, JobRow, NewFile, NewJob, RunId, Transport
from dispatcher.partials import write_partial
from dispatcher.results import Results
from tests.core.service import EPOCH, LoopClock

pytestmark = pytest.mark.looptime(noop_cycles=1)

LINE = b'{"payload": 1, "metadata": 7}'


class Moves(Struct):
    """Whose results stand, and whose job file moves away, as soon as somebody begins to read its rows."""

    name: str
    is_published: bool


class MovingLedger(MemoryLedger):
    """A ledger of files in a folder, one of which ends while it is read."""

    def __init__(self, folder: Path, moves: Moves | None) -> None:
        super().__init__()
        self._folder = folder
        self._moves = moves

    async def take_up(self, name: str) -> None:
        path = self._folder / name
        path.write_bytes(LINE + b"\n")
        new = NewFile(
            run_id=RunId(f"run-of-{name}"),
            name=name,
            source=str(path),
            data_path=str(path),
            payload_root=".",
            size_bytes=len(LINE),
            taken_at=EPOCH,
        )
        file = await self.add_file(new)
        job = NewJob(
            line=1,
            id="1",
            endpoint=EndpointName("model"),
            offset=0,
            length=len(LINE),
            size_bytes=1,
            transport=Transport.INLINE,
            has_metadata=True,
        )
        end = Cursor(len(LINE), 1, "")
        await self.accept(Intake(file_id=file.file_id, jobs=[job], rejections=[], lines=1, cursor=end, final=True))

    async def rows(self, file: int, after_line: int, limit: int) -> list[JobRow]:
        found = await self._named(file)
        if self._moves is not None and found.name == self._moves.name and after_line == 0:
            if self._moves.is_published:
                await self.published(found.file_id, EPOCH)
            Path(found.data_path).unlink()
        return await super().rows(found.file_id, after_line, limit)

    async def _named(self, file: int) -> JobFile:
        return next(one for one in await self.files() if one.file_id == file)


async def ledger_of_two(folder: Path, moves: Moves | None) -> MovingLedger:
    ledger = MovingLedger(folder, moves)
    for name in ("a.jsonl", "b.jsonl"):
        await ledger.take_up(name)
    return ledger


async def written(folder: Path, name: str | None, moves: Moves | None = None) -> dict[str, bool]:
    """Which of the two files that were asked for have results so far in the folder; else they are said to be finished."""
    ledger = await ledger_of_two(folder, moves)
    told = await write_partial(ledger, Results(ledger, LoopClock(), None, 0), name, folder / "so-far")
    for one in told:
        assert (one.folder is None) or (Path(one.folder) / "summary.json").exists()
    return {one.name: one.folder is not None for one in told}


async def test_one_file_is_asked_for_by_name_or_run_and_all_without(tmp_path: Path) -> None:
    assert await written(tmp_path, "b.jsonl") == {"b.jsonl": True}
    assert await written(tmp_path, "run-of-b.jsonl") == {"b.jsonl": True}
    assert await written(tmp_path, None) == {"a.jsonl": True, "b.jsonl": True}


async def test_a_file_that_is_not_in_the_ledger_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no job file 'c\.jsonl'"):
        await written(tmp_path, "c.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", None])
async def test_a_file_that_is_finished_meanwhile_is_told_of(name: str | None, tmp_path: Path) -> None:
    told = await written(tmp_path, name, Moves("a.jsonl", is_published=True))
    assert told == {"a.jsonl": False} | ({} if name else {"b.jsonl": True})


async def test_a_file_that_is_really_gone_is_an_error_of_its_own_alone(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"a\.jsonl"):
        await written(tmp_path, "a.jsonl", Moves("a.jsonl", is_published=False))
    assert await written(tmp_path, "b.jsonl", Moves("a.jsonl", is_published=False)) == {"b.jsonl": True}
