"""What the SDK knows of a request, found out by letting it make one that is not sent.

`rehearse` has a client serialize, resolve and sign a request, and stops it before the network. Endpoint rules, custom URLs,
FIPS and dual-stack, bucket in the host or in the path, region and name to sign for, checksum setting, user agent: all of it
stands in that request and is read off it, nothing is worked out a second time. Then the lean path builds the same request
for the same second, and `difference` says whether it is the same. So what nobody thought of (another signer, a hook that
adds a header, a newer SDK) shows at the start, in words, and the SDK goes on sending itself.
"""

import asyncio
import ssl
from calendar import timegm
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from time import strptime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.utils import should_bypass_proxies
from msgspec import Struct

from dispatcher.aws.faults import clean
from dispatcher.aws.http import Origin, Request
from dispatcher.aws.signing import ALGORITHM

_OWN_TO_EACH_REQUEST = frozenset({"amz-sdk-invocation-id"})
_OF_THE_HTTP_CLIENT = frozenset({"host", "accept-encoding"})
"""The SDK leaves these to its HTTP client; the host is signed nevertheless."""

REHEARSAL_SECONDS = 10.0
"""The SDK may have to ask a credential provider before it signs."""

Call = Callable[[], Awaitable[object]]

_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


class Unfit(Struct, frozen=True):
    """The lean path cannot do what the SDK would; `why` is for people."""

    why: str


class Target(Struct, frozen=True, kw_only=True):
    """Where the requests of one operation go, and how they are signed. `host` is the header, `path` goes before the resource's."""

    host: str
    path: str
    region: str
    service: str
    user_agent: str


class Rehearsed(Struct, frozen=True, kw_only=True):
    """A request of the SDK that was not sent. `headers` has lower-case names; `signed_at` is seconds since the epoch."""

    method: str
    url: str
    headers: Mapping[str, str]
    signed_at: int
    target: Target


class _StoppedError(Exception):
    """Carries the request out of the SDK."""

    def __init__(self, request: Any) -> None:
        self.request = request


async def rehearse(client: Any, resource: str, call: Call) -> Rehearsed | Unfit:
    """Stops the request that `call` has the client make. `resource` is the end of the path that its own parameters make."""
    # The shortest name is called last, so that what other hooks do to the request is seen.
    client.meta.events.register_last("before-send", _stop, unique_id="rehearsal")
    token = _rehearsing.set(True)
    try:
        async with asyncio.timeout(REHEARSAL_SECONDS):
            await call()
    except _StoppedError as stopped:
        return _read(stopped.request, resource)
    except Exception as error:  # the border: what the SDK cannot make here, it will refuse to make then
        return Unfit(f"the SDK makes no such request: {clean(str(error), 200)}")
    finally:
        _rehearsing.reset(token)
        client.meta.events.unregister("before-send", unique_id="rehearsal")
    return Unfit("the SDK was answered without sending")


def _stop(request: Any, **_: Any) -> None:
    """Hook of the SDK. Requests of others may pass it meanwhile."""
    if _rehearsing.get():
        raise _StoppedError(request)


def _read(request: Any, resource: str) -> Rehearsed | Unfit:
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    algorithm, _, scope = headers.get("authorization", "").partition(" Credential=")
    parts, names = urlsplit(request.url), scope.partition(",")[0].split("/")
    if algorithm != ALGORITHM or len(names) < 5 or "x-amz-date" not in headers:
        return Unfit(f"it is not signed with {ALGORITHM}")
    if parts.scheme not in {"http", "https"} or parts.query or not parts.path.endswith(resource):
        return Unfit("its URL has a form that the lean path does not know")
    target = Target(
        host=_host(parts.hostname or "", parts.port, parts.scheme),
        path=parts.path.removesuffix(resource),
        region=names[-3],
        service=names[-2],
        user_agent=headers.get("user-agent", ""),
    )
    signed_at = timegm(strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    return Rehearsed(method=request.method, url=request.url, headers=headers, signed_at=signed_at, target=target)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _host(name: str, port: int | None, scheme: str) -> str:
    name = f"[{name}]" if ":" in name else name
    return name if port in {None, {"http": 80, "https": 443}[scheme]} else f"{name}:{port}"


def unlike(ours: Request, theirs: Rehearsed) -> Unfit | None:
    """Why the lean path may not be used, if its request is not the SDK's."""
    found = difference(ours, theirs)
    return Unfit(f"{found} would not be the SDK's") if found else None


def difference(ours: Request, theirs: Rehearsed) -> str | None:
    """In what the two requests differ, their bodies left out; None if in nothing. Names no value: some are credentials."""
    first, _, rest = ours.head.decode().partition("\r\n")
    headers = dict(_header(line) for line in rest.split("\r\n") if line)
    if first != f"{theirs.method} {urlsplit(theirs.url).path} HTTP/1.1":
        return "method and path"
    for name in sorted((headers.keys() | theirs.headers.keys()) - _OWN_TO_EACH_REQUEST - _OF_THE_HTTP_CLIENT):
        if headers.get(name) != theirs.headers.get(name):
            return f"the header {name}"
    return None


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name.lower(), value


# --- the way there ---------------------------------------------------------------------------------------------------


async def origin(client: Any, url: str, verify: str | None) -> Origin | Unfit:
    """The peer of requests to `url`, with TLS verified as the SDK verifies it; or why the way there is the SDK's alone."""
    parts = urlsplit(url)
    if _proxy(client, parts.scheme):
        return Unfit("a proxy is set for it")
    if client.meta.config.client_cert:
        return Unfit("a client certificate is set")
    host = parts.hostname or ""
    if parts.scheme == "http":
        return Origin(host, parts.port or 80, None, None)
    try:
        return Origin(host, parts.port or 443, await asyncio.to_thread(_tls, verify), host)
    except OSError as error:
        return Unfit(f"the CA bundle cannot be read: {clean(str(error), 200)}")


def _proxy(client: Any, scheme: str) -> str | None:
    """The proxy that the SDK would go through: it asks once, for the client's own endpoint."""
    proxies = client.meta.config.proxies
    if proxies is None:
        proxies = {} if should_bypass_proxies(client.meta.endpoint_url) else getproxies()
    found = proxies.get(scheme)
    return str(found) if found else None


def _tls(verify: str | None) -> ssl.SSLContext:
    """The SDK's own kind of context, with the bundle that was chosen, else the SDK's. Nothing turns verifying off."""
    context: ssl.SSLContext = create_urllib3_context()
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(get_cert_path(verify or True))
    return context
