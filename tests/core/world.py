"""A small world for the core to live in: a ledger in memory, the service (`service`), and processes that may crash.

The wiring is the one of `dispatcher.service.Engine`, on the loop's virtual time. The world outlives its processes: a
process ends as a crash does, all its tasks cancelled, the ledger and the service as they are. What must always hold is
noted in `violations` at the moment it is broken; `checks` looks at the rest when all is over.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct
from prometheus_client import CollectorRegistry

from dispatcher.attempt import Job, Origin, Paths
from dispatcher.fates import Fates
from dispatcher.identity import inference_id, output_folder, share_point
from dispatcher.interfaces import FileSlice, Invocation
from dispatcher.judge import Judge
from dispatcher.lanes import Lane
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.metrics import Metrics
from dispatcher.model import (
    FINAL_STATES,
    OUTSTANDING_STATES,
    Change,
    Claim,
    Cursor,
    EndpointName,
    Error,
    FailureReason,
    FileId,
    InferenceId,
    Intake,
    JobFile,
    JobKey,
    JobRow,
    Lost,
    Move,
    NewFile,
    NewJob,
    QueueId,
    Rejection,
    RunId,
    Settled,
    State,
    Submission,
    Submitted,
    Transport,
)
from dispatcher.retry import RetryPolicy
from dispatcher.router import route
from dispatcher.tracker import Tracker
from dispatcher.windows import Bucket, Flow, Window
from tests.core.service import STAGING, LoopClock, Service, Weather

MODEL = EndpointName("model")
UNSENT_STATES = (State.ACCEPTED, State.CLAIMED, State.AMBIGUOUS)
BATCH = 500
OVERDUE = Error(FailureReason.RESULT_MISSING, "not submitted before the job file's deadline")


class Line(Struct, frozen=True, kw_only=True):
    """A job as the test wants it. `gone`: its payload is not there any more when it is to be sent.

    `spill`: the temporary file that loading it makes.
    """

    endpoint: EndpointName = MODEL
    size_bytes: int = 100
    transport: Transport | None = None
    ttl_seconds: int = 21_600
    timeout_seconds: int = 900
    gone: bool = False
    spill: str | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """How the dispatcher under test is set up."""

    seed: int = 0
    staging: bool = True
    share: float = 0.0
    max_in_flight: int = 8
    max_faults: int = 4
    doubt_cap_seconds: float = 60.0
    slack_seconds: float = 120.0
    commit_seconds: float = 0.002
    chosen_keys: bool = True
    min_in_flight: float = 0.05
    requests_per_second: float | None = None
    bytes_per_second: float | None = None
    max_outstanding: int | None = None

    def flow(self) -> Flow:
        """What a lane may put on the wire."""
        return Flow(
            Window(self.min_in_flight, self.max_in_flight),
            Bucket(self.requests_per_second),
            Bucket(self.bytes_per_second),
        )


class WatchedLedger(MemoryLedger):
    """Takes its time to commit, and remembers which jobs went into doubt and when each one was settled."""

    def __init__(self, clock: LoopClock, commit_seconds: float) -> None:
        super().__init__()
        self.lost: Counter[JobKey] = Counter()
        self.settled_at: dict[JobKey, list[float]] = {}
        self.moves: list[Move] = []
        self.receipts = 0
        self.claims = 0
        self._clock = clock
        self._commit_seconds = commit_seconds

    async def claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None = None) -> list[Claim]:
        await anyio.sleep(self._commit_seconds)
        claims = await super().claim(queue, limit, now, redirect)
        self.claims += bool(claims)
        return claims

    async def record(self, moves: Sequence[Move]) -> None:
        """A cancel before the change leaves nothing, one after it leaves everything: as with a disk."""
        await anyio.sleep(self._commit_seconds)
        self.moves += moves
        self.receipts += sum(isinstance(move, Submitted) for move in moves)
        self.lost.update(move.key for move in moves if isinstance(move, Lost))
        for move in moves:
            if isinstance(move, Settled):
                self.settled_at.setdefault(move.key, []).append(self._clock.now())
        await super().record(moves)


class World:
    """What is there before and after every process."""

    def __init__(self, plan: Plan | None = None, weather: Weather | None = None) -> None:
        self.plan = plan or Plan()
        self.random = Random(self.plan.seed)
        self._process: Process | None = None
        self.clock = LoopClock()
        self.weather = weather or Weather()
        self.ledger = self._new_ledger()
        self.service = Service(self.clock, self.weather)
        self.violations: list[str] = []
        self.lost_ledgers = 0
        self.max_outstanding = self.plan.max_outstanding
        self.files: dict[FileId, JobFile] = {}
        self.keys: dict[InferenceId, tuple[FileId, int]] = {}
        self._lines: dict[tuple[FileId, int], Line] = {}
        # What was claimed of each cancelled file when it was cancelled, and not sent since: nothing else of it may be.
        self._last_sends: dict[FileId, set[int]] = {}
        self._metrics = Metrics(CollectorRegistry(), [])
        self.service.before_send = self._on_send
        self.service.before_discard = self._on_discard

    # --- intake ---

    async def add(
        self,
        name: str,
        lines: Sequence[Line],
        rejections: int = 0,
        *,
        deadline_at: float | None = None,
        before: RunId | None = None,
    ) -> JobFile:
        """A job file whose jobs are durable when this returns. Line numbers begin at 1; rejected lines come last.

        `before`: the run id under which a ledger that was lost dispatched it.
        """
        file = await self._new_file(name, deadline_at, before)
        for start in range(0, max(len(lines), 1), BATCH):
            await self._accept(file, lines, start, rejections)
        return file

    async def cancel(self, file: JobFile) -> None:
        """An operator cancels the file."""
        if file.file_id not in self._last_sends:
            claimed = {row.key.line for row in await self.rows(file) if row.state is State.CLAIMED}
            # Nothing may come between the look and the cancel; the ledger changes before it yields.
            self._last_sends[file.file_id] = claimed
        await self.ledger.cancel(file.file_id, self.clock.now())

    async def lose_ledger(self) -> None:
        """The ledger is gone; a new one is made of the job files. Anything may have been sent once before."""
        files, self.files = list(self.files.values()), {}
        self._last_sends.clear()
        lost, self.ledger = self.ledger.lost, self._new_ledger()
        self.ledger.lost.update(lost)
        self.lost_ledgers += 1
        for file in files:
            lines = [line for (number, _), line in self._lines.items() if number == file.file_id]
            again = await self.add(file.name, lines, deadline_at=file.deadline_at, before=file.run_id)
            self.ledger.lost.update(row.key for row in await self.rows(again))

    def _new_ledger(self) -> WatchedLedger:
        ledger = WatchedLedger(self.clock, self.plan.commit_seconds)
        ledger.subscribe(self._on_changes)
        return ledger

    async def _new_file(self, name: str, deadline_at: float | None, before: RunId | None) -> JobFile:
        run = before or RunId(f"run{len(self.files):013}")
        new = NewFile(
            run_id=run,
            name=name,
            source=name,
            data_path=name,
            payload_root=".",
            size_bytes=0,
            taken_at=self.clock.now(),
            deadline_at=deadline_at,
            rebuilt=before is not None,
        )
        file = await self.ledger.add_file(new)
        self.files[file.file_id] = file
        if self._process is not None:
            self._process.files[file.file_id] = file
        return file

    async def _accept(self, file: JobFile, lines: Sequence[Line], start: int, rejections: int) -> None:
        part = lines[start : start + BATCH]
        final = start + len(part) == len(lines)
        last = len(lines) + rejections
        refused = [Rejection(n, None, FailureReason.INVALID_JSON, "") for n in range(len(lines) + 1, last + 1)]
        await self.ledger.accept(
            Intake(
                file_id=file.file_id,
                jobs=[self._job(file, start + n, line) for n, line in enumerate(part, 1)],
                rejections=refused if final else [],
                lines=len(part) + rejections * final,
                cursor=Cursor(1 + start + len(part), last if final else start + len(part), ""),
                final=final,
            )
        )

    def _job(self, file: JobFile, number: int, line: Line) -> NewJob:
        name = inference_id(file.run_id, number)
        self.keys[name] = (file.file_id, number)
        self._lines[file.file_id, number] = line
        point = share_point(file.run_id, number)
        transport = route(line.size_bytes, line.transport, lambda: point, share=self.plan.share)
        return NewJob(
            line=number,
            id=str(name),
            endpoint=line.endpoint,
            offset=0,
            length=0,
            size_bytes=line.size_bytes,
            transport=transport,
            has_metadata=False,
        )

    @property
    def lines(self) -> list[Line]:
        """Every job line that was added."""
        return list(self._lines.values())

    def line(self, id: InferenceId) -> Line:
        """What the test wanted of the job that the service knows by this id."""
        return self._lines[self.keys[id]]

    # --- processes ---

    @asynccontextmanager
    async def process(self, *, look: bool = True) -> AsyncIterator["Process"]:
        """A process that lives until the block ends, and then dies at once."""
        process = Process(self)
        for claimed in self._last_sends.values():
            claimed.clear()
        await process.recover()
        self._process = process
        try:
            async with anyio.create_task_group() as tasks:
                process.start(tasks, look=look)
                yield process
                tasks.cancel_scope.cancel()
        finally:
            self._process = None

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for endpoint in {change.queue.endpoint for change in changes if change.state is State.CLAIMED}:
            claimed = self.total(State.CLAIMED, endpoint)
            if claimed > 2 * self.plan.max_in_flight:
                self.violations.append(f"{claimed} jobs are open on {endpoint}")
            may_wait = self.may_wait(endpoint)
            if may_wait is not None and claimed > may_wait:
                self.violations.append(f"{claimed} jobs of {endpoint} are open where {may_wait} may wait for a result")
        if self._process is not None:
            self._process.on_changes(changes)

    # --- what the dispatcher knows ---

    def total(self, state: State, endpoint: EndpointName | None = None) -> int:
        """How many jobs are in this state, on one endpoint or on all."""
        queues = [queue for queue in self.ledger.queues() if endpoint in (None, queue.endpoint)]
        return sum(self.ledger.tally(queue.queue_id)[state] for queue in queues)

    def may_wait(self, endpoint: EndpointName) -> int | None:
        """How many jobs may come to wait for a result beside those that do; None: any number."""
        if self.max_outstanding is None:
            return None
        return self.max_outstanding - self.total(State.SUBMITTED, endpoint) - self._doubtful(endpoint)

    def _doubtful(self, endpoint: EndpointName) -> int:
        queues = [queue for queue in self.ledger.queues() if queue.endpoint == endpoint]
        sent_here = [queue for queue in queues if not self.files[queue.file_id].rebuilt]
        return sum(self.ledger.tally(queue.queue_id)[State.AMBIGUOUS] for queue in sent_here)

    def outstanding(self, file: JobFile | None = None) -> int:
        """How many jobs have no final state."""
        queues = [queue for queue in self.ledger.queues() if file is None or queue.file_id == file.file_id]
        return sum(self.ledger.tally(queue.queue_id)[state] for queue in queues for state in OUTSTANDING_STATES)

    async def rows(self, file: JobFile) -> list[JobRow]:
        """All jobs of a file, in line order."""
        return await self.ledger.rows(file.file_id, 0, len(self._lines))

    async def row(self, id: str) -> JobRow:
        """The job that the service knows by this id."""
        return (await self.ledger.find(id))[0][1]

    def cancelled(self, row: JobRow) -> bool:
        """Whether the job's file was cancelled."""
        return any(
            queue.queue_id == row.key.queue and queue.file_id in self._last_sends for queue in self.ledger.queues()
        )

    # --- what must hold at each moment ---

    async def _on_send(self, invocation: Invocation) -> None:
        if invocation.inference_id not in self.keys:
            self.violations.append(f"{invocation.inference_id} was sent and is no job")
            return
        state = (await self.row(invocation.inference_id)).state
        if state is not State.CLAIMED:
            self.violations.append(f"{invocation.inference_id} was sent while it was {state}")
        file, line = self.keys[invocation.inference_id]
        if file in self._last_sends:
            if line not in self._last_sends[file]:
                self.violations.append(f"{invocation.inference_id} was sent though its file was cancelled")
            self._last_sends[file].discard(line)
        location = invocation.input_location or ""
        if location.startswith(STAGING) and location not in self.service.staged:
            self.violations.append(f"{invocation.inference_id} was sent before its input was staged")

    async def _on_discard(self, key: str) -> None:
        state = (await self.row(key.rpartition("/")[2])).state
        # What the ledger ended by itself is deleted after that, before the results of its file stand.
        if state in FINAL_STATES and state not in (State.CANCELLED, State.EXPIRED):
            self.violations.append(f"the input of {key} was deleted after the job was {state}")


class Process:
    """One life of a dispatcher; wired as the real one is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.files: dict[FileId, NewFile] = dict(world.files)
        self.progressed = anyio.Event()
        self._metrics = Metrics(CollectorRegistry(), [MODEL])
        stager = world.service if world.plan.staging else None
        self.fates = Fates(
            ledger=world.ledger,
            completions=world.service,
            stager=stager,
            clock=world.clock,
            metrics=self._metrics,
            doubt_cap_seconds=world.plan.doubt_cap_seconds,
            files=self.files,
            chosen_keys=world.plan.chosen_keys,
            chance=world.random.random,
        )
        self.tracker = Tracker(ledger=world.ledger, fates=self.fates, clock=world.clock)
        self.paths = Paths(invoker=world.service, stager=stager, clock=world.clock)
        self.lanes: dict[EndpointName, Lane] = {}
        self.judges: dict[EndpointName, Judge] = {}
        self._tasks: TaskGroup | None = None
        self._running = 0
        self._told = 0
        self._receipts_before = world.ledger.receipts

    async def recover(self) -> None:
        """What was claimed when the last process died is in doubt: each such job may be sent once more."""
        for file in self.world.files.values():
            claimed = [row.key for row in await self.world.rows(file) if row.state is State.CLAIMED]
            self.world.ledger.lost.update(claimed)
        await self.world.ledger.recover(self.world.clock.now() + 5.0)
        await self.tracker.resume()

    def start(self, tasks: TaskGroup, *, look: bool) -> None:
        self._tasks = tasks
        tasks.start_soon(lambda: self.tracker.run(look=look))
        tasks.start_soon(self._keep_deadlines)
        for queue in self.world.ledger.queues():
            self._lane(queue.endpoint).offer(queue)

    async def _keep_deadlines(self) -> None:
        """Ends what was not submitted of a file by its deadline; while there is such a file, or this would never rest."""
        while any(file.deadline_at is not None for file in self.files.values()):
            await anyio.sleep(0.5)
            now = self.world.clock.now()
            for number, file in list(self.files.items()):
                if file.deadline_at is not None and file.deadline_at <= now:
                    await self.world.ledger.end_unsent(number, State.EXPIRED, now, OVERDUE)

    def on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.state is State.ACCEPTED:
                self._lane(change.queue.endpoint).offer(change.queue)
            elif change.state is State.AMBIGUOUS:
                self.tracker.doubtful()
            elif change.state is State.SUBMITTED and not self._unsent(change.queue.queue_id):
                self.tracker.filled(change.queue.queue_id)
        self.progressed.set()

    def _unsent(self, queue: QueueId) -> int:
        tally = self.world.ledger.tally(queue)
        return sum(tally[state] for state in UNSENT_STATES)

    # --- waiting, always with an end ---

    async def until(self, holds: Callable[[], bool], *, within: float = 60.0) -> None:
        """Waits until it holds; TimeoutError after `within` virtual seconds."""
        with anyio.fail_after(within):
            while not holds():
                self.progressed = anyio.Event()
                with anyio.move_on_after(1.0):
                    await self.progressed.wait()

    async def finished(self, file: JobFile | None = None, *, within: float = 60.0) -> None:
        """Waits until every job, of one file or of all, is final."""
        await self.until(lambda: not self.world.outstanding(file), within=within)

    async def look_last(self) -> None:
        """What comes before the results of each file."""
        for file in self.world.files:
            await self.tracker.last_look(file, published=False)

    async def drain(self, *, within: float = 30.0) -> None:
        """Stops the lanes and waits until each has ended."""
        for lane in self.lanes.values():
            lane.stop()
        await self.until(lambda: not self._running, within=within)

    # --- parts ---

    def _lane(self, endpoint: EndpointName) -> Lane:
        if endpoint not in self.lanes:
            self._metrics.add_endpoint(endpoint)
            flow = self.world.plan.flow()
            self.judges[endpoint] = self._judge(endpoint, flow.window)
            self.lanes[endpoint] = self._make_lane(endpoint, flow)
            assert self._tasks is not None
            self._running += 1
            self._tasks.start_soon(self._run, self.lanes[endpoint])
        return self.lanes[endpoint]

    async def _run(self, lane: Lane) -> None:
        await lane.run()
        self._running -= 1
        self.progressed.set()

    def _judge(self, endpoint: EndpointName, window: Window) -> Judge:
        return Judge(
            endpoint,
            paths=self.paths,
            policy=RetryPolicy(max_faults=self.world.plan.max_faults),
            discard_staged=True,
            metrics=self._metrics,
            chance=self.world.random.random,
            doubt_seconds=self.fates.doubt_seconds,
            window=window,
        )

    def _make_lane(self, endpoint: EndpointName, flow: Flow) -> Lane:
        return Lane(
            endpoint,
            ledger=self.world.ledger,
            load=self._load,
            paths=self.paths,
            judge=self.judges[endpoint],
            max_in_flight=self.world.plan.max_in_flight,
            flow=flow,
            may_wait=lambda: self.world.may_wait(endpoint),
            metrics=self._metrics,
            submitted=self._submitted,
        )

    def _submitted(self, submission: Submission) -> None:
        self._told += submission.jobs
        if self._told > self.world.ledger.receipts - self._receipts_before:
            self.world.violations.append("the tracker was told of receipts that are not durable")
        self.tracker.note(submission)

    async def _load(self, claims: Sequence[Claim]) -> list[Job | Settled]:
        await anyio.sleep(0.001)
        return [self._loaded(claim) for claim in claims]

    def _loaded(self, claim: Claim) -> Job | Settled:
        file = self.world.files[claim.file_id]
        name = inference_id(file.run_id, claim.key.line)
        line = self.world.line(name)
        if line.gone:
            return _gone(claim, self.world.clock.now())
        return Job(
            claim=claim,
            origin=Origin(
                folder=output_folder(file.name, file.run_id),
                run_id=file.run_id,
                taken_at=file.taken_at,
                deadline_at=file.deadline_at,
            ),
            endpoint=line.endpoint,
            inference_id=name,
            payload=None if claim.transport is Transport.REFERENCE else payload(name, line),
            input_location=f"s3://given/{name}" if claim.transport is Transport.REFERENCE else None,
            content_type="text/plain",
            accept=None,
            custom_attributes=None,
            request_ttl_seconds=line.ttl_seconds,
            invocation_timeout_seconds=line.timeout_seconds,
            wait_seconds=line.ttl_seconds + line.timeout_seconds + self.world.plan.slack_seconds,
            ready_at=self.world.clock.monotonic(),
            chosen_key=self.world.plan.chosen_keys,
            spill=line.spill,
        )


def payload(id: InferenceId, line: Line) -> bytes | FileSlice:
    """Bytes that tell the job, whatever its size is said to be; large ones are a slice of a file, as the real loader's are."""
    return str(id).encode() if line.size_bytes <= 128_000 else FileSlice("large", 0, line.size_bytes)


def _gone(claim: Claim, now: float) -> Settled:
    error = Error(FailureReason.PAYLOAD_GONE, "gone")
    return Settled(key=claim.key, prior=State.CLAIMED, state=State.DEAD, completed_at=now, error=error)
