"""The control socket of the ledger's owner: a unix socket beside the ledger, mode 0600; a JSON line asks, a JSON line answers.

While a process owns a ledger, nobody else can open it, so whoever wants to know something asks the owner here.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from dispatcher.errors import DispatcherError, UsageError

REQUEST_MAX_BYTES = 64 * 1024
ANSWER_MAX_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 600.0

Answer = Callable[[dict[str, Any]], Awaitable[Any]]
"""Answers one request with something that is JSON; DispatcherError is passed on to whoever asked."""


def socket_path(ledger: Path) -> Path:
    """Where the owner of this ledger listens."""
    return ledger.with_name(ledger.name + ".sock")


@asynccontextmanager
async def control_socket(ledger: Path, answer: Answer) -> AsyncIterator[None]:
    """Answers while the block runs. Only for the ledger's owner: an old socket is removed first."""
    path = socket_path(ledger)
    path.unlink(missing_ok=True)
    with _short_name(path) as name:  # until the server is closed, which removes the socket by this name
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(_talker(answer), name, limit=REQUEST_MAX_BYTES)
        finally:
            os.umask(before)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)


async def ask(ledger: Path, request: dict[str, Any]) -> Any | None:
    """The owner's answer; None where nobody owns the ledger. An error that the owner answers with is raised here."""
    try:
        with _short_name(socket_path(ledger)) as name:
            reader, writer = await asyncio.open_unix_connection(name, limit=ANSWER_MAX_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await reader.readline()
    except (TimeoutError, ValueError, ConnectionError) as error:
        raise DispatcherError(f"the process that owns {ledger} did not answer: {error}") from error
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    if not line:
        raise DispatcherError(f"the process that owns {ledger} ended while it was asked")
    said = msgspec.json.decode(line)
    if "error" in said:
        raise UsageError(said["error"])
    return said["answer"]


def _talker(answer: Answer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                line = await _request(reader)
                said = _error(f"a request has at most {REQUEST_MAX_BYTES} bytes") if line is None else None
            writer.write((said or await _answered(line or b"", answer)) + b"\n")
            await writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # whoever does not ask, or leaves, gets no answer; nothing was changed
        finally:
            writer.close()

    return talk


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    """A line; None for one that is too long, which is read to its end (or as long as its writer may take) and thrown away:
    who has not sent all of it does not hear the answer."""
    too_long = False
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return None if too_long else error.partial
        except asyncio.LimitOverrunError as error:
            too_long = True
            await reader.readexactly(error.consumed)
        else:
            return None if too_long else line


async def _answered(line: bytes, answer: Answer) -> bytes:
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
        return msgspec.json.encode({"answer": await answer(request)})
    except (DispatcherError, msgspec.MsgspecError) as error:
        return _error(str(error))
    except (ValueError, RecursionError) as error:  # a path with a NUL; JSON that is nested for its own sake
        return _error(f"the request cannot be answered: {error}")


def _error(text: str) -> bytes:
    return msgspec.json.encode({"error": text})


class _short_name:  # noqa: N801  a context manager that reads as a function
    """A path to the socket of at most 107 bytes, which is all that a unix address holds: through the folder's descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= 100:
            return str(self._path)
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)
