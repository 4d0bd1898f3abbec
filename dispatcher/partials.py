"""Results so far: what is final of job files that are not finished, written while stragglers are waited for.

A file that finishes meanwhile moves to where its results stand, and is told of instead; it keeps no other file waiting.
"""

from pathlib import Path

from msgspec import Struct

from dispatcher.errors import UnreadableFileError
from dispatcher.interfaces import Ledger
from dispatcher.model import JobFile
from dispatcher.results import Results
from dispatcher.status import named


class Partial(Struct, frozen=True, kw_only=True):
    """A job file of which the results so far were asked for. `folder` is None where it is finished: then its own results stand."""

    name: str
    run_id: str
    folder: str | None


async def write_partial(ledger: Ledger, results: Results, name: str | None, folder: Path) -> list[Partial]:
    """Writes what is final so far to `folder/<name>/`: of the job files of this name or run id, or (None) of all."""
    files = await ledger.files()
    asked = files if name is None else named(files, name)
    return [await _write_partial(ledger, results, file, folder) for file in asked]


async def _write_partial(ledger: Ledger, results: Results, file: JobFile, folder: Path) -> Partial:
    written = None
    if file.published_at is None:
        try:
            await results.write(file, folder / file.name)
            written = str(folder / file.name)
        except UnreadableFileError:
            # It is moved as soon as its results stand, which may have been while these were written.
            now = await ledger.file(file.file_id)
            if now is not None and now.published_at is None:
                raise
    return Partial(name=file.name, run_id=file.run_id, folder=written)
