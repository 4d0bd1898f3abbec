"""Result lines: the keys and their order, times, and contents as they came."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.formats.resultlines import encode_rejection, encode_result, rfc3339
from dispatcher.model import (
    EndpointName,
    Error,
    FailureReason,
    InferenceId,
    JobKey,
    JobRow,
    QueueId,
    Receipt,
    Rejection,
    State,
    Transport,
)

ID = InferenceId("abc")
ROW = JobRow(
    key=JobKey(QueueId(1), 7),
    id="job-7",
    endpoint=EndpointName("e"),
    state=State.SUCCEEDED,
    shard=0,
    offset=0,
    length=10,
    size_bytes=3,
    transport=Transport.INLINE,
    has_metadata=True,
    attempts=2,
    receipt=Receipt("s3://b/out", None),
    submitted_at=1_700_000_000.1234,
    submission_seconds=0.01,
    completed_at=1_700_000_001.9996,
    due_at=0.0,
    error=None,
)


def test_a_result_line_has_all_keys_in_their_order() -> None:
    assert encode_result(ROW, ID, b'{"a":  1.0}') == (
        b'{"id":"job-7","line":7,"status":"succeeded","transport":"inline","inference_id":"abc",'
        b'"output_location":"s3://b/out","failure_location":null,"attempts":2,"submitted_at":"2023-11-14T22:13:20.123Z",'
        b'"completed_at":"2023-11-14T22:13:22.000Z","metadata":{"a":  1.0},"error":null}\n'
    )


def test_a_job_that_was_never_sent_has_nulls_and_its_error() -> None:
    row = replace(ROW, state=State.DEAD, receipt=None, submitted_at=None, error=Error("payload_gone", "it is gone"))
    line = json.loads(encode_result(row, ID))
    assert line["status"] == "dead"
    assert line["error"] == {"code": "payload_gone", "message": "it is gone"}
    assert (line["output_location"], line["submitted_at"], line["metadata"]) == (None, None, None)
    assert "output" not in line


@pytest.mark.parametrize("output", [b'{"a": 1.0}', b"null", b"1e999", '"é"'.encode(), b" [1]\n"])
def test_json_contents_are_inlined_as_they_are(output: bytes) -> None:
    assert encode_result(ROW, ID, None, output).endswith(b',"output":' + output.strip() + b"}\n")


@pytest.mark.parametrize(
    "output", [b"", b"\xff", b'"\xff"', b"NaN", b"{} {}", b"plain text", b"[" * 100_000, b'"\\ud800"']
)
def test_other_contents_travel_in_base64(output: bytes) -> None:
    line = json.loads(encode_result(ROW, ID, None, output))
    assert base64.b64decode(line["output"]["base64"], validate=True) == output


@given(
    output=st.binary() | st.text().map(json.dumps).map(str.encode),
    metadata=st.sampled_from([b"[1,\r2]", b"null", b'"\\n"']),
)
def test_a_result_is_one_line_of_json_whatever_it_holds(output: bytes, metadata: bytes) -> None:
    line = encode_result(ROW, ID, metadata, output)
    assert line.splitlines(keepends=True) == [line]
    assert json.loads(line)["metadata"] == json.loads(metadata)


def test_pretty_contents_are_put_on_one_line() -> None:
    pretty = json.dumps({"a": [1, "\n"]}, indent=2).replace("\n", "\r\n").encode()
    line = encode_result(ROW, ID, None, pretty)
    assert line.count(b"\n") == 1
    assert json.loads(line)["output"] == {"a": [1, "\n"]}


@pytest.mark.parametrize(
    ("id", "line"),
    [
        ("x", b'{"line":3,"id":"x","status":"rejected","error":{"code":"invalid_json","message":"no"}}\n'),
        (None, b'{"line":3,"status":"rejected","error":{"code":"invalid_json","message":"no"}}\n'),
    ],
)
def test_a_rejection_has_its_line_and_its_id_where_known(id: str | None, line: bytes) -> None:
    assert encode_rejection(Rejection(3, id, FailureReason.INVALID_JSON, "no")) == line


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (0.0004, "1970-01-01T00:00:00.000Z"),
        (59.9996, "1970-01-01T00:01:00.000Z"),
        (1e9, "2001-09-09T01:46:40.000Z"),
    ],
)
def test_times_are_in_utc_rounded_to_the_millisecond(at: float, text: str) -> None:
    assert rfc3339(at) == text
