"""SIGINT and SIGTERM: the first asks to stop, the second ends the process at once.

A clean stop may take as long as the slowest thing in flight; whoever signals again does not want to wait for it. Then the
process ends without another word, with 130 (SIGINT) or 143 (SIGTERM), as after a crash: the ledger is made for that.
"""

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    def on_signal(number: int, _: FrameType | None) -> None:
        # Runs between two bytecodes of the main thread, so that the second signal works though the loop is stuck.
        if stop.signal is not None:
            os._exit(128 + number)
        stop.signal = signal.Signals(number)
        loop.call_soon_threadsafe(stop.requested.set)

    found = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
