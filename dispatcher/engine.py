"""The parts of a working dispatcher, wired: lanes, tracker, loader, results around one ledger.

A durable change of the ledger wakes whoever it concerns: a lane, the tracker, whoever waits for a file's end. Any part that
dies takes the process down: the ledger is made for that, and half a dispatcher loses time, not jobs. Over 300 lines because
this is where all parts meet; each method says one thing to one of them.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from msgspec import structs

from dispatcher.attempt import Job, Paths
from dispatcher.clock import SystemClock
from dispatcher.errors import ChangedFileError, UnreadableFileError
from dispatcher.fates import UNKNOWN_DOUBT_SECONDS, Fates
from dispatcher.formats.disk import BarredError, MissingFolderError
from dispatcher.formats.joblines import LineRules
from dispatcher.intake import IntakeSettings, take_in
from dispatcher.interfaces import Completions, Invoker, Ledger, Stager
from dispatcher.judge import Judge
from dispatcher.lanes import Lane
from dispatcher.loading import Defaults, Loader
from dispatcher.metrics import Metrics
from dispatcher.model import (
    FINAL_STATES,
    OUTSTANDING_STATES,
    Change,
    Claim,
    EndpointName,
    Error,
    FailureReason,
    FileId,
    JobFile,
    Queue,
    QueueId,
    Settled,
    State,
)
from dispatcher.results import Results
from dispatcher.retry import RetryPolicy
from dispatcher.settings import Settings
from dispatcher.sources.jobfiles import Intaker
from dispatcher.sources.patience import patient
from dispatcher.status import LaneBounds, PausedParts, Work
from dispatcher.tracker import Tracker
from dispatcher.windows import Bucket, Flow, Lately, Recent, Window, outstanding_limit

log = structlog.get_logger(__name__)

VERIFY_MAX = 3
"""So often a job file may be touched while one batch of its lines is read."""
SAMPLE_SECONDS = 1.0
HEALTHY_SECONDS = 15.0
"""So long after its last sample a process counts as stuck."""
PACE_SECONDS = 300.0
"""The completions of so long ago and since say how fast an endpoint works."""
OUTSTANDING_FLOOR = 1_000
"""Jobs that may wait for a result though nothing has come yet: enough to wake an endpoint that sleeps."""
UNSENT_STATES = (State.ACCEPTED, State.CLAIMED, State.AMBIGUOUS)


class Engine:
    """All parts but what opens them; made by `service.engine`."""

    def __init__(
        self,
        settings: Settings,
        *,
        ledger: Ledger,
        wal_bytes: Callable[[], int],
        metrics: Metrics,
        invoker: Invoker,
        stager: Stager | None,
        completions: Completions,
        endpoints: Sequence[EndpointName],
        work: Path,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.metrics = metrics
        self.clock = SystemClock()
        self.progressed = asyncio.Event()
        """Set at each durable change; whoever waits for progress clears it."""
        self._wal_bytes = wal_bytes
        # Every job file in the ledger, also those of which nothing is asked any more.
        self._known: dict[FileId, JobFile] = {}
        # Those that were added and are not forgotten: they are being dispatched.
        self._files: dict[FileId, JobFile] = {}
        self._queues: dict[FileId, dict[QueueId, Queue]] = {}
        # Files of which no more will be accepted.
        self._taken_in: set[FileId] = set()
        self.ended: asyncio.Queue[FileId] = asyncio.Queue()
        """Files that have come to their end: read, and every job final. Each once a process, unless an end is not one yet."""
        self.max_outstanding: dict[EndpointName, int | None] = dict.fromkeys(endpoints, settings.max_outstanding)
        """Most jobs of each lane that may wait for a result; None: what the model gets done. An operator may change it."""
        self.spoiled: dict[FileId, str] = {}
        """Files that do not hold any more what was read of them, or cannot be read, and why: nothing more of them is sent."""
        self.found: Counter[FileId] = Counter()
        """Jobs in doubt whose output was found, by file, since this process began with it."""
        # Jobs submitted and not settled, and when jobs of late reached an end: for the outstanding window.
        self._submitted: dict[EndpointName, int] = dict.fromkeys(endpoints, 0)
        # Jobs whose attempt may have been taken, for the same.
        self._doubtful: dict[EndpointName, int] = dict.fromkeys(endpoints, 0)
        self._settled = {endpoint: Lately(PACE_SECONDS) for endpoint in endpoints}
        # Jobs that are not final, by file; no entry where all are. Of every file in the ledger.
        self._outstanding: defaultdict[EndpointName, Counter[FileId]] = defaultdict(Counter)
        self._sampled_at = self.clock.monotonic()
        self._bounded = True
        self._is_lasting = False
        # Lanes that have not ended.
        self._running: set[EndpointName] = set()
        # How fast jobs of a file come to their end, since this process began with it.
        self._ends: dict[FileId, Recent] = {}
        discard = settings.staged_inputs == "delete"
        self._loader = Loader(_defaults(settings), str(work / "spill"), self.clock)
        self.intaker = Intaker(
            ledger=ledger, clock=self.clock, random=os.urandom, work=work, work_max_bytes=settings.work_max_bytes
        )
        self._fates = Fates(
            ledger=ledger,
            completions=completions,
            stager=stager if discard else None,
            clock=self.clock,
            metrics=metrics,
            doubt_cap_seconds=settings.doubt_cap_seconds,
            files=self._known,
            chosen_keys=settings.chosen_keys,
            chance=random.random,
        )
        self.tracker = Tracker(ledger=ledger, fates=self._fates, clock=self.clock)
        self.results = Results(
            ledger, self.clock, completions if settings.collect else None, settings.collect_max_bytes
        )
        paths = Paths(invoker=invoker, stager=stager, clock=self.clock)
        self.lanes = {endpoint: self._lane(endpoint, paths, discard=discard) for endpoint in endpoints}

    def _lane(self, endpoint: EndpointName, paths: Paths, *, discard: bool) -> Lane:
        settings = self.settings
        flow = Flow(
            Window(settings.min_in_flight, settings.max_in_flight),
            Bucket(settings.requests_per_second),
            Bucket(settings.bytes_per_second),
        )
        judge = Judge(
            endpoint,
            paths=paths,
            policy=RetryPolicy(max_faults=settings.max_faults),
            discard_staged=discard,
            metrics=self.metrics,
            chance=random.random,
            doubt_seconds=self._fates.doubt_seconds,
            window=flow.window,
        )
        return Lane(
            endpoint,
            ledger=self.ledger,
            load=partial(self._load, endpoint),
            paths=paths,
            judge=judge,
            max_in_flight=settings.max_in_flight,
            flow=flow,
            may_wait=partial(self._may_wait, endpoint),
            metrics=self.metrics,
            submitted=self.tracker.note,
        )

    # --- start and end ------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes up where the last process stopped; before anything else."""
        self._known.update({file.file_id: file for file in await self.ledger.files()})
        wait = min(UNKNOWN_DOUBT_SECONDS, self.settings.doubt_cap_seconds)
        doubtful = await self.ledger.recover(self.clock.now() + wait)
        if doubtful:
            log.info("attempts in doubt after the last stop", jobs=doubtful, looked_for_after_seconds=wait)
        for queue in self.ledger.queues():
            self._queues.setdefault(queue.file_id, {})[queue.queue_id] = queue
            tally = self.ledger.tally(queue.queue_id)
            self._submitted[queue.endpoint] += tally[State.SUBMITTED]
            if tally[State.AMBIGUOUS]:
                self._doubt(queue, tally[State.AMBIGUOUS])
            self._grow(queue, sum(tally[state] for state in OUTSTANDING_STATES))
        for (endpoint, state), jobs in self.ledger.totals().items():
            self.metrics.add_endpoint(endpoint).entered(state, jobs)
        accepted, rejected = self.ledger.lines()
        self.metrics.read(accepted=accepted, rejected=rejected)
        await self.tracker.resume()
        self.ledger.subscribe(self._on_changes)

    def start(self, tasks: TaskGroup, *, look: bool, lasting: bool = False) -> None:
        """Starts lanes, tracker and the sampling of gauges. Without `look` nobody waits for results, and no limit is put on them.

        `lasting`: one job file that is gone, or changed, ends its own jobs, not the process.
        """
        self._bounded, self._is_lasting = look, lasting
        for lane in self.lanes.values():
            tasks.start_soon(self._run_lane, lane, name=f"lane {lane.endpoint}")
        tasks.start_soon(partial(self.tracker.run, look=look), name="tracker")
        tasks.start_soon(self._sample, name="samples")

    def stop_lanes(self) -> None:
        """No new claims; each lane's `run` returns when what is on the wire has a durable outcome."""
        for lane in self.lanes.values():
            lane.stop()

    async def drained(self) -> None:
        """Waits, after `stop_lanes`, until every lane has ended."""
        while self._running:
            self.progressed.clear()
            await self.progressed.wait()

    async def _run_lane(self, lane: Lane) -> None:
        self._running.add(lane.endpoint)
        await lane.run()
        self._running.discard(lane.endpoint)
        self.progressed.set()

    def close(self) -> None:
        """Lets go of the job files."""
        self._loader.close()

    # --- job files ----------------------------------------------------------------------------------------------------

    async def add(self, file: JobFile, turn: AbstractAsyncContextManager[Any] = nullcontext()) -> None:  # noqa: B008
        """Reads the file to its end, while it has its turn, and lets its jobs be claimed as they are accepted."""
        self._known[file.file_id] = file
        self._files[file.file_id] = file
        self._ends[file.file_id] = Recent(self.clock.monotonic())
        self._loader.add(file)
        for queue in self._queues.get(file.file_id, {}).values():
            self.lanes[queue.endpoint].offer(queue)
        if not file.intake_done:
            async with turn:
                await anyio.to_thread.run_sync(self._loader.expect, file)
                await take_in(file, ledger=self.ledger, settings=_intake(self.settings), metrics=self.metrics)
        self.read_to_its_end(file.file_id)

    def read_to_its_end(self, file: FileId) -> None:
        """No more of the file will be accepted."""
        self._taken_in.add(file)
        self._see_end(file)
        self.progressed.set()

    def forget(self, file: FileId) -> None:
        """The file's results stand: nothing about it is asked any more."""
        for known in (self._files, self._queues, self._ends, self.found, self.spoiled):
            known.pop(file, None)
        self._taken_in.discard(file)
        self._loader.forget(file)

    def pruned(self, file: FileId) -> None:
        """The ledger has forgotten the file."""
        self._known.pop(file, None)

    def tally(self, file: FileId) -> dict[State, int]:
        """How many jobs of the file are in each state."""
        total = dict.fromkeys(State, 0)
        for queue in self._queues.get(file, ()):
            for state, jobs in self.ledger.tally(queue).items():
                total[state] += jobs
        return total

    def _see_end(self, file: FileId) -> None:
        if self.finished(file):
            self.ended.put_nowait(file)

    def taken_in(self, file: FileId) -> bool:
        """Whether the file was read to its end."""
        return file in self._taken_in

    def unsent_queues(self, file: FileId) -> list[Queue]:
        """The file's queues that hold jobs which are still to be submitted."""
        return [queue for queue in self._queues.get(file, {}).values() if self._unsent(queue.queue_id)]

    def finished(self, file: FileId) -> bool:
        """Whether every job of the file is final, and there will be no more."""
        tally = self.tally(file)
        return file in self._taken_in and not any(tally[state] for state in OUTSTANDING_STATES)

    def submitted(self, file: FileId) -> bool:
        """Whether nothing of the file is left to submit."""
        tally = self.tally(file)
        return file in self._taken_in and not any(tally[state] for state in UNSENT_STATES)

    def settled(self, file: FileId, *, submitted: bool) -> bool:
        """Whether the file is finished; with `submitted`, whether all of it is on its way."""
        return self.submitted(file) if submitted else self.finished(file)

    # --- what is going on ---------------------------------------------------------------------------------------------

    def paused(self) -> dict[EndpointName, list[FailureReason]]:
        """Why each lane, its S3 route or its looks for results stand still; no entry for one that does not."""
        reasons = {endpoint: self._paused_parts(lane).reasons for endpoint, lane in self.lanes.items()}
        return {endpoint: why for endpoint, why in reasons.items() if why}

    def healthy(self) -> bool:
        """Whether the event loop turns and its own parts with it; trouble at AWS does not count."""
        return self.clock.monotonic() - self._sampled_at < HEALTHY_SECONDS

    def work(self) -> Work:
        """What `status` can say because this process works."""
        paused = {str(endpoint): self._paused_parts(lane) for endpoint, lane in self.lanes.items()}
        bounds = {str(endpoint): self._bounds(lane) for endpoint, lane in self.lanes.items()}
        return Work(self._rate, paused, bounds)

    def _paused_parts(self, lane: Lane) -> PausedParts:
        blind = self._fates.sight.reason(lane.endpoint)
        results = [] if blind is None else [blind]
        return PausedParts(lane=lane.paused_itself, s3_route=lane.paused_by_s3, results=results)

    def _bounds(self, lane: Lane) -> LaneBounds:
        return LaneBounds(
            in_flight=lane.in_flight,
            in_flight_window=round(lane.window, 2),
            submitted=self._submitted[lane.endpoint],
            outstanding_limit=self.outstanding_limit(lane.endpoint),
            max_outstanding=self.max_outstanding[lane.endpoint],
            **structs.asdict(lane.limits),
        )

    def _rate(self, file: FileId) -> float | None:
        return self._ends[file].rate(self.clock.monotonic()) if file in self._ends else None

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _load(self, endpoint: EndpointName, claims: Sequence[Claim]) -> list[Job | Settled]:
        if not self._is_lasting:
            return await self._loader.load(endpoint, claims)
        try:
            return await patient(lambda: self._load_unless_cancelled(endpoint, claims))
        except UnreadableFileError as error:
            self.spoil(claims[0].file_id, str(error))
            return [self._gone(claim, str(error)) for claim in claims]

    async def _load_unless_cancelled(self, endpoint: EndpointName, claims: Sequence[Claim]) -> list[Job | Settled]:
        """Nobody waits for the payloads of a cancelled file. Raises UnreadableFileError where the job file is spoiled."""
        try:
            return await self._load_if_whole(endpoint, claims)
        except (MissingFolderError, BarredError) as error:
            file = await self.ledger.file(claims[0].file_id)
            if file is not None and file.cancelled_at is not None:
                why = f"{error}; {file.name} is cancelled and not waited for"
                return [self._gone(claim, why) for claim in claims]
            raise

    async def _load_if_whole(self, endpoint: EndpointName, claims: Sequence[Claim]) -> list[Job | Settled]:
        """A file may be touched, or grow, as long as it holds what was read of it."""
        for _ in range(VERIFY_MAX):
            try:
                return await self._loader.load(endpoint, claims)
            except ChangedFileError:
                await self.verify(claims[0].file_id)
        raise UnreadableFileError(f"{self._known[claims[0].file_id].data_path} is being changed all the time")

    async def verify(self, file: FileId) -> None:
        """Raises UnreadableFileError where the file does not hold any more what was read of it."""
        read = await self.ledger.file(file)
        if file in self.spoiled or read is None:
            raise UnreadableFileError(self.spoiled.get(file, "the ledger has forgotten the file"))
        await anyio.to_thread.run_sync(self._loader.verify, read)

    def spoil(self, file: FileId, why: str) -> None:
        """What is not sent of the file yet will not be. Told once."""
        if file not in self.spoiled:
            self.spoiled[file] = why
            name = self._known[file].name
            log.error("job file cannot be read any more; what was to be sent of it is dead", name=name, error=why)

    def _gone(self, claim: Claim, message: str) -> Settled:
        return Settled(
            key=claim.key,
            prior=State.CLAIMED,
            state=State.DEAD,
            completed_at=self.clock.now(),
            error=Error(FailureReason.PAYLOAD_GONE, message[:500]),
        )

    def _on_changes(self, changes: Sequence[Change]) -> None:
        ends: set[FileId] = set()
        for change in changes:
            self._count(change)
            if change.state in FINAL_STATES:
                ends.add(change.queue.file_id)
            if change.state is State.ACCEPTED and change.queue.file_id in self._files:
                self.lanes[change.queue.endpoint].offer(change.queue)
            elif change.state is State.AMBIGUOUS:
                self.tracker.doubtful()
            elif change.state is State.SUBMITTED and not self._unsent(change.queue.queue_id):
                self.tracker.filled(change.queue.queue_id)
        for file in ends:
            self._see_end(file)
        self.progressed.set()

    def _count(self, change: Change) -> None:
        queue, endpoint = change.queue, change.queue.endpoint
        self._queues.setdefault(queue.file_id, {}).setdefault(queue.queue_id, queue)
        self.metrics.endpoint(endpoint).entered(change.state, change.jobs)
        self._grow(queue, change.jobs * ((change.state in OUTSTANDING_STATES) - (change.prior in OUTSTANDING_STATES)))
        if change.state is State.SUBMITTED:
            self._submitted[endpoint] += change.jobs
        if State.AMBIGUOUS in (change.prior, change.state):
            self._doubt(queue, change.jobs if change.state is State.AMBIGUOUS else -change.jobs)
        if (change.prior, change.state) == (State.AMBIGUOUS, State.SUCCEEDED) and queue.file_id in self._files:
            self.found[queue.file_id] += change.jobs
        if change.state in FINAL_STATES and change.prior in OUTSTANDING_STATES and queue.file_id in self._ends:
            self._ends[queue.file_id].add(change.jobs, self.clock.monotonic())
        if change.prior is State.SUBMITTED:
            self._submitted[endpoint] -= change.jobs
            self._settled[endpoint].add(change.jobs, self.clock.monotonic())

    def _grow(self, queue: Queue, jobs: int) -> None:
        """So many more jobs of the queue are not final."""
        outstanding = self._outstanding[queue.endpoint]
        outstanding[queue.file_id] += jobs
        if not outstanding[queue.file_id]:
            del outstanding[queue.file_id]

    # --- the outstanding window ---------------------------------------------------------------------------------------

    def _may_wait(self, endpoint: EndpointName) -> int | None:
        """How many jobs of the lane may come to wait for a result beside those that do, or may do; None: any number."""
        if not self._bounded:
            return None
        return self.outstanding_limit(endpoint) - self._submitted[endpoint] - self._doubtful[endpoint]

    def _doubt(self, queue: Queue, jobs: int) -> None:
        """So many more are in doubt. Those of a rebuilt file do not count: one of them must be sent to tell of the others."""
        if not self._known[queue.file_id].rebuilt:
            self._doubtful[queue.endpoint] += jobs

    def outstanding_limit(self, endpoint: EndpointName) -> int:
        """How many jobs of the lane may wait for a result now."""
        if (most := self.max_outstanding[endpoint]) is not None:
            return most
        measured = self._settled[endpoint].measured(self.clock.monotonic())
        return outstanding_limit(measured, self.settings.request_ttl_seconds, OUTSTANDING_FLOOR)

    def _unsent(self, queue: QueueId) -> int:
        tally = self.ledger.tally(queue)
        return sum(tally[state] for state in UNSENT_STATES)

    async def _sample(self) -> None:
        """Gauges that nobody else has a reason to set, and how late the event loop wakes."""
        while True:
            before = self.clock.monotonic()
            await anyio.sleep(SAMPLE_SECONDS)
            self._sampled_at = self.clock.monotonic()
            self.clock.follow()
            self.metrics.loop_lagged(max(0.0, self.clock.monotonic() - before - SAMPLE_SECONDS))
            self.metrics.wal_is(self._wal_bytes())
            self._sample_outstanding()

    def _sample_outstanding(self) -> None:
        now = self.clock.now()
        for endpoint, lane in self.lanes.items():
            jobs = {file: count for file, count in self._outstanding[endpoint].items() if file in self._files}
            oldest = min((self._files[file].taken_at for file in jobs), default=now)
            series = self.metrics.endpoint(endpoint)
            series.outstanding.set(sum(jobs.values()))
            series.oldest_age_seconds.set(now - oldest)
            series.in_flight_window.set(lane.window)
            series.outstanding_limit.set(self.outstanding_limit(endpoint))


def _intake(settings: Settings) -> IntakeSettings:
    return IntakeSettings(rules=line_rules(settings), share=settings.share(), line_max_bytes=settings.line_max_bytes)


def line_rules(settings: Settings) -> LineRules:
    """What these settings allow a job line."""
    return LineRules(
        endpoint=EndpointName(settings.endpoint) if settings.endpoint else None,
        allowed_endpoints=frozenset(EndpointName(name) for name in settings.endpoints()),
        staging=settings.staging is not None,
        allowed_input_prefixes=settings.input_prefix,
    )


def _defaults(settings: Settings) -> Defaults:
    return Defaults(
        content_type=settings.content_type,
        accept=settings.accept,
        request_ttl_seconds=settings.request_ttl_seconds,
        invocation_timeout_seconds=settings.invocation_timeout_seconds,
        slack_seconds=settings.result_slack_seconds,
        chosen_keys=settings.chosen_keys,
    )
