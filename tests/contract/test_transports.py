"""What every Invoker and every Stager promises, asked of the lean ones and of the SDK's against servers on loopback."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from moto.server import ThreadedMotoServer
from msgspec.structs import replace

from dispatcher.aws.calls import Calls
from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.interfaces import Fault, FaultKind, FileSlice, Invocation, Invoker, Stager
from dispatcher.model import EndpointName, FailureReason, InferenceId, Receipt
from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.transports.choosing import Kind
from tests.scripted import aws_environment
from tests.transports import invoking, staging

BUCKET = "sandbox-in"
SETTINGS = ClientSettings(max_in_flight=8)


@pytest.fixture(scope="module")
def running_sandbox() -> Iterator[Sandbox]:
    with start_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    aws_environment(monkeypatch, running_sandbox.url)
    for name, value in running_sandbox.env.items():
        monkeypatch.setenv(name, value)
    yield running_sandbox
    running_sandbox.patch(faults=[], endpoints={"sandbox": {"inline": True, "location_scheme": "s3"}})


@pytest.fixture
async def sdk(sandbox: Sandbox) -> AsyncIterator[Clients]:
    async with clients(SETTINGS) as opened:
        yield opened


# --- Invoker ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def observed() -> list[tuple[str, str]]:
    return []


@pytest.fixture(params=["lean", "sdk"])
def client(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@pytest.fixture
async def invoker(sdk: Clients, client: Kind, observed: list[tuple[str, str]]) -> AsyncIterator[Invoker]:
    calls = Calls(observe=lambda name, outcome, _: observed.append((name, outcome)))
    async with invoking(client, sdk, calls=calls) as found:
        yield found


INLINE = Invocation(
    endpoint=EndpointName("sandbox"),
    inference_id=InferenceId("abcdefghij0123456789klmnop"),
    filename="abcdefghij0123456789klmnop.out",
    output_path_extension="jobs-run1/0",
    content_type="application/json",
    accept="application/json",
    custom_attributes="a=b",
    request_ttl_seconds=3600,
    invocation_timeout_seconds=60,
    body=b'{"x": 1}',
    input_location=None,
)
BARE = Invocation(
    endpoint=EndpointName("sandbox"),
    inference_id=InferenceId("bare"),
    filename=None,
    output_path_extension=None,
    content_type=None,
    accept=None,
    custom_attributes=None,
    request_ttl_seconds=None,
    invocation_timeout_seconds=None,
    body=None,
    input_location=f"s3://{BUCKET}/no/such/key",
)


async def test_an_accepted_request_gives_the_receipt_as_it_came(
    invoker: Invoker, observed: list[tuple[str, str]]
) -> None:
    receipt = await invoker.invoke(INLINE)
    assert isinstance(receipt, Receipt)
    assert receipt.output_location.startswith("s3://sandbox-out/")
    assert receipt.output_location.endswith(".out")
    assert receipt.failure_location is not None
    assert observed == [("InvokeEndpointAsync", "ok")]


async def test_a_location_that_is_a_url_is_passed_on_as_it_came(invoker: Invoker, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={"sandbox": {"location_scheme": "https"}})
    receipt = await invoker.invoke(INLINE)
    assert isinstance(receipt, Receipt)
    assert receipt.output_location.startswith("https://")


async def test_what_is_not_set_is_not_sent(invoker: Invoker) -> None:
    assert isinstance(await invoker.invoke(BARE), Receipt)


async def test_the_largest_body_goes_inline(invoker: Invoker) -> None:
    assert isinstance(await invoker.invoke(replace(INLINE, body=b"x" * 128_000)), Receipt)


async def test_an_endpoint_that_is_gone_is_refused_with_its_own_reason(invoker: Invoker) -> None:
    fault = await invoker.invoke(replace(INLINE, endpoint=EndpointName("gone")))
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.REFUSED, FailureReason.ENDPOINT_MISSING)


async def test_an_endpoint_without_inline_refuses_the_body_with_its_own_reason(
    invoker: Invoker, sandbox: Sandbox
) -> None:
    sandbox.patch(endpoints={"sandbox": {"inline": False}})
    fault = await invoker.invoke(INLINE)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.REFUSED, FailureReason.INLINE_REFUSED)


@pytest.mark.parametrize(
    ("rule", "kind", "reason"),
    [
        ("throttle", FaultKind.THROTTLED, FailureReason.THROTTLED),
        ("internal_failure", FaultKind.TROUBLE, FailureReason.SERVICE_ERROR),
        ("unavailable", FaultKind.TROUBLE, FailureReason.SERVICE_ERROR),
        ("validation", FaultKind.REFUSED, FailureReason.VALIDATION_ERROR),
        ("access_denied", FaultKind.TROUBLE, FailureReason.ACCESS_DENIED),
        ("expired_token", FaultKind.TROUBLE, FailureReason.CREDENTIALS),
        ("reset_before", FaultKind.UNKNOWN, FailureReason.NETWORK),
        ("reset_after", FaultKind.UNKNOWN, FailureReason.NETWORK),
        ("reset_midway", FaultKind.UNKNOWN, FailureReason.NETWORK),
        ("bare_202", FaultKind.UNKNOWN, FailureReason.PROTOCOL),
        ("wrong_id", FaultKind.UNKNOWN, FailureReason.PROTOCOL),
    ],
)
async def test_a_request_that_fails_is_made_once_and_is_a_value(
    invoker: Invoker,
    sandbox: Sandbox,
    observed: list[tuple[str, str]],
    rule: str,
    kind: FaultKind,
    reason: FailureReason,
) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": rule, "count": 1, "retry_after_ms": 250}])
    fault = await invoker.invoke(INLINE)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (kind, reason)
    assert fault.retry_after_seconds in {None, 0.25}
    assert observed == [("InvokeEndpointAsync", str(kind))]
    assert isinstance(await invoker.invoke(INLINE), Receipt), "the fault was used up by one request"


# --- Stager ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["sandbox", "moto"])
async def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clients]:
    if request.param == "sandbox":
        request.getfixturevalue("sandbox")
    else:
        aws_environment(monkeypatch, request.getfixturevalue("moto_url"))
    async with clients(SETTINGS) as opened:
        if request.param == "moto":
            await opened.s3.create_bucket(Bucket=BUCKET)
        yield opened


@pytest.fixture
def s3(opened: Clients) -> Any:
    return opened.s3


@pytest.fixture
async def stager(opened: Clients, client: Kind, observed: list[tuple[str, str]]) -> AsyncIterator[Stager]:
    calls = Calls(observe=lambda name, outcome, _: observed.append((name, outcome)))
    async with staging(client, opened, f"s3://{BUCKET}/staged/", calls=calls, tags={"job": "a b=c+d"}) as found:
        yield found


async def stored(s3: Any, location: str) -> bytes:
    bucket, _, key = location.removeprefix("s3://").partition("/")
    answer = await s3.get_object(Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        return bytes(await body.read())


@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 3_000_000], ids=["empty", "small", "large"])
async def test_a_payload_in_memory_is_staged_whole(s3: Any, stager: Stager, payload: bytes) -> None:
    location = await stager.stage("ab/abc", payload, "text/plain")
    assert location == f"s3://{BUCKET}/staged/ab/abc"
    assert await stored(s3, location) == payload


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (5, 3), (7, 3_000_000)], ids=["empty", "small", "large"])
async def test_a_slice_of_a_file_is_staged_and_nothing_around_it(
    s3: Any, stager: Stager, tmp_path: Path, offset: int, length: int
) -> None:
    data = bytes(range(251)) * 16_000
    (tmp_path / "jobs").write_bytes(data)
    location = await stager.stage("k", FileSlice(str(tmp_path / "jobs"), offset, length), None)
    assert isinstance(location, str)
    assert await stored(s3, location) == data[offset : offset + length]


async def test_a_put_is_told_once(stager: Stager, observed: list[tuple[str, str]]) -> None:
    await stager.stage("k", b"x", None)
    assert observed == [("PutObject", "ok")]


async def test_staging_again_overwrites(s3: Any, stager: Stager) -> None:
    await stager.stage("k", b"first", None)
    location = await stager.stage("k", b"second", None)
    assert isinstance(location, str)
    assert await stored(s3, location) == b"second"


async def test_a_payload_that_is_gone_is_the_jobs_fault(stager: Stager, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"123")
    for piece in (FileSlice(str(tmp_path / "none"), 0, 1), FileSlice(str(tmp_path / "short"), 1, 3)):
        fault = await stager.stage("k", piece, None)
        assert isinstance(fault, Fault)
        assert (fault.kind, fault.reason) == (FaultKind.REFUSED, FailureReason.PAYLOAD_GONE)


async def test_a_bucket_that_is_not_there_is_trouble_of_the_lane(opened: Clients, client: Kind) -> None:
    async with staging(client, opened, "s3://no-such-bucket-here") as stager:
        fault = await stager.stage("k", b"x", None)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.TROUBLE, FailureReason.BUCKET)


async def test_what_is_discarded_is_gone_and_may_be_gone_already(s3: Any, stager: Stager) -> None:
    for key in ("gone/k", "gone/ab/a&b <c> %20+", "gone/kept"):
        await stager.stage(key, b"x", None)
    for _ in range(2):
        assert await stager.discard(["gone/k", "gone/ab/a&b <c> %20+"]) == {}
    listed = await s3.list_objects_v2(Bucket=BUCKET, Prefix="staged/gone/")
    assert listed["KeyCount"] == 1
    assert await stored(s3, f"s3://{BUCKET}/staged/gone/kept") == b"x"


async def test_more_keys_than_one_request_takes_are_discarded_by_several(
    s3: Any, stager: Stager, observed: list[tuple[str, str]]
) -> None:
    await stager.stage("last", b"x", None)
    observed.clear()
    assert await stager.discard([*(f"none{number}" for number in range(2_000)), "last"]) == {}
    assert observed == [("DeleteObjects", "ok")] * 3
    listed = await s3.list_objects_v2(Bucket=BUCKET, Prefix="staged/last")
    assert listed["KeyCount"] == 0


async def test_nothing_to_discard_takes_no_request(stager: Stager, observed: list[tuple[str, str]]) -> None:
    assert await stager.discard([]) == {}
    assert observed == []


async def test_what_could_not_be_discarded_is_told_for_each_key(opened: Clients, client: Kind) -> None:
    async with staging(client, opened, "s3://no-such-bucket-here") as stager:
        left = await stager.discard(["a", "b"])
    assert {key: (fault.kind, fault.reason) for key, fault in left.items()} == dict.fromkeys(
        ("a", "b"), (FaultKind.TROUBLE, FailureReason.BUCKET)
    )
