"""Signals, sent to a real process that handles them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest

from dispatcher.signals import stop_on_signals

CLEAN = """
import {loop} as loop
from dispatcher.signals import stop_on_signals

async def main():
    with stop_on_signals() as stop:
        print("ready", flush=True)
        await stop.requested.wait()
        print(stop.signal.name, flush=True)

loop.run(main())
print("over", flush=True)
"""
STUCK = """
import asyncio, time
from dispatcher.signals import stop_on_signals

async def main():
    with stop_on_signals() as stop:
        print("ready", flush=True)
        await stop.requested.wait()
        print("stopping", flush=True)
        time.sleep(600)

asyncio.run(main())
"""
Child = subprocess.Popen[str]


@contextmanager
def child(code: str, *before: str) -> Iterator[Child]:
    command = [*before, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def hears(process: Child, line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n", process.stderr and process.stderr.read()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop_and_says_which(loop: str, number: signal.Signals) -> None:
    with child(CLEAN.format(loop=loop)) as process:
        hears(process, "ready")
        process.send_signal(number)
        hears(process, number.name)
        hears(process, "over")
        assert process.wait() == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("second", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_second_signal_ends_the_process_though_the_loop_is_stuck(
    first: signal.Signals, second: signal.Signals, status: int
) -> None:
    with child(STUCK) as process:
        hears(process, "ready")
        process.send_signal(first)
        hears(process, "stopping")
        process.send_signal(second)
        assert process.wait() == status


def may_make_namespaces() -> bool:
    tried = [which("unshare") or "false", "--pid", "--fork", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_make_namespaces(), reason="needs to make a pid namespace")
def test_process_1_stops_at_sigterm() -> None:
    code = f"import os\nassert os.getpid() == 1\n{CLEAN.format(loop='asyncio')}"
    with child(code, "unshare", "--pid", "--fork", "--kill-child") as process:
        hears(process, "ready")
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        hears(process, "SIGTERM")
        assert process.wait() == 0


async def test_the_handlers_that_were_there_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_the_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), stop_on_signals():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) is before


async def test_nothing_is_requested_before_a_signal() -> None:
    with stop_on_signals() as stop:
        await asyncio.sleep(0)
        assert not stop.requested.is_set()
        assert stop.signal is None


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    with child(CLEAN.format(loop="asyncio"), "sh", "-c", 'trap "" HUP; exec "$@"', "sh") as process:
        hears(process, "ready")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        hears(process, "SIGTERM")
        assert process.wait() == 0
