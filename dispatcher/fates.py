"""Decides what became of submitted and ambiguous jobs, and records it: output, failure, expiry, or sent again.

Success beats failure, failure beats the deadline. A staged input is deleted before the final state is recorded, so that a
crash between the two leaves no orphan; of jobs that the ledger ends by itself, before their file's results stand. What must
never happen: a final state from an answer that was not one (a denied or failed call settles nothing; it is asked again).
A cancel anywhere is harmless: what was not recorded is found again.

An ambiguous job of a cancelled file is looked for like any other; reopened, the ledger ends it as cancelled.

An ambiguous job is looked for in its shard's folder; where no receipt names one, in the same place below the root that
another receipt of its endpoint shows. The jobs of a rebuilt file are all ambiguous at first: where no root is known yet,
one of them is sent and the others wait for its receipt. Over 300 lines because these rules hold for one and the same job.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio
import structlog
from msgspec import Struct

from dispatcher.identity import filename, inference_id, input_key, output_path_extension
from dispatcher.interfaces import HIDDEN, Clock, Completions, Fault, Found, Ledger, Stager
from dispatcher.metrics import Metrics
from dispatcher.model import (
    EndpointName,
    Error,
    FailureReason,
    FileId,
    JobKey,
    JobRow,
    Move,
    NewFile,
    OpenJob,
    Queue,
    QueueId,
    Reopened,
    Settled,
    State,
    Transport,
)
from dispatcher.polling import ASK_AGAIN_SECONDS, Pace
from dispatcher.search import Roots, Search, Sought, side_by_side
from dispatcher.sight import Sight

log = structlog.get_logger(__name__)

EXCERPT_BYTES = 2_048
"""How much of a failure object is read and kept."""

INEXACT_SECONDS = 0.5
"""How much longer than it seems a result may have taken: S3 cuts the fraction off (see `_completed_at`)."""

UNKNOWN_DOUBT_SECONDS = 5.0
"""So long at least the outputs of attempts in doubt are waited for where nobody knows how long results take: in the beginning,
and after a crash."""

DISCARD_PAUSES_SECONDS = (0.1, 0.5, 2.0)
"""Between the tries to delete staged inputs."""

DISCARD_SECONDS = 60.0
"""How long the staged inputs of a page of jobs that ended unsent may take to delete, while their file's results wait."""
PAGE = 500

UNSENT_ENDS = (State.CANCELLED, State.EXPIRED, State.DEAD)
ON_THEIR_WAY = (State.ACCEPTED, State.CLAIMED, State.SUBMITTED)
TOO_LATE = "it may have been submitted, but had no output when the job file's deadline passed"

Count = Callable[[int, int], None]
"""Is told how many S3 requests a look has made, and how many results they found."""

Postpone = Callable[[float], None]
"""Is told until when (wall clock) a failure that was found must wait to be believed."""


def ignore(calls: int, found: int) -> None:
    """For looks that nobody keeps a budget of."""


def ignore_sight(endpoint: EndpointName) -> None:
    """For looks that nobody waits to make."""


class Doubts(Struct, frozen=True):
    """What came of a look at ambiguous jobs: whether S3 could say something of each, and how many must stay ambiguous until
    a receipt shows where their outputs are.
    """

    answered: bool
    kept: int


class Fates:
    """Knows where to look for a job's end, and how long a lane's results take (`pace`)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        completions: Completions,
        stager: Stager | None,
        clock: Clock,
        metrics: Metrics,
        doubt_cap_seconds: float,
        files: Mapping[FileId, NewFile],
        chosen_keys: bool,
        chance: Callable[[], float],
    ) -> None:
        """`stager` is None where staged inputs are not to be deleted. `files` gains an entry with every job file taken up."""
        self._ledger = ledger
        self._completions = completions
        self._search = Search(completions)
        self.sight = Sight(clock=clock, metrics=metrics, chance=chance)
        """Whether there is any use in looking."""
        self.seen: Callable[[EndpointName], None] = ignore_sight
        """Is told of an endpoint whose results can be looked for again; the tracker's."""
        self._roots = Roots()
        # A shard with a receipt that nobody has read yet, for an endpoint of which no root is known.
        self._shown: dict[EndpointName, tuple[QueueId, int]] = {}
        # The job that was reopened to learn an endpoint's root, and its file.
        self._scouts: dict[EndpointName, tuple[FileId, JobKey]] = {}
        self._stager = stager
        self._clock = clock
        self._metrics = metrics
        self._doubt_cap_seconds = doubt_cap_seconds
        self._files = files
        self._chosen_keys = chosen_keys
        self._paces: dict[EndpointName, Pace] = defaultdict(Pace)

    def pace(self, endpoint: EndpointName) -> Pace:
        """How long this lane's results take."""
        return self._paces[endpoint]

    def doubt_seconds(self, endpoint: EndpointName) -> float:
        """How long to wait for the output of an attempt whose answer was lost: nine in ten of the lane's results come sooner."""
        pace = self._paces[endpoint]
        least = UNKNOWN_DOUBT_SECONDS if pace.is_young else 0.0
        return min(self._doubt_cap_seconds, max(pace.most_seconds + INEXACT_SECONDS, least))

    async def outputs(self, queue: Queue, jobs: Sequence[OpenJob], count: Count = ignore) -> list[OpenJob]:
        """Settles the jobs whose output is there. Returns those that surely have none."""
        sought = await self._seek(queue, {job.key: job.receipt.output_location for job in jobs if job.receipt})
        count(sought.calls, len(sought.found))
        await self._settle(
            queue, [self._succeeded(job, sought.found[job.key]) for job in jobs if job.key in sought.found], jobs
        )
        return [job for job in jobs if job.key not in sought.found and job.key not in sought.unasked]

    async def _seek(self, queue: Queue, outputs: Mapping[JobKey, str]) -> Sought:
        """Looks for outputs, and tells the endpoint's gate how that went."""
        sought = await self._search.seek(outputs)
        if self.sight.told(queue.endpoint, sought.fault, answered=sought.calls > 0):
            self.seen(queue.endpoint)
        return sought

    async def late(self, queue: Queue, jobs: Sequence[OpenJob]) -> None:
        """Counts the outputs of expired jobs whose results stand already; nothing changes any more."""
        sought = await self._seek(queue, {job.key: job.receipt.output_location for job in jobs if job.receipt})
        for key, found in sought.found.items():
            self._metrics.late_result()
            log.warning("result came late", endpoint=queue.endpoint, line=key.line, output_location=found.uri)

    async def failures(self, queue: Queue, jobs: Sequence[OpenJob], count: Count, postpone: Postpone) -> list[OpenJob]:
        """Settles the jobs that have a failure object and, asked again, no output. Returns the others that surely have neither."""
        places = {job.key: job.receipt.failure_location for job in jobs if job.receipt and job.receipt.failure_location}
        sought = await self._search.seek(places)
        count(sought.calls, len(sought.found))
        failed = [job for job in jobs if job.key in sought.found and self._may_fail(queue, job, postpone)]
        if failed:
            without_output = await self.outputs(queue, failed)
            if not await self._fail(queue, [(job, sought.found[job.key]) for job in without_output]):
                postpone(self._clock.now() + ASK_AGAIN_SECONDS)
        # Outputs were looked for, and answered: a bucket of failures in which there never was one may well hide that.
        hidden = sought.fault is not None and sought.fault.code == HIDDEN
        return [job for job in jobs if job.key not in sought.found and (hidden or job.key not in sought.unasked)]

    def _may_fail(self, queue: Queue, job: OpenJob, postpone: Postpone) -> bool:
        """A failure object alone never settles a job whose other submission may still succeed."""
        if not job.maybe_sent or job.submitted_at is None:
            return True
        patience = max(self._doubt_cap_seconds, 2 * self._paces[queue.endpoint].most_seconds)
        until = min(job.submitted_at + patience, job.due_at)
        if self._clock.now() >= until:
            return True
        postpone(until)
        return False

    # --- final states -------------------------------------------------------------------------------------------------

    def _succeeded(self, job: OpenJob, found: Found) -> Settled:
        return Settled(
            key=job.key,
            prior=job.state,
            state=State.SUCCEEDED,
            completed_at=self._completed_at(job, found),
            output_location=None if job.receipt else found.uri,
        )

    def _completed_at(self, job: OpenJob, found: Found) -> float:
        """LastModified, of which S3 cuts the fraction off, kept between the 202 and now: it is another machine's clock."""
        modified_at = found.modified_at + (INEXACT_SECONDS if found.modified_at.is_integer() else 0.0)
        return min(max(modified_at, job.submitted_at or 0.0), self._clock.now())

    async def _fail(self, queue: Queue, failures: Sequence[tuple[OpenJob, Found]]) -> bool:
        """Settles these as failed, each with its excerpt. Whether S3 gave all of them."""
        moves: list[Settled] = []

        async def read(failure: tuple[OpenJob, Found]) -> None:
            job, found = failure
            content = await self._completions.read(found.uri, EXCERPT_BYTES)
            if isinstance(content, Fault):
                return
            moves.append(
                Settled(
                    key=job.key,
                    prior=State.SUBMITTED,
                    state=State.FAILED,
                    completed_at=self._completed_at(job, found),
                    error=Error(FailureReason.MODEL_ERROR, excerpt(content or b"")),
                )
            )

        await side_by_side(read, list(failures))
        await self._settle(queue, moves, [job for job, _ in failures])
        return len(moves) == len(failures)

    async def expire(self, queue: Queue, jobs: Sequence[OpenJob]) -> None:
        """Settles these submitted jobs as expired: their deadlines have passed, and S3 surely has neither object of them."""
        now = self._clock.now()
        error = Error(
            FailureReason.RESULT_MISSING, "neither an output nor a failure object appeared before the deadline"
        )
        moves = [
            Settled(key=job.key, prior=State.SUBMITTED, state=State.EXPIRED, completed_at=now, error=error)
            for job in jobs
        ]
        await self._settle(queue, moves, jobs)

    async def _settle(self, queue: Queue, moves: Sequence[Settled], jobs: Iterable[OpenJob]) -> None:
        if not moves:
            return
        by_key = {job.key: job for job in jobs}
        settled = [(by_key[move.key], move) for move in moves]
        await self._discard(queue.file_id, [job.key for job, _ in settled if job.transport is Transport.S3])
        await self._ledger.record(moves)
        self._measure(queue, settled)

    async def discard_unsent(self, file: FileId) -> None:
        """Deletes what is staged of a finished file's jobs that ended while they waited to be sent again: cancelled, say.

        The ledger ends them by itself, many at once. To be made before the file counts as published: then a crash on the way,
        or before, leaves nothing behind, because it is made again. An S3 that does not answer holds no results up for long.
        """
        if self._stager is None or not self._ended_unsent(file):
            return
        line = 0
        while rows := await self._ledger.rows(file, line, PAGE):
            line = rows[-1].key.line
            with anyio.move_on_after(DISCARD_SECONDS) as limit:
                await self._discard(file, [row.key for row in rows if _may_be_staged(row)])
            if limit.cancelled_caught:
                log.warning("staged inputs may be left behind", name=self._files[file].name, from_line=rows[0].key.line)
                return

    def _ended_unsent(self, file: FileId) -> bool:
        tallies = [self._ledger.tally(queue.queue_id) for queue in self._ledger.queues(file)]
        return any(tally[state] for tally in tallies for state in UNSENT_ENDS)

    async def _discard(self, file: FileId, keys: list[JobKey]) -> None:
        if self._stager is None or not keys:
            return
        run = self._files[file].run_id
        inputs = {input_key(inference_id(run, key.line)): key for key in keys}
        left = await _discarded(self._stager, list(inputs))
        reasons: dict[tuple[EndpointName, str], list[Fault]] = {}
        for name, fault in left.items():
            endpoint = self._ledger.queue(inputs[name].queue).endpoint
            reasons.setdefault((endpoint, fault.code), []).append(fault)
        for (endpoint, code), faults in reasons.items():
            message = faults[0].message
            log.warning("staged inputs not deleted", endpoint=endpoint, number=len(faults), code=code, message=message)

    def _measure(self, queue: Queue, settled: Iterable[tuple[OpenJob, Settled]]) -> None:
        pace = self._paces[queue.endpoint]
        for job, move in settled:
            if job.submitted_at is None or move.state is State.EXPIRED:
                continue
            seconds = move.completed_at - job.submitted_at
            pace.add(seconds)
            self._metrics.completed(job.transport, seconds)

    # --- doubts -------------------------------------------------------------------------------------------------------

    def submitted(self, queue: QueueId, shard: int) -> bool:
        """A job of this shard has a receipt. Returns whether its folder will tell something new."""
        endpoint = self._ledger.queue(queue).endpoint
        if self._roots.knows(endpoint) or endpoint in self._shown:
            return False
        self._shown[endpoint] = (queue, shard)
        return True

    async def doubts(self, jobs: Sequence[OpenJob]) -> Doubts:
        """Settles the ambiguous jobs whose output is there, and reopens those that have none."""
        shards: dict[tuple[QueueId, int], list[OpenJob]] = {}
        for job in jobs:
            shards.setdefault((job.key.queue, job.shard), []).append(job)
        told = [
            await self._doubt(self._ledger.queue(queue), shard, members) for (queue, shard), members in shards.items()
        ]
        return Doubts(answered=all(one.answered for one in told), kept=sum(one.kept for one in told))

    async def _doubt(self, queue: Queue, shard: int, jobs: Sequence[OpenJob]) -> Doubts:
        file = self._files[queue.file_id]
        folder = await self._folder(queue, file, shard)
        ends = self._overdue(file) or await self._is_cancelled(queue.file_id)
        if folder is None and not ends and self._may_learn(queue, file):
            scouts = await self._scouts_of(queue, jobs)
            await self._reopen(scouts)
            return Doubts(answered=True, kept=len(jobs) - len(scouts))
        if file.rebuilt:
            # All of the shard that is due, so that one LIST tells of it.
            jobs = await self._doubtful(queue, shard)
        names = {job.key: filename(inference_id(file.run_id, job.key.line)) for job in jobs}
        sought = await self._seek(queue, {key: folder + name for key, name in names.items()} if folder else {})
        await self._settle(
            queue, [self._succeeded(job, sought.found[job.key]) for job in jobs if job.key in sought.found], jobs
        )
        gone = [job for job in jobs if job.key not in sought.found and job.key not in sought.unasked]
        await (self._settle(queue, self._too_late(gone), gone) if self._overdue(file) else self._reopen(gone))
        return Doubts(answered=not sought.unasked, kept=0)

    async def _folder(self, queue: Queue, file: NewFile, shard: int) -> str | None:
        """Where the outputs of a shard are, as far as a receipt of its own or of its endpoint tells."""
        if not self._chosen_keys:
            return None
        known = await self._ledger.shard(queue.queue_id, shard)
        if known is not None and known.folder is not None:
            return known.folder
        await self._learn(queue.endpoint)
        return self._roots.folder(queue.endpoint, output_path_extension(file.name, file.run_id, shard))

    async def _learn(self, endpoint: EndpointName) -> None:
        shown = self._shown.pop(endpoint, None)
        known = None if shown is None else await self._ledger.shard(*shown)
        if known is not None and known.folder is not None:
            file = self._files[self._ledger.queue(known.queue).file_id]
            self._roots.learn(endpoint, known.folder, output_path_extension(file.name, file.run_id, known.shard))

    def _may_learn(self, queue: Queue, file: NewFile) -> bool:
        """Whether a receipt may yet tell where the outputs of a file are that was dispatched before."""
        return file.rebuilt and self._chosen_keys and not self._roots.knows(queue.endpoint)

    async def _scouts_of(self, queue: Queue, jobs: Sequence[OpenJob]) -> list[OpenJob]:
        """The one job that is sent for its receipt alone; none while one is on its way. The last: likely not run before."""
        scout = self._scouts.get(queue.endpoint)
        if scout is not None and not await self._is_over(*scout):
            return []
        job = max(jobs, key=lambda job: job.key.line)
        self._scouts[queue.endpoint] = queue.file_id, job.key
        return [job]

    async def _is_over(self, file: FileId, key: JobKey) -> bool:
        rows = await self._ledger.rows(file, key.line - 1, 1)
        return not any(row.key == key and row.state in ON_THEIR_WAY for row in rows)

    async def _doubtful(self, queue: Queue, shard: int) -> list[OpenJob]:
        jobs, now = await self._ledger.open_jobs(queue.queue_id, shard), self._clock.now()
        return [job for job in jobs if job.state is State.AMBIGUOUS and job.due_at <= now]

    async def _is_cancelled(self, file: FileId) -> bool:
        known = await self._ledger.file(file)
        return known is not None and known.cancelled_at is not None

    def _overdue(self, file: NewFile) -> bool:
        return file.deadline_at is not None and file.deadline_at <= self._clock.now()

    def _too_late(self, jobs: Sequence[OpenJob]) -> list[Settled]:
        now, error = self._clock.now(), Error(FailureReason.RESULT_MISSING, TOO_LATE)
        return [
            Settled(key=job.key, prior=State.AMBIGUOUS, state=State.EXPIRED, completed_at=now, error=error)
            for job in jobs
        ]

    async def _reopen(self, jobs: Sequence[OpenJob]) -> None:
        reopened: list[Move] = [Reopened(key=job.key, due_at=self._clock.now()) for job in jobs]
        if reopened:
            await self._ledger.record(reopened)


def _may_be_staged(row: JobRow) -> bool:
    """Whether nobody but the ledger, or the loader that missed its line, saw the end of a job that may have been staged."""
    if row.transport is not Transport.S3 or not row.attempts or row.receipt is not None:
        return False
    gone = row.error is not None and row.error.code == FailureReason.PAYLOAD_GONE
    return row.state in (State.CANCELLED, State.EXPIRED) or (row.state is State.DEAD and gone)


async def _discarded(stager: Stager, keys: list[str]) -> dict[str, Fault]:
    """Deletes staged inputs; a few tries of what is left, because nobody comes back for it. Returns what is left then."""
    left = await stager.discard(keys)
    for pause in DISCARD_PAUSES_SECONDS:
        if not left:
            break
        await anyio.sleep(pause)
        left = await stager.discard(list(left))
    return left


def excerpt(content: bytes) -> str:
    """The beginning of a failure object as one clean line: replacement for what is no UTF-8, no control characters."""
    text = content[:EXCERPT_BYTES].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else " " for character in text).strip()
