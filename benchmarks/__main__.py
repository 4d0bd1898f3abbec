"""CPU and memory of the real `dispatcher run`, per job, against a sandbox in a process of its own.

A round is two runs, of a few jobs and of many, so that what start-up costs can be taken off; several rounds, medians and
their spread are shown. What the sandbox uses is not counted: only the child process that runs the dispatcher is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load

ENDPOINT = "bench"
FEW = 100
CASES = (
    ("inline 1 KB, run --no-wait", 1_000, ("--no-wait",)),
    ("inline 1 KB, run", 1_000, ()),
    ("s3 200 KB, run", 200_000, ()),
)
"""Name, payload size in bytes, flags."""


class Used(NamedTuple):
    """What one process used: CPU and wall time in seconds, peak memory in MB."""

    cpu: float
    wall: float
    memory: float


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    print(
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {arguments.in_flight} in flight, {arguments.jobs} jobs"
    )
    endpoint = {"model": "digest", "instances": 1_000, "concurrency_per_instance": 1_000}
    with start_sandbox(load({"endpoints": {ENDPOINT: endpoint}})) as sandbox:
        for name, size, flags in CASES:
            jobs = arguments.jobs if size < 100_000 else max(FEW * 2, arguments.jobs // 10)
            rounds = [_round(sandbox, size, jobs, flags, arguments.in_flight) for _ in range(arguments.rounds)]
            _show(name, jobs, rounds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--quick", action="store_const", dest="jobs", const=2_000, help="2,000 jobs only")
    return parser.parse_args()


class Round(NamedTuple):
    """One round: CPU microseconds and wall seconds per job with start-up taken off, and the larger run's memory."""

    cpu_us: float
    jobs_per_second: float
    memory_mb: float


def _round(sandbox: Sandbox, size: int, jobs: int, flags: tuple[str, ...], in_flight: int) -> Round:
    few = _run(sandbox, size, FEW, flags, in_flight)
    many = _run(sandbox, size, jobs, flags, in_flight)
    more = jobs - FEW
    return Round(1e6 * (many.cpu - few.cpu) / more, more / max(many.wall - few.wall, 1e-9), many.memory)


def _run(sandbox: Sandbox, size: int, jobs: int, flags: tuple[str, ...], in_flight: int) -> Used:
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as folder:
        path = Path(folder) / "jobs.jsonl"
        line = json.dumps({"payload": "x" * (size - 2)}) + "\n"
        with path.open("w") as file:
            file.writelines(line for _ in range(jobs))
        command = [sys.executable, "-m", "dispatcher", "run", str(path), "--endpoint", ENDPOINT, *flags]
        command += ["--staging", "s3://sandbox-in/bench", "--comparison-share", "0", "--max-in-flight", str(in_flight)]
        command += ["--staged-inputs", "keep"]
        return _measured(command, os.environ | sandbox.env)


def _measured(command: list[str], environ: dict[str, str]) -> Used:
    started = time.monotonic()
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        said = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command[3]} ended with {child.returncode}: {said.decode()}")
    return Used(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1024)


def _show(name: str, jobs: int, rounds: list[Round]) -> None:
    cpu = sorted(one.cpu_us for one in rounds)
    print(
        f"{name:28} {jobs:7} jobs  CPU {statistics.median(cpu):6.0f} µs a job ({cpu[0]:.0f}–{cpu[-1]:.0f})  "
        f"{statistics.median(one.jobs_per_second for one in rounds):6.0f} jobs/s  "
        f"{max(one.memory_mb for one in rounds):5.0f} MB"
    )


if __name__ == "__main__":
    main()
