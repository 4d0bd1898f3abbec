"""What a run does for a thousand jobs, in numbers that no machine's mood changes: nothing dear comes once for each job."""

from pathlib import Path

from tests.counted import counted
from tests.programs import ENDPOINT, a_sandbox, numbered

JOBS = 1_000
IN_FLIGHT = 64


def test_a_thousand_jobs_take_as_many_requests_and_few_commits_and_tasks(tmp_path: Path) -> None:
    with a_sandbox(tmp_path) as sandbox:
        file = numbered(JOBS).write(tmp_path / "jobs.jsonl")
        flags = ("--endpoint", ENDPOINT, "--max-in-flight", IN_FLIGHT)
        ended, counts = counted(tmp_path, sandbox, "run", file, *flags)
        requests = {name: sum(answers.values()) for name, answers in sandbox.counts()["requests"].items()}
    assert ended.status == 0, ended.said
    assert requests.pop("invoke") == JOBS
    assert sum(requests.values()) <= 20, requests
    assert counts["commits"] <= 200
    assert counts["tasks"] <= 2 * IN_FLIGHT + 100
