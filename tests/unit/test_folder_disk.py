"""The disk watermark."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dispatcher.sources.disk import Disk, Watermark, free_bytes, watch_disk
from dispatcher.status import DiskLow


def test_intake_stops_below_the_reserve_and_resumes_a_tenth_above_it() -> None:
    watermark = Watermark(1000)
    seen = [(free, watermark.observe(free), watermark.low) for free in (1000, 999, 1000, 1099, 1100, 1001, 999)]
    assert [(changed, low) for _, changed, low in seen] == [
        (False, False),
        (True, True),
        (False, True),
        (False, True),
        (True, False),
        (False, False),
        (True, True),
    ]


def test_without_a_reserve_intake_never_stops() -> None:
    watermark = Watermark(0)
    watermark.observe(0)
    assert not watermark.low


async def test_each_change_is_said_once_and_every_figure_is_passed_on() -> None:
    figures = iter([5000, 10, 10, 5000])
    seen: list[int] = []
    disk = Disk(lambda: next(figures), 1000, seen.append)
    low = []
    with capture_logs() as logs:
        for _ in range(4):
            await disk.look()
            low.append(disk.is_low())
    assert low == [False, True, True, False]
    assert seen == [5000, 10, 10, 5000]
    assert [entry["log_level"] for entry in logs] == ["error", "info"]


async def test_while_intake_is_stopped_it_tells_at_what_it_goes_on() -> None:
    figures = iter([5000, 10, 5000])
    disk, told = Disk(lambda: next(figures), 1000), []
    for _ in range(3):
        await disk.look()
        told.append(disk.low())
    assert told == [None, DiskLow(free_bytes=10, reserve_bytes=1000, resume_bytes=1100), None]


async def test_a_file_system_that_cannot_be_asked_changes_nothing() -> None:
    answers: list[int | OSError] = [10, OSError("gone"), OSError("gone"), 10]

    def free() -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    disk = Disk(free, 1000)
    with capture_logs() as logs:
        for _ in range(4):
            await disk.look()
            assert disk.is_low()
    assert len(logs) == 2


async def test_the_real_disk_is_asked(tmp_path: Path) -> None:
    seen: list[int] = []
    await watch_disk(tmp_path, 1, seen.append).look()
    assert seen[0] > 0
    with pytest.raises(FileNotFoundError):
        free_bytes(tmp_path / "missing")
