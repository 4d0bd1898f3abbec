"""The service while its folders go away and come back, and while its disk is full."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, accepted, numbered
from tests.sandboxes import eventually
from tests.services import LOAD, SLOW, finish, serving


def test_an_inbox_that_goes_away_and_comes_back_is_gone_on_with(tmp_path: Path, sandbox: Sandbox) -> None:
    files = {f"{name}.jsonl": numbered(5) for name in ("before", "after", "made-again")}
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool, away = service.spool, tmp_path / "away"
        spool.drop("before.jsonl", files["before.jsonl"])
        spool.until_finished("before.jsonl")
        spool.inbox.rename(away)
        service.until_said("inbox cannot be read")
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (200, 200)
        away.rename(spool.inbox)
        spool.drop("after.jsonl", files["after.jsonl"])
        spool.until_finished("after.jsonl")
        spool.inbox.rmdir()
        spool.inbox.mkdir()
        spool.drop("made-again.jsonl", files["made-again.jsonl"])
        finish(service, sandbox, files)


def test_work_that_goes_away_is_waited_for(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    files = {"a.jsonl": numbered(150), "b.jsonl": numbered(5)}
    with serving(tmp_path, sandbox, *LOAD) as service:
        work, away = service.spool.path / "work", tmp_path / "away"
        service.spool.drop("a.jsonl", files["a.jsonl"])
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        work.rename(away)
        service.until_said("a folder is missing")
        service.spool.drop("b.jsonl", files["b.jsonl"])
        service.until_said("job file cannot be taken")
        away.rename(work)
        finish(service, sandbox, files)
        assert service.said("what was missing is there again")


def test_folders_that_are_only_put_into_are_made_again(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 2.0}})
    names = ("results", "done", "failed")
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(5))
        eventually(lambda: accepted(sandbox) == 5, 20.0)
        for name in names:
            (service.spool.path / name).rmdir()
        service.spool.drop("b.jsonl.gz", b"no archive")
        service.spool.until_finished("b.jsonl.gz", into="failed")
        finish(service, sandbox, {"a.jsonl": numbered(5)})
        assert service.said("folder was missing; made again")
    assert {(service.spool.path / name).stat().st_mode & 0o777 for name in names} == {0o700}


def test_a_spool_that_goes_away_as_a_whole_is_waited_for(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 2.0}})
    jobs = numbered(5)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: accepted(sandbox) == 5, 20.0)
        service.spool.path.rename(tmp_path / "away")
        service.until_said("a folder is missing")
        assert not service.spool.path.exists(), "nothing is made where the spool was"
        (tmp_path / "away").rename(service.spool.path)
        finish(service, sandbox, {"a.jsonl": jobs})


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own where the spool will be; skips where none may be mounted."""
    path = tmp_path / "spool"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file until there is no room for more; the file."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as full:
        while True:
            full.write(bytes(65_536))
    return filler


def test_results_wait_for_room_on_a_disk_of_their_own(tmp_path: Path, sandbox: Sandbox, small_disk: Path) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"min_seconds": 3.0}})
    ledger = ("--ledger", tmp_path / "ledger.db", "--disk-reserve-bytes", "0")
    with serving(tmp_path, sandbox, *LOAD, *ledger) as service:
        service.spool.drop("a.jsonl", numbered(5))
        eventually(lambda: accepted(sandbox) == 5, 20.0)
        filler = fill(small_disk)
        service.until_said("no room on the disk; waited for")
        filler.unlink()
        finish(service, sandbox, {"a.jsonl": numbered(5)})


def test_a_disk_that_fills_up_under_it_and_is_freed_again_costs_nothing(
    tmp_path: Path, sandbox: Sandbox, small_disk: Path
) -> None:
    sandbox.patch(faults=[SLOW])
    files = {"a.jsonl": numbered(120), "b.jsonl": numbered(20)}
    with serving(tmp_path, sandbox, *LOAD, "--disk-reserve-bytes", "1000000", "--retention-seconds", "600") as service:
        service.spool.drop("a.jsonl", files["a.jsonl"])
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        filler = fill(small_disk)
        # The watermark's look or the ledger's next commit, whichever comes first: the latter lets go of its ballast.
        eventually(lambda: service.said("disk nearly full") or service.said("the ledger's disk is full"), 20.0)
        (tmp_path / "b.jsonl").write_bytes(b"".join(line + b"\n" for line in files["b.jsonl"].lines))
        filler.unlink()
        shutil.copy(tmp_path / "b.jsonl", service.spool.inbox)
        finish(service, sandbox, files)
        assert service.said("disk has room again") or service.said("the ledger's disk has space again")
