"""What a run does for a thousand jobs, in numbers that no machine's mood changes: nothing dear comes once for each job."""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from dispatcher.ledger.opening import connect
from dispatcher.ledger.sqlite import open_sqlite
from tests.contract.test_ledger import a_file
from tests.counted import count_transactions, counted
from tests.programs import ENDPOINT, STAGING, a_sandbox, numbered

JOBS = 1_000
IN_FLIGHT = 64


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        pytest.param((), ("invoke",), id="inline"),
        pytest.param(("--staging", STAGING, "--comparison-share", 1), ("put", "invoke"), id="S3"),
    ],
)
def test_a_thousand_jobs_take_few_requests_transactions_tasks_and_timers(
    tmp_path: Path, flags: tuple[object, ...], asked: tuple[str, ...]
) -> None:
    with a_sandbox(tmp_path) as sandbox:
        file = numbered(JOBS).write(tmp_path / "jobs.jsonl")
        ended, counts = counted(
            tmp_path, sandbox, "run", file, "--endpoint", ENDPOINT, "--max-in-flight", IN_FLIGHT, *flags
        )
        requests = {name: sum(answers.values()) for name, answers in sandbox.counts()["requests"].items()}
    assert ended.status == 0, ended.said
    assert {name: requests.pop(name, 0) for name in asked} == dict.fromkeys(asked, JOBS)
    assert sum(requests.values()) <= 20, requests
    assert counts["transactions"] <= 200
    assert counts["tasks"] <= 2 * IN_FLIGHT + 100
    assert counts["timers"] <= 700


async def test_a_thousand_calls_of_the_ledger_share_few_transactions(tmp_path: Path) -> None:
    """A run gathers most of its calls before the ledger can: alone, it would not show that the ledger does as well."""
    counts: Counter[str] = Counter()

    def counting(path: Path) -> sqlite3.Connection:
        return count_transactions(connect(path), counts)

    ledger = await open_sqlite(tmp_path / "ledger", connect=counting)
    counts.clear()
    await asyncio.gather(*(ledger.add_file(a_file(f"run{number}")) for number in range(JOBS)))
    await ledger.aclose()
    assert 0 < counts["transactions"] <= 100
