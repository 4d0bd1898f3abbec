"""What a run costs in memory: as much for many jobs as for few.

TEST_JOBS in the environment says how many are many: `TEST_JOBS=100000 pytest tests/integration/test_run_memory.py`.
"""

import os
from pathlib import Path

import pytest

from tests.measured import Cost, measured
from tests.programs import ENDPOINT, Jobs, a_sandbox, numbered, rows

FEW, MANY = 2_000, int(os.environ.get("TEST_JOBS", "20000"))
SECONDS = 60.0 + MANY / 200
GROWTH_MAX_BYTES = 24 << 20
"""What a job held in memory would cost shows at 1.3 KB a job; the page cache of the ledger grows to 8 MB."""


def cost(folder: Path, jobs: Jobs, name: str, *flags: object) -> Cost:
    with a_sandbox(folder) as sandbox:
        file = jobs.write(folder / name)
        ended, cost = measured(folder, sandbox, "run", file, "--endpoint", ENDPOINT, *flags, seconds=SECONDS)
    assert ended.status == 0, ended.said
    assert len(rows(Path(f"{file}.results") / "results.jsonl")) == len(jobs.payloads)
    return cost


@pytest.mark.timeout(2 * SECONDS)
def test_memory_does_not_grow_with_the_number_of_jobs(tmp_path: Path) -> None:
    few = cost(tmp_path, numbered(FEW), "few.jsonl")
    many = cost(tmp_path, numbered(MANY), "many.jsonl")
    assert many.peak_bytes < few.peak_bytes + GROWTH_MAX_BYTES
    assert many.peak_bytes < 150 << 20


def test_large_payloads_are_streamed(tmp_path: Path) -> None:
    small, large = Jobs(), Jobs()
    (tmp_path / "large").write_bytes(b"x" * 80_000_000)
    small.job(b"1")
    for _ in range(4):
        large.other(b"", b'"payload_path":"large"')
    staging = ("--staging", "s3://sandbox-in/x")
    few, many = cost(tmp_path, small, "small.jsonl", *staging), cost(tmp_path, large, "large.jsonl", *staging)
    assert many.peak_bytes < few.peak_bytes + GROWTH_MAX_BYTES
