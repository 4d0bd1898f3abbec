"""Gives each job file its results back: `results.jsonl`, `errors.jsonl`, `summary.json`.

Each is written under a temporary name, synced and renamed, the summary last: where there is a summary, the other two are
whole. All three always exist, empty where there is nothing. Rows come from the ledger in pages, in input order, so that
memory does not grow with the file. Only final jobs have a line; while stragglers are waited for, what is final so far
can be written in the same way to another folder (`partials`).
"""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Struct

from dispatcher.errors import OutputUnreadableError
from dispatcher.formats.disk import disk_fault, sync_folder
from dispatcher.formats.faults import LineError
from dispatcher.formats.linesource import open_source
from dispatcher.formats.rawlines import RawJob, parse
from dispatcher.formats.resultlines import encode_rejection, encode_result, rfc3339
from dispatcher.identity import inference_id
from dispatcher.interfaces import Clock, Completions, Fault, Ledger
from dispatcher.model import FINAL_STATES, JobFile, JobKey, JobRow, Rejection, SizeClass, State, Transport
from dispatcher.router import size_class
from dispatcher.search import side_by_side
from dispatcher.sketch import Sketch

log = structlog.get_logger(__name__)

RESULTS, ERRORS, SUMMARY = "results.jsonl", "errors.jsonl", "summary.json"
CHANGED_FILE = "changed_file"
"""The code of the summary's error where the job file is not what was read of it."""
PAGE = 500
COLLECT_PAGE = 8
"""Rows in a page when contents are collected: that many outputs are held in memory at once."""
COLLECT_TRIES = 5


class Summary:
    """Gathers what `summary.json` says of a job file."""

    def __init__(self, file: JobFile) -> None:
        self._file = file
        self._states = dict.fromkeys(State, 0)
        self._transports = dict.fromkeys(Transport, 0)
        self._sizes = dict.fromkeys(SizeClass, 0)
        self._submission: dict[tuple[Transport, SizeClass], Sketch] = {}
        self._completion: dict[Transport, Sketch] = {}
        self._first_submitted_at: float | None = None
        self._last_completed_at: float | None = None

    def add(self, row: JobRow) -> None:
        """Counts one accepted job, final or not."""
        self._states[row.state] += 1
        self._transports[row.transport] += 1
        self._sizes[size_class(row.size_bytes)] += 1
        if row.submission_seconds is not None:
            pair = (row.transport, size_class(row.size_bytes))
            self._submission.setdefault(pair, Sketch()).add(row.submission_seconds)
        if row.submitted_at is not None:
            self._first_submitted_at = min(row.submitted_at, self._first_submitted_at or row.submitted_at)
        if row.completed_at is not None:
            self._last_completed_at = max(row.completed_at, self._last_completed_at or 0.0)
            if row.submitted_at is not None and row.state is State.SUCCEEDED:
                self._completion.setdefault(row.transport, Sketch()).add(row.completed_at - row.submitted_at)

    def encode(self, published_at: float, error: dict[str, str] | None = None) -> bytes:
        """The contents of `summary.json`. `error`: what is wrong with the job file itself."""
        file = self._file
        final = {state.value: self._states[state] for state in FINAL_STATES}
        accepted = sum(self._states.values())
        document = {
            "name": file.name,
            "run_id": file.run_id,
            "lines": file.lines,
            "rejected": file.rejected,
            "accepted": accepted,
            **final,
            "outstanding": accepted - sum(final.values()),
            "by_transport": {transport.value: count for transport, count in self._transports.items()},
            "by_size_class": {size.value: count for size, count in self._sizes.items()},
            "submission_seconds": [
                {"transport": transport, "size_class": size, **_quantiles(sketch)}
                for (transport, size), sketch in sorted(self._submission.items())
            ],
            "completion_seconds": [
                {"transport": transport, **_quantiles(sketch)} for transport, sketch in sorted(self._completion.items())
            ],
            "s3_puts_avoided": sum(
                sketch.count for (transport, _), sketch in self._submission.items() if transport is Transport.INLINE
            ),
            "taken_at": rfc3339(file.taken_at),
            "first_submitted_at": rfc3339(self._first_submitted_at),
            "last_completed_at": rfc3339(self._last_completed_at),
            "published_at": rfc3339(published_at),
            **({"error": error} if error else {}),
        }
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _quantiles(sketch: Sketch) -> dict[str, float | int | None]:
    return {
        "count": sketch.count,
        "p50": sketch.quantile(0.5),
        "p95": sketch.quantile(0.95),
        "p99": sketch.quantile(0.99),
    }


class Stamp(Struct, frozen=True):
    """What a summary says of whose results it sums up."""

    run_id: str


def run_of(folder: Path) -> str | None:
    """Whose results (run id) are in this folder; None where there are none."""
    try:
        return msgspec.json.decode((folder / SUMMARY).read_bytes(), type=Stamp).run_id
    except (OSError, msgspec.MsgspecError):
        return None


def whole(folder: Path, file: JobFile) -> bool:
    """Whether all three files of this run stand in the folder."""
    return run_of(folder) == file.run_id and all((folder / name).exists() for name in (RESULTS, ERRORS))


class Page(Struct, frozen=True):
    """Rows and rejections of one stretch of a job file, with the contents collected for them."""

    rows: list[JobRow]
    rejections: list[Rejection]
    outputs: dict[JobKey, bytes]


class Results:
    """Writes results. `completions` is set where contents of outputs are to be collected, up to `max_bytes` each."""

    def __init__(self, ledger: Ledger, clock: Clock, completions: Completions | None, max_bytes: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._completions = completions
        self._max_bytes = max_bytes

    async def write(self, file: JobFile, folder: Path, *, metadata: bool = True, spoiled: str | None = None) -> None:
        """Writes the three files of what is final now into `folder`, which is made where it is missing. Idempotent.

        `spoiled` says in the summary why the job file is not what was read of it.
        Raises DiskFaultError where they cannot be written, UnreadableFileError where metadata is to be read from a job file that
        is gone; files that are there already stay whole.
        """
        try:
            await self._write(file, folder, metadata, spoiled)
        except OSError as error:
            raise disk_fault("write the results in", str(folder), error) from error

    async def _write(self, file: JobFile, folder: Path, metadata: bool, spoiled: str | None) -> None:
        await anyio.to_thread.run_sync(_make_folder, folder)
        summary = Summary(file)
        with _Part(folder / RESULTS) as results, _Part(folder / ERRORS) as errors:
            async for page in self._pages(file):
                brought = await anyio.to_thread.run_sync(_metadata, file, page.rows) if metadata else {}
                await anyio.to_thread.run_sync(_write_page, file, page, brought, summary, results.stream, errors.stream)
            await anyio.to_thread.run_sync(_put, results, errors)
        with _Part(folder / SUMMARY) as part:
            error = {"code": CHANGED_FILE, "message": spoiled[:500]} if spoiled else None
            part.stream.write(summary.encode(self._clock.now(), error))
            await anyio.to_thread.run_sync(_put, part)

    async def _pages(self, file: JobFile) -> AsyncIterator[Page]:
        size = COLLECT_PAGE if self._completions else PAGE
        rejections = await self._ledger.rejections(file.file_id, 0, PAGE)
        line = 0
        while rows := await self._ledger.rows(file.file_id, line, size):
            line = rows[-1].key.line
            due: list[Rejection] = []
            while rejections and rejections[0].line < line:
                due += [rejection for rejection in rejections if rejection.line < line]
                rejections = [rejection for rejection in rejections if rejection.line > line] or (
                    await self._ledger.rejections(file.file_id, due[-1].line, PAGE)
                )
            yield Page(rows, due, await self._collect(rows))
        while rejections:
            yield Page([], rejections, {})
            rejections = await self._ledger.rejections(file.file_id, rejections[-1].line, PAGE)

    async def _collect(self, rows: Sequence[JobRow]) -> dict[JobKey, bytes]:
        outputs: dict[JobKey, bytes] = {}
        completions = self._completions
        if completions is None:
            return outputs

        async def read(row: JobRow) -> None:
            content = await self._read(completions, row)
            if content is not None and len(content) <= self._max_bytes:
                outputs[row.key] = content

        await side_by_side(read, [row for row in rows if row.state is State.SUCCEEDED and row.receipt])
        return outputs

    async def _read(self, completions: Completions, row: JobRow) -> bytes | None:
        location = row.receipt.output_location if row.receipt else ""
        for tried in range(COLLECT_TRIES):
            content = await completions.read(location, self._max_bytes + 1)
            if not isinstance(content, Fault):
                return content
            log.warning("output not read", id=row.id, code=content.code, message=content.message, tried=tried + 1)
            await anyio.sleep(2.0**tried / 4)
        raise OutputUnreadableError(
            f"the output of job {row.id!r} cannot be read from {location}; no results were written: "
            "see why above, then give the same command again"
        )


class _Part:
    """A file under a temporary name; gone again unless it was put in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self.stream: BinaryIO = self._part.open("wb", buffering=1 << 18)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self._part.unlink(missing_ok=True)

    def put(self) -> None:
        """Syncs and renames; the folder is synced by the caller."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self._part.replace(self._path)

    @property
    def folder(self) -> Path:
        return self._path.parent


def _put(*parts: _Part) -> None:
    for part in parts:
        part.put()
    sync_folder(str(parts[0].folder))


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _write_page(
    file: JobFile,
    page: Page,
    metadata: Mapping[JobKey, bytes],
    summary: Summary,
    results: BinaryIO,
    errors: BinaryIO,
) -> None:
    rejections = iter([*page.rejections, None])
    rejection = next(rejections)
    for row in page.rows:
        while rejection is not None and rejection.line < row.key.line:
            errors.write(encode_rejection(rejection))
            rejection = next(rejections)
        summary.add(row)
        if row.state in FINAL_STATES:
            line = encode_result(
                row, inference_id(file.run_id, row.key.line), metadata.get(row.key), page.outputs.get(row.key)
            )
            results.write(line)
            if row.state is not State.SUCCEEDED:
                errors.write(line)
    while rejection is not None:
        errors.write(encode_rejection(rejection))
        rejection = next(rejections)


def _metadata(file: JobFile, rows: Sequence[JobRow]) -> dict[JobKey, bytes]:
    """The metadata of these rows, as it stands in their lines; a line that is gone has none."""
    rows = [row for row in rows if row.has_metadata]
    if not rows:
        return {}
    with open_source(file.data_path) as source:
        lines = source.read_many([(row.offset, row.length) for row in rows])
    parsed = {row.key: parse(line) for row, line in zip(rows, lines, strict=True) if not isinstance(line, LineError)}
    return {key: bytes(raw.metadata) for key, raw in parsed.items() if isinstance(raw, RawJob)}
