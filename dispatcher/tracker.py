"""Follows every submitted job until its result is found, its failure is found, or its deadline passes.

    submitted   its shard's folder is listed, at the times that `polling` plans: one LIST tells of up to 1,000 jobs
    ambiguous   is looked for under its own key, in the folder that a sibling's receipt names; else it is reopened
    expired     is looked for once more before its job file's results are published
    unsent      ended by the ledger: what may be staged of it is deleted before the same

The tracker owns the schedule, `fates` what is decided. Memory: one small record for each shard that waits, none for a job.
A cancel anywhere is harmless: what was not recorded is found again. Over 300 lines: two loops, one schedule.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from msgspec import Struct

from dispatcher.fates import Fates
from dispatcher.interfaces import Clock, Ledger
from dispatcher.model import (
    SHARD_JOBS,
    EndpointName,
    FileId,
    OpenJob,
    QueueId,
    Shard,
    State,
    Submission,
)
from dispatcher.polling import FAILURE_LOOKS, Progress, ask_again_seconds, next_look_at

LOOKERS = 8
"""Shards that are looked at side by side."""
DOUBT_BATCH = 500
DOUBT_BATCH_MAX = 16_000
KEPT_SECONDS = 5.0
"""How often jobs that wait for a receipt to show where their outputs are look whether one is still on its way."""
SLEEP_MAX_SECONDS = 60.0
"""Deadlines count the time that a machine was suspended, a sleep does not: so long after it the schedule is looked at again."""

NEVER = float("inf")

ShardKey = tuple[QueueId, int]


class Watch(Struct, kw_only=True):
    """A shard that waits for results. Only the tracker writes it.

    `due_at` is the first deadline of its jobs, as far as known, `deadline_at` the last one; `calls` is how many S3 calls it
    has cost, `found` how many results they found, `unanswered` how many of the latest looks S3 did not answer, `noted` how
    many receipts came in since this process watches, `look_at` its place in the schedule, `looking` whether a look is under
    way: never two at once. A failure that was found and must wait to be believed is looked at again at `again_at`.
    `looked_for_failures`: once the first results of a full shard were found, by this process or (`some_ended`) an earlier
    one, what is missing may well have failed. `looks` are those that S3 answered: a look for failures that it did not
    answer is still to be made. `held`: it was to be looked at while its endpoint's results could not be looked for.
    """

    key: ShardKey
    endpoint: EndpointName
    filling: bool
    first_submitted_at: float
    last_submitted_at: float
    due_at: float
    deadline_at: float
    calls: int = 0
    found: int = 0
    looks: int = 0
    looking: bool = False
    unanswered: int = 0
    noted: int = 0
    look_at: float = 0.0
    looked_for_failures: bool = False
    some_ended: bool = False
    again_at: float = NEVER
    held: bool = False

    @property
    def results_come(self) -> bool:
        """Whether the shard is full and has some."""
        return not self.filling and (self.found > 0 or self.some_ended)

    def count(self, calls: int, found: int) -> None:
        """So many S3 calls were made for it, and found so much."""
        self.calls += calls
        self.found += found

    def postpone(self, until: float) -> None:
        """A failure is to be looked at again then."""
        self.again_at = min(self.again_at, until)


class Tracker:
    """Owns the schedule of looks. `note` and `doubtful` may be called at any time; `run` ends by cancellation."""

    def __init__(self, *, ledger: Ledger, fates: Fates, clock: Clock) -> None:
        self._ledger = ledger
        self._fates = fates
        self._clock = clock
        fates.seen = self._see_again
        self._watches: dict[ShardKey, Watch] = {}
        # Shards that are being looked at, and the event of that look's end.
        self._looked_at: dict[ShardKey, asyncio.Event] = {}
        # (look_at, key), stale entries included: an entry counts only if its time is its watch's look_at.
        self._schedule: list[tuple[float, ShardKey]] = []
        # Set when the schedule may have an earlier entry. Waited for by the scheduler alone.
        self._changed = asyncio.Event()
        # Set when a job became ambiguous, or a receipt may show where to look. Waited for by the doubt resolver alone.
        self._doubted = asyncio.Event()

    # --- from outside -------------------------------------------------------------------------------------------------

    def note(self, submission: Submission) -> None:
        """Jobs of a shard have a durable receipt."""
        key = (submission.queue, submission.shard)
        self._show(key)
        watch = self._watches.get(key)
        if watch is None:
            self._watch(
                Watch(
                    key=key,
                    endpoint=self._ledger.queue(submission.queue).endpoint,
                    filling=True,
                    first_submitted_at=submission.submitted_at,
                    last_submitted_at=submission.submitted_at,
                    due_at=submission.deadline_at,
                    deadline_at=submission.deadline_at,
                    noted=submission.jobs,
                )
            )
            return
        watch.noted += submission.jobs
        watch.last_submitted_at = max(watch.last_submitted_at, submission.submitted_at)
        watch.due_at = min(watch.due_at, submission.deadline_at)
        watch.deadline_at = max(watch.deadline_at, submission.deadline_at)
        if watch.filling and watch.noted >= SHARD_JOBS:
            watch.filling = False
            self._plan(watch)

    def filled(self, queue: QueueId) -> None:
        """Nothing of the queue is left to submit, now: its last shards will not grow, so their results can be timed."""
        for watch in self._watches.values():
            if watch.filling and watch.key[0] == queue:
                watch.filling = False
                self._plan(watch)

    def doubtful(self) -> None:
        """A job became ambiguous."""
        self._doubted.set()

    async def resume(self) -> None:
        """Takes up, at start, every shard in the ledger that waits for results."""
        for shard in await self._ledger.shards():
            self._show((shard.queue, shard.shard))
            self._watch(self._resumed(shard))

    async def run(self, *, look: bool = True) -> None:
        """Looks for results until cancelled; with `look` off, only for those of ambiguous jobs."""
        due: asyncio.Queue[Watch] = asyncio.Queue(maxsize=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._resolve_doubts)
            if look:
                tasks.start_soon(self._schedule_looks, due)
                for _ in range(LOOKERS):
                    tasks.start_soon(self._looker, due)

    async def last_look(self, file: FileId, *, published: bool) -> None:
        """Looks for the outputs of a file's expired jobs: before its results are published they count, later they are told of.

        Before, what is staged of jobs that ended unsent is deleted, too.
        """
        if not published:
            await self._fates.discard_unsent(file)
        for key in await self._ledger.expired_shards(file):
            queue = self._ledger.queue(key[0])
            async with self._one_at_a_time(key):
                expired = [job for job in await self._ledger.open_jobs(*key) if job.state is State.EXPIRED]
                await (self._fates.late(queue, expired) if published else self._fates.outputs(queue, expired))

    @asynccontextmanager
    async def _one_at_a_time(self, key: ShardKey) -> AsyncIterator[None]:
        """Two looks at one shard would both settle what they find."""
        while key in self._looked_at:
            await self._looked_at[key].wait()
        done = self._looked_at[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._looked_at[key]
            done.set()

    # --- schedule -----------------------------------------------------------------------------------------------------

    def _watch(self, watch: Watch) -> None:
        self._watches[watch.key] = watch
        self._plan(watch)

    def _plan(self, watch: Watch) -> None:
        """Puts the shard into the schedule; one that is being looked at is planned when that has ended."""
        if watch.looking:
            return
        progress = Progress(
            filling=watch.filling,
            first_submitted_at=watch.first_submitted_at,
            last_submitted_at=watch.last_submitted_at,
            due_at=watch.due_at,
            deadline_at=watch.deadline_at,
            looks=watch.looks,
            unanswered=watch.unanswered,
            calls=watch.calls,
            found=watch.found,
        )
        planned_at = next_look_at(progress, self._clock.now(), self._fates.pace(watch.endpoint).most_seconds)
        probe_at = self._fates.sight.probe_at(watch.endpoint)
        if probe_at is not None:
            watch.look_at = max(probe_at, 0.0 if watch.held else planned_at)
        else:
            watch.look_at = self._clock.now() if watch.held else min(planned_at, watch.again_at)
            watch.held = False
        heapq.heappush(self._schedule, (watch.look_at, watch.key))
        self._changed.set()

    async def _schedule_looks(self, due: asyncio.Queue[Watch]) -> None:
        while True:
            self._changed.clear()
            wait_seconds = self._next_wait()
            if wait_seconds > 0:
                with anyio.move_on_after(wait_seconds):
                    await self._changed.wait()
                continue
            look_at, key = heapq.heappop(self._schedule)
            watch = self._watches.get(key)
            if watch is None or watch.look_at != look_at or watch.looking:
                continue
            if self._fates.sight.may_look(watch.endpoint):
                watch.looking = True
                await due.put(watch)
            else:
                watch.held = True
                self._plan(watch)

    def _see_again(self, endpoint: EndpointName) -> None:
        """The endpoint's results can be looked for again: what waited for that is looked at now."""
        for watch in self._watches.values():
            if watch.endpoint == endpoint and watch.held:
                self._plan(watch)
        self._doubted.set()

    def _next_wait(self) -> float:
        if not self._schedule:
            return SLEEP_MAX_SECONDS
        return min(SLEEP_MAX_SECONDS, self._schedule[0][0] - self._clock.now())

    async def _looker(self, due: asyncio.Queue[Watch]) -> None:
        while True:
            watch = await due.get()
            async with self._one_at_a_time(watch.key):
                await self._look(watch)
            await self._refresh(watch)

    # --- one look -----------------------------------------------------------------------------------------------------

    async def _look(self, watch: Watch) -> None:
        now = self._clock.now()
        jobs = [job for job in await self._ledger.open_jobs(*watch.key) if job.receipt is not None]
        if not jobs:
            # Its file may even be forgotten by now; the refresh says whether there is more to wait for.
            return
        queue = self._ledger.queue(watch.key[0])
        found = watch.found
        missing = await self._fates.outputs(queue, jobs, watch.count)
        answered = watch.found - found + len(missing) == len(jobs)
        missing = [job for job in missing if job.state is State.SUBMITTED]
        if self._may_have_failed(watch, missing, now):
            asked, found, watch.again_at = len(missing), watch.found, NEVER
            missing = await self._fates.failures(queue, missing, watch.count, watch.postpone)
            answered = answered and watch.found - found + len(missing) == asked
            if answered:
                watch.looked_for_failures = watch.looked_for_failures or watch.results_come
            else:
                watch.postpone(now + ask_again_seconds(watch.unanswered + 1))
        await self._fates.expire(queue, [job for job in missing if job.due_at <= now])
        watch.due_at = min((job.due_at for job in missing if job.due_at > now), default=watch.deadline_at)
        watch.unanswered = 0 if answered else watch.unanswered + 1
        watch.held = self._fates.sight.reason(watch.endpoint) is not None
        watch.looks += answered

    def _may_have_failed(self, watch: Watch, missing: list[OpenJob], now: float) -> bool:
        """Whether this look is one for failures, too."""
        if watch.again_at <= now or any(job.due_at <= now for job in missing):
            return True
        first = watch.results_come and not watch.looked_for_failures
        return bool(missing) and (first or watch.looks % FAILURE_LOOKS == FAILURE_LOOKS - 1)

    async def _refresh(self, watch: Watch) -> None:
        """The shard as the ledger has it now; nothing more to watch where nothing waits."""
        noted = watch.noted
        shard = await self._ledger.shard(*watch.key)
        watch.looking = False
        if (shard is None or not shard.waiting) and watch.noted == noted:
            self._watches.pop(watch.key, None)
            return
        if shard is None or watch.noted != noted:
            # Receipts became durable meanwhile: what was noted is newer than what was read.
            self._plan(watch)
            return
        watch.filling = shard.unsent > 0
        watch.last_submitted_at = shard.last_submitted_at
        watch.deadline_at = shard.last_deadline_at
        self._plan(watch)

    # --- doubts -------------------------------------------------------------------------------------------------------

    async def _resolve_doubts(self) -> None:
        unanswered, limit = 0, DOUBT_BATCH
        while True:
            self._doubted.clear()
            jobs = await self._ledger.ambiguous(self._clock.now(), limit)
            if not jobs:
                await self._wait_for_doubts()
                continue
            told = await self._fates.doubts(jobs)
            unanswered = 0 if told.answered else unanswered + 1
            if unanswered:
                await anyio.sleep(ask_again_seconds(unanswered))
            elif told.kept < len(jobs):
                limit = limit if told.kept else DOUBT_BATCH
            elif len(jobs) == limit < DOUBT_BATCH_MAX:
                # Those that must wait must not hide the others.
                limit *= 2
            else:
                with anyio.move_on_after(KEPT_SECONDS):
                    await self._doubted.wait()

    def _show(self, key: ShardKey) -> None:
        if self._fates.submitted(*key):
            self._doubted.set()

    async def _wait_for_doubts(self) -> None:
        due_at = await self._ledger.next_ambiguous_at()
        seconds = (
            SLEEP_MAX_SECONDS if due_at is None else min(SLEEP_MAX_SECONDS, max(0.001, due_at - self._clock.now()))
        )
        with anyio.move_on_after(seconds):
            await self._doubted.wait()

    def _resumed(self, shard: Shard) -> Watch:
        return Watch(
            key=(shard.queue, shard.shard),
            endpoint=self._ledger.queue(shard.queue).endpoint,
            filling=shard.unsent > 0,
            first_submitted_at=shard.first_submitted_at,
            last_submitted_at=shard.last_submitted_at,
            due_at=shard.last_deadline_at,
            deadline_at=shard.last_deadline_at,
            some_ended=shard.waiting + shard.unsent < shard.jobs,
        )
