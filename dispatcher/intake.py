"""Reads a job file into the ledger: every line becomes an accepted job or a rejection with its reason.

A batch of lines is read and checked in a worker thread, then accepted in one durable step together with the cursor, so
that a crash resumes at a batch's end and no line is taken twice. Memory holds one batch, whatever the file's size.
"""

import anyio
import anyio.to_thread
from msgspec import Struct

from dispatcher.errors import LedgerFullError
from dispatcher.formats.faults import LineError
from dispatcher.formats.joblines import JobLine, LineRules, LocationPayload, PathPayload, decode, size_problem
from dispatcher.formats.lines import LineReader, RawLine, TooLong, open_lines
from dispatcher.formats.opening import measure
from dispatcher.identity import share_point
from dispatcher.interfaces import Ledger
from dispatcher.metrics import Metrics
from dispatcher.model import FailureReason, Intake, JobFile, NewJob, Rejection, Transport
from dispatcher.router import route

BATCH_LINES = 500
BATCH_BYTES = 4 * 1024 * 1024
FULL_SECONDS = 1.0
"""How often a full ledger is asked again."""


class IntakeSettings(Struct, frozen=True, kw_only=True):
    """`share`: how many of the inline-eligible jobs travel by S3 for comparison, 0 to 1."""

    rules: LineRules
    share: float
    line_max_bytes: int


async def take_in(file: JobFile, *, ledger: Ledger, settings: IntakeSettings, metrics: Metrics) -> None:
    """Accepts what the file still holds beyond its cursor. Returns when all of it is in the ledger.

    Raises ChangedFileError where the file does not start with what was read before, UnreadableFileError where it cannot
    be read. A cancel between batches loses nothing.
    """
    if file.intake_done:
        return
    reader = await anyio.to_thread.run_sync(open_lines, file.data_path, file.cursor, settings.line_max_bytes)
    try:
        final = False
        while not final:
            batch = await anyio.to_thread.run_sync(_next_batch, reader, file, settings)
            duplicates = await _accept(batch, ledger)
            metrics.read(accepted=len(batch.jobs) - len(duplicates), rejected=len(batch.rejections) + len(duplicates))
            final = batch.final
    finally:
        reader.close()


async def _accept(batch: Intake, ledger: Ledger) -> list[Rejection]:
    """Waits while the ledger's disk is full: nothing of the file is lost, and what is dispatched goes on."""
    while True:
        try:
            return await ledger.accept(batch)
        except LedgerFullError:
            await anyio.sleep(FULL_SECONDS)


def _next_batch(reader: LineReader, file: JobFile, settings: IntakeSettings) -> Intake:
    batch = reader.read_batch(BATCH_LINES, BATCH_BYTES)
    checked = [_check(line, file, settings) for line in batch.lines]
    rejections = [one for one in checked if isinstance(one, Rejection)]
    rejections += [_too_long(line, settings.line_max_bytes) for line in batch.too_long]
    return Intake(
        file_id=file.file_id,
        jobs=[one for one in checked if isinstance(one, NewJob)],
        rejections=sorted(rejections, key=lambda rejection: rejection.line),
        lines=len(batch.lines) + len(batch.too_long),
        cursor=batch.cursor,
        final=batch.done,
    )


def _check(line: RawLine, file: JobFile, settings: IntakeSettings) -> NewJob | Rejection:
    job = decode(line.data, settings.rules)
    if isinstance(job, LineError):
        return Rejection(line.number, job.id, job.reason, job.message)
    sized = _size(job, file, settings.rules)
    if isinstance(sized, LineError):
        return Rejection(line.number, job.id, sized.reason, sized.message)
    return NewJob(
        line=line.number,
        id=job.id or str(line.number),
        endpoint=job.endpoint,
        offset=line.offset,
        length=len(line.data),
        size_bytes=sized,
        transport=_transport(job, sized, file, line.number, settings.share),
        has_metadata=job.metadata is not None,
    )


def _size(job: JobLine, file: JobFile, rules: LineRules) -> int | LineError:
    """The payload's size; 0 for one that is in S3 already."""
    if not isinstance(job.payload, PathPayload):
        return job.size_bytes or 0
    if file.cancelled_at is not None:
        return 0  # never sent, so that a folder of payloads that is missing does not keep the file from its end
    size = measure(file.payload_root, job.payload.path, rules.payload_max_bytes)
    return size if isinstance(size, LineError) else size_problem(size, job.transport, rules) or size


def _transport(job: JobLine, size_bytes: int, file: JobFile, line: int, share: float) -> Transport:
    if isinstance(job.payload, LocationPayload):
        return Transport.REFERENCE
    return route(size_bytes, job.transport, lambda: share_point(file.run_id, line), share=share)


def _too_long(line: TooLong, line_max_bytes: int) -> Rejection:
    message = (
        f"the line has {line.length} bytes; at most {line_max_bytes} are allowed: "
        "put the payload into a file and name it with payload_path, or raise line_max_bytes"
    )
    return Rejection(line.number, None, FailureReason.LINE_TOO_LONG, message)
