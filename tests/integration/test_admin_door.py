"""Connections to the admin server that ask slowly, or never read: they cost neither answers nor files."""

import asyncio
import contextlib
import resource
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from dispatcher.admin.door import CONNECTIONS, Patience, Seldom
from dispatcher.admin.server import metrics_server
from dispatcher.sandbox.process import Sandbox
from tests.programs import numbered
from tests.sandboxes import eventually
from tests.services import serving

HALF = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-A: "
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
SCRAPE = WHOLE.replace(b"healthz", b"metrics")
DESCRIPTORS = 200
SLOW = 400


@contextlib.contextmanager
def connected(address: str, sent: bytes, times: int = 1) -> Iterator[list[socket.socket]]:
    """Connections that have sent this."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(times)]
        for one in made:
            with contextlib.suppress(ConnectionError):
                one.sendall(sent)
        yield made


def is_ended(one: socket.socket) -> bool:
    """Whether the other side has let it go; what it has sent before is read."""
    one.setblocking(False)
    try:
        while one.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def healthy(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
        return int(answer.status)


@pytest.fixture
async def address(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Of a server whose metrics are more than a socket holds, with the patience that `impatient` gives it."""
    registry = CollectorRegistry()
    many = Gauge("many", "Many.", ["n"], registry=registry)
    for number in range(20_000):
        many.labels(f"{number:0500}")
    patience = getattr(request, "param", Patience())
    async with metrics_server("127.0.0.1:0", registry, lambda: True, patience=patience) as made:
        yield made


def impatient(**seconds: float) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("address", [Patience(**seconds)], indirect=True, ids=["impatient"])


async def eventually_here(look: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(eventually, look, 30.0)


async def test_who_asks_has_a_place_however_many_say_nothing(address: str) -> None:
    with connected(address, HALF, 3 * CONNECTIONS) as slow:
        assert await anyio.to_thread.run_sync(healthy, address) == 200
        await eventually_here(lambda: sum(map(is_ended, slow)) >= 2 * CONNECTIONS)


async def test_who_asks_amid_a_crowd_that_comes_at_once_is_answered() -> None:
    registry, busy, go_on = CollectorRegistry(), threading.Event(), threading.Event()

    def wait() -> float:
        busy.set()
        go_on.wait(30)
        return 1.0

    Gauge("slow", "Keeps the server from accepting.", registry=registry).set_function(wait)
    async with metrics_server("127.0.0.1:0", registry, lambda: True) as address:
        with connected(address, SCRAPE), contextlib.ExitStack() as crowd:
            await anyio.to_thread.run_sync(busy.wait, 30)
            crowd.enter_context(connected(address, HALF, 3))
            (asking,) = crowd.enter_context(connected(address, WHOLE))
            rest = crowd.enter_context(connected(address, HALF, 4 * CONNECTIONS))
            go_on.set()
            assert (await anyio.to_thread.run_sync(asking.recv, 1 << 16)).startswith(b"HTTP/1.1 200")
            await eventually_here(lambda: sum(map(is_ended, rest)) >= 3 * CONNECTIONS)


async def test_the_one_that_asked_last_is_the_last_to_go(address: str) -> None:
    with connected(address, WHOLE) as (kept,):
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with connected(address, HALF, CONNECTIONS - 2) as slow:
            # They come in turn: when this one has its answer, all of the others are inside.
            await anyio.to_thread.run_sync(healthy, address)
            kept.sendall(WHOLE)
            assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
            with connected(address, HALF, 10):
                await eventually_here(lambda: all(map(is_ended, slow[:9])))
                kept.setblocking(True)
                kept.sendall(WHOLE)
                assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")


async def ends(address: str, sent: bytes, more: bytes = b"") -> None:
    """A connection that sends this, and then `more` all the while, is ended."""
    with connected(address, sent) as (one,):

        def look() -> bool:
            with contextlib.suppress(OSError):
                one.send(more)
            return is_ended(one)

        await eventually_here(look)


@impatient(request_seconds=0.2)
@pytest.mark.parametrize("sent", [b"", HALF])
async def test_a_request_that_does_not_come_to_its_end_is_not_waited_for(address: str, sent: bytes) -> None:
    await ends(address, sent)


@impatient(request_seconds=0.2)
async def test_a_second_request_that_does_not_come_to_its_end_is_not_waited_for(address: str) -> None:
    with connected(address, WHOLE) as (one,):
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")
        one.sendall(HALF)
        await eventually_here(lambda: is_ended(one))


@impatient(request_seconds=0.2)
async def test_a_byte_now_and_then_does_not_keep_a_connection(address: str) -> None:
    await ends(address, HALF, b"a")


@impatient(idle_seconds=0.2)
async def test_who_does_not_ask_again_is_let_go(address: str) -> None:
    await ends(address, WHOLE)


@impatient(unread_seconds=0.2)
async def test_who_does_not_read_the_answer_is_let_go(address: str) -> None:
    with connected(address, SCRAPE) as (one,):
        # A byte that is sent to who has gone is answered with a reset; nothing is read all the while.
        await eventually_here(lambda: _is_reset(one))


def _is_reset(one: socket.socket) -> bool:
    try:
        one.send(b"a")
    except ConnectionError:
        return True
    return False


def test_half_requests_beyond_the_descriptors_cost_no_file_no_answer_and_no_log(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox) as service:
        resource.prlimit(service.running.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        (url,) = [event["url"] for event in service.events() if event["event"] == "metrics"]
        with connected(url.removeprefix("http://").removesuffix("/metrics"), HALF, SLOW):
            for number in range(5):
                service.spool.drop(f"{number}.jsonl", numbered(20))
            assert service.get("/healthz")[0] == 200
            service.spool.until_finished(*(f"{number}.jsonl" for number in range(5)))
            assert service.get("/healthz")[0] == 200
        ended = service.stop()
    assert len(ended.err.splitlines()) < 100, ended.err[-3000:]


async def test_connections_that_cannot_be_accepted_are_told_once() -> None:
    failed = {"message": "", "exception": OSError(24, "Too many open files"), "socket": object()}
    said = Seldom()
    with capture_logs() as lines:
        for _ in range(1000):
            said(asyncio.get_running_loop(), failed)
    assert [line["error"] for line in lines] == ["[Errno 24] Too many open files"]
