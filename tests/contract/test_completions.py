"""What every Completions promises, asked of the one on S3 against servers on loopback."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from dispatcher.aws.clients import ClientSettings, clients
from dispatcher.completions.s3 import S3Completions
from dispatcher.interfaces import HIDDEN, Completions, Fault, FaultKind, Found, Listing
from dispatcher.model import FailureReason
from dispatcher.sandbox.process import Sandbox, start_sandbox
from tests.scripted import aws_environment

BUCKET = "sandbox-out"
HTTPS = f"https://{BUCKET}.s3.us-east-1.amazonaws.com"


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
    running_sandbox.patch(faults=[], list_denied=False)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["sandbox", "moto"])
async def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    if request.param == "sandbox":
        request.getfixturevalue("sandbox")
    else:
        aws_environment(monkeypatch, request.getfixturevalue("moto_url"))
    async with clients(ClientSettings(max_in_flight=8)) as opened:
        if request.param == "moto":
            await opened.s3.create_bucket(Bucket=BUCKET)
        yield opened.s3


@pytest.fixture
def completions(s3: Any) -> Completions:
    return S3Completions(s3)


async def put(s3: Any, key: str, body: bytes = b"result") -> str:
    await s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    return f"s3://{BUCKET}/{key}"


async def test_a_listing_says_what_the_sdk_itself_reads_in_it(s3: Any, completions: Completions) -> None:
    for name in ("plain", "b c+d", "50%25", "a&b<c>'\"", "ü€😀", "tail "):
        await put(s3, f"odd/{name}.out", name.encode())
    async with AioSession().create_client("s3", config=AioConfig(s3={"addressing_style": "path"})) as plain:
        page = await plain.list_objects_v2(Bucket=BUCKET, Prefix="odd/")
    listing = await completions.list_folder(f"s3://{BUCKET}/odd/")
    assert isinstance(listing, Listing)
    assert listing.objects == [
        Found(f"s3://{BUCKET}/{one['Key']}", one["Size"], one["LastModified"].timestamp()) for one in page["Contents"]
    ]


async def test_a_folder_lists_its_own_objects(s3: Any, completions: Completions) -> None:
    uris = [await put(s3, f"list/run/{name}") for name in ("a.out", "b c+d.out")]
    await put(s3, "list/run/deeper/c.out")
    await put(s3, "list/runner.out")
    for folder in (f"s3://{BUCKET}/list/run/", f"{HTTPS}/list/run/"):
        listing = await completions.list_folder(folder)
        assert isinstance(listing, Listing)
        assert [found.uri for found in listing.objects] == uris
        assert {found.size_bytes for found in listing.objects} == {6}
        assert listing.complete


async def test_an_empty_folder_is_an_empty_listing(completions: Completions) -> None:
    assert await completions.list_folder(f"s3://{BUCKET}/nothing/") == Listing([], complete=True)


async def test_a_listing_of_a_bucket_that_is_gone_is_trouble(completions: Completions) -> None:
    fault = await completions.list_folder("s3://no-such-bucket-here/x/")
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.TROUBLE, FailureReason.BUCKET)


async def test_a_look_finds_an_object_or_nothing(s3: Any, completions: Completions) -> None:
    uri = await put(s3, "look/a b.out", b"1234")
    found = await completions.look(uri)
    assert isinstance(found, Found)
    assert (found.uri, found.size_bytes) == (uri, 4)
    assert await completions.look(f"{HTTPS}/look/a%20b.out") == found
    assert await completions.look(f"s3://{BUCKET}/look/none.out") is None


async def test_a_listing_and_a_look_agree(s3: Any, completions: Completions) -> None:
    uri = await put(s3, "agree/a.out")
    listing = await completions.list_folder(f"s3://{BUCKET}/agree/")
    found = await completions.look(uri)
    assert isinstance(listing, Listing)
    assert isinstance(found, Found)
    assert [int(listed.modified_at) for listed in listing.objects] == [int(found.modified_at)]
    assert [(listed.uri, listed.size_bytes) for listed in listing.objects] == [(found.uri, found.size_bytes)]


@pytest.mark.parametrize(("size", "max_bytes"), [(0, 10), (10, 10), (10, 11), (11, 10), (300_000, 200_000), (5, 0)])
async def test_a_read_takes_no_more_than_it_may(s3: Any, completions: Completions, size: int, max_bytes: int) -> None:
    body = bytes(index % 251 for index in range(size))
    uri = await put(s3, "read/a.out", body)
    assert await completions.read(uri, max_bytes) == body[:max_bytes]


async def test_what_is_not_there_cannot_be_read(completions: Completions) -> None:
    location = f"s3://{BUCKET}/read/none.out"
    assert await completions.read(location, 10) is None


async def test_a_location_that_names_nothing_is_a_fault(completions: Completions) -> None:
    for outcome in (await completions.look("nonsense"), await completions.read("s3://b", 1)):
        assert isinstance(outcome, Fault)
        assert outcome.reason is FailureReason.PROTOCOL


async def test_where_list_is_denied_a_hidden_object_is_not_there(sandbox: Sandbox) -> None:
    async with clients(ClientSettings(max_in_flight=8)) as opened:
        completions = S3Completions(opened.s3)
        uri = await put(opened.s3, "denied/a.out")
        sandbox.patch(list_denied=True)
        assert getattr(await completions.look(f"s3://{BUCKET}/denied/none.out"), "code", None) == HIDDEN
        assert isinstance(await completions.look(uri), Found)
        assert await completions.look(f"s3://{BUCKET}/denied/none.out") is None
        listing = await completions.list_folder(f"s3://{BUCKET}/denied/")
        assert isinstance(listing, Fault)
        assert listing.reason is FailureReason.ACCESS_DENIED
        sandbox.reset_counts()
        assert await completions.read(f"s3://{BUCKET}/denied/none.out", 10) is None
        assert "list" not in {name for name, count in _requests(sandbox).items() if count}, "the probe is remembered"


@pytest.mark.parametrize("readable", [False, True])
async def test_where_list_is_denied_a_proof_that_is_old_is_made_again(sandbox: Sandbox, readable: bool) -> None:
    async with clients(ClientSettings(max_in_flight=8)) as opened:
        completions = S3Completions(opened.s3, proof_seconds=0.0)
        uri = await put(opened.s3, "revoked/a.out")
        sandbox.patch(list_denied=True)
        await completions.look(f"s3://{BUCKET}/revoked/none.out")
        assert isinstance(await completions.look(uri), Found)
        sandbox.patch(faults=[] if readable else [{"operation": "head", "kind": "access_denied"}])
        hidden = await completions.look(f"s3://{BUCKET}/revoked/none.out")
        assert getattr(hidden, "code", None) == (None if readable else HIDDEN)


def _requests(sandbox: Sandbox) -> dict[str, Any]:
    return dict(sandbox.counts().get("requests", {}))


async def test_where_list_is_allowed_a_denied_object_is_trouble(sandbox: Sandbox) -> None:
    async with clients(ClientSettings(max_in_flight=8)) as opened:
        sandbox.patch(faults=[{"operation": "head", "kind": "access_denied"}])
        fault = await S3Completions(opened.s3).look(f"s3://{BUCKET}/denied/b.out")
        assert isinstance(fault, Fault)
        assert (fault.kind, fault.reason) == (FaultKind.TROUBLE, FailureReason.ACCESS_DENIED)


async def test_a_folder_of_more_than_two_pages_is_not_complete(sandbox: Sandbox) -> None:
    async with clients(ClientSettings(max_in_flight=32)) as opened:
        for index in range(2_001):
            await put(opened.s3, f"many/{index:04d}", b"")
        listing = await S3Completions(opened.s3).list_folder(f"s3://{BUCKET}/many/")
    assert isinstance(listing, Listing)
    assert (len(listing.objects), listing.complete) == (2_000, False)
