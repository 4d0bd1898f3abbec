"""Which operation a request asks for, on what. Pure.

Buckets are named in the path, or in the host: `<bucket>.s3.<region>.amazonaws.com`, `<bucket>.s3.localhost`, `<bucket>.localhost`.
"""

import re
from collections.abc import Mapping
from urllib.parse import unquote, unquote_plus

from msgspec import Struct

from dispatcher.sandbox.messages import Request
from dispatcher.sandbox.settings import Operation

CONTROL_PATH = b"/_sandbox/"

_INVOKE = re.compile(rb"/endpoints/([^/]*)/async-invocations/?")
_HOST = re.compile(r"(.+?)\.(?:s3(?:[.-][a-z0-9.-]+)?\.(?:amazonaws\.com|localhost)|localhost)(?::\d+)?", re.IGNORECASE)
_OBJECT = {
    b"PUT": Operation.PUT,
    b"GET": Operation.GET,
    b"HEAD": Operation.HEAD,
    b"DELETE": Operation.DELETE,
}
_OTHER_ARTS = ("uploads", "uploadId", "acl", "tagging", "attributes", "torrent", "retention", "legal-hold", "restore")


class Target(Struct, frozen=True):
    """An operation and its object: an endpoint's name, a control path, or a bucket, a key and the query's parameters."""

    operation: Operation
    name: str = ""
    bucket: str = ""
    key: str = ""
    parameters: Mapping[str, str] = {}


def route(request: Request) -> Target:
    """The target; UNKNOWN where the sandbox has no such operation."""
    found = _INVOKE.fullmatch(request.path)
    if found is not None and request.method == b"POST":
        return Target(Operation.INVOKE, name=unquote(found[1].decode("latin-1")))
    if request.path.startswith(CONTROL_PATH):
        return Target(Operation.CONTROL, name=request.path[len(CONTROL_PATH) :].decode("latin-1"))
    if request.method == b"POST" and request.path == b"/" and (planned := _of_plane(request)) is not None:
        return planned
    bucket, key = _address(request)
    parameters = _parameters(request.query)
    return Target(_s3_operation(request, bucket, key, parameters), "", bucket, key, parameters)


def _of_plane(request: Request) -> Target | None:
    """The control plane's operations are named in a header, those of STS in a form."""
    service, _, name = request.headers.get(b"x-amz-target", b"").decode("latin-1").partition(".")
    if service == "SageMaker":
        return Target(Operation.DESCRIBE, name=name)
    form = request.headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded")
    return Target(Operation.IDENTITY) if form else None


def _address(request: Request) -> tuple[str, str]:
    path = unquote(request.path.decode("latin-1"))[1:]
    host = _HOST.fullmatch(request.header(b"host") or "")
    if host is not None and host[1] != "s3":
        return host[1], path
    bucket, _, key = path.partition("/")
    return bucket, key


def _parameters(query: bytes) -> dict[str, str]:
    pairs = [part.partition("=") for part in query.decode("latin-1").split("&") if part]
    return {unquote_plus(name): unquote_plus(value) for name, _, value in pairs}


def _s3_operation(request: Request, bucket: str, key: str, parameters: Mapping[str, str]) -> Operation:
    if any(art in parameters for art in _OTHER_ARTS) or b"x-amz-copy-source" in request.headers:
        return Operation.UNKNOWN
    if key:
        return _OBJECT.get(request.method, Operation.UNKNOWN)
    if request.method == b"GET" and parameters.get("list-type") == "2":
        return Operation.LIST
    if request.method == b"POST" and "delete" in parameters:
        return Operation.DELETE
    plain = request.method in _OBJECT and not parameters.keys() - {"location", "x-id"}
    listing_v1 = request.method == b"GET" and bucket and "location" not in parameters
    return Operation.BUCKET if plain and not listing_v1 else Operation.UNKNOWN
