"""A file of ten lines, alone and beside one of ten million."""

import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.service.stage import FAST, Row, Stage, lines, scratch, staged, until

HUGE_LINES = 10_000_000
TIMES = 5
REAL = {"model": "digest", "min_seconds": 0.2, "max_seconds": 1.0, "instances": 1_000, "concurrency_per_instance": 8}
"""An endpoint that takes its time, and has instances enough."""
AS_USUAL = ("--settle-seconds", 2, "--scan-seconds", 5)
CASES: Mapping[str, tuple[Mapping[str, Any], tuple[object, ...]]] = {
    "300/s, results after 0.2 to 1 s": (REAL, (*AS_USUAL, "--requests-per-second", 300)),
    "as fast as it goes, results after 0.2 to 1 s": (REAL, AS_USUAL),
    "as fast as it goes, results at once": (FAST, AS_USUAL),
    "the same, files settle within 0.2 s": (FAST, ()),
}
"""`AS_USUAL`: as the settings are by default."""


def fairness() -> list[Row]:
    """Medians of several small files each way, from the drop until the results stand."""
    with scratch() as folder:
        huge = folder / "huge.jsonl"
        _write(huge)
        return [_row(name, huge, *case) for name, case in CASES.items()]


def _row(name: str, huge: Path, endpoint: Mapping[str, Any], flags: tuple[object, ...]) -> Row:
    with staged({"model": endpoint}, "--max-outstanding", HUGE_LINES, *flags) as stage:
        alone = [_small(stage, f"alone-{number}") for number in range(TIMES)]
        copy = stage.spool.inbox / ".huge.part"
        shutil.copyfile(huge, copy)
        copy.rename(stage.spool.inbox / "huge.jsonl")
        until(lambda: stage.accepted() > 5_000, 60.0)
        beside = [_small(stage, f"beside-{number}") for number in range(TIMES)]
    ratio = statistics.median(beside) / statistics.median(alone)
    return Row(
        f"ten lines beside ten million: {name}",
        "<= 1.5 times",
        f"{ratio:.2f} times: {_told(beside)} after {_told(alone)} alone",
        ratio <= 1.5,
    )


def _small(stage: Stage, name: str) -> float:
    began = time.monotonic()
    stage.spool.drop(f"{name}.jsonl", lines(10, "model"))
    until(stage.spool.results(f"{name}.jsonl").exists, 120.0, 0.005)
    took = time.monotonic() - began
    time.sleep(0.3)
    return took


def _told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def _write(path: Path) -> None:
    """Short lines: ten million of them are 200 MB."""
    with path.open("wb") as file:
        for first in range(0, HUGE_LINES, 10_000):
            file.write(b"".join(b'{"payload":%d}\n' % number for number in range(first, first + 10_000)))
