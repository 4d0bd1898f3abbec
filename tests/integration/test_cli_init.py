"""The program as process 1, in a pid namespace of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Running, numbered, started
from tests.sandboxes import eventually
from tests.services import DRAIN_SECONDS, QUICK, Spool

ALONE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
GOES_ON = """
import os, signal, subprocess, sys, time
from dispatcher.cli.init import go_on_behind_an_init
go_on_behind_an_init()
"""


def may_make_namespaces() -> bool:
    tried = [which("unshare") or "false", *ALONE[1:], "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not may_make_namespaces(), reason="needs to make a pid namespace")


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """What comes of this as process 1 that goes on behind an init."""
    command = [*ALONE, sys.executable, "-c", GOES_ON + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def serving_alone(folder: Path, sandbox: Sandbox) -> Iterator[tuple[Running, Spool, int]]:
    """The service, ready, and the process 1 of its namespace."""
    spool = Spool(folder / "spool")
    where = ("--spool", spool.path, "--listen", "127.0.0.1:0", "--log-format", "json", "--endpoint", ENDPOINT)
    with started(folder, sandbox, "serve", *where, *QUICK, "--max-in-flight", "1", before=ALONE) as running:
        eventually(lambda: '"event": "ready"' in running.err.read_text(), 30.0)
        (first,) = children(running.process.pid)
        yield running, spool, first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_process_1_drains(number: signal.Signals, tmp_path: Path, sandbox: Sandbox) -> None:
    with serving_alone(tmp_path, sandbox) as (running, _, first):
        os.kill(first, number)
        ended = running.end(DRAIN_SECONDS)
    assert ended.status == 0, ended.said
    assert '"event": "drained"' in ended.err


def test_a_second_signal_to_process_1_ends_it_at_once(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[{"operation": "invoke", "kind": "hang_before"}])
    with serving_alone(tmp_path, sandbox) as (running, spool, first):
        spool.drop("a.jsonl", numbered(1))
        eventually(lambda: sandbox.counts()["open_requests"].get("invoke", 0) >= 1, 20.0)
        os.kill(first, signal.SIGTERM)
        eventually(lambda: "draining" in running.err.read_text(), 20.0)
        os.kill(first, signal.SIGTERM)
        assert running.end(DRAIN_SECONDS).status == 143


def test_an_orphan_is_reaped() -> None:
    done = alone(
        """
# The shell's own child outlives it, becomes process 1's, and ends.
orphan = int(subprocess.run(["sh", "-c", "sleep 0.1 & echo $!"], stdout=subprocess.PIPE, check=True).stdout)
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.01)
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_child_of_the_program_is_left_to_it() -> None:
    done = alone('sys.exit(subprocess.run(["sh", "-c", "exit 7"]).returncode)')
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(("end", "status"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_status_is_the_programs_own(end: str, status: int) -> None:
    assert alone(end).returncode == status


def test_any_other_process_stays_as_it_is() -> None:
    code = f"import os\nbefore = os.getpid()\n{GOES_ON}\nassert os.getpid() == before"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
