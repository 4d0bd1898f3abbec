"""The whole path with an S3 behind it that is not ours: SeaweedFS, which is durable and checks every signature."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import STAGING, a_sandbox, audit, numbered, run
from tests.sandboxes import client
from tests.servers import seaweed


@pytest.fixture(scope="module")
def foreign_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        with client("s3", url) as s3:
            for bucket in ("sandbox-in", "sandbox-out"):
                s3.create_bucket(Bucket=bucket)
        yield url


def keys(s3: Any, bucket: str) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_a_run_against_a_foreign_s3_finds_every_output_and_failure_there(tmp_path: Path, foreign_s3: str) -> None:
    jobs = numbered(300, size=200)
    for size in (130_000, 2_000_000):
        jobs.job(b'"' + b"x" * size + b'"')
    path = jobs.write(tmp_path / "jobs.jsonl")
    model = {"min_seconds": 0.05, "max_seconds": 0.3, "instances": 8, "fail_every": 40}
    with a_sandbox(tmp_path, endpoint=model, s3_url=foreign_s3) as sandbox:
        elsewhere = {"AWS_ENDPOINT_URL_S3": foreign_s3}
        ended = run(tmp_path, sandbox, path, "--staging", STAGING, "--comparison-share", "0.2", **elsewhere)
        assert ended.status == 1, ended.said
        books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
        assert books.states() == {"succeeded": 295, "failed": 7}
        assert books.summary["by_transport"]["s3"] > 20
        assert all("was told to fail" in row["error"]["message"] for row in books.errors)
        assert "put" not in sandbox.counts()["requests"], "the sandbox's own S3 was used"
    with client("s3", foreign_s3) as s3:
        assert keys(s3, "sandbox-in") == [], "staged inputs are left"
        assert len(keys(s3, "sandbox-out")) == 302
