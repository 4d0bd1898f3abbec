"""`kill -9` at random moments, and the same command again until it is done.

TEST_KILLS in the environment says how many kills there are: `TEST_KILLS=100 pytest tests/integration/test_crash.py`.
"""

import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, STAGING, Jobs, a_sandbox, audit, numbered, sound, started
from tests.sandboxes import eventually

KILLS = int(os.environ.get("TEST_KILLS", "30"))
ROUNDS = 3
"""The kills are spread over so many job files, so that they can run side by side."""
IN_FLIGHT = 8
RUN = ("run", "jobs.jsonl", "--endpoint", ENDPOINT, "--max-in-flight", IN_FLIGHT, "--staging", STAGING)
SHARE = ("--comparison-share", "0.1", "--doubt-cap-seconds", "0.5")
END_SECONDS = 100.0


def mixed(jobs: int) -> Jobs:
    """Small jobs, now and then a line that is none."""
    made = Jobs()
    for number in range(jobs):
        made.job(b'{"n":%d}' % number, b'"metadata":%d' % number)
        if number % 100 == 99:
            made.reject(b"{")
    return made


def killed(folder: Path, sandbox: Sandbox, after_seconds: float) -> int | None:
    """Runs and is killed; the exit status if it ended before."""
    with started(folder, sandbox, *RUN, *SHARE) as running:
        eventually(lambda: owned(folder, running.process.pid) or running.process.poll() is not None, 20.0)
        time.sleep(after_seconds)
        status = running.process.poll()
        running.process.kill()
        running.process.wait()
    assert "Traceback" not in running.err.read_text(), running.err.read_text()
    return status


def owned(folder: Path, pid: int) -> bool:
    """Whether the process has come so far that it owns the ledger: before that there is nothing to break."""
    lock = folder / "jobs.jsonl.results" / "ledger.db.lock"
    return lock.exists() and f'"pid": {pid}' in lock.read_text()


def finish(folder: Path, sandbox: Sandbox, status: int) -> None:
    with started(folder, sandbox, *RUN, *SHARE) as running:
        ended = running.end(END_SECONDS)
    assert ended.status == status, ended.said


def identities(folder: Path) -> dict[str, str]:
    """The run id of each job file: all other identities follow from it."""
    ledger = folder / "jobs.jsonl.results" / "ledger.db"
    if not ledger.exists():
        return {}
    with closing(sqlite3.connect(ledger)) as connection:
        return dict(connection.execute("SELECT source, run_id FROM file"))


@pytest.mark.timeout(90 + 5 * KILLS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whenever_it_is_killed_nothing_is_lost_and_little_is_repeated(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    kills = -(-KILLS // ROUNDS)
    jobs = mixed(250 * kills)
    jobs.write(tmp_path / "jobs.jsonl")
    slow = {"operation": "invoke", "kind": "slow", "seconds": 0.03}
    with a_sandbox(tmp_path, endpoint={"max_seconds": 0.05, "instances": 8}, faults=[slow]) as sandbox:
        seen: dict[str, str] = {}
        for _ in range(kills):
            killed(tmp_path, sandbox, rng.uniform(0.0, 1.0))
            now = identities(tmp_path)
            assert seen.items() <= now.items(), "a job file got another identity"
            seen = now
        sandbox.patch(faults=[])
        finish(tmp_path, sandbox, 1)
        books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert books.states() == {"succeeded": 250 * kills}
    assert books.repeated <= kills * 2 * IN_FLIGHT
    assert identities(tmp_path) == seen
    assert sound(tmp_path / "jobs.jsonl.results" / "ledger.db")


def test_killed_while_it_reads_a_large_file_no_line_is_lost_or_taken_twice(tmp_path: Path) -> None:
    jobs = numbered(6_000)
    jobs.write(tmp_path / "jobs.jsonl")
    with a_sandbox(tmp_path, endpoints={"absent": {}}) as sandbox:
        for number in range(3):
            killed(tmp_path, sandbox, 0.05 * number)
        sandbox.patch(endpoints={ENDPOINT: {}})
        finish(tmp_path, sandbox, 0)
        books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert (books.repeated, books.summary["lines"]) == (0, 6_000)


def test_killed_while_it_writes_results_it_writes_them_whole(tmp_path: Path) -> None:
    jobs = mixed(2_000)
    jobs.write(tmp_path / "jobs.jsonl")
    results = tmp_path / "jobs.jsonl.results"
    with a_sandbox(tmp_path) as sandbox:
        with started(tmp_path, sandbox, *RUN, *SHARE) as running:
            eventually((results / "results.jsonl.part").exists, 60.0)
        assert running.process.returncode in (-9, 1)
        finish(tmp_path, sandbox, 1)
        assert audit(jobs, results, sandbox).repeated == 0
    assert list(results.glob("*.part")) == []
