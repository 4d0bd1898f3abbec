"""URIs of S3 objects, in the forms that receipts and settings use, taken apart into bucket and key.

`s3://bucket/key` carries the key as it is. An `https://` URL carries it percent-encoded, with the bucket either in the
host (`bucket.s3.region.amazonaws.com`, dual-stack and interface endpoints too) or first in the path; any host that is
not of AWS is taken for the path form, which is what a stand-in for S3 serves.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

URI_MAX_CHARS = 4_096
"""More than a bucket, a key of 1,024 bytes percent-encoded, and a host can need."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_HOSTS = (
    # An interface endpoint's own name begins with `bucket.vpce-`, also where no bucket stands before it.
    re.compile(r"(?:(?P<bucket>.+)\.)?bucket\.vpce-[a-z0-9-]+\.s3\.[a-z0-9.-]+\.amazonaws\.[a-z.]+"),
    re.compile(r"(?P<bucket>.+)\.s3[.-][a-z0-9.-]*amazonaws\.[a-z.]+"),
)


# What nearly every receipt has: an s3:// URI of plain characters.
_PLAIN = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{2,254}/[!-~]{1,1024}")


class Location(NamedTuple):
    """An object, or a folder where the key ends in `/` or is empty."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class BadLocation(NamedTuple):
    """A text that names no object; `why` is for people and does not repeat the text."""

    why: str


def parse_location(uri: str) -> Location | BadLocation:
    """The object that `uri` names; its key is not empty."""
    location = parse_folder(uri)
    if isinstance(location, Location) and not location.key:
        return BadLocation("no key after the bucket")
    return location


def names_object(uri: str) -> bool:
    """Whether `parse_location` finds an object in it, at a fifth of the cost for the usual form."""
    return _PLAIN.fullmatch(uri) is not None or isinstance(parse_location(uri), Location)


def parse_folder(uri: str) -> Location | BadLocation:
    """As `parse_location`, but the key may be empty: the bucket itself."""
    if len(uri) > URI_MAX_CHARS or not uri.isprintable():
        return BadLocation("too long, or not printable")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in {"s3", "https", "http"}:
        return BadLocation("neither s3:// nor https://")
    bucket, key = _of_s3(rest) if scheme == "s3" else _of_http(uri)
    if not _BUCKET.fullmatch(bucket):
        return BadLocation("no bucket name where one belongs")
    return Location(bucket, key)


def split_folder(uri: str) -> tuple[str, str]:
    """The part of `uri` up to and with its last `/`, and the rest."""
    head, slash, name = uri.rpartition("/")
    return head + slash, name


def _of_s3(rest: str) -> tuple[str, str]:
    bucket, _, key = rest.partition("/")
    return bucket, key


def _of_http(uri: str) -> tuple[str, str]:
    try:
        parts = urlsplit(uri)
        host = parts.hostname or ""
    except ValueError:
        return "", ""
    path = parts.path.removeprefix("/")
    if bucket := _bucket_in(host):
        return bucket, unquote(path)
    bucket, _, key = path.partition("/")
    return bucket, unquote(key)


def _bucket_in(host: str) -> str | None:
    matches = (pattern.fullmatch(host) for pattern in _HOSTS)
    return next((match["bucket"] for match in matches if match), None)
