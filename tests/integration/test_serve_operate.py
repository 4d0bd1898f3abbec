"""An operator's hand on a service that runs, and on one that does not: status, cancel, lane, replay, check."""

import gzip
import json
import signal
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Ended, accepted, audit, dispatch, numbered, rows, started
from tests.sandboxes import eventually
from tests.services import SLOW, Spool, asked, receipts, serving, status

LOAD = ("--max-in-flight", "8", "--doubt-cap-seconds", "0.5")


def operate(spool: Spool, command: str, *arguments: str, code: int = 0) -> Ended:
    ended = dispatch(spool.path.parent, None, command, *arguments, "--spool", spool.path)
    assert ended.status == code, ended.said
    return ended


def test_status_tells_where_everything_is_with_and_without_a_process(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"asleep": True, "wake_backlog": None}})
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(30))
        eventually(lambda: accepted(sandbox) == 30, 20.0)
        eventually(lambda: status(service.spool)["files"][0]["outstanding_by_state"]["submitted"] == 30, 30.0)
        said = status(service.spool)
        assert (said["owner"], said["files"][0]["name"], said["lanes"][0]["outstanding"]) == (True, "a.jsonl", 30)
        (job,) = status(service.spool, "--job", "7")
        assert (job["file"], job["line"], job["state"]) == ("a.jsonl", 7, "submitted")
        assert "30 outstanding" in operate(service.spool, "status").out
        service.stop()
    assert status(service.spool)["owner"] is False
    assert status(service.spool, "--job", "7")[0]["state"] == "submitted"
    assert "no process works on this" in operate(service.spool, "status").out


def test_status_tells_that_a_full_disk_keeps_intake_stopped(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, "--disk-reserve-bytes", str(1 << 60)) as service:
        said = status(service.spool)["disk_low"]
        assert said["free_bytes"] < said["reserve_bytes"] == 1 << 60 < said["resume_bytes"]
        assert "nothing is taken from the inbox" in operate(service.spool, "status").out
        service.stop()
    assert status(service.spool)["disk_low"] is None


@pytest.mark.parametrize("owned", [True, False])
def test_results_so_far_of_one_file_are_had_whatever_the_others_are_at(
    owned: bool, tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("over.jsonl", numbered(5))
        spool.until_finished("over.jsonl")
        sandbox.patch(endpoints={ENDPOINT: {"asleep": True, "wake_backlog": None}})
        spool.drop("open.jsonl", numbered(5))
        eventually(lambda: accepted(sandbox) == 10, 20.0)
        if not owned:
            service.stop()
        said = operate(spool, "status", "open.jsonl", "--partial", str(tmp_path / "so-far"))
        assert said.out == f"{tmp_path / 'so-far' / 'open.jsonl'}\n"
        every = operate(spool, "status", "--partial", str(tmp_path / "so-far"))
        assert (every.out, "over.jsonl" in every.err) == (said.out, True)
        over = operate(spool, "status", "over.jsonl", "--partial", str(tmp_path / "so-far"))
        assert f"its results stand in {spool.results('over.jsonl')}" in over.err.replace("\n", "")
        assert "no job file 'none.jsonl'" in operate(spool, "status", "none.jsonl", "--partial", "x", code=2).err
        if owned:
            service.stop()
    assert sorted(path.name for path in (tmp_path / "so-far").iterdir()) == ["open.jsonl"]


def test_status_watches_until_it_is_interrupted(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox) as service:
        watch = ("status", "--spool", service.spool.path, "--json", "--watch", "--interval", "0.1")
        with started(tmp_path, None, *watch) as watching:
            eventually(lambda: watching.out.read_bytes().count(b"\n") >= 3, 20.0)
            watching.signal(signal.SIGINT)
            ended = watching.end()
        assert (ended.status, "Traceback" in ended.err) == (130, False), ended.said
        assert all(json.loads(line)["owner"] for line in ended.out.splitlines())
        service.stop()


@pytest.mark.parametrize("owned", [True, False])
def test_a_file_that_cannot_be_cancelled_is_said_to_be_unknown_or_finished(
    owned: bool, tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("over.jsonl", numbered(1))
        service.spool.until_finished("over.jsonl")
        eventually(lambda: status(service.spool)["files"][0]["published_at"], 20.0)
        if not owned:
            service.stop()
        assert "the ledger has no job file 'nope'" in operate(service.spool, "cancel", "nope", code=2).err
        assert "'over.jsonl' is finished" in operate(service.spool, "cancel", "over.jsonl", code=2).err
        if owned:
            service.stop()


@pytest.mark.parametrize("owned", [True, False])
def test_a_cancelled_file_gets_results_of_what_was_sent(owned: bool, tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(5_000)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: accepted(sandbox) > 20, 20.0)
        if owned:
            assert "jobs cancelled" in operate(service.spool, "cancel", "a.jsonl").err
            service.spool.until_finished("a.jsonl")
        service.stop()
    if not owned:
        operate(service.spool, "cancel", "a.jsonl")
        with serving(tmp_path, sandbox, *LOAD) as service:
            service.spool.until_finished("a.jsonl")
            service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    states = books.states()
    assert states["succeeded"] == accepted(sandbox)
    assert states["cancelled"] == 5_000 - states["succeeded"] > 1_000
    assert books.repeated == 0
    assert "is finished" in operate(service.spool, "cancel", "a.jsonl", code=2).err


def test_a_file_cancelled_while_it_is_read_is_cancelled_to_its_end(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{**SLOW, "seconds": 0.5}])
    jobs = numbered(60_000)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: status(service.spool)["files"], 20.0)
        operate(service.spool, "cancel", "a.jsonl")
        service.spool.until_finished("a.jsonl", seconds=80.0)
        service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert books.states()["cancelled"] > 59_000


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_file_that_is_cancelled_while_it_is_read_stays_cancelled_over_a_restart(
    end: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[{**SLOW, "seconds": 0.5}])
    jobs = numbered(150_000)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: receipts(service.spool) > 0, 20.0)
        assert asked(service.spool, "cancel", file="a.jsonl")["reading"]
        service.stop() if end == "stopped" else service.kill()
    eventually(lambda: not sandbox.counts()["open_requests"].get("invoke"), 20.0)
    sent, (before,) = accepted(sandbox), status(service.spool)["files"]
    assert (before["reading"], before["outstanding_by_state"]["accepted"]) == (True, 0)
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.until_finished("a.jsonl", seconds=60.0)
        service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert (accepted(sandbox), books.repeated) == (sent, 0)
    assert books.states() == {"succeeded": sent, "cancelled": 150_000 - sent}


def test_the_doubts_of_a_cancelled_file_are_looked_for_and_none_is_sent_again(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"delay_every": 1, "delay_seconds": 8.0}})
    first, second = numbered(4), numbered(16, size=9)
    with serving(tmp_path, sandbox, "--max-in-flight", "16") as service:
        service.spool.drop("first.jsonl", first)
        service.spool.until_finished("first.jsonl")
        # Half of these are taken, and none is answered; so long as the first results took nobody looks for them.
        lost = [{"operation": "invoke", "kind": kind, "count": 8} for kind in ("reset_after", "reset_before")]
        sandbox.patch(endpoints={ENDPOINT: {"delay_every": 0}}, faults=lost)
        service.spool.drop("a.jsonl", second)
        eventually(lambda: accepted(sandbox) == 12, 20.0)
        eventually(lambda: asked(service.spool, "status")["files"][1]["outstanding_by_state"]["ambiguous"] == 16, 20.0)
        asked(service.spool, "cancel", file="a.jsonl")
        service.spool.until_finished("a.jsonl")
        service.stop()
    record = [event for event in sandbox.record() if event["inference_id"] not in ids(service.spool, "first.jsonl")]
    books = audit(second, service.spool.results("a.jsonl"), sandbox, record)
    assert (books.states(), books.repeated) == ({"succeeded": 8, "cancelled": 8}, 0)
    assert accepted(sandbox) == 12


def ids(spool: Spool, name: str) -> set[str]:
    return {row["inference_id"] for row in rows(spool.results(name) / "results.jsonl")}


def test_a_lane_is_paused_resumed_and_limited_while_it_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(400)
    with serving(tmp_path, sandbox, *LOAD) as service:
        operate(service.spool, "lane", ENDPOINT, "--pause")
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: status(service.spool)["files"], 20.0)
        said = status(service.spool)
        assert (said["lanes"][0]["paused"], accepted(sandbox)) == (["operator"], 0)
        limits = json.loads(operate(service.spool, "lane", ENDPOINT, "--resume", "--max-in-flight", "2").out)
        assert limits["max_in_flight"] == 2.0
        eventually(lambda: accepted(sandbox) > 20, 20.0)
        assert sandbox.counts()["open_requests"].get("invoke", 0) <= 2
        operate(service.spool, "lane", ENDPOINT, "--max-in-flight", "8")
        assert "there is no lane" in operate(service.spool, "lane", "nobody", "--pause", code=2).err
        assert "cannot be" in operate(service.spool, "lane", ENDPOINT, "--max-in-flight", "0.5", code=2).err
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert audit(jobs, service.spool.results("a.jsonl"), sandbox).repeated == 0
    assert "no process works" in operate(service.spool, "lane", ENDPOINT, "--pause", code=2).err


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("owned", [True, False])
def test_a_replay_sends_what_did_not_succeed_once_more(
    name: str, owned: bool, tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 4}})
    jobs = numbered(40)
    whole = b"".join(line + b"\n" for line in jobs.lines)
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop(name, gzip.compress(whole) if name.endswith(".gz") else whole)
        spool.until_finished(name)
        before = (spool.results(name) / "results.jsonl").read_bytes()
        assert spool.summary(name)["failed"] == 10
        sandbox.patch(endpoints={ENDPOINT: {"fail_every": 0}})
        if owned:
            assert "10 jobs, taken up" in operate(spool, "replay", name).err
            spool.until_finished(f"{name}.replay-1")
            assert "nothing to replay" in operate(spool, "replay", name, "--status", "dead").err
        service.stop()
    if not owned:
        replay = dispatch(tmp_path, sandbox, "replay", name, "--spool", spool.path, "--endpoint", ENDPOINT)
        assert replay.status == 0, replay.said
    replayed = rows(spool.results(f"{name}.replay-1") / "results.jsonl")
    failed = [row["id"] for row in rows(spool.results(name) / "errors.jsonl")]
    assert [(row["id"], row["status"]) for row in replayed] == [(one, "succeeded") for one in failed]
    assert (spool.results(name) / "results.jsonl").read_bytes() == before
    assert accepted(sandbox) == 50
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.stop()
    assert spool.names("work") == []


def test_a_spool_that_is_named_comes_before_a_run_that_lies_nearby(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 2}})
    numbered(6).write(tmp_path / "a.jsonl")
    assert dispatch(tmp_path, sandbox, "run", "a.jsonl", "--endpoint", ENDPOINT).status == 1
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("a.jsonl", numbered(40))
        service.spool.until_finished("a.jsonl")
        assert [said["lines"] for said in status(service.spool, "a.jsonl")["files"]] == [40]
        of_run = dispatch(tmp_path, None, "status", "a.jsonl", "--json", DISPATCHER_SPOOL=str(service.spool.path))
        assert [said["lines"] for said in json.loads(of_run.out)["files"]] == [6]
        assert "20 jobs, taken up by the service" in operate(service.spool, "replay", "a.jsonl").err
        service.spool.until_finished("a.jsonl.replay-1")
        service.stop()


def test_a_replay_outlives_a_stop_and_the_loss_of_the_ledger(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 2}})
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("a.jsonl", numbered(40))
        spool.until_finished("a.jsonl")
        sandbox.patch(endpoints={ENDPOINT: {"fail_every": 0}}, faults=[{"operation": "invoke", "kind": "throttle"}])
        operate(spool, "replay", "a.jsonl")
        assert "20 jobs" in operate(spool, "replay", "a.jsonl").err, "the one that is begun is gone on with"
        service.stop()
    spool.lose_ledger()
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool.until_finished("a.jsonl.replay-1")
        service.stop()
    assert spool.summary("a.jsonl.replay-1")["succeeded"] == 20


def test_a_replay_says_what_is_missing(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 2}})
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        assert "has: none" in operate(spool, "replay", "nothing.jsonl", code=2).err
        spool.drop("a.jsonl", numbered(4))
        spool.until_finished("a.jsonl")
        (spool.path / "done" / "a.jsonl").rename(tmp_path / "elsewhere")
        assert "put its job file back" in operate(spool, "replay", "a.jsonl", code=2).err
        service.stop()


def test_check_looks_at_the_spool_beside_a_service_that_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox) as service:
        ended = dispatch(tmp_path, sandbox, "check", "--spool", service.spool.path, "--endpoint", ENDPOINT)
        assert ended.status == 0, ended.said
        assert "spool" in ended.out
        service.stop()
