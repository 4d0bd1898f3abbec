"""What an operator is told of a service's lanes and files, what he may change of them, and who may have a spool at all."""

import asyncio
import gzip
import json
import os
import pty
import signal
from pathlib import Path
from typing import Any

import pytest

from dispatcher.admin.control import ask
from dispatcher.errors import UsageError
from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Ended, accepted, audit, dispatch, numbered, started
from tests.sandboxes import eventually
from tests.services import SLOW, Service, Spool, serving, status

LOAD = ("--max-in-flight", "8", "--doubt-cap-seconds", "0.5")
ASLEEP = {ENDPOINT: {"asleep": True, "wake_backlog": None}}
PAUSED = f'dispatcher_lane_paused{{endpoint="{ENDPOINT}",reason="operator"}}'


def operate(spool: Spool, command: str, *arguments: str, code: int = 0) -> Ended:
    ended = dispatch(spool.path.parent, None, command, *arguments, "--spool", spool.path)
    assert ended.status == code, ended.said
    return ended


def lane(spool: Spool, *flags: str) -> dict[str, Any]:
    limits: dict[str, Any] = json.loads(operate(spool, "lane", ENDPOINT, *flags).out)
    return limits


def tally(spool: Spool) -> dict[str, int]:
    """How many jobs of the one file are in each state; nothing while it is read."""
    files = status(spool)["files"]
    return dict(files[0]["outstanding_by_state"]) if files and not files[0]["reading"] else {}


def paused(service: Service) -> list[str]:
    (said,) = status(service.spool)["lanes"]
    return list(said["paused"])


def test_a_spool_has_one_service_whatever_ledger_the_other_has(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool, other = service.spool, tmp_path / "other.db"
        flags = ("--ledger", other, "--endpoint", ENDPOINT, "--listen", "127.0.0.1:0")
        second = dispatch(tmp_path, sandbox, "serve", "--spool", spool.path, *flags, seconds=20.0)
        assert second.status == 3, second.said
        assert f"the spool {spool.path} is served by process {service.running.process.pid}" in second.err
        assert not other.exists()
        assert status(spool)["owner"]
        assert dispatch(tmp_path, sandbox, "check", "--spool", spool.path, "--endpoint", ENDPOINT).status == 0
        service.kill()
    with serving(tmp_path, sandbox, "--ledger", other) as service:
        service.stop()


def test_the_pause_of_an_operator_is_in_metric_and_log(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        lane(service.spool, "--pause")
        assert f"{PAUSED} 1" in service.get("/metrics")[1]
        lane(service.spool, "--resume")
        assert f"{PAUSED} 0" in service.get("/metrics")[1]
        service.stop()
    told = [(event["event"], event.get("reason"), event.get("was")) for event in service.events()]
    assert told.index(("lane paused", "operator", None)) < told.index(("lane resumed", None, "operator"))


def test_status_tells_rates_and_what_bounds_a_lane(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD, "--bytes-per-second", "5000") as service:
        spool = service.spool
        operate(spool, "lane", ENDPOINT, "--pause", "--max-outstanding", "70")
        text = operate(spool, "status").out
        assert f"{ENDPOINT}: 0 outstanding; paused: operator; 0 in flight, window 4 (0.001 to 8)" in text
        assert "any number of requests/s, at most 5000 bytes/s; 0 wait for a result, limit 70 (set)" in text
        lane(spool, "--resume", "--requests-per-second", "500", "--max-outstanding", "auto")
        spool.drop("a.jsonl", numbered(30))
        spool.until_finished("a.jsonl")
        said = status(spool)
        bounds = said["lanes"][0]["bounds"]
        assert (bounds["in_flight"], bounds["submitted"], bounds["max_in_flight"]) == (0, 0, 8.0)
        assert (bounds["requests_per_second"], bounds["bytes_per_second"]) == (500.0, 5000.0)
        assert (bounds["max_outstanding"], bounds["outstanding_limit"] >= 1_000) == (None, True)
        sandbox.patch(faults=[SLOW])
        spool.drop("b.jsonl", numbered(2_000))
        eventually(lambda: status(spool)["files"][-1]["jobs_per_second"], 20.0)
        assert "jobs/s" in operate(spool, "status").out
        service.stop()


def test_the_outstanding_limit_is_set_and_given_back_while_it_runs(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints=ASLEEP)
    with serving(tmp_path, sandbox, *LOAD) as service:
        assert lane(service.spool, "--max-outstanding", "5")["max_outstanding"] == 5
        service.spool.drop("a.jsonl", numbered(200))

        def full() -> bool:
            now = tally(service.spool)
            return now.get("submitted", 0) >= 5 and not now["claimed"]

        eventually(full, 20.0)
        assert accepted(sandbox) == 5
        assert lane(service.spool, "--max-outstanding", "auto")["max_outstanding"] is None
        eventually(lambda: accepted(sandbox) == 200, 20.0)
        service.stop()


def test_jobs_in_doubt_after_a_crash_count_as_outstanding(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints=ASLEEP, faults=[{**SLOW, "seconds": 20.0}])
    flags = ("--max-in-flight", "8", "--doubt-cap-seconds", "3", "--max-outstanding", "5")
    with serving(tmp_path, sandbox, *flags) as service:
        service.spool.drop("a.jsonl", numbered(200))
        eventually(lambda: tally(service.spool).get("claimed") == 5, 20.0)
        service.kill()
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *flags) as service:
        seen: list[int] = []

        def resolved() -> bool:
            now = tally(service.spool)
            seen.append(sum(now.get(state, 0) for state in ("submitted", "claimed", "ambiguous")))
            return now.get("submitted") == 5 and not now["ambiguous"]

        eventually(resolved, 20.0)
        assert max(seen) == 5
        service.stop()


@pytest.mark.parametrize("owned", [True, False])
def test_status_of_one_file_is_of_that_file_alone(owned: bool, tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        for name in ("a.jsonl", "b.jsonl"):
            spool.drop(name, numbered(3))
        spool.until_finished("a.jsonl", "b.jsonl")
        if not owned:
            service.stop()
        assert len(status(spool)["files"]) == len(status(spool, "--job", "1")) == 2
        (file,) = status(spool, "b.jsonl")["files"]
        assert file["name"] == "b.jsonl"
        assert status(spool, file["run_id"])["files"][0]["name"] == "b.jsonl"
        assert [job["file"] for job in status(spool, "b.jsonl", "--job", "1")] == ["b.jsonl"]
        for flags in ((), ("--job", "1")):
            assert "no job file 'none.jsonl'" in operate(spool, "status", "none.jsonl", *flags, code=2).err
        if owned:
            service.stop()


def test_a_file_that_could_not_be_read_is_in_status(tmp_path: Path, sandbox: Sandbox) -> None:
    whole = gzip.compress(b'{"payload": 1}\n' * 100)
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("cut.jsonl.gz", whole[:-10])
        spool.drop("a.jsonl", numbered(1))
        spool.until_finished("a.jsonl")
        spool.until_finished("cut.jsonl.gz", into="failed")
        (told,) = status(spool)["unreadable"]
        assert (told["name"], bool(told["reason"])) == ("cut.jsonl.gz", True)
        assert status(spool, "cut.jsonl.gz")["unreadable"] == [told]
        assert status(spool, "a.jsonl")["unreadable"] == []
        assert "cut.jsonl.gz could not be read, see failed/" in operate(spool, "status").out
        service.stop()


def test_limits_that_cannot_be_change_nothing_and_say_why(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD, "--requests-per-second", "50") as service:
        spool = service.spool
        for flag in ("--requests-per-second", "--bytes-per-second"):
            for value in ("nan", "inf", "0", "-1"):
                said = operate(spool, "lane", ENDPOINT, flag, value, code=2).err
                assert f"'{value}' is not a number above 0, or `none`" in said
        for value in ("0", "nan"):
            assert "is not a number above 0" in operate(spool, "lane", ENDPOINT, "--max-in-flight", value, code=2).err
        assert "or `auto`" in operate(spool, "lane", ENDPOINT, "--max-outstanding", "1.5", code=2).err
        said = operate(spool, "lane", ENDPOINT, "--pause", "--max-in-flight", "9999", code=2).err
        assert "max_in_flight must be 1 to 8" in said
        for limits in ({"max_in_flght": 1}, {"requests_per_second": -1}, {"max_outstanding": 0}):
            with pytest.raises(UsageError, match="cannot be"):
                asyncio.run(
                    ask(spool.ledger, {"command": "lane", "endpoint": ENDPOINT, "held": True, "limits": limits})
                )
        assert (paused(service), lane(spool)["requests_per_second"]) == ([], 50.0)
        assert lane(spool, "--requests-per-second", "none")["requests_per_second"] is None
        service.stop()


def test_a_cancel_says_that_what_is_still_read_ends_as_well(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{**SLOW, "seconds": 0.5}])
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(150_000))
        eventually(lambda: accepted(sandbox) > 0, 20.0)
        said = operate(service.spool, "cancel", "a.jsonl").err
        assert "jobs cancelled so far; what is still read of it ends cancelled as well" in said
        eventually(lambda: not status(service.spool)["files"][0]["reading"], 30.0)
        assert operate(service.spool, "status").status == 0
        service.stop()


def test_a_hangup_drains_the_service(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.stop(signal.SIGHUP)
    assert service.said("drained")


def test_a_run_whose_terminal_goes_away_drains(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(400)
    jobs.write(tmp_path / "jobs.jsonl")
    ours, its = pty.openpty()
    on_it = ("sh", "-c", 'exec 2>"$0" >&2; exec "$@"', os.ttyname(its))
    with started(
        tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT, *LOAD, before=on_it, TERM="xterm"
    ) as running:
        eventually(lambda: accepted(sandbox) > 20, 20.0)
        os.close(its)
        os.close(ours)
        running.signal(signal.SIGHUP)
        assert running.end(30.0).status == 130
    again = dispatch(tmp_path, sandbox, "run", "jobs.jsonl", "--endpoint", ENDPOINT)
    assert again.status == 0, again.said
    assert audit(jobs, tmp_path / "jobs.jsonl.results", sandbox).repeated == 0
