"""One request to AWS: bounded in time, counted, timed, its errors turned into values.

Everything that talks to AWS through the SDK goes through `Calls.send`; `Calls.watch` tells of what goes another way. They
raise nothing but cancellation; a cancelled call is not observed, because it has no outcome. Hooks of the SDK tell how far a
call has come, so that one that failed before it was given to the network, such as one whose credentials could not be had in
time, is known not to have been sent.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from enum import Enum
from time import monotonic
from typing import Any, Literal, TypeVar, cast

from botocore.exceptions import ClientError
from msgspec import Struct
from msgspec.structs import replace

from dispatcher.aws.faults import fault_of
from dispatcher.interfaces import Fault, FaultKind

Operation = Literal[
    "InvokeEndpointAsync", "PutObject", "DeleteObjects", "DeleteObject", "ListObjectsV2", "HeadObject", "GetObject"
]

T = TypeVar("T")

Request = Callable[[], Awaitable[T | Fault]]
"""Makes one request, and may find its answer to be a fault."""

Missing = Callable[[ClientError], bool]
"""Whether an error answer means that what was asked for is not there."""

Observe = Callable[[Operation, str, float], None]
"""Takes a request's operation, its outcome (`ok`, `missing` or a FaultKind) and its seconds; must not wait."""

Note = Callable[[Operation], None]
"""Is told that a request of this operation begins, or is over, however; must not wait."""


def unobserved(operation: Operation, outcome: str, seconds: float) -> None:
    """An Observe that looks away."""


def unnoted(operation: Operation) -> None:
    """A Note that looks away."""


class Calls(Struct, frozen=True):
    """Sends requests, and tells of each."""

    observe: Observe = unobserved
    began: Note = unnoted
    over: Note = unnoted

    async def send(self, operation: Operation, seconds: float, request: Request[T]) -> T | Fault:
        """Makes the request within `seconds`."""
        # No answer means "not there" to `_never`, so None is out of the question.
        return cast(T | Fault, await self.find(operation, seconds, request, _never))

    async def find(
        self, operation: Operation, seconds: float, request: Request[T], missing: Missing
    ) -> T | Fault | None:
        """As `send`; None where `missing` says that the answer means so."""
        return await self.watch(operation, _attempt(operation, seconds, request, missing))

    async def watch(self, operation: Operation, request: Awaitable[T]) -> T:
        """Tells of a request that sees to its own deadline and raises nothing but cancellation."""
        started = monotonic()
        self.began(operation)
        try:
            outcome = await request
        finally:
            self.over(operation)
        self.observe(operation, word(outcome), monotonic() - started)
        return outcome


QUIET = Calls()


class _Stage(Enum):
    """How far a call has come. A client without our hooks says nothing: then it may have been sent."""

    UNTOLD = "untold"
    PREPARING = "preparing"
    SENDING = "sending"


class _Progress:
    """The stage of one call; written by the hooks, in the call's own task, and read when it has failed."""

    __slots__ = ("stage",)

    def __init__(self) -> None:
        self.stage = _Stage.UNTOLD


_progress: ContextVar[_Progress] = ContextVar("progress")


def watch(client: Any, service: str) -> None:
    """Lets the client tell how far its calls have come; `service` is its id in names of the SDK's events."""
    client.meta.events.register(f"provide-client-params.{service}", _preparing)
    client.meta.events.register(f"before-send.{service}", _sending)


def _preparing(**_: Any) -> None:
    _tell(_Stage.PREPARING)


def _sending(**_: Any) -> None:
    _tell(_Stage.SENDING)


def _tell(stage: _Stage) -> None:
    progress = _progress.get(None)
    if progress is not None:
        progress.stage = stage


async def _attempt(
    operation: Operation,
    seconds: float,
    request: Request[T],
    missing: Missing,
) -> T | Fault | None:
    progress = _Progress()
    token = _progress.set(progress)
    try:
        async with asyncio.timeout(seconds):
            return await request()
    except ClientError as error:
        return None if missing(error) else fault_of(error, operation)
    except Exception as error:  # the border: whatever a foreign library raises becomes a value here
        return _as_sent(fault_of(error, operation), progress)
    finally:
        _progress.reset(token)


def _as_sent(fault: Fault, progress: _Progress) -> Fault:
    unsent = fault.kind is FaultKind.UNKNOWN and progress.stage is _Stage.PREPARING
    return replace(fault, kind=FaultKind.NOT_SENT) if unsent else fault


def _never(error: ClientError) -> bool:
    return False


def word(outcome: object) -> str:
    """What an outcome is called where it is observed."""
    if isinstance(outcome, Fault):
        return outcome.kind.value
    return "missing" if outcome is None else "ok"
