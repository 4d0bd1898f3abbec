"""The spool on a real disk: taking, what is left alone, results, finishing, and every title."""

import os
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from dispatcher.errors import UsageError
from dispatcher.formats.disk import DiskFaultError
from dispatcher.identity import run_id
from dispatcher.model import NewFile, RunId
from dispatcher.sources.folder import Folder, Standing, Taken
from dispatcher.sources.inbox import scan


def runs() -> Callable[[], RunId]:
    numbers = count(1)
    return lambda: run_id(next(numbers).to_bytes(10))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "spool")
    made.make()
    return made


def drop(folder: Folder, name: str = "a.jsonl", text: str = "{}\n") -> Path:
    path = folder.inbox / name
    path.write_text(text)
    return path


def take(folder: Folder, new_run: Callable[[], RunId]) -> list[Taken]:
    taken, refused = folder.take(scan(folder.inbox).entries, new_run)
    assert refused == []
    return taken


def recorded(taken: Taken, title: str | None = None) -> NewFile:
    """What the ledger knows of it."""
    return NewFile(
        run_id=taken.run_id,
        name=title or taken.name,
        source=str(taken.path),
        data_path=str(taken.path),
        payload_root="",
        size_bytes=0,
        taken_at=0.0,
    )


def write_results(folder: Folder, file: NewFile, text: str = "") -> None:
    place = folder.results_place(file.run_id)
    place.mkdir()
    (place / "results.jsonl").write_text(text)
    (place / "summary.json").write_text(f'{{"run_id": "{file.run_id}"}}')


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- making -----------------------------------------------------------------------------------------------------------


def test_missing_folders_are_made_for_the_owner_alone_and_others_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir(mode=0o777)
    (tmp_path / "inbox").chmod(0o2775)
    folder = Folder(tmp_path)
    folder.make()
    folder.make()
    assert names(tmp_path) == ["done", "failed", "inbox", "results", "work"]
    assert stat.S_IMODE(folder.inbox.stat().st_mode) == 0o2775
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.folders[1:]} == {0o700}


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("")
    with pytest.raises(UsageError, match="work is not a folder"):
        Folder(tmp_path).make()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_folders_on_several_file_systems_are_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Path("/dev/shm") / f"dispatcher-{os.getpid()}"
    other.mkdir()
    try:
        (tmp_path / "inbox").symlink_to(other)
        if other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("needs a second file system")
        with pytest.raises(UsageError, match="mount the spool as a whole"):
            Folder(tmp_path).make()
    finally:
        other.rmdir()


# --- taking -----------------------------------------------------------------------------------------------------------


def test_a_taken_file_lies_in_work_under_its_run_id(folder: Folder) -> None:
    drop(folder, text="one\n")
    [taken] = take(folder, runs())
    assert taken.path == folder.work / f"{taken.run_id}-a.jsonl"
    assert taken.path.read_text() == "one\n"
    assert names(folder.inbox) == []


def test_everything_that_is_no_job_file_is_left_alone(folder: Folder) -> None:
    target = folder.spool / "target.jsonl"
    target.write_text("")
    (folder.inbox / "link.jsonl").symlink_to(target)
    (folder.inbox / "dangling.jsonl").symlink_to("nowhere")
    (folder.inbox / "folder.jsonl").mkdir()
    os.mkfifo(folder.inbox / "pipe.jsonl")
    for name in (".hidden.jsonl", "a.jsonl.part", "notes.txt", "payload.json"):
        drop(folder, name)
    before = names(folder.inbox)
    assert take(folder, runs()) == []
    assert names(folder.inbox) == before


def test_a_file_that_changed_or_went_since_it_was_looked_at_is_passed_over(folder: Folder) -> None:
    grown, gone, same = (drop(folder, name) for name in ("grown.jsonl", "gone.jsonl", "same.jsonl"))
    entries = scan(folder.inbox).entries
    grown.write_text("more than before")
    gone.unlink()
    taken, refused = folder.take(entries, runs())
    assert [one.name for one in taken] == [same.name]
    assert refused == []
    assert names(folder.inbox) == ["grown.jsonl"]


def test_a_file_swapped_for_a_symlink_is_passed_over(folder: Folder) -> None:
    path = drop(folder)
    entries = scan(folder.inbox).entries
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert folder.take(entries, runs()) == ([], [])


def test_one_file_that_the_disk_refuses_does_not_stop_the_others(folder: Folder) -> None:
    for number in range(3):
        drop(folder, f"{number}.jsonl")
    numbers, new_run = count(), runs()

    def run() -> RunId:
        given = new_run()
        if next(numbers) == 1:
            (folder.work / f"{given}-1.jsonl").mkdir()
        return given

    taken, refused = folder.take(scan(folder.inbox).entries, run)
    assert [one.name for one in taken] == ["0.jsonl", "2.jsonl"]
    assert [one.name for one in refused] == ["1.jsonl"]
    assert names(folder.inbox) == ["1.jsonl"]


def test_nothing_goes_where_work_is_missing(folder: Folder) -> None:
    drop(folder)
    folder.work.rmdir()
    taken, refused = folder.take(scan(folder.inbox).entries, runs())
    assert taken == []
    assert [one.name for one in refused] == ["a.jsonl"]
    assert names(folder.inbox) == ["a.jsonl"]


def test_odd_and_long_names_are_taken_and_found_again(folder: Folder) -> None:
    odd = [b"caf\xe9.jsonl", b"two\nlines.jsonl", b"'; rm -rf *.jsonl", b"-n.jsonl", b"x" * 249 + b".jsonl"]
    odd.append("é".encode() * 123 + b".jsonl.gz")
    for number, name in enumerate(odd):
        (folder.inbox / os.fsdecode(name)).write_text(str(number))
    taken = take(folder, runs())
    assert len(taken) == len(odd)
    assert {one.path.read_text() for one in taken} == {str(number) for number in range(len(odd))}
    assert sorted(one.run_id for one in folder.recover(set())) == sorted(one.run_id for one in taken)
    for one in taken:
        one.copy.with_name(one.copy.name + ".part").write_text("")
        file = recorded(one)
        write_results(folder, file)
        folder.publish(replace(file, name=f"{one.name}-{one.run_id}"))
        assert folder.finish(replace(file, name=f"{one.name}-{one.run_id}"), "done")


def test_a_missing_inbox_is_an_error_not_an_empty_one(folder: Folder) -> None:
    folder.inbox.rmdir()
    with pytest.raises(FileNotFoundError):
        scan(folder.inbox)


# --- recovering -------------------------------------------------------------------------------------------------------


def test_recover_tells_what_lies_in_work_and_clears_what_is_made_again(folder: Folder) -> None:
    for name in ("plain.jsonl", "known.jsonl.gz", "unknown.jsonl.gz"):
        drop(folder, name)
    taken = {one.name: one for one in take(folder, runs())}
    for one in taken.values():
        one.copy.write_text("lines")
        one.copy.with_name(one.copy.name + ".part").write_text("half")
    folder.results_place(taken["plain.jsonl"].run_id).mkdir()
    (folder.work / "spill").mkdir()
    unpacked = folder.work / ".lines-1234"
    unpacked.mkdir()
    (unpacked / "lines").write_text("of a replay whose process was killed")
    (folder.work / "notes.txt").write_text("")
    (folder.results / "kept").mkdir()

    known = taken["known.jsonl.gz"]
    recovered = folder.recover({known.run_id})
    assert {one.name: one for one in recovered} == taken
    left = {one.path.name for one in taken.values()} | {known.copy.name, "spill", "notes.txt"}
    assert set(names(folder.work)) == left
    assert names(folder.results) == ["kept"]


# --- results and finishing --------------------------------------------------------------------------------------------


def test_results_appear_whole_and_stand_under_the_title(folder: Folder) -> None:
    drop(folder)
    file = recorded(take(folder, runs())[0])
    assert folder.standing(file) is None
    write_results(folder, file, "one")
    assert folder.publish(file) == folder.results / "a.jsonl"
    assert folder.standing(file) == Standing(folder.results / "a.jsonl", "done")
    assert names(folder.results) == ["a.jsonl"]


def test_results_that_stand_never_change(folder: Folder) -> None:
    drop(folder)
    file = recorded(take(folder, runs())[0])
    write_results(folder, file, "first")
    folder.publish(file)
    write_results(folder, file, "second")
    folder.publish(file)
    assert (folder.results / "a.jsonl" / "results.jsonl").read_text() == "first"
    assert names(folder.results) == ["a.jsonl"]


@pytest.mark.parametrize("stranger", ["folder", "file", "other run"])
def test_a_title_that_is_taken_gets_the_run_id(folder: Folder, stranger: str) -> None:
    new_run = runs()
    match stranger:
        case "folder":
            (folder.results / "a.jsonl").mkdir()
        case "file":
            (folder.results / "a.jsonl").write_text("")
        case _:
            drop(folder)
            first = recorded(take(folder, new_run)[0])
            write_results(folder, first)
            folder.publish(first)
    drop(folder)
    file = recorded(take(folder, new_run)[0])
    write_results(folder, file)
    marked = folder.results / f"a.jsonl-{file.run_id}"
    assert folder.publish(file) == marked
    assert folder.standing(file) == Standing(marked, "done")
    assert folder.publish(file) == marked


def test_a_finished_file_lies_in_done_and_its_copy_is_gone(folder: Folder) -> None:
    drop(folder, "a.jsonl.gz")
    [taken] = take(folder, runs())
    taken.copy.write_text("lines")
    file = replace(recorded(taken), data_path=str(taken.copy))
    assert folder.finish(file, "done") == folder.done / "a.jsonl.gz"
    assert names(folder.work) == []
    assert folder.finish(file, "done") is None


def test_the_same_name_again_is_kept_beside_the_first(folder: Folder) -> None:
    new_run = runs()
    for text in ("first", "second"):
        drop(folder, text=text)
        [taken] = take(folder, new_run)
        target = folder.finish(recorded(taken), "failed")
        assert target
        assert target.read_text() == text
    assert names(folder.failed) == ["a.jsonl", f"a.jsonl-{taken.run_id}"]


def test_a_disk_that_refuses_is_a_fault_and_the_same_call_works_later(folder: Folder) -> None:
    drop(folder)
    file = recorded(take(folder, runs())[0])
    with pytest.raises(DiskFaultError, match="publish results"):
        folder.publish(file)
    folder.done.rmdir()
    folder.done.write_text("")
    with pytest.raises(DiskFaultError, match="cannot move"):
        folder.finish(file, "done")
    folder.done.unlink()
    folder.done.mkdir()
    write_results(folder, file)
    folder.publish(file)
    assert folder.finish(file, "done")
