"""The S3 operations, on objects that have come in whole. Every refusal is S3's own code and status.

A request is checked in S3's order: who owns the bucket, is it there, may the caller list; then the body's digests; then
the conditions, against what is stored at the moment of storing. Nothing waits in here, so a conditional PUT cannot race.
"""

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Mapping
from email.utils import formatdate

from msgspec import Struct

from dispatcher.sandbox import s3_xml
from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.messages import Part, Reply, Request, new_id
from dispatcher.sandbox.objects import Bucket, Store, StoredObject, page
from dispatcher.sandbox.routing import Target
from dispatcher.sandbox.settings import Operation, Settings
from dispatcher.sandbox.signing import Refusal

PAGE_MAX_KEYS = 1_000
DELETE_MAX_KEYS = 1_000
KEY_MAX_BYTES = 1_024

_KEPT = (
    "cache-control",
    "content-disposition",
    "content-language",
    "expires",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
    "x-amz-storage-class",
)
_TOLD_AT_PUT = tuple(name for name in _KEPT if name.startswith("x-amz-server-side-encryption"))
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHECKSUM = "x-amz-checksum-"

_NO_BUCKET = Refusal("NoSuchBucket", 404, "The specified bucket does not exist")
_NO_KEY = Refusal("NoSuchKey", 404, "The specified key does not exist.")
_DENIED = Refusal("AccessDenied", 403, "Access Denied")
_PRECONDITION = Refusal("PreconditionFailed", 412, "At least one of the pre-conditions you specified did not hold")
_BAD_DIGEST = Refusal("BadDigest", 400, "The checksum you specified did not match what we received.")
_BAD_RANGE = Refusal("InvalidRange", 416, "The requested range is not satisfiable")
_BAD_TOKEN = Refusal("InvalidArgument", 400, "The continuation token provided is incorrect")
_BAD_COUNT = Refusal("InvalidArgument", 400, "Provided max-keys not an integer or within integer range")
_KEY_TOO_LONG = Refusal("KeyTooLongError", 400, "Your key is too long")
_NO_DIGEST = Refusal("InvalidRequest", 400, "Missing required header for this request: Content-MD5")
_MALFORMED = Refusal("MalformedXML", 400, "The XML you provided was not well-formed or did not validate.")
_NOT_EMPTY = Refusal("BucketNotEmpty", 409, "The bucket you tried to delete is not empty")
_NOT_HERE = Refusal("NotImplemented", 501, "The sandbox does not know this operation.")


class Call(Struct, frozen=True):
    """A request to S3 whose body has come in. Trailers are lower case."""

    target: Target
    request: Request
    body: Blob
    trailers: Mapping[bytes, bytes]
    denied: bool = False
    """Only of a DeleteObjects: S3 asks for the permission key by key, so that the answer is a good one that names each."""


class S3:
    """The operations on one store. `settings` may be replaced at any time."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.settings = settings
        self._store = store

    def answer(self, call: Call) -> Reply:
        """Does what is asked."""
        outcome = self._refused(call) or self._done(call)
        return outcome if isinstance(outcome, Reply) else refusal(outcome, call.target, call.request)

    def _refused(self, call: Call) -> Refusal | None:
        target = call.target
        owner = call.request.header(b"x-amz-expected-bucket-owner")
        if owner is not None and owner != self.settings.account:
            return _DENIED
        if len(target.key.encode("utf-8", "replace")) > KEY_MAX_BYTES:
            return _KEY_TOO_LONG
        makes = target.operation is Operation.BUCKET and call.request.method == b"PUT"
        if target.bucket and not makes and target.bucket not in self._store.buckets:
            return _NO_BUCKET
        return _DENIED if target.operation is Operation.LIST and self.settings.list_denied else None

    def _done(self, call: Call) -> Reply | Refusal:
        match call.target.operation:
            case Operation.PUT:
                return self._put(call)
            case Operation.GET | Operation.HEAD:
                return self._get(call)
            case Operation.LIST:
                return self._list(call)
            case Operation.DELETE:
                return self._delete(call)
            case Operation.BUCKET:
                return self._bucket(call)
            case _:
                return _NOT_HERE

    def _put(self, call: Call) -> Reply | Refusal:
        bucket, key = self._store.buckets[call.target.bucket], call.target.key
        refused = _checked(call) or _put_condition(call.request, bucket.get(key))
        if refused is not None:
            return refused
        entry = _stored(call)
        bucket.put(key, entry)
        told = tuple(pair for pair in entry.headers if pair[0] in _TOLD_AT_PUT or pair[0].startswith(_CHECKSUM))
        return _ok((("ETag", entry.etag), *told))

    def _get(self, call: Call) -> Reply | Refusal:
        entry = self._store.buckets[call.target.bucket].get(call.target.key)
        if entry is None:
            return _DENIED if self.settings.list_denied else _NO_KEY
        wanted, unless = call.request.header(b"if-match"), call.request.header(b"if-none-match")
        if wanted is not None and wanted not in {"*", entry.etag}:
            return _PRECONDITION
        if unless is not None and unless in {"*", entry.etag}:
            return Reply(304, (("ETag", entry.etag),))
        return _content(call, entry)

    def _list(self, call: Call) -> Reply | Refusal:
        asked = call.target.parameters
        try:
            limit = min(int(asked.get("max-keys", "1000")), PAGE_MAX_KEYS)
            token = _decoded_token(asked["continuation-token"]) if "continuation-token" in asked else None
        except ValueError as error:
            return _BAD_TOKEN if isinstance(error, (binascii.Error, UnicodeDecodeError)) else _BAD_COUNT
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = token if token is not None else asked.get("start-after", "")
        found = page(self._store.buckets[call.target.bucket], prefix, delimiter, after, limit)
        echoed = {"Prefix": prefix, "MaxKeys": str(limit)}
        echoed |= {"Delimiter": delimiter} if delimiter else {}
        echoed |= {"StartAfter": asked["start-after"]} if "start-after" in asked else {}
        next_token = None if found.last is None else base64.urlsafe_b64encode(found.last.encode()).decode()
        return s3_xml.listing(call.target.bucket, found, echoed, next_token, asked.get("encoding-type") == "url")

    def _delete(self, call: Call) -> Reply | Refusal:
        if not call.target.key:
            return self._delete_all(call)
        self._store.buckets[call.target.bucket].delete(call.target.key)
        return Reply(204, (("x-amz-request-id", new_id()),))

    def _delete_all(self, call: Call) -> Reply | Refusal:
        wanted = s3_xml.deletion(call.body.read(0, call.body.size))
        refused = (None if _is_summed(call) else _NO_DIGEST) or _checked(call)
        if refused is None and not 1 <= len(wanted.keys) <= DELETE_MAX_KEYS:
            refused = _MALFORMED
        if refused is not None:
            return refused
        if call.denied:
            return s3_xml.deleted(wanted, _DENIED)
        for key in wanted.keys:
            self._store.buckets[call.target.bucket].delete(key)
        return s3_xml.deleted(wanted)

    def _bucket(self, call: Call) -> Reply | Refusal:
        name, buckets = call.target.bucket, self._store.buckets
        match call.request.method:
            case b"PUT":
                buckets.setdefault(name, Bucket())
                return _ok((("Location", f"/{name}"),))
            case b"DELETE":
                if next(buckets[name].walk("", ""), None) is not None:
                    return _NOT_EMPTY
                del buckets[name]
                return Reply(204, (("x-amz-request-id", new_id()),))
            case b"HEAD":
                return _ok((("x-amz-bucket-region", self.settings.bucket_regions.get(name, self.settings.region)),))
            case _:
                return s3_xml.location(self.settings.region) if name else s3_xml.buckets(buckets, self.settings.account)


def refusal(why: Refusal, target: Target, request: Request, retry_after_ms: int | None = None) -> Reply:
    """An error as S3 writes it."""
    extra = () if retry_after_ms is None else (("x-amz-retry-after", str(retry_after_ms)),)
    return s3_xml.error(why, f"/{target.bucket}/{target.key}", bodyless=request.method == b"HEAD", extra=extra)


def body_mismatch(request: Request, body: Blob) -> Refusal | None:
    """Whether the body is not the one whose hash was signed."""
    claimed = request.header(b"x-amz-content-sha256")
    if claimed is None:
        return Refusal("InvalidRequest", 400, "Missing required header for this request: x-amz-content-sha256")
    if claimed in {"UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"} or claimed == body.sha256():
        return None
    if claimed.startswith("STREAMING-"):
        return Refusal("NotImplemented", 501, "The sandbox does not know signed chunks.")
    text = "The provided 'x-amz-content-sha256' header does not match what was computed."
    return Refusal("XAmzContentSHA256Mismatch", 400, text)


def _checked(call: Call) -> Refusal | None:
    length = call.request.header(b"x-amz-decoded-content-length")
    if length is not None and length != str(call.body.size):
        return Refusal("IncompleteBody", 400, "The request body terminated unexpectedly")
    md5 = call.request.header(b"content-md5")
    if md5 is not None and md5 != base64.b64encode(call.body.md5()).decode():
        return Refusal("BadDigest", 400, "The Content-MD5 you specified did not match what we received.")
    return next(
        (_BAD_DIGEST for name, value in _checksums(call) if _computed(name, call.body) not in {None, value}), None
    )


def _is_summed(call: Call) -> bool:
    return call.request.header(b"content-md5") is not None or bool(_checksums(call))


def _checksums(call: Call) -> list[tuple[str, str]]:
    """The checksums that came with a body, in its headers or its trailers."""
    pairs = [*call.request.headers.items(), *call.trailers.items()]
    named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs]
    return [(name, value) for name, value in named if name.startswith(_CHECKSUM) and name != "x-amz-checksum-mode"]


def _computed(name: str, body: Blob) -> str | None:
    match name.removeprefix(_CHECKSUM):
        case "crc32":
            return body.crc32()
        case "sha256":
            return base64.b64encode(bytes.fromhex(body.sha256())).decode()
        case "sha1" if body.data is not None:
            return base64.b64encode(hashlib.sha1(body.data, usedforsecurity=False).digest()).decode()
        case _:
            return None  # crc32c and crc64nvme are kept as they come


def _put_condition(request: Request, old: StoredObject | None) -> Refusal | None:
    if request.header(b"if-none-match") == "*" and old is not None:
        return _PRECONDITION
    wanted = request.header(b"if-match")
    if wanted is None:
        return None
    if old is None:
        return _NO_KEY
    return None if wanted in {"*", old.etag, old.etag.strip('"')} else _PRECONDITION


def _stored(call: Call) -> StoredObject:
    headers = call.request.headers
    pairs = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers.items()]
    kept = [(name, value) for name, value in pairs if name in _KEPT or name.startswith("x-amz-meta-")]
    coding = [
        one for one in dict(pairs).get("content-encoding", "").split(",") if one.strip() not in {"", "aws-chunked"}
    ]
    kept += [("content-encoding", ",".join(coding))] if coding else []
    kept += [pair for pair in _checksums(call) if pair[0] != "x-amz-checksum-type"]
    tags = len([tag for tag in dict(pairs).get("x-amz-tagging", "").split("&") if tag])
    content_type = call.request.header(b"content-type") or "binary/octet-stream"
    return StoredObject(call.body, time.time(), content_type, tuple(kept), tags)


def _content(call: Call, entry: StoredObject) -> Reply | Refusal:
    size = entry.blob.size
    wanted = call.request.header(b"range")
    span = _span(wanted, size) if wanted is not None else None
    if isinstance(span, Refusal):
        return span
    headers = _content_headers(call.request, entry, ranged=span is not None)
    start, length = span if span is not None else (0, size)
    status = 200 if span is None else 206
    if span is not None:
        headers = (*headers, ("Content-Range", f"bytes {start}-{start + length - 1}/{size}"))
    if call.target.operation is Operation.HEAD:
        return Reply(status, headers, length=length)
    body = entry.blob.data
    return Reply(status, headers, Part(entry.blob, start, length) if body is None else body[start : start + length])


def _content_headers(request: Request, entry: StoredObject, *, ranged: bool) -> tuple[tuple[str, str], ...]:
    summed = request.header(b"x-amz-checksum-mode") == "ENABLED" and not ranged
    kept = [pair for pair in entry.headers if summed or not pair[0].startswith(_CHECKSUM)]
    tags = [("x-amz-tagging-count", str(entry.tags))] if entry.tags else []
    return (
        ("ETag", entry.etag),
        ("Last-Modified", formatdate(entry.modified_at, usegmt=True)),
        ("Content-Type", entry.content_type),
        ("Accept-Ranges", "bytes"),
        ("x-amz-request-id", new_id()),
        *kept,
        *tags,
    )


def _span(header: str, size: int) -> tuple[int, int] | Refusal | None:
    """Start and length; None where the header is to be ignored."""
    found = _RANGE.fullmatch(header)
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, length) if length else _BAD_RANGE
    start, end = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and end < start:
        return None
    return (start, min(end, size - 1) - start + 1) if start < size else _BAD_RANGE


def _ok(headers: tuple[tuple[str, str], ...]) -> Reply:
    return Reply(200, (("x-amz-request-id", new_id()), *headers))


def _decoded_token(token: str) -> str:
    return base64.b64decode(token, altchars=b"-_", validate=True).decode()
