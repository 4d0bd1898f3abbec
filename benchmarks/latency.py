"""Times that a user waits: from the start of the process to its first request, and of a job by either way at some distance."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS
from benchmarks.loopback import Target
from benchmarks.measure import Bench, submitted_per_second
from benchmarks.ratios import Say
from benchmarks.workloads import INLINE, STAGED, Workload

WORTH_SECONDS = 5.0
"""Jobs for about so long."""


def start_up(bench: Bench, target: Target, rounds: int, say: Say) -> list[float]:
    """Seconds from the exec of `dispatcher run` until the target has its first InvokeEndpointAsync."""
    say("start-up")
    runs = [bench.run(OURS[0], INLINE, bench.in_flight, target) for _ in range(rounds)]
    return [counts["first_invoke_at"] - used.began_at for used, counts in runs]


def round_trips(
    bench: Bench, target: Target, delays_ms: Sequence[int], jobs_max: int, rounds: int, say: Say
) -> list[dict[str, Any]]:
    """Rows of jobs per second, and the median time of a submission, for each way and each simulated round trip."""
    rows = []
    for delay in delays_ms:
        for workload in (INLINE, STAGED):
            say(f"round trip of {delay} ms: {workload.name}")
            jobs = _jobs(bench.in_flight, delay, workload, jobs_max)
            found = [_one(bench, target, workload, jobs, delay / 1e3) for _ in range(rounds)]
            rows.append({"round_trip_ms": delay, "path": workload.path, "jobs": jobs, "rounds": found})
    return rows


def _jobs(in_flight: int, delay_ms: int, workload: Workload, most: int) -> int:
    trips = 2 if workload.by_s3 else 1
    return min(most, int(in_flight * WORTH_SECONDS * 1e3 / (delay_ms * trips))) if delay_ms else most


def _one(bench: Bench, target: Target, workload: Workload, jobs: int, delay_seconds: float) -> dict[str, float]:
    """The rate of `run --no-wait`: `run` holds back while too much is outstanding. The times of `run`: it sums them up."""
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="trip-") as folder:
        _, counts = bench.run_in(Path(folder), OURS[0], workload, jobs, target, delay_seconds)
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="trip-") as folder:
        bench.run_in(Path(folder), OURS[1], workload, jobs, target, delay_seconds)
        summary = json.loads((Path(folder) / "results" / "summary.json").read_bytes())
    (submission,) = summary["submission_seconds"]
    return {
        "jobs_per_second": submitted_per_second(counts),
        "p50_ms": 1e3 * submission["p50"],
        "p99_ms": 1e3 * submission["p99"],
    }
