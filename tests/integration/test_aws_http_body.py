"""Bodies that are streamed, and servers that do not take them as they should; plain and over TLS, on both event loops."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher.aws.bodies import Guard, big
from dispatcher.aws.http import Answer, Request
from dispatcher.aws.uploads import SliceReader
from dispatcher.interfaces import FaultKind, FileSlice
from tests.scripted import Act, Stage, answers, never_continues, response
from tests.wires import OK, Authority, against, authority, on_both_loops, post, told

LATER, SOON = 20.0, 0.2
UNKNOWN = FaultKind.UNKNOWN
PART = bytes(range(256)) * 256
MUCH = 200 * len(PART)
"""More than the buffers of both sides together hold."""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, ca: Authority) -> Authority | None:
    return ca if request.param == "tls" else None


class Parts:
    """A body of `total` bytes in parts; counts what was asked for, and knows whether it was closed."""

    def __init__(self, total: int, then: Callable[[], None] | None = None) -> None:
        self.total = total
        self.given = 0
        self.closed = False
        self._then = then

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            while self.given < self.total:
                part = PART[: self.total - self.given]
                self.given += len(part)
                yield part
                if self._then is not None:
                    self._then()
        finally:
            self.closed = True


class Stuck(Parts):
    """Gives one part and then never another."""

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            yield PART
            await asyncio.Event().wait()
        finally:
            self.closed = True


def answers_the_head(answer: bytes) -> Act:
    """Answers as soon as the head is there, and reads no further; the connection stays."""

    async def act(stage: Stage) -> bool:
        await stage.hear(go_on=False)
        stage.writer.write(answer)
        await stage.wait_for_the_end()
        return False

    return act


@pytest.mark.parametrize("size", [0, 1, len(PART) + 1, MUCH])
@on_both_loops
async def test_a_streamed_body_arrives_whole_and_the_connection_is_kept(size: int, tls: Authority | None) -> None:
    peers = set()

    async def act(stage: Stage) -> bool:
        peers.add(stage.writer)
        return await answers(200)(stage)

    async with against(act, tls=tls) as (pool, server):
        for _ in range(2):
            parts = Parts(size)
            assert isinstance(await pool.send(post(parts, size), LATER), Answer)
            assert parts.closed
        assert len(server.heard) == 2
        assert all(heard.body == (PART * 200)[:size] for heard in server.heard)
    assert len(peers) == 1


@on_both_loops
async def test_no_more_is_read_of_a_body_than_the_peer_takes(tls: Authority | None) -> None:
    parts = Parts(1000 * MUCH)
    async with against(never_continues, tls=tls) as (pool, _):
        assert told(await pool.send(post(parts, parts.total), SOON)) == (UNKNOWN, "timeout")
    assert 0 < parts.given < MUCH
    assert parts.closed


@on_both_loops
async def test_the_word_to_go_on_makes_no_room_in_a_peer_that_takes_nothing(tls: Authority | None) -> None:
    async def goads(stage: Stage) -> bool:
        await stage.hear(go_on=False)
        for _ in range(1_000):
            stage.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0)  # so that each comes by itself
        stage.reset()
        return False

    parts = Parts(1000 * MUCH)
    async with against(goads, tls=tls) as (pool, _):
        assert told(await pool.send(post(parts, parts.total), LATER)) == (UNKNOWN, "network")
    assert 0 < parts.given < MUCH


@on_both_loops
async def test_a_peer_that_does_not_read_a_body_in_memory_is_left_at_the_deadline(tls: Authority | None) -> None:
    async with against(never_continues, answers(200), tls=tls) as (pool, _):
        assert told(await pool.send(post(b"x" * MUCH), SOON)) == (UNKNOWN, "timeout")
        assert isinstance(await pool.send(post(), LATER), Answer)


@on_both_loops
async def test_a_body_that_does_not_come_is_left_at_the_deadline(tls: Authority | None) -> None:
    parts = Stuck(MUCH)
    async with against(answers(200), tls=tls) as (pool, server):
        fault = await pool.send(post(parts, MUCH), SOON)
        assert told(fault) == (UNKNOWN, "timeout")
        assert "not taken" in str(fault)
        assert parts.closed
        assert not server.heard
        assert isinstance(await pool.send(post(), LATER), Answer)


@pytest.mark.parametrize("make", [Parts, Stuck])
@on_both_loops
async def test_an_answer_while_the_body_is_sent_is_the_answer(make: type[Parts], tls: Authority | None) -> None:
    parts = make(1000 * MUCH)
    refusal = answers_the_head(response(403, b"no", {"X-Why": "because"}))
    async with against(refusal, answers(200), tls=tls) as (pool, server):
        answer = await pool.send(post(parts, parts.total), LATER)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.headers["x-why"]) == (403, b"no", "because")
        assert parts.closed
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert server.heard[1].body == b"payload", "the connection of the first did not serve again"


@on_both_loops
async def test_success_before_the_request_is_whole_is_not_believed(tls: Authority | None) -> None:
    async with against(answers_the_head(OK), tls=tls) as (pool, _):
        parts = Stuck(MUCH)
        assert told(await pool.send(post(parts, MUCH), LATER)) == (UNKNOWN, "protocol")


class Lingering(SliceReader):
    """A file whose end is found only when it is let go; until it `lingers` it is like any other."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        super().__init__(os.open(path, os.O_RDONLY), FileSlice(str(path), 0, self._size))
        self.lingers = False
        self.let_go = threading.Event()

    def readinto(self, buffer: Any) -> int:
        if self.lingers and self.tell() == self._size:
            self.let_go.wait()
        return super().readinto(buffer)


@pytest.mark.parametrize("trailer", [True, False], ids=["in chunks", "with a length"])
@on_both_loops
async def test_success_is_believed_as_soon_as_the_last_byte_is_written(
    trailer: bool, tls: Authority | None, tmp_path: Path
) -> None:
    (tmp_path / "payload").write_bytes(PART * 40)
    how = Guard(secure=trailer, trailer=trailer, checksum=True, signed=not trailer, algorithm=None)
    async with against(answers(200), tls=tls) as (pool, server):
        with Lingering(tmp_path / "payload") as payload:
            upload = await big(payload, how)
            framing = b"Transfer-Encoding: chunked" if trailer else b"Content-Length: %d" % (upload.length or 0)
            payload.lingers = True
            try:
                outcome = await pool.send(
                    lambda: Request(b"PUT / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % framing, upload.body), LATER
                )
            finally:
                payload.let_go.set()
    assert isinstance(outcome, Answer), outcome
    assert PART * 16 in server.heard[0].body


@on_both_loops
async def test_a_connection_that_ends_while_the_body_is_sent_is_unknown(tls: Authority | None) -> None:
    async def act(stage: Stage) -> bool:
        await stage.hear(go_on=False)
        stage.reset()
        return False

    parts = Stuck(MUCH)
    async with against(act, tls=tls) as (pool, _):
        assert told(await pool.send(post(parts, MUCH), LATER)) == (UNKNOWN, "network")
    assert parts.closed


@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError])
@on_both_loops
async def test_an_error_of_the_body_is_raised_and_the_request_is_never_whole(
    error: type[Exception], tls: Authority | None
) -> None:
    def fail() -> None:
        raise error

    parts = Parts(MUCH, fail)
    async with against(answers(200), tls=tls) as (pool, server):
        with pytest.raises(error):
            await pool.send(post(parts, MUCH), LATER)
        assert parts.closed
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert [heard.body for heard in server.heard] == [b"payload"]


@on_both_loops
async def test_a_cancelled_upload_closes_its_body_and_its_connection(tls: Authority | None) -> None:
    parts = Stuck(MUCH)
    async with against(never_continues, answers(200), tls=tls) as (pool, server):
        call = asyncio.create_task(pool.send(post(parts, MUCH), LATER))
        await server.hears(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert parts.closed
        assert isinstance(await pool.send(post(), LATER), Answer)


# --- 100-continue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
@on_both_loops
async def test_the_body_waits_for_the_word_to_go_on(streamed: bool, tls: Authority | None) -> None:
    parts = Parts(len(PART))
    asked = []

    async def act(stage: Stage) -> bool:
        head = await stage.reader.readuntil(b"\r\n\r\n")
        asked.append((b"Expect: 100-continue" in head, parts.given, len(bytes(stage.reader._buffer))))  # type: ignore[attr-defined]
        stage.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await stage.reader.readexactly(len(PART)) == PART
        stage.writer.write(OK)
        return True

    async with against(act, tls=tls, continue_seconds=1e6) as (pool, _):
        body = parts if streamed else PART
        for _ in range(2):
            parts.given = 0
            assert isinstance(await pool.send(post(body, len(PART), expects_continue=True), LATER), Answer)
    assert asked == [(True, 0, 0)] * 2


@on_both_loops
async def test_without_a_word_the_body_goes_all_the_same() -> None:
    async def act(stage: Stage) -> bool:
        await stage.reader.readuntil(b"\r\n\r\n")
        assert await stage.reader.readexactly(len(PART)) == PART
        stage.writer.write(OK)
        return True

    async with against(act, continue_seconds=0.01) as (pool, _):
        assert isinstance(await pool.send(post(PART, expects_continue=True), LATER), Answer)


@on_both_loops
async def test_the_deadline_holds_while_the_word_is_waited_for(tls: Authority | None) -> None:
    async with against(never_continues, tls=tls) as (pool, _):
        parts = Parts(MUCH)
        assert told(await pool.send(post(parts, MUCH, expects_continue=True), SOON)) == (UNKNOWN, "timeout")
        assert not parts.given


@on_both_loops
async def test_a_refusal_instead_of_the_word_is_the_answer_and_no_body_is_sent(tls: Authority | None) -> None:
    async with against(answers_the_head(response(417)), answers(200), tls=tls) as (pool, _):
        parts = Parts(MUCH)
        answer = await pool.send(post(parts, MUCH, expects_continue=True), LATER)
        assert isinstance(answer, Answer)
        assert (answer.status, parts.given) == (417, 0)
        assert isinstance(await pool.send(post(), LATER), Answer)
