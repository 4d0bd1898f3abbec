"""SIGTERM and `kill -9` under load, start and end of readiness, a second process, a lost ledger.

TEST_STOPS in the environment says how many SIGTERMs there are, TEST_SERVE_KILLS how many kills.
"""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import Jobs, accepted, audit, dispatch, numbered, sound
from tests.sandboxes import eventually
from tests.services import DRAIN_SECONDS, Spool, audit_all, number, serving

STOPS = number("TEST_STOPS", 30)
KILLS = number("TEST_SERVE_KILLS", 5)
IN_FLIGHT = 8
LOAD = ("--max-in-flight", IN_FLIGHT, "--doubt-cap-seconds", "0.5")
SLOW = {"operation": "invoke", "kind": "slow", "seconds": 0.02}


def load(spool: Spool, turn: int, sizes: list[int]) -> dict[str, Jobs]:
    """A few files of different sizes are dropped."""
    files = {f"{turn:03}-{n}.jsonl": numbered(size) for n, size in enumerate(sizes)}
    for name, jobs in files.items():
        spool.drop(name, jobs)
    return files


def until_more(sandbox: Sandbox, jobs: int) -> None:
    """Waits until so many more were taken."""
    before = accepted(sandbox)
    eventually(lambda: accepted(sandbox) >= before + jobs, 30.0)


@pytest.mark.timeout(60 + 10 * STOPS)
def test_however_often_it_is_stopped_nothing_is_lost_and_nothing_sent_twice(tmp_path: Path, sandbox: Sandbox) -> None:
    rng, spool = random.Random(3), Spool(tmp_path / "spool")
    files: dict[str, Jobs] = {}
    sandbox.patch(faults=[SLOW])
    for turn in range(STOPS):
        files |= load(spool, turn, [rng.randrange(20, 40) for _ in range(3)])
        with serving(tmp_path, sandbox, *LOAD) as service:
            until_more(sandbox, rng.randrange(1, 60))
            service.stop()
        assert sound(spool.ledger)
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool.until_finished(*files)
        service.stop()
    books = audit_all(files, spool, sandbox)
    assert sum(one.repeated for one in books.values()) == 0
    assert all(set(one.states()) == {"succeeded"} for one in books.values())


@pytest.mark.timeout(60 + 15 * KILLS)
def test_whenever_it_is_killed_nothing_is_lost_and_little_is_repeated(tmp_path: Path, sandbox: Sandbox) -> None:
    rng, spool = random.Random(4), Spool(tmp_path / "spool")
    files: dict[str, Jobs] = {}
    sandbox.patch(faults=[SLOW])
    for turn in range(KILLS):
        files |= load(spool, turn, [rng.randrange(40, 120) for _ in range(3)])
        with serving(tmp_path, sandbox, *LOAD) as service:
            until_more(sandbox, rng.randrange(1, 100))
            service.kill()
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool.until_finished(*files, seconds=60.0)
        service.stop()
    books = audit_all(files, spool, sandbox)
    assert sum(one.repeated for one in books.values()) <= 2 * IN_FLIGHT * KILLS
    assert all(set(one.states()) == {"succeeded"} for one in books.values())
    assert spool.names("work") == []


def test_while_it_drains_it_is_alive_but_not_ready_and_takes_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{**SLOW, "seconds": 5.0}])
    with serving(tmp_path, sandbox, *LOAD) as service:
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (200, 200)
        service.spool.drop("a.jsonl", numbered(50))
        eventually(lambda: sandbox.counts()["open_requests"].get("invoke", 0) >= 4, 20.0)
        service.running.signal(signal.SIGTERM)
        service.until_said("draining")
        service.spool.drop("late.jsonl", numbered(1))
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (503, 200)
        assert service.running.end(DRAIN_SECONDS).status == 0
    assert service.spool.names("inbox") == ["late.jsonl"]
    phases = [event["event"] for event in service.events() if event.get("signal") == "SIGTERM"]
    assert [phase.split(":")[0] for phase in phases] == ["stopping", "draining", "drained"]


def goes_on(folder: Path, sandbox: Sandbox, jobs: Jobs) -> None:
    """The next process brings all jobs of `a.jsonl` to their end, now that nothing hinders it."""
    sandbox.patch(faults=[])
    with serving(folder, sandbox, *LOAD) as service:
        service.spool.until_finished("a.jsonl")
        service.stop()
    states = audit(jobs, service.spool.results("a.jsonl"), sandbox).states()
    assert states == {"succeeded": len(jobs.lines)}


def test_a_second_signal_ends_it_at_once_and_the_next_start_goes_on(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "hang_before"}])
    jobs = numbered(20)
    with serving(tmp_path, sandbox, *LOAD, "--attempt-seconds", "60") as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: sandbox.counts()["open_requests"].get("invoke", 0) >= 4, 20.0)
        service.running.signal(signal.SIGTERM)
        service.until_said("draining")
        service.running.signal(signal.SIGTERM)
        assert service.running.end(10.0).status == 143
    goes_on(tmp_path, sandbox, jobs)


def test_what_cannot_be_drained_in_time_is_left_to_the_next_start(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "hang_before"}])
    jobs = numbered(20)
    with serving(tmp_path, sandbox, *LOAD, "--attempt-seconds", "60", "--drain-seconds", "1") as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: sandbox.counts()["open_requests"].get("invoke", 0) >= 4, 20.0)
        began = time.monotonic()
        ended = service.stop()
        assert time.monotonic() - began < 20.0, "less than it has where nothing is said"
    assert "not drained in time" in ended.err
    goes_on(tmp_path, sandbox, jobs)


@pytest.mark.parametrize("wait_seconds", [0.0, 0.1])
def test_a_signal_while_it_starts_ends_it_in_good_order(wait_seconds: float, tmp_path: Path, sandbox: Sandbox) -> None:
    spool = Spool(tmp_path / "spool")
    with serving(tmp_path, sandbox, wait=False) as service:
        spool.drop("a.jsonl", numbered(10))
        # From here on it handles signals: the spool is what it makes next.
        eventually((spool.path / "results").exists, 20.0)
        time.sleep(wait_seconds)
        service.stop()
    with serving(tmp_path, sandbox) as service:
        spool.until_finished("a.jsonl")
        service.stop()
    assert audit(numbered(10), spool.results("a.jsonl"), sandbox).repeated == 0


def test_a_second_process_on_the_same_spool_is_turned_away(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox) as service:
        spool = ("--spool", service.spool.path, "--endpoint", "model", "--listen", "127.0.0.1:0")
        second = dispatch(tmp_path, sandbox, "serve", *spool)
        assert (second.status, str(service.running.process.pid) in second.err) == (3, True), second.said
        service.spool.drop("a.jsonl", numbered(3))
        service.spool.until_finished("a.jsonl")
        service.stop()


def test_when_the_ledger_is_lost_work_is_taken_up_under_the_same_identities(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    files = {"a.jsonl": numbered(300), "b.jsonl": numbered(200)}
    with serving(tmp_path, sandbox, *LOAD) as service:
        for name, jobs in files.items():
            service.spool.drop(name, jobs)
        until_more(sandbox, 60)
        service.stop()
    spool, sent = service.spool, accepted(sandbox)
    before = spool.run_ids()
    assert set(before) == set(files)
    spool.lose_ledger()
    sandbox.patch(faults=[])
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool.until_finished(*files, seconds=60.0)
        service.stop()
    assert {name: spool.summary(name)["run_id"] for name in files} == before
    books = audit_all(files, spool, sandbox)
    assert all(set(one.states()) == {"succeeded"} for one in books.values())
    assert sum(one.repeated for one in books.values()) <= sent


def test_results_that_stand_when_the_ledger_is_lost_are_not_made_again(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("a.jsonl", numbered(5))
        service.spool.until_finished("a.jsonl")
        service.stop()
    spool = service.spool
    run = spool.summary("a.jsonl")["run_id"]
    (spool.path / "done" / "a.jsonl").rename(spool.path / "work" / f"{run}-a.jsonl")
    spool.lose_ledger()
    with serving(tmp_path, sandbox) as service:
        spool.until_finished("a.jsonl")
        service.stop()
    assert accepted(sandbox) == 5
    assert Counter(spool.names("results")) == Counter(["a.jsonl"])
    assert json.loads((spool.results("a.jsonl") / "summary.json").read_bytes())["run_id"] == run
