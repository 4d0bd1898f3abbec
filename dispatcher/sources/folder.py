"""The spool: five folders that job files wander through by rename, and what a crash leaves in them.

    inbox/<name> ─take→ work/<run id>-<name> ─(ledger: accepted)→ … ─(all jobs final)→ results/.<run id>.part/
        ─publish→ results/<title>/ ─(ledger: published)→ ─finish→ done/<title> or failed/<title>

Every arrow is one rename, synced in both folders before the next step is begun. The run id stands in each name until the
results stand, and in their summary for ever, so that every crash, and the loss of the ledger, is told by what lies where:

    work/ has the file and   the ledger does not know the run   take it up again, `rebuilt`: its jobs may have been sent;
                                                                if its results stand (`published`), only finish it
                             the ledger has it unpublished      go on; results under a temporary name are written again;
                                                                if its results stand, record that: they never change
                             the ledger has it published        finish it
    work/ lacks the file and the ledger has it unpublished      somebody took it away: its unsent jobs have no payload
                             the ledger has it published        all is done

`recover`, `publish` and `finish` may be repeated after a crash at any point; the second time finds the first one's work.
Everything here blocks: call it in a thread. One dispatcher owns a spool; nobody else writes below it but into the inbox.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import structlog
from msgspec import Struct

from dispatcher.errors import UsageError
from dispatcher.formats.disk import PassingFaultError, disk_fault, sync_folder
from dispatcher.model import NewFile, RunId
from dispatcher.results import SUMMARY
from dispatcher.sources.names import (
    COPY_SUFFIX,
    SCRATCH_PREFIX,
    clean,
    is_part,
    marked,
    parse_copy,
    parse_taken,
    part_name,
    taken_name,
)
from dispatcher.sources.settling import Entry

log = structlog.get_logger(__name__)

FOLDER_MODE = 0o700


class Taken(Struct, frozen=True, kw_only=True):
    """A job file in `work/`. `name` is its clean name."""

    run_id: RunId
    name: str
    path: Path

    @property
    def copy(self) -> Path:
        """Where the uncompressed lines of a compressed one lie."""
        return self.path.with_name(self.path.name + COPY_SUFFIX)


class NotTaken(NamedTuple):
    """A file that stays in the inbox because the disk refused."""

    name: str
    error: OSError


class Standing(Struct, frozen=True):
    """Results that stand. `into` is where their job file belongs."""

    folder: Path
    into: Literal["done", "failed"]


class Folder:
    """The spool at a path."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.inbox = spool / "inbox"
        self.work = spool / "work"
        self.done = spool / "done"
        self.failed = spool / "failed"
        self.results = spool / "results"

    @property
    def folders(self) -> list[Path]:
        return [self.inbox, self.work, self.done, self.failed, self.results]

    @property
    def put_into(self) -> list[Path]:
        """The folders that are only put into: whatever ails them, job files are taken and dispatched."""
        return [self.results, self.done, self.failed]

    def holding(self, path: Path) -> Path | None:
        """Which of the folders a path lies in, by its name or once symlinks are followed; None where in none of them."""
        named = Path(os.path.realpath(path.parent), path.name)
        lies = {named, Path(os.path.realpath(named))}
        holds = (folder for folder in self.folders if any(one.is_relative_to(os.path.realpath(folder)) for one in lies))
        return next(holds, None)

    def make(self) -> None:
        """Makes the folders that are missing, for the owner alone. Raises UsageError, DiskFaultError. Idempotent."""
        for folder in (self.spool, self.inbox, self.work):
            _make_folder(folder)
        for folder in self.put_into:
            try:
                _make_folder(folder)
            except UsageError as error:
                log.error("nothing can be put there; jobs are dispatched all the same", error=str(error))
        with _faults("sync", self.spool):
            sync_folder(str(self.spool))
            devices = {folder.stat().st_dev for folder in self.folders}
        if len(devices) > 1:
            raise UsageError(
                f"the folders in {self.spool} lie on different file systems, so that files cannot be renamed from one "
                "to the other: mount the spool as a whole"
            )

    def mend(self) -> None:
        """Makes again, if they are gone, the folders that are only put into. Raises DiskFaultError."""
        for folder in self.put_into:
            if not folder.exists():
                with _faults("make", folder):
                    folder.mkdir(mode=FOLDER_MODE)
                log.warning("folder was missing; made again", folder=str(folder))

    # --- into work ----------------------------------------------------------------------------------------------------

    def take(self, ready: Sequence[Entry], new_run: Callable[[], RunId]) -> tuple[list[Taken], list[NotTaken]]:
        """Moves files from the inbox to `work/`, durably, each under a run id of its own.

        One that is gone, or not what was observed any more, is passed over: the next scan tells. Raises DiskFaultError
        only where names do not get durable; what was moved until then is found by `recover`.
        """
        taken: list[Taken] = []
        refused: list[NotTaken] = []
        for entry in ready:
            try:
                moved = self._take(entry, new_run())
            except OSError as error:
                refused.append(NotTaken(entry.name, error))
            else:
                taken += [moved] if moved else []
        if taken:
            with _faults("sync", self.work):
                sync_folder(str(self.work))
                sync_folder(str(self.inbox))
        return taken, refused

    def _take(self, entry: Entry, run: RunId) -> Taken | None:
        source, name = self.inbox / entry.name, clean(entry.name)
        if entry_of(entry.name, _lstat(source)) != entry:
            return None
        target = self.work / taken_name(run, name)
        try:
            source.rename(target)
        except FileNotFoundError:
            if os.path.lexists(source):  # then it is work/ that is missing
                raise
            return None
        if name != entry.name:
            log.info("job file renamed", name=name, was=ascii(entry.name), run_id=run)
        if not stat.S_ISREG(target.lstat().st_mode):
            # Swapped for a symlink or a folder within the last microseconds: what lies in work/ is opened later on.
            self._quarantine(target)
            return None
        return Taken(run_id=run, name=name, path=target)

    def adopt(self, path: Path, name: str, run: RunId) -> Taken:
        """Makes a file that was written below `work/` a job file of this run, durably. Raises DiskFaultError."""
        target = self.work / taken_name(run, name)
        with _faults("move", path):
            path.rename(target)
            sync_folder(str(self.work))
        return Taken(run_id=run, name=name, path=target)

    def _quarantine(self, target: Path) -> None:
        log.error("not a regular file any more: moved to failed/, not read", name=target.name)
        target.rename(self.failed / target.name)

    def recover(self, unpublished: Container[RunId]) -> list[Taken]:
        """What lies in `work/`, oldest first; once, at start. Raises DiskFaultError.

        `unpublished` are the runs that the ledger knows and has no results of. Uncompressed copies of other runs, lines unpacked
        for a replay and results under temporary names are removed: all are made again.
        """
        with _faults("read", self.work):
            files = [path for path in self.work.iterdir() if path.is_file() and not path.is_symlink()]
            for path in files:
                run = parse_copy(path.name)
                if run and (run not in unpublished or not path.name.endswith(COPY_SUFFIX)):
                    path.unlink()
            for path in [path for path in self.work.iterdir() if path.name.startswith(SCRATCH_PREFIX)]:
                shutil.rmtree(path)
        self._remove_parts()
        return [_taken(path) for path in sorted(files, key=_age) if parse_taken(path.name)]

    def _remove_parts(self) -> None:
        """They are written anew, so that it does no harm where they have to stay."""
        try:
            for path in [path for path in self.results.iterdir() if is_part(path.name)]:
                shutil.rmtree(path)
        except OSError as error:
            fault = disk_fault("remove half written results in", str(self.results), error)
            if not isinstance(fault, PassingFaultError):
                raise fault from error
            log.warning("half written results stay for now", error=str(fault))

    # --- results ------------------------------------------------------------------------------------------------------

    def results_place(self, run: RunId) -> Path:
        """The folder that the results of this run are to be written into, before `publish`."""
        return self.results / part_name(run)

    def standing(self, file: NewFile | Taken) -> Standing | None:
        """The results of this run, where they stand; None where they were never published, or taken away since.

        Raises DiskFaultError.
        """
        with _faults("read results in", self.results):
            for title in (file.name, marked(file.name, file.run_id)):
                summary = results_of(self.results / title)
                if summary and summary.run_id == file.run_id:
                    return Standing(self.results / title, "failed" if summary.error else "done")
        return None

    def publish(self, file: NewFile) -> Path:
        """Makes the folder of `results_place`, whose files are synced, the results of this run, durably.

        Results that stand already stay as they are, and the new ones are thrown away. Raises DiskFaultError.
        """
        part = self.results_place(file.run_id)
        standing = self.standing(file)
        with _faults("publish results in", self.results):
            if standing:
                shutil.rmtree(part, ignore_errors=True)
            else:
                standing = Standing(_free(self.results, file), "done")
                part.rename(standing.folder)
            sync_folder(str(self.results))
        return standing.folder

    # --- out of work --------------------------------------------------------------------------------------------------

    def finish(self, file: NewFile, into: Literal["done", "failed"]) -> Path | None:
        """Moves the job file out of `work/`, durably, and removes its uncompressed copy. Raises DiskFaultError.

        Returns where it went; None if it was not in `work/` (any more).
        """
        source, folder = Path(file.source), self.done if into == "done" else self.failed
        with _faults(f"move {source} into", folder):
            target = self._move(source, _free(folder, file))
            if file.data_path != file.source:
                Path(file.data_path).unlink(missing_ok=True)
            sync_folder(str(self.work))
        return target

    def _move(self, source: Path, target: Path) -> Path | None:
        try:
            source.rename(target)
        except FileNotFoundError:
            if os.path.lexists(source):  # then it is the target's folder that is missing
                raise
            return None
        sync_folder(str(target.parent))
        return target


def entry_of(name: str, found: os.stat_result | None) -> Entry | None:
    """The entry of a regular file; None for what the inbox leaves alone."""
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    return Entry(found.st_mtime_ns, name, found.st_size, found.st_ino)


class _Summary(Struct, frozen=True):
    run_id: str
    error: object = None


def results_of(folder: Path) -> _Summary | None:
    """What a folder of results says of itself; None where it is none of ours. Raises OSError."""
    try:
        return msgspec.json.decode((folder / SUMMARY).read_bytes(), type=_Summary)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _free(folder: Path, file: NewFile) -> Path:
    """The first of the run's two titles that nothing in the folder has."""
    plain = folder / file.name
    return folder / marked(file.name, file.run_id) if os.path.lexists(plain) else plain


def _taken(path: Path) -> Taken:
    parsed = parse_taken(path.name)
    assert parsed is not None
    return Taken(run_id=parsed[0], name=parsed[1], path=path)


def _age(path: Path) -> tuple[int, str]:
    found = _lstat(path)
    return (found.st_mtime_ns if found else 0, path.name)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTDIR}:
            raise UsageError(f"{folder} is not a folder: move it away, or choose another spool") from error
        raise disk_fault("make", str(folder), error) from error


@contextmanager
def _faults(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_fault(doing, str(path), error) from error
