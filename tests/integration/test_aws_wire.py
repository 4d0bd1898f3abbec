"""What goes wrong on the wire, and what it becomes: refused, reset, silent, dripping, garbled, answered by somebody else."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.aws.deadlines import Deadline
from dispatcher.completions.s3 import S3Completions
from dispatcher.interfaces import HIDDEN, Fault, FaultKind, FileSlice, Invocation
from dispatcher.model import EndpointName, FailureReason, InferenceId, Receipt
from dispatcher.transports.choosing import Kind
from tests.scripted import (
    Act,
    ScriptedServer,
    Stage,
    accepts,
    answers,
    answers_raw,
    aws_environment,
    closed_port,
    closes_after_reading,
    drips,
    hangs_after_reading,
    never_continues,
    resets_after_reading,
    resets_at_once,
    response,
    scripted_server,
)
from tests.transports import invoking, on_both_kinds, staging

SOON = Deadline(base_seconds=0.3, bytes_per_second=1e12)
LATER = Deadline(base_seconds=20)
OUTPUT = {"X-Amzn-SageMaker-OutputLocation": "s3://out/a.out"}
HTML = b"<html><body>Please log in</body></html>"
JOB = Invocation(
    endpoint=EndpointName("e-1"),
    inference_id=InferenceId("id-1"),
    filename="id-1.out",
    output_path_extension="jobs/0",
    content_type="text/plain",
    accept=None,
    custom_attributes=None,
    request_ttl_seconds=60,
    invocation_timeout_seconds=None,
    body=b"payload",
    input_location=None,
)


@asynccontextmanager
async def against(
    patch: pytest.MonkeyPatch, *acts: Act, **settings: Any
) -> AsyncIterator[tuple[Clients, ScriptedServer]]:
    async with scripted_server(*acts) as server:
        aws_environment(patch, f"http://127.0.0.1:{server.port}")
        async with clients(ClientSettings(max_in_flight=4, **settings)) as opened:
            yield opened, server


async def invoked(
    patch: pytest.MonkeyPatch, client: Kind, act: Act, deadline: Deadline, job: Invocation = JOB
) -> Receipt | Fault:
    async with against(patch, act) as (opened, server), invoking(client, opened, deadline) as invoker:
        outcome = await invoker.invoke(job)
        assert len(server.heard) <= 1, "one call is one request"
        return outcome


U, X, R, T, N = FaultKind.UNKNOWN, FaultKind.TROUBLE, FaultKind.REFUSED, FaultKind.THROTTLED, FaultKind.NOT_SENT
CUT = b"HTTP/1.1 202 Accepted\r\nContent-Length: 500\r\n" + b"X-Amzn-SageMaker-OutputLocation: s3://out/a.out\r\n\r\n{"
HALF = b'{"InferenceId": "id-'

WIRE: list[tuple[str, Act, Deadline, FaultKind, str]] = [
    ("reset at once", resets_at_once, LATER, U, "network"),
    ("reset after reading", resets_after_reading, LATER, U, "network"),
    ("closed after reading", closes_after_reading, LATER, U, "network"),
    ("silence", hangs_after_reading, SOON, U, "timeout"),
    ("a head that drips", drips(b"HTTP/1.1 202 Accepted\r\nX-Slow:"), SOON, U, "timeout"),
    ("a body that drips", drips(b"HTTP/1.1 202 Accepted\r\nContent-Length: 99999\r\n\r\n"), SOON, U, "timeout"),
    ("an answer cut short", answers_raw(CUT), LATER, U, "network"),
    ("no HTTP at all", answers_raw(b"SSH-2.0-OpenSSH_9.2\r\n"), LATER, U, "protocol"),
    ("half a status line", answers_raw(b"HTTP/1.1 20"), LATER, U, "network"),
    (
        "a head that is not text",
        answers_raw(b"HTTP/1.1 202 X\r\nA: \xff\xfe\r\nContent-Length: 0\r\n\r\n"),
        LATER,
        U,
        "protocol",
    ),
    ("202 without locations", accepts("id-1", output=""), LATER, U, "protocol"),
    ("202 with a location that is none", accepts("id-1", output="out/a.out"), LATER, U, "protocol"),
    ("202 with a location too long", accepts("id-1", output="s3://out/" + "a" * 5_000), LATER, U, "protocol"),
    ("202 for somebody else", accepts("id-2"), LATER, U, "protocol"),
    ("202 with half a body", answers(202, HALF, OUTPUT), LATER, U, "protocol"),
    ("202 with an empty body", answers(202, b"", OUTPUT), LATER, U, "protocol"),
    ("202 with a list", answers(202, b"[1]", OUTPUT), LATER, U, "protocol"),
    ("200 as it should be 202", accepts("id-1", status=200), LATER, U, "protocol"),
    ("a page of somebody else", answers(200, HTML, {"Content-Type": "text/html"}), LATER, U, "protocol"),
    ("a refusal with a page", answers(403, HTML), LATER, X, "access_denied"),
    ("too large, without a code", answers(413), LATER, R, "inline_refused"),
    ("too fast, without a code", answers(429), LATER, T, "throttled"),
    ("500 without a code", answers(500, HTML), LATER, X, "service_error"),
    ("502 of a gateway", answers(502, HTML), LATER, U, "service_error"),
    ("503 without a code", answers(503), LATER, X, "service_error"),
    ("504 of a gateway", answers(504), LATER, U, "service_error"),
]


@pytest.mark.parametrize(("act", "deadline", "kind", "reason"), [row[1:] for row in WIRE], ids=[row[0] for row in WIRE])
@on_both_kinds
async def test_what_goes_wrong_becomes_a_fault(
    monkeypatch: pytest.MonkeyPatch, client: Kind, act: Act, deadline: Deadline, kind: FaultKind, reason: str
) -> None:
    fault = await invoked(monkeypatch, client, act, deadline)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (kind, FailureReason(reason))
    assert fault.message


@on_both_kinds
async def test_a_receipt_is_what_the_202_says(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    receipt = await invoked(
        monkeypatch, client, accepts("id-1", "https://bkt.s3.us-east-1.amazonaws.com/a%20b", "s3://bkt-f/x"), LATER
    )
    assert receipt == Receipt("https://bkt.s3.us-east-1.amazonaws.com/a%20b", "s3://bkt-f/x")


@pytest.mark.parametrize("failure", [None, "", "nonsense"])
@on_both_kinds
async def test_a_failure_location_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, client: Kind, failure: str | None
) -> None:
    assert await invoked(monkeypatch, client, accepts("id-1", failure=failure), LATER) == Receipt(
        "s3://out/a.out", None
    )


@on_both_kinds
async def test_every_field_travels_in_its_own_header(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with against(monkeypatch, accepts("id-1")) as (opened, server), invoking(client, opened) as invoker:
        await invoker.invoke(JOB)
    heard = server.heard[0]
    assert (heard.method, heard.target, heard.body) == ("POST", "/endpoints/e-1/async-invocations", b"payload")
    prefix = "x-amzn-sagemaker-"
    sent = {name.removeprefix(prefix): value for name, value in heard.headers.items() if name.startswith(prefix)}
    assert sent == {
        "inference-id": "id-1",
        "filename": "id-1.out",
        "s3outputpathextension": "jobs/0",
        "content-type": "text/plain",
        "requestttlseconds": "60",
    }


@on_both_kinds
async def test_a_hint_when_to_come_back_is_passed_on(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    body = json.dumps({"message": "Rate exceeded"}).encode()
    headers = {"x-amzn-ErrorType": "ThrottlingException:http://x/", "x-amz-retry-after": "2500"}
    fault = await invoked(monkeypatch, client, answers(400, body, headers), LATER)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code, fault.retry_after_seconds) == (T, "ThrottlingException", 2.5)


@on_both_kinds
async def test_too_large_without_a_body_is_no_matter_of_inline(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    fault = await invoked(
        monkeypatch, client, answers(413), LATER, replace(JOB, body=None, input_location="s3://bkt/k")
    )
    assert isinstance(fault, Fault)
    assert fault.reason is FailureReason.VALIDATION_ERROR


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b"])
@on_both_kinds
async def test_a_header_that_cannot_be_written_is_the_jobs_fault(
    monkeypatch: pytest.MonkeyPatch, client: Kind, value: str
) -> None:
    fault = await invoked(monkeypatch, client, accepts("id-1"), LATER, replace(JOB, custom_attributes=value))
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (R, FailureReason.VALIDATION_ERROR)
    assert "Evil" not in fault.message


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "https://127.0.0.1:{port}", "http://name.invalid:{port}"])
@on_both_kinds
async def test_what_was_never_sent_is_known_not_to_be(monkeypatch: pytest.MonkeyPatch, client: Kind, url: str) -> None:
    aws_environment(monkeypatch, url.format(port=closed_port()))
    async with clients(ClientSettings(max_in_flight=1)) as opened, invoking(client, opened) as invoker:
        fault = await invoker.invoke(JOB)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (N, FailureReason.NETWORK)


@on_both_kinds
async def test_a_handshake_that_fails_sent_nothing(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with scripted_server(answers_raw(b"this is not TLS")) as server:
        aws_environment(monkeypatch, f"https://127.0.0.1:{server.port}")
        async with (
            clients(ClientSettings(max_in_flight=1, connect_timeout_seconds=0.3)) as opened,
            invoking(client, opened) as invoker,
        ):
            fault = await invoker.invoke(JOB)
    assert isinstance(fault, Fault)
    assert fault.kind is N


async def test_credentials_that_come_too_late_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(**_: Any) -> None:
        await asyncio.Event().wait()

    async with against(monkeypatch, accepts("id-1")) as (opened, server):
        opened.sagemaker.meta.events.register("before-sign.sagemaker-runtime", hang)
        async with invoking("sdk", opened, SOON) as invoker:
            fault = await invoker.invoke(JOB)
        assert isinstance(fault, Fault)
        assert (fault.kind, fault.reason) == (N, FailureReason.TIMEOUT)
        assert not server.heard


@on_both_kinds
async def test_a_request_on_a_connection_that_dies_is_not_made_twice(
    monkeypatch: pytest.MonkeyPatch, client: Kind
) -> None:
    async with against(monkeypatch, accepts("id-1"), resets_after_reading, accepts("id-1")) as (opened, server):
        async with invoking(client, opened) as invoker:
            assert isinstance(await invoker.invoke(JOB), Receipt)
            fault = await invoker.invoke(JOB)
        assert isinstance(fault, Fault)
        assert fault.kind is U
        assert len(server.heard) == 2


@on_both_kinds
async def test_a_slot_is_free_again_after_a_deadline(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with (
        against(monkeypatch, *[hangs_after_reading] * 4, accepts("id-1")) as (opened, _),
        invoking(client, opened, SOON) as invoker,
    ):
        stuck = await asyncio.gather(*(invoker.invoke(JOB) for _ in range(4)))
        assert [fault.kind for fault in stuck if isinstance(fault, Fault)] == [U] * 4
        assert isinstance(await invoker.invoke(JOB), Receipt), "the pool holds 4, and none is stuck"


# --- staging ---------------------------------------------------------------------------------------------------------


@on_both_kinds
async def test_a_put_does_not_ask_to_go_on(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with against(monkeypatch, answers(200)) as (opened, server):
        more: dict[str, Any] = {
            "sse_kms_key_id": "key-1",
            "tags": {"a": "b c"},
            "expected_bucket_owner": "123456789012",
        }
        async with staging(client, opened, "s3://bkt", **more) as stager:
            assert await stager.stage("k", b"x", "text/plain") == "s3://bkt/k"
    headers = server.heard[0].headers
    assert "expect" not in headers
    assert headers["content-type"] == "text/plain"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert headers["x-amz-tagging"] == "a=b+c"
    assert headers["x-amz-expected-bucket-owner"] == "123456789012"


@on_both_kinds
async def test_a_put_may_be_told_to_ask(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with (
        against(monkeypatch, answers(200), expect_continue=True) as (opened, server),
        staging(client, opened, "s3://bkt") as stager,
    ):
        assert await stager.stage("k", b"x", None) == "s3://bkt/k"
    assert server.heard[0].headers["expect"] == "100-continue"
    assert server.heard[0].body == b"x"


@pytest.mark.parametrize("expect_continue", [True, False])
@on_both_kinds
async def test_a_peer_that_takes_no_body_is_left_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, client: Kind, tmp_path: Path, expect_continue: bool
) -> None:
    path = tmp_path / "big"
    path.touch()
    os.truncate(path, 64 << 20)
    async with (
        against(monkeypatch, never_continues, expect_continue=expect_continue) as (opened, _),
        staging(client, opened, "s3://bkt", SOON) as stager,
    ):
        fault = await stager.stage("k", FileSlice(str(path), 0, 64 << 20), None)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (U, FailureReason.TIMEOUT)


@on_both_kinds
async def test_a_file_cut_while_it_is_sent_is_gone(
    monkeypatch: pytest.MonkeyPatch, client: Kind, tmp_path: Path
) -> None:
    path = tmp_path / "big"
    path.touch()
    os.truncate(path, 64 << 20)

    async def cuts_the_file(stage: Stage) -> bool:
        await stage.hear(go_on=False)
        os.truncate(path, 1 << 20)
        while await stage.reader.read(1 << 20):
            pass
        return False

    async with against(monkeypatch, cuts_the_file) as (opened, _), staging(client, opened, "s3://bkt") as stager:
        fault = await stager.stage("k", FileSlice(str(path), 0, 64 << 20), None)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (R, FailureReason.PAYLOAD_GONE)


def deletion_answer(*errors: tuple[str, str]) -> bytes:
    listed = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error>" for key, code in errors)
    return f"<DeleteResult>{listed}</DeleteResult>".encode()


@on_both_kinds
async def test_many_inputs_are_discarded_by_one_request(monkeypatch: pytest.MonkeyPatch, client: Kind) -> None:
    async with (
        against(monkeypatch, answers(200, deletion_answer())) as (opened, server),
        staging(client, opened, "s3://bkt/in", expected_bucket_owner="123456789012") as stager,
    ):
        assert await stager.discard(["a", "b&c"]) == {}
    (heard,) = server.heard
    assert (heard.method, heard.target) == ("POST", "/bkt?delete")
    assert re.findall(rb"<Key>(.*?)</Key>", heard.body) == [b"in/a", b"in/b&amp;c"]
    assert b"<Quiet>true</Quiet>" in heard.body
    assert heard.headers["x-amz-expected-bucket-owner"] == "123456789012"
    assert heard.headers["x-amz-checksum-crc32"]


@on_both_kinds
async def test_an_error_of_one_input_is_that_inputs_and_one_that_is_not_there_is_none(
    monkeypatch: pytest.MonkeyPatch, client: Kind
) -> None:
    said = deletion_answer(("in/a", "AccessDenied"), ("in/b", "NoSuchKey"), ("in/c", "SlowDown"))
    async with (
        against(monkeypatch, answers(200, said)) as (opened, _),
        staging(client, opened, "s3://bkt/in") as stager,
    ):
        left = await stager.discard(["a", "b", "c", "d"])
    assert {key: fault.reason for key, fault in left.items()} == {
        "a": FailureReason.ACCESS_DENIED,
        "c": FailureReason.THROTTLED,
    }


@on_both_kinds
async def test_an_error_of_no_input_that_was_named_may_be_any_ones(
    monkeypatch: pytest.MonkeyPatch, client: Kind
) -> None:
    async with (
        against(monkeypatch, answers(200, deletion_answer(("?", "InternalError")))) as (opened, _),
        staging(client, opened, "s3://bkt/in") as stager,
    ):
        left = await stager.discard(["a", "b"])
    assert {key: fault.code for key, fault in left.items()} == dict.fromkeys("ab", "InternalError")


NOT_OFFERED = {
    "501": answers(501, b"<Error><Code>NotImplemented</Code></Error>"),
    "405": answers(405, HTML),
    "400": answers(400, b"<Error><Code>InvalidArgument</Code></Error>"),
}


@pytest.mark.parametrize("act", NOT_OFFERED.values(), ids=NOT_OFFERED)
async def test_an_s3_that_cannot_delete_many_at_once_is_asked_for_each_from_then_on(
    monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    gone, missing = answers(204), answers(404, b"<Error><Code>NoSuchKey</Code></Error>")
    denied = answers(403, b"<Error><Code>AccessDenied</Code></Error>")
    with capture_logs() as logs:
        async with (
            against(monkeypatch, act, gone, missing, denied) as (opened, server),
            staging("sdk", opened, "s3://bkt/in", expected_bucket_owner="123456789012") as stager,
        ):
            assert await stager.discard(["a"]) == {}
            assert await stager.discard(["b"]) == {}
            left = await stager.discard(["c", "d"])
    assert {key: fault.reason for key, fault in left.items()} == dict.fromkeys("cd", FailureReason.ACCESS_DENIED)
    assert [heard.method for heard in server.heard] == ["POST", *["DELETE"] * 4]
    assert {heard.target.partition("?")[0] for heard in server.heard[1:]} == {f"/bkt/in/{key}" for key in "abcd"}
    assert {heard.headers["x-amz-expected-bucket-owner"] for heard in server.heard} == {"123456789012"}
    assert len([line for line in logs if "DeleteObjects" in line["event"]]) == 1


async def test_two_who_learn_at_once_that_s3_cannot_delete_many_at_once_say_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answers_when_both_have_asked(stage: Stage) -> bool:
        await stage.hear()
        await stage.server.hears(2)
        stage.writer.write(response(501))
        return True

    both = answers_when_both_have_asked
    with capture_logs() as logs:
        async with (
            against(monkeypatch, both, both, answers(204)) as (opened, _),
            staging("sdk", opened, "s3://bkt/in") as stager,
        ):
            assert not any(await asyncio.gather(stager.discard(["a"]), stager.discard(["b"])))
    assert len([line for line in logs if "DeleteObjects" in line["event"]]) == 1


@pytest.mark.parametrize(
    "act",
    [
        answers(400, b"<Error><Code>ExpiredToken</Code></Error>"),
        answers(503, b"<Error><Code>SlowDown</Code></Error>"),
        resets_after_reading,
    ],
    ids=["expired", "throttled", "reset"],
)
async def test_what_goes_wrong_once_does_not_mean_that_s3_cannot_delete_many_at_once(
    monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    async with (
        against(monkeypatch, act, answers(200, deletion_answer())) as (opened, server),
        staging("sdk", opened, "s3://bkt/in") as stager,
    ):
        assert (await stager.discard(["a", "b"])).keys() == {"a", "b"}
        assert await stager.discard(["a", "b"]) == {}
    assert [heard.method for heard in server.heard] == ["POST", "POST"]


# --- completions -----------------------------------------------------------------------------------------------------


async def test_a_body_that_stops_is_a_fault_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with against(monkeypatch, drips(b"HTTP/1.1 206 X\r\nContent-Length: 99999\r\nETag: x\r\n\r\n")) as (
        opened,
        _,
    ):
        outcome = await S3Completions(opened.s3, deadline=SOON).read("s3://bkt/k", 99_999)
        assert isinstance(outcome, Fault)
        assert outcome.reason is FailureReason.TIMEOUT


async def test_a_body_cut_short_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async with against(monkeypatch, answers_raw(b"HTTP/1.1 206 X\r\nETag: x\r\nContent-Length: 500\r\n\r\nabc")) as (
        opened,
        _,
    ):
        outcome = await S3Completions(opened.s3).read("s3://bkt/k", 500)
        assert isinstance(outcome, Fault)
        assert outcome.kind is U


async def test_a_page_of_somebody_else_is_taken_for_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    async with against(monkeypatch, answers(200, HTML)) as (opened, _):
        completions = S3Completions(opened.s3)
        outcomes = [
            await completions.list_folder("s3://bkt/x/"),
            await completions.look("s3://bkt/x/k"),
            await completions.read("s3://bkt/x/k", 10),
        ]
    for outcome in outcomes:
        assert isinstance(outcome, Fault)
        assert (outcome.kind, outcome.reason) == (U, FailureReason.PROTOCOL)


async def test_half_a_listing_is_not_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with against(monkeypatch, answers(200, b"<ListBucketResult><Name>bkt</Name>")) as (opened, _):
        assert isinstance(await S3Completions(opened.s3).list_folder("s3://bkt/x/"), Fault)


async def test_a_burst_of_hidden_objects_makes_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    async with against(monkeypatch, answers(403)) as (opened, server):
        completions = S3Completions(opened.s3)
        found = await asyncio.gather(*(completions.look(f"s3://bkt/x/{index}") for index in range(4)))
    assert [one.code for one in found if isinstance(one, Fault)] == [HIDDEN] * 4
    assert [heard.method for heard in server.heard].count("GET") == 1
