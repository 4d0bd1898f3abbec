"""The sandbox as a process: how it says where it is, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sandboxes import client, eventually

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from dispatcher.sandbox.process import start_sandbox
with start_sandbox() as sandbox:
    print(sandbox.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def python(*arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that is killed at the end if it still runs; `env` is added to its environment."""
    command = [sys.executable, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        try:
            yield child
        finally:
            child.kill()


def first_line(child: subprocess.Popen[bytes]) -> Any:
    assert child.stdout is not None
    return json.loads(child.stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(number: signal.Signals, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    settings = tmp_path / "settings.json"
    settings.write_text('{"endpoints": {"from-file": {}}}')
    flags = ("--settings", str(settings), "--port", "0", "--record", str(record), "--time-scale", "0.5")
    with python("-m", "dispatcher.sandbox", *flags) as child:
        said = first_line(child)
        assert said["record"] == str(record)
        with client("sagemaker-runtime", said["url"]) as runtime:
            runtime.invoke_endpoint_async(EndpointName="from-file", Body=b"x")
        child.send_signal(number)
        _, errors = child.communicate(timeout=20)
        assert (child.returncode, errors) == (0, b"")
    assert len(record.read_text().splitlines()) == 2


def test_settings_that_make_no_sense_end_it_with_status_2() -> None:
    with python("-m", "dispatcher.sandbox", "--settings", '{"no_such": 1}') as child:
        _, errors = child.communicate(timeout=20)
        assert child.returncode == 2
        assert b"no_such" in errors


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with python("-c", HOLDER, TMPDIR=str(tmp_path)) as parent:
        pid = first_line(parent)
        os.kill(pid, 0)
        parent.kill()
        parent.wait(10)
        eventually(lambda: not runs(pid), 20.0)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
