"""An HTTP server on loopback that plays acts: what it hears is recorded, what it does is written down beforehand.

An act plays one request on one connection and returns whether the connection lives on. Each request takes the next act; the
last one repeats. Nothing here sleeps: an act that hangs waits until the server closes.
"""

import asyncio
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import pytest

HEAD_MAX_BYTES = 1 << 20


class Heard(NamedTuple):
    """A request as it arrived; `body` is what stood on the wire, chunks joined."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Stage:
    """One connection, and what an act can do with it."""

    def __init__(self, server: "ScriptedServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def hear(self, *, go_on: bool = True) -> Heard:
        """Reads one request to its end; answers `100-continue` if `go_on`, else leaves it and the body alone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        if "expect" in headers and go_on:
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        heard = Heard(method, target, headers, await self._body(headers) if go_on else b"")
        await self.server.note(heard)
        return heard

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return body

    async def wait_for_the_end(self) -> None:
        await self.server.closing.wait()

    def reset(self) -> None:
        """Ends the connection with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Act = Callable[[Stage], Awaitable[bool]]


class ScriptedServer:
    """Owns its connections. `heard` grows with each request; `closing` is set once, at the end, by `aclose`."""

    def __init__(self, acts: list[Act]) -> None:
        self.heard: list[Heard] = []
        self.closing = asyncio.Event()
        self.port = 0
        self._acts = acts
        self._played = 0
        self._more = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with suppress(OSError, EOFError, asyncio.CancelledError):
            while await self._next_act()(Stage(self, reader, writer)):
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self._connections.discard(task)

    def _next_act(self) -> Act:
        act = self._acts[min(self._played, len(self._acts) - 1)]

        async def counted(stage: Stage) -> bool:
            if not await _readable(stage.reader):
                return False
            self._played += 1
            return await act(stage)

        return counted if act not in _BEFORE_READING else act

    async def note(self, heard: Heard) -> None:
        async with self._more:
            self.heard.append(heard)
            self._more.notify_all()

    async def hears(self, requests: int) -> None:
        """Waits until that many requests have been heard."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.heard) >= requests)

    async def aclose(self) -> None:
        self.closing.set()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _readable(reader: asyncio.StreamReader) -> bool:
    """Waits for the first byte of a request without taking it; False where the peer has gone instead."""
    data = await reader.read(1)
    if data:
        reader._buffer[:0] = data  # type: ignore[attr-defined]
    return bool(data)


@asynccontextmanager
async def scripted_server(*acts: Act, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    """Serves the acts on a free port of 127.0.0.1."""
    scripted = ScriptedServer(list(acts))
    server = await asyncio.start_server(scripted.connected, "127.0.0.1", 0, ssl=tls, limit=HEAD_MAX_BYTES)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        await scripted.aclose()
        await server.wait_closed()


# --- acts ------------------------------------------------------------------------------------------------------------


def answers(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Act:
    """Hears the request and answers it; the connection lives on."""

    async def act(stage: Stage) -> bool:
        heard = await stage.hear()
        stage.writer.write(response(status, body, headers, bodiless=heard.method == "HEAD"))
        return True

    return act


def answers_raw(data: bytes) -> Act:
    """Hears the request, writes these bytes and closes."""

    async def act(stage: Stage) -> bool:
        await stage.hear()
        stage.writer.write(data)
        await stage.writer.drain()
        return False

    return act


def accepts(inference_id: str, output: str = "s3://out/a.out", failure: str | None = None, status: int = 202) -> Act:
    """The service's 202, or what else the arguments make of it."""
    headers = {"X-Amzn-SageMaker-OutputLocation": output} if output else {}
    if failure is not None:
        headers["X-Amzn-SageMaker-FailureLocation"] = failure
    return answers(status, json.dumps({"InferenceId": inference_id}).encode(), headers)


async def resets_at_once(stage: Stage) -> bool:
    """Resets the connection before anything is read."""
    stage.reset()
    return False


async def resets_after_reading(stage: Stage) -> bool:
    """Takes the whole request, then resets."""
    await stage.hear()
    stage.reset()
    return False


async def closes_after_reading(stage: Stage) -> bool:
    """Takes the whole request, then closes without an answer."""
    await stage.hear()
    return False


async def hangs_after_reading(stage: Stage) -> bool:
    """Takes the whole request and says nothing."""
    await stage.hear()
    await stage.wait_for_the_end()
    return False


async def never_continues(stage: Stage) -> bool:
    """Reads the head; neither says 100 nor reads the body."""
    await stage.hear(go_on=False)
    await stage.wait_for_the_end()
    return False


def drips(data: bytes) -> Act:
    """Takes the request, then writes one byte at a time, each as soon as the loop has nothing else, and never ends."""

    async def act(stage: Stage) -> bool:
        await stage.hear()
        stage.writer.write(data)
        while not stage.server.closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stage.wait_for_the_end(), 0.02)
            stage.writer.write(b" ")
            await stage.writer.drain()
        return False

    return act


_BEFORE_READING = {resets_at_once}


def response(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, bodiless: bool = False
) -> bytes:
    """A response with its length; of a HEAD only the head."""
    fields = {"Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode("latin-1") + (b"" if bodiless else body)


def closed_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def aws_environment(patch: pytest.MonkeyPatch, url: str | None) -> None:
    """Gives the SDK keys, a region and one endpoint for everything, and nothing else of the machine's own set-up."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(name, os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE00")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    patch.setenv("AWS_REGION", "us-east-1")
    if url is not None:
        patch.setenv("AWS_ENDPOINT_URL", url)
