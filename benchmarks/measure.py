"""Runs a contender against a target and says what it cost: CPU, peak memory and wall time of its processes.

The CPU is that of the process and of all its children that it waited for, user and system. What start-up costs is taken
off: a round is a run of few jobs and one of many, the difference is what a job costs. A run that did not send exactly the
work that it was asked for, by the target's own count, is no result: MeasureError.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contenders import Contender, Task
from benchmarks.loopback import Target, environment
from benchmarks.workloads import Workload

SAMPLE_SECONDS = 0.05
LONGEST_SECONDS = 120.0
LONGEST_PER_JOB_SECONDS = 0.005
"""A run that takes longer hangs, and is killed."""
FEW_SHARE = 10
"""The run of few jobs has a tenth of those of the other."""


class MeasureError(Exception):
    """A run that cannot be reported."""


class Used(NamedTuple):
    """What one run used: CPU and wall time in seconds, peak memory in MB; when it began (monotonic); what it said."""

    cpu: float
    wall: float
    memory: float
    began_at: float
    said: str


class Round(NamedTuple):
    """What a job cost in one round, start-up taken off; rate and peak memory of the larger run; what a request cost the target."""

    jobs: int
    cpu_us: float
    jobs_per_second: float
    memory_mb: float
    target_us: float


class Bench(NamedTuple):
    """Where runs are made. `folder` is on a disk whose fsync counts."""

    in_flight: int
    folder: Path

    def run(self, contender: Contender, workload: Workload, jobs: int, target: Target) -> tuple[Used, dict[str, Any]]:
        """One run, checked; with what the target has seen of it."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="run-") as folder:
            return self.run_in(Path(folder), contender, workload, jobs, target)

    def run_in(
        self,
        folder: Path,
        contender: Contender,
        workload: Workload,
        jobs: int,
        target: Target,
        delay_seconds: float = 0,
    ) -> tuple[Used, dict[str, Any]]:
        """As `run`, in a folder that is kept; the target holds back every answer for `delay_seconds`."""
        command = contender.command(Task(workload, jobs, self.in_flight, target, folder, self.folder))
        target.reset(delay_seconds)
        used = measured(command, environment(target.url, target.ca), jobs)
        counts = target.counts()
        _check(contender.name, workload, jobs, counts)
        return used, counts

    def round(self, contender: Contender, workload: Workload, jobs: int, target: Target) -> Round:
        """A run of few jobs and one of many."""
        fewer = max(jobs // FEW_SHARE, 1)
        few, _ = self.run(contender, workload, fewer, target)
        many, counts = self.run(contender, workload, jobs, target)
        return Round(
            jobs=jobs,
            cpu_us=per_job_us(few.cpu, many.cpu, jobs - fewer),
            jobs_per_second=submitted_per_second(counts),
            memory_mb=many.memory,
            target_us=1e6 * float(counts["cpu_seconds"]) / sum(counts["requests"].values()),
        )


def per_job_us(few_seconds: float, many_seconds: float, more_jobs: int) -> float:
    """Microseconds for each of the jobs that the larger run had more."""
    return 1e6 * (many_seconds - few_seconds) / more_jobs


def submitted_per_second(counts: dict[str, Any]) -> float:
    """From the first InvokeEndpointAsync to the last, as the target saw them."""
    seconds = counts["last_invoke_at"] - counts["first_invoke_at"]
    return float((counts["requests"]["InvokeEndpointAsync"] - 1) / max(seconds, 1e-6))


def measured(command: list[str], env: dict[str, str], jobs: int) -> Used:
    """Runs a command that has so many jobs to its end. MeasureError unless that is a good one."""
    with tempfile.TemporaryFile() as said:
        began_at = time.monotonic()
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        memory = _watch(child.pid, began_at + LONGEST_SECONDS + LONGEST_PER_JOB_SECONDS * jobs)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began_at
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    if child.returncode != 0:
        raise MeasureError(f"{' '.join(command)} ended with {child.returncode}:\n{text[-3_000:]}")
    return Used(usage.ru_utime + usage.ru_stime, wall, memory, began_at, text)


def _watch(pid: int, until: float) -> float:
    """Waits until the process ends; the peak of its memory in MB. One that takes too long is killed.

    Not ru_maxrss, which begins with what the parent had.
    """
    peak, descriptor = 0.0, os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], SAMPLE_SECONDS)[0]:
            peak = max(peak, _peak_mb(pid))
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)
    return peak


def _peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text("ascii", "replace"))
    return int(found[1]) / 1024 if found else 0.0


def _check(name: str, workload: Workload, jobs: int, counts: dict[str, Any]) -> None:
    """Everybody has sent exactly the jobs, by the right way, with all their bytes."""
    carrier = "PutObject" if workload.by_s3 else "InvokeEndpointAsync"
    sent, uploads = counts["requests"], jobs if workload.by_s3 else 0
    right = sent.get("InvokeEndpointAsync") == jobs and sent.get("PutObject", 0) == uploads and "Unknown" not in sent
    if not right or counts["bytes"].get(carrier) != jobs * workload.size:
        raise MeasureError(f"{name} did not do the work ({workload.name}, {jobs} jobs): the target counted {counts}")


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": os.cpu_count(),
        "processor": model[1] if model else "unknown",
        "python": sys.version.split()[0],
        "system": " ".join(os.uname()[i] for i in (0, 2)),
        "disk": _filesystem(folder),
        "free_gb": round(shutil.disk_usage(folder).free / 1e9),
    }


def _filesystem(folder: Path) -> str:
    """Kind of the file system that a folder is on: on tmpfs an fsync costs nothing."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1]
