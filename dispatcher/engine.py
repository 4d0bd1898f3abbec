"""The parts of a working dispatcher, wired: lanes, tracker, loader, results around one ledger.

A durable change of the ledger wakes whoever it concerns: a lane, the tracker, whoever waits for a file's end. Any part that
dies takes the process down: the ledger is made for that, and half a dispatcher loses time, not jobs.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from dispatcher.attempt import Paths
from dispatcher.fates import Fates
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
    EndpointName,
    FailureReason,
    FileId,
    JobFile,
    Queue,
    QueueId,
    RunId,
    State,
)
from dispatcher.results import Results
from dispatcher.retry import RetryPolicy
from dispatcher.settings import Settings
from dispatcher.sources.jobfiles import Intaker
from dispatcher.status import Work, tally_of
from dispatcher.tracker import Tracker

log = structlog.get_logger(__name__)

RECOVERY_DOUBT_SECONDS = 5.0
"""After a crash nobody knows how long results take: so long the outputs of attempts in doubt are waited for."""
SAMPLE_SECONDS = 1.0
UNSENT_STATES = (State.ACCEPTED, State.CLAIMED, State.AMBIGUOUS)


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


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
        self._runs: dict[FileId, RunId] = {}
        self._files: dict[FileId, JobFile] = {}
        self._taken_in: set[FileId] = set()
        # Lanes that have not ended.
        self._running: set[EndpointName] = set()
        # When this process began with a file (monotonic), and how many of its jobs were final then: for the rate.
        self._begun: dict[FileId, tuple[float, int]] = {}
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
            runs=self._runs,
            chosen_keys=settings.chosen_keys,
        )
        self.tracker = Tracker(ledger=ledger, fates=self._fates, clock=self.clock)
        self.results = Results(
            ledger, self.clock, completions if settings.collect else None, settings.collect_max_bytes
        )
        paths = Paths(invoker=invoker, stager=stager, clock=self.clock)
        self.lanes = {endpoint: self._lane(endpoint, paths, discard=discard) for endpoint in endpoints}

    def _lane(self, endpoint: EndpointName, paths: Paths, *, discard: bool) -> Lane:
        judge = Judge(
            endpoint,
            paths=paths,
            policy=RetryPolicy(max_faults=self.settings.max_faults),
            discard_staged=discard,
            metrics=self.metrics,
            chance=random.random,
            doubt_seconds=self._fates.doubt_seconds,
        )
        return Lane(
            endpoint,
            ledger=self.ledger,
            load=partial(self._loader.load, endpoint),
            paths=paths,
            judge=judge,
            max_in_flight=self.settings.max_in_flight,
            metrics=self.metrics,
            submitted=self.tracker.note,
        )

    # --- start and end ------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Takes up where the last process stopped; before anything else."""
        self._runs.update({file.file_id: file.run_id for file in await self.ledger.files()})
        wait = min(RECOVERY_DOUBT_SECONDS, self.settings.doubt_cap_seconds)
        doubtful = await self.ledger.recover(self.clock.now() + wait)
        if doubtful:
            log.info("attempts in doubt after the last stop", jobs=doubtful, looked_for_after_seconds=wait)
        await self.tracker.resume()
        self.ledger.subscribe(self._on_changes)

    def start(self, tasks: TaskGroup, *, look: bool) -> None:
        """Starts lanes, tracker and the sampling of gauges."""
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

    async def add(self, file: JobFile) -> None:
        """Reads the file to its end and lets its jobs be claimed as they are accepted."""
        self._runs[file.file_id] = file.run_id
        self._files[file.file_id] = file
        self._begun[file.file_id] = (self.clock.monotonic(), self._final(file.file_id))
        self._loader.add(file)
        for queue in self.ledger.queues():
            if queue.file_id == file.file_id:
                self.lanes[queue.endpoint].offer(queue)
        await take_in(file, ledger=self.ledger, settings=_intake(self.settings), metrics=self.metrics)
        self._taken_in.add(file.file_id)
        self.progressed.set()

    def tally(self, file: FileId) -> dict[State, int]:
        """How many jobs of the file are in each state."""
        return tally_of(self.ledger, file)

    def taken_in(self, file: FileId) -> bool:
        """Whether the file was read to its end."""
        return file in self._taken_in

    def unsent_queues(self, file: FileId) -> list[Queue]:
        """The file's queues that hold jobs which are still to be submitted."""
        return [
            queue
            for queue in self.ledger.queues()
            if queue.file_id == file and any(self.ledger.tally(queue.queue_id)[state] for state in UNSENT_STATES)
        ]

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
        """Why each lane, or its S3 route, stands still; no entry for one that does not."""
        return {endpoint: lane.paused for endpoint, lane in self.lanes.items() if lane.paused}

    def work(self) -> Work:
        """What `status` can say because this process works."""
        return Work(self._rate, {str(endpoint): reasons for endpoint, reasons in self.paused().items()})

    def _rate(self, file: FileId) -> float | None:
        if file not in self._begun:
            return None
        since, final = self._begun[file]
        ended = self._final(file) - final
        return ended / max(self.clock.monotonic() - since, 0.001) if ended else None

    def _final(self, file: FileId) -> int:
        tally = self.tally(file)
        return sum(tally[state] for state in FINAL_STATES)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self.metrics.endpoint(change.queue.endpoint).entered(change.state, change.jobs)
            if change.state is State.ACCEPTED and change.queue.file_id in self._files:
                self.lanes[change.queue.endpoint].offer(change.queue)
            elif change.state is State.AMBIGUOUS:
                self.tracker.doubtful()
            elif change.state is State.SUBMITTED and not self._unsent(change.queue.queue_id):
                self.tracker.filled(change.queue.queue_id)
        self.progressed.set()

    def _unsent(self, queue: QueueId) -> int:
        tally = self.ledger.tally(queue)
        return sum(tally[state] for state in UNSENT_STATES)

    async def _sample(self) -> None:
        """Gauges that nobody else has a reason to set, and how late the event loop wakes."""
        while True:
            before = self.clock.monotonic()
            await anyio.sleep(SAMPLE_SECONDS)
            self.metrics.loop_lagged(max(0.0, self.clock.monotonic() - before - SAMPLE_SECONDS))
            self.metrics.wal_is(self._wal_bytes())
            self._sample_outstanding()

    def _sample_outstanding(self) -> None:
        now = self.clock.now()
        jobs = dict.fromkeys(self.lanes, 0)
        oldest = dict.fromkeys(self.lanes, now)
        for queue in self.ledger.queues():
            tally = self.ledger.tally(queue.queue_id)
            outstanding = sum(tally[state] for state in OUTSTANDING_STATES)
            jobs[queue.endpoint] += outstanding
            if outstanding and queue.file_id in self._files:
                oldest[queue.endpoint] = min(oldest[queue.endpoint], self._files[queue.file_id].taken_at)
        for endpoint, count in jobs.items():
            series = self.metrics.endpoint(endpoint)
            series.outstanding.set(count)
            series.oldest_age_seconds.set(now - oldest[endpoint])


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
