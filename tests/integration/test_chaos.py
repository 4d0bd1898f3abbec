"""A service on a bad day: it throttles, fails, cuts lines and slows down, and every job still ends in its right state."""

from pathlib import Path
from typing import Any

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, STAGING, Books, Jobs, a_sandbox, audit, numbered, run, sound

JOBS = 3_000
FLAGS = ("--staging", STAGING, "--comparison-share", "0.2")
BUSY = (
    {"operation": "invoke", "kind": "throttle", "rate": 0.05},
    {"operation": "invoke", "kind": "unavailable", "rate": 0.03},
    *(
        {"operation": operation, "kind": "throttle", "rate": 0.02}
        for operation in ("put", "list", "head", "get", "delete")
    ),
)
LOSSY = (
    {"operation": "invoke", "kind": "reset_before", "rate": 0.01},
    {"operation": "invoke", "kind": "reset_after", "rate": 0.01},
    {"operation": "invoke", "kind": "reset_midway", "rate": 0.005},
    {"operation": "put", "kind": "reset_after", "rate": 0.02},
    {"operation": "list", "kind": "reset_midway", "rate": 0.05},
)


def through(folder: Path, jobs: Jobs, sandbox: Sandbox, status: int) -> Books:
    ended = run(folder, sandbox, jobs.write(folder / "jobs.jsonl"), *FLAGS, seconds=110.0)
    assert ended.status == status, ended.said
    assert sound(folder / "jobs.jsonl.results" / "ledger.db")
    return audit(jobs, folder / "jobs.jsonl.results", sandbox)


def results_of(books: Books, sandbox: Sandbox) -> dict[str, Any]:
    """How the service says that each job ended, where it took it once."""
    ids = {row["inference_id"] for row in books.results}
    return {
        e["inference_id"]: e["result"]
        for e in sandbox.record()
        if e["event"] == "finished" and e["inference_id"] in ids
    }


def test_through_throttling_and_errors_every_job_ends_in_its_right_state_and_none_is_sent_twice(tmp_path: Path) -> None:
    jobs = numbered(JOBS, 100)
    with a_sandbox(tmp_path, endpoint={"fail_every": 40}, faults=BUSY) as sandbox:
        books = through(tmp_path, jobs, sandbox, status=1)
        ends = results_of(books, sandbox)
    assert books.repeated == 0, "nothing was unknown, so nothing may be repeated"
    assert books.states() == {"succeeded": JOBS - JOBS // 40, "failed": JOBS // 40}
    for row in books.results:
        assert ends[row["inference_id"]] == ("completed" if row["status"] == "succeeded" else "failed")
    assert max(row["attempts"] for row in books.results) > 1


def test_of_lost_answers_only_those_that_were_taken_are_repeated(tmp_path: Path) -> None:
    jobs = numbered(JOBS // 2, 100)
    with a_sandbox(tmp_path, faults=(*BUSY, *LOSSY)) as sandbox:
        books = through(tmp_path, jobs, sandbox, status=0)
        untold = sum(event["event"] == "accepted" and event["verdict"] == "cut" for event in sandbox.record())
    assert untold > 0
    assert books.repeated <= untold, "a repeat without a lost answer"


def test_what_takes_half_a_run_to_appear_is_found(tmp_path: Path) -> None:
    endpoint = {"delay_every": 7, "delay_seconds": 2.0, "min_seconds": 0.01, "max_seconds": 0.2, "instances": 50}
    jobs = numbered(500)
    with a_sandbox(tmp_path, endpoint=endpoint) as sandbox:
        ended = run(tmp_path, sandbox, jobs.write(tmp_path / "jobs.jsonl"))
        assert ended.status == 0, ended.said
        books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
        assert (books.repeated, books.states()) == (0, {"succeeded": 500})
        assert sandbox.counts()["endpoints"][ENDPOINT] == {"waiting": 0, "running": 0}
