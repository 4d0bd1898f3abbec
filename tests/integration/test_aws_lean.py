"""When the lean path stands for the SDK's and when it gives way, and what it does where the SDK looks further."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.aws.credentials import Credentials
from dispatcher.aws.deadlines import Deadline
from dispatcher.aws.http import Answer
from dispatcher.aws.knowledge import Unfit, rehearse
from dispatcher.interfaces import Fault, FaultKind, FileSlice, Invocation
from dispatcher.model import EndpointName, FailureReason, InferenceId, Receipt
from dispatcher.transports.choosing import transports
from dispatcher.transports.lean import LeanInvoker, LeanStager
from dispatcher.transports.sagemaker import SdkInvoker
from dispatcher.transports.staging import SdkStager
from tests.programs import ENDPOINT, STAGING, a_sandbox, dispatch
from tests.scripted import accepts, answers, aws_environment, scripted_server
from tests.transports import invoking, staging
from tests.wires import NAME, authority

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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    aws_environment(monkeypatch, "http://127.0.0.1:1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@asynccontextmanager
async def opened_clients() -> AsyncIterator[Clients]:
    async with clients(ClientSettings(max_in_flight=2)) as opened:
        yield opened


async def reasons(opened: Clients, bucket: str = "bkt") -> list[str]:
    """Why the SDK sends itself; the transports are then the SDK's."""
    async with transports("lean", opened, SdkStager(opened.s3, f"s3://{bucket}"), connections=1) as found:
        assert isinstance(found.invoker, SdkInvoker) == ("InvokeEndpointAsync" in found.unfit)
        assert isinstance(found.stager, SdkStager) == ("PutObject" in found.unfit)
        assert isinstance(found.invoker, LeanInvoker) != isinstance(found.invoker, SdkInvoker)
        assert isinstance(found.stager, LeanStager) != isinstance(found.stager, SdkStager)
        return list(found.unfit.values())


async def test_where_nothing_is_odd_nothing_is_said(environment: pytest.MonkeyPatch) -> None:
    async with opened_clients() as opened:
        assert await reasons(opened) == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
async def test_a_proxy_is_left_to_the_sdk(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv(variable, "http://127.0.0.1:2")
    async with opened_clients() as opened:
        assert await reasons(opened) == ["a proxy is set for it"] * 2


async def test_a_proxy_for_others_concerns_nobody(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://127.0.0.1:2")
    environment.setenv("http_proxy", "http://127.0.0.1:2")
    environment.setenv("no_proxy", "127.0.0.1")
    async with opened_clients() as opened:
        assert await reasons(opened) == []


async def test_a_bundle_that_cannot_be_read_is_left_to_the_sdk(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    environment.setenv("AWS_CA_BUNDLE", "/no/such/bundle")
    async with opened_clients() as opened:
        assert all("CA bundle" in why for why in await reasons(opened))
        assert len(await reasons(opened)) == 2


async def test_a_hook_that_adds_a_header_is_left_to_the_sdk(environment: pytest.MonkeyPatch) -> None:
    def mark(request: Any, **_: Any) -> None:
        request.headers["X-Mark"] = "secret"

    async with opened_clients() as opened:
        opened.sagemaker.meta.events.register("before-sign.sagemaker-runtime", mark)
        opened.s3.meta.events.register("before-send.s3", mark)
        # What is signed differs as well, and stands first in the alphabet.
        assert await reasons(opened) == [
            "the header authorization would not be the SDK's",
            "the header x-mark would not be the SDK's",
        ]


async def test_another_signer_is_left_to_the_sdk(environment: pytest.MonkeyPatch) -> None:
    async with opened_clients() as opened:
        for client, service in ((opened.sagemaker, "sagemaker-runtime"), (opened.s3, "s3")):
            client.meta.events.register(f"choose-signer.{service}", lambda **_: "s3")
        assert await reasons(opened) == ["it is not signed with AWS4-HMAC-SHA256"] * 2


async def test_what_the_sdk_makes_no_request_for_is_left_to_it(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_ENDPOINT_URL")
    environment.setenv("AWS_REGION", "cn-north-1")
    environment.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    async with opened_clients() as opened:
        assert any(why.startswith("the SDK makes no such request") for why in await reasons(opened))


async def test_a_directory_bucket_is_left_to_the_sdk(environment: pytest.MonkeyPatch) -> None:
    """It is signed for with a session that the SDK asks S3 for; the rehearsal asks nobody."""
    environment.delenv("AWS_ENDPOINT_URL")
    async with opened_clients() as opened:
        assert len(await reasons(opened, "bkt--use1-az4--x-s3")) == 1


def test_a_dispatcher_says_in_its_log_what_the_sdk_sends_itself(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"payload": 1}\n')
    flags = ("--endpoint", ENDPOINT, "--staging", STAGING, "--comparison-share", "0", "--log-format", "json")
    elsewhere: dict[str, Any] = {"AWS_ENDPOINT_URL_S3": "https://127.0.0.1:1", "AWS_CA_BUNDLE": "no-such-bundle"}
    with a_sandbox(tmp_path) as sandbox:
        ended = dispatch(tmp_path, sandbox, "run", "jobs.jsonl", "--no-wait", *flags, **elsewhere)
    assert ended.status == 0, ended.said
    logs = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    told = [(log["level"], log["operation"], log["why"][:13]) for log in logs if "higher cost" in log["event"]]
    assert told == [("warning", "PutObject", "the CA bundle")], ended.said


async def test_a_rehearsal_stops_no_request_of_others(environment: pytest.MonkeyPatch) -> None:
    async with scripted_server(accepts("id-1")) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with opened_clients() as opened:
            begun = asyncio.Event()

            async def other() -> Receipt | Fault:
                await begun.wait()
                return await SdkInvoker(opened.sagemaker).invoke(JOB)

            task = asyncio.create_task(other())

            async def rehearsal() -> None:
                begun.set()
                await task

            assert isinstance(await rehearse(opened.sagemaker, "", rehearsal), Unfit)
            assert isinstance(await task, Receipt)


async def test_credentials_that_come_too_late_sent_nothing(environment: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async with scripted_server(accepts("id-1")) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with opened_clients() as opened, invoking("lean", opened, Deadline(base_seconds=0.1)) as invoker:
            credentials = Credentials(hang)
            assert isinstance(invoker, LeanInvoker)
            invoker._wire = replace(invoker._wire, credentials=credentials)
            fault = await invoker.invoke(JOB)
            await credentials.aclose()
        assert isinstance(fault, Fault)
        assert (fault.kind, fault.reason) == (FaultKind.NOT_SENT, FailureReason.TIMEOUT)
        assert not server.heard


class Slow(ThreadPoolExecutor):
    """Takes its time before each thing it is asked to do, and counts them."""

    asked = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1

        def slowly() -> Any:
            time.sleep(STEP_SECONDS)
            return fn(*args, **kwargs)

        return super().submit(slowly)


class SlowCredentials(Credentials):
    """Has none at hand, and takes its time to get some."""

    def current(self) -> None:
        return None

    async def get_frozen_credentials(self) -> None:
        await asyncio.sleep(STEP_SECONDS)


class TimedPool:
    """Takes every request; notes in how many seconds it had to be sent."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def send(self, make: object, seconds: float) -> Answer:
        self.seconds.append(seconds)
        return Answer(200, {}, b"")


STEP_SECONDS = 0.05


async def no_provider() -> None:
    raise AssertionError("nobody asks")


@pytest.mark.parametrize("slow", [True, False], ids=["slow steps", "all at hand"])
async def test_an_invocation_has_what_its_wait_for_credentials_left(
    environment: pytest.MonkeyPatch, slow: bool
) -> None:
    pool, deadline = TimedPool(), Deadline(base_seconds=100.0, bytes_per_second=1.0)
    async with opened_clients() as opened, invoking("lean", opened, deadline) as invoker:
        assert isinstance(invoker, LeanInvoker)
        credentials = SlowCredentials(no_provider) if slow else invoker._wire.credentials
        invoker._wire = replace(invoker._wire, pool=pool, credentials=credentials)
        await invoker.invoke(JOB)
    assert pool.seconds[0] <= 101.0 - slow * STEP_SECONDS
    assert slow or pool.seconds == [101.0]


@pytest.mark.parametrize("slow", [True, False], ids=["slow steps", "all at hand"])
async def test_a_put_has_what_its_file_and_its_credentials_and_its_checksum_left(
    environment: pytest.MonkeyPatch, tmp_path: Path, slow: bool
) -> None:
    (tmp_path / "payload").write_bytes(b"x" * 1_100_000)
    payload = FileSlice(str(tmp_path / "payload"), 0, 1_100_000) if slow else b"x" * 1_000
    pool, deadline = TimedPool(), Deadline(base_seconds=100.0, bytes_per_second=1e12)
    async with opened_clients() as opened, staging("lean", opened, "s3://bkt", deadline) as stager:
        assert isinstance(stager, LeanStager)
        credentials = SlowCredentials(no_provider) if slow else stager._wire.credentials
        stager._wire = replace(stager._wire, pool=pool, credentials=credentials)
        executor = Slow(1)
        asyncio.get_running_loop().set_default_executor(executor)
        assert await stager.stage("k", payload, None) == "s3://bkt/k"
    assert executor.asked == 2 * slow
    assert pool.seconds[0] <= 100.001 - 3 * slow * STEP_SECONDS
    assert slow or pool.seconds == [deadline.seconds(1_000)]


async def test_a_file_that_cannot_be_opened_in_time_is_a_put_that_was_not_sent(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "payload").write_bytes(b"x")
    free, executor = threading.Event(), ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    deadline = Deadline(base_seconds=0.1)
    async with opened_clients() as opened, staging("lean", opened, "s3://bkt", deadline) as stager:
        executor.submit(free.wait)  # a disk that hangs
        try:
            async with asyncio.timeout(20):
                fault = await stager.stage("k", FileSlice(str(tmp_path / "payload"), 0, 1), None)
        finally:
            free.set()
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.NOT_SENT, FailureReason.TIMEOUT)


async def test_keys_that_the_service_refuses_are_asked_for_anew(environment: pytest.MonkeyPatch) -> None:
    expired = answers(403, b"{}", {"x-amzn-ErrorType": "ExpiredTokenException"})
    async with scripted_server(expired, accepts("id-1")) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with opened_clients() as opened, invoking("lean", opened) as invoker:
            fault = await invoker.invoke(JOB)
            assert isinstance(fault, Fault)
            assert fault.reason is FailureReason.CREDENTIALS
            environment.setenv("AWS_ACCESS_KEY_ID", "AKIANEW")
            async with asyncio.timeout(10):
                # The renewal is begun by whoever asks, and is over when the keys are others.
                while (await opened.credentials.get_frozen_credentials()).access_key != "AKIANEW":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert isinstance(await invoker.invoke(JOB), Receipt)
        assert "Credential=AKIANEW/" in server.heard[1].headers["authorization"]


MOVED = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message><Region>eu-west-1</Region></Error>"


async def test_a_bucket_in_another_region_is_put_to_by_the_sdk_which_looks_for_it(
    environment: pytest.MonkeyPatch,
) -> None:
    async with scripted_server(answers(400, MOVED), answers(400, MOVED), answers(200)) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with opened_clients() as opened, staging("lean", opened, "s3://bkt") as stager:
            assert await stager.stage("k", b"x", None) == "s3://bkt/k"
            assert await stager.stage("k", b"y", None) == "s3://bkt/k"
    regions = [heard.headers["authorization"].split("/")[2] for heard in server.heard]
    assert regions == ["us-east-1", "us-east-1", "eu-west-1", "eu-west-1"]


async def test_an_invocation_follows_no_redirect(environment: pytest.MonkeyPatch) -> None:
    async with scripted_server(answers(307, b"", {"Location": "http://127.0.0.1:1/elsewhere"})) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with opened_clients() as opened, invoking("lean", opened) as invoker:
            fault = await invoker.invoke(JOB)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.TROUBLE, FailureReason.PROTOCOL)
    assert len(server.heard) == 1


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_a_peer_is_trusted_by_the_bundle_that_was_chosen(
    environment: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    made = authority(tmp_path)
    environment.delenv("REQUESTS_CA_BUNDLE", raising=False)
    async with scripted_server(accepts("id-1"), tls=made.serving()) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"https://{NAME}:{server.port}")
        environment.setenv(variable, str(made.path))
        async with opened_clients() as opened, invoking("lean", opened) as invoker:
            assert isinstance(await invoker.invoke(JOB), Receipt)


async def test_a_peer_that_nobody_vouches_for_gets_nothing(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("REQUESTS_CA_BUNDLE", raising=False)
    async with scripted_server(accepts("id-1"), tls=authority(tmp_path).serving()) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"https://{NAME}:{server.port}")
        async with opened_clients() as opened, invoking("lean", opened) as invoker:
            fault = await invoker.invoke(JOB)
        assert isinstance(fault, Fault)
        assert (fault.kind, fault.reason) == (FaultKind.NOT_SENT, FailureReason.NETWORK)
        assert not server.heard


async def test_a_disk_that_fails_in_the_middle_of_an_upload_is_a_fault(environment: pytest.MonkeyPatch) -> None:
    class Failing:
        async def send(self, *_: object) -> None:
            raise OSError(5, "Input/output error")

    async with opened_clients() as opened, staging("lean", opened, "s3://bkt") as stager:
        assert isinstance(stager, LeanStager)
        stager._wire = replace(stager._wire, pool=Failing())
        fault = await stager.stage("k", b"x", None)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.reason) == (FaultKind.UNKNOWN, FailureReason.NETWORK)
