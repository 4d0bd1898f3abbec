"""`replay`: what did not succeed, once more, with books of its own."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Jobs, Row, a_sandbox, dispatch, numbered, rows, run, started
from tests.sandboxes import eventually


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path, endpoint={"fail_every": 3}) as running:
        yield running


def failing() -> Jobs:
    """Twelve jobs, of which the sandbox fails four; some with ids, metadata, files."""
    jobs = numbered(6)
    for number in range(3):
        jobs.job(b'{ "x": %d.0e1 }' % number, b'"id":"own-%d"' % number, b'"metadata":%d' % number)
    for _ in range(3):
        jobs.other(b"from a file", b'"payload_path":"in/file"')
    jobs.reject(b"bad")
    return jobs


def first_run(folder: Path, sandbox: Sandbox, *flags: object) -> dict[str, Row]:
    (folder / "in").mkdir()
    (folder / "in" / "file").write_bytes(b"from a file")
    failing().write(folder / "jobs.jsonl")
    ended = run(folder, sandbox, "jobs.jsonl", *flags)
    assert ended.status == 1, ended.said
    return {
        row["id"]: row for row in rows(folder / "jobs.jsonl.results" / "errors.jsonl") if row["status"] != "rejected"
    }


def replay(folder: Path, sandbox: Sandbox, *flags: object) -> tuple[int, str]:
    ended = dispatch(folder, sandbox, "replay", "jobs.jsonl", *flags)
    return ended.status, ended.err


def everything(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("results.jsonl", "errors.jsonl", "summary.json")}


def test_a_replay_runs_what_did_not_succeed_and_leaves_the_original(tmp_path: Path, sandbox: Sandbox) -> None:
    results = tmp_path / "jobs.jsonl.results"
    failed = first_run(tmp_path, sandbox)
    before = everything(results)
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 0}})
    status, err = replay(tmp_path, sandbox)
    assert status == 0, err
    assert everything(results) == before
    again = rows(results / "jobs.jsonl.replay-1" / "results.jsonl")
    assert {row["id"]: row["metadata"] for row in again} == {own: row["metadata"] for own, row in failed.items()}
    summary = json.loads((results / "jobs.jsonl.replay-1" / "summary.json").read_bytes())
    assert (summary["lines"], summary["rejected"], summary["succeeded"]) == (4, 0, 4)
    shas = {
        event["inference_id"]: event["payload_sha256"] for event in sandbox.record() if event["event"] == "accepted"
    }
    for row in again:
        assert row["inference_id"] != failed[row["id"]]["inference_id"]
        assert shas[row["inference_id"]] == shas[failed[row["id"]]["inference_id"]], "the same bytes"


def test_a_replay_of_what_failed_again_is_numbered_on(tmp_path: Path, sandbox: Sandbox) -> None:
    first_run(tmp_path, sandbox)
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 1}})
    assert [replay(tmp_path, sandbox)[0] for _ in range(2)] == [1, 1]
    folders = sorted(path.name for path in (tmp_path / "jobs.jsonl.results").glob("*.replay-*"))
    assert folders == ["jobs.jsonl.replay-1", "jobs.jsonl.replay-2"]


def test_only_the_chosen_kind_is_replayed(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "validation", "skip": 8, "count": 1}])
    ends = [row["status"] for row in first_run(tmp_path, sandbox, "--max-faults", "1").values()]
    assert sorted(ends) == ["dead", "failed", "failed", "failed"]
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 0}})
    status, err = replay(tmp_path, sandbox, "--status", "dead", "--status", "expired")
    assert status == 0, err
    assert len(rows(tmp_path / "jobs.jsonl.results" / "jobs.jsonl.replay-1" / "results.jsonl")) == 1


def test_an_interrupted_replay_goes_on(tmp_path: Path, sandbox: Sandbox) -> None:
    failed = first_run(tmp_path, sandbox)
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 0, "asleep": True, "wake_backlog": None}})
    sandbox.reset_counts()
    with started(tmp_path, sandbox, "replay", "jobs.jsonl") as running:
        eventually(lambda: sandbox.counts()["jobs"]["accepted"] == len(failed), 20.0)
        running.signal(signal.SIGINT)
        assert running.end(10.0).status == 130
    sandbox.patch(endpoints={ENDPOINT: {"asleep": False}})
    status, err = replay(tmp_path, sandbox)
    assert status == 0, err
    assert sandbox.counts()["jobs"]["accepted"] == len(failed)
    assert [path.name for path in (tmp_path / "jobs.jsonl.results").glob("*.replay-*")] == ["jobs.jsonl.replay-1"]


def test_there_may_be_nothing_to_replay(tmp_path: Path, sandbox: Sandbox) -> None:
    numbered(2).write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
    assert replay(tmp_path, sandbox) == (0, "nothing to replay\n")
    assert list((tmp_path / "jobs.jsonl.results" / "replays").glob("*")) == []


def test_an_unfinished_file_is_not_replayed(tmp_path: Path, sandbox: Sandbox) -> None:
    numbered(2).write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl", "--no-wait").status == 0
    status, err = replay(tmp_path, sandbox)
    assert (status, "not finished" in err) == (2, True)


def test_a_compressed_files_jobs_can_be_replayed_to_another_endpoint(tmp_path: Path, sandbox: Sandbox) -> None:
    lines = b"\n".join(numbered(3).lines)
    assert dispatch(tmp_path, sandbox, "run", "-", "--endpoint", ENDPOINT, stdin=lines).status == 1
    sandbox.patch(endpoints={"rescue": {}})
    ended = dispatch(tmp_path, sandbox, "replay", "--output", "stdin.results", "--endpoint", "rescue")
    assert ended.status == 0, ended.said
    assert len(rows(tmp_path / "stdin.results" / "stdin.replay-1" / "results.jsonl")) == 1
    assert sandbox.record()[-1]["endpoint"] == "rescue"
