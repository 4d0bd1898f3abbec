"""Which transports a process uses: the lean ones where they can stand for the SDK's; where they cannot, the SDK's, and why."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from msgspec import Struct

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.clients import Clients
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.knowledge import Unfit
from dispatcher.interfaces import Invoker, Stager
from dispatcher.transports.lean import lean_invoker, lean_stager
from dispatcher.transports.sagemaker import SdkInvoker
from dispatcher.transports.staging import SdkStager

Kind = Literal["lean", "sdk"]


class Transports(Struct, frozen=True):
    """What hands payloads over. No `stager` where nothing is to be staged.

    `unfit`: operations whose requests the SDK sends itself though the lean transports were asked for, and why.
    """

    invoker: Invoker
    stager: Stager | None
    unfit: Mapping[str, str]


@asynccontextmanager
async def transports(
    kind: Kind,
    opened: Clients,
    staging: SdkStager | None,
    *,
    connections: int,
    deadline: Deadline = DEFAULT_DEADLINE,
    calls: Calls = QUIET,
) -> AsyncIterator[Transports]:
    """Opens transports of that kind, at most `connections` to each service. `staging` is the SDK's stager, set up."""
    invoker = SdkInvoker(opened.sagemaker, deadline=deadline, calls=calls)
    if kind == "sdk":
        yield Transports(invoker, staging, {})
        return
    async with AsyncExitStack() as stack:
        lean = await lean_invoker(stack, opened, connections=connections, deadline=deadline, calls=calls)
        put = staging and await lean_stager(
            stack, opened, staging, connections=connections, deadline=deadline, calls=calls
        )
        made = {"InvokeEndpointAsync": lean, "PutObject": put}
        yield Transports(
            invoker if isinstance(lean, Unfit) else lean,
            staging if isinstance(put, Unfit) else put,
            {operation: found.why for operation, found in made.items() if isinstance(found, Unfit)},
        )
