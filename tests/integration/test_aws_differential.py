"""The lean path against the SDK: the same request for the same job at the same second, the same outcome for the same answer.

The SDK's side of a request is what its serializer, endpoint rules and signer hand to its HTTP client; the lean side is what
is handed to the pool of connections. Left out of the comparison: the invocation id, the user agent (its list of features
in use has no order), and `Accept-Encoding`, which the SDK leaves to its HTTP client.
"""

import asyncio
import os
from calendar import timegm
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path
from time import strptime
from typing import Any, NamedTuple

import pytest
from aiobotocore.credentials import AioCredentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.aws.http import Answer, Request
from dispatcher.interfaces import FileSlice, Invocation
from dispatcher.model import EndpointName, InferenceId
from dispatcher.transports.lean import LeanInvoker, LeanStager, lean_invoker, lean_stager
from dispatcher.transports.sagemaker import SdkInvoker
from dispatcher.transports.staging import SdkStager
from tests.scripted import Stage, answers, aws_environment, scripted_server
from tests.transports import invoking, staging

MIB = 1 << 20
UNCOMPARED = {"amz-sdk-invocation-id", "user-agent", "accept-encoding", "host"}


class Sent(NamedTuple):
    """A request on its way, its body out of HTTP's own chunks. Names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class _StoppedError(Exception):
    """Keeps a request of the SDK off the network."""


def stop_at_the_network(client: Any, service: str, seen: list[Sent]) -> None:
    """What the client would send from now on is noted in `seen` instead."""

    async def stop(request: Any, **_: Any) -> None:
        target = "/" + request.url.split("://", 1)[1].partition("/")[2]
        headers = {name.lower(): text(value) for name, value in request.headers.items()}
        seen.append(Sent(request.method, target, headers, await whole(request.body)))
        raise _StoppedError

    client.meta.events.register_last(f"before-send.{service}", stop)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def whole(body: Any) -> bytes:
    if not hasattr(body, "read"):
        return bytes(body or b"")
    parts = []
    while part := await resolved(body.read(MIB)):
        parts.append(part)
    return b"".join(parts)


async def resolved(value: Any) -> Any:
    return await value if asyncio.iscoroutine(value) else value


class Recorder:
    """In a pool's place: keeps what it is given to send."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    async def send(self, make: Callable[[], Request], seconds: float) -> Answer:
        request = make()
        body = request.body if isinstance(request.body, bytes) else b"".join([part async for part in request.body()])
        first, *lines = request.head.decode().removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        fields = [line.partition(": ") for line in lines]
        headers = {name.lower(): value for name, _, value in fields}
        assert len(headers) == len(fields)
        self.sent.append(Sent(method, target, headers, unchunked(body) if "transfer-encoding" in headers else body))
        return Answer(500, {}, b"")


def unchunked(body: bytes) -> bytes:
    parts = []
    while True:
        size, _, body = body.partition(b"\r\n")
        part, body = body[: int(size, 16)], body[int(size, 16) :]
        assert body.startswith(b"\r\n")
        body = body[2:]
        parts.append(part)
        if not part:
            assert not body
            return b"".join(parts)


class Place(NamedTuple):
    """A set-up of the SDK; `config` is its configuration file."""

    variables: Mapping[str, str] = {}
    staging: str = "s3://bkt/pre fix"
    config: str = ""
    expect_continue: bool = False


PLACES = {
    "aws": Place(),
    "aws, go on?": Place(expect_continue=True),
    "fips": Place({"AWS_USE_FIPS_ENDPOINT": "true"}),
    "dual stack": Place({"AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_REGION": "eu-west-1"}),
    "fips and dual stack": Place({"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"}),
    "China": Place({"AWS_REGION": "cn-north-1"}),
    "GovCloud": Place({"AWS_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"}),
    "bucket with dots": Place({"AWS_REGION": "ap-south-1"}, "s3://my.own.bucket"),
    "path style": Place(config="[default]\ns3 =\n  addressing_style = path\n"),
    "no checksum": Place({"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}),
    "payload signed": Place(config="[default]\ns3 =\n  payload_signing_enabled = true\n"),
    "loopback": Place({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
    "loopback, no checksum": Place(
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    ),
    "loopback, payload unsigned": Place(
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, config="[default]\ns3 =\n  payload_signing_enabled = false\n"
    ),
    "six": Place({"AWS_ENDPOINT_URL": "http://[::1]:9"}),
    "behind a path": Place({"AWS_ENDPOINT_URL": "https://Gate.example:8443/a%20b/c"}),
    "usual port": Place({"AWS_ENDPOINT_URL": "https://gate.example:443"}),
}


class Bench(NamedTuple):
    """Both paths of one place, side by side, and the loop that they live on. Nothing is sent: it is kept."""

    runner: asyncio.Runner
    opened: Clients
    sdk: tuple[SdkInvoker, SdkStager, list[Sent]]
    lean: tuple[LeanInvoker, LeanStager, Recorder]

    def signed_by(self, keys: tuple[str, str, str | None]) -> None:
        """Both paths take these keys from now on: access key, secret, token."""

        async def load() -> AioCredentials:
            return AioCredentials(*keys)

        self.opened.credentials._load = load
        self.runner.run(self.opened.credentials.open())

    def both(self, ask: Callable[[Any], Coroutine[Any, Any, object]], which: int) -> tuple[Sent, Sent]:
        """What the lean path and what the SDK sends; the lean one a second time if the second was over."""
        self.runner.run(ask(self.sdk[which]))
        theirs, ours = self.sdk[2].pop(), self.lean[2].sent
        lean = self.lean[which]
        assert not isinstance(lean, Recorder)
        lean._wire = replace(lean._wire, now=lambda: second(theirs))
        self.runner.run(ask(lean))
        return ours.pop(), theirs


def second(sent: Sent) -> float:
    return timegm(strptime(sent.headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))


async def opened_bench(stack: AsyncExitStack, place: Place, runner: asyncio.Runner) -> Bench:
    opened = await stack.enter_async_context(
        clients(ClientSettings(max_in_flight=2, expect_continue=place.expect_continue))
    )
    recorder = Recorder()
    stager = SdkStager(
        opened.s3, place.staging, sse_kms_key_id="key/ä", tags={"a b": "ü&="}, expected_bucket_owner="123456789012"
    )
    invoker = await lean_invoker(stack, opened, connections=1)
    put = await lean_stager(stack, opened, stager, connections=1)
    assert isinstance(invoker, LeanInvoker), invoker
    assert isinstance(put, LeanStager), put
    for lean in (invoker, put):
        lean._wire = replace(lean._wire, pool=recorder)
    seen: list[Sent] = []
    stop_at_the_network(opened.sagemaker, "sagemaker-runtime", seen)
    stop_at_the_network(opened.s3, "s3", seen)
    return Bench(runner, opened, (SdkInvoker(opened.sagemaker), stager, seen), (invoker, put, recorder))


@pytest.fixture(scope="module", params=PLACES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    place = PLACES[request.param]
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        aws_environment(patch, None)
        config = tmp_path_factory.mktemp("aws") / "config"
        config.write_text(place.config)
        patch.setenv("AWS_CONFIG_FILE", str(config))
        for name, value in place.variables.items():
            patch.setenv(name, value)
        stack = AsyncExitStack()
        yield runner.run(opened_bench(stack, place, runner))
        runner.run(stack.aclose())


def is_same(ours: Sent, theirs: Sent) -> None:
    assert (ours.method, ours.target) == (theirs.method, theirs.target)
    assert ours.headers["user-agent"].startswith("aiobotocore/")
    kept = [{name: value for name, value in it.headers.items() if name not in UNCOMPARED} for it in (ours, theirs)]
    assert kept[0] == kept[1]
    assert ours.body == theirs.body


# --- requests --------------------------------------------------------------------------------------------------------

ANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

characters = st.one_of(
    st.characters(min_codepoint=32, max_codepoint=126),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"),
)
texts = st.text(characters, min_size=1, max_size=40)
maybe = st.one_of(st.none(), texts)
keys = st.tuples(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", min_size=16, max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    st.one_of(st.none(), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=600)),
)


@st.composite
def invocations(draw: st.DrawFn) -> Invocation:
    inline = draw(st.booleans())
    return Invocation(
        endpoint=EndpointName(draw(st.one_of(st.from_regex(r"\A[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}\Z"), texts))),
        inference_id=InferenceId(draw(texts)),
        filename=draw(maybe),
        output_path_extension=draw(maybe),
        content_type=draw(maybe),
        accept=draw(maybe),
        custom_attributes=draw(maybe),
        request_ttl_seconds=draw(st.one_of(st.none(), st.integers(60, 21_600))),
        invocation_timeout_seconds=draw(st.one_of(st.none(), st.integers(1, 3_600))),
        body=draw(st.binary(min_size=1, max_size=2_000)) if inline else None,
        input_location=None if inline else "s3://bkt/" + draw(texts),
    )


@ANY
@given(it=invocations(), keys=keys)
def test_an_invocation_is_the_request_that_the_sdk_makes(bench: Bench, it: Invocation, keys: Any) -> None:
    bench.signed_by(keys)
    is_same(*bench.both(lambda path: path.invoke(it), 0))


@settings(ANY, max_examples=40)
@given(key=texts, payload=st.binary(max_size=2_000), typed=maybe, keys=keys)
def test_a_put_is_the_request_that_the_sdk_makes(
    bench: Bench, key: str, payload: bytes, typed: str | None, keys: Any
) -> None:
    bench.signed_by(keys)
    is_same(*bench.both(lambda path: path.stage(key, payload, typed), 1))


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7])
def test_a_payload_of_any_size_is_sent_as_the_sdk_sends_it(bench: Bench, size: int) -> None:
    payload = os.urandom(size)
    is_same(*bench.both(lambda path: path.stage("k", payload, None), 1))


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB + 7])
def test_a_slice_of_any_size_is_sent_as_the_sdk_sends_it(bench: Bench, tmp_path: Path, size: int) -> None:
    (tmp_path / "jobs").write_bytes(os.urandom(size + 10))
    piece = FileSlice(str(tmp_path / "jobs"), 5, size)
    is_same(*bench.both(lambda path: path.stage("k", piece, "a/b"), 1))


# --- answers ---------------------------------------------------------------------------------------------------------


class Script:
    """Answers every request with the act that is set at that time."""

    def __init__(self) -> None:
        self.act = answers(500)

    async def play(self, stage: Stage) -> bool:
        return await self.act(stage)


@asynccontextmanager
async def against(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Clients, Script]]:
    script = Script()
    async with scripted_server(script.play) as server:
        aws_environment(patch, f"http://127.0.0.1:{server.port}")
        async with clients(ClientSettings(max_in_flight=4)) as opened:
            yield opened, script


JOB = Invocation(
    endpoint=EndpointName("e-1"),
    inference_id=InferenceId("id-1"),
    filename=None,
    output_path_extension=None,
    content_type=None,
    accept=None,
    custom_attributes=None,
    request_ttl_seconds=None,
    invocation_timeout_seconds=None,
    body=b"x",
    input_location=None,
)
BY_REFERENCE = replace(JOB, body=None, input_location="s3://bkt/k")
OUTPUT = {"X-Amzn-SageMaker-OutputLocation": "s3://out/a.out"}
TYPED = {"x-amzn-ErrorType": "ThrottlingException:http://internal/", "x-amzn-RequestId": "r"}
TOO_LONG = (
    b'{"Message": "1 validation error detected: Value at \'body\' failed to satisfy constraint: '
    b'Member must have length less than or equal to 0"}'
)
JSON_BODIES = [
    b"",
    b"{}",
    b"null",
    b"[1]",
    b'"text"',
    b"<html>gone</html>",
    b"\xff\xfe",
    b'{"InferenceId": "id-1"}',
    b'{"InferenceId": "id-1", "InferenceId": "id-2"}',
    b'{"InferenceId": 1}',
    b'{"InferenceId": null}',
    b'{"InferenceId": "id-\\ud800"}',
    b'{"InferenceId": "id-1", "n": NaN}',
    b'\xef\xbb\xbf{"InferenceId": "id-1"}',
    b'{"__type": "com.amazon#ValidationError:http://x/", "message": "Endpoint e-1 of account 1 not found."}',
    b'{"__type": "ValidationException", "Message": "no"}',
    b'{"code": "ServiceUnavailable", "message": "later"}',
    b'{"Code": "InternalFailure"}',
    b'{"code": 7, "message": ["a"]}',
    b'{"__type": 7}',
    b'{"message": null}',
    b'{"__type": "ValidationError", "message": "", "Message": "the second counts"}',
    b'{"Message": "Signature expired: 1 is now earlier than 2 (3 - 5 min.)", "__type": "InvalidSignatureException"}',
    TOO_LONG,
]
JSON_HEADERS: list[dict[str, str]] = [
    {},
    OUTPUT,
    OUTPUT | {"X-Amzn-SageMaker-FailureLocation": "nonsense"},
    {"X-Amzn-SageMaker-OutputLocation": "https://b.s3.us-east-1.amazonaws.com/a%20b"},
    TYPED,
    TYPED | {"x-amz-retry-after": "1500"},
    {"x-amzn-ErrorType": "AccessDeniedException", "Retry-After": "7"},
    {"x-amzn-ErrorType": "", "x-amzn-query-error": "Old;Sender"},
]
Shape = tuple[dict[str, str], bytes]


def crossed(headers: list[dict[str, str]], bodies: list[bytes], status: int) -> list[Shape]:
    """Everything with everything where it matters most; else each body with the plainest head and the oddest."""
    if status in {204, 304}:
        return [(fields, b"") for fields in headers]
    if status in {200, 202, 400}:
        return list(product(headers, bodies))
    return [*product((headers[0], headers[-1]), bodies), *product(headers, bodies[:2])]


STATUSES = [200, 202, 204, 300, 301, 304, 400, 401, 403, 404, 408, 413, 424, 429, 500, 502, 503, 504]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("job", [JOB, BY_REFERENCE], ids=["inline", "by reference"])
async def test_an_answer_to_an_invocation_means_what_the_sdk_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, status: int, job: Invocation
) -> None:
    shapes = crossed(JSON_HEADERS, JSON_BODIES, status)
    async with (
        against(monkeypatch) as (opened, script),
        invoking("lean", opened) as lean,
        invoking("sdk", opened) as sdk,
    ):
        for headers, body in shapes:
            script.act = answers(status, body, headers)
            assert await lean.invoke(job) == await sdk.invoke(job), (status, headers, body)


XML = b'<?xml version="1.0" encoding="UTF-8"?>\n'
XML_BODIES = [
    b"",
    b" ",
    b"<html>gone</html>",
    b"<Error>",
    b"\xff\xfe",
    b"{}",
    XML + b"<Error><Code>NoSuchBucket</Code><Message>none</Message><RequestId>r</RequestId></Error>",
    XML + b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
    XML + b"<Error><Code>RequestTimeTooSkewed</Code></Error>",
    XML + b"<Error><Code>KMS.DisabledException</Code><Message>key</Message></Error>",
    XML + b"<Error><Code>InternalError</Code></Error>",
    XML + b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    XML + b"<Error><Message>no code</Message></Error>",
    XML + b"<Other><Code>AccessDenied</Code></Other>",
    XML + b"<ErrorResponse><Error><Code>Throttling</Code></Error><RequestId>r</RequestId></ErrorResponse>",
]
XML_HEADERS: list[dict[str, str]] = [
    {},
    {"ETag": '"x"', "x-amz-request-id": "r"},
    {"Retry-After": "3", "x-amz-id-2": "h"},
    {"x-amz-bucket-key-enabled": "maybe"},
]


@pytest.mark.parametrize("status", [status for status in STATUSES if status not in {301, 300}])
async def test_an_answer_to_a_put_means_what_the_sdk_makes_of_it(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    shapes = crossed(XML_HEADERS, XML_BODIES, status)
    async with (
        against(monkeypatch) as (opened, script),
        staging("lean", opened, "s3://bkt") as lean,
        staging("sdk", opened, "s3://bkt") as sdk,
    ):
        for headers, body in shapes:
            script.act = answers(status, body, headers)
            assert await lean.stage("k", b"x", None) == await sdk.stage("k", b"x", None), (status, headers, body)
