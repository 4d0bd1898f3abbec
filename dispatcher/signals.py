"""SIGINT, SIGTERM and SIGHUP: the first asks to stop, the second ends the process at once.

A clean stop may take as long as the slowest thing in flight; whoever signals again does not want to wait for it. Then the
process ends without another word, with 130 (SIGINT), 143 (SIGTERM) or 129 (SIGHUP), as after a crash: the ledger is made
for that. SIGHUP comes when a terminal goes away: a stop must not fail because nothing can be said there any more. Where it
is ignored, as under nohup, it stays so. What may wait long before anything is at stake ends at the first: `unless_stopped`.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(Exception):
    """Told to stop before there was anything to be stopped: the process ends with nothing done."""


class Stop:
    """Whether to stop. `requested` is set once, by the first signal, and never cleared; `signal` says which it was."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.signal: signal.Signals | None = None


@contextmanager
def stop_on_signals() -> Generator[Stop]:
    """Handles the signals while the block runs, and puts back the handlers that it found.

    For the main thread, with its event loop running; enter it before anything slow begins. An explicit handler is what
    makes SIGTERM work for process 1 at all.
    """
    stop = Stop()
    loop = asyncio.get_running_loop()
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def on_signal(number: int, _: FrameType | None) -> None:
        # Runs between two bytecodes of the main thread, so that the second signal works though the loop is stuck.
        if stop.signal is not None:
            os._exit(128 + number)
        if number == signal.SIGHUP:
            _silence(terminals)
        stop.signal = signal.Signals(number)
        loop.call_soon_threadsafe(stop.requested.set)

    handled = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    found = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


@asynccontextmanager
async def unless_stopped(stop: Stop) -> AsyncGenerator[None]:
    """Cancels the block as soon as a stop is requested, and raises StoppedError; what it has opened it closes on its way out."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:

            def end(_: asyncio.Task[object]) -> None:
                limit.reschedule(loop.time())

            requested = asyncio.create_task(stop.requested.wait())
            requested.add_done_callback(end)
            try:
                yield
            finally:
                requested.remove_done_callback(end)
                requested.cancel()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StoppedError("told to stop before it was begun") from error


def _silence(descriptors: list[int]) -> None:
    """What is said on a terminal that may be gone goes nowhere from now on; writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
