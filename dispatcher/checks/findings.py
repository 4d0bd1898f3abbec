"""What a check finds: one value, one line. And the two ways in which a check is kept from taking for ever."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeVar

from msgspec import Struct

T = TypeVar("T")

CHECK_SECONDS = 60.0
"""The bound of one check; each question to AWS within it has the deadline that any attempt has."""
DISK_SECONDS = 5.0
"""A disk that takes longer to write one small file is no place for a ledger."""


class Verdict(StrEnum):
    """How a check came out. Only FAILED makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


class Finding(Struct, frozen=True):
    """What one check found; `advice` says what to do about it, and is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works, and could bite."""
    return Finding(check, Verdict.WARNING, text, advice)


def failed(check: str, text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAILED, text, advice)


def unknown(check: str, text: str, advice: str = "") -> Finding:
    """It could not be looked at."""
    return Finding(check, Verdict.NOT_CHECKED, text, advice)


Findings = list[Finding]


async def bounded(check: str, work: Awaitable[Findings], seconds: float = CHECK_SECONDS) -> Findings:
    """The findings of one check. One that takes too long, or breaks, fails alone."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        return [
            failed(check, f"no answer within {seconds:g} s", "find out what hangs: a disk, a name service, a proxy")
        ]
    except Exception as error:  # a bug in one check shall not hide what the others found
        return [failed(check, f"the check itself broke: {type(error).__name__}: {error}", "report this")]


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Calls `function` in a thread that nobody waits for at the end: one that hangs in a dead disk must not hold the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # given up on meanwhile
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, problem = None, None
        try:
            result = function(*arguments)
        except Exception as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=work, name="check", daemon=True).start()
    return await done
