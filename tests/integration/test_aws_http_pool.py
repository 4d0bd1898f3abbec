"""Whose connection it is, and for how long: reuse, rest, waiting, cancelling, closing; on both event loops."""

import asyncio
import os
import random
import select
import socket
import time

import pytest

from dispatcher.aws.answers import Limits
from dispatcher.aws.exchange import Connection
from dispatcher.aws.http import Answer, Origin, Pool, Request
from dispatcher.interfaces import Fault, FaultKind
from tests.scripted import Act, Stage, answers, hangs_after_reading, response
from tests.wires import OK, Authority, against, authority, listening, on_both_loops, post, told, writes

LATER, SOON = 20.0, 0.2
NOT_SENT, UNKNOWN = FaultKind.NOT_SENT, FaultKind.UNKNOWN


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, ca: Authority) -> Authority | None:
    return ca if request.param == "tls" else None


class Peers:
    """The connections that a server has seen, in the order of their first requests, and who took which request."""

    def __init__(self, then: Act) -> None:
        self.seen: list[asyncio.StreamWriter] = []
        self.took: list[int] = []
        self._then = then

    async def act(self, stage: Stage) -> bool:
        if stage.writer not in self.seen:
            self.seen.append(stage.writer)
        self.took.append(self.seen.index(stage.writer))
        return await self._then(stage)


def gated(gate: asyncio.Event) -> Act:
    """Hears the request and answers when the gate opens."""

    async def act(stage: Stage) -> bool:
        await stage.hear()
        await gate.wait()
        stage.writer.write(OK)
        return True

    return act


def all_answered(outcomes: list[Answer | Fault]) -> bool:
    return all(isinstance(outcome, Answer) for outcome in outcomes)


@on_both_loops
async def test_the_connection_used_last_is_used_next(tls: Authority | None) -> None:
    peers = Peers(answers(200))
    async with against(peers.act, tls=tls, connections=4) as (pool, _):
        assert all_answered(await asyncio.gather(*(pool.send(post(), LATER) for _ in range(4))))
        for _ in range(3):
            assert isinstance(await pool.send(post(), LATER), Answer)
    assert len(peers.seen) == 4
    assert len(set(peers.took[4:])) == 1


@on_both_loops
async def test_no_more_connections_are_made_than_allowed_and_callers_wait_in_order() -> None:
    order: list[int] = []

    async def send(number: int) -> Answer | Fault:
        def make() -> Request:
            order.append(number)
            return post()()

        return await pool.send(make, LATER)

    peers = Peers(answers(200))
    async with against(peers.act, connections=2) as (pool, _):
        assert all_answered(await asyncio.gather(*(send(number) for number in range(30))))
    assert len(peers.seen) == 2
    assert [number for number in order if number > 1] == list(range(2, 30)), "the first two wait for nobody"


@on_both_loops
async def test_a_connection_that_the_server_closes_at_rest_costs_no_request(tls: Authority | None) -> None:
    gone = asyncio.Event()

    async def closes(stage: Stage) -> bool:
        await writes(OK)(stage)
        await stage.writer.drain()
        if tls is None:
            stage.writer.write_eof()
            await stage.reader.read()  # the client has closed as well
            gone.set()
            return False
        stage.writer.close()
        await stage.writer.wait_closed()
        gone.set()
        return False

    async with against(closes, answers(200), tls=tls) as (pool, server):
        assert isinstance(await pool.send(post(), LATER), Answer)
        await gone.wait()
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert len(server.heard) == 2


@on_both_loops
async def test_a_connection_that_just_ended_is_not_used_before_the_loop_says_that_it_is_lost() -> None:
    async with against(answers(200)) as (pool, server):
        assert isinstance(await pool.send(post(), LATER), Answer)
        pool._resting[0].drop()  # as when something came at rest
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert len(server.heard) == 2


LAST_WORDS = {"an end": b"", "rubbish": b"rubbish", "an answer": OK, "a refusal": response(400)}
speaks_unasked = pytest.mark.parametrize("last_words", LAST_WORDS.values(), ids=LAST_WORDS.keys())


@speaks_unasked
@on_both_loops
async def test_what_came_at_rest_and_was_not_yet_read_costs_no_request(last_words: bytes) -> None:
    peers = []

    async def act(stage: Stage) -> bool:
        peers.append(stage.writer)
        return await writes(OK)(stage)

    async with against(act) as (pool, server):
        assert isinstance(await pool.send(post(), LATER), Answer)
        behind_the_loops_back(peers[0], last_words, pool)
        answer = await pool.send(post(), LATER)
        assert isinstance(answer, Answer)
        assert answer.status == 200
        assert len(server.heard) == 2
        assert len(peers) == 2


@speaks_unasked
@on_both_loops
async def test_what_came_before_a_connection_was_passed_on_costs_no_request_and_no_place(last_words: bytes) -> None:
    peers = Peers(writes(OK))
    served: list[int] = []

    async def send(number: int) -> None:
        answer = await pool.send(post(), LATER)
        if not number:  # the next one has been given the connection, and has not had its turn
            behind_the_loops_back(peers.seen[0], last_words, pool)
        assert isinstance(answer, Answer)
        assert answer.status == 200
        served.append(number)

    async with against(peers.act) as (pool, server):
        await asyncio.gather(*(send(number) for number in range(4)))
        assert len(server.heard) == 4
    assert peers.took == [0, 1, 1, 1]
    assert served == [0, 1, 2, 3]


def behind_the_loops_back(peer: asyncio.StreamWriter, data: bytes, pool: Pool) -> None:
    """Writes to a peer's socket, or ends its sending side; at once, and until it has come to the pool's only connection."""
    with socket.socket(fileno=os.dup(peer.get_extra_info("socket").fileno())) as same:
        if data:
            same.send(data)
        else:
            same.shutdown(socket.SHUT_WR)
    (connection,) = pool._open
    come = select.poll()
    come.register(connection._transport.get_extra_info("socket").fileno(), select.POLLIN)
    assert come.poll(10_000)


@on_both_loops
async def test_one_connection_serves_many_one_after_the_other(tls: Authority | None) -> None:
    """Over TLS as well, where tickets come with the first answer."""
    peers = Peers(answers(200))
    async with against(peers.act, tls=tls) as (pool, _):
        for _ in range(30):
            assert isinstance(await pool.send(post(), LATER), Answer)
        assert all_answered(await asyncio.gather(*(pool.send(post(), LATER) for _ in range(30))))
    assert peers.took == [0] * 60


@on_both_loops
async def test_bytes_that_come_at_rest_end_the_connection() -> None:
    gone = asyncio.Event()

    async def act(stage: Stage) -> bool:
        await stage.hear()
        stage.writer.write(OK)
        await heard.wait()
        stage.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")
        await stage.reader.read()
        gone.set()
        return False

    heard = asyncio.Event()
    async with against(act, answers(204)) as (pool, _):
        assert isinstance(await pool.send(post(), LATER), Answer)
        heard.set()
        await gone.wait()
        answer = await pool.send(post(), LATER)
        assert isinstance(answer, Answer)
        assert answer.status == 204, "the answer to nothing is nobody's"


@on_both_loops
async def test_an_answer_before_any_request_ends_the_connection() -> None:
    async def talks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read()

    loop, lost = asyncio.get_running_loop(), asyncio.Event()
    async with listening(talks_first) as port:
        connection = Connection(loop, Limits(1_000, 1_000, 1.0))
        connection.on_lost = lambda _: lost.set()
        await loop.create_connection(lambda: connection, "127.0.0.1", port)
        await lost.wait()
        assert not connection.free


@on_both_loops
async def test_a_connection_that_rested_too_long_is_closed_and_not_used(tls: Authority | None) -> None:
    peers = Peers(answers(200))
    async with against(peers.act, tls=tls, idle_seconds=0.02) as (pool, _):
        assert isinstance(await pool.send(post(), LATER), Answer)
        time.sleep(0.03)  # noqa: ASYNC251 - the rest; no turn of the event loop that could close it
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert len(peers.seen) == 2


@on_both_loops
async def test_a_connection_that_nobody_uses_is_closed_in_time(tls: Authority | None) -> None:
    gone = asyncio.Event()

    async def act(stage: Stage) -> bool:
        await writes(OK)(stage)
        await stage.reader.read()
        gone.set()
        return False

    async with against(act, tls=tls, idle_seconds=0.1) as (pool, _):
        assert isinstance(await pool.send(post(), LATER), Answer)
        await gone.wait()


@on_both_loops
async def test_who_waits_too_long_for_a_connection_has_sent_nothing() -> None:
    gate = asyncio.Event()
    made: list[int] = []

    def make() -> Request:
        made.append(1)
        return post()()

    async with against(gated(gate)) as (pool, server):
        busy = asyncio.create_task(pool.send(post(), LATER))
        await server.hears(1)
        outcome = await pool.send(make, SOON)
        assert told(outcome) == (NOT_SENT, "network")
        assert not made
        gate.set()
        assert isinstance(await busy, Answer)
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert len(server.heard) == 2


@on_both_loops
async def test_a_request_is_made_only_when_its_connection_is_there() -> None:
    gate = asyncio.Event()
    made: list[int] = []

    def make() -> Request:
        made.append(len(server.heard))
        return post()()

    async with against(gated(gate)) as (pool, server):
        first, second = (asyncio.create_task(pool.send(make, LATER)) for _ in range(2))
        await server.hears(1)
        assert made == [0]
        gate.set()
        assert all_answered([await first, await second])
        assert made == [0, 1]


@on_both_loops
async def test_a_request_that_cannot_be_made_leaves_the_connection_good() -> None:
    peers = Peers(answers(200))
    async with against(peers.act) as (pool, server):
        assert isinstance(await pool.send(post(), LATER), Answer)
        with pytest.raises(ZeroDivisionError):
            await pool.send(lambda: 1 // 0, LATER)  # type: ignore[arg-type, return-value]
        assert isinstance(await pool.send(post(), LATER), Answer)
        assert len(server.heard) == 2
    assert len(peers.seen) == 1


@on_both_loops
async def test_a_cancelled_call_ends_its_connection_and_frees_its_place(tls: Authority | None) -> None:
    async with against(hangs_after_reading, answers(200), tls=tls) as (pool, server):
        call = asyncio.create_task(pool.send(post(), LATER))
        await server.hears(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert isinstance(await pool.send(post(), LATER), Answer)


@on_both_loops
async def test_a_storm_of_cancels_leaves_every_place_free(tls: Authority | None) -> None:
    dice = random.Random(7)
    peers = Peers(answers(200))
    async with against(peers.act, tls=tls, connections=4) as (pool, server):
        for _ in range(40):
            calls = [asyncio.create_task(pool.send(post(), LATER)) for _ in range(12)]
            for call in dice.sample(calls, 8):
                for _ in range(dice.randrange(6)):
                    await asyncio.sleep(0)
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, (Answer, asyncio.CancelledError)) for outcome in outcomes), outcomes
        before = len(server.heard)
        gate = asyncio.Event()
        peers._then = gated(gate)
        calls = [asyncio.create_task(pool.send(post(), LATER)) for _ in range(5)]
        await server.hears(before + 4)
        gate.set()
        assert all_answered(await asyncio.gather(*calls))


@on_both_loops
async def test_closing_ends_every_call_and_says_which_was_sent(tls: Authority | None) -> None:
    async with against(hangs_after_reading, tls=tls) as (pool, server):
        busy = asyncio.create_task(pool.send(post(), LATER))
        await server.hears(1)
        waiting = asyncio.create_task(pool.send(post(), LATER))
        await asyncio.sleep(0)
        await asyncio.gather(pool.aclose(), pool.aclose())
        assert told(await busy) == (UNKNOWN, "network")
        assert told(await waiting) == (NOT_SENT, "network")
        assert told(await pool.send(post(), LATER)) == (NOT_SENT, "network")
        assert len(server.heard) == 1


@on_both_loops
async def test_closing_ends_a_connect_that_hangs(ca: Authority) -> None:
    accepted = asyncio.Event()

    async def says_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()

    async with listening(says_nothing) as port:
        pool = Pool(Origin("127.0.0.1", port, ca.trusting(), "localhost"), connections=1, connect_seconds=1e6)
        call = asyncio.create_task(pool.send(post(), 1e6))
        await accepted.wait()
        await pool.aclose()
        fault = await call
        assert told(fault) == (NOT_SENT, "network")
        assert "closed" in str(fault)


@on_both_loops
async def test_many_callers_over_few_connections_each_get_their_own_answer(tls: Authority | None) -> None:
    async def echoes(stage: Stage) -> bool:
        heard = await stage.hear()
        stage.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(heard.body), heard.body))
        return True

    async with against(echoes, tls=tls, connections=8) as (pool, _):
        answers_ = await asyncio.gather(*(pool.send(post(b"%d" % n), LATER) for n in range(500)))
    assert [answer.body for answer in answers_ if isinstance(answer, Answer)] == [b"%d" % n for n in range(500)]
