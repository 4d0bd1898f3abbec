"""Single questions to AWS, asked by `dispatcher check`: each bounded in time, each answered with a value.

A refusal is an answer like any other: its code, its status and the time on its Date header are what is looked at. Nothing
here is asked by a dispatcher at work, and nothing here is tried again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from msgspec import Struct

from dispatcher.aws import clients
from dispatcher.aws.clients import Clients, ClientSettings
from dispatcher.aws.deadlines import Deadline
from dispatcher.aws.faults import clean, fault_of
from dispatcher.aws.locations import Location
from dispatcher.interfaces import Fault

CONNECT_SECONDS = 4.0
CONNECTIONS = 16
"""The most requests to one service at once."""

ACTIONS = {
    "InvokeEndpointAsync": "sagemaker:InvokeEndpointAsync",
    "PutObject": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
    "DeleteObject": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "DescribeEndpoint": "sagemaker:DescribeEndpoint",
    "DescribeEndpointConfig": "sagemaker:DescribeEndpointConfig",
}
"""The permission that each operation of this program needs. GetCallerIdentity needs none, nor does HeadBucket for what is
asked with it: a refusal names the bucket's region as well."""

ANNOUNCED_REGIONS = frozenset(
    (
        *("ap-east-1", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2"),
        *("ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-7"),
        *("eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1"),
        *("eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3"),
        *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
        *("af-south-1", "ca-central-1", "ca-west-1", "il-central-1", "mx-central-1", "sa-east-1"),
    )
)
"""Where inline payloads were announced for (17 June 2026). A hint: only the service knows where they work by now."""


class Answer(Struct, frozen=True, kw_only=True):
    """What came back, `data` as the SDK read it. `fault` is None for success; `status` is 0 where there was no answer.

    `ahead_seconds` is how far AWS's clock is ahead of ours, to about a second; None where no answer named a time.
    """

    fault: Fault | None
    status: int
    data: dict[str, Any]
    seconds: float
    ahead_seconds: float | None

    @property
    def text(self) -> str:
        """The answer in a few words."""
        if self.fault is None:
            return f"status {self.status}"
        where = f"status {self.status}, " if self.status else ""
        return f"{where}{self.fault.code}: {self.fault.message}"


class Sdk(Struct, frozen=True):
    """The SDK that is installed, and whether its model of the service knows inline payloads."""

    aiobotocore: str
    botocore: str
    aiohttp: str
    knows_body: bool


def sdk() -> Sdk:
    """Asks the installed packages; reads files, so not on an event loop."""
    model = botocore.session.get_session().get_service_model("sagemaker-runtime")
    knows = "Body" in model.operation_model("InvokeEndpointAsync").input_shape.members
    return Sdk(version("aiobotocore"), version("botocore"), version("aiohttp"), knows)


class Chain:
    """What the SDK's own chain finds: a region and credentials. `open` gives clients with both.

    `deadline` bounds every question.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._settings = ClientSettings(max_in_flight=CONNECTIONS, connect_timeout_seconds=CONNECT_SECONDS)
        self._session: clients._Session | None = None

    def region(self) -> str:
        """The region. UsageError where there is none, or the configuration cannot be read."""
        return clients._region(self._opened())

    async def credentials(self) -> str:
        """Where the credentials come from, in the SDK's words (`env`, `iam-role`, …). UsageError where there are none."""
        session = self._opened()
        await clients._check_credentials(session)
        return session.credentials.method

    @asynccontextmanager
    async def open(self, expect_continue: bool = False) -> AsyncIterator["Probes"]:
        """Clients of everything that is asked. UsageError where one cannot be made."""
        session, region = self._opened(), self.region()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(session.credentials.aclose)
            made = {
                name: await clients._client(stack, session, name, region, self._settings)
                for name in ("sagemaker-runtime", "sagemaker", "sts", "s3")
            }
            clients._prepare_s3(made["s3"], expect_continue)
            opened = Clients(
                sagemaker=made["sagemaker-runtime"],
                s3=made["s3"],
                credentials=session.credentials,
                ca_bundle=clients._ca_bundle(session),
                region=region,
                endpoints={name: clients.shown_url(client) for name, client in made.items()},
            )
            yield Probes(opened, made["sagemaker"], made["sts"], self._deadline)

    def _opened(self) -> clients._Session:
        if self._session is None:
            self._session = clients._session(self._settings)
        return self._session


class Probes:
    """The questions. `opened` are the clients that a dispatcher has, for whoever works with them as it does.

    `deadline` is for them too. `ahead_seconds` are those of all answers so far.
    """

    def __init__(self, opened: Clients, control: Any, sts: Any, deadline: Deadline) -> None:
        self.opened = opened
        self.deadline = deadline
        self.ahead_seconds: list[float] = []
        self._control = control
        self._sts = sts

    async def identity(self) -> Answer:
        """GetCallerIdentity."""
        return await self._ask("GetCallerIdentity", self._sts.get_caller_identity)

    async def endpoint(self, name: str) -> Answer:
        """DescribeEndpoint."""
        return await self._ask("DescribeEndpoint", lambda: self._control.describe_endpoint(EndpointName=name))

    async def endpoint_config(self, name: str) -> Answer:
        """DescribeEndpointConfig."""
        return await self._ask(
            "DescribeEndpointConfig", lambda: self._control.describe_endpoint_config(EndpointConfigName=name)
        )

    async def bucket(self, name: str, **owner: str) -> Answer:
        """HeadBucket."""
        return await self._ask("HeadBucket", lambda: self.opened.s3.head_bucket(Bucket=name, **owner))

    async def list_one(self, folder: Location) -> Answer:
        """ListObjectsV2 of one key."""
        return await self._ask(
            "ListObjectsV2", lambda: self.opened.s3.list_objects_v2(Bucket=folder.bucket, Prefix=folder.key, MaxKeys=1)
        )

    async def look(self, at: Location) -> Answer:
        """HeadObject."""
        return await self._ask("HeadObject", lambda: self.opened.s3.head_object(Bucket=at.bucket, Key=at.key))

    async def delete(self, at: Location) -> Answer:
        """DeleteObject."""
        return await self._ask("DeleteObject", lambda: self.opened.s3.delete_object(Bucket=at.bucket, Key=at.key))

    async def invoke(self, **parameters: Any) -> Answer:
        """InvokeEndpointAsync, whatever the parameters: to see what the service says to bad ones."""
        return await self._ask("InvokeEndpointAsync", lambda: self.opened.sagemaker.invoke_endpoint_async(**parameters))

    async def _ask(self, operation: str, request: Callable[[], Awaitable[Any]]) -> Answer:
        answer = await ask(operation, request, self.deadline.seconds())
        if answer.ahead_seconds is not None:
            self.ahead_seconds.append(answer.ahead_seconds)
        return answer


async def ask(operation: str, request: Callable[[], Awaitable[Any]], seconds: float) -> Answer:
    """Makes one request. Raises nothing but cancellation."""
    wall, began = time.time(), time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            data = await request()
        fault, said = None, data
    except ClientError as error:
        fault, said, data = fault_of(error, operation), error.response, error.response
    except Exception as error:  # the border: whatever a foreign library raises becomes a value here
        fault, said, data = fault_of(error, operation), {}, {}
    took = time.monotonic() - began
    return Answer(
        fault=fault,
        status=int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        data=data,
        seconds=took,
        ahead_seconds=_ahead(said, wall + took / 2),
    )


def _ahead(said: dict[str, Any], now: float) -> float | None:
    """The Date header has whole seconds, cut off: half a second is added."""
    date = said.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5 - now
    except ValueError:
        return None


def bucket_region(answer: Answer) -> str | None:
    """The region that an answer of HeadBucket names."""
    headers = answer.data.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    named = headers.get("x-amz-bucket-region") or answer.data.get("BucketRegion")
    return clean(str(named), 64) if named else None
