"""The sandbox as a server: opens everything in order, closes it in the reverse order."""

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.errors import UsageError
from dispatcher.sandbox.app import App
from dispatcher.sandbox.control import Control
from dispatcher.sandbox.record import Recorder
from dispatcher.sandbox.settings import Settings
from dispatcher.sandbox.wire import Connection

if TYPE_CHECKING:
    from dispatcher.sandbox.foreign import Foreign

BACKLOG = 4_096


async def serve(settings: Settings, *, ready: Callable[[int], None]) -> None:
    """Serves until cancelled; `ready` gets the port once connections are taken. UsageError where it cannot start."""
    async with running(settings) as port:
        ready(port)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[int]:
    """A server in this event loop; gives its port."""
    connections: set[Connection] = set()
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", dir=settings.work_dir) as folder,
        _recorder(settings) as recorder,
    ):
        app = App(settings, Path(folder), recorder)
        app.control = Control(app).answer
        try:
            async with _foreign(settings) as app.runtime.foreign, await _listen(settings, app, connections) as server:
                try:
                    yield server.sockets[0].getsockname()[1]
                finally:
                    for connection in list(connections):
                        connection.close()
        finally:
            app.runtime.stop()


@contextlib.asynccontextmanager
async def _foreign(settings: Settings) -> AsyncIterator["Foreign | None"]:
    if settings.s3_url is None:
        yield None
        return
    # Here, because it brings the whole SDK, a third of a second that no other sandbox needs to start.
    from dispatcher.sandbox.foreign import foreign

    async with foreign(settings, settings.s3_url) as opened:
        yield opened


async def _listen(settings: Settings, app: App, connections: set[Connection]) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            lambda: Connection(app, connections), settings.host, settings.port, backlog=BACKLOG, ssl=_tls(settings)
        )
    except OSError as error:
        raise UsageError(f"sandbox: cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error


@contextlib.contextmanager
def _recorder(settings: Settings) -> Iterator[Recorder]:
    recorder = Recorder(settings.record, asyncio.get_running_loop().call_later)
    try:
        recorder.open()
    except OSError as error:
        raise UsageError(f"sandbox: cannot write the record {settings.record}: {error.strerror}") from error
    try:
        yield recorder
    finally:
        recorder.close()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"sandbox: cannot use the certificate {settings.tls_certificate}: {error}") from error
    return context
