"""InvokeEndpointAsync through the SDK: one request, one receipt or one fault."""

from functools import partial
from typing import Any

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.replies import receipt, without_inline
from dispatcher.interfaces import Fault, Invocation
from dispatcher.model import Receipt

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
            return without_inline(outcome)
        return outcome

    async def _request(self, invocation: Invocation) -> Receipt | Fault:
        answer = await self._client.invoke_endpoint_async(**parameters(invocation))
        return receipt(answer, invocation.inference_id)


def parameters(invocation: Invocation) -> dict[str, Any]:
    """The call's parameters as the SDK names them; None fields are left out."""
    given = {name: getattr(invocation, field) for field, name in PARAMETERS.items()}
    return {name: value for name, value in given.items() if value is not None}
