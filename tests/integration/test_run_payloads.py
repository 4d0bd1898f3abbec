"""What the model gets: the four kinds of payload, byte for byte, by either way."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, RESULT_KEYS, STAGING, Jobs, a_sandbox, audit, run
from tests.sandboxes import client

FORMS = (
    b'{ "a" :\t1.0e5 , "b":[ 1,2 ,3 ]}',
    '{"grüße":"\u2028 \U0001f680","esc":"\\u00fc\\/"}'.encode(),
    b"1.0e5",
    b"-0.0",
    b"123456789012345678901234567890.10",
    b'""',
    b"null",
    b"[]",
    b'{"a":1,"a":2}',
    b'"' + b"y" * 127_998 + b'"',
)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def test_payloads_arrive_as_they_stand_in_the_line(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = Jobs()
    for form in FORMS:
        jobs.job(form)
        jobs.job(form, b'"transport":"s3"')
    file = jobs.write(tmp_path / "forms.jsonl")
    ended = run(tmp_path, sandbox, file, "--staging", STAGING, "--comparison-share", "0")
    assert ended.status == 0, ended.said
    books = audit(jobs, tmp_path / "forms.jsonl.results", sandbox)
    assert [row["transport"] for row in books.results] == ["inline", "s3"] * len(FORMS)
    assert all(tuple(row) == RESULT_KEYS for row in books.results)
    assert books.errors == []


def test_binary_files_and_objects_travel_too(tmp_path: Path, sandbox: Sandbox) -> None:
    binary, large = bytes(range(256)) * 8, hashlib.sha256(b"seed").digest() * 100_000
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "small").write_bytes(binary)
    (tmp_path / "in" / "large").write_bytes(large)
    (tmp_path / "in" / "empty").write_bytes(b"")
    with client("s3", sandbox.url) as s3:
        s3.put_object(Bucket="sandbox-in", Key="there/already", Body=binary)
    jobs = Jobs()
    jobs.other(binary, b'"payload_base64":"' + base64.b64encode(binary) + b'"')
    jobs.other(large, b'"payload_base64":"' + base64.b64encode(large) + b'"')
    jobs.other(binary, b'"payload_path":"in/small"')
    jobs.other(large, b'"payload_path":"in/large"')
    jobs.other(b"", b'"payload_path":"in/empty"')
    jobs.other(None, b'"input_location":"s3://sandbox-in/there/already"')
    jobs.job(b'"' + b"z" * 5_000_000 + b'"')
    flags = ("--staging", STAGING, "--comparison-share", "0")
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "kinds.jsonl"), *flags)
    assert ended.status == 0, ended.said
    books = audit(jobs, tmp_path / "kinds.jsonl.results", sandbox)
    ways = [row["transport"] for row in books.results]
    assert ways == ["inline", "s3", "inline", "s3", "s3", "reference", "s3"]
    with client("s3", sandbox.url) as s3:
        left = [one["Key"] for one in s3.list_objects_v2(Bucket="sandbox-in").get("Contents", [])]
    assert left == ["there/already"], "staged inputs go, other people's stay"


def test_what_a_line_says_reaches_the_service_and_comes_back(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = Jobs()
    jobs.job(
        b"1",
        b'"id":"first \xc3\xbc"',
        b'"content_type":"text/x"',
        b'"accept":"a/b"',
        b'"custom_attributes":"attr ; 1"',
        b'"request_ttl_seconds":60',
        b'"invocation_timeout_seconds":7',
        b'"metadata":{"a": [1.50, "\xc3\xa9"],"n":12345678901234567890}',
    )
    jobs.job(b"2", b'"endpoint":"other"', b'"metadata":null')
    jobs.job(b"3")
    sandbox.patch(endpoints={"other": {}})
    flags = ("--allow-endpoint", "other", "--accept", "default/accept", "--request-ttl-seconds", "120")
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "fields.jsonl"), *flags)
    assert ended.status == 0, ended.said
    books = audit(jobs, tmp_path / "fields.jsonl.results", sandbox)
    sent = [
        [event[name] for name in ("endpoint", "content_type", "accept", "custom_attributes", "ttl", "timeout")]
        for row in books.results
        for event in sandbox.record()
        if event["event"] == "accepted" and event["inference_id"] == row["inference_id"]
    ]
    assert sent == [
        [ENDPOINT, "text/x", "a/b", "attr ; 1", 60, 7],
        ["other", "application/json", "default/accept", None, 120, 900],
        [ENDPOINT, "application/json", "default/accept", None, 120, 900],
    ]
    assert [row["id"] for row in books.results] == ["first ü", "2", "3"]
    text = (tmp_path / "fields.jsonl.results" / "results.jsonl").read_text()
    assert '"metadata":{"a": [1.50, "é"],"n":12345678901234567890}' in text
    assert [row["metadata"] for row in books.results[1:]] == [None, None]


def test_contents_are_collected_as_json_or_base64_up_to_a_cap(tmp_path: Path, sandbox: Sandbox) -> None:
    jobs = Jobs()
    jobs.job(b'{"a": 1.0e5 ,"b":[]}')
    jobs.other(b"\xff\x00", b'"payload_base64":"/wA="')
    jobs.job(b'"' + b"q" * 2_000 + b'"')
    jobs.other(b'{"a":\n 1}', b'"payload_base64":"' + base64.b64encode(b'{"a":\n 1}') + b'"')
    file = jobs.write(tmp_path / "collect.jsonl")
    ended = run(tmp_path, sandbox, file, "--collect", "--collect-max-bytes", "1000")
    assert ended.status == 0, ended.said
    books = audit(jobs, tmp_path / "collect.jsonl.results", sandbox)
    lines = (tmp_path / "collect.jsonl.results" / "results.jsonl").read_text().splitlines()
    assert lines[0].endswith(',"output":{"a": 1.0e5 ,"b":[]}}')
    assert lines[1].endswith(',"output":{"base64":"/wA="}}')
    assert "output" not in json.loads(lines[2])
    assert [tuple(row)[-1] for row in books.results] == ["output", "output", "error", "output"]
    assert books.results[3]["output"] == {"a": 1}


def test_failures_are_told_with_the_services_own_words(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"fail_every": 2}})
    jobs = Jobs()
    for number in range(4):
        jobs.job(b"%d" % number, b'"metadata":%d' % number)
    ended = run(tmp_path, sandbox, jobs.write(tmp_path / "failing.jsonl"))
    assert ended.status == 1, ended.said
    books = audit(jobs, tmp_path / "failing.jsonl.results", sandbox)
    assert books.states() == {"succeeded": 2, "failed": 2}
    for row in books.errors:
        assert row["error"]["code"] == "model_error"
        assert "told to fail this inference" in row["error"]["message"]
        assert row["failure_location"].startswith("s3://sandbox-out/failures/")
        assert row["metadata"] == row["line"] - 1
