"""InvokeEndpointAsync and PutObject without the SDK's machinery for each call, with all of the SDK's knowledge.

`lean_invoker` and `lean_stager` find out from the SDK's clients what they need, and compare a first request with the SDK's
own; `Unfit` says why the SDK has to send itself. Each then is what the SDK's transport is, in outcomes, metrics and
deadlines. Two things differ: an invocation follows no redirect, since its signature is for nobody else; and credentials are
used to their end while their provider is down (see `credentials`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from io import BytesIO
from time import monotonic
from typing import Any

import structlog
from msgspec import Struct
from msgspec.structs import replace

from dispatcher.aws import knowledge
from dispatcher.aws.bodies import Guard, Upload, big, guard, is_small, open_payload, small
from dispatcher.aws.calls import QUIET, Calls, Operation, word
from dispatcher.aws.clients import Clients
from dispatcher.aws.credentials import Credentials
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline, spend
from dispatcher.aws.faults import fault_of
from dispatcher.aws.http import Answer, Pool, Request
from dispatcher.aws.knowledge import Rehearsed, Unfit
from dispatcher.aws.locations import Location
from dispatcher.aws.replies import SdkParser, is_elsewhere, is_stored, plain_receipt, receipt, without_inline
from dispatcher.aws.requests import InvokeRequests, PutRequests, key_path, unwritable
from dispatcher.aws.signing import Keys
from dispatcher.aws.uploads import PayloadGoneError, SliceReader
from dispatcher.interfaces import Fault, FaultKind, FileSlice, Invocation
from dispatcher.model import EndpointName, FailureReason, InferenceId, Receipt
from dispatcher.transports.sagemaker import parameters
from dispatcher.transports.staging import SdkStager, gone

log = structlog.get_logger(__name__)

_UNWRITABLE = Fault(
    kind=FaultKind.REFUSED,
    reason=FailureReason.VALIDATION_ERROR,
    code="ValueError",
    message="a parameter cannot be sent as it is",
)


class Wire(Struct, frozen=True, kw_only=True):
    """How the requests of one operation travel: in this time, over these connections, signed with these keys by this clock.

    Answers that say more than usual go to the parser; `calls` are told of each request.
    """

    operation: Operation
    pool: Pool
    credentials: Credentials
    parser: SdkParser
    deadline: Deadline
    calls: Calls
    now: Callable[[], float] = time.time

    async def renewed(self, seconds: float) -> tuple[Keys, float] | Fault:
        """Waits for credentials that are valid; they, and the seconds left, or the fault if there are none."""
        return await _renewed(self.credentials, self.operation, seconds)

    async def parsed(self, answer: Answer, keys: Keys) -> dict[str, Any] | Fault:
        """What the SDK makes of the answer to a request with these keys; they are asked for anew if it refuses them."""
        parsed = await self.parser.parse(answer)
        if isinstance(parsed, Fault) and parsed.reason is FailureReason.CREDENTIALS:
            self.credentials.distrust(keys)
        return parsed


# --- InvokeEndpointAsync ---------------------------------------------------------------------------------------------

_REHEARSAL = Invocation(
    endpoint=EndpointName("rehearsal"),
    inference_id=InferenceId("rehearsal"),
    filename="rehearsal.out",
    output_path_extension="rehearsal/0",
    content_type="text/plain",
    accept="text/plain",
    custom_attributes="rehearsal",
    request_ttl_seconds=60,
    invocation_timeout_seconds=1,
    body=b"rehearsal",
    input_location=None,
)


class LeanInvoker:
    """An Invoker on a pool of connections."""

    def __init__(self, requests: InvokeRequests, wire: Wire) -> None:
        self._requests = requests
        self._wire = wire

    async def invoke(self, invocation: Invocation) -> Receipt | Fault:
        """See Invoker. Without a body, a 413 or a refusal that speaks of the body is an ordinary VALIDATION_ERROR."""
        # As `Calls.watch` does, with one coroutine less for every job.
        calls, started = self._wire.calls, monotonic()
        calls.began("InvokeEndpointAsync")
        try:
            outcome = await self._send(invocation)
        finally:
            calls.over("InvokeEndpointAsync")
        calls.observe("InvokeEndpointAsync", word(outcome), monotonic() - started)
        return without_inline(outcome) if isinstance(outcome, Fault) and invocation.body is None else outcome

    async def _send(self, it: Invocation) -> Receipt | Fault:
        if unwritable(it.endpoint, it.inference_id, it.filename, it.output_path_extension, it.input_location):
            return _UNWRITABLE
        if unwritable(it.content_type, it.accept, it.custom_attributes):
            return _UNWRITABLE
        wire, seconds = self._wire, self._wire.deadline.seconds(len(it.body or b""))
        keys = wire.credentials.current()
        if keys is None:
            renewed = await wire.renewed(seconds)
            if isinstance(renewed, Fault):
                return renewed
            keys, seconds = renewed
        try:
            answer = await wire.pool.send(partial(self._make, it), seconds)
        except Exception as error:  # nothing is known to raise here, and a job must not pay for what is not known
            return fault_of(error, "InvokeEndpointAsync")
        if isinstance(answer, Fault):
            return answer
        return plain_receipt(answer, it.inference_id) or await self._odd(answer, it.inference_id, keys)

    def _make(self, invocation: Invocation) -> Request:
        return self._requests.build(invocation, self._wire.credentials.latest(), self._wire.now())

    async def _odd(self, answer: Answer, inference_id: str, keys: Keys) -> Receipt | Fault:
        parsed = await self._wire.parsed(answer, keys)
        return parsed if isinstance(parsed, Fault) else receipt(parsed, inference_id)


async def lean_invoker(
    stack: AsyncExitStack,
    opened: Clients,
    *,
    connections: int,
    deadline: Deadline = DEFAULT_DEADLINE,
    calls: Calls = QUIET,
) -> LeanInvoker | Unfit:
    """Opens the invoker; `stack` closes it."""
    client, credentials = opened.sagemaker, opened.credentials
    call = partial(client.invoke_endpoint_async, **parameters(_REHEARSAL))
    rehearsed = await _rehearsed(client, credentials, "/endpoints/rehearsal/async-invocations", call)
    if isinstance(rehearsed, Unfit):
        return rehearsed
    requests = InvokeRequests(rehearsed.target)
    ours = requests.build(_REHEARSAL, credentials.latest(), rehearsed.signed_at)
    pool = await _pool(stack, client, opened.ca_bundle, rehearsed, ours, connections)
    if isinstance(pool, Unfit):
        return pool
    wire = Wire(
        operation="InvokeEndpointAsync",
        pool=pool,
        credentials=credentials,
        parser=SdkParser(client, "sagemaker-runtime", "InvokeEndpointAsync"),
        deadline=deadline,
        calls=calls,
    )
    return LeanInvoker(requests, wire)


# --- PutObject -------------------------------------------------------------------------------------------------------


class LeanStager:
    """A Stager on a pool of connections to one bucket; what is not a PUT goes through `sdk`, the SDK's own.

    `_elsewhere` is set by the first answer that says that the bucket has to be looked for. The SDK knows how, and puts from
    then on.
    """

    def __init__(self, sdk: SdkStager, requests: PutRequests, how: Guard, wire: Wire) -> None:
        self._sdk = sdk
        self._requests = requests
        self._guard = how
        self._wire = wire
        self._elsewhere = False

    async def stage(self, key: str, payload: bytes | FileSlice, content_type: str | None) -> str | Fault:
        """See Stager."""
        if not self._elsewhere:
            outcome = await self._stage(key, payload, content_type)
            if isinstance(outcome, str) or not self._elsewhere:
                return outcome
        return await self._sdk.stage(key, payload, content_type)

    async def discard(self, keys: Sequence[str]) -> dict[str, Fault]:
        """See Stager."""
        return await self._sdk.discard(keys)

    async def _stage(self, key: str, payload: bytes | FileSlice, content_type: str | None) -> str | Fault:
        at, deadline = self._sdk.at(key), self._wire.deadline
        if isinstance(payload, bytes):
            return await self._watched(at, payload, content_type, deadline.seconds(len(payload)))
        seconds = deadline.seconds(payload.length)
        try:
            opened, seconds = await spend(seconds, asyncio.to_thread(open_payload, payload))
        except OSError as error:  # a disk that fails, or hangs
            return gone(str(error)) if isinstance(error, PayloadGoneError) else _unsent(error, "PutObject")
        with nullcontext() if isinstance(opened, bytes) else opened:
            outcome = await self._watched(at, opened, content_type, seconds)
            lost = isinstance(opened, SliceReader) and opened.gone
            return gone("it became shorter while it was being sent") if lost else outcome

    def _watched(
        self, at: Location, payload: bytes | SliceReader, typed: str | None, seconds: float
    ) -> Awaitable[str | Fault]:
        return self._wire.calls.watch("PutObject", self._put(at, payload, typed, seconds))

    async def _put(self, at: Location, payload: bytes | SliceReader, typed: str | None, seconds: float) -> str | Fault:
        if unwritable(typed):
            return _UNWRITABLE
        wire = self._wire
        keys = wire.credentials.current()
        if keys is None:
            renewed = await wire.renewed(seconds)
            if isinstance(renewed, Fault):
                return renewed
            keys, seconds = renewed
        try:
            if is_small(payload):
                prepared = small(payload, self._guard)
            else:
                prepared, seconds = await spend(seconds, big(payload, self._guard))
        except OSError as error:  # a disk that fails, or hangs
            return _unsent(error, "PutObject")
        return await self._send(at, typed, prepared, keys, seconds)

    async def _send(self, at: Location, typed: str | None, prepared: Upload, keys: Keys, seconds: float) -> str | Fault:
        try:
            answer = await self._wire.pool.send(partial(self._make, at.key, typed, prepared), seconds)
        except Exception as error:  # what reading the payload raises comes through here, in the middle of the request
            return fault_of(error, "PutObject")
        if isinstance(answer, Fault):
            return answer
        return at.uri if is_stored(answer) else await self._odd(answer, at.uri, keys)

    def _make(self, key: str, content_type: str | None, prepared: Upload) -> Request:
        return self._requests.build(key, content_type, prepared, self._wire.credentials.latest(), self._wire.now())

    async def _odd(self, answer: Answer, uri: str, keys: Keys) -> str | Fault:
        parsed = await self._wire.parsed(answer, keys)
        if is_elsewhere(answer, parsed):
            self._elsewhere = True
            log.warning("the staging bucket is not where the SDK looked first; the SDK puts from now on")
        return parsed if isinstance(parsed, Fault) else uri


async def lean_stager(
    stack: AsyncExitStack,
    opened: Clients,
    sdk: SdkStager,
    *,
    connections: int,
    deadline: Deadline = DEFAULT_DEADLINE,
    calls: Calls = QUIET,
) -> LeanStager | Unfit:
    """Opens a stager that puts what `sdk` would put; `stack` closes it."""
    credentials = opened.credentials
    at, payload, typed = sdk.at("rehearsal"), b"rehearsal", "text/plain"
    call = partial(sdk.upload, at, BytesIO(payload), typed)
    rehearsed = await _rehearsed(opened.s3, credentials, key_path(at.key), call)
    if isinstance(rehearsed, Unfit):
        return rehearsed
    requests, how = PutRequests(rehearsed.target, rehearsed.headers), guard(rehearsed)
    ours = requests.build(at.key, typed, small(payload, how), credentials.latest(), rehearsed.signed_at)
    pool = await _pool(stack, opened.s3, opened.ca_bundle, rehearsed, ours, connections)
    if isinstance(pool, Unfit):
        return pool
    wire = Wire(
        operation="PutObject",
        pool=pool,
        credentials=credentials,
        parser=SdkParser(opened.s3, "s3", "PutObject"),
        deadline=deadline,
        calls=calls,
    )
    return LeanStager(sdk, requests, how, wire)


# --- both ------------------------------------------------------------------------------------------------------------


async def _rehearsed(client: Any, credentials: Credentials, resource: str, call: knowledge.Call) -> Rehearsed | Unfit:
    """A request of the SDK's, and the credentials it was signed with at hand."""
    rehearsed = await knowledge.rehearse(client, resource, call)
    keys = await _renewed(credentials, "rehearsal", knowledge.REHEARSAL_SECONDS)
    return Unfit(f"the credentials are not to be had: {keys.message}") if isinstance(keys, Fault) else rehearsed


async def _pool(
    stack: AsyncExitStack, client: Any, ca_bundle: str | None, theirs: Rehearsed, ours: Request, connections: int
) -> Pool | Unfit:
    """Connections to where the SDK would send, if our request is the SDK's."""
    found = knowledge.unlike(ours, theirs) or await knowledge.origin(client, theirs.url, ca_bundle)
    if isinstance(found, Unfit):
        return found
    pool = Pool(found, connections=connections)
    stack.push_async_callback(pool.aclose)
    return pool


async def _renewed(credentials: Credentials, operation: str, seconds: float) -> tuple[Keys, float] | Fault:
    """Waits for credentials that are valid; they, and the seconds left, or the fault if there are none."""
    try:
        _, left = await spend(seconds, credentials.get_frozen_credentials())
    except Exception as error:  # the border: whatever a provider raises becomes a value here
        return _unsent(error, operation)
    return credentials.latest(), left


def _unsent(error: Exception, operation: str) -> Fault:
    fault = fault_of(error, operation)
    return replace(fault, kind=FaultKind.NOT_SENT) if fault.kind is FaultKind.UNKNOWN else fault
