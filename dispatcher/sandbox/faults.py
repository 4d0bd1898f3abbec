"""Which requests go wrong, and how: the rules in order, the first that hits decides. Chance comes from a seeded generator."""

from random import Random

from msgspec import Struct

from dispatcher.sandbox.settings import FaultKind, FaultRule, Operation, RateLimit, Settings

_RATE_EXCEEDED = "Rate exceeded"

_SAGEMAKER = {
    FaultKind.THROTTLE: ("ThrottlingException", 400, _RATE_EXCEEDED),
    FaultKind.INTERNAL_FAILURE: ("InternalFailure", 500, "An internal failure occurred."),
    FaultKind.UNAVAILABLE: ("ServiceUnavailable", 503, "The service is unavailable. Try your call again."),
    FaultKind.VALIDATION: ("ValidationError", 400, "1 validation error detected: the sandbox was told to find one."),
    FaultKind.ACCESS_DENIED: (
        "AccessDeniedException",
        403,
        "User: arn:aws:iam::000000000000:user/sandbox is not authorized to perform: sagemaker:InvokeEndpointAsync",
    ),
    FaultKind.EXPIRED_TOKEN: ("ExpiredTokenException", 403, "The security token included in the request is expired"),
}
_S3 = {
    FaultKind.THROTTLE: ("SlowDown", 503, "Please reduce your request rate."),
    FaultKind.INTERNAL_FAILURE: ("InternalError", 500, "We encountered an internal error. Please try again."),
    FaultKind.UNAVAILABLE: ("ServiceUnavailable", 503, "Service is unable to handle request."),
    FaultKind.VALIDATION: ("InvalidRequest", 400, "The sandbox was told to find this request invalid."),
    FaultKind.ACCESS_DENIED: ("AccessDenied", 403, "Access Denied"),
    FaultKind.EXPIRED_TOKEN: ("ExpiredToken", 400, "The provided token has expired."),
}


_OF_SAGEMAKER = {Operation.INVOKE, Operation.DESCRIBE, Operation.IDENTITY}


class Refused(Struct, frozen=True):
    """An error that a fault answers with."""

    code: str
    status: int
    message: str
    retry_after_ms: int | None = None


def refused(rule: FaultRule, operation: Operation) -> Refused | None:
    """The error a rule stands for; None where its kind is no error answer."""
    found = (_SAGEMAKER if operation in _OF_SAGEMAKER else _S3).get(rule.kind)
    if found is None:
        return None
    code, status, message = found
    return Refused(code, status, rule.message or message, rule.retry_after_ms)


class Faults:
    """The rules with how often each was passed and hit, and the token buckets."""

    def __init__(self, settings: Settings) -> None:
        self._random = Random(settings.seed)
        self._rules: dict[Operation, list[_Counted]] = {}
        self._buckets: dict[Operation, _TokenBucket] = {}
        self._kept: tuple[FaultRule, ...] = ()
        self.replace(settings)

    def replace(self, settings: Settings) -> None:
        """Takes new rules, all counted from nought if any of them changed, and new limits."""
        if settings.faults != self._kept:
            self._kept = settings.faults
            counted = [_Counted(rule) for rule in settings.faults]
            self._rules = {
                operation: [one for one in counted if one.rule.operation in {"any", operation}]
                for operation in Operation
                if operation is not Operation.CONTROL
            }
        self._buckets = {operation: self._bucket(operation, limit) for operation, limit in settings.rate_limits.items()}

    def draw(self, operation: Operation, now: float) -> FaultRule | None:
        """The fault for a request that begins now."""
        if not self._kept and not self._buckets:
            return None
        for counted in self._rules.get(operation, ()):
            if counted.hits(self._random):
                return counted.rule
        bucket = self._buckets.get(operation)
        return bucket.rule if bucket is not None and not bucket.take(now) else None

    def _bucket(self, operation: Operation, limit: RateLimit) -> "_TokenBucket":
        old = self._buckets.get(operation)
        return old if old is not None and old.limit == limit else _TokenBucket(limit)


class _Counted:
    def __init__(self, rule: FaultRule) -> None:
        self.rule = rule
        self._seen = 0
        self._hits = 0

    def hits(self, random: Random) -> bool:
        self._seen += 1
        rule = self.rule
        if self._seen <= rule.skip or (rule.count is not None and self._hits >= rule.count):
            return False
        hit = rule.rate >= 1.0 or random.random() < rule.rate
        self._hits += hit
        return hit


class _TokenBucket:
    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self.rule = FaultRule(operation="any", kind=FaultKind.THROTTLE, retry_after_ms=limit.retry_after_ms)
        self._tokens = limit.burst
        self._at: float | None = None

    def take(self, now: float) -> bool:
        if self._at is not None:
            self._tokens = min(self.limit.burst, self._tokens + (now - self._at) * self.limit.per_second)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
