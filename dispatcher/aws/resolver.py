"""Name look-ups within a time of their own, on threads of their own.

The HTTP client bounds connecting but not resolving. Without this a resolver that hangs would let our deadline strike, and a
request of which nothing was sent would count as one that may have been taken. And slow look-ups on the event loop's common
threads would hold up everything that reads files there.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

_THREADS = 4

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str | int, ...]]
LookUp = Callable[[str, int, socket.AddressFamily], list[Address]]
"""Asks the system, in a thread: host, port, family."""


class BoundedResolver(AbstractResolver):
    """Asks the system, for at most `seconds`; then an OSError, as for a name that does not exist."""

    def __init__(self, seconds: float, look_up: LookUp | None = None) -> None:
        self._seconds = seconds
        self._look_up = look_up or _look_up
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The host's addresses, IPv4 and IPv6 as `family` asks."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                found = await loop.run_in_executor(self._threads, self._look_up, host, port, family)
        except TimeoutError as error:
            raise OSError(f"no answer from the name service for {host} in {self._seconds:g} s") from error
        return [_result(host, address) for address in found]

    async def close(self) -> None:
        """Lets go of the threads; one that still waits for the name service ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [(*entry[:4], tuple(entry[4])) for entry in found]


def _result(host: str, address: Address) -> ResolveResult:
    family, _, proto, _, where = address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=str(where[0]), port=int(where[1]), family=family, proto=proto, flags=flags)
