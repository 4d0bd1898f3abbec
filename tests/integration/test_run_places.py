"""Results stay where they belong, and jobs go where they were meant to go, whatever command is given next."""

import signal
from pathlib import Path

import pytest

from tests.programs import ENDPOINT, a_sandbox, audit, dispatch, numbered, rows, run, started

DENIED = [{"operation": "get", "kind": "access_denied"}]


def test_another_job_file_does_not_take_the_place_of_results(tmp_path: Path) -> None:
    first, second = numbered(20), numbered(10)
    first.write(tmp_path / "a.jsonl")
    second.write(tmp_path / "b.jsonl")
    with a_sandbox(tmp_path) as sandbox:
        assert run(tmp_path, sandbox, "a.jsonl", "--output", "out").status == 0
        refused = run(tmp_path, sandbox, "b.jsonl", "--output", "out")
        assert refused.status == 2
        assert "another --output" in refused.err
        assert run(tmp_path, sandbox, "a.jsonl", "--output", "out").status == 0
        audit(first, tmp_path / "out", sandbox)


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl", "summary.json"])
def test_results_that_were_deleted_are_written_again(tmp_path: Path, name: str) -> None:
    jobs = numbered(20)
    jobs.write(tmp_path / "jobs.jsonl")
    with a_sandbox(tmp_path) as sandbox:
        assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
        (tmp_path / "jobs.jsonl.results" / name).unlink()
        assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
        assert audit(jobs, tmp_path / "jobs.jsonl.results", sandbox).repeated == 0


def test_outputs_that_cannot_be_collected_are_no_success_and_are_collected_later(tmp_path: Path) -> None:
    numbered(12).write(tmp_path / "jobs.jsonl")
    results = tmp_path / "jobs.jsonl.results" / "results.jsonl"
    with a_sandbox(tmp_path, faults=DENIED) as sandbox:
        refused = run(tmp_path, sandbox, "jobs.jsonl", "--collect")
        assert refused.status == 1, refused.said
        assert not results.exists()
        sandbox.patch(faults=[])
        assert run(tmp_path, sandbox, "jobs.jsonl", "--collect").status == 0
    assert all("output" in row for row in rows(results))


def test_contents_can_be_collected_after_a_run_without_them(tmp_path: Path) -> None:
    numbered(5).write(tmp_path / "jobs.jsonl")
    with a_sandbox(tmp_path) as sandbox:
        assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
        assert run(tmp_path, sandbox, "jobs.jsonl", "--collect").status == 0
    assert all("output" in row for row in rows(tmp_path / "jobs.jsonl.results" / "results.jsonl"))


def test_jobs_that_were_begun_for_another_endpoint_are_not_silently_sent_there(tmp_path: Path) -> None:
    numbered(5).write(tmp_path / "jobs.jsonl")
    with a_sandbox(tmp_path) as sandbox:
        with started(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", "misspelt") as running:
            for _ in iter(lambda: "paused" not in running.err.read_text(), False):
                assert running.process.poll() is None
            running.signal(signal.SIGINT)
            assert running.end().status == 130
        refused = run(tmp_path, sandbox, "jobs.jsonl")
        assert refused.status == 2
        assert "misspelt" in refused.err
        assert dispatch(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT, "--output", "anew").status == 0


def test_a_job_file_that_changes_while_it_is_sent_ends_the_run(tmp_path: Path) -> None:
    jobs = numbered(400, size=300)
    path = jobs.write(tmp_path / "jobs.jsonl")
    whole = path.read_bytes()
    slow = {"invoke": {"per_second": 40, "burst": 20}}
    with a_sandbox(tmp_path, rate_limits=slow) as sandbox:
        with started(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT) as running:
            for _ in iter(lambda: sandbox.counts()["jobs"]["accepted"] < 25, False):
                assert running.process.poll() is None
            path.write_bytes(whole.replace(b"x", b"y"))
            ended = running.end()
        assert ended.status == 2, ended.said
        assert "changed while its jobs are being sent" in ended.err
        sandbox.patch(rate_limits={"invoke": None})
        path.write_bytes(whole)
        assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
        audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
