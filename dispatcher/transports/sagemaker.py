"""InvokeEndpointAsync through the SDK: one request, one receipt or one fault."""

from functools import partial
from typing import Any

from msgspec.structs import replace

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.faults import protocol_fault
from dispatcher.aws.locations import Location, parse_location
from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import FailureReason, Receipt

ACCEPTED_STATUS = 202

PARAMETERS = {
    "endpoint": "EndpointName",
    "inference_id": "InferenceId",
    "filename": "Filename",
    "output_path_extension": "S3OutputPathExtension",
    "content_type": "ContentType",
    "accept": "Accept",
    "custom_attributes": "CustomAttributes",
    "request_ttl_seconds": "RequestTTLSeconds",
    "invocation_timeout_seconds": "InvocationTimeoutSeconds",
    "body": "Body",
    "input_location": "InputLocation",
}
"""The SDK's name of each field of an Invocation."""


class SdkInvoker:
    """An Invoker on a client of sagemaker-runtime whose own retries are off."""

    def __init__(self, client: Any, *, deadline: Deadline = DEFAULT_DEADLINE, calls: Calls = QUIET) -> None:
        self._client = client
        self._deadline = deadline
        self._calls = calls

    async def invoke(self, invocation: Invocation) -> Receipt | Fault:
        """See Invoker. Without a body, a 413 or a refusal that speaks of the body is an ordinary VALIDATION_ERROR."""
        seconds = self._deadline.seconds(len(invocation.body or b""))
        outcome = await self._calls.send("InvokeEndpointAsync", seconds, partial(self._request, invocation))
        if isinstance(outcome, Fault) and invocation.body is None:
            return _without_inline(outcome)
        return outcome

    async def _request(self, invocation: Invocation) -> Receipt | Fault:
        answer = await self._client.invoke_endpoint_async(**parameters(invocation))
        return receipt(answer, invocation.inference_id)


def parameters(invocation: Invocation) -> dict[str, Any]:
    """The call's parameters as the SDK names them; None fields are left out."""
    given = {name: getattr(invocation, field) for field, name in PARAMETERS.items()}
    return {name: value for name, value in given.items() if value is not None}


def receipt(answer: dict[str, Any], inference_id: str) -> Receipt | Fault:
    """What the answer promises, or PROTOCOL where it is no answer to this request.

    A failure location that cannot be read is left out: the job's output can still be waited for.
    """
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    if status != ACCEPTED_STATUS:
        return protocol_fault("UnexpectedStatus", f"status {status} where {ACCEPTED_STATUS} belongs")
    if answer.get("InferenceId") != inference_id:
        return protocol_fault("WrongInferenceId", "the answer does not name the inference id that was sent")
    output, failure = answer.get("OutputLocation") or "", answer.get("FailureLocation") or ""
    if not isinstance(parse_location(output), Location):
        return protocol_fault("NoOutputLocation", "the answer names no output location that can be read")
    return Receipt(output, failure if isinstance(parse_location(failure), Location) else None)


def _without_inline(fault: Fault) -> Fault:
    if fault.reason is not FailureReason.INLINE_REFUSED:
        return fault
    return replace(fault, reason=FailureReason.VALIDATION_ERROR)
