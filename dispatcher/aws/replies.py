"""What answers to InvokeEndpointAsync and to PutObject mean.

The answer that nearly all requests get is read here: a 202 that names the job and its output, a 200 without a word. Any
other goes through the SDK's own parser and becomes the error that the SDK would have raised, which `faults` judges. So both
paths have one table of codes, and one idea of where a code stands in an answer.
"""

from typing import Any

import msgspec
from botocore.awsrequest import HeadersDict
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from msgspec import Struct
from msgspec.structs import replace

from dispatcher.aws.faults import fault_of, protocol_fault
from dispatcher.aws.http import Answer
from dispatcher.aws.locations import names_object
from dispatcher.interfaces import Fault
from dispatcher.model import FailureReason, Receipt

ACCEPTED_STATUS = 202
STORED_STATUS = 200

_REDIRECTS = range(300, 400)
_ELSEWHERE = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}


class _Body(Struct):
    inference_id: str = msgspec.field(name="InferenceId")


_decode = msgspec.json.Decoder(_Body).decode


class SdkParser:
    """Answers to one operation as a client of the SDK understands them."""

    def __init__(self, client: Any, service: str, operation: str) -> None:
        self._client = client
        self._operation = operation
        self._model = client.meta.service_model.operation_model(operation)
        self._parser = create_parser(client.meta.service_model.resolved_protocol)
        self._event = f"before-parse.{service}.{operation}"

    async def parse(self, answer: Answer) -> dict[str, Any] | Fault:
        """What the SDK would return, or the fault that its error would be."""
        try:
            return await self._parsed(answer)
        except Exception as error:  # the border: an error answer, or whatever an answer makes of the parser
            return fault_of(error, self._operation)

    async def _parsed(self, answer: Answer) -> dict[str, Any]:
        seen = {
            "headers": HeadersDict(answer.headers),
            "status_code": answer.status,
            "body": answer.body,
            "context": {"operation_name": self._operation},
        }
        # Handlers of S3 find errors here that come with a status of 200.
        hook = {"operation_model": self._model, "response_dict": seen, "customized_response_dict": {}}
        await self._client.meta.events.emit(self._event, **hook)
        parsed: dict[str, Any] = self._parser.parse(seen, self._model.output_shape)
        if seen["status_code"] < 300:
            return parsed
        shape = self._client.meta.service_model.shape_for_error_code(parsed.get("Error", {}).get("Code"))
        if shape is not None:
            parsed.update(self._parser.parse(seen, shape))
        raise ClientError(parsed, self._operation)


# --- InvokeEndpointAsync ---------------------------------------------------------------------------------------------


def plain_receipt(answer: Answer, inference_id: str) -> Receipt | None:
    """The receipt of a 202 in which nothing is odd; None: ask the SDK's parser."""
    if answer.status != ACCEPTED_STATUS:
        return None
    try:
        named = _decode(answer.body).inference_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    headers = answer.headers
    output, failure = headers.get("x-amzn-sagemaker-outputlocation"), headers.get("x-amzn-sagemaker-failurelocation")
    outcome = _receipt(named, inference_id, output or "", failure or "")
    return outcome if isinstance(outcome, Receipt) else None


def receipt(answer: dict[str, Any], inference_id: str) -> Receipt | Fault:
    """What the SDK's answer promises, or PROTOCOL where it is no answer to this request.

    A failure location that cannot be read is left out: the job's output can still be waited for.
    """
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    if status != ACCEPTED_STATUS:
        return protocol_fault("UnexpectedStatus", f"status {status} where {ACCEPTED_STATUS} belongs")
    output, failure = answer.get("OutputLocation") or "", answer.get("FailureLocation") or ""
    return _receipt(answer.get("InferenceId"), inference_id, output, failure)


def _receipt(named: str | None, inference_id: str, output: str, failure: str) -> Receipt | Fault:
    if named != inference_id:
        return protocol_fault("WrongInferenceId", "the answer does not name the inference id that was sent")
    if not names_object(output):
        return protocol_fault("NoOutputLocation", "the answer names no output location that can be read")
    return Receipt(output, failure if names_object(failure) else None)


def without_inline(fault: Fault) -> Fault:
    """The fault of a request without a body: what speaks of the body is an ordinary refusal then."""
    if fault.reason is not FailureReason.INLINE_REFUSED:
        return fault
    return replace(fault, reason=FailureReason.VALIDATION_ERROR)


# --- PutObject -------------------------------------------------------------------------------------------------------


def is_stored(answer: Answer) -> bool:
    """A 200 in which nothing is odd; else ask the SDK's parser."""
    return answer.status == STORED_STATUS and not answer.body


def is_elsewhere(answer: Answer, outcome: object) -> bool:
    """Whether the bucket is to be looked for in another region, or under another name."""
    return answer.status in _REDIRECTS or (isinstance(outcome, Fault) and outcome.code in _ELSEWHERE)
