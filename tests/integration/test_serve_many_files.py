"""Many job files at once: large ones, however many are being read, do not keep a small one waiting."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from dispatcher.sources.turns import SMALL_BYTES
from tests.programs import ENDPOINT, a_sandbox, dispatch, numbered
from tests.sandboxes import eventually
from tests.services import Spool, serving, status

LARGE_FILES = 140
"""More than are read side by side, of either size."""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with a_sandbox(tmp_path) as running:
        yield running


def drop_large(spool: Spool) -> None:
    """So many files of some 200,000 lines each, which is more than is read in the time of this test; one file, with many names."""
    line = numbered(1).lines[0] + b"\n"
    one = spool.path / "large"
    one.write_bytes(line * (SMALL_BYTES // len(line) + 1))
    for number in range(LARGE_FILES):
        os.link(one, spool.inbox / f"large-{number:03}.jsonl")


def test_a_small_file_is_read_while_more_large_ones_are_read_than_have_their_turn(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox) as service:
        spool = service.spool
        assert dispatch(tmp_path, None, "lane", ENDPOINT, "--pause", "--spool", spool.path).status == 0
        drop_large(spool)
        eventually(lambda: len(status(spool)["files"]) == LARGE_FILES, 40.0)
        spool.drop("small.jsonl", numbered(10))
        small = eventually(lambda: [one for one in status(spool)["files"] if one["name"] == "small.jsonl"], 40.0)
        eventually(lambda: not status(spool)["files"][-1]["reading"], 40.0)
        said = status(spool)["files"]
        assert (small[0]["name"], said[-1]["name"], said[-1]["accepted"]) == ("small.jsonl", "small.jsonl", 10)
        assert sum(one["reading"] for one in said) == LARGE_FILES, "or this test shows nothing"
        assert sum(one["lines"] > 0 for one in said[:-1]) < LARGE_FILES
        service.stop()
