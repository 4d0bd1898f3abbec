"""Makes a job file of a finished one's jobs that did not succeed; it has sums and results of its own, the original stays.

Its lines are the original ones, byte for byte but for an id (and, where asked for, an endpoint) put in front, since a line
that has none would get another from its new place.
"""

import os
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec import Struct

from dispatcher.errors import UnreadableFileError, UsageError
from dispatcher.formats.faults import LineError
from dispatcher.formats.linesource import LineSource, open_source
from dispatcher.formats.rawlines import RawJob, parse
from dispatcher.interfaces import Ledger
from dispatcher.model import JobFile, JobRow, State

REPLAYABLE = (State.DEAD, State.FAILED, State.EXPIRED)
PAGE = 500


class Replay(Struct, frozen=True, kw_only=True):
    """A replay's job file: `path` and `name`; what its `payload_path`s are relative to; `jobs` in it."""

    path: Path
    name: str
    payload_root: str
    jobs: int


async def original(ledger: Ledger, name: str | None) -> JobFile:
    """The job file to replay: by its name or path, or the only one there is."""
    files = [file for file in await ledger.files() if ".replay-" not in file.name or name in (file.name, file.run_id)]
    if name is not None:
        files = [file for file in files if _is_called(file, name)]
    if len(files) == 1:
        return files[0]
    known = ", ".join(sorted(file.name for file in await ledger.files())) or "none"
    raise UsageError(f"which job file is to be replayed? This ledger has: {known}")


def _is_called(file: JobFile, name: str) -> bool:
    return name in (file.name, file.run_id, file.source) or os.path.abspath(name) == file.source


async def unfinished(ledger: Ledger, of: JobFile) -> JobFile | None:
    """A replay of this file that was begun and has no results yet."""
    return next((file for file in await ledger.files() if _is_replay(file, of) and file.published_at is None), None)


async def make_replay(
    ledger: Ledger,
    of: JobFile,
    states: Collection[State],
    folder: Path,
    *,
    keep_endpoint: bool,
    lines: Path | None = None,
) -> Replay:
    """Writes `folder/<name>.replay-N`, durably. `keep_endpoint` sends lines that name none where they went before.

    `lines` is where the original's lines are by now, if not where they were.
    """
    number = 1 + sum(_is_replay(file, of) for file in await ledger.files())
    name = f"{of.name}.replay-{number}"
    path = folder / name
    part = path.with_name(name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = 0
    with open_source(str(lines or of.data_path)) as source, part.open("wb") as file:
        line = 0
        while rows := await ledger.rows(of.file_id, line, PAGE):
            line = rows[-1].key.line
            for row in rows:
                if row.state in states:
                    file.write(_line(source, row, keep_endpoint=keep_endpoint))
                    jobs += 1
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return Replay(path=path, name=name, payload_root=of.payload_root, jobs=jobs)


def _is_replay(file: JobFile, of: JobFile) -> bool:
    return file.name.startswith(f"{of.name}.replay-")


def _line(source: LineSource, row: JobRow, *, keep_endpoint: bool) -> bytes:
    line = source.read(row.offset, row.length)
    raw = line if isinstance(line, LineError) else parse(line)
    if isinstance(raw, LineError) or isinstance(line, LineError):
        why = raw.message if isinstance(raw, LineError) else ""
        raise UnreadableFileError(f"job {row.id!r} (line {row.key.line}) cannot be read again: {why}")
    return _with_front(line, raw, row, keep_endpoint=keep_endpoint) + b"\n"


def _with_front(line: bytes, raw: RawJob, row: JobRow, *, keep_endpoint: bool) -> bytes:
    front = b""
    if raw.id is None:
        front += b'"id":' + msgspec.json.encode(row.id) + b","
    if raw.endpoint is None and keep_endpoint:
        front += b'"endpoint":' + msgspec.json.encode(row.endpoint) + b","
    brace = line.index(b"{") + 1
    return line[:brace] + front + line[brace:]
