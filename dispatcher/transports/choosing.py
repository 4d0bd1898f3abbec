"""Which transports a process uses: the lean ones where they can stand for the SDK's, and a word in the log where they cannot."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, TypeVar

import structlog
from msgspec import Struct

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.clients import Clients
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.knowledge import Unfit
from dispatcher.interfaces import Invoker, Stager
from dispatcher.transports.lean import lean_invoker, lean_stager
from dispatcher.transports.sagemaker import SdkInvoker
from dispatcher.transports.staging import SdkStager

log = structlog.get_logger(__name__)

Kind = Literal["lean", "sdk"]
T = TypeVar("T")
S = TypeVar("S")


class Transports(Struct, frozen=True):
    """What hands payloads over. No `stager` where nothing is to be staged."""

    invoker: Invoker
    stager: Stager | None


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
        yield Transports(invoker, staging)
        return
    async with AsyncExitStack() as stack:
        lean = await lean_invoker(stack, opened, connections=connections, deadline=deadline, calls=calls)
        if staging is None:
            yield Transports(_fit("InvokeEndpointAsync", lean, invoker), None)
            return
        put = await lean_stager(stack, opened, staging, connections=connections, deadline=deadline, calls=calls)
        yield Transports(_fit("InvokeEndpointAsync", lean, invoker), _fit("PutObject", put, staging))


def _fit(operation: str, lean: T | Unfit, sdk: S) -> T | S:
    if not isinstance(lean, Unfit):
        return lean
    log.warning("the SDK sends these requests itself, at a higher cost", operation=operation, why=lean.why)
    return sdk
