"""The work: which payloads by which way, how many jobs, and the job files that hold them."""

from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.asked import Asked

MB = 1_000_000
LEAST_JOBS = 200
"""A round of fewer jobs says nothing."""
MOST_BYTES = 400 * MB
"""Job files of a round are not larger than that."""


class Workload(NamedTuple):
    """Jobs of one kind. `weight` is how many of them are as much work as one inline job of 1 KB, roughly and inverted."""

    name: str
    size: int
    by_s3: bool
    tls: bool
    weight: float

    @property
    def path(self) -> str:
        """The way as peers name it."""
        return "s3" if self.by_s3 else "inline"

    def jobs(self, most: int) -> int:
        """How many jobs a round has for a contender that takes so many of the smallest."""
        return max(LEAST_JOBS, min(int(most * self.weight), MOST_BYTES // self.size) // 10 * 10)


INLINE = Workload("inline 1 KB", 1_000, by_s3=False, tls=False, weight=1.0)
STAGED = Workload("S3 1 KB", 1_000, by_s3=True, tls=False, weight=0.4)
SECURE = Workload("inline 1 KB, TLS", 1_000, by_s3=False, tls=True, weight=0.8)
WORKLOADS = (
    INLINE,
    SECURE,
    Workload("inline 100 KB", 100_000, by_s3=False, tls=False, weight=0.2),
    Workload("inline 100 KB, TLS", 100_000, by_s3=False, tls=True, weight=0.2),
    STAGED,
    Workload("S3 1 KB, TLS", 1_000, by_s3=True, tls=True, weight=0.3),
    Workload("S3 1 MB", MB, by_s3=True, tls=False, weight=0.02),
    Workload("S3 1 MB, TLS", MB, by_s3=True, tls=True, weight=0.02),
)
QUICK_WORKLOADS = (INLINE, SECURE, STAGED)


def job_file(folder: Path, workload: Workload, jobs: int) -> Path:
    """A job file with so many lines, made once for each kind and number."""
    path = folder / f"{workload.path}-{workload.size}-{jobs}.jsonl"
    if not path.exists():
        payload = Asked("", jobs, workload.size, workload.by_s3, 0, None).payload
        line = b'{"payload":%b%b}\n' % (payload, b',"transport":"s3"' if workload.by_s3 else b"")
        with path.open("wb") as file:
            file.writelines(line for _ in range(jobs))
    return path
