"""What a peer may answer, and what becomes of it: plain and over TLS, on both event loops."""

import asyncio
import time

import pytest

from dispatcher.aws.http import Answer
from dispatcher.interfaces import FaultKind
from tests.scripted import (
    Act,
    Stage,
    answers,
    answers_raw,
    closes_after_reading,
    drips,
    hangs_after_reading,
    resets_after_reading,
)
from tests.wires import OK, Authority, against, authority, on_both_loops, post, told, writes

LATER, SOON = 20.0, 0.2
UNKNOWN = FaultKind.UNKNOWN


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, ca: Authority) -> Authority | None:
    return ca if request.param == "tls" else None


CHUNKED = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = CHUNKED + b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: t\r\n\r\n"
INTERIM = b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"
READABLE: list[tuple[str, tuple[bytes, ...], int, bytes, bool]] = [
    ("with a length", (OK,), 200, b"ok", True),
    ("in chunks, with a trailer", (CHUNKS,), 200, b"abcde", True),
    ("byte by byte", tuple(bytes([byte]) for byte in OK), 200, b"ok", True),
    ("chunks byte by byte", tuple(bytes([byte]) for byte in CHUNKS), 200, b"abcde", True),
    ("after interim answers", (INTERIM, OK), 200, b"ok", True),
    ("204", (b"HTTP/1.1 204 X\r\n\r\n",), 204, b"", True),
    ("304", (b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n",), 304, b"", True),
    ("an error", (b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nslow",), 503, b"slow", True),
    (
        "that ends the connection",
        (b"HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",),
        200,
        b"a",
        False,
    ),
    ("of HTTP/1.0", (b"HTTP/1.0 200 X\r\nContent-Length: 1\r\n\r\na",), 200, b"a", False),
    ("followed by rubbish", (OK + b"rubbish",), 200, b"ok", False),
    ("followed by another", (OK + OK,), 200, b"ok", False),
]


@pytest.mark.parametrize(("pieces", "status", "body", "kept"), [r[1:] for r in READABLE], ids=[r[0] for r in READABLE])
@on_both_loops
async def test_an_answer_is_read_and_its_connection_kept_if_it_may_be(
    pieces: tuple[bytes, ...], status: int, body: bytes, kept: bool, tls: Authority | None
) -> None:
    peers = []

    async def act(stage: Stage) -> bool:
        peers.append(stage.writer)
        return await writes(*pieces)(stage)

    async with against(act, tls=tls) as (pool, _):
        for _ in range(2):
            answer = await pool.send(post(), LATER)
            assert isinstance(answer, Answer), answer
            assert (answer.status, answer.body) == (status, body)
            assert "x-trailer" not in answer.headers
    assert len(set(peers)) == (1 if kept else 2)


@on_both_loops
async def test_an_answer_without_a_length_ends_with_the_connection(tls: Authority | None) -> None:
    async with against(answers_raw(b"HTTP/1.1 200 X\r\n\r\nall of it"), tls=tls) as (pool, _):
        answer = await pool.send(post(), LATER)
    assert answer == Answer(200, {}, b"all of it")


@on_both_loops
async def test_names_of_headers_are_lower_case_and_repeated_values_stand_side_by_side() -> None:
    raw = b"HTTP/1.1 200 X\r\nX-Thing:  one \r\nEmpty:\r\nx-thing: two\r\nName: \xc3\xa9\r\nContent-Length: 0\r\n\r\n"
    async with against(writes(raw)) as (pool, _):
        answer = await pool.send(post(), LATER)
    assert isinstance(answer, Answer)
    assert answer.headers == {"x-thing": "one, two", "empty": "", "name": "é", "content-length": "0"}


@pytest.mark.parametrize("size", [0, 1, 16 << 10, (16 << 10) + 1, 128_000, 3_000_000])
@on_both_loops
async def test_a_request_arrives_as_it_was_made(size: int, tls: Authority | None) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with against(answers(200), tls=tls) as (pool, server):
        assert isinstance(await pool.send(post(body), LATER), Answer)
    heard = server.heard[0]
    assert (heard.method, heard.target, heard.headers["host"]) == ("POST", "/path", "x")
    assert heard.body == body


async def resets_within_the_request(stage: Stage) -> bool:
    await stage.reader.readexactly(1)
    stage.reset()
    return False


def endless(start: bytes, piece: bytes) -> Act:
    """Writes `start`, then `piece` for as long as the connection lasts."""

    async def act(stage: Stage) -> bool:
        await stage.hear()
        stage.writer.write(start)
        while not stage.writer.transport.is_closing():
            stage.writer.write(piece)
            await stage.writer.drain()
            await asyncio.sleep(0)
        return False

    return act


SMALL = {"head_max_bytes": 1_000, "body_max_bytes": 5_000}
FIELDS = b"".join(b"a%d: b\r\n" % number for number in range(40))
LONG = b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n"
UNTRUSTED: list[tuple[str, Act, float, str]] = [
    ("reset within the request", resets_within_the_request, LATER, "network"),
    ("reset after reading", resets_after_reading, LATER, "network"),
    ("closed after reading", closes_after_reading, LATER, "network"),
    ("silence", hangs_after_reading, SOON, "timeout"),
    ("a head that drips", drips(b"HTTP/1.1 202 Accepted\r\nX-Slow:"), SOON, "timeout"),
    ("a body that drips", drips(b"HTTP/1.1 202 Accepted\r\nContent-Length: 4999\r\n\r\n"), SOON, "timeout"),
    ("only interim answers", endless(b"", b"HTTP/1.1 102 X\r\nA: b\r\n\r\n"), LATER, "protocol"),
    ("no HTTP at all", answers_raw(b"SSH-2.0-OpenSSH_9.2\r\n"), LATER, "protocol"),
    ("another protocol", writes(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), LATER, "protocol"),
    ("a status that is none", writes(b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"), LATER, "protocol"),
    (
        "a head that is not text",
        writes(b"HTTP/1.1 202 X\r\nA: \xff\xfe\r\nContent-Length: 0\r\n\r\n"),
        LATER,
        "protocol",
    ),
    ("a control character", writes(b"HTTP/1.1 202 X\r\nA: \x00\r\nContent-Length: 0\r\n\r\n"), LATER, "protocol"),
    ("two lengths", writes(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"), LATER, "protocol"),
    (
        "length and chunks",
        writes(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        LATER,
        "protocol",
    ),
    ("a coding unasked for", writes(b"HTTP/1.1 200 X\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"), LATER, "protocol"),
    ("a head too large", writes(b"HTTP/1.1 200 X\r\nA: " + b"b" * 1_000 + b"\r\n\r\n"), LATER, "protocol"),
    ("too many fields", writes(b"HTTP/1.1 200 X\r\n" + FIELDS + b"Content-Length: 0\r\n\r\n"), LATER, "protocol"),
    ("an endless status line", endless(b"HTTP/1.1 200 ", b"X" * 100), LATER, "protocol"),
    ("an endless header", endless(b"HTTP/1.1 200 X\r\nA: ", b"b" * 100), LATER, "protocol"),
    ("an endless trailer", endless(CHUNKED + b"0\r\nA: ", b"b" * 100), LATER, "protocol"),
    ("a body too large", endless(LONG, b"x" * 100), LATER, "protocol"),
    (
        "a body one byte too large",
        writes(b"HTTP/1.1 200 X\r\nContent-Length: 5001\r\n\r\n" + b"x" * 5001),
        LATER,
        "protocol",
    ),
    ("an endless body without length", endless(b"HTTP/1.1 200 X\r\n\r\n", b"x" * 100), LATER, "protocol"),
    ("endless chunks", endless(CHUNKED, b"64\r\n" + b"x" * 100 + b"\r\n"), LATER, "protocol"),
    ("chunks of nothing but seams", endless(CHUNKED + b"1", b";" + b"x" * 100), LATER, "protocol"),
]


@pytest.mark.parametrize(
    ("act", "seconds", "reason"), [row[1:] for row in UNTRUSTED], ids=[row[0] for row in UNTRUSTED]
)
@on_both_loops
async def test_what_cannot_be_trusted_is_unknown_and_costs_only_its_own_connection(
    act: Act, seconds: float, reason: str, tls: Authority | None
) -> None:
    async with against(act, answers(200), tls=tls, **SMALL) as (pool, server):
        assert told(await pool.send(post(), seconds)) == (UNKNOWN, reason)
        assert isinstance(await pool.send(post(), LATER), Answer), "the one connection allowed is free again"
    assert len(server.heard) <= 2, "one call is one request"


@pytest.mark.parametrize("whole", [OK, CHUNKS, INTERIM + OK], ids=["length", "chunks", "after an interim one"])
@on_both_loops
async def test_an_answer_cut_anywhere_is_no_answer(whole: bytes, tls: Authority | None) -> None:
    acts = [answers_raw(whole[:offset]) for offset in range(len(whole))]
    async with against(*acts, tls=tls) as (pool, server):
        for _ in acts:
            assert told(await pool.send(post(), LATER)) == (UNKNOWN, "network")
        assert len(server.heard) == len(acts)


@on_both_loops
async def test_a_deadline_never_strikes_early_and_says_what_was_waited_for() -> None:
    async with against(hangs_after_reading, drips(b"HTTP/1.1 200 X\r\nA:")) as (pool, _):
        for word in ("no answer", "did not end"):
            began = time.monotonic()
            outcome = await pool.send(post(), SOON)
            assert time.monotonic() - began >= SOON
            assert told(outcome) == (UNKNOWN, "timeout")
            assert word in str(outcome)


@on_both_loops
async def test_an_answer_that_came_while_the_loop_was_held_up_counts() -> None:
    async def act(stage: Stage) -> bool:
        await stage.hear()
        stage.writer.write(OK)
        time.sleep(SOON + 0.3)  # noqa: ASYNC251 - the hold-up
        return True

    async with against(act) as (pool, _):
        assert isinstance(await pool.send(post(), SOON), Answer)
