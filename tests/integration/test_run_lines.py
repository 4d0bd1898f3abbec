"""Job files as people write them: bad lines, odd endings, archives, stdin, several at once."""

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Ended, Jobs, a_sandbox, audit, dispatch, numbered, rows, run

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BAD = {
    b"{not json}": ("invalid_json", "not JSON"),
    b"[1]": ("invalid_json", "object"),
    b'{"payload":1,"paylod":2}': ("invalid_field", "paylod"),
    b'{"payload":1,"payload_path":"x"}': ("invalid_field", "2 are there"),
    b'{"id":"empty"}': ("invalid_field", "none is there"),
    b'{"id":"twin","payload":2}': ("duplicate_id", "line 1"),
    b'{"payload":"' + b"x" * 2_000 + b'"}': ("line_too_long", "1500"),
    b'{"payload":"\xff"}': ("invalid_encoding", "UTF-8"),
    b'{"payload_base64":"?"}': ("invalid_field", "base64"),
    b'{"payload_path":"../outside"}': ("invalid_field", "payload_path"),
    b'{"payload_path":"absent"}': ("payload_unreadable", "absent"),
    b'{"payload_path":"link"}': ("payload_unreadable", "link"),
    b'{"payload":1,"custom_attributes":"\\u00e9"}': ("invalid_field", "custom_attributes"),
    b'{"payload":1,"request_ttl_seconds":59}': ("invalid_field", "request_ttl_seconds"),
    b'{"payload":1,"transport":"s3"}': ("staging_not_set", "--staging"),
    b'{"payload":1,"endpoint":"elsewhere"}': ("endpoint_not_allowed", "elsewhere"),
    b'{"input_location":"ftp://x/y"}': ("invalid_field", "input_location"),
}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def well(ended: Ended) -> None:
    assert ended.status == 0, ended.said


def test_a_bad_line_is_rejected_with_its_number_and_a_reason_and_the_rest_goes_on(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    jobs = Jobs()
    jobs.job(b"0", b'"id":"twin"')
    for line in BAD:
        jobs.reject(line)
        jobs.job(b"1")
        jobs.blank()
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "bad.jsonl"), "--line-max-bytes", "1500")
    assert ended.status == 1, ended.said
    books = audit(jobs, tmp_path / "bad.jsonl.results", sandbox)
    assert books.states() == {"succeeded": len(BAD) + 1}
    for row, (code, word) in zip(books.errors, BAD.values(), strict=True):
        assert row["error"]["code"] == code, row
        assert word in row["error"]["message"], row
    assert [row["id"] for row in books.errors if "id" in row] == ["empty", "twin"]


def test_endings_blank_lines_and_a_byte_order_mark_are_no_matter(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = Jobs()
    jobs.job(b'{"a": 1 }')
    jobs.blank(b"  \t")
    jobs.job(b"2")
    jobs.blank()
    jobs.job(b"3")
    dos, bare = tmp_path / "dos.jsonl", tmp_path / "bare.jsonl"
    dos.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(jobs.lines) + b"\r\n")
    bare.write_bytes(b"\n".join(jobs.lines))
    well(run(tmp_path, sandbox, dos))
    books = audit(jobs, tmp_path / "dos.jsonl.results", sandbox)
    assert [row["line"] for row in books.results] == [1, 3, 5]
    (tmp_path / "record.jsonl").write_bytes(b"")
    well(run(tmp_path, sandbox, bare))
    audit(jobs, tmp_path / "bare.jsonl.results", sandbox)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_jobs_has_empty_results(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(content)
    with a_sandbox(tmp_path) as sandbox:
        well(run(tmp_path, sandbox, "empty.jsonl"))
        assert audit(Jobs(), tmp_path / "empty.jsonl.results", sandbox).summary["lines"] == 0


def test_archives_and_stdin_are_read_like_files(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = numbered(40)
    plain = b"\n".join(jobs.lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain[:300]) + gzip.compress(plain[300:]))
    (tmp_path / "b.jsonl.zst").write_bytes(zstd.compress(plain))
    well(dispatch(tmp_path, sandbox, "run", "-", "--endpoint", ENDPOINT, stdin=plain))
    audit(jobs, tmp_path / "stdin.results", sandbox)
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        (tmp_path / "record.jsonl").write_bytes(b"")
        well(run(tmp_path, sandbox, name))
        audit(jobs, tmp_path / f"{name}.results", sandbox)


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "cut.jsonl.zst"])
def test_of_a_truncated_archive_nothing_is_accepted(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    plain = b"\n".join(numbered(5_000).lines)
    whole = gzip.compress(plain) if name.endswith(".gz") else zstd.compress(plain)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    ended = run(tmp_path, sandbox, name)
    assert ended.status == 2, ended.said
    assert name in ended.err
    assert sandbox.counts()["jobs"]["accepted"] == 0
    assert list((tmp_path / f"{name}.results" / "ledger.db.work").glob("*jsonl*")) == [], "the broken copy is gone"
    assert "has no job file" in dispatch(tmp_path, None, "status", name, "--json").err


def test_several_files_get_a_folder_each(tmp_path: Path, sandbox: Sandbox) -> None:
    for name, jobs in (("a.jsonl", 30), ("b.jsonl", 1), ("c.jsonl", 0)):
        numbered(jobs).write(tmp_path / name)
    flags = ("--endpoint", ENDPOINT, "--output", "out")
    well(dispatch(tmp_path, sandbox, "run", "a.jsonl", "b.jsonl", "c.jsonl", *flags))
    found = {name: len(rows(tmp_path / "out" / name / "results.jsonl")) for name in ("a.jsonl", "b.jsonl", "c.jsonl")}
    assert found == {"a.jsonl": 30, "b.jsonl": 1, "c.jsonl": 0}
    assert sandbox.counts()["jobs"]["accepted"] == 31
