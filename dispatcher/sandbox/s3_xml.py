"""The XML that S3 answers with, and the little that it reads. Pure."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from html import escape, unescape
from urllib.parse import quote

from msgspec import Struct

from dispatcher.sandbox.messages import Reply, new_id
from dispatcher.sandbox.objects import Page, StoredObject
from dispatcher.sandbox.signing import Refusal

_PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_KEY = re.compile(r"<Key>(.*?)</Key>", re.DOTALL)
_QUIET = re.compile(r"<Quiet>\s*true\s*</Quiet>", re.IGNORECASE)


class Deletion(Struct, frozen=True):
    """The keys that a DeleteObjects request names. `quiet`: only those that were not deleted are to be told."""

    keys: list[str]
    quiet: bool


def error(refusal: Refusal, resource: str, *, bodyless: bool = False, extra: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An error; the answer to HEAD has no body, so its code is lost."""
    request_id = new_id()
    headers = (("Content-Type", "application/xml"), ("x-amz-request-id", request_id), *extra)
    text = (
        f"{_PROLOGUE}<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message, quote=False)}</Message>"
        f"<Resource>{escape(resource, quote=False)}</Resource><RequestId>{request_id}</RequestId></Error>"
    )
    return Reply(refusal.status, headers, b"" if bodyless else _bytes(text), code=refusal.code)


def listing(bucket: str, page: Page, echoed: dict[str, str], next_token: str | None, url_encoded: bool) -> Reply:
    """A page of ListObjectsV2. `echoed` are the request's parameters as the answer repeats them."""

    def written(text: str) -> str:
        return quote(text, safe="/") if url_encoded else escape(text, quote=False)

    repeated = "".join(f"<{name}>{written(value)}</{name}>" for name, value in echoed.items())
    contents = "".join([_entry(written(key), entry) for key, entry in page.objects])
    prefixes = "".join(f"<CommonPrefixes><Prefix>{written(one)}</Prefix></CommonPrefixes>" for one in page.folders)
    token = f"<NextContinuationToken>{next_token}</NextContinuationToken>" if next_token is not None else ""
    return xml(
        f"<ListBucketResult {_NAMESPACE}><Name>{bucket}</Name>{repeated}"
        f"<KeyCount>{len(page.objects) + len(page.folders)}</KeyCount>"
        f"{'<EncodingType>url</EncodingType>' if url_encoded else ''}"
        f"<IsTruncated>{'false' if next_token is None else 'true'}</IsTruncated>{token}{contents}{prefixes}</ListBucketResult>"
    )


def buckets(names: Iterable[str], account: str) -> Reply:
    """ListBuckets."""
    listed = "".join(f"<Bucket><Name>{name}</Name><CreationDate>{_second(0)}</CreationDate></Bucket>" for name in names)
    owner = f"<Owner><ID>{account}</ID></Owner>"
    return xml(f"<ListAllMyBucketsResult {_NAMESPACE}>{owner}<Buckets>{listed}</Buckets></ListAllMyBucketsResult>")


def location(region: str) -> Reply:
    """GetBucketLocation; us-east-1 is written as nothing."""
    return xml(f"<LocationConstraint {_NAMESPACE}>{'' if region == 'us-east-1' else region}</LocationConstraint>")


def deleted(wanted: Deletion, refusal: Refusal | None = None) -> Reply:
    """DeleteObjects: each key that was deleted, unless that is not asked for, or each with why it was not."""
    keys = [f"<Key>{escape(key, quote=False)}</Key>" for key in wanted.keys]
    if refusal is not None:
        why = f"<Code>{refusal.code}</Code><Message>{escape(refusal.message, quote=False)}</Message>"
        listed = "".join([f"<Error>{key}{why}</Error>" for key in keys])
    else:
        listed = "" if wanted.quiet else "".join([f"<Deleted>{key}</Deleted>" for key in keys])
    return xml(f"<DeleteResult {_NAMESPACE}>{listed}</DeleteResult>")


def deletion(body: bytes) -> Deletion:
    """What a DeleteObjects request asks for."""
    text = body.decode("utf-8", "replace")
    return Deletion([unescape(key) for key in _KEY.findall(text)], _QUIET.search(text) is not None)


def xml(text: str) -> Reply:
    """A 200 with this XML."""
    headers = (("Content-Type", "application/xml"), ("x-amz-request-id", new_id()))
    return Reply(200, headers, _bytes(_PROLOGUE + text))


def _entry(key: str, entry: StoredObject) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{_second(int(entry.modified_at))}</LastModified>"
        f"<ETag>&quot;{entry.blob.md5().hex()}&quot;</ETag><Size>{entry.blob.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


@lru_cache(maxsize=256)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
