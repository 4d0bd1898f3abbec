"""Retention of `done/` and `results/`: what is old and ours goes, and nothing else."""

import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dispatcher.identity import run_id
from dispatcher.sources.folder import Folder
from dispatcher.sources.retention import RESULT_FILES, SLICE, Retention

RUN = run_id(bytes(10))
DAY = 86_400.0


class Later:
    """The machine's clock, put forward: the disk's own times cannot be set back."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return time.time() + self._seconds

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "spool")
    made.make()
    return made


async def sweep(folder: Folder, seconds_later: float) -> int:
    return await Retention(folder, DAY, Later(seconds_later)).sweep()


def a_result(folder: Folder, title: str) -> Path:
    path = folder.results / title
    path.mkdir()
    for name in RESULT_FILES:
        (path / name).write_text(f'{{"run_id": "{RUN}"}}')
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_is_older_than_the_retention_goes_and_nothing_younger(folder: Folder) -> None:
    a_result(folder, "a.jsonl")
    (folder.done / "a.jsonl").write_text("")
    (folder.done / f"a.jsonl-{RUN}").write_text("")
    assert await sweep(folder, DAY - 60.0) == 0
    assert await sweep(folder, DAY + 60.0) == 3
    assert names(folder.done) == names(folder.results) == []


async def test_an_old_file_that_was_finished_just_now_stays(folder: Folder) -> None:
    path = folder.work / "a.jsonl"
    path.write_text("")
    os.utime(path, (0, 0))
    path.rename(folder.done / "a.jsonl")
    assert await sweep(folder, 60.0) == 0


async def test_what_others_put_there_stays(folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "archive"
    outside.mkdir()
    (outside / "summary.json").write_text(f'{{"run_id": "{RUN}"}}')
    for name in (".hidden.jsonl", "notes.txt"):
        (folder.done / name).write_text("")
    (folder.done / "folder.jsonl").mkdir()
    (folder.done / "link.jsonl").symlink_to(outside / "summary.json")
    (folder.results / "link").symlink_to(outside)
    (folder.results / "no-summary").mkdir()
    (folder.results / "other-summary").mkdir()
    (folder.results / "other-summary" / "summary.json").write_text('{"total": 3}')
    (folder.results / "file.jsonl").write_text("")
    for kept in (folder.inbox, folder.work, folder.failed):
        (kept / "a.jsonl").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert await sweep(folder, 100 * DAY) == 0
    assert sorted(tmp_path.rglob("*")) == before


async def test_files_of_others_beside_our_results_stay_under_the_old_name(folder: Folder) -> None:
    (a_result(folder, "a.jsonl") / "report.html").write_text("")
    await sweep(folder, 2 * DAY)
    assert names(folder.results) == ["a.jsonl"]
    assert names(folder.results / "a.jsonl") == ["report.html"]
    assert await sweep(folder, 2 * DAY) == 0


async def test_what_a_crash_left_half_deleted_goes_at_the_next_sweep(folder: Folder) -> None:
    half = a_result(folder, ".a.jsonl.removed")
    (half / "results.jsonl").unlink()
    assert await sweep(folder, 0.0) == 1
    assert names(folder.results) == []


async def test_many_entries_go_in_slices(folder: Folder) -> None:
    for number in range(3 * SLICE + 1):
        (folder.done / f"{number}.jsonl").write_text("")
    assert await sweep(folder, 2 * DAY) == 3 * SLICE + 1
    assert names(folder.done) == []


async def test_a_folder_that_is_away_is_no_trouble(folder: Folder) -> None:
    folder.done.rmdir()
    a_result(folder, "a.jsonl")
    with capture_logs() as logs:
        assert await sweep(folder, 2 * DAY) == 1
    assert [line["log_level"] for line in logs] == ["info"]
