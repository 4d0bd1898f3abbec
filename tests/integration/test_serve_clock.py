"""The service under a clock that jumps: AWS refuses what is signed then, and nothing may end or stall of it."""

from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, audit, numbered
from tests.sandboxes import eventually
from tests.services import LOAD, Service, audit_all, serving

DAY = 86_400


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What this file says is how many seconds the service's clock is ahead."""
    return tmp_path / "clock"


def put(clock: Path, seconds: float) -> None:
    part = clock.with_suffix(".part")
    part.write_text(str(seconds))
    part.rename(clock)


def paused(service: Service) -> list[object]:
    """Why lanes were paused so far."""
    return [event["reason"] for event in service.events() if event["event"] == "lane paused"]


def looks(sandbox: Sandbox) -> int:
    """How often it was asked for results."""
    return sum(sandbox.counts()["requests"].get("list", {}).values())


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_while_the_clock_is_off_the_lane_waits_and_says_so_and_goes_on_when_it_is_right(
    seconds: int, tmp_path: Path, sandbox: Sandbox, clock: Path
) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 1.0}})
    files = {"before.jsonl": numbered(40), "while.jsonl": numbered(10)}
    with serving(tmp_path, sandbox, *LOAD, module="tests.shifted", CLOCK_OFF=str(clock)) as service:
        service.spool.drop("before.jsonl", files["before.jsonl"])
        eventually(lambda: sandbox.counts()["jobs"]["accepted"] == 40, 20.0)
        put(clock, seconds)
        service.spool.drop("while.jsonl", files["while.jsonl"])
        service.until_said("lane paused")
        service.until_said("the machine's clock was set")
        put(clock, 0)
        service.spool.until_finished(*files, seconds=60.0)
        service.stop()
    assert set(paused(service)) == {"clock_skew"}
    (hint,) = {event["hint"] for event in service.events() if event["event"] == "lane paused"}
    assert "clock" in str(hint)
    books = audit_all(files, service.spool, sandbox)
    assert all(set(one.states()) == {"succeeded"} and one.repeated == 0 for one in books.values())


def test_what_is_still_coming_does_not_expire_because_the_clock_jumped(
    tmp_path: Path, sandbox: Sandbox, clock: Path
) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 4.0}})
    short = ("--request-ttl-seconds", "60", "--invocation-timeout-seconds", "60", "--result-slack-seconds", "0")
    jobs = numbered(20)
    with serving(tmp_path, sandbox, *LOAD, *short, module="tests.shifted", CLOCK_OFF=str(clock)) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: sandbox.counts()["jobs"]["accepted"] == 20, 20.0)
        # S3 takes signatures of a quarter of an hour, so that it is asked, and truly has nothing.
        put(clock, 600)
        before = looks(sandbox)
        eventually(lambda: looks(sandbox) > before, 20.0)
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert audit(jobs, service.spool.results("a.jsonl"), sandbox).states() == {"succeeded": 20}


def test_what_waits_does_not_wait_longer_because_the_clock_was_set_back(
    tmp_path: Path, sandbox: Sandbox, clock: Path
) -> None:
    put(clock, DAY)
    sandbox.patch(clock_offset_seconds=DAY, faults=[{"operation": "invoke", "kind": "throttle"}])
    jobs = numbered(20)
    with serving(tmp_path, sandbox, *LOAD, module="tests.shifted", CLOCK_OFF=str(clock)) as service:
        service.spool.drop("a.jsonl", jobs)
        service.until_said("lane paused")
        put(clock, 0)
        service.until_said("the machine's clock was set")
        sandbox.patch(clock_offset_seconds=0, faults=[])
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert paused(service)[0] == "throttled"
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert (books.states(), books.repeated) == ({"succeeded": 20}, 0)


def test_what_waits_does_not_wait_longer_because_the_clock_was_set_back_before_a_restart(
    tmp_path: Path, sandbox: Sandbox, clock: Path
) -> None:
    put(clock, DAY)
    jobs = numbered(20)
    with serving(tmp_path, sandbox, *LOAD, module="tests.shifted", CLOCK_OFF=str(clock)) as service:
        service.spool.drop("a.jsonl", jobs)
        service.until_said("lane paused")
        service.stop()
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.until_finished("a.jsonl")
        service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert (books.states(), books.repeated) == ({"succeeded": 20}, 0)
