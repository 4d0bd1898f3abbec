"""The small HTTP server beside the dispatcher: metrics to scrape, and whether it lives and is ready. Read-only, no secrets.

Only `GET` and `HEAD` of `/metrics`, `/healthz` and `/readyz`. Health tells no more than yes or no: that an answer comes at
all shows that the event loop turns. One scrape at a time is written out, in a thread of its own.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dispatcher.errors import UsageError

Handler = Callable[[web.Request], Awaitable[web.Response]]

DEFAULT_LISTEN = "127.0.0.1:9464"
KEEPALIVE_SECONDS = 75.0
"""Longer than Prometheus's usual scrape interval, so that its connection lasts."""
SHUTDOWN_SECONDS = 1.0


@asynccontextmanager
async def metrics_server(
    listen: str,
    registry: CollectorRegistry,
    ready: Callable[[], bool],
    healthy: Callable[[], bool] = lambda: True,
) -> AsyncGenerator[str]:
    """Serves while the block runs; yields the address it is bound to (`host:port`; port 0 takes a free one).

    `ready` and `healthy` are called on the event loop for each request and must not wait. An address that is no
    address, or cannot be bound, is a UsageError.
    """
    host, port = parse_address(listen)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scrape") as thread:
        runner = web.AppRunner(
            _application(partial(_metrics, registry, thread), ready, healthy),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        try:
            yield await _bind(runner, host, port, listen)
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


async def _bind(runner: web.AppRunner, host: str, port: int, listen: str) -> str:
    try:
        await web.TCPSite(runner, host, port).start()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {listen}: {reason}; choose another address with --listen") from error
    bound_host, bound_port = runner.addresses[0][:2]
    return f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"


def _application(metrics: Handler, ready: Callable[[], bool], healthy: Callable[[], bool]) -> web.Application:
    application = web.Application(client_max_size=0)
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", partial(_verdict, healthy))
    application.router.add_get("/readyz", partial(_verdict, ready))
    return application


async def _metrics(registry: CollectorRegistry, thread: ThreadPoolExecutor, request: web.Request) -> web.Response:
    # 1,500 series take about 10 ms to write out: too long for the loop that sends jobs.
    accept = request.headers.get("Accept", "")
    body, content_type = await asyncio.get_running_loop().run_in_executor(thread, _encode, registry, accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


def _encode(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):
        # The library trips over a version that is none; plain text suits everybody.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


async def _verdict(holds: Callable[[], bool], _: web.Request) -> web.Response:
    return web.Response(text="ok\n") if holds() else web.Response(text="not ok\n", status=503)
