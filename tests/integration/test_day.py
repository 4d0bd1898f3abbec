"""A short day in the life of the service, and that the recount which judges it would see what it is there to see."""

import json
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.day import books, meters, recount
from benchmarks.day.books import Returned
from benchmarks.day.diary import Diary, Life, Row, scraped
from benchmarks.day.drops import ENDPOINTS, MAIN, Drop, Planned, make, plan, stock
from dispatcher.metrics import Metrics, Operation, Outcome
from dispatcher.model import EndpointName, FailureReason, SizeClass, State, Transport
from tests.programs import FINAL, ROOT, environment

IN_FLIGHT = 2
OPEN_SECONDS = 5.0
LINES = 40


@pytest.mark.timeout(600)
def test_after_a_short_day_of_troubles_everything_adds_up(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.day",
        "--minutes",
        "0.35",
        "--seed",
        "5",
        "--json",
        str(tmp_path / "day.json"),
    ]
    ended = run(command, cwd=ROOT, env=environment(None), capture_output=True, text=True, timeout=560)
    assert (ended.returncode, "Verdict: all holds" in ended.stdout) == (0, True), ended.stdout + ended.stderr
    said = json.loads((tmp_path / "day.json").read_bytes())["figures"]
    assert [life["end"] for life in said["lives"]] == ["SIGTERM", "SIGKILL", "SIGTERM"]
    assert said["jobs"] == sum(said[state] for state in FINAL)
    assert min(said[name] for name in ("failed", "throttled_answers", "answers_5xx", "connections_cut_or_hung")) > 0


def test_the_seed_alone_decides_what_is_dropped() -> None:
    def files(seed: int) -> list[tuple[Planned, str]]:
        made = [each for each in plan(seed, 24.0, [5.0], 7.0) if each.lines < 100]
        return [(each, sha256(make(each, seed, stock(seed), lossy=True)[1]).hexdigest()) for each in made]

    first = files(1)
    time.sleep(1.0)  # a packed file may hold the second it was packed in
    assert files(1) == first
    assert files(2) != first


# --- a day made by hand, in which all is well -------------------------------------------------------------------------


def one_file() -> tuple[Drop, Returned, list[Row]]:
    """A file whose jobs all went inline and succeeded at once: what was dropped, what came back, what the record says."""
    planned = Planned(number=3, at=0.0, name="a.jsonl", lines=LINES, simple=True)
    drop, _ = make(planned, 11, stock(11), lossy=False)
    results, record = [], []
    for line, job in drop.jobs.items():
        same = {"inference_id": f"i{line}", "output_location": f"s3://out/{line}", "endpoint": job.endpoint}
        row = {"id": job.id, "line": line, "status": "succeeded", "metadata": job.metadata, "transport": "inline"}
        results.append({**same, **row, "attempts": 2})
        told = {"event": "accepted", "verdict": "told", "transport": "inline", "payload_sha256": job.sha256}
        done = {"event": "finished", "result": "completed", "payload_sha256": job.sha256}
        record += [{**same, **told, "time": 10.0 + line}, {**same, **done, "time": 11.0 + line}]
    errors = [{"line": line, "status": "rejected"} for line in sorted(drop.rejected)]
    sums = {"lines": len(results) + len(errors), "rejected": len(errors), "accepted": len(results), "outstanding": 0}
    summary = {**sums, **dict.fromkeys(FINAL, 0), "succeeded": len(results)}
    return drop, Returned("a.jsonl", results, errors, summary), record


def judged(drop: Drop, returned: list[Returned], record: list[Row], kills: tuple[float, ...] = ()) -> list[str]:
    """All that the recount finds, the metrics apart."""
    matched, found = books.matched([drop], returned)
    jobs, strange = recount.collate(matched, record)
    again = recount.repeats(jobs.values(), kills, OPEN_SECONDS)
    return [
        *found,
        *(finding for book in matched for finding in books.file_findings(book)),
        *strange,
        *recount.job_findings(jobs.values()),
        *recount.repeat_findings(again, len(kills), IN_FLIGHT, lanes=1),
    ]


def test_where_all_is_well_nothing_is_found() -> None:
    drop, returned, record = one_file()
    assert drop.rejected
    assert judged(drop, [returned], record) == []


# --- results and record -----------------------------------------------------------------------------------------------

Spoil = Callable[[Returned, list[Row]], object]


def exchanged(rows: list[Row], first: int, second: int) -> None:
    rows[first], rows[second] = rows[second], rows[first]


SPOILED: dict[str, Spoil] = {
    "a job is lost": lambda back, _: back.results.pop(7),
    "a job came twice": lambda back, _: back.results.insert(7, back.results[7]),
    "two are out of order": lambda back, _: exchanged(back.results, 5, 6),
    "an id is another's": lambda back, _: back.results[7].update(id="another"),
    "metadata are lost": lambda back, _: next(r for r in back.results[1:] if r["metadata"]).update(metadata=None),
    "a rejection is lost": lambda back, _: back.errors.pop(),
    "a failure is in no errors.jsonl": lambda back, _: back.results[7].update(status="failed"),
    "the first sum is wrong": lambda back, _: back.summary.update(lines=back.summary["lines"] + 1),
    "the second sum is wrong": lambda back, _: back.summary.update(outstanding=1),
    "the service never took it": lambda _, record: record.__delitem__(slice(0, 2)),
    "the model never ended it": lambda _, record: record.pop(1),
    "the model failed it": lambda _, record: record[1].update(result="failed"),
    "the model read another payload": lambda _, record: record[1].update(payload_sha256="0"),
    "another payload was sent": lambda _, record: record[0].update(payload_sha256="0"),
    "it was sent elsewhere": lambda _, record: record[0].update(endpoint="elsewhere"),
    "it has two output keys": lambda _, record: record.append({**record[0], "output_location": "s3://out/y"}),
    "something is no job": lambda _, record: record[0].update(inference_id="stranger"),
    "it was sent twice without a reason": lambda _, record: record.append({**record[0], "time": 99.0}),
    "it was taken more often than tried": lambda back, record: back.results[0].update(attempts=0),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_what_is_wrong_is_found(spoil: Spoil) -> None:
    drop, returned, record = deepcopy(one_file())
    spoil(returned, record)
    assert judged(drop, [returned], record)


def test_results_that_are_missing_or_too_many_are_found() -> None:
    drop, returned, record = one_file()
    assert judged(drop, [], record)
    assert judged(drop, [returned, replace(returned, title="a.jsonl-again")], record)
    assert judged(drop, [returned, Returned("b.jsonl", [], [], {})], record)


def test_a_file_that_could_not_be_read_must_say_so() -> None:
    _, returned, _ = one_file()
    cut = Drop(4, "a.jsonl", False, {}, frozenset())
    told = Returned("a.jsonl", [], [{"line": 0, "status": "unreadable_file"}], {"lines": 0})
    assert judged(cut, [told], []) == []
    assert judged(cut, [replace(told, errors=[])], [])
    assert judged(cut, [returned], [])


@pytest.mark.parametrize(
    ("change", "kills", "explained"),
    [
        ({"verdict": "cut"}, (), True),
        ({"verdict": "hang"}, (), True),
        ({}, (12.0,), True),
        ({}, (5.0,), False),
        ({"time": 1.0}, (12.0,), False),
    ],
    ids=["cut", "hung", "killed between", "killed before both", "killed long after the first"],
)
def test_a_second_submission_needs_its_reason(change: Row, kills: tuple[float, ...], explained: bool) -> None:
    drop, returned, record = deepcopy(one_file())
    record.append({**record[0], "time": 99.0})
    record[0].update(time=11.0)
    record[0].update(change)
    assert (judged(drop, [returned], record, kills) == []) is explained


def test_after_a_kill_no_more_is_repeated_than_was_open() -> None:
    drop, returned, record = deepcopy(one_file())
    first = [event for event in record if event["event"] == "accepted"]
    for event in first[: 2 * IN_FLIGHT]:
        event["time"] = 11.0
        record.append({**event, "time": 99.0})
    assert judged(drop, [returned], record, (12.0,)) == []
    first[2 * IN_FLIGHT]["time"] = 11.0
    record.append({**first[2 * IN_FLIGHT], "time": 99.0})
    assert judged(drop, [returned], record, (12.0,))


# --- metrics ----------------------------------------------------------------------------------------------------------

Touch = Callable[[Metrics], object]


def counted(touch: Touch, **changes: Any) -> list[str]:
    """What is found of the metrics that a process with this one file would show, had `touch` not been at them."""
    drop, returned, record = one_file()
    matched, _ = books.matched([drop], [returned])
    jobs, _ = recount.collate(matched, record)
    metrics = Metrics(registry := CollectorRegistry(), map(EndpointName, ENDPOINTS))
    metrics.read(accepted=len(jobs), rejected=len(drop.rejected))
    totals: dict[tuple[str, str], int] = {}
    for job in drop.jobs.values():
        for state in (State.ACCEPTED, State.CLAIMED, State.SUBMITTED, State.SUCCEEDED):
            metrics.endpoint(EndpointName(job.endpoint)).entered(state)
            totals[job.endpoint, state] = totals.get((job.endpoint, state), 0) + 1
        submit(metrics)
    touch(metrics)
    scrape = scraped(50.0, 0.01, generate_latest(registry).decode())
    diary = Diary(
        in_flight=IN_FLIGHT,
        attempt_seconds=1.0,
        lives=[Life(began_at=0.0, requests_before={}, end="SIGTERM", ended_at=100.0, last=scrape)],
        record=record,
        requests={"invoke": {"202": len(jobs)}},
        totals=totals,
        lines=(len(jobs), len(drop.rejected)),
    )
    for name, value in changes.items():
        setattr(diary, name, value)
    return meters.all_findings(diary, jobs, len(drop.rejected))


def submit(metrics: Metrics) -> None:
    """One job goes inline."""
    metrics.slot_taken(0.0)
    metrics.requested(Operation.INVOKE, "ok", 0.01)
    metrics.attempted(Transport.INLINE, Outcome.OK)
    metrics.submitted(Transport.INLINE, SizeClass.LE_1K, 0.01)


def test_metrics_that_are_right_pass() -> None:
    assert counted(lambda metrics: None) == []


TOUCHED: dict[str, Touch] = {
    "a line too many": lambda metrics: metrics.read(accepted=1, rejected=0),
    "a rejection too many": lambda metrics: metrics.read(accepted=0, rejected=1),
    **{f"one {state} too many": lambda m, state=state: m.endpoint(MAIN).entered(state) for state in State},  # type: ignore[misc]
    "an attempt too many": lambda metrics: metrics.attempted(Transport.INLINE, Outcome.THROTTLED),
    "a submission too many": lambda metrics: metrics.submitted(Transport.INLINE, SizeClass.LE_1K, 0.01),
    "a submission that the service does not know": submit,
    "an invocation too many": lambda metrics: metrics.requested(Operation.INVOKE, "ok", 0.01),
    "an upload too many": lambda metrics: metrics.requested(Operation.PUT, "ok", 0.01),
    "a list too many": lambda metrics: metrics.requested(Operation.LIST, "ok", 0.01),
    "a wait too many": lambda metrics: metrics.slot_taken(0.0),
    "something outstanding": lambda metrics: metrics.endpoint(EndpointName(MAIN)).outstanding.set(1),
    "something paused": lambda metrics: metrics.endpoint(EndpointName(MAIN)).paused(FailureReason.THROTTLED),
}


@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED.keys())
def test_a_metric_that_is_wrong_is_found(touch: Touch) -> None:
    assert counted(touch)


@pytest.mark.parametrize(
    "changes",
    [{"totals": {}}, {"lines": (0, 0)}, {"requests": {"invoke": {"202": 1}}}, {"record": []}],
    ids=["the ledger's states", "the ledger's lines", "the sandbox's counts", "the sandbox's record"],
)
def test_metrics_are_compared_with_every_other_account(changes: dict[str, Any]) -> None:
    assert counted(lambda metrics: None, **changes)
