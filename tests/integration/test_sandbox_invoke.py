"""InvokeEndpointAsync of the sandbox, asked by boto3: what is accepted, what comes of it, what is refused."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load
from tests.sandboxes import client, eventually

ENDPOINTS = {
    "echo": {},
    "digest": {"model": "digest"},
    "no-failure-path": {"failure_path": None, "fail_every": 1},
    "fails": {"fail_every": 1},
    "loses": {"lose_every": 1},
    "sleeps": {"asleep": True, "wake_backlog": None},
    "tells-expiry": {"asleep": True, "wake_backlog": None, "failure_on_expiry": True},
    "slow": {"min_seconds": 30.0, "concurrency_per_instance": 100},
    "flat": {"output_layout": "flat", "location_scheme": "https"},
    "no-inline": {"inline": False},
    "nowhere": {"output_path": "s3://no-such-bucket/x"},
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    record = tmp_path_factory.mktemp("sandbox") / "record.jsonl"
    settings = load({"endpoints": ENDPOINTS, "record": str(record), "time_scale": 0.005})
    with start_sandbox(settings) as running:
        yield running


@pytest.fixture(scope="module")
def runtime(sandbox: Sandbox) -> Iterator[Any]:
    with client("sagemaker-runtime", sandbox.url) as made:
        yield made


@pytest.fixture(scope="module")
def s3(sandbox: Sandbox) -> Iterator[Any]:
    with client("s3", sandbox.url) as made:
        yield made


def refused(call: Any, **request: Any) -> tuple[int, str, str]:
    """Status, code and text of the error that a call ends in."""
    with pytest.raises(ClientError) as caught:
        call(**request)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer["Error"]["Message"]


def content(s3: Any, location: str) -> bytes:
    """The object at a location, once it is there."""
    bucket, _, key = location.removeprefix("s3://").partition("/")

    def look() -> list[bytes]:
        try:
            with s3.get_object(Bucket=bucket, Key=key)["Body"] as body:
                return [body.read()]
        except s3.exceptions.NoSuchKey:
            return []

    return eventually(look)[0]


def ending(sandbox: Sandbox, inference_id: str) -> dict[str, Any]:
    """The line that says how a job ended, once it is there."""

    def look() -> dict[str, Any] | None:
        lines = [line for line in sandbox.record() if line["inference_id"] == inference_id]
        return next((line for line in lines if line["event"] == "finished"), None)

    return eventually(look)


def test_an_inline_job_is_told_where_its_output_will_be(runtime: Any, s3: Any) -> None:
    answer = runtime.invoke_endpoint_async(
        EndpointName="echo",
        Body=b"\x00payload",
        ContentType="text/csv",
        InferenceId="id-1",
        S3OutputPathExtension="run/7",
        Filename="a.out",
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "id-1"
    assert answer["OutputLocation"] == "s3://sandbox-out/results/run/7/a.out"
    assert answer["FailureLocation"] == "s3://sandbox-out/failures/run/7/a-error.out"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"]
    assert content(s3, answer["OutputLocation"]) == b"\x00payload"
    assert s3.head_object(Bucket="sandbox-out", Key="results/run/7/a.out")["ContentType"] == "text/csv"


def test_what_is_not_chosen_is_made_up(runtime: Any, s3: Any) -> None:
    answers = [runtime.invoke_endpoint_async(EndpointName="echo", Body=b"x") for _ in range(2)]
    assert len({answer["InferenceId"] for answer in answers}) == 2
    assert len({answer["OutputLocation"] for answer in answers}) == 2
    assert content(s3, answers[0]["OutputLocation"]) == b"x"


def test_a_payload_in_s3_is_read_when_its_turn_comes(runtime: Any, s3: Any) -> None:
    s3.put_object(Bucket="sandbox-in", Key="in/a b", Body=b"staged")
    answer = runtime.invoke_endpoint_async(EndpointName="digest", InputLocation="s3://sandbox-in/in/a b")
    said = json.loads(content(s3, answer["OutputLocation"]))
    assert said == {"sha256": hashlib.sha256(b"staged").hexdigest(), "bytes": 6}


def test_an_input_that_is_not_there_fails_late(runtime: Any, s3: Any, sandbox: Sandbox) -> None:
    answer = runtime.invoke_endpoint_async(
        EndpointName="echo", InputLocation="s3://sandbox-in/gone", InferenceId="gone"
    )
    assert json.loads(content(s3, answer["FailureLocation"]))["type"] == "InternalServerException"
    assert ending(sandbox, "gone")["result"] == "input_missing"


def test_a_failure_without_a_failure_path_leaves_nothing(runtime: Any, s3: Any, sandbox: Sandbox) -> None:
    answer = runtime.invoke_endpoint_async(
        EndpointName="no-failure-path", Body=b"x", InferenceId="quiet", S3OutputPathExtension="quiet"
    )
    assert "FailureLocation" not in answer
    assert ending(sandbox, "quiet")["result"] == "failed"
    assert s3.list_objects_v2(Bucket="sandbox-out", Prefix="results/quiet/")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("endpoint", "result", "failure"),
    [
        ("fails", "failed", True),
        ("loses", "lost", False),
        ("sleeps", "expired", False),
        ("tells-expiry", "expired", True),
        ("slow", "timed_out", False),
        ("nowhere", "upload_failed", False),
    ],
)
def test_what_goes_wrong_behind_a_202(
    endpoint: str, result: str, failure: bool, runtime: Any, s3: Any, sandbox: Sandbox
) -> None:
    inference_id = uuid.uuid4().hex
    answer = runtime.invoke_endpoint_async(
        EndpointName=endpoint,
        Body=b"x",
        InferenceId=inference_id,
        S3OutputPathExtension=inference_id,
        RequestTTLSeconds=60,
        InvocationTimeoutSeconds=60,
    )
    assert ending(sandbox, inference_id)["result"] == result
    assert s3.list_objects_v2(Bucket="sandbox-out", Prefix=f"results/{inference_id}/")["KeyCount"] == 0
    failures = s3.list_objects_v2(Bucket="sandbox-out", Prefix=f"failures/{inference_id}/")["KeyCount"]
    assert failures == int(failure)
    assert "FailureLocation" in answer


def test_an_endpoint_may_ignore_chosen_names_and_speak_https(runtime: Any, s3: Any) -> None:
    answer = runtime.invoke_endpoint_async(EndpointName="flat", Body=b"x", Filename="mine.out")
    start = "https://sandbox-out.s3.us-east-1.amazonaws.com/"
    assert answer["OutputLocation"].startswith(start + "results/")
    assert "mine" not in answer["OutputLocation"]
    assert content(s3, answer["OutputLocation"].replace(start, "s3://sandbox-out/")) == b"x"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"Body": b"x" * 128_001}, "less than or equal to 128000"),
        ({"Body": b"x", "InputLocation": "s3://a/b"}, "Exactly one"),
        ({}, "Exactly one"),
        ({"Body": b""}, "Exactly one"),
        ({"InputLocation": "ftp://a/b"}, "at 'inputLocation'"),
        ({"Body": b"x", "InferenceId": "x" * 65}, "at 'inferenceId'"),
        ({"Body": b"x", "Filename": "a.b.c"}, "at 'filename'"),
        ({"Body": b"x", "S3OutputPathExtension": "a b"}, "at 's3OutputPathExtension'"),
        ({"Body": b"x", "ContentType": "x" * 1025}, "at 'contentType'"),
        ({"Body": b"x", "RequestTTLSeconds": 21_601}, "at 'requestTTLSeconds'"),
        ({"Body": b"x", "InvocationTimeoutSeconds": 3_601}, "at 'invocationTimeoutSeconds'"),
        ({"Body": b"x", "EndpointName": "a/b"}, "at 'endpointName'"),
        ({"Body": b"x", "EndpointName": "gone"}, "Endpoint gone of account 000000000000 not found."),
        ({"Body": b"x", "EndpointName": "no-inline"}, "less than or equal to 0"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(runtime: Any, request_: dict[str, Any], text: str) -> None:
    status, code, message = refused(runtime.invoke_endpoint_async, **{"EndpointName": "echo", **request_})
    assert (status, code) == (400, "ValidationError")
    assert text in message


def test_an_endpoint_without_inline_takes_locations(runtime: Any) -> None:
    answer = runtime.invoke_endpoint_async(EndpointName="no-inline", InputLocation="s3://sandbox-in/x")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202


def test_the_largest_body_is_taken_and_one_beyond_reason_never_reaches_the_service(runtime: Any, s3: Any) -> None:
    answer = runtime.invoke_endpoint_async(EndpointName="echo", Body=b"x" * 128_000)
    assert len(content(s3, answer["OutputLocation"])) == 128_000
    status, code, _ = refused(runtime.invoke_endpoint_async, EndpointName="echo", Body=b"x" * 7_000_000)
    assert (status, code) == (413, "413")


def test_wrong_credentials_are_refused(sandbox: Sandbox) -> None:
    request = {"EndpointName": "echo", "Body": b"x"}
    with client("sagemaker-runtime", sandbox.url, secret="wrong") as made:
        assert refused(made.invoke_endpoint_async, **request)[:2] == (403, "InvalidSignatureException")
    with client("sagemaker-runtime", sandbox.url, key_id="nobody") as made:
        assert refused(made.invoke_endpoint_async, **request)[:2] == (403, "UnrecognizedClientException")


def test_the_record_holds_what_was_accepted_and_how_it_ended(runtime: Any, sandbox: Sandbox) -> None:
    runtime.invoke_endpoint_async(
        EndpointName="echo",
        Body=b"payload",
        InferenceId="kept",
        CustomAttributes="c=1",
        Accept="a/b",
        RequestTTLSeconds=60,
    )
    end = ending(sandbox, "kept")
    accepted = next(line for line in sandbox.record() if line["inference_id"] == "kept")
    digest = hashlib.sha256(b"payload").hexdigest()
    assert accepted.pop("time") <= end.pop("time")
    assert accepted == {
        "event": "accepted",
        "endpoint": "echo",
        "inference_id": "kept",
        "transport": "inline",
        "input_location": None,
        "payload_sha256": digest,
        "bytes": 7,
        "content_type": None,
        "accept": "a/b",
        "custom_attributes": "c=1",
        "ttl": 60,
        "timeout": None,
        "output_location": end["output_location"],
        "failure_location": accepted["failure_location"],
        "verdict": "told",
    }
    assert (end["result"], end["payload_sha256"], end["bytes"]) == ("completed", digest, 7)


def test_the_record_outlives_the_sandbox(tmp_path: Path) -> None:
    record = tmp_path / "deep" / "record.jsonl"
    with start_sandbox(load({"record": str(record)})) as running, client("sagemaker-runtime", running.url) as made:
        for _ in range(10):
            made.invoke_endpoint_async(EndpointName="sandbox", Body=b"x")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["event"] for line in lines].count("accepted") == 10
    assert [line["event"] for line in lines].count("finished") == 10
