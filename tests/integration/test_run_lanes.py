"""What a run does when the other side does not play along, and what it leaves there."""

import contextlib
import signal
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, STAGING, Jobs, a_sandbox, audit, dispatch, numbered, run, started
from tests.sandboxes import client, eventually, free_ports

CANARIES = {
    "payload": "canary-payload-7391",
    "custom_attributes": "canary-attributes-7391",
    "metadata": "canary-metadata-7391",
    "secret": "canary-secret-7391",
    "token": "canary-token-7391",
}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def staged(sandbox: Sandbox) -> list[str]:
    with client("s3", sandbox.url) as s3:
        return [one["Key"] for one in s3.list_objects_v2(Bucket="sandbox-in").get("Contents", [])]


def test_where_inline_is_refused_as_a_feature_payloads_go_by_s3(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"inline": False}})
    jobs = numbered(300)
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"), "--staging", STAGING, "--max-in-flight", "8")
    assert ended.status == 0, ended.said
    assert "falling back to S3" in ended.err
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert {row["transport"] for row in books.results} == {"s3"}
    assert books.repeated == 0
    assert sandbox.counts()["requests"]["invoke"]["400 ValidationError"] <= 64
    assert staged(sandbox) == []


def test_without_a_staging_prefix_such_a_lane_waits_and_says_what_to_set(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"inline": False}})
    jobs = numbered(20)
    jobs.write(tmp_path / "jobs.jsonl")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT) as running:
        eventually(lambda: "--staging" in running.err.read_text(), 20.0)
        said = dispatch(tmp_path, None, "status", "jobs.jsonl")
        assert "paused: staging_not_set" in said.out
        running.signal(signal.SIGINT)
        assert running.end(10.0).status == 130
    ended = run(tmp_path, sandbox, "jobs.jsonl", "--staging", STAGING)
    assert ended.status == 0, ended.said
    assert audit(jobs, tmp_path / "jobs.jsonl.results", sandbox).states() == {"succeeded": 20}


def test_jobs_wait_for_an_endpoint_that_is_not_there_and_go_when_it_is(tmp_path: Path) -> None:
    jobs = numbered(50)
    jobs.write(tmp_path / "jobs.jsonl")
    with a_sandbox(tmp_path, endpoints={"other": {}}) as sandbox:
        with started(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT) as running:
            eventually(lambda: "endpoint_missing" in running.err.read_text(), 20.0)
            sandbox.patch(endpoints={ENDPOINT: {}})
            ended = running.end(30.0)
        assert ended.status == 0, ended.said
        books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
        assert (books.states(), books.repeated) == ({"succeeded": 50}, 0)
        assert sandbox.counts()["requests"]["invoke"]["400 ValidationError"] < 80


def test_a_job_that_is_refused_for_good_is_dead_and_the_others_are_not(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "validation", "skip": 20, "count": 1}])
    jobs = numbered(60)
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"), "--max-faults", "1")
    assert ended.status == 1, ended.said
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert books.states() == {"succeeded": 59, "dead": 1}
    (dead,) = [row for row in books.errors if row["status"] == "dead"]
    assert (dead["error"]["code"], dead["output_location"], dead["submitted_at"]) == ("ValidationError", None, None)


def a_day_passes(ledger: Path) -> None:
    """For what was submitted; the least TTL there is would be a minute."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
        waits = "submitted_at IS NOT NULL AND completed_at IS NULL"
        connection.execute(f"UPDATE job SET submitted_at = submitted_at - 86400, due_at = due_at - 86400 WHERE {waits}")  # noqa: S608


def test_results_that_never_come_end_expired(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"lose_every": 3}})
    jobs = numbered(6)
    jobs.write(tmp_path / "jobs.jsonl")
    submitted = run(tmp_path, sandbox, "jobs.jsonl", "--no-wait")
    assert submitted.status == 0, submitted.said
    a_day_passes(tmp_path / "jobs.jsonl.results" / "ledger.db")
    ended = run(tmp_path, sandbox, "jobs.jsonl")
    assert ended.status == 1, ended.said
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert books.states() == {"succeeded": 4, "expired": 2}
    assert {row["error"]["code"] for row in books.errors} == {"result_missing"}


@pytest.mark.parametrize("fate", ["delete", "keep", "lifecycle"])
def test_staged_inputs_are_deleted_kept_or_tagged(fate: str, tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(12)
    flags = ("--staging", STAGING, "--comparison-share", "1", "--staged-inputs", fate, "--staging-tags", "team=a")
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"), *flags)
    assert ended.status == 0, ended.said
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    ids = sorted(row["inference_id"] for row in books.results)
    expected = [] if fate == "delete" else [f"inputs/{one[:2]}/{one}" for one in ids]
    assert staged(sandbox) == expected


def test_list_denied_means_head(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(list_denied=True)
    jobs = numbered(30)
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"))
    assert ended.status == 0, ended.said
    audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)


def test_without_chosen_keys_every_result_is_found_too(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(30)
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"), "--no-chosen-keys")
    assert ended.status == 0, ended.said
    audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)


def scraped(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - loopback
            body: bytes = answer.read()
            return body.decode()
    except OSError:
        return None


def test_metrics_are_served_while_it_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 3.0, "instances": 100}})
    numbered(40).write(tmp_path / "jobs.jsonl")
    (port,) = free_ports(1)
    flags = ("--endpoint", ENDPOINT, "--listen", f"127.0.0.1:{port}")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *flags) as running:

        def submitted() -> str | None:
            text = scraped(f"http://127.0.0.1:{port}/metrics")
            wanted = f'dispatcher_jobs_total{{endpoint="{ENDPOINT}",state="submitted"}} 40.0'
            return text if text and wanted in text else None

        text = eventually(submitted, 20.0)
        assert 'dispatcher_submission_seconds_count{size_class="le_1k",transport="inline"} 40.0' in text
        assert 'dispatcher_lines_total{verdict="accepted"} 40.0' in text
        assert running.end(20.0).status == 0


def test_no_secret_is_ever_shown(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(
        secret_access_key=CANARIES["secret"],
        faults=[
            {"operation": "invoke", "kind": kind, "count": 2} for kind in ("validation", "unavailable", "reset_after")
        ],
        endpoints={ENDPOINT: {"fail_every": 7}},
    )
    jobs = Jobs()
    for _ in range(30):
        jobs.job(
            b'"%b"' % CANARIES["payload"].encode(),
            b'"custom_attributes":"%b"' % CANARIES["custom_attributes"].encode(),
            b'"metadata":"%b"' % CANARIES["metadata"].encode(),
        )
    jobs.reject(b'{"payload":"%b"' % CANARIES["payload"].encode())
    jobs.write(tmp_path / "jobs.jsonl")
    variables = {"AWS_SECRET_ACCESS_KEY": CANARIES["secret"], "AWS_SESSION_TOKEN": CANARIES["token"]}
    for form in ("json", "text"):
        flags: tuple[Any, ...] = ("--log-level", "debug", "--log-format", form, "--output", form)
        ended = run(tmp_path, sandbox, "jobs.jsonl", "--staging", STAGING, *flags, **variables)
        assert ended.status == 1, ended.said
        checked = dispatch(tmp_path, None, "validate", "jobs.jsonl")
        shown = ended.out + ended.err + checked.out + checked.err
        assert [name for name, canary in CANARIES.items() if canary in shown] == []
