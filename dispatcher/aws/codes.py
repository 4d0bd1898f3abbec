"""What the error codes of InvokeEndpointAsync and of S3 mean, as a table; statuses where an answer has no code of ours.

Codes are those of the service models, the common errors of SageMaker Runtime, and the error list of S3. A code is asked
before the status. 4xx that stand in neither table are about the request (REFUSED).
"""

from typing import NamedTuple

from dispatcher.interfaces import FaultKind
from dispatcher.model import FailureReason


class Meaning(NamedTuple):
    """What an error means for the job, and why."""

    kind: FaultKind
    reason: FailureReason


def _trouble(reason: FailureReason, *codes: str) -> dict[str, Meaning]:
    return dict.fromkeys(codes, Meaning(FaultKind.TROUBLE, reason))


_THROTTLED = Meaning(FaultKind.THROTTLED, FailureReason.THROTTLED)
_BUCKET = Meaning(FaultKind.TROUBLE, FailureReason.BUCKET)
_TROUBLE = Meaning(FaultKind.TROUBLE, FailureReason.SERVICE_ERROR)

_THROTTLE_CODES = (
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
)

CODES: dict[str, Meaning] = {
    **dict.fromkeys(_THROTTLE_CODES, _THROTTLED),
    **_trouble(
        FailureReason.ACCESS_DENIED,
        "AccessDenied",
        "AccessDeniedException",
        "AccountProblem",
        "AllAccessDisabled",
        "NotAuthorized",
        "NotAuthorizedException",
        "OptInRequired",
        "UnauthorizedOperation",
    ),
    **_trouble(
        FailureReason.CREDENTIALS,
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignature",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClient",
        "UnrecognizedClientException",
    ),
    **_trouble(
        FailureReason.CLOCK_SKEW,
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
    ),
    **_trouble(
        FailureReason.BUCKET,
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "InvalidBucketName",
        "NoSuchBucket",
        "PermanentRedirect",
        "TemporaryRedirect",
    ),
    **_trouble(
        FailureReason.SERVICE_ERROR,
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "InternalFailure",
        "OperationAborted",
        "RequestAbortedException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    ),
    **_trouble(FailureReason.TIMEOUT, "RequestTimeout", "RequestTimeoutException"),
    **_trouble(FailureReason.PROTOCOL, "UnknownOperationException", "MethodNotAllowed"),
    "EntityTooLarge": Meaning(FaultKind.REFUSED, FailureReason.PAYLOAD_TOO_LARGE),
}

STATUSES: dict[int, Meaning] = {
    401: Meaning(FaultKind.TROUBLE, FailureReason.ACCESS_DENIED),
    403: Meaning(FaultKind.TROUBLE, FailureReason.ACCESS_DENIED),
    404: Meaning(FaultKind.TROUBLE, FailureReason.PROTOCOL),
    405: Meaning(FaultKind.TROUBLE, FailureReason.PROTOCOL),
    407: Meaning(FaultKind.TROUBLE, FailureReason.NETWORK),
    408: Meaning(FaultKind.TROUBLE, FailureReason.TIMEOUT),
    429: _THROTTLED,
    500: _TROUBLE,
    503: _TROUBLE,
}


def prefix_meaning(code: str) -> Meaning | None:
    """S3 passes a key service's refusals on under `KMS.` codes."""
    return _BUCKET if code.startswith("KMS.") else None
