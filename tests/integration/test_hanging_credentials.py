"""A credential process that hangs, and real programs that wait for it: they say so, they can be stopped, and it does not stay."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dispatcher.aws.clients import ClientSettings, clients
from dispatcher.aws.credentials import ANSWER_SECONDS
from dispatcher.errors import UsageError
from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, a_sandbox, started
from tests.sandboxes import eventually
from tests.scripted import aws_environment
from tests.services import serving

HANGS = """
import os, pathlib, subprocess, sys, time
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(f"{os.getpid()} {own.pid}")
part.rename(sys.argv[1])
time.sleep(600)
"""
DIRECT = "[default]\ncredential_process = {command}\n"
BORROWED = (
    "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = other\n"
    "[profile other]\ncredential_process = {command}\n"
)


class Hanging:
    """A credential process that never answers, and has started another one."""

    def __init__(self, folder: Path) -> None:
        self._pids = folder / "pids"
        self._script = folder / "hangs.py"
        self._script.write_text(HANGS)
        self._config = folder / "config"
        self.use(DIRECT)
        self.env: dict[str, Any] = {
            "AWS_CONFIG_FILE": str(self._config),
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
        }

    def use(self, config: str) -> None:
        self._config.write_text(config.format(command=f"{sys.executable} {self._script} {self._pids}"))

    def pids(self) -> list[int]:
        """Of both, as soon as they run."""
        return [int(pid) for pid in self._pids.read_text().split()] if self._pids.exists() else []

    def until_asked(self) -> None:
        eventually(self.pids, 30.0)

    def is_gone(self) -> bool:
        """Whether neither runs; what nobody has buried does not run."""
        return not any(runs(pid) for pid in self.pids())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    made = Hanging(tmp_path)
    try:
        yield made
    finally:
        for pid in filter(runs, made.pids()):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


async def open_clients(provider_seconds: float = ANSWER_SECONDS) -> None:
    async with clients(ClientSettings(max_in_flight=4, provider_seconds=provider_seconds)):
        pass


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("config", [DIRECT, BORROWED])
def test_whoever_stops_waiting_leaves_no_process_behind(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop], config: str
) -> None:
    aws_environment(monkeypatch, "http://127.0.0.1:1")
    hanging.use(config)
    for name, value in hanging.env.items():
        monkeypatch.setenv(name, value)

    async def give_up() -> None:
        opening = asyncio.create_task(open_clients())
        await asyncio.to_thread(hanging.until_asked)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        await asyncio.to_thread(eventually, hanging.is_gone)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(give_up())


async def test_a_provider_that_does_not_answer_in_time_is_a_usage_error_that_names_it(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws_environment(monkeypatch, "http://127.0.0.1:1")
    for name, value in hanging.env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"cannot be had: custom-process did not answer within 0\.1 s; put that right"):
        await open_clients(provider_seconds=0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_run_that_waits_for_its_credentials(
    tmp_path: Path, sandbox: Sandbox, hanging: Hanging, number: signal.Signals
) -> None:
    (tmp_path / "a.jsonl").write_text('{"payload": 1}\n')
    with started(tmp_path, sandbox, "run", "a.jsonl", "--endpoint", ENDPOINT, **hanging.env) as running:
        hanging.until_asked()
        running.signal(number)
        ended = running.end(20.0)
        assert (ended.status, "Traceback" in ended.err) == (130, False), ended.said
        assert "interrupted before anything was accepted" in ended.err
        eventually(hanging.is_gone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_service_that_waits_for_its_credentials(
    tmp_path: Path, sandbox: Sandbox, hanging: Hanging, number: signal.Signals
) -> None:
    with serving(tmp_path, sandbox, wait=False, **hanging.env) as service:
        hanging.until_asked()
        service.stop(number)
        assert service.said("stopped")
        assert not service.said("draining")
        eventually(hanging.is_gone)
