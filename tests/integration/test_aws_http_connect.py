"""What goes wrong before a request exists: names, TCP, TLS. All of it is known not to have been sent; on both event loops."""

import asyncio
import socket
import ssl
import threading
from contextlib import suppress

import pytest

from dispatcher.aws.http import Answer, Origin, Pool
from dispatcher.aws.resolver import Address, BoundedResolver
from dispatcher.interfaces import Fault, FaultKind
from tests.scripted import answers, closed_port, resets_at_once, scripted_server
from tests.wires import NAME, Authority, authority, listening, on_both_loops, post, told

LATER, SOON = 20.0, 0.2
UNSENT = (FaultKind.NOT_SENT, "network")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


async def sent(origin: Origin, seconds: float = LATER, resolver: BoundedResolver | None = None) -> Answer | Fault:
    """What a pool of its own makes of one request."""
    pool = Pool(origin, connections=1, connect_seconds=seconds, resolver=resolver)
    try:
        return await pool.send(post(), LATER)
    finally:
        await pool.aclose()
        if resolver is not None:
            await resolver.close()


def at(host: str, port: int) -> list[Address]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return [(family, socket.SOCK_STREAM, 6, "", (host, port))]


@on_both_loops
async def test_a_refused_connection_sent_nothing() -> None:
    fault = await sent(Origin("127.0.0.1", closed_port(), None, None))
    assert told(fault) == UNSENT
    assert "127.0.0.1" in str(fault)


@on_both_loops
async def test_a_name_that_does_not_exist_sent_nothing() -> None:
    fault = await sent(Origin("name.invalid", 80, None, None))
    assert told(fault) == UNSENT
    assert "name" in str(fault)


@on_both_loops
async def test_a_name_service_that_hangs_sent_nothing_and_holds_nobody_up() -> None:
    free = threading.Event()

    def hang(host: str, port: int, family: socket.AddressFamily) -> list[Address]:
        free.wait()
        return []

    fault = await sent(Origin("somewhere", 80, None, None), SOON, BoundedResolver(LATER, hang))
    free.set()
    assert told(fault) == UNSENT


@on_both_loops
async def test_connects_at_the_same_time_share_a_look_up_and_later_ones_ask_again() -> None:
    asked = []
    async with scripted_server(answers(200, headers={"Connection": "close"})) as server:

        def look_up(host: str, port: int, family: socket.AddressFamily) -> list[Address]:
            asked.append((host, port, family))
            return at("127.0.0.1", server.port)

        resolver = BoundedResolver(LATER, look_up)
        pool = Pool(Origin("somewhere", 80, None, None), connections=8, resolver=resolver)
        for asks in (1, 2):
            outcomes = await asyncio.gather(*(pool.send(post(), LATER) for _ in range(8)))
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
            assert asked == [("somewhere", 80, socket.AF_UNSPEC)] * asks
        await pool.aclose()
        await resolver.close()


@on_both_loops
async def test_an_address_that_refuses_gives_way_to_the_next() -> None:
    async with scripted_server(answers(200)) as server:
        both = [*at("127.0.0.1", closed_port()), *at("127.0.0.1", server.port)]
        resolver = BoundedResolver(LATER, lambda host, port, family: both)
        assert isinstance(await sent(Origin("somewhere", 80, None, None), resolver=resolver), Answer)


@on_both_loops
async def test_an_address_that_is_silent_gives_way_to_the_next() -> None:
    with socket.socket() as full:
        waiting = _filled(full)
        async with scripted_server(answers(200)) as server:
            both = [*at("127.0.0.1", full.getsockname()[1]), *at("127.0.0.1", server.port)]
            resolver = BoundedResolver(LATER, lambda host, port, family: both)
            assert isinstance(await sent(Origin("somewhere", 80, None, None), resolver=resolver), Answer)
        for one in waiting:
            one.close()


@on_both_loops
async def test_a_connect_that_gets_no_answer_sent_nothing() -> None:
    with socket.socket() as full:
        waiting = _filled(full)
        fault = await sent(Origin("127.0.0.1", full.getsockname()[1], None, None), SOON)
        for one in waiting:
            one.close()
    assert told(fault) == UNSENT
    assert isinstance(fault, Fault)
    assert fault.code == "ConnectionTimeoutError"


def _filled(listener: socket.socket) -> list[socket.socket]:
    """Lets it listen with a backlog that is full: who connects from now on is left without an answer."""
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return waiting


@on_both_loops
async def test_the_time_for_the_whole_call_bounds_connecting_too(ca: Authority) -> None:
    async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(says_nothing) as port:
        pool = Pool(Origin("127.0.0.1", port, ca.trusting(), NAME), connections=1, connect_seconds=LATER)
        assert told(await pool.send(post(), SOON)) == UNSENT
        await pool.aclose()


@on_both_loops
async def test_a_handshake_without_an_answer_sent_nothing(ca: Authority) -> None:
    async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(says_nothing) as port:
        assert told(await sent(Origin("127.0.0.1", port, ca.trusting(), NAME), SOON)) == UNSENT


@pytest.mark.parametrize("words", [b"this is not TLS", b""], ids=["other words", "an end"])
@on_both_loops
async def test_a_handshake_that_fails_sent_nothing(words: bytes, ca: Authority) -> None:
    async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(words)

    async with listening(says) as port:
        assert told(await sent(Origin("127.0.0.1", port, ca.trusting(), NAME))) == UNSENT


@pytest.mark.parametrize("wrong", ["name", "time", "authority"])
@on_both_loops
async def test_a_certificate_that_cannot_be_trusted_is_never_sent_to(
    wrong: str, ca: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    serving = {"name": lambda: ca.serving("elsewhere"), "time": lambda: ca.serving(days=-1)}.get(wrong, ca.serving)()
    trusting = authority(tmp_path_factory.mktemp("other")).trusting() if wrong == "authority" else ca.trusting()
    async with scripted_server(answers(200), tls=serving) as server:
        fault = await sent(Origin("127.0.0.1", server.port, trusting, NAME))
        assert told(fault) == UNSENT
        assert "certificate cannot be trusted" in str(fault)
        assert not server.heard


@pytest.mark.parametrize("lax", ["name", "certificate"])
def test_a_context_that_does_not_verify_is_refused(lax: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    if lax == "certificate":
        context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError, match="verify"):
        Pool(Origin("127.0.0.1", 1, context, NAME), connections=1)


@on_both_loops
async def test_only_http_1_is_offered(ca: Authority) -> None:
    agreed = []

    async def looks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agreed.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())

    async with listening(looks, ca.serving()) as port:
        await sent(Origin("127.0.0.1", port, ca.trusting(), NAME))
    assert agreed == ["http/1.1"]


@on_both_loops
async def test_a_connection_that_is_reset_at_once_is_never_an_answer(ca: Authority) -> None:
    for tls in (None, ca):
        async with scripted_server(resets_at_once, tls=tls.serving() if tls else None) as server:
            fault = await sent(Origin("127.0.0.1", server.port, tls.trusting() if tls else None, NAME if tls else None))
        kind, reason = told(fault)
        assert kind in {FaultKind.NOT_SENT, FaultKind.UNKNOWN}
        assert reason == "network"


@on_both_loops
async def test_a_connect_that_is_cancelled_leaves_nothing_behind(ca: Authority) -> None:
    async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(says_nothing) as port:
        pool = Pool(Origin("127.0.0.1", port, ca.trusting(), NAME), connections=1)
        for turns in range(12):
            call = asyncio.create_task(pool.send(post(), LATER))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        assert told(await pool.send(post(), SOON)) == UNSENT, "the one place is free"
        await pool.aclose()
