"""The service while what came back cannot be put where it belongs: a folder that may not be written to, or is none."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from dispatcher.serving import PUBLISHERS, SMALL_FILES_AT_ONCE
from dispatcher.sources.patience import LOOK_SECONDS
from tests.programs import ENDPOINT, accepted, numbered
from tests.sandboxes import eventually
from tests.services import LOAD, Service, Spool, asked, audit_all, finish, serving

BARRED = "a folder cannot be used; waited for"
BACK = "what was missing is there again"

Bar = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """Nothing can be put into the folder, by whoever it may be; skips where that cannot be had."""
    chattr = shutil.which("chattr")
    if chattr is None or subprocess.run([chattr, "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("needs to make a folder immutable")
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", folder], check=True)


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """A regular file lies in the folder's place."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@pytest.fixture(params=[immutable, replaced], ids=["immutable", "a file"])
def bar(request: pytest.FixtureRequest) -> Bar:
    """A way to make a folder one that nothing can be put into, while a block runs."""
    way: Bar = request.param
    return way


def told(service: Service, text: str) -> list[dict[str, Any]]:
    """The events that begin so."""
    return [event for event in service.events() if event["event"].startswith(text)]


def held(service: Service, held: bool) -> None:
    """Holds the lane, or lets it go."""
    asked(service.spool, "lane", endpoint=ENDPOINT, held=held, limits={})


def grow(spool: Spool) -> None:
    """Adds a line to every file in `work/`."""
    for path in (spool.path / "work").glob("*.jsonl"):
        path.write_bytes(path.read_bytes() + b"{}\n")


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_wait_for_their_folder_while_other_files_are_dispatched(
    tmp_path: Path, sandbox: Sandbox, bar: Bar
) -> None:
    files = {f"{n}.jsonl": numbered(5) for n in range(2 * PUBLISHERS)}
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        with bar(spool.path / "results"):
            for name, jobs in files.items():
                spool.drop(name, jobs)
            service.until_said(BARRED)
            spool.drop("later.jsonl", numbered(5))
            eventually(lambda: accepted(sandbox) == 5 * len(files) + 5, 20.0)
            assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (200, 200)
        finish(service, sandbox, {**files, "later.jsonl": numbered(5)})
    (said,) = told(service, BARRED)
    assert (said["level"], said["place"]) == ("error", str(spool.path / "results"))
    assert "see to it" in said["error"]
    assert len(told(service, BACK)) == 1


def settled(spool: Spool) -> int:
    """How many jobs are final; a kill loses nothing of these."""
    return sum(file["accepted"] - file["outstanding"] for file in asked(spool, "status")["files"])


@pytest.mark.parametrize("name", ["results", "done"])
def test_it_drains_and_the_next_process_publishes_as_soon_as_it_can(
    name: str, tmp_path: Path, sandbox: Sandbox, bar: Bar
) -> None:
    files = {"a.jsonl": numbered(5), "b.jsonl": numbered(7)}
    Spool(tmp_path / "spool")
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        with bar(spool.path / name):
            for file, jobs in files.items():
                spool.drop(file, jobs)
            service.until_said(BARRED)
            eventually(lambda: settled(spool) == 12, 20.0)
            service.stop()
            with serving(tmp_path, sandbox, *LOAD) as second:
                spool.drop("later.jsonl", numbered(3))
                second.until_said(BARRED)
                eventually(lambda: settled(spool) == 15, 20.0)
                second.kill()
    with serving(tmp_path, sandbox, *LOAD) as service:
        finish(service, sandbox, {**files, "later.jsonl": numbered(3)})
    assert spool.names("work") == []
    assert accepted(sandbox) == 15


def test_what_is_wrong_with_a_file_is_said_once_however_often_its_results_are_tried(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        held(service, True)
        spool.drop("grown.jsonl", numbered(5))
        eventually(lambda: [file["accepted"] for file in asked(spool, "status")["files"]] == [5], 20.0)
        grow(spool)
        with replaced(spool.path / "results"):
            held(service, False)
            service.until_said(BARRED)
            time.sleep(2.5 * LOOK_SECONDS)  # a few tries more
        spool.until_finished("grown.jsonl", into="failed")
        service.stop()
    assert [event["event"][:32] for event in service.events() if event["level"] == "error"] == [
        "a folder cannot be used; waited ",
        "job file is not what was read of",
    ]


def test_half_written_results_that_cannot_be_removed_keep_nobody_from_starting(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    part = tmp_path / "spool" / "results" / ".aaaaaaaaaaaaaaaa.part"
    part.mkdir(parents=True)
    with immutable(part.parent), serving(tmp_path, sandbox, *LOAD) as service:
        assert service.said("half written results stay")
        service.stop()


# --- failed -----------------------------------------------------------------------------------------------------------


def test_what_goes_to_failed_waits_and_what_goes_to_done_does_not(tmp_path: Path, sandbox: Sandbox, bar: Bar) -> None:
    grown = {f"grown-{n}.jsonl": numbered(2) for n in range(2 * PUBLISHERS)}
    good = {f"good-{n}.jsonl": numbered(2) for n in range(2 * PUBLISHERS)}
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        held(service, True)
        for name, jobs in grown.items():
            spool.drop(name, jobs)
        eventually(lambda: sum(file["accepted"] for file in asked(spool, "status")["files"]) == 4 * PUBLISHERS, 20.0)
        grow(spool)
        with bar(spool.path / "failed"):
            held(service, False)
            service.until_said(BARRED)
            eventually(lambda: len(spool.names("results")) == len(grown), 20.0)
            for name, jobs in good.items():
                spool.drop(name, jobs)
            spool.until_finished(*good)
        spool.until_finished(*grown, into="failed")
        service.stop()
    assert (len(told(service, BARRED)), len(told(service, BACK))) == (1, 1)
    assert audit_all({**grown, **good}, spool, sandbox).keys() == {*grown, *good}


@pytest.mark.parametrize("name", ["results", "failed"])
def test_files_that_cannot_be_read_wait_for_their_refusal_and_keep_nobody_else(
    name: str, tmp_path: Path, sandbox: Sandbox, bar: Bar
) -> None:
    damaged = [f"damaged-{n}.jsonl.gz" for n in range(SMALL_FILES_AT_ONCE + 2)]
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        with bar(spool.path / name):
            for one in damaged:
                spool.drop(one, b"no archive")
            service.until_said(BARRED)
            eventually(lambda: not spool.names("inbox"), 20.0)
            spool.drop("good.jsonl", numbered(5))
            eventually(lambda: accepted(sandbox) == 5, 20.0)
            service.stop()
            assert len(told(service, BARRED)) == 1
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool.until_finished(*damaged, into="failed")
        finish(service, sandbox, {"good.jsonl": numbered(5)})
    assert spool.summary(damaged[0])["error"]["code"] == "unreadable_file"
