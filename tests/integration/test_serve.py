"""The service on good days and with bad files: what is dropped comes back as results, whatever it is."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import STAGING, Jobs, a_sandbox, audit, dispatch, numbered
from tests.sandboxes import eventually
from tests.services import Spool, audit_all, number, serving

FILES = number("TEST_FILES", 100)
JOBS = number("TEST_FILE_JOBS", 20)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def test_a_dropped_file_comes_back_as_results(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(40)
    jobs.reject(b"{")
    jobs.blank()
    jobs.reject(b'{"payload":1,"endpoint":"not-allowed"}')
    jobs.job(b'{"last":1}', b'"id":"the-last"')
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("a.jsonl", jobs)
        service.spool.until_finished("a.jsonl")
        ended = service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert (books.states(), books.repeated, books.summary["rejected"]) == ({"succeeded": 41}, 0, 2)
    assert {name: service.spool.names(name) for name in ("inbox", "work", "failed")} == {
        "inbox": [],
        "work": [],
        "failed": [],
    }
    assert '"error"' not in ended.err


def test_many_files_dropped_at_once_all_come_back(tmp_path: Path) -> None:
    files = {f"{n:04}.jsonl": numbered(JOBS) for n in range(FILES)}
    with a_sandbox(tmp_path, endpoint={"instances": 64}) as sandbox:
        spool = Spool(tmp_path / "spool")
        for name, jobs in files.items():
            spool.drop(name, jobs)
        with serving(tmp_path, sandbox) as service:
            spool.until_finished(*files, seconds=60.0 + FILES * JOBS / 200)
            service.stop()
        books = audit_all(files, spool, sandbox)
    assert all(one.states() == {"succeeded": JOBS} and one.repeated == 0 for one in books.values())


def test_a_compressed_file_is_unpacked_and_its_copy_goes_again(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(50)
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("a.jsonl.gz", gzip.compress(b"\n".join(jobs.lines)))
        service.spool.until_finished("a.jsonl.gz")
        eventually(lambda: service.spool.names("work") == [], 5.0)
        service.stop()
    assert audit(jobs, service.spool.results("a.jsonl.gz"), sandbox).states() == {"succeeded": 50}


def test_a_truncated_archive_goes_to_failed_and_its_results_say_why(tmp_path: Path, sandbox: Sandbox) -> None:
    whole = gzip.compress(b"\n".join(numbered(5_000, 100).lines))
    with serving(tmp_path, sandbox) as service:
        service.spool.drop("a.jsonl.gz", whole[: len(whole) // 2])
        service.spool.until_finished("a.jsonl.gz", into="failed")
        service.stop()
    summary = service.spool.summary("a.jsonl.gz")
    assert (summary["lines"], summary["accepted"], summary["error"]["code"]) == (0, 0, "unreadable_file")
    (line,) = (service.spool.results("a.jsonl.gz") / "errors.jsonl").read_text().splitlines()
    assert "a.jsonl.gz" in json.loads(line)["error"]["message"]
    assert sandbox.counts()["jobs"]["accepted"] == 0


def test_the_same_name_dropped_again_is_a_run_of_its_own(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(5)
    with serving(tmp_path, sandbox) as service:
        for runs in (1, 2, 3):
            service.spool.drop("a.jsonl", jobs)
            eventually(lambda runs=runs: len(service.spool.names("done")) == runs, 20.0)  # type: ignore[misc]
        service.stop()
    titles = service.spool.names("results")
    assert titles == service.spool.names("done")
    assert all(title.startswith("a.jsonl") for title in titles)
    assert len({service.spool.summary(title)["run_id"] for title in titles}) == 3
    audit_all(dict.fromkeys(titles, jobs), service.spool, sandbox)
    assert sandbox.counts()["jobs"]["accepted"] == 15


def test_other_files_are_left_alone_and_an_empty_file_has_empty_results(tmp_path: Path, sandbox: Sandbox) -> None:
    others = ["notes.txt", "half.jsonl.part", "x.json"]
    with serving(tmp_path, sandbox) as service:
        for name in others:
            (service.spool.inbox / name).write_bytes(b"?")
        (service.spool.inbox / "folder.jsonl").mkdir()
        service.spool.drop("empty.jsonl", b"")
        service.spool.until_finished("empty.jsonl")
        service.stop()
    assert service.spool.names("inbox") == sorted([*others, "folder.jsonl"])
    audit(Jobs(), service.spool.results("empty.jsonl"), sandbox)


def test_lines_go_to_the_endpoints_that_they_name_and_large_payloads_by_s3(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={"second": {}, "third": {}})
    jobs = numbered(20)
    for n in range(20):
        jobs.job(b'{"to":%d}' % n, b'"endpoint":"second"')
        jobs.job(b'{"to":%d}' % n, b'"endpoint":"third"')
    jobs.job(b'"%b"' % (b"x" * 300_000), b'"endpoint":"third"')
    flags = ("--allow-endpoint", "second", "--allow-endpoint", "third", "--staging", STAGING, "--comparison-share", "0")
    with serving(tmp_path, sandbox, *flags) as service:
        service.spool.drop("a.jsonl", jobs)
        service.spool.until_finished("a.jsonl")
        service.stop()
    books = audit(jobs, service.spool.results("a.jsonl"), sandbox)
    assert books.states() == {"succeeded": 61}
    assert books.summary["by_transport"] == {"inline": 60, "s3": 1, "reference": 0}
    sent = [event["endpoint"] for event in sandbox.record() if event["event"] == "accepted"]
    assert {name: sent.count(name) for name in ("model", "second", "third")} == {"model": 20, "second": 20, "third": 21}


def test_without_a_spool_or_an_endpoint_it_says_what_to_set(tmp_path: Path, sandbox: Sandbox) -> None:
    for flags, word in ((("--endpoint", "model"), "--spool"), (("--spool", "spool"), "--endpoint")):
        ended = dispatch(tmp_path, sandbox, "serve", *flags)
        assert (ended.status, word in ended.err) == (2, True), ended.said
