"""The SDK's session and clients: one each, made in order, closed backwards.

SDK retries are off, whatever the environment says: every attempt is ours to record and to count. A request is signed before
it waits for a connection, so the pool must hold as many connections as there may be attempts on the wire. Region, profile,
credentials and endpoint URLs come from the SDK's own chain; a fault in them ends the start with a UsageError.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError, PartialCredentialsError, ProfileNotFound
from botocore.handlers import add_expect_header
from botocore.regions import EndpointResolverBuiltins
from msgspec import Struct

from dispatcher.aws import chain
from dispatcher.aws.calls import watch
from dispatcher.aws.credentials import ANSWER_SECONDS, Credentials, ProviderError
from dispatcher.aws.faults import clean
from dispatcher.aws.listings import take_objects
from dispatcher.aws.resolver import BoundedResolver
from dispatcher.aws.uploads import spare_the_loop
from dispatcher.errors import UsageError

DISTRIBUTION = "sagemaker-dispatcher"
KEEPALIVE_SECONDS = 12
"""S3 closes idle connections at 20 s; a POST on one that is just being closed would be ambiguous."""

_SESSION_VARIABLES = {"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)}
"""The SDK for Python alone reads only AWS_DEFAULT_REGION; containers and functions of AWS set AWS_REGION."""


class ClientSettings(Struct, frozen=True, kw_only=True):
    """What the clients need to know; None leaves it to the SDK's own chain.

    `max_in_flight` is the most requests that may be on the wire at once, over all callers of one client.
    """

    max_in_flight: int
    region: str | None = None
    profile: str | None = None
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 30.0
    provider_seconds: float = ANSWER_SECONDS
    expect_continue: bool = False


class Clients(Struct, frozen=True, kw_only=True):
    """Open clients, and what the service logs of them. `endpoints` are the effective URLs by service, to be shown.

    `credentials` are those that all clients share; `ca_bundle` the one that was chosen, if any.
    """

    sagemaker: Any
    s3: Any
    credentials: Credentials
    ca_bundle: str | None
    region: str
    endpoints: dict[str, str]


@asynccontextmanager
async def clients(settings: ClientSettings) -> AsyncIterator[Clients]:
    """Opens the session's clients; closes them at the end. Raises UsageError for what a person has to put right."""
    session = _session(settings)
    region = _region(session)
    await _check_credentials(session)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(session.credentials.aclose)
        # One after the other: the SDK's credential cache has no lock for clients that are made at the same time.
        sagemaker = await _client(stack, session, "sagemaker-runtime", region, settings)
        check_inline(sagemaker)
        s3 = await _client(stack, session, "s3", region, settings)
        _prepare_s3(s3, settings.expect_continue)
        endpoints = {"sagemaker-runtime": shown_url(sagemaker), "s3": shown_url(s3)}
        yield Clients(
            sagemaker=sagemaker,
            s3=s3,
            credentials=session.credentials,
            ca_bundle=_ca_bundle(session),
            region=region,
            endpoints=endpoints,
        )


def shown_url(client: Any) -> str:
    """Where a client sends to, without what is secret in it."""
    return clean(str(client.meta.endpoint_url))


class _Session(AioSession):  # type: ignore[misc]  # the SDK has no types
    """A session whose clients sign with keys that are kept fresh."""

    def __init__(self, settings: ClientSettings) -> None:
        super().__init__(session_vars=_SESSION_VARIABLES, profile=settings.profile)
        if settings.region is not None:
            self.set_config_variable("region", settings.region)
        # A new session each time: one reads the files and the environment once in its life.
        self.credentials = Credentials(
            lambda: _Session(settings).of_chain(self.credentials.asking), answer_seconds=settings.provider_seconds
        )

    async def get_credentials(self) -> Credentials:
        return self.credentials

    async def of_chain(self, asking: Callable[[str], None]) -> Any:
        """What the SDK's own chain finds; None where it finds nothing. `asking` is told who is asked."""
        return await chain.load(self.get_component("credential_provider"), asking)


def _session(settings: ClientSettings) -> _Session:
    session = _Session(settings)
    try:
        session.get_scoped_config()
    except ProfileNotFound as error:
        raise UsageError(f"{clean(str(error))}: name a profile that the AWS configuration has, or none") from error
    except BotoCoreError as error:
        raise UsageError(f"the AWS configuration cannot be read: {clean(str(error))}") from error
    return session


def _region(session: AioSession) -> str:
    region = session.get_config_variable("region")
    if not region:
        raise UsageError("no AWS region: set AWS_REGION or AWS_DEFAULT_REGION, or a region in the profile")
    return str(region)


def _ca_bundle(session: AioSession) -> str | None:
    return session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or None


async def _check_credentials(session: _Session) -> None:
    """Resolves the credentials once, so that a missing or broken provider is found before anything is claimed."""
    try:
        found = await session.credentials.open()
    except PartialCredentialsError as error:
        raise UsageError(f"the AWS credentials are incomplete: {clean(str(error))}") from error
    except ProviderError as error:
        raise UsageError(
            f"the AWS credentials cannot be had: {clean(str(error))}; put that right where they come from, or choose "
            "another provider (AWS_PROFILE)"
        ) from error
    except (BotoCoreError, ClientError, RuntimeError, OSError) as error:
        raise UsageError(f"the AWS credentials cannot be had: {clean(str(error))}") from error
    if not found:
        raise UsageError(
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or run with a role"
        )


async def _client(stack: AsyncExitStack, session: _Session, service: str, region: str, settings: ClientSettings) -> Any:
    resolver = BoundedResolver(settings.connect_timeout_seconds)
    stack.push_async_callback(resolver.close)
    try:
        client = await stack.enter_async_context(
            session.create_client(service, region_name=region, config=_config(settings, resolver))
        )
    except (BotoCoreError, ValueError) as error:
        variable = "AWS_ENDPOINT_URL_" + service.replace("-", "_").upper()
        hint = f"check AWS_ENDPOINT_URL, {variable}, and the region {clean(region, 64)!r}"
        raise UsageError(f"no client for {service}: {clean(str(error))}; {hint}") from error
    watch(client, service)
    client.meta.events.register("before-call", session.credentials.began)
    client.meta.events.register("after-call", session.credentials.refused)
    return client


def _config(settings: ClientSettings, resolver: BoundedResolver) -> AioConfig:
    return AioConfig(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        max_pool_connections=settings.max_in_flight,
        # A new dict each time: the SDK rewrites it.
        retries={"mode": "standard", "total_max_attempts": 1},
        user_agent_extra=_user_agent(),
        connector_args={"keepalive_timeout": KEEPALIVE_SECONDS, "resolver": resolver},
    )


def _user_agent() -> str:
    try:
        return f"{DISTRIBUTION}/{version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return DISTRIBUTION  # run from a source tree that was never installed


def check_inline(sagemaker: Any) -> None:
    """UsageError if the SDK's model of the service is from before inline payloads."""
    operation = sagemaker.meta.service_model.operation_model("InvokeEndpointAsync")
    if "Body" not in operation.input_shape.members:
        raise UsageError(
            "this AWS SDK cannot send inline payloads: install botocore 1.43.29 or later, with its aiobotocore"
        )


def _prepare_s3(s3: Any, expect_continue: bool) -> None:
    events = s3.meta.events
    events.register_last("before-endpoint-resolution.s3", _path_style_where_custom)
    events.register("before-call.s3.PutObject", spare_the_loop)
    take_objects(s3)
    if not expect_continue:
        # It costs every PUT a round trip (84 ms instead of 43 at a simulated 40 ms), and hangs where no server answers it.
        events.unregister("before-call.s3", add_expect_header)


def _path_style_where_custom(builtins: dict[Any, Any], **_: Any) -> None:
    """A custom endpoint, such as one on loopback, has no host name for each bucket."""
    if builtins.get(EndpointResolverBuiltins.SDK_ENDPOINT):
        builtins[EndpointResolverBuiltins.AWS_S3_FORCE_PATH_STYLE] = True
