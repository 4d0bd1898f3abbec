"""What one request costs in several HTTP clients: `python -m benchmarks.clients`.

Every client sends the same request, its head made beforehand, to the loopback target in a process of its own; 64 are in
flight. Each measurement is a child process, so that no client pays for another; rounds go around all clients, so that a
busy machine hits all alike. Shown is the CPU of user and system of the client's process, as a median, with the least and
the most; what is not installed is left out and named.
"""

import argparse
import asyncio
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvloop

from benchmarks.loopback import ROOT, clean_environment, make_certificate, started

IN_FLIGHT = 64
WARM_UP = 500
SIZES = {"1 KB": 1_000, "100 KB": 100_000}
METHODS = {"POST": "/endpoints/bench/async-invocations", "PUT": "/bench/key"}

Send = Callable[[bytes], Awaitable[int]]
"""Sends one request with this body; the status of its answer."""


class Wire(NamedTuple):
    """Where the requests go, and which."""

    url: str
    method: str
    context: ssl.SSLContext | None
    ca: str

    @property
    def target(self) -> str:
        return self.url + METHODS[self.method]


# --- the clients -----------------------------------------------------------------------------------------------------

HEADERS = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260101/us-east-1/sagemaker/aws4_request, "
    "SignedHeaders=host;x-amz-date;x-amzn-sagemaker-inference-id, Signature=" + "0" * 64,
    "X-Amz-Date": "20260101T000000Z",
    "X-Amzn-SageMaker-Inference-Id": "a" * 26,
    "X-Amzn-SageMaker-Filename": "a" * 26 + ".out",
    "User-Agent": "bench/1.0",
}


@asynccontextmanager
async def pool(wire: Wire) -> AsyncIterator[Send]:
    from dispatcher.aws.http import Answer, Origin, Pool, Request

    asked = urlsplit(wire.url)
    made = Pool(Origin(str(asked.hostname), asked.port or 0, wire.context, None), connections=IN_FLIGHT)
    fields = {"Host": asked.netloc, **HEADERS}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    start = f"{wire.method} {METHODS[wire.method]} HTTP/1.1\r\n{lines}Content-Length: ".encode()
    heads = {size: b"%b%d\r\n\r\n" % (start, size) for size in SIZES.values()}

    async def send(body: bytes) -> int:
        outcome = await made.send(lambda: Request(heads[len(body)], body), 30.0)
        return outcome.status if isinstance(outcome, Answer) else 0

    yield send
    await made.aclose()


@asynccontextmanager
async def aiohttp(wire: Wire) -> AsyncIterator[Send]:
    import aiohttp
    from yarl import URL

    target, context = URL(wire.target, encoded=True), wire.context or True
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT, keepalive_timeout=12)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(30),
        skip_auto_headers=["Content-Type"],
        auto_decompress=False,
    ) as session:

        async def send(body: bytes) -> int:
            async with session.request(wire.method, target, data=body, headers=HEADERS, ssl=context) as answer:
                await answer.read()
                return answer.status

        yield send


@asynccontextmanager
async def pyreqwest(wire: Wire) -> AsyncIterator[Send]:
    builder = import_module("pyreqwest.client").ClientBuilder().http1_only().max_connections(IN_FLIGHT)
    if wire.context is not None:
        # It takes no certificate that is its own authority. Checking is once a connection, so no figure shows it.
        builder = builder.danger_accept_invalid_certs(True)
    async with builder.build() as client:

        async def send(body: bytes) -> int:
            answer = await client.request(wire.method, wire.target).headers(HEADERS).body_bytes(body).build().send()
            await answer.bytes()
            return int(answer.status)

        yield send


@asynccontextmanager
async def aiosonic(wire: Wire) -> AsyncIterator[Send]:
    aiosonic = import_module("aiosonic")
    pools = import_module("aiosonic.pools")
    connector = aiosonic.TCPConnector(
        {":default": import_module("aiosonic.connectors").PoolConfig(size=IN_FLIGHT)}, pool_cls=pools.SmartPool
    )
    async with aiosonic.HTTPClient(connector) as client:

        async def send(body: bytes) -> int:
            answer = await client.request(wire.target, wire.method, HEADERS, data=body, ssl=wire.context)
            await answer.content()
            return int(answer.status_code)

        yield send


@asynccontextmanager
async def httpx(wire: Wire) -> AsyncIterator[Send]:
    httpx = import_module("httpx")
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT, keepalive_expiry=12)
    async with httpx.AsyncClient(verify=wire.context or False, limits=limits, timeout=30, trust_env=False) as client:

        async def send(body: bytes) -> int:
            return int((await client.request(wire.method, wire.target, headers=HEADERS, content=body)).status_code)

        yield send


@asynccontextmanager
async def httpcore(wire: Wire) -> AsyncIterator[Send]:
    httpcore = import_module("httpcore")
    options = {"max_connections": IN_FLIGHT, "max_keepalive_connections": IN_FLIGHT, "ssl_context": wire.context}
    async with httpcore.AsyncConnectionPool(**options) as connections:

        async def send(body: bytes) -> int:
            fields = {**HEADERS, "Host": urlsplit(wire.url).netloc, "Content-Length": str(len(body))}
            return int(
                (await connections.request(wire.method, wire.target, headers=list(fields.items()), content=body)).status
            )

        yield send


@asynccontextmanager
async def niquests(wire: Wire) -> AsyncIterator[Send]:
    niquests = import_module("niquests")
    async with niquests.AsyncSession(pool_maxsize=IN_FLIGHT, pool_connections=IN_FLIGHT, disable_http2=True) as session:
        session.trust_env = False

        async def send(body: bytes) -> int:
            verify = wire.ca if wire.context else False
            answer = await session.request(wire.method, wire.target, data=body, headers=HEADERS, verify=verify)
            return int(answer.status_code)

        yield send


CLIENTS: dict[str, Any] = {
    client.__name__: client for client in (pool, aiohttp, pyreqwest, aiosonic, httpcore, httpx, niquests)
}


# --- one measurement, in a process of its own ------------------------------------------------------------------------


async def measured(client: str, wire: Wire, size: int, requests: int) -> float:
    """CPU microseconds per request."""
    body = b"x" * size
    async with AsyncExitStack() as stack:
        send = await stack.enter_async_context(CLIENTS[client](wire))
        await _sent(send, body, WARM_UP)
        before = time.process_time()
        await _sent(send, body, requests)
        return 1e6 * (time.process_time() - before) / requests


async def _sent(send: Send, body: bytes, requests: int) -> None:
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            status = await send(body)
            if not 200 <= status < 300:
                raise RuntimeError(f"answered with {status}")

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def _child(arguments: argparse.Namespace) -> None:
    context = ssl.create_default_context(cafile=arguments.ca) if arguments.ca else None
    wire = Wire(arguments.url, arguments.method, context, arguments.ca)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measured(arguments.child, wire, arguments.size, arguments.requests))))


# --- all of them -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A column of the table."""

    method: str
    size: str
    tls: bool

    def __str__(self) -> str:
        return f"{self.method} {self.size}{', TLS' if self.tls else ''}"


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    present = {name: found for name in arguments.clients if (found := _version(name))}
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, uvloop {version('uvloop')}, {IN_FLIGHT} in flight")
    print("not installed:", ", ".join(name for name in arguments.clients if name not in present) or "none")
    cases = [Case(method, size, tls) for tls in (False, True) for method in METHODS for size in SIZES]
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as folder:
        ca = make_certificate(Path(folder) / "certificate.pem")
        figures = {(name, case): [] for case in cases for name in present}  # type: dict[tuple[str, Case], list[float]]
        for _ in range(arguments.rounds):
            _round(figures, ca, arguments.requests)
    _show(present, cases, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=5_000, help="of 1 KB in a measurement; a fifth of 100 KB")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    for name in ("--child", "--url", "--method", "--ca"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _version(client: str) -> str:
    try:
        return "ours" if client == "pool" else version(client)
    except PackageNotFoundError:
        return ""


def _round(figures: dict[tuple[str, Case], list[float]], ca: Path, requests: int) -> None:
    for tls in (False, True):
        with started(ca if tls else None) as target:
            for (name, case), found in figures.items():
                if case.tls is tls:
                    found.append(_measure(name, case, target.url, ca, requests))


def _measure(client: str, case: Case, url: str, ca: Path, requests: int) -> float:
    size = SIZES[case.size]
    command = [sys.executable, "-m", "benchmarks.clients", "--child", client, "--url", url, "--method", case.method]
    command += ["--size", str(size), "--requests", str(requests if size < 50_000 else requests // 5)]
    command += ["--ca", str(ca)] if case.tls else []
    ended = subprocess.run(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, check=True, timeout=300)
    return float(json.loads(ended.stdout))


def _show(present: dict[str, str], cases: list[Case], figures: dict[tuple[str, Case], list[float]]) -> None:
    print("| client | " + " | ".join(str(case) for case in cases) + " |")
    print("| --- |" + " --- |" * len(cases))
    for name, found in present.items():
        cells = [_cell(figures[name, case]) for case in cases]
        print(f"| {name} {found} | " + " | ".join(cells) + " |")


def _cell(found: list[float]) -> str:
    return f"{statistics.median(found):.0f} ({min(found):.0f}–{max(found):.0f})"


if __name__ == "__main__":
    main()
