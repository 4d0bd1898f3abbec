"""A crash before every change of the disk, on the whole way of a job file through the spool, and again while it recovers.

A child process walks the way and is ended, by an audit hook, before its n-th rename, removal, new folder or new file; for
every n. Then others recover, are ended as well, and the last one is left alone. The ledger is a stand-in: markers in a
folder, made by rename, which is all that the folder protocol asks of it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dispatcher.identity import RUN_ID_BYTES, run_id
from dispatcher.model import NewFile, RunId
from dispatcher.sources.folder import Folder, Taken
from dispatcher.sources.inbox import scan

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
CRASHED = 9
NAMES = ("a.jsonl", "b.jsonl.gz")


class Markers:
    """What the ledger would remember of each run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(exist_ok=True)

    def has(self, run: str, what: str) -> bool:
        return (self._path / f"{run}.{what}").exists()

    def note(self, run: str, what: str) -> None:
        part = self._path / "part"
        part.write_text("")
        part.rename(self._path / f"{run}.{what}")

    def unpublished(self) -> set[RunId]:
        known = {RunId(path.stem) for path in self._path.glob("*.known")}
        return {run for run in known if not self.has(run, "published")}


def one_life(spool: Path) -> None:
    """What a process does from its start until nothing is left to do."""
    folder, markers = Folder(spool), Markers(spool / "ledger")
    folder.make()
    taken = folder.recover(markers.unpublished())
    new, refused = folder.take(scan(folder.inbox).entries, lambda: run_id(os.urandom(RUN_ID_BYTES)))
    assert refused == []
    for one in taken + new:
        bring_home(one, folder, markers)


def bring_home(taken: Taken, folder: Folder, markers: Markers) -> None:
    file = as_file(taken)
    standing = folder.standing(file)
    if not markers.has(taken.run_id, "known"):
        if standing:
            folder.finish(file, standing.into)
            return
        if taken.name.endswith(".gz"):
            taken.copy.write_bytes(taken.path.read_bytes())
        markers.note(taken.run_id, "known")
    if not markers.has(taken.run_id, "published"):
        if not standing:
            assert Path(file.data_path).exists()
            write_results(folder, file)
            folder.publish(file)
        markers.note(taken.run_id, "published")
    folder.finish(file, "done")


def write_results(folder: Folder, file: NewFile) -> None:
    place = folder.results_place(file.run_id)
    place.mkdir(exist_ok=True)
    (place / "results.jsonl").write_bytes(Path(file.data_path).read_bytes())
    (place / "summary.json").write_bytes(msgspec.json.encode({"run_id": file.run_id}))


def as_file(taken: Taken) -> NewFile:
    return NewFile(
        run_id=taken.run_id,
        name=taken.name,
        source=str(taken.path),
        data_path=str(taken.copy if taken.name.endswith(".gz") else taken.path),
        payload_root="",
        size_bytes=0,
        taken_at=0.0,
    )


# --- the child --------------------------------------------------------------------------------------------------------


def crash_before(change: int) -> None:
    """Ends this process before its n-th change of the disk."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            seen += 1
            if seen == change:
                os._exit(CRASHED)

    sys.addaudithook(hook)


def forked(work: Callable[[], None]) -> bool:
    """Whether the work was done to its end; False where it crashed as planned."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, CRASHED}
    return status == 0


def live(spool: Path, change: int) -> bool:
    def work() -> None:
        crash_before(change)
        one_life(spool)

    return forked(work)


def begin(spool: Path) -> None:
    shutil.rmtree(spool, ignore_errors=True)
    (spool / "inbox").mkdir(parents=True)
    for name in NAMES:
        (spool / "inbox" / name).write_text(name)


def check(spool: Path) -> None:
    def listed(folder: str) -> list[str]:
        return sorted(path.name for path in (spool / folder).iterdir())

    assert listed("inbox") == listed("work") == listed("failed") == []
    assert listed("done") == listed("results") == sorted(NAMES)
    for name in NAMES:
        assert (spool / "done" / name).read_text() == name
        assert (spool / "results" / name / "results.jsonl").read_text() == name


def sweep(spool: Path, *, lose_ledger: bool) -> int:
    """Crashes at every point, each time once more somewhere in the recovery; returns how many points there were."""
    point = 0
    crashed = True
    while crashed:
        point += 1
        begin(spool)
        crashed = not live(spool, point)
        if lose_ledger:
            shutil.rmtree(spool / "ledger", ignore_errors=True)
        live(spool, 1 + 7 * point % 30)
        one_life_in_child(spool)
        check(spool)
    return point


def one_life_in_child(spool: Path) -> None:
    assert forked(lambda: one_life(spool))


if __name__ == "__main__":
    points = sweep(Path(sys.argv[1]), lose_ledger=sys.argv[2] == "lose")
    sys.stdout.write(f"points {points}\n")


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", ["keep", "lose"])
def test_after_a_crash_anywhere_every_file_has_its_results_once_and_lies_in_done(tmp_path: Path, ledger: str) -> None:
    command = [sys.executable, "-m", "tests.integration.test_folder_crash", str(tmp_path / "spool"), ledger]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.rpartition("points ")[2]) > 25
