"""What the sandbox does wrong when it is told to, as boto3 and a bare socket see it."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ReadTimeoutError

from dispatcher.sandbox.process import Sandbox, SandboxFailedError, sandbox_process, start_sandbox
from dispatcher.sandbox.settings import load
from tests.sandboxes import client, eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    record = tmp_path_factory.mktemp("sandbox") / "record.jsonl"
    with start_sandbox(load({"record": str(record)})) as made:
        yield made


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    running.reset_counts()
    yield running
    running.patch(faults=[], rate_limits={"invoke": None}, list_denied=False, verify_signatures=True)


@pytest.fixture
def runtime(sandbox: Sandbox) -> Iterator[Any]:
    with client("sagemaker-runtime", sandbox.url, read_timeout=1) as made:
        yield made


@pytest.fixture
def s3(sandbox: Sandbox) -> Iterator[Any]:
    with client("s3", sandbox.url, read_timeout=1) as made:
        yield made


def set_fault(sandbox: Sandbox, operation: str, kind: str, **more: Any) -> None:
    sandbox.patch(faults=[{"operation": operation, "kind": kind, **more}])


def invoke(runtime: Any, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = runtime.invoke_endpoint_async(EndpointName="sandbox", Body=b"x", **more)
    return answer


def error_of(call: Any, *args: Any, **request: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(*args, **request)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.mark.parametrize(
    ("kind", "sagemaker", "storage"),
    [
        ("throttle", (400, "ThrottlingException"), (503, "SlowDown")),
        ("internal_failure", (500, "InternalFailure"), (500, "InternalError")),
        ("unavailable", (503, "ServiceUnavailable"), (503, "ServiceUnavailable")),
        ("validation", (400, "ValidationError"), (400, "InvalidRequest")),
        ("access_denied", (403, "AccessDeniedException"), (403, "AccessDenied")),
        ("expired_token", (403, "ExpiredTokenException"), (400, "ExpiredToken")),
    ],
)
def test_each_service_errs_in_its_own_words(
    kind: str, sagemaker: tuple[int, str], storage: tuple[int, str], sandbox: Sandbox, runtime: Any, s3: Any
) -> None:
    set_fault(sandbox, "any", kind)
    assert error_of(invoke, runtime) == sagemaker
    assert error_of(s3.put_object, Bucket="sandbox-in", Key="k", Body=b"x") == storage
    assert error_of(s3.list_objects_v2, Bucket="sandbox-in") == storage
    assert sandbox.counts()["jobs"]["accepted"] == 0


def test_a_throttle_may_say_how_long_to_wait(sandbox: Sandbox, runtime: Any) -> None:
    set_fault(sandbox, "invoke", "throttle", count=1, retry_after_ms=250)
    with pytest.raises(ClientError, match="Rate exceeded") as caught:
        invoke(runtime)
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-retry-after"] == "250"
    assert invoke(runtime)["OutputLocation"]


def test_a_rate_limit_throttles_what_comes_faster(sandbox: Sandbox, runtime: Any) -> None:
    sandbox.patch(rate_limits={"invoke": {"per_second": 0.001, "burst": 2}})
    assert invoke(runtime)["OutputLocation"]
    assert invoke(runtime)["OutputLocation"]
    assert error_of(invoke, runtime) == (400, "ThrottlingException")


@pytest.mark.parametrize(
    ("kind", "accepted", "verdict"),
    [
        ("reset_before", 0, None),
        ("reset_after", 1, "cut"),
        ("hang_before", 0, None),
        ("hang_after", 1, "hang"),
    ],
)
def test_an_answer_that_does_not_come(
    kind: str, accepted: int, verdict: str | None, sandbox: Sandbox, runtime: Any
) -> None:
    set_fault(sandbox, "invoke", kind, count=1)
    with pytest.raises((ConnectionClosedError, HTTPClientError, ReadTimeoutError)):
        invoke(runtime, InferenceId=kind)
    assert sandbox.counts()["jobs"]["accepted"] == accepted
    lines = [line for line in sandbox.record() if line["inference_id"] == kind and line["event"] == "accepted"]
    assert [line["verdict"] for line in lines] == ([] if verdict is None else [verdict])


@pytest.mark.parametrize("kind", ["reset_before", "reset_after", "hang_after"])
def test_a_put_that_is_cut_may_be_stored(kind: str, sandbox: Sandbox, s3: Any) -> None:
    set_fault(sandbox, "put", kind, count=1)
    with pytest.raises((ConnectionClosedError, HTTPClientError, ReadTimeoutError)):
        s3.put_object(Bucket="sandbox-in", Key=kind, Body=b"x")
    stored = s3.list_objects_v2(Bucket="sandbox-in", Prefix=kind)["KeyCount"]
    assert stored == (0 if kind == "reset_before" else 1)


def test_a_202_may_say_too_little_or_the_wrong_thing(sandbox: Sandbox, runtime: Any) -> None:
    set_fault(sandbox, "invoke", "bare_202")
    assert "OutputLocation" not in invoke(runtime)
    set_fault(sandbox, "invoke", "wrong_id")
    answer = invoke(runtime, InferenceId="mine")
    assert answer["InferenceId"] != "mine"
    assert answer["OutputLocation"]


def test_slow_answers_show_how_many_are_open_at_once(sandbox: Sandbox, runtime: Any) -> None:
    set_fault(sandbox, "invoke", "slow", seconds=0.3)
    began = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: invoke(runtime), range(5)))
    assert time.monotonic() - began >= 0.3
    assert all(answer["OutputLocation"] for answer in answers)
    assert sandbox.counts()["max_concurrent_invokes"] == 5


def test_listing_can_be_denied_and_then_hides_what_is_missing(sandbox: Sandbox, s3: Any) -> None:
    s3.put_object(Bucket="sandbox-in", Key="there", Body=b"x")
    sandbox.patch(list_denied=True)
    assert error_of(s3.list_objects_v2, Bucket="sandbox-in") == (403, "AccessDenied")
    assert error_of(s3.head_object, Bucket="sandbox-in", Key="gone") == (403, "403")
    assert error_of(s3.get_object, Bucket="sandbox-in", Key="gone") == (403, "AccessDenied")
    assert s3.head_object(Bucket="sandbox-in", Key="there")["ContentLength"] == 1


def exchange(sandbox: Sandbox, sent: bytes, until: bytes, seconds: float = 5.0) -> bytes:
    """What a bare socket reads until it has seen `until` or the time is up."""
    where = urlsplit(sandbox.url)
    with socket.create_connection((where.hostname, where.port), timeout=seconds) as connection:
        connection.sendall(sent)
        read = b""
        try:
            while until not in read and (more := connection.recv(65536)):
                read += more
        except TimeoutError:
            pass
        return read


def test_an_answer_that_breaks_off_is_shorter_than_it_says(sandbox: Sandbox) -> None:
    """Seen on the wire: botocore takes such an answer for a whole one without InferenceId."""
    set_fault(sandbox, "invoke", "reset_midway", count=1)
    sandbox.patch(verify_signatures=False)
    sent = b"POST /endpoints/sandbox/async-invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    head, _, body = exchange(sandbox, sent, b"never").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 202 ")
    assert body
    assert f"Content-Length: {len(body)}".encode() not in head
    assert sandbox.counts()["jobs"]["accepted"] == 1


EXPECTING = b"PUT /sandbox-in/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"


def test_a_client_that_waits_to_continue_is_told_or_left_waiting(sandbox: Sandbox) -> None:
    assert exchange(sandbox, EXPECTING, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    set_fault(sandbox, "put", "no_continue")
    assert exchange(sandbox, EXPECTING, b"\r\n\r\n", seconds=0.3) == b""


def test_requests_in_one_packet_are_answered_in_order(sandbox: Sandbox) -> None:
    set_fault(sandbox, "bucket", "slow", seconds=0.1)
    first = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    second = b"GET /_sandbox/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    read = exchange(sandbox, first + second, b"never")
    assert read.index(b"403 Forbidden") < read.index(b'{"status":"ok"}')


def test_what_is_not_http_is_told_so(sandbox: Sandbox) -> None:
    assert exchange(sandbox, b"\x16\x03\x01nonsense\r\n\r\n", b"never").startswith(b"HTTP/1.1 400 ")


def control(sandbox: Sandbox, method: str, name: str, body: bytes = b"") -> tuple[int, Any]:
    where = urlsplit(sandbox.url)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)) as connection:
        connection.request(method, f"/_sandbox/{name}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_control_says_what_is_and_refuses_what_it_does_not_know(sandbox: Sandbox) -> None:
    assert control(sandbox, "GET", "health") == (200, {"status": "ok"})
    assert control(sandbox, "GET", "settings")[1]["region"] == "us-east-1"
    assert control(sandbox, "GET", "nothing")[0] == 404
    assert control(sandbox, "PATCH", "settings", b"[]")[0] == 400
    with pytest.raises(SandboxFailedError, match="no_such"):
        sandbox.patch(no_such=1)
    assert control(sandbox, "GET", "settings")[1]["faults"] == []


async def test_a_sandbox_can_be_run_from_an_event_loop() -> None:
    async with sandbox_process() as process:
        assert process.env["AWS_ENDPOINT_URL_S3"] == process.url
        assert (await process.counts())["jobs"]["accepted"] == 0
        changed = await process.patch(time_scale=0.5)
        assert changed["time_scale"] == 0.5
        assert await process.record() == []


def test_a_sandbox_ends_when_asked_and_leaves_no_connection() -> None:
    with start_sandbox() as running:
        where = urlsplit(running.url)
        waiting = socket.create_connection((where.hostname, where.port), timeout=10)
        running.counts()
    with closing(waiting):
        assert waiting.recv(1) == b""


def test_a_sandbox_that_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = load({"port": taken.getsockname()[1]})
        with pytest.raises(SandboxFailedError, match="ended"), start_sandbox(settings):
            pass
    assert "cannot listen" in capfd.readouterr().err


def test_counts_name_operations_and_results(sandbox: Sandbox, runtime: Any, s3: Any) -> None:
    invoke(runtime)
    error_of(s3.get_object, Bucket="sandbox-in", Key="gone")
    counts = eventually(lambda: sandbox.counts() if sandbox.counts()["jobs"]["finished"] else None)
    assert counts["requests"]["invoke"] == {"202": 1}
    assert counts["requests"]["get"] == {"404 NoSuchKey": 1}
    assert counts["jobs"] == {"accepted": 1, "finished": {"completed": 1}}
    assert counts["endpoints"] == {"sandbox": {"waiting": 0, "running": 0}}
