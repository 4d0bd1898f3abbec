"""What a job costs, and how much memory it takes, as job files grow; and what tracking costs with all of one outstanding."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import OURS, Contender
from benchmarks.loopback import Target, environment
from benchmarks.measure import Bench, MeasureError, Used, measured, per_job_us
from benchmarks.ratios import Say
from benchmarks.workloads import INLINE

REPEAT_BELOW_JOBS = 50_000
"""Start-up takes some tens of milliseconds more or less: smaller runs are made several times, and their median counts."""


def measure(bench: Bench, target: Target, sizes: Sequence[int], repeats: int, say: Say) -> list[dict[str, Any]]:
    """A row for each size."""
    fewer = max(min(sizes) // 10, 1)
    few = [_cpu_seconds(bench, contender, fewer, target, repeats) for contender in OURS]
    rows = []
    for jobs in sizes:
        say(f"scale: {jobs:,} jobs")
        rows.append(_row(bench, target, jobs, fewer, few, repeats if jobs < REPEAT_BELOW_JOBS else 1))
    return rows


def _row(bench: Bench, target: Target, jobs: int, fewer: int, few: Sequence[float], repeats: int) -> dict[str, Any]:
    submit, run = OURS
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="scale-") as folder:
        submitted, _ = bench.run_in(Path(folder), submit, INLINE, jobs, target)
        tracked = _track(Path(folder) / "results" / "ledger.db", jobs, target)
    whole, counts = bench.run(run, INLINE, jobs, target)
    cpu = [submitted.cpu, whole.cpu]
    if repeats > 1:
        cpu = [_cpu_seconds(bench, contender, jobs, target, repeats) for contender in OURS]
    costs = [per_job_us(small, large, jobs - fewer) for small, large in zip(few, cpu, strict=True)]
    return {
        "jobs": jobs,
        "submit": _figures(submitted, costs[0]),
        "run": _figures(whole, costs[1]),
        "tracking": tracked,
        "after_202_us": costs[1] - costs[0],
        "lists": counts["requests"].get("ListObjectsV2", 0),
    }


def _cpu_seconds(bench: Bench, contender: Contender, jobs: int, target: Target, repeats: int) -> float:
    return median(bench.run(contender, INLINE, jobs, target)[0].cpu for _ in range(repeats))


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
