"""What a job costs, and how much memory it takes, as job files grow; and what tracking costs with all of one outstanding."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from msgspec import Struct

from benchmarks.contenders import OURS, Contender
from benchmarks.loopback import Target, environment
from benchmarks.measure import Bench, MeasureError, Used, measured, per_job_us
from benchmarks.ratios import Say
from benchmarks.workloads import INLINE

REPEAT_BELOW_JOBS = 50_000
"""Smaller runs are made several times, before the larger ones and again after them, and their mean counts: a large run is a mean
over its own time, in which a shared machine is now faster and now slower."""


def measure(bench: Bench, target: Target, sizes: Sequence[int], repeats: int, say: Say) -> list[dict[str, Any]]:
    """A row for each size."""
    fewer = max(min(sizes) // 10, 1)
    often = [fewer, *(jobs for jobs in sizes if jobs < REPEAT_BELOW_JOBS)]
    say("scale: small runs, before")
    cpu = {jobs: [_cpu_seconds(bench, contender, jobs, target, repeats) for contender in OURS] for jobs in often}
    runs = []
    for jobs in sizes:
        say(f"scale: {jobs:,} jobs")
        runs.append(_run(bench, target, jobs))
    say("scale: small runs, after")
    for jobs in often:
        again = [_cpu_seconds(bench, contender, jobs, target, repeats) for contender in OURS]
        cpu[jobs] = [mean(both) for both in zip(cpu[jobs], again, strict=True)]
    return [_row(run, fewer, cpu) for run in runs]


class _Run(Struct, frozen=True):
    """One of each at a size."""

    jobs: int
    submitted: Used
    whole: Used
    tracked: dict[str, float]
    lists: int


def _run(bench: Bench, target: Target, jobs: int) -> _Run:
    submit, run = OURS
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="scale-") as folder:
        submitted, _ = bench.run_in(Path(folder), submit, INLINE, jobs, target)
        tracked = _track(Path(folder) / "results" / "ledger.db", jobs, target)
    whole, counts = bench.run(run, INLINE, jobs, target)
    return _Run(jobs, submitted, whole, tracked, counts["requests"].get("ListObjectsV2", 0))


def _row(run: _Run, fewer: int, often: dict[int, list[float]]) -> dict[str, Any]:
    """`often`: CPU seconds of the runs that were made several times, by their size."""
    cpu = often.get(run.jobs, [run.submitted.cpu, run.whole.cpu])
    costs = [per_job_us(small, large, run.jobs - fewer) for small, large in zip(often[fewer], cpu, strict=True)]
    return {
        "jobs": run.jobs,
        "submit": _figures(run.submitted, costs[0]),
        "run": _figures(run.whole, costs[1]),
        "tracking": run.tracked,
        "after_202_us": costs[1] - costs[0],
        "lists": run.lists,
    }


def _cpu_seconds(bench: Bench, contender: Contender, jobs: int, target: Target, repeats: int) -> float:
    return mean(bench.run(contender, INLINE, jobs, target)[0].cpu for _ in range(repeats))


def _figures(used: Used, cpu_us: float) -> dict[str, float]:
    return {"cpu_us": cpu_us, "memory_mb": used.memory, "wall_seconds": used.wall}


def _track(ledger: Path, jobs: int, target: Target) -> dict[str, float]:
    """Tracking alone, by a program that reads what `run --no-wait` has left; the target still lists its outputs."""
    command = [sys.executable, "-m", "benchmarks.tracking", str(ledger)]
    used = measured(command, environment(target.url, target.ca), jobs)
    told = json.loads(used.said.splitlines()[-1])
    if told["jobs"] != jobs:
        raise MeasureError(f"{told['jobs']} of {jobs} jobs were outstanding when tracking began")
    return {"cpu_us": 1e6 * told["cpu"] / jobs, "memory_mb": used.memory, "wall_seconds": told["wall"]}
