"""The clients as the SDK's own chain makes them."""

import asyncio
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dispatcher.aws.clients import ClientSettings, check_inline, clients
from dispatcher.aws.resolver import Address, BoundedResolver
from dispatcher.completions.s3 import S3Completions
from dispatcher.errors import UsageError
from dispatcher.interfaces import Fault
from tests.scripted import answers, aws_environment, hangs_after_reading, scripted_server

SETTINGS = ClientSettings(max_in_flight=4)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    aws_environment(monkeypatch, "http://127.0.0.1:1")
    return monkeypatch


async def refusal(settings: ClientSettings = SETTINGS) -> str:
    with pytest.raises(UsageError) as caught:
        async with clients(settings):
            pass
    return str(caught.value)


async def test_the_effective_endpoints_and_the_region_can_be_told(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    async with clients(SETTINGS) as opened:
        assert opened.endpoints == {"sagemaker-runtime": "http://127.0.0.1:1", "s3": "http://127.0.0.1:2"}
        assert opened.region == "us-east-1"


async def test_an_endpoint_is_shown_without_its_password(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://user:SECRET@127.0.0.1:1")
    async with clients(SETTINGS) as opened:
        assert set(opened.endpoints.values()) == {"http://***@127.0.0.1:1"}


async def test_without_a_custom_endpoint_it_is_the_regions(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_ENDPOINT_URL")
    async with clients(ClientSettings(max_in_flight=4, region="eu-west-1")) as opened:
        assert opened.endpoints["sagemaker-runtime"] == "https://runtime.sagemaker.eu-west-1.amazonaws.com"
        assert opened.region == "eu-west-1"


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
async def test_either_variable_names_the_region(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.delenv("AWS_REGION")
    environment.setenv(name, "eu-north-1")
    async with clients(SETTINGS) as opened:
        assert opened.region == "eu-north-1"


async def test_no_region_is_a_usage_error(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_REGION")
    assert "no AWS region" in await refusal()


async def test_no_credentials_is_a_usage_error(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials" in await refusal()


async def test_half_a_key_is_a_usage_error(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    assert "incomplete" in await refusal()


async def test_a_provider_that_fails_is_a_usage_error(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "config").write_text("[default]\ncredential_process = false\n")
    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert "cannot be had" in await refusal()


async def test_keys_that_no_header_may_hold_are_a_usage_error_that_names_the_part(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("AWS_SESSION_TOKEN", "SECRET\r\nX-Evil: 1")
    said = await refusal()
    assert "env gave keys that cannot be used: the session token has a line break in it" in said
    assert "SECRET" not in said


@pytest.mark.parametrize("by_setting", [True, False])
async def test_a_profile_that_is_not_there_is_a_usage_error(environment: pytest.MonkeyPatch, by_setting: bool) -> None:
    if not by_setting:
        environment.setenv("AWS_PROFILE", "nobody")
    settings = ClientSettings(max_in_flight=4, profile="nobody" if by_setting else None)
    assert "nobody" in await refusal(settings)


async def test_a_configuration_that_cannot_be_read_is_a_usage_error(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("no section = here\n")
    environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert "cannot be read" in await refusal()


async def test_a_bad_endpoint_url_is_a_usage_error_that_names_the_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL_S3", "not a url")
    assert "AWS_ENDPOINT_URL_S3" in await refusal()


def test_an_sdk_that_knows_no_inline_payload_is_a_usage_error() -> None:
    operation = SimpleNamespace(input_shape=SimpleNamespace(members={"EndpointName": None, "InputLocation": None}))
    model = SimpleNamespace(operation_model=lambda _: operation)
    with pytest.raises(UsageError, match=r"botocore 1\.43\.29"):
        check_inline(SimpleNamespace(meta=SimpleNamespace(service_model=model)))


@pytest.mark.parametrize(
    "variables", [{}, {"AWS_RETRY_MODE": "legacy", "AWS_MAX_ATTEMPTS": "5"}, {"AWS_NEW_RETRIES_2026": "true"}]
)
async def test_one_call_is_one_request_whatever_the_environment_says(
    environment: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    async with scripted_server(answers(500)) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with clients(SETTINGS) as opened:
            assert isinstance(await S3Completions(opened.s3).look("s3://bucket/key"), Fault)
    assert len(server.heard) == 1
    assert server.heard[0].target == "/bucket/key", "a custom endpoint has no host name for each bucket"
    assert "sagemaker-dispatcher" in server.heard[0].headers["user-agent"]


async def test_a_name_service_that_hangs_is_as_good_as_none() -> None:
    released = threading.Event()

    def hang(host: str, port: int, family: socket.AddressFamily) -> list[Address]:
        released.wait(10)
        return []

    resolver = BoundedResolver(0.05, hang)
    try:
        with pytest.raises(OSError, match="no answer from the name service"):
            await resolver.resolve("example.test", 80)
    finally:
        released.set()
        await resolver.close()


async def test_a_name_is_resolved() -> None:
    resolver = BoundedResolver(5)
    found = await resolver.resolve("localhost", 80, socket.AF_INET)
    await resolver.close()
    assert {(entry["host"], entry["port"]) for entry in found} == {("127.0.0.1", 80)}


async def test_clients_close_while_a_request_is_open(environment: pytest.MonkeyPatch) -> None:
    async with scripted_server(hangs_after_reading) as server:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        async with clients(SETTINGS) as opened:
            looking = asyncio.create_task(S3Completions(opened.s3).look("s3://bucket/key"))
            await server.hears(1)
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
