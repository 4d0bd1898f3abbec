"""The same command again: after the end, after Ctrl-C, with a changed file, while another process runs, after --no-wait."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import (
    ENDPOINT,
    Running,
    a_sandbox,
    accepted,
    audit,
    dispatch,
    numbered,
    rows,
    run,
    sound,
    started,
)
from tests.sandboxes import eventually

RUN = ("--endpoint", ENDPOINT, "--max-in-flight", "8")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def slow(sandbox: Sandbox, seconds: float = 0.05) -> None:
    """Every submission takes so long."""
    sandbox.patch(faults=[{"operation": "invoke", "kind": "slow", "seconds": seconds}])


def until(condition: Callable[[], bool]) -> None:
    eventually(condition, 20.0)


def test_a_finished_run_given_again_sends_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(30)
    jobs.reject(b"bad")
    jobs.write(tmp_path / "jobs.jsonl")
    first = run(tmp_path, sandbox, "jobs.jsonl")
    before = {name: (tmp_path / "jobs.jsonl.results" / name).read_bytes() for name in ("results.jsonl", "errors.jsonl")}
    again = run(tmp_path, sandbox, "jobs.jsonl")
    assert (first.status, again.status) == (1, 1), again.said
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert (accepted(sandbox), books.repeated) == (30, 0)
    for name, content in before.items():
        assert (tmp_path / "jobs.jsonl.results" / name).read_bytes() == content


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, sandbox: Sandbox) -> None:
    slow(sandbox)
    jobs = numbered(600)
    jobs.write(tmp_path / "jobs.jsonl")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *RUN) as running:
        until(lambda: accepted(sandbox) > 50)
        running.signal(signal.SIGINT)
        stopped = running.end(10.0)
    assert stopped.status == 130, stopped.said
    assert "Traceback" not in stopped.err
    sent = accepted(sandbox)
    assert sent < 600
    sandbox.patch(faults=[])
    again = run(tmp_path, sandbox, "jobs.jsonl")
    assert again.status == 0, again.said
    books = audit(jobs, tmp_path / "jobs.jsonl.results", sandbox)
    assert (accepted(sandbox), books.repeated) == (600, 0), "a clean stop costs no repeat"
    assert sound(tmp_path / "jobs.jsonl.results" / "ledger.db")


def test_while_a_copy_is_made_one_signal_is_enough_and_the_next_start_tidies_up(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    work = tmp_path / "stdin.results" / "ledger.db.work"
    with started(tmp_path, sandbox, "run", "-", *RUN) as running:
        until(lambda: list(work.glob("*.part")) != [])
        running.signal(signal.SIGINT)
        assert running.end(5.0).status == 130
    jobs = numbered(3)
    ended = dispatch(tmp_path, sandbox, "run", "-", *RUN, stdin=b"\n".join(jobs.lines))
    assert ended.status == 0, ended.said
    assert [path.suffix for path in work.iterdir() if path.is_file()] == [""]
    audit(jobs, tmp_path / "stdin.results", sandbox)


def test_a_copy_is_found_again_from_another_folder(tmp_path: Path, sandbox: Sandbox) -> None:
    lines = b"\n".join(numbered(3).lines)
    assert dispatch(tmp_path, sandbox, "run", "-", *RUN, "--output", "out", stdin=lines).status == 0
    (tmp_path / "sub").mkdir()
    again = dispatch(tmp_path / "sub", sandbox, "run", "-", *RUN, "--output", "../out", stdin=lines)
    assert again.status == 0, again.said
    assert accepted(sandbox) == 3


@pytest.mark.parametrize(("first", "second", "status"), [("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGTERM", 143)])
def test_a_second_signal_ends_it_at_once(
    first: str, second: str, status: int, tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "hang_before"}])
    numbered(20).write(tmp_path / "jobs.jsonl")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *RUN, "--attempt-seconds", "60") as running:
        until(lambda: sandbox.counts()["open_requests"].get("invoke", 0) >= 4)
        running.signal(signal.Signals[first])
        until(lambda: "stopping once" in running.err.read_text())
        running.signal(signal.Signals[second])
        assert running.end(3.0).status == status


def test_a_stopped_run_waits_for_what_is_on_the_wire_no_longer_than_it_was_told_to(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "hang_before"}])
    numbered(1).write(tmp_path / "jobs.jsonl")
    patience = ("--drain-seconds", "0.2", "--attempt-seconds", "8")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *RUN, *patience) as running:
        until(lambda: sandbox.counts()["open_requests"].get("invoke", 0) == 1)
        running.signal(signal.SIGINT)
        assert running.end().status == 130
    told = json.loads(dispatch(tmp_path, None, "status", "jobs.jsonl", "--json").out)
    claimed = told["files"][0]["outstanding_by_state"]["claimed"]
    assert claimed == 1, "its attempt was left before it had ended in doubt"


def test_a_changed_file_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    file = numbered(5).write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
    whole = file.read_bytes()
    for changed in (whole + b'{"payload":1}\n', whole.replace(b'"n":3', b'"n":9')):
        file.write_bytes(changed)
        refused = run(tmp_path, sandbox, "jobs.jsonl")
        assert refused.status == 2, refused.said
        assert "jobs.jsonl is not the file that was begun" in refused.err
    file.unlink()
    gone = run(tmp_path, sandbox, "jobs.jsonl")
    assert gone.status == 2, gone.said
    assert "not there any more" in gone.err
    assert accepted(sandbox) == 5


def test_a_second_process_is_told_who_holds_the_ledger(tmp_path: Path, sandbox: Sandbox) -> None:
    slow(sandbox, 0.5)
    numbered(400).write(tmp_path / "jobs.jsonl")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *RUN) as running:
        until(lambda: accepted(sandbox) > 0)
        for command in ("run", "replay"):
            second = dispatch(tmp_path, sandbox, command, "jobs.jsonl", "--endpoint", ENDPOINT)
            assert second.status == 3, second.said
            assert str(running.process.pid) in second.err


def test_a_run_that_begins_while_somebody_looks_at_its_ledger_is_not_turned_away(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    jobs = numbered(1)
    for _ in range(100_000):
        jobs.reject(b"bad")  # so that a look at the ledger takes a while
    jobs.write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl").status == 1
    with started(tmp_path, None, "status", "jobs.jsonl", "--json", "--watch", "--interval", "0.1") as watching:
        until(lambda: watching.out.read_bytes().count(b"\n") >= 2)
        for _ in range(4):
            again = run(tmp_path, sandbox, "jobs.jsonl")
            assert again.status == 1, again.said
        assert watching.process.poll() is None


def test_no_wait_submits_and_the_plain_command_collects(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"asleep": True, "wake_backlog": None}})
    jobs = numbered(50)
    jobs.write(tmp_path / "jobs.jsonl")
    results = tmp_path / "jobs.jsonl.results"
    submitted = run(tmp_path, sandbox, "jobs.jsonl", "--no-wait")
    assert submitted.status == 0, submitted.said
    assert "50 outstanding" in submitted.err
    assert not (results / "summary.json").exists()
    once_more = run(tmp_path, sandbox, "jobs.jsonl", "--no-wait")
    assert once_more.status == 0, once_more.said
    sandbox.patch(endpoints={ENDPOINT: {"asleep": False}})
    collected = run(tmp_path, sandbox, "jobs.jsonl")
    assert collected.status == 0, collected.said
    assert audit(jobs, results, sandbox).repeated == 0
    assert accepted(sandbox) == 50


def partial(folder: Path, running: Running) -> int:
    """How many results are final, written beside the run while it goes on."""
    ended = dispatch(folder, None, "status", "jobs.jsonl", "--partial", "so-far")
    assert ended.status == 0, ended.said
    assert running.process.poll() is None
    return len(rows(folder / "so-far" / "jobs.jsonl" / "results.jsonl"))


def test_what_is_final_can_be_had_while_stragglers_are_waited_for(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"delay_every": 10, "delay_seconds": 300.0}})
    numbered(40).write(tmp_path / "jobs.jsonl")
    with started(tmp_path, sandbox, "run", "jobs.jsonl", *RUN) as running:
        until((tmp_path / "jobs.jsonl.results" / "ledger.db").exists)
        until(lambda: partial(tmp_path, running) == 36)
        summary = json.loads((tmp_path / "so-far" / "jobs.jsonl" / "summary.json").read_bytes())
        assert (summary["succeeded"], summary["outstanding"]) == (36, 4)
        said = dispatch(tmp_path, None, "status", "jobs.jsonl", "--json")
        status = json.loads(said.out)
        assert status["owner"] is True
        assert status["files"][0]["outstanding_by_state"]["submitted"] == 4
        assert status["files"][0]["eta_seconds"] > 0
        assert oct((tmp_path / "jobs.jsonl.results" / "ledger.db.sock").stat().st_mode & 0o777) == "0o600"
        running.signal(signal.SIGTERM)
        assert running.end(10.0).status == 130
    assert partial_without_owner(tmp_path) == 36


def partial_without_owner(folder: Path) -> int:
    ended = dispatch(folder, None, "status", "jobs.jsonl", "--partial", "later")
    assert ended.status == 0, ended.said
    return len(rows(folder / "later" / "jobs.jsonl" / "results.jsonl"))


@pytest.mark.parametrize("keep_bytes", [0, 100, 4096])
def test_a_damaged_ledger_is_not_gone_on_with(keep_bytes: int, tmp_path: Path, sandbox: Sandbox) -> None:
    numbered(300).write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
    ledger = tmp_path / "jobs.jsonl.results" / "ledger.db"
    with ledger.open("r+b") as file:
        file.truncate(keep_bytes)
        file.seek(keep_bytes)
        file.write(b"?" * (keep_bytes and 3 * keep_bytes))
    damaged = run(tmp_path, sandbox, "jobs.jsonl")
    assert damaged.status == 5, damaged.said
    assert "ledger.db" in damaged.err
    assert accepted(sandbox) == 300


def test_results_that_cannot_be_written_are_written_by_the_same_command_later(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(3)
    jobs.write(tmp_path / "jobs.jsonl")
    in_the_way = tmp_path / "jobs.jsonl.results" / "results.jsonl"
    in_the_way.mkdir(parents=True)
    ended = run(tmp_path, sandbox, "jobs.jsonl")
    assert ended.status == 4, ended.said
    in_the_way.rmdir()
    again = run(tmp_path, sandbox, "jobs.jsonl")
    assert again.status == 0, again.said
    assert audit(jobs, tmp_path / "jobs.jsonl.results", sandbox).repeated == 0


def test_a_disk_that_takes_no_more_ends_the_run_and_room_lets_it_go_on(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(4_000)
    jobs.write(tmp_path / "jobs.jsonl")
    full = run(tmp_path, sandbox, "jobs.jsonl", file_blocks=2_100)
    assert full.status == 4, full.said
    assert "ledger.db" in full.err
    again = run(tmp_path, sandbox, "jobs.jsonl")
    assert again.status == 0, again.said
    assert audit(jobs, tmp_path / "jobs.jsonl.results", sandbox).repeated <= 2 * 64
