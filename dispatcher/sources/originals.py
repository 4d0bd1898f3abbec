"""Finds the lines of a finished job file of a spool again: it has left `work/`, and its uncompressed copy is gone.

Its titles in `done/` and `failed/` may be another run's by now, so what is found there must be, byte for byte, what was
read. Everything here blocks: call it in a thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dispatcher.errors import UnreadableFileError, UsageError
from dispatcher.formats.lines import verify_prefix
from dispatcher.formats.spool import Check, go_on, is_compressed, spool_compressed
from dispatcher.model import JobFile
from dispatcher.sources.folder import Folder
from dispatcher.sources.names import SCRATCH_PREFIX, marked


@contextmanager
def original_lines(folder: Folder, file: JobFile, budget_bytes: int, check: Check = go_on) -> Iterator[Path]:
    """The uncompressed lines of this job file, while the block runs.

    Raises UsageError where the file was taken away or changed, DiskFaultError where an archive cannot be unpacked again, and
    what `check` raises, which is called on the way.
    """
    with TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=folder.work) as scratch:
        for place in _places(folder, file):
            lines = _lines(place, file, Path(scratch), budget_bytes, check)
            if lines is not None:
                yield lines
                return
        raise UsageError(
            f"the lines of {file.name} (run {file.run_id}) are needed and gone: put its job file back as {folder.done / file.name}"
        )


def _places(folder: Folder, file: JobFile) -> Iterator[Path]:
    yield Path(file.data_path)
    yield Path(file.source)
    for finished in (folder.done, folder.failed):
        yield finished / marked(file.name, file.run_id)
        yield finished / file.name


def _lines(place: Path, file: JobFile, scratch: Path, budget_bytes: int, check: Check) -> Path | None:
    if not place.is_file():
        return None
    # Under the name that it had: a title need not end as its archive must.
    named = scratch / Path(file.source if place != Path(file.data_path) else file.data_path).name
    named.unlink(missing_ok=True)
    named.symlink_to(place)
    try:
        if is_compressed(str(named)):
            copy = scratch / "lines"
            spool_compressed(str(named), str(copy), budget_bytes, check)
            named = copy
        return named if verify_prefix(str(named), file.cursor) else None
    except UnreadableFileError:
        return None
