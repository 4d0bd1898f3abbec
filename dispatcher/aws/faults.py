"""Where errors of the SDK, of the HTTP client and of the system become `Fault`s. No other module reads their classes.

An answer is judged by its code, else by its status; its text is a hint only, for ENDPOINT_MISSING and INLINE_REFUSED.
An error without an answer is judged by the class of the innermost error, because the SDK wraps a refused connection and a
reset after the request was taken into one and the same class. What no rule knows is UNKNOWN: the request may have been
taken. A message of ours never holds a payload, a credential or a session token.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
import aiohttp.http_exceptions
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from dispatcher.aws.codes import CODES, STATUSES, Meaning, prefix_meaning
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

MESSAGE_MAX_CHARS = 500
RETRY_AFTER_MAX_SECONDS = 300.0

_REFUSED = Meaning(FaultKind.REFUSED, FailureReason.VALIDATION_ERROR)
_NOT_SENT = Meaning(FaultKind.NOT_SENT, FailureReason.NETWORK)
_CREDENTIALS = Meaning(FaultKind.TROUBLE, FailureReason.CREDENTIALS)
_BROKEN_OFF = Meaning(FaultKind.UNKNOWN, FailureReason.NETWORK)
_TIMED_OUT = Meaning(FaultKind.UNKNOWN, FailureReason.TIMEOUT)
_GARBAGE = Meaning(FaultKind.UNKNOWN, FailureReason.PROTOCOL)
_GATEWAY = Meaning(FaultKind.UNKNOWN, FailureReason.SERVICE_ERROR)
_ELSEWHERE = Meaning(FaultKind.TROUBLE, FailureReason.PROTOCOL)

_LOCAL: tuple[tuple[tuple[type[BaseException], ...], Meaning], ...] = (
    ((sdk.ParamValidationError,), _REFUSED),
    (
        (
            sdk.NoCredentialsError,
            sdk.PartialCredentialsError,
            sdk.CredentialRetrievalError,
            sdk.MetadataRetrievalError,
            sdk.TokenRetrievalError,
            sdk.SSOError,
            sdk.RefreshWithMFAUnsupportedError,
            sdk.InvalidConfigError,
        ),
        _CREDENTIALS,
    ),
    # A certificate is judged before a byte is sent; other errors of TLS may come at any time.
    (
        (
            sdk.ConnectTimeoutError,
            sdk.SSLError,
            ssl.SSLCertVerificationError,
            sdk.ProxyConnectionError,
            sdk.EndpointProviderError,
        ),
        _NOT_SENT,
    ),
    (
        (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.ClientSSLError,
            aiohttp.ClientProxyConnectionError,
            aiohttp.ClientHttpProxyError,
            aiohttp.InvalidURL,
            socket.gaierror,
            ConnectionRefusedError,
        ),
        _NOT_SENT,
    ),
    ((sdk.ReadTimeoutError, aiohttp.ServerTimeoutError, asyncio.TimeoutError, TimeoutError), _TIMED_OUT),
    (
        (
            aiohttp.ClientResponseError,
            aiohttp.http_exceptions.HttpProcessingError,
            ResponseParserError,
            sdk.FlexibleChecksumError,
            sdk.IncompleteReadError,
            UnicodeDecodeError,
        ),
        _GARBAGE,
    ),
    ((aiohttp.ClientError, sdk.ConnectionClosedError, sdk.ResponseStreamingError, OSError), _BROKEN_OFF),
)
"""First match counts. The wrapped error is asked before the one that wraps it."""

_SIGNATURE_EXPIRED = re.compile(r"expired|not yet current", re.IGNORECASE)
_ENDPOINT_MISSING = re.compile(
    r"\bendpoint\b.{0,300}\b(?:not found|does not exist)\b|could not find (?:the )?endpoint", re.IGNORECASE
)
_INLINE_REFUSED = re.compile(r"'body' failed to satisfy constraint\b.{0,100}\bless than or equal to \d", re.IGNORECASE)

_USER = re.compile(r'(?<=://)(?:[^\s/?#"]*|[^\s/?#:@"]*:(?!\d{1,5}[/?#])[^\s@"]{0,256})@')
"""User and password of a URL, also where a password holds a `/` that should have been quoted."""
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"The (?:Canonical String|String-to-Sign)\b.*", re.IGNORECASE | re.DOTALL),
        "(what was signed is left out)",
    ),
    (_USER, "***@"),
    (re.compile(r"Value '.*?' at '", re.IGNORECASE | re.DOTALL), "Value at '"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), "(access key)"),
    (re.compile(r"(?<=\?)\S*X-Amz-\S*", re.IGNORECASE), "(query left out)"),
    (re.compile(r"[A-Za-z0-9+/=_%-]{120,}"), "(long value left out)"),
)


def fault_of(error: Exception, operation: str) -> Fault:
    """What the error of a call of `operation` means."""
    if isinstance(error, sdk.ClientError):
        return _of_answer(error, operation)
    inner = _inner(error)
    kind, reason = _of_silence(error, inner)
    return Fault(kind=kind, reason=reason, code=type(inner).__name__, message=_local_message(inner))


def fault_of_part(said: Mapping[str, Any], operation: str) -> Fault:
    """What the `Code` and `Message` mean that a good answer gives to a part of its request; such a part has no status."""
    return _of_answer(sdk.ClientError({"Error": dict(said)}, operation), operation)


def not_offered(error: sdk.ClientError, operation: str) -> bool:
    """Whether an S3 that has no such operation answers so: 501, 405, or a 400 that no rule knows to be about something else."""
    if error.operation_name != operation:
        return False  # a credential provider's
    refused = status_of(error) == 400 and fault_of(error, operation).kind is FaultKind.REFUSED
    return refused or status_of(error) in {405, 501}


def protocol_fault(code: str, message: str) -> Fault:
    """An answer that cannot be trusted: the request may have been taken."""
    return Fault(kind=FaultKind.UNKNOWN, reason=FailureReason.PROTOCOL, code=code, message=clean(message))


def clean(text: str, limit: int = MESSAGE_MAX_CHARS) -> str:
    """`text` on one line, printable, without secrets, at most `limit` characters."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text[: 20 * limit])
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def distrust_text(error: ssl.SSLCertVerificationError) -> str:
    """Why a certificate was not taken, and what may be done about it."""
    why = clean(getattr(error, "verify_message", "") or str(error), 200)
    return f"its certificate cannot be trusted: {why}; for an authority of your own, name its bundle in AWS_CA_BUNDLE"


def status_of(error: sdk.ClientError) -> int:
    """The HTTP status of an answer, 0 where there is none."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0


def code_of(error: sdk.ClientError) -> str:
    """The service's code; the status as text where the answer names none."""
    return str(error.response.get("Error", {}).get("Code") or status_of(error))


# --- answers ---------------------------------------------------------------------------------------------------------


def _of_answer(error: sdk.ClientError, operation: str) -> Fault:
    code, status = code_of(error), status_of(error)
    text = str(error.response.get("Error", {}).get("Message") or error.response.get("Message") or "")
    meaning = _meaning(error, operation, code, status)
    return Fault(
        kind=meaning.kind,
        reason=_hinted(meaning, code, status, text, operation),
        code=clean(code, 100),
        message=clean(text) or f"{operation} was answered with status {status} and no text",
        retry_after_seconds=_retry_after(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})),
    )


def _meaning(error: sdk.ClientError, operation: str, code: str, status: int) -> Meaning:
    if error.operation_name not in {operation, "HeadBucket"}:
        return _CREDENTIALS  # the call that failed is one of a credential provider's, such as AssumeRole
    if operation == "HeadObject" and code == "400":
        return _CREDENTIALS  # an answer to HEAD has no body; an expired token is the 400 that S3 has for it
    if status in {502, 504}:
        return _GATEWAY  # whatever a gateway says, what stands behind it may have taken the request
    known = CODES.get(code) or prefix_meaning(code) or STATUSES.get(status)
    return known or _by_class_of_status(status)


def _by_class_of_status(status: int) -> Meaning:
    if 400 <= status < 500:
        return _REFUSED
    return _ELSEWHERE if 300 <= status < 400 else _GATEWAY


def _hinted(meaning: Meaning, code: str, status: int, text: str, operation: str) -> FailureReason:
    """The reason, made more exact by the text where the service has one code for several things."""
    if code.startswith("InvalidSignature") and _SIGNATURE_EXPIRED.search(text):
        return FailureReason.CLOCK_SKEW
    if meaning.kind is not FaultKind.REFUSED or operation != "InvokeEndpointAsync":
        return meaning.reason
    if status == 413 or _INLINE_REFUSED.search(text):
        return FailureReason.INLINE_REFUSED
    if code.startswith("Validation") and _ENDPOINT_MISSING.search(text):
        return FailureReason.ENDPOINT_MISSING
    return meaning.reason


def _retry_after(headers: Mapping[str, str]) -> float | None:
    hints = ((headers.get("x-amz-retry-after"), 0.001), (headers.get("retry-after"), 1.0))
    for text, scale in hints:
        if text is not None and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
            return min(float(text) * scale, RETRY_AFTER_MAX_SECONDS)
    return None


# --- no answer -------------------------------------------------------------------------------------------------------


def _inner(error: Exception) -> Exception:
    """The error that the SDK wrapped, or the error itself."""
    wrapped = getattr(error, "kwargs", {}).get("error")
    return wrapped if isinstance(wrapped, Exception) else error


def _of_silence(error: Exception, inner: Exception) -> Meaning:
    if _is_unsendable(error, inner):
        return _REFUSED
    if isinstance(inner, RuntimeError) and "credentials" in str(inner).lower():
        return (
            _CREDENTIALS  # the SDK's own words for credentials that a refresh brought expired; it has no class for it
        )
    for candidate in (inner, error):
        for classes, meaning in _LOCAL:
            if isinstance(candidate, classes):
                return meaning
    return _GARBAGE


def _is_unsendable(error: Exception, inner: Exception) -> bool:
    """A header value that the HTTP client refuses to write (line break, not encodable): raised before a byte is sent."""
    return isinstance(error, sdk.HTTPClientError) and type(inner) in {ValueError, UnicodeEncodeError}


def _local_message(inner: Exception) -> str:
    if isinstance(inner, aiohttp.ClientConnectorCertificateError) and isinstance(
        inner.certificate_error, ssl.SSLCertVerificationError
    ):
        return clean(f"{inner.host}:{inner.port} was not connected to: {distrust_text(inner.certificate_error)}")
    if isinstance(inner, ssl.SSLCertVerificationError):
        return clean(f"not connected: {distrust_text(inner)}")
    if isinstance(inner, (ValueError, sdk.ParamValidationError)) and not isinstance(inner, aiohttp.InvalidURL):
        return "a parameter cannot be sent as it is"  # the texts of these repeat the value
    return clean(f"{type(inner).__name__}: {_text(inner)}")


def _text(inner: Any) -> str:
    return "no answer within the deadline" if isinstance(inner, TimeoutError) and not str(inner) else str(inner)
