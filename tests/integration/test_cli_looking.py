"""`validate` and `status`: what they say, to a person and to a script."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from dispatcher.cli.status import FINISHED_SHOWN
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.sandbox.process import Sandbox
from tests.contract.test_ledger import a_batch, a_file, a_job
from tests.programs import ENDPOINT, Jobs, a_sandbox, dispatch, numbered, rows, run


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def mixed() -> Jobs:
    jobs = numbered(3)
    jobs.reject(b"{")
    jobs.blank()
    jobs.reject(b'{"id":"x","payload":1,"more":2}')
    return jobs


def test_validate_names_every_bad_line(tmp_path: Path) -> None:
    mixed().write(tmp_path / "mixed.jsonl")
    numbered(2).write(tmp_path / "good.jsonl")
    ended = dispatch(tmp_path, None, "validate", "mixed.jsonl", "good.jsonl")
    assert ended.status == 1, ended.said
    first, second = ended.out.splitlines()
    assert first.startswith("mixed.jsonl:4: invalid_json: ")
    assert second.startswith("mixed.jsonl:6: invalid_field: ")
    assert "mixed.jsonl: 5 lines, 3 good, 2 bad" in ended.err
    assert "good.jsonl: 2 lines, 2 good, 0 bad" in ended.err
    assert dispatch(tmp_path, None, "validate", "good.jsonl").status == 0
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["good.jsonl", "mixed.jsonl"], "nothing is left"


def test_validate_speaks_json_and_says_what_run_would(tmp_path: Path, sandbox: Sandbox) -> None:
    mixed().write(tmp_path / "mixed.jsonl")
    ended = dispatch(tmp_path, None, "validate", "mixed.jsonl", "--json", "--endpoint", ENDPOINT)
    assert ended.status == 1, ended.said
    *bad, verdict = [json.loads(line) for line in ended.out.splitlines()]
    assert verdict == {"path": "mixed.jsonl", "lines": 5, "rejected": 2}
    assert run(tmp_path, sandbox, "mixed.jsonl").status == 1
    told = rows(tmp_path / "mixed.jsonl.results" / "errors.jsonl")
    assert [(line["line"], line.get("id"), line["error"]) for line in bad] == [
        (row["line"], row.get("id"), row["error"]) for row in told
    ]


def test_validate_reads_stdin_and_knows_the_rules_of_the_settings(tmp_path: Path) -> None:
    line = b'{"payload":1,"endpoint":"other","transport":"s3"}\n'
    assert dispatch(tmp_path, None, "validate", "-", "--staging", "s3://bucket/x", stdin=line).status == 0
    strict = dispatch(tmp_path, None, "validate", "-", "--endpoint", ENDPOINT, stdin=line)
    assert strict.status == 1, strict.said
    assert "endpoint_not_allowed" in strict.out


def test_status_of_an_idle_ledger_tells_files_and_jobs(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = mixed()
    jobs.job(b"1", b'"id":"one \xc3\xbc"')
    jobs.write(tmp_path / "mixed.jsonl")
    assert run(tmp_path, sandbox, "mixed.jsonl").status == 1
    told = dispatch(tmp_path, None, "status", "mixed.jsonl")
    assert told.status == 0, told.said
    assert "4 succeeded" in told.out
    assert "no process works on this" in told.out
    status = json.loads(dispatch(tmp_path, None, "status", "--output", "mixed.jsonl.results", "--json").out)
    (file,) = status["files"]
    assert (file["lines"], file["rejected"], file["accepted"], file["succeeded"]) == (6, 2, 4, 4)
    assert status["owner"] is False
    nothing = {"outstanding": 0, "oldest_age_seconds": 0.0, "paused": None, "paused_parts": None, "bounds": None}
    assert status["lanes"] == [{"endpoint": ENDPOINT, **nothing}]


async def many_files(path: Path, finished: int) -> list[str]:
    """A ledger of so many files that came to their end, the first one last, with an unfinished one before and behind them."""
    names = ["before", *(f"finished-{number:03}" for number in range(finished)), "behind"]
    ledger = await open_sqlite(path)
    for number, name in enumerate(names):
        file = await ledger.add_file(structs.replace(a_file(f"run-{name}"), name=name))
        await ledger.accept(a_batch(file.file_id, [a_job(1)], final=True))
        if name.startswith("finished"):
            await ledger.published(file.file_id, 1_000_000.0 - number)
    await ledger.aclose()
    return names


async def test_status_shows_as_text_what_is_unfinished_and_of_the_rest_the_latest(tmp_path: Path) -> None:
    names = await many_files(tmp_path / "ledger.db", FINISHED_SHOWN + 17)
    status = ("status", "--ledger", "ledger.db")
    ended = dispatch(tmp_path, None, *status)
    assert ended.status == 0, ended.said
    _head, *files, left_out, _lane, _owner = ended.out.splitlines()
    assert [line.split()[0] for line in files] == [*names[: FINISHED_SHOWN + 1], "behind"]
    assert left_out == "finished job files left out: 17; `--json` shows them all, `status FILE` one"
    said = json.loads(dispatch(tmp_path, None, *status, "--json").out)
    assert [file["name"] for file in said["files"]] == names
    old = dispatch(tmp_path, None, *status, names[-2]).out
    assert (names[-2] in old, "left out" in old) == (True, False)


async def test_status_leaves_no_finished_file_out_where_there_are_few(tmp_path: Path) -> None:
    names = await many_files(tmp_path / "ledger.db", FINISHED_SHOWN)
    ended = dispatch(tmp_path, None, "status", "--ledger", "ledger.db")
    _head, *files, _lane, _owner = ended.out.splitlines()
    assert [line.split()[0] for line in files] == names


async def test_status_shows_every_file_of_the_name_that_is_asked_for(tmp_path: Path) -> None:
    ledger = await open_sqlite(tmp_path / "ledger.db")
    for number in range(FINISHED_SHOWN + 5):
        file = await ledger.add_file(structs.replace(a_file(f"run-{number}"), name="daily"))
        await ledger.accept(a_batch(file.file_id, [a_job(1)], final=True))
        await ledger.published(file.file_id, 1_000_000.0 + number)
    await ledger.aclose()
    ended = dispatch(tmp_path, None, "status", "daily", "--ledger", "ledger.db")
    assert (ended.out.count("daily"), "left out" in ended.out) == (FINISHED_SHOWN + 5, False)


@pytest.mark.parametrize("name", ["a[b].jsonl", "a:warning:.jsonl"])
def test_status_shows_a_name_as_it_stands(tmp_path: Path, sandbox: Sandbox, name: str) -> None:
    numbered(1).write(tmp_path / name)
    assert run(tmp_path, sandbox, name, "--output", "out").status == 0
    told = dispatch(tmp_path, None, "status", "--output", "out")
    assert (told.status, told.out.splitlines()[1].split()[0]) == (0, name), told.said


def test_status_finds_a_job_by_its_id(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(2)
    jobs.job(b"1", b'"id":"one \xc3\xbc"')
    jobs.write(tmp_path / "jobs.jsonl")
    assert run(tmp_path, sandbox, "jobs.jsonl").status == 0
    ledger = ("--ledger", "jobs.jsonl.results/ledger.db")
    (job,) = json.loads(dispatch(tmp_path, None, "status", *ledger, "--job", "one ü", "--json").out)
    (row,) = [row for row in rows(tmp_path / "jobs.jsonl.results" / "results.jsonl") if row["line"] == 3]
    assert job["state"] == "succeeded"
    for name in ("id", "line", "inference_id", "output_location", "attempts", "submitted_at", "completed_at"):
        assert job[name] == row[name]
    text = dispatch(tmp_path, None, "status", *ledger, "--job", "2")
    assert "state:             succeeded" in text.out
    absent = dispatch(tmp_path, None, "status", *ledger, "--job", "nobody")
    assert (absent.status, "nobody" in absent.err) == (2, True)
