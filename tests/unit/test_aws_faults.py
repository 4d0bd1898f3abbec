"""Every row of the table of foreign errors."""

import socket
import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from dispatcher.aws.faults import MESSAGE_MAX_CHARS, fault_of, fault_of_part, not_offered
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

INVOKE = "InvokeEndpointAsync"
PUT = "PutObject"
DELETE = "DeleteObjects"
URL = "http://127.0.0.1:1/x"
KEY = ConnectionKey("h", 1, False, True, None, None, None)
GONE = "Endpoint e-1 of account 123456789012 not found."
TOO_LONG = "1 validation error detected: Value at 'body' failed to satisfy constraint: Member must have length less than or equal to 0"

R, T, X, N, U = FaultKind.REFUSED, FaultKind.THROTTLED, FaultKind.TROUBLE, FaultKind.NOT_SENT, FaultKind.UNKNOWN


def answer(
    code: str, status: int, text: str = "no", operation: str = INVOKE, headers: dict[str, str] | None = None
) -> sdk.ClientError:
    metadata: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    return sdk.ClientError({"Error": {"Code": code, "Message": text}, "ResponseMetadata": metadata}, operation)


ANSWERS = [
    ("ValidationError", 400, "bad", INVOKE, R, "validation_error"),
    ("ValidationException", 400, "bad", INVOKE, R, "validation_error"),
    ("ValidationError", 400, GONE, INVOKE, R, "endpoint_missing"),
    ("ValidationError", 400, "Could not find endpoint e-1", INVOKE, R, "endpoint_missing"),
    ("ValidationError", 400, TOO_LONG, INVOKE, R, "inline_refused"),
    ("ValidationError", 400, TOO_LONG.replace("to 0", "to 128000"), INVOKE, R, "inline_refused"),
    ("RequestEntityTooLargeException", 413, "", INVOKE, R, "inline_refused"),
    ("413", 413, "", INVOKE, R, "inline_refused"),
    ("MalformedHttpRequestException", 400, "bad", INVOKE, R, "validation_error"),
    ("418", 418, "", INVOKE, R, "validation_error"),
    ("ThrottlingException", 400, "Rate exceeded", INVOKE, T, "throttled"),
    ("ThrottlingException", 429, "Rate exceeded", INVOKE, T, "throttled"),
    ("TooManyRequestsException", 429, "", INVOKE, T, "throttled"),
    ("429", 429, "", INVOKE, T, "throttled"),
    ("LimitExceededException", 400, "", INVOKE, T, "throttled"),
    ("SlowDown", 503, "", PUT, T, "throttled"),
    ("InternalFailure", 500, "", INVOKE, X, "service_error"),
    ("ServiceUnavailable", 503, "", INVOKE, X, "service_error"),
    ("500", 500, "", INVOKE, X, "service_error"),
    ("503", 503, "", INVOKE, X, "service_error"),
    ("InternalError", 500, "", PUT, X, "service_error"),
    ("BadDigest", 400, "", PUT, X, "service_error"),
    ("RequestTimeout", 400, "", PUT, X, "timeout"),
    ("RequestTimeoutException", 408, "", INVOKE, X, "timeout"),
    ("RequestAbortedException", 400, "", INVOKE, X, "service_error"),
    ("AccessDeniedException", 403, "", INVOKE, X, "access_denied"),
    ("AccessDenied", 403, "", PUT, X, "access_denied"),
    ("NotAuthorized", 401, "", INVOKE, X, "access_denied"),
    ("OptInRequired", 403, "", INVOKE, X, "access_denied"),
    ("403", 403, "", "HeadObject", X, "access_denied"),
    ("ExpiredTokenException", 403, "", INVOKE, X, "credentials"),
    ("ExpiredToken", 400, "", PUT, X, "credentials"),
    ("400", 400, "", "HeadObject", X, "credentials"),
    ("UnrecognizedClientException", 403, "", INVOKE, X, "credentials"),
    ("IncompleteSignature", 403, "", INVOKE, X, "credentials"),
    ("InvalidAccessKeyId", 403, "", PUT, X, "credentials"),
    ("SignatureDoesNotMatch", 403, "", PUT, X, "credentials"),
    ("InvalidSignatureException", 403, "Check your AWS Secret Access Key.", INVOKE, X, "credentials"),
    ("InvalidSignatureException", 403, "Signature expired: T1 is now earlier than T2", INVOKE, X, "clock_skew"),
    ("RequestTimeTooSkewed", 403, "", PUT, X, "clock_skew"),
    ("RequestExpired", 400, "", INVOKE, X, "clock_skew"),
    ("NoSuchBucket", 404, "", PUT, X, "bucket"),
    ("PermanentRedirect", 301, "", PUT, X, "bucket"),
    ("KMS.DisabledException", 400, "", PUT, X, "bucket"),
    ("EntityTooLarge", 400, "", PUT, R, "payload_too_large"),
    ("UnknownOperationException", 404, "", INVOKE, X, "protocol"),
    ("404", 404, "", INVOKE, X, "protocol"),
    ("302", 302, "", INVOKE, X, "protocol"),
    ("502", 502, "", INVOKE, U, "service_error"),
    ("504", 504, "", INVOKE, U, "service_error"),
    ("InternalFailure", 504, "", INVOKE, U, "service_error"),
    ("520", 520, "", INVOKE, U, "service_error"),
]


@pytest.mark.parametrize(("code", "status", "text", "operation", "kind", "reason"), ANSWERS)
def test_an_answer_is_judged_by_code_and_status(
    code: str, status: int, text: str, operation: str, kind: FaultKind, reason: str
) -> None:
    fault = fault_of(answer(code, status, text, operation), operation)
    assert (fault.kind, fault.reason, fault.code) == (kind, FailureReason(reason), code)


def refused() -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused"))


def distrusted() -> aiohttp.ClientConnectorCertificateError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "unable to get local issuer certificate"
    return aiohttp.ClientConnectorCertificateError(KEY, error)


SILENCES: list[tuple[Exception, FaultKind, str]] = [
    (sdk.EndpointConnectionError(endpoint_url=URL, error=refused()), N, "network"),
    (sdk.EndpointConnectionError(endpoint_url=URL, error=socket.gaierror(-2, "unknown name")), N, "network"),
    (sdk.EndpointConnectionError(endpoint_url=URL, error=aiohttp.ClientOSError(104, "reset")), U, "network"),
    (sdk.EndpointConnectionError(endpoint_url=URL, error=aiohttp.ClientConnectionError("?")), U, "network"),
    (sdk.ConnectTimeoutError(endpoint_url=URL, error=aiohttp.ConnectionTimeoutError("connect")), N, "network"),
    (sdk.SSLError(endpoint_url=URL, error=aiohttp.ClientConnectorSSLError(KEY, OSError(1, "tls"))), N, "network"),
    (sdk.SSLError(endpoint_url=URL, error=distrusted()), N, "network"),
    (sdk.HTTPClientError(error=distrusted().certificate_error), N, "network"),
    (sdk.EndpointConnectionError(endpoint_url=URL, error=ssl.SSLError(1, "bad record")), U, "network"),
    (sdk.ProxyConnectionError(proxy_url=URL, error=aiohttp.ClientProxyConnectionError(KEY, OSError(1))), N, "network"),
    (sdk.HTTPClientError(error=aiohttp.InvalidURL("x")), N, "network"),
    (sdk.ConnectionClosedError(endpoint_url=URL, error=aiohttp.ServerDisconnectedError()), U, "network"),
    (sdk.ConnectionClosedError(endpoint_url=URL, error=aiohttp.ClientPayloadError("short")), U, "network"),
    (sdk.ReadTimeoutError(endpoint_url=URL, error=aiohttp.SocketTimeoutError()), U, "timeout"),
    (TimeoutError(), U, "timeout"),
    (ConnectionResetError(104, "reset"), U, "network"),
    (OSError(5, "input/output"), U, "network"),
    (sdk.HTTPClientError(error=ValueError("Newline in secret-value")), R, "validation_error"),
    (sdk.HTTPClientError(error=UnicodeEncodeError("ascii", "secret-value", 0, 1, "no")), R, "validation_error"),
    (sdk.HTTPClientError(error=UnicodeDecodeError("utf-8", b"x", 0, 1, "no")), U, "protocol"),
    (sdk.HTTPClientError(error=RuntimeError("Session is closed")), U, "protocol"),
    (sdk.ParamValidationError(report="Body, value: secret-value, type: int"), R, "validation_error"),
    (ResponseParserError("no XML"), U, "protocol"),
    (sdk.FlexibleChecksumError(error_msg="differs"), U, "protocol"),
    (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), U, "protocol"),
    (sdk.NoCredentialsError(), X, "credentials"),
    (sdk.PartialCredentialsError(provider="env", cred_var="secret"), X, "credentials"),
    (sdk.CredentialRetrievalError(provider="p", error_msg="down"), X, "credentials"),
    (RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."), X, "credentials"),
    (KeyError("what nobody thought of"), U, "protocol"),
]


@pytest.mark.parametrize(("error", "kind", "reason"), SILENCES, ids=lambda value: type(value).__name__)
def test_an_error_without_an_answer_is_judged_by_the_innermost_class(
    error: Exception, kind: FaultKind, reason: str
) -> None:
    fault = fault_of(error, INVOKE)
    assert (fault.kind, fault.reason) == (kind, FailureReason(reason))
    assert "secret-value" not in fault.message
    assert fault.message


def test_an_answer_to_a_credential_provider_is_no_answer_to_the_job() -> None:
    fault = fault_of(answer("ValidationError", 400, operation="AssumeRole"), INVOKE)
    assert (fault.kind, fault.reason) == (X, FailureReason.CREDENTIALS)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"x-amz-retry-after": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "999999"}, 300.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_a_hint_when_to_come_back_is_taken_if_it_is_sane(headers: dict[str, str], seconds: float | None) -> None:
    assert fault_of(answer("ThrottlingException", 400, headers=headers), INVOKE).retry_after_seconds == seconds


def message(text: str) -> Fault:
    return fault_of(answer("ValidationError", 400, text), INVOKE)


def test_a_message_is_one_printable_line_of_bounded_length() -> None:
    fault = message("a\nb\x1b[31m\u202e " + "word " * 5_000)
    assert len(fault.message) <= MESSAGE_MAX_CHARS
    assert fault.message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Signature expired. The Canonical String for this request should have been 'POST\nx-amz-security-token:SECRET'",
        "Value 'SECRET' at 'customAttributes' failed to satisfy constraint",
        "Value 'it's \n SECRET' at 'body' failed to satisfy constraint",
        "key AKIASECRETSECRET0000 is not known",
        "see http://h/p?X-Amz-Security-Token=SECRET now",
        "token " + "SECRET" * 40,
        "407, message='no', url='http://user:SECRET@127.0.0.1:1'",
        "https://SECRET@host and https://u:SECRET@host/p?q",
        "http://u:SEC/SECRET@host:1/x",
        "http://u:x@SECRET@host/x",
    ],
)
def test_a_message_holds_no_payload_and_no_credential(text: str) -> None:
    assert "SECRET" not in message(text).message


@pytest.mark.parametrize(
    "text", ["http://h:80/a@b", "see http://h/a@b and c@d", "s3://bucket/key@x", '{"url": "http://h", "by": "a@b"}']
)
def test_a_message_keeps_what_is_no_user_of_a_url(text: str) -> None:
    assert message(text).message == text


@pytest.mark.parametrize(
    "error", [distrusted(), distrusted().certificate_error], ids=lambda value: type(value).__name__
)
def test_a_certificate_that_cannot_be_trusted_is_named_with_what_to_do(error: Exception) -> None:
    said = fault_of(sdk.HTTPClientError(error=error), INVOKE).message
    assert "its certificate cannot be trusted: unable to get local issuer certificate" in said
    assert "AWS_CA_BUNDLE" in said


def test_a_text_is_a_hint_only_where_it_concerns_the_request() -> None:
    assert fault_of(answer("AccessDeniedException", 403, GONE), INVOKE).reason is FailureReason.ACCESS_DENIED


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("AccessDenied", X, "access_denied"),
        ("SlowDown", T, "throttled"),
        ("InternalError", X, "service_error"),
        ("KMS.DisabledException", X, "bucket"),
        ("NeverHeardOf", U, "service_error"),
    ],
)
def test_the_error_of_a_part_means_what_its_code_does(code: str, kind: FaultKind, reason: str) -> None:
    fault = fault_of_part({"Key": "k", "Code": code, "Message": "no\nway"}, DELETE)
    assert (fault.kind, fault.reason, fault.code, fault.message) == (kind, reason, code, "no way")


@pytest.mark.parametrize(
    ("code", "status", "offered"),
    [
        ("NotImplemented", 501, False),
        ("501", 501, False),
        ("MethodNotAllowed", 405, False),
        ("InvalidRequest", 400, False),
        ("400", 400, False),
        ("ExpiredToken", 400, True),
        ("RequestTimeout", 400, True),
        ("BadDigest", 400, True),
        ("AccessDenied", 403, True),
        ("NoSuchBucket", 404, True),
        ("SlowDown", 503, True),
    ],
)
def test_only_some_answers_say_that_there_is_no_such_operation(code: str, status: int, offered: bool) -> None:
    assert not_offered(answer(code, status, operation=DELETE), DELETE) is not offered
    assert not not_offered(answer(code, status, operation="AssumeRole"), DELETE)
