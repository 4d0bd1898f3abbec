"""Says where everything stands: job files, their progress, and one job on request. Reads the ledger, changes nothing."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from dispatcher.errors import UsageError
from dispatcher.formats.resultlines import rfc3339
from dispatcher.identity import inference_id
from dispatcher.interfaces import Ledger
from dispatcher.model import FINAL_STATES, OUTSTANDING_STATES, FailureReason, FileId, JobFile, State


class FileStatus(Struct, frozen=True, kw_only=True):
    """A job file. `jobs_per_second` is how many came to their end over the last minute, `eta_seconds` how long the rest takes at
    that rate; None where no process works on it, or nothing finished then.
    """

    name: str
    run_id: str
    source: str
    taken_at: str | None
    published_at: str | None
    reading: bool
    lines: int
    rejected: int
    accepted: int
    succeeded: int
    failed: int
    expired: int
    dead: int
    cancelled: int
    outstanding: int
    outstanding_by_state: dict[str, int]
    age_seconds: float
    jobs_per_second: float | None
    eta_seconds: float | None


class LaneBounds(Struct, frozen=True, kw_only=True):
    """What bounds an endpoint now. A rate of None: no limit of our own. Of `submitted` jobs, that wait for a result, there may be
    `outstanding_limit`: as `max_outstanding` says or, where that is None, as the model's own pace allows.
    """

    in_flight: int
    in_flight_window: float
    min_in_flight: float
    max_in_flight: float
    requests_per_second: float | None
    bytes_per_second: float | None
    submitted: int
    outstanding_limit: int
    max_outstanding: int | None


class PausedParts(Struct, frozen=True, kw_only=True):
    """Why the parts of an endpoint's lane stand still: all that it sends, what it sends by S3, its looks for results."""

    lane: list[FailureReason]
    s3_route: list[FailureReason]
    results: list[FailureReason]

    @property
    def reasons(self) -> list[FailureReason]:
        """Each of them once."""
        return list(dict.fromkeys([*self.lane, *self.s3_route, *self.results]))


class LaneStatus(Struct, frozen=True, kw_only=True):
    """An endpoint. `paused` names what keeps it from sending, its S3 route, or looks for results, and `paused_parts` which of
    them; None, as `bounds`, where no process works.
    """

    endpoint: str
    outstanding: int
    oldest_age_seconds: float
    paused: list[FailureReason] | None
    paused_parts: PausedParts | None
    bounds: LaneBounds | None


NOTHING_PAUSED = PausedParts(lane=[], s3_route=[], results=[])


class Unreadable(Struct, frozen=True, kw_only=True):
    """A job file that could not be read, so that no ledger knows it; its results say why."""

    name: str
    run_id: str
    reason: str


class DiskLow(Struct, frozen=True, kw_only=True):
    """So little is free on the spool's disk that nothing is taken from the inbox until `resume_bytes` are."""

    free_bytes: int
    reserve_bytes: int
    resume_bytes: int


class Status(Struct, frozen=True, kw_only=True):
    """Everything in one ledger, or one job file and the lanes that it is bound for. `owner` says whether a process works on it now.

    `unreadable` and `disk_low` are added by who knows the spool; None: intake is not stopped, or no process works on it.
    """

    owner: bool
    files: list[FileStatus]
    lanes: list[LaneStatus]
    unreadable: list[Unreadable] = []
    disk_low: DiskLow | None = None


class Cancelled(Struct, frozen=True):
    """How many jobs ended so far; `reading`: what is still to be read of the file will end so as well."""

    jobs: int
    reading: bool


class JobStatus(Struct, frozen=True, kw_only=True):
    """One job."""

    file: str
    id: str
    line: int
    endpoint: str
    state: State
    transport: str
    attempts: int
    inference_id: str
    size_bytes: int
    output_location: str | None
    failure_location: str | None
    submitted_at: str | None
    completed_at: str | None
    due_at: str | None
    error: dict[str, str] | None


class Work(Struct, frozen=True):
    """What only the process that works knows. `rate` is jobs a second that reached a final state of late, None if none did."""

    rate: Callable[[FileId], float | None]
    paused: Mapping[str, PausedParts]
    bounds: Mapping[str, LaneBounds]


async def overview(ledger: Ledger, now: float, work: Work | None, name: str | None = None) -> Status:
    """Everything, or the job file of this name or run id; `work` is None where no process works on the ledger.

    Raises UsageError where there is no such file.
    """
    files, tallies = await ledger.files(), _tallies(ledger)
    nothing = dict.fromkeys(State, 0)
    lanes = _lanes(ledger, {file.file_id: file for file in files}, now, work)
    if name is not None:
        files = named(files, name)
        bound = {queue.endpoint for file in files for queue in ledger.queues(file.file_id)}
        lanes = [lane for lane in lanes if lane.endpoint in bound]
    return Status(
        owner=work is not None,
        files=[_file(file, tallies.get(file.file_id, nothing), now, work) for file in files],
        lanes=lanes,
    )


def named(files: list[JobFile], name: str) -> list[JobFile]:
    """Those of this name or run id. Raises UsageError where there is none."""
    found = [file for file in files if name in (file.name, file.run_id)]
    if not found:
        raise UsageError(f"the ledger has no job file {name!r}; `status` without it shows those that there are")
    return found


def unfinished_named(files: list[JobFile], name: str) -> JobFile:
    """The one of this name or run id whose results do not stand yet. Raises UsageError where there is none, or several."""
    found = [file for file in named(files, name) if file.published_at is None]
    if not found:
        raise UsageError(f"the job file {name!r} is finished: its results stand")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} unfinished job files are named {name!r}; give the run id that `status --json` shows"
        )
    return found[0]


def _tallies(ledger: Ledger) -> dict[FileId, dict[State, int]]:
    """How many jobs of each file are in each state, in one pass: there may be ten thousand files, each with its queues."""
    totals: dict[FileId, dict[State, int]] = {}
    for queue in ledger.queues():
        total = totals.setdefault(queue.file_id, dict.fromkeys(State, 0))
        for state, jobs in ledger.tally(queue.queue_id).items():
            total[state] += jobs
    return totals


async def jobs_named(ledger: Ledger, id: str, name: str | None = None) -> list[JobStatus]:
    """Every job with this id, of all job files or of those of this name or run id; several where several have it.

    Raises UsageError where there is no such file.
    """
    known = await ledger.files()
    files = {file.file_id: file for file in (known if name is None else named(known, name))}
    return [
        JobStatus(
            file=files[file].name,
            id=row.id,
            line=row.key.line,
            endpoint=row.endpoint,
            state=row.state,
            transport=row.transport,
            attempts=row.attempts,
            inference_id=inference_id(files[file].run_id, row.key.line),
            size_bytes=row.size_bytes,
            output_location=row.receipt.output_location if row.receipt else None,
            failure_location=row.receipt.failure_location if row.receipt else None,
            submitted_at=rfc3339(row.submitted_at),
            completed_at=rfc3339(row.completed_at),
            due_at=rfc3339(row.due_at) if row.state in OUTSTANDING_STATES and row.due_at else None,
            error={"code": row.error.code, "message": row.error.message} if row.error else None,
        )
        for file, row in await ledger.find(id)
        if file in files
    ]


def _file(file: JobFile, tally: dict[State, int], now: float, work: Work | None) -> FileStatus:
    outstanding = sum(tally[state] for state in OUTSTANDING_STATES)
    rate = work.rate(file.file_id) if work else None
    return FileStatus(
        name=file.name,
        run_id=file.run_id,
        source=file.source,
        taken_at=rfc3339(file.taken_at),
        published_at=rfc3339(file.published_at),
        reading=not file.intake_done,
        lines=file.lines,
        rejected=file.rejected,
        accepted=sum(tally.values()),
        outstanding=outstanding,
        outstanding_by_state={state.value: tally[state] for state in OUTSTANDING_STATES},
        age_seconds=round(max(0.0, now - file.taken_at), 3),
        jobs_per_second=round(rate, 3) if rate else None,
        eta_seconds=round(outstanding / rate, 1) if rate else None,
        **{state.value: tally[state] for state in FINAL_STATES},
    )


def _lanes(ledger: Ledger, files: Mapping[FileId, JobFile], now: float, work: Work | None) -> list[LaneStatus]:
    outstanding: dict[str, int] = {}
    bounds = work.bounds if work else {}
    oldest: dict[str, float] = {}
    for queue in ledger.queues():
        tally = ledger.tally(queue.queue_id)
        jobs = sum(tally[state] for state in OUTSTANDING_STATES)
        outstanding[queue.endpoint] = outstanding.get(queue.endpoint, 0) + jobs
        if jobs:
            oldest[queue.endpoint] = min(oldest.get(queue.endpoint, now), files[queue.file_id].taken_at)
    for endpoint in bounds:
        outstanding.setdefault(endpoint, 0)
    return [
        LaneStatus(
            endpoint=endpoint,
            outstanding=jobs,
            oldest_age_seconds=round(now - oldest.get(endpoint, now), 3),
            paused=work.paused.get(endpoint, NOTHING_PAUSED).reasons if work else None,
            paused_parts=work.paused.get(endpoint, NOTHING_PAUSED) if work else None,
            bounds=bounds.get(endpoint),
        )
        for endpoint, jobs in outstanding.items()
    ]
