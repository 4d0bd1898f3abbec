"""What an endpoint does with the jobs it took: wait, run, expire. Pure: the time is an argument, inputs come by a call.

One owner, one method that decides: `advance(now)` moves everything that is due and says what ended. Jobs wait in order;
as many run at once as there are instances times their concurrency, none while the endpoint sleeps. A job that waits
longer than its TTL expires; one that would run longer than its timeout ends there. The input is read when a job starts,
so one that is missing is found late. Two heaps hold all times; a job that starts at once is in neither.
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from heapq import heappop, heappush
from random import Random

from msgspec import Struct

from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.settings import EndpointSettings


class Result(StrEnum):
    """How a job ended; what the record and the counts call it."""

    COMPLETED = "completed"
    FAILED = "failed"
    INPUT_MISSING = "input_missing"
    EXPIRED = "expired"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    UPLOAD_FAILED = "upload_failed"


class Job(Struct, frozen=True, kw_only=True, gc=False):
    """A job that the endpoint took. `payload` is None where the input is to be read from `input_location`.

    `number` counts all jobs. `expires_at` is on the caller's clock; `timeout_seconds` is how long the model may run.
    """

    number: int
    inference_id: str
    payload: Blob | None
    input_location: str | None
    content_type: str | None
    expires_at: float
    timeout_seconds: float
    output_location: str
    failure_location: str | None


class Ended(Struct, frozen=True, gc=False):
    """A job that ended; `blob` is the model's input where it was read."""

    job: Job
    result: Result
    blob: Blob | None


class Endpoint:
    """The jobs of one endpoint. `settings` may be replaced at any time."""

    def __init__(self, settings: EndpointSettings, load: Callable[[Job], Blob | None], random: Random) -> None:
        self.settings = settings
        self.running = 0
        self._load = load
        self._random = random
        self._awake = not settings.asleep
        self._wakes_at: float | None = None
        self._queue: deque[Job] = deque()  # may hold jobs that expired meanwhile
        self._gone: set[int] = set()  # numbers of those
        self._expiries: list[tuple[float, int]] = []  # may name jobs that started meanwhile
        self._waiting: dict[int, Job] = {}  # jobs named in `_expiries` that wait
        self._endings: list[tuple[float, int, bool, Ended]] = []  # the flag: it holds a place until then
        self._started = 0

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue) - len(self._gone)

    def replace(self, settings: EndpointSettings) -> None:
        """Takes new settings; a change of `asleep` puts it to sleep or wakes it."""
        if settings.asleep != self.settings.asleep:
            self._awake, self._wakes_at = not settings.asleep, None
        self.settings = settings

    def submit(self, job: Job) -> None:
        """Takes a job; nothing happens to it before the next `advance`."""
        self._queue.append(job)

    def advance(self, now: float) -> list[Ended]:
        """Does everything that is due at `now`; what ended, in order."""
        ended: list[Ended] = []
        self._end_due(now, ended)
        self._expire_due(now, ended)
        self._wake(now)
        self._start(now, ended)
        self._watch_expiries()
        return ended

    def next_at(self) -> float | None:
        """When `advance` has something to do again if nothing is submitted."""
        times = [self._wakes_at] if self._wakes_at is not None else []
        if self._expiries:
            times.append(self._expiries[0][0])
        if self._endings:
            times.append(self._endings[0][0])
        return min(times, default=None)

    def _capacity(self) -> int:
        return self.settings.instances * self.settings.concurrency_per_instance if self._awake else 0

    def _end_due(self, now: float, ended: list[Ended]) -> None:
        while self._endings and self._endings[0][0] <= now:
            at, number, holds, ending = heappop(self._endings)
            self.running -= holds
            if holds and (late := self._delay(number)):
                heappush(self._endings, (at + late, number, False, ending))
            else:
                ended.append(ending)

    def _expire_due(self, now: float, ended: list[Ended]) -> None:
        heap = self._expiries
        while heap and (heap[0][0] <= now or heap[0][1] not in self._waiting):
            _, number = heappop(heap)
            job = self._waiting.pop(number, None)
            if job is not None:
                self._gone.add(number)
                ended.append(Ended(job, Result.EXPIRED, None))

    def _wake(self, now: float) -> None:
        if self._awake:
            return
        backlog = self.settings.wake_backlog
        if self._wakes_at is None and backlog is not None and self.waiting >= max(backlog, 1):
            self._wakes_at = now + self.settings.wake_seconds
        if self._wakes_at is not None and self._wakes_at <= now:
            self._awake, self._wakes_at = True, None

    def _start(self, now: float, ended: list[Ended]) -> None:
        capacity = self._capacity()
        while self._queue and (self.running < capacity or self._queue[0].number in self._gone):
            job = self._queue.popleft()
            if job.number in self._gone:
                self._gone.discard(job.number)
                continue
            self._waiting.pop(job.number, None)
            if job.expires_at <= now:
                ended.append(Ended(job, Result.EXPIRED, None))
            else:
                self._run(job, now, ended)

    def _run(self, job: Job, now: float, ended: list[Ended]) -> None:
        """Starts a job. One that takes no time ends here, without a place on the heap."""
        self._started += 1
        blob = job.payload if job.payload is not None else self._load(job)
        result, seconds = self._fate(job, blob)
        late = self._delay(self._started)
        if seconds <= 0 and not late:
            ended.append(Ended(job, result, blob))
            return
        holds = seconds > 0
        self.running += holds
        at = now + (seconds if holds else late)
        heappush(self._endings, (at, self._started, holds, Ended(job, result, blob)))

    def _fate(self, job: Job, blob: Blob | None) -> tuple[Result, float]:
        options, number = self.settings, self._started
        if blob is None:
            return Result.INPUT_MISSING, 0.0
        seconds = self._duration()
        if seconds > job.timeout_seconds:
            return Result.TIMED_OUT, job.timeout_seconds
        if _nth(number, options.fail_every):
            return Result.FAILED, seconds
        return (Result.LOST if _nth(number, options.lose_every) else Result.COMPLETED), seconds

    def _duration(self) -> float:
        least, most = self.settings.min_seconds, max(self.settings.min_seconds, self.settings.max_seconds)
        return least if least == most else self._random.uniform(least, most)

    def _delay(self, number: int) -> float:
        return self.settings.delay_seconds if _nth(number, self.settings.delay_every) else 0.0

    def _watch_expiries(self) -> None:
        """Puts the jobs that now wait on the heap; those that have been there lie before them in the queue."""
        for job in reversed(self._queue):
            if job.number in self._waiting or job.number in self._gone:
                break
            self._waiting[job.number] = job
            heappush(self._expiries, (job.expires_at, job.number))


def _nth(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
