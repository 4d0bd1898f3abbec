"""A lane: everything bound for one endpoint. It claims, sends, judges, and hands outcomes to the ledger.

    feeder    one task: picks the next job file (in turn), claims a batch durably, loads the payloads
    workers   `max_in_flight` tasks: one attempt each, one after the other; no task is made for a job
    scribe    one task: records the outcomes that have gathered, in one ledger call

A job's claim is durable before a byte of it is sent. What is claimed and has no durable outcome is *open*, at most twice
`max_in_flight`, so that is what a crash can leave in doubt. It may come to wait for a result, so no more is claimed than may
do that (`may_wait`). The retry heap is the ledger's own index of due times: it survives a crash and takes no memory. A closed
gate (see `limits`) lets one probe out at a time; jobs claimed before it closed go back unsent. What must never happen: a job
sent without a durable claim, or an outcome told before it is durable.
Over 300 lines because the three kinds of task share one lane's state, and its rules are read best in one place.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog
from msgspec import Struct

from dispatcher.attempt import Job, Paths, Taken, attempt
from dispatcher.errors import LedgerFullError
from dispatcher.interfaces import Ledger
from dispatcher.judge import Judge
from dispatcher.metrics import Metrics
from dispatcher.model import (
    Claim,
    EndpointName,
    FailureReason,
    JobKey,
    Move,
    Queue,
    QueueId,
    Released,
    Settled,
    Submission,
    Submitted,
    Transport,
)
from dispatcher.windows import Flow

log = structlog.get_logger(__name__)

CLAIM_BATCH = 64
PARKED_MAX = 1_000
"""Jobs that may wait for a closed S3 route while inline ones pass them by; then the lane waits as a whole."""
FULL_SECONDS = 0.5
"""How often a lane with enough under way, or with a full ledger, looks whether it still has."""
OVERDUE_SECONDS = 5.0
"""So long a job that is not sent because its file's deadline has passed is not claimed again."""
LATE_SECONDS = 0.001
"""Whoever waits for a deadline wakes so much after it, not before it."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What bounds a lane on the wire; None: no limit of our own."""

    min_in_flight: float
    max_in_flight: float
    requests_per_second: float | None
    bytes_per_second: float | None


class Take(Struct, frozen=True):
    """Claim up to `limit` jobs of `queue`; `probe` if the gate is closed and this job is to find out why."""

    queue: QueueId
    limit: int
    probe: bool


class Wait(Struct, frozen=True):
    """Nothing to claim for `seconds`, or until something changes (None)."""

    seconds: float | None


Load = Callable[[Sequence[Claim]], Awaitable[list[Job | Settled]]]
"""Reads the payloads of claimed jobs; a job whose payload is gone comes back settled as dead."""


class Lane:
    """One endpoint's lane. `offer` and `stop` may be called at any time; `run` returns when stopped and drained."""

    def __init__(
        self,
        endpoint: EndpointName,
        *,
        ledger: Ledger,
        load: Load,
        paths: Paths,
        judge: Judge,
        max_in_flight: int,
        flow: Flow,
        may_wait: Callable[[], int | None],
        metrics: Metrics,
        submitted: Callable[[Submission], None],
    ) -> None:
        """`submitted` is told of receipts once they are durable; `may_wait` says how many jobs more may come to wait for a
        result, those that are open included; None: any number.
        """
        self.endpoint = endpoint
        self._ledger = ledger
        self._load = load
        self._paths = paths
        self._judge = judge
        self._max_in_flight = max_in_flight
        self._flow = flow
        self._may_wait = may_wait
        # Held by the one worker whose turn it is, while it may not be sent yet; the others wait behind it.
        self._door = asyncio.Lock()
        # Set when an attempt has ended or limits changed: whoever stands at the door asks again.
        self._room = asyncio.Event()
        self._held = False
        self._metrics = metrics
        self._series = metrics.endpoint(endpoint)
        self._submitted = submitted
        # The job files that may have something to claim; the first is the next in turn. Written by offer and the feeder.
        self._turns: OrderedDict[QueueId, None] = OrderedDict()
        # Offered since the feeder last asked for it: an empty claim must not drop such a queue.
        self._offered: set[QueueId] = set()
        # Wall time before which a queue has nothing due. Feeder only.
        self._due_at: dict[QueueId, float] = {}
        # Monotonic time before which less than a batch is not worth its commit. Feeder only.
        self._little_at = float("-inf")
        # Set when the feeder may find more to do: a queue offered, room made, stop. Cleared by the feeder.
        self._wake = asyncio.Event()
        # Claimed and loaded, waiting for a worker; bounded by the open limit. None ends one worker.
        self._ready: asyncio.Queue[Job | None] = asyncio.Queue()
        # Outcomes not yet handed to the ledger, and the event that says there are some. None ends the scribe.
        self._outbox: list[tuple[Move, int] | None] = []
        self._written = asyncio.Event()
        self._open = 0
        self._probe: JobKey | None = None
        self._stopping = False

    # --- from outside -------------------------------------------------------------------------------------------------

    def offer(self, queue: Queue) -> None:
        """This queue may have something to claim."""
        self._offered.add(queue.queue_id)
        self._turns.setdefault(queue.queue_id)
        self._due_at.pop(queue.queue_id, None)
        self._wake.set()

    def stop(self) -> None:
        """No new claims; what waits for a worker goes back unsent, what is on the wire finishes."""
        self._stopping = True
        self._wake.set()
        self._room.set()

    def hold(self, *, held: bool) -> None:
        """An operator pauses the lane, or lets it go on; what is claimed already is still sent."""
        if held is self._held:
            return
        self._held = held
        self._wake.set()
        if held:
            self._series.paused(FailureReason.OPERATOR)
            log.info("lane paused", endpoint=self.endpoint, reason=FailureReason.OPERATOR)
        else:
            self._series.resumed(FailureReason.OPERATOR)
            log.info("lane resumed", endpoint=self.endpoint, was=FailureReason.OPERATOR)

    def limit(self, limits: Limits) -> None:
        """New limits, from now on."""
        self._flow.window.limit(limits.min_in_flight, limits.max_in_flight)
        self._flow.requests.limit(limits.requests_per_second)
        self._flow.payloads.limit(limits.bytes_per_second)
        self._room.set()

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        window = self._flow.window
        return Limits(
            min_in_flight=window.least,
            max_in_flight=window.most,
            requests_per_second=self._flow.requests.per_second,
            bytes_per_second=self._flow.payloads.per_second,
        )

    @property
    def window(self) -> float:
        """How many attempts may be on the wire now."""
        return self._flow.window.size

    @property
    def in_flight(self) -> int:
        """How many attempts are on the wire now."""
        return self._flow.in_flight

    @property
    def paused(self) -> list[FailureReason]:
        """What keeps the lane, or its S3 route, from sending."""
        return [*self.paused_itself, *self.paused_by_s3]

    @property
    def paused_by_s3(self) -> list[FailureReason]:
        """What of that keeps it from sending by S3 alone."""
        reason = self._judge.staging_gate.reason
        return [] if reason is None else [reason]

    @property
    def paused_itself(self) -> list[FailureReason]:
        """What of that keeps it from sending at all."""
        by_gate = [] if self._judge.gate.reason is None else [self._judge.gate.reason]
        return [*by_gate, FailureReason.OPERATOR] if self._held else by_gate

    async def run(self) -> None:
        """Works until `stop` and everything claimed has a durable outcome."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._scribe)
            async with anyio.create_task_group() as workers:
                for _ in range(self._max_in_flight):
                    workers.start_soon(self._work)
                await self._feed()
                for _ in range(self._max_in_flight):
                    self._ready.put_nowait(None)
            self._outbox.append(None)
            self._written.set()

    # --- feeder -------------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        while not self._stopping:
            self._wake.clear()
            step = self._plan()
            if isinstance(step, Wait):
                await self._rest(step.seconds)
            else:
                await self._take(step)

    async def _rest(self, seconds: float | None) -> None:
        """Until something changes, or for so long."""
        with anyio.move_on_after(seconds):
            await self._wake.wait()

    def _plan(self) -> Take | Wait:
        """The one place that decides what is claimed next."""
        room = 2 * self._max_in_flight - self._open
        if self._held or room < max(1, self._max_in_flight // 2):
            return Wait(None)
        now = self._paths.clock.monotonic()
        room = self._room_for_results(room)
        if room < self._worth and (room < 1 or now < self._little_at):
            return Wait(FULL_SECONDS)
        if self._staging_blocked(now):
            return Wait(max(0.0, self._judge.staging_gate.probe_at - now))
        queue = self._next_queue()
        if queue is None:
            return self._wait_for_due()
        if self._judge.gate.reason is None:
            return Take(queue, min(room, CLAIM_BATCH), probe=False)
        if self._open:
            return Wait(None)
        if now < self._judge.gate.probe_at:
            return Wait(self._judge.gate.probe_at - now)
        return Take(queue, 1, probe=True)

    @property
    def _worth(self) -> int:
        """How many jobs are worth a claim, where fewer need not be."""
        return max(1, min(self._max_in_flight // 2, CLAIM_BATCH))

    def _room_for_results(self, room: int) -> int:
        """Each job that is open may come to wait for a result."""
        may_wait = self._may_wait()
        return room if may_wait is None else min(room, may_wait - self._open)

    def _staging_blocked(self, now: float) -> bool:
        return (
            self._judge.parked >= PARKED_MAX
            and self._judge.staging_gate.reason is not None
            and now < self._judge.staging_gate.probe_at
        )

    def _next_queue(self) -> QueueId | None:
        """The next job file in turn that may have something due; it goes to the end of the line."""
        now = self._paths.clock.now()
        for _ in range(len(self._turns)):
            queue = next(iter(self._turns))
            self._turns.move_to_end(queue)
            if self._due_at.get(queue, 0.0) <= now:
                return queue
        return None

    def _wait_for_due(self) -> Wait:
        if not self._due_at:
            return Wait(None)
        # A machine may be suspended meanwhile, which due times count and a sleep does not: never sleep for long.
        return Wait(min(60.0, max(0.001, min(self._due_at.values()) - self._paths.clock.now())))

    async def _take(self, step: Take) -> None:
        """Claims, loads, hands to the workers. A cancel after the claim leaves the jobs claimed, as a crash does."""
        self._offered.discard(step.queue)
        try:
            claims = await self._ledger.claim(step.queue, step.limit, self._paths.clock.now(), self._judge.redirect())
        except LedgerFullError:
            # Nothing was claimed, and the ledger has said so; what is on the wire still gets its receipts recorded.
            await self._rest(FULL_SECONDS)
            return
        if not claims:
            await self._put_off(step.queue)
            return
        self._open += len(claims)
        if len(claims) == step.limit < self._worth:
            self._little_at = self._paths.clock.monotonic() + FULL_SECONDS
        for claim, loaded in zip(claims, await self._load(claims), strict=True):
            if isinstance(loaded, Settled):
                self._note(loaded, claim)
                continue
            if step.probe:
                # Only now: a queue with nothing due, or a payload that is gone, must not use up the probe.
                self._judge.gate.take_probe(self._paths.clock.monotonic())
                self._probe = claim.key
            self._ready.put_nowait(loaded)

    async def _put_off(self, queue: QueueId) -> None:
        due_at = await self._ledger.next_due_at(queue)
        if queue in self._offered:
            return
        if due_at is not None:
            self._due_at[queue] = due_at
            return
        self._due_at.pop(queue, None)
        self._turns.pop(queue, None)

    # --- workers ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while (job := await self._ready.get()) is not None:
            step: Released | Wait | None = Wait(None) if self._door.locked() else self._let_out(job)
            if isinstance(step, Wait):
                step = await self._queue_up(job)
            move = step or await self._send(job)
            if job.spill is not None:
                await anyio.Path(job.spill).unlink(missing_ok=True)
            self._note(move, job.claim)

    async def _queue_up(self, job: Job) -> Released | None:
        """Waits until the lane's window and rates let one more out; what must go back instead does so at once."""
        async with self._door:
            while isinstance(step := self._let_out(job), Wait):
                self._room.clear()
                with anyio.move_on_after(self._until_deadline(job, step.seconds)):
                    await self._room.wait()
            return step

    def _until_deadline(self, job: Job, seconds: float | None) -> float | None:
        """So long, but no longer than the job may still be sent."""
        deadline_at = job.origin.deadline_at
        if deadline_at is None:
            return seconds
        left = max(0.0, deadline_at - self._paths.clock.now()) + LATE_SECONDS
        return left if seconds is None else min(seconds, left)

    def _let_out(self, job: Job) -> Released | Wait | None:
        """The one place that decides whether a job goes out now: None, and it is counted as sent; or back; or not yet."""
        back = self._hold_back(job)
        if back is not None:
            return back
        now = self._paths.clock.monotonic()
        wait = self._flow.wait_seconds(now)
        # A probe is one at a time as it is, and whoever is in doubt should not wait for it.
        if wait != 0.0 and job.key != self._probe:
            return Wait(wait)
        if self._is_parked_route(job):
            # The one probe that is due; whatever is parked comes back at about the same time, to be counted anew.
            self._judge.staging_gate.take_probe(now)
            self._judge.parked = 0
        self._flow.sent(job.claim.size_bytes, now)
        return None

    async def _send(self, job: Job) -> Move:
        self._measure_waits(job)
        try:
            outcome = await attempt(job, self._paths)
            if isinstance(outcome, Taken):
                return self._judge.taken(job, outcome)
            return await self._judge.stopped(job, outcome)
        finally:
            self._flow.returned()
            self._room.set()

    def _measure_waits(self, job: Job) -> None:
        self._metrics.slot_taken(self._paths.clock.monotonic() - job.ready_at)
        if job.claim.attempt == 1:
            self._series.waited(max(0.0, self._paths.clock.now() - job.origin.taken_at))

    def _hold_back(self, job: Job) -> Released | None:
        """Whether the job must go back unsent: we stop, its file's deadline has passed, or its gate or its route is closed."""
        clock, gate = self._paths.clock, self._judge.staging_gate
        if self._stopping:
            return Released(key=job.key, due_at=0.0, reason=FailureReason.SHUTDOWN, unsent=True)
        deadline_at = job.origin.deadline_at
        if deadline_at is not None and deadline_at <= clock.now():
            # Whoever keeps the deadlines ends it there; it is not to be claimed again before that.
            due_at = clock.now() + OVERDUE_SECONDS
            return Released(key=job.key, due_at=due_at, reason=FailureReason.RESULT_MISSING, unsent=True)
        if self._judge.gate.reason is not None and job.key != self._probe:
            return Released(key=job.key, due_at=clock.now(), reason=self._judge.gate.reason, unsent=True)
        if not self._is_parked_route(job) or gate.reason is None or clock.monotonic() >= gate.probe_at:
            return None
        self._judge.parked += 1
        later = clock.now() + max(0.1, gate.probe_at - clock.monotonic())
        return Released(key=job.key, due_at=later, reason=gate.reason, unsent=True)

    def _is_parked_route(self, job: Job) -> bool:
        return job.claim.transport is Transport.S3 and self._judge.staging_gate.reason is not None

    def _note(self, move: Move, claim: Claim) -> None:
        self._outbox.append((move, claim.shard))
        self._written.set()

    # --- scribe -------------------------------------------------------------------------------------------------------

    async def _scribe(self) -> None:
        """Records what has gathered while the last commit was on its way. A cancel here leaves jobs claimed, as a crash does."""
        while True:
            await self._written.wait()
            self._written.clear()
            batch, self._outbox = self._outbox, []
            noted = [entry for entry in batch if entry is not None]
            if noted:
                await self._ledger.record([move for move, _ in noted])
                self._open -= len(noted)
                self._tell_tracker(noted)
                self._wake.set()
            if len(noted) < len(batch):
                return

    def _tell_tracker(self, noted: list[tuple[Move, int]]) -> None:
        shards: dict[tuple[QueueId, int], list[Submitted]] = {}
        for move, shard in noted:
            if isinstance(move, Submitted):
                shards.setdefault((move.key.queue, shard), []).append(move)
        for (queue, shard), moves in shards.items():
            self._submitted(
                Submission(
                    queue=queue,
                    shard=shard,
                    jobs=len(moves),
                    submitted_at=max(move.submitted_at for move in moves),
                    deadline_at=max(move.deadline_at for move in moves),
                )
            )
