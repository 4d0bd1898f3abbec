"""New connections to one origin: name, TCP, TLS, all within one time.

Nothing of a request exists yet here, so whatever goes wrong, for whatever reason, is NOT_SENT. Every new connection asks for
the addresses again, but those that are made at the same time share one look-up; the addresses race each other (happy
eyeballs). TLS always verifies, and offers HTTP/1.1 alone. The codes of faults are those of the SDK's HTTP client.
"""

import asyncio
import socket
import ssl
from functools import partial

from aiohappyeyeballs import AddrInfoType, start_connection
from aiohttp.abc import ResolveResult
from msgspec import Struct

from dispatcher.aws.answers import Limits
from dispatcher.aws.exchange import Connection
from dispatcher.aws.faults import clean, distrust_text
from dispatcher.aws.resolver import BoundedResolver
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason

_NEXT_ADDRESS_SECONDS = 0.25
"""Until the next address is tried beside the one before it; what RFC 8305 recommends."""


class Origin(Struct, frozen=True):
    """Where to connect to. `server_hostname` is the name that the certificate has to have; None takes `host`."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    server_hostname: str | None


class Connector:
    """Makes connections. Sets the ALPN of the origin's context; a context that does not verify is a ValueError."""

    def __init__(self, origin: Origin, limits: Limits, seconds: float, resolver: BoundedResolver | None) -> None:
        if origin.tls is not None:
            _check(origin.tls)
            origin.tls.set_alpn_protocols(["http/1.1"])
        self._origin = origin
        self._limits = limits
        self._seconds = seconds
        self._resolver = resolver or BoundedResolver(seconds)
        self._owned = resolver is None  # the resolver is ours to close
        self._looking: asyncio.Task[list[ResolveResult]] | None = None  # the look-up under way
        self._scopes: set[asyncio.Timeout] = set()  # of the connects under way
        self._closed = False

    async def connect(self, seconds: float) -> Connection | Fault:
        """Connects within `seconds`, and never longer than the connector's own."""
        try:
            async with asyncio.timeout(min(seconds, self._seconds)) as scope:
                self._scopes.add(scope)
                return await self._connected()
        except TimeoutError:
            return self._fault(
                "ConnectionTimeoutError", "the client was closed" if self._closed else "no connection in time"
            )
        except Exception as error:  # the border: no class of error changes that nothing was sent
            return self._fault(_code(error), _text(error))
        finally:
            self._scopes.discard(scope)

    async def aclose(self) -> None:
        """Ends what is under way; its callers get their faults. Idempotent."""
        self._closed = True
        for scope in tuple(self._scopes):
            if not scope.expired():
                scope.reschedule(0.0)
        self._scopes.clear()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        if self._owned:
            await self._resolver.close()

    async def _connected(self) -> Connection | Fault:
        try:
            addresses = await self._addresses()
        except (OSError, UnicodeError) as error:
            return self._fault("ClientConnectorDNSError", f"its name is not known: {error}")
        found = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop, tls = asyncio.get_running_loop(), self._origin.tls
        name = None if tls is None else self._origin.server_hostname or self._origin.host
        make = partial(Connection, loop, self._limits)
        _, connection = await loop.create_connection(make, sock=found, ssl=tls, server_hostname=name)
        return connection

    async def _addresses(self) -> list[AddrInfoType]:
        if self._looking is None:
            looking = self._resolver.resolve(self._origin.host, self._origin.port, socket.AF_UNSPEC)
            self._looking = asyncio.create_task(looking)
            self._looking.add_done_callback(self._looked)
        return [_address(found) for found in await asyncio.shield(self._looking)]

    def _looked(self, task: asyncio.Task[list[ResolveResult]]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # seen, even if everybody who waited for it has been cancelled

    def _fault(self, code: str, text: str) -> Fault:
        where = f"{self._origin.host}:{self._origin.port}"
        message = clean(f"{where} was not connected to: {text}")
        return Fault(kind=FaultKind.NOT_SENT, reason=FailureReason.NETWORK, code=code, message=message)


def _address(found: ResolveResult) -> AddrInfoType:
    where = (found["host"], found["port"])
    sixth = (0, 0) if found["family"] == socket.AF_INET6 else ()
    return found["family"], socket.SOCK_STREAM, found["proto"], "", where + sixth


def _check(tls: ssl.SSLContext) -> None:
    if not tls.check_hostname or tls.verify_mode is not ssl.CERT_REQUIRED:
        raise ValueError("a TLS context that does not verify certificates and names is never used")


def _code(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "ClientConnectorCertificateError"
    return "ClientConnectorSSLError" if isinstance(error, ssl.SSLError) else "ClientConnectorError"


def _text(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return distrust_text(error)
    return f"{type(error).__name__}: {error}"
