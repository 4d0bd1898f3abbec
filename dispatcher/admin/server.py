"""The small HTTP server beside the dispatcher: metrics to scrape, and whether it lives and is ready. Read-only, no secrets.

Only `GET` and `HEAD` of `/metrics`, `/healthz` and `/readyz`. It has a thread and an event loop of its own: under full load
every turn of the dispatcher's takes as long as all the answers that have come, and a scrape needs several. So an answer
says nothing of that loop; `healthy` must. Who may be connected, and for how long, `door` decides.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from anyio import to_thread
from anyio.from_thread import start_blocking_portal
from prometheus_client import CollectorRegistry

from dispatcher.admin.door import ACCEPTED_AT_ONCE, PATIENCE, WAITING, Door, Patience, Seldom
from dispatcher.admin.exposition import encoder
from dispatcher.errors import UsageError

Handler = Callable[[web.Request], Awaitable[web.Response]]
AnyHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEFAULT_LISTEN = "127.0.0.1:9464"
SHUTDOWN_SECONDS = 1.0

_asked_badly = logging.getLogger("aiohttp.server.admin")
_asked_badly.addFilter(lambda record: not _is_of_asker(record))

T = TypeVar("T")


@asynccontextmanager
async def metrics_server(
    listen: str,
    registry: CollectorRegistry,
    ready: Callable[[], bool],
    healthy: Callable[[], bool] = lambda: True,
    patience: Patience = PATIENCE,
) -> AsyncGenerator[str]:
    """Serves while the block runs; yields the address it is bound to (`host:port`; port 0 takes a free one).

    `ready` and `healthy` are called on the server's thread for each request and must not wait. An address that is no
    address, or cannot be bound, is a UsageError.
    """
    host, port = parse_address(listen)
    with ExitStack() as stack:
        portal = await _entered(stack, start_blocking_portal(name="admin"))
        door = Door(patience)
        served = _served(registry, ready, healthy, door, partial(_bind, host=host, port=port, listen=listen))
        try:
            yield await _entered(stack, portal.wrap_async_context_manager(served))
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(stack.close)


def _is_of_asker(record: logging.LogRecord) -> bool:
    """Whether a request that is no HTTP is all that it tells of."""
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)


async def _entered(stack: ExitStack, context: AbstractContextManager[T]) -> T:
    """Enters what another thread has to begin, without keeping the loop waiting."""
    return await to_thread.run_sync(stack.enter_context, context)


@asynccontextmanager
async def _served(
    registry: CollectorRegistry,
    ready: Callable[[], bool],
    healthy: Callable[[], bool],
    door: Door,
    bind: Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Server]],
) -> AsyncGenerator[str]:
    """The server itself, on the loop that it is entered on, which is its own."""
    asyncio.get_running_loop().set_exception_handler(Seldom())
    runner = web.AppRunner(
        _application(partial(_metrics, registry), ready, healthy, door),
        access_log=None,
        # What it says of requests that are no HTTP, a line too long for instance, is the asker's fault and told to the asker.
        logger=_asked_badly,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    handler = runner.server
    assert handler is not None
    try:
        server = await bind(lambda: door.let_in(handler()))
        try:
            yield _address(server)
        finally:
            server.close()
    finally:
        await runner.cleanup()


def parse_address(listen: str) -> tuple[str, int]:
    """`127.0.0.1:9464`, `localhost:0` or `[::1]:9464` as host and port."""
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    valid_port = port.isascii() and port.isdigit() and int(port) <= 65535
    if not (colon and bare and valid_port) or (":" in bare and not bracketed):
        raise UsageError(f"cannot listen on {listen!r}: it must be HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9464")
    return bare, int(port)


async def _bind(made: Callable[[], asyncio.Protocol], host: str, port: int, listen: str) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(made, host, port, backlog=ACCEPTED_AT_ONCE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {listen}: {reason}; choose another address with --listen") from error
    # The loop's own number is for both: how many wait, and how many it accepts in a turn.
    for each in server.sockets:
        with each.dup() as listener:
            listener.listen(WAITING)
    return server


def _address(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _application(
    metrics: Handler, ready: Callable[[], bool], healthy: Callable[[], bool], door: Door
) -> web.Application:
    @web.middleware
    async def ask(request: web.Request, handler: AnyHandler) -> web.StreamResponse:
        if request.transport is not None:
            door.asked(request.transport)
        return await handler(request)

    application = web.Application(client_max_size=0, middlewares=[ask])
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", partial(_verdict, healthy))
    application.router.add_get("/readyz", partial(_verdict, ready))
    return application


async def _metrics(registry: CollectorRegistry, request: web.Request) -> web.Response:
    encode, content_type = encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(registry), headers={"Content-Type": content_type})


async def _verdict(holds: Callable[[], bool], _: web.Request) -> web.Response:
    return web.Response(text="ok\n") if holds() else web.Response(text="not ok\n", status=503)
