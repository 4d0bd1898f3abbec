"""A stop while an archive is unpacked: it ends at the next chunk, leaves nothing half done, and the next start goes on."""

import gzip
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Jobs, a_sandbox, audit, dispatch, numbered, started
from tests.sandboxes import eventually
from tests.services import serving

MEMBER = gzip.compress((b" " * 0xFFFFF + b"\n") * 32)
MEMBERS = 24
"""Blank lines of a mebibyte each: 768 MiB, which take a second to unpack, and 1 MB packed."""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def large(jobs: Jobs) -> bytes:
    """An archive with these jobs and very much of nothing."""
    return gzip.compress(b"".join(line + b"\n" for line in jobs.lines)) + MEMBER * MEMBERS


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_service_that_is_stopped_while_it_unpacks_leaves_the_archive_alone_and_takes_it_up_again(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    jobs = numbered(3)
    with serving(tmp_path, sandbox) as service:
        work = service.spool.path / "work"
        service.spool.drop("a.jsonl.gz", large(jobs))
        eventually(lambda: list(work.glob("*.part")), 20.0)
        service.stop()
        (archive,) = names(work)
        assert archive.endswith("a.jsonl.gz")
    with serving(tmp_path, sandbox) as service:
        service.spool.until_finished("a.jsonl.gz", seconds=40.0)
        service.stop()
        assert names(work) == []
    assert audit(jobs, service.spool.results("a.jsonl.gz"), sandbox).states() == {"succeeded": 3}


def test_a_run_that_is_interrupted_while_it_unpacks_leaves_no_copy_and_the_same_command_goes_on(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    jobs = numbered(3)
    (tmp_path / "a.jsonl.gz").write_bytes(large(jobs))
    command = ("run", "a.jsonl.gz", "--endpoint", ENDPOINT, "--output", "out")
    work = tmp_path / "out" / "ledger.db.work"
    with started(tmp_path, sandbox, *command) as running:
        eventually(lambda: list(work.glob("*.part")), 20.0)
        running.signal(signal.SIGINT)
        ended = running.end(20.0)
    assert (ended.status, "Traceback" in ended.err) == (130, False), ended.said
    assert "interrupted before anything was accepted" in ended.err
    assert names(work) == []
    again = dispatch(tmp_path, sandbox, *command)
    assert again.status == 0, again.said
    assert audit(jobs, tmp_path / "out", sandbox).states() == {"succeeded": 3}
