"""AWS Signature Version 4 as the service checks it; pure: the time is an argument.

Works on the bytes of the request as they came. A path or query is decoded and encoded again before it is compared, since
clients differ in what they leave unencoded on the wire. Presigned URLs and signed chunks are not known here.
"""

import binascii
import hashlib
import hmac
import re
from calendar import timegm
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from time import strptime
from urllib.parse import quote, unquote_to_bytes

from msgspec import Struct

SAGEMAKER_WINDOW_SECONDS = 300
S3_WINDOW_SECONDS = 900
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

_AUTHORIZATION = re.compile(
    rb"AWS4-HMAC-SHA256 +Credential=([^/, ]+)/(\d{8})/([^/, ]+)/([^/, ]+)/aws4_request, *"
    rb"SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})"
)
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/_.~-]*")


class Refusal(Struct, frozen=True):
    """Why a request is not let in: code, HTTP status and text as the service gives them."""

    code: str
    status: int
    message: str


class Signed(Struct, frozen=True):
    """The parts of a request that a signature covers. Header names are lower case; path and query are raw."""

    method: bytes
    path: bytes
    query: bytes
    headers: Mapping[bytes, bytes]


class Verifier(Struct, frozen=True):
    """Who may come in, and for which region. `expired_key_ids` are those of keys whose time is up."""

    access_key_id: bytes
    secret_access_key: bytes
    region: bytes
    expired_key_ids: frozenset[bytes] = frozenset()

    def sagemaker(self, request: Signed, body_sha256: str, now: float) -> Refusal | None:
        """Checks a request to the SageMaker runtime."""
        path = quote(request.path, safe="/~").encode()
        return self._check(request, b"sagemaker", path, body_sha256.encode(), now)

    def sts(self, request: Signed, body_sha256: str, now: float) -> Refusal | None:
        """Checks a request to STS."""
        return self._check(request, b"sts", request.path, body_sha256.encode(), now)

    def s3(self, request: Signed, now: float) -> Refusal | None:
        """Checks a request to S3, taking the payload hash that the client claims: the caller compares it with the body."""
        claimed = request.headers.get(b"x-amz-content-sha256", b"")
        return self._check(request, b"s3", _recoded(request.path), claimed, now)

    def _check(self, request: Signed, service: bytes, path: bytes, payload: bytes, now: float) -> Refusal | None:
        authorization = request.headers.get(b"authorization")
        if authorization is None:
            return _missing(service)
        found = _AUTHORIZATION.fullmatch(authorization)
        if found is None:
            return Refusal("IncompleteSignature", 403, "Authorization header is not of AWS4-HMAC-SHA256 form.")
        key_id, date, region, scope, names, signature = found.groups()
        if key_id in self.expired_key_ids:
            return _expired_key(service)
        if key_id != self.access_key_id:
            return _unknown_key(service)
        stamp = request.headers.get(b"x-amz-date", b"")
        late = _skew(stamp, date, service, now)
        if late is not None:
            return late
        if scope != service or region != self.region:
            return _wrong_scope(service, self.region, scope, region)
        digest = hashlib.sha256(_canonical(request, path, names, payload)).hexdigest().encode()
        text = b"AWS4-HMAC-SHA256\n%b\n%b/%b/%b/aws4_request\n%b" % (stamp, date, region, scope, digest)
        expected = hmac.digest(_signing_key(self.secret_access_key, date, region, scope), text, "sha256")
        return None if hmac.compare_digest(binascii.hexlify(expected), signature) else _mismatch(service)


def _canonical(request: Signed, path: bytes, names: bytes, payload: bytes) -> bytes:
    headers = request.headers
    lines = b"".join([b"%b:%b\n" % (name, _squeezed(headers.get(name, b""))) for name in names.split(b";")])
    return b"\n".join((request.method, path, _canonical_query(request.query), lines, names, payload))


def _squeezed(value: bytes) -> bytes:
    return b" ".join(value.split()) if b"  " in value else value.strip()


def _recoded(path: bytes) -> bytes:
    return path if _PLAIN_PATH.fullmatch(path) else quote(unquote_to_bytes(path), safe="/~").encode()


def _canonical_query(query: bytes) -> bytes:
    if not query:
        return b""
    pairs = [part.partition(b"=") for part in query.split(b"&") if part]
    return b"&".join(sorted(b"%b=%b" % (_encoded(name), _encoded(value)) for name, _, value in pairs))


def _encoded(raw: bytes) -> bytes:
    return quote(unquote_to_bytes(raw), safe="~").encode()


@lru_cache(maxsize=64)
def _signing_key(secret: bytes, date: bytes, region: bytes, service: bytes) -> bytes:
    key = b"AWS4" + secret
    for part in (date, region, service, b"aws4_request"):
        key = hmac.digest(key, part, "sha256")
    return key


@lru_cache(maxsize=64)
def _epoch(stamp: bytes) -> float | None:
    try:
        return timegm(strptime(stamp.decode("ascii"), "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def _skew(stamp: bytes, date: bytes, service: bytes, now: float) -> Refusal | None:
    signed_at = _epoch(stamp)
    if signed_at is None or not stamp.startswith(date):
        return Refusal("IncompleteSignature", 403, "X-Amz-Date is missing, not a date, or not that of the credential.")
    if service == b"s3":
        return _s3_skew(signed_at, now)
    window = SAGEMAKER_WINDOW_SECONDS
    if signed_at < now - window:
        text = f"Signature expired: {_stamp(signed_at)} is now earlier than {_stamp(now - window)} ({_stamp(now)} - 5 min.)"
        return Refusal("InvalidSignatureException", 403, text)
    if signed_at > now + window:
        text = f"Signature not yet current: {_stamp(signed_at)} is still later than {_stamp(now + window)} ({_stamp(now)} + 5 min.)"
        return Refusal("InvalidSignatureException", 403, text)
    return None


def _s3_skew(signed_at: float, now: float) -> Refusal | None:
    if abs(signed_at - now) <= S3_WINDOW_SECONDS:
        return None
    text = "The difference between the request time and the current time is too large."
    return Refusal("RequestTimeTooSkewed", 403, text)


def _missing(service: bytes) -> Refusal:
    if service == b"s3":
        return Refusal("AccessDenied", 403, "Access Denied")
    return Refusal("MissingAuthenticationTokenException", 403, "Missing Authentication Token")


def _expired_key(service: bytes) -> Refusal:
    if service == b"s3":
        return Refusal("ExpiredToken", 400, "The provided token has expired.")
    return Refusal("ExpiredTokenException", 403, "The security token included in the request is expired")


def _unknown_key(service: bytes) -> Refusal:
    if service == b"s3":
        return Refusal("InvalidAccessKeyId", 403, "The AWS Access Key Id you provided does not exist in our records.")
    return Refusal("UnrecognizedClientException", 403, "The security token included in the request is invalid.")


def _wrong_scope(service: bytes, region: bytes, said_service: bytes, said_region: bytes) -> Refusal:
    said = f"'{said_region.decode('latin-1')}/{said_service.decode('latin-1')}'"
    text = f"Credential should be scoped to '{region.decode()}/{service.decode()}', not {said}."
    if service == b"s3":
        return Refusal("AuthorizationHeaderMalformed", 400, text)
    return Refusal("InvalidSignatureException", 403, text)


def _mismatch(service: bytes) -> Refusal:
    text = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key"
    if service == b"s3":
        return Refusal("SignatureDoesNotMatch", 403, f"{text} and signing method.")
    return Refusal(
        "InvalidSignatureException", 403, f"{text} and signing method. Consult the service documentation for details."
    )
