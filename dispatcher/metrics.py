"""What the dispatcher counts and times: every metric, defined in one table and kept by one object.

The laws of this file:
  * Every series exists from the start, at zero, so that a rate over the first event is right. Label values are closed
    sets and endpoint names; never an id, a file name or a key.
  * With ten endpoints there are at most 1,500 series, buckets counted.
  * `labels()` is paid once, here. Callers name a fact; what they touch is bound already. Nothing waits, nothing is
    locked: all facts are told on the event loop's thread (see `series`).

Over 300 lines because the table of all metrics stands beside the one object that keeps them.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry

from dispatcher.model import EndpointName, FailureReason, SizeClass, State, Transport
from dispatcher.series import C, Count, Family, Level, Spread

CALL_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1200.0),
)
"""For calls. A loopback submission takes 1-5 ms, one to AWS 10-100 ms: there the steps are a factor of 1.3 to 2, so that
inline and S3, which differ by a factor of two to four, fall into different buckets. Above 1 s only the order counts, up
to the deadline of a 1 GB upload."""

WAIT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0),
)
"""For waits that end with the model: up to 6 h, the longest TTL there is."""

PAUSE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""For the process's own pauses. A group commit takes 0.2-0.6 ms on a good disk, 5-20 ms on a network disk."""


class Operation(StrEnum):
    """The AWS calls that the dispatcher makes."""

    INVOKE = "InvokeEndpointAsync"
    PUT = "PutObject"
    GET = "GetObject"
    HEAD = "HeadObject"
    LIST = "ListObjectsV2"
    DELETE = "DeleteObjects"
    DELETE_ONE = "DeleteObject"


class Outcome(StrEnum):
    """How an attempt ended: `ok`, or a `FaultKind` by its value."""

    OK = "ok"
    REFUSED = "refused"
    THROTTLED = "throttled"
    TROUBLE = "trouble"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


HOT_OPERATIONS = (Operation.INVOKE, Operation.PUT)
COMPARED = tuple(
    (transport, size)
    for transport in (Transport.INLINE, Transport.S3)
    for size in SizeClass
    if (transport, size) != (Transport.INLINE, SizeClass.GT_128K)
)
"""What is compared; nothing over 128,000 bytes travels inline."""

PAUSE_REASONS = (
    FailureReason.THROTTLED,
    FailureReason.SERVICE_ERROR,
    FailureReason.NETWORK,
    FailureReason.TIMEOUT,
    FailureReason.CREDENTIALS,
    FailureReason.ACCESS_DENIED,
    FailureReason.CLOCK_SKEW,
    FailureReason.ENDPOINT_MISSING,
    FailureReason.BUCKET,
    FailureReason.PROTOCOL,
    FailureReason.VALIDATION_ERROR,
    FailureReason.STAGING_NOT_SET,
    FailureReason.OPERATOR,
)
RETRY_REASONS = (*PAUSE_REASONS, FailureReason.INLINE_REFUSED, FailureReason.RESULT_MISSING, FailureReason.SHUTDOWN)


# --- the table -------------------------------------------------------------------------------------------------------


class Definition(Struct, frozen=True):
    """One metric as users see it; `name` without the `dispatcher_` that all have."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """As it is scraped (a histogram's series add `_bucket`, `_sum`, `_count`)."""
        return f"dispatcher_{self.name}"


SUBMISSION = Definition(
    "submission_seconds",
    "histogram",
    ("transport", "size_class"),
    "Seconds from a worker's taking a job until its 202, the successful attempt only: the comparison of inline and S3.",
    CALL_BUCKETS,
)
ATTEMPT = Definition(
    "attempt_seconds",
    "histogram",
    ("operation", "outcome"),
    "Seconds that one request to AWS took, recorded when it ended, whatever its outcome.",
    CALL_BUCKETS,
)
SLOT_WAIT = Definition(
    "slot_wait_seconds",
    "histogram",
    (),
    "Seconds that a claimed job waited for a free slot to be sent, recorded when a worker took it.",
    CALL_BUCKETS,
)
QUEUE_WAIT = Definition(
    "queue_wait_seconds",
    "histogram",
    ("endpoint",),
    "Seconds from its job file's being taken up until a job's first attempt, recorded when that began.",
    WAIT_BUCKETS,
)
COMPLETION = Definition(
    "completion_seconds",
    "histogram",
    ("transport",),
    "Seconds from a job's 202 until its output or failure stood in S3, recorded when that was found.",
    WAIT_BUCKETS,
)
LEDGER_COMMIT = Definition(
    "ledger_commit_seconds",
    "histogram",
    (),
    "Seconds that one group commit to the ledger took, fsync included.",
    PAUSE_BUCKETS,
)
LOOP_LAG = Definition(
    "event_loop_lag_seconds",
    "histogram",
    (),
    "Seconds by which the event loop woke later than it was asked to, sampled at a fixed interval.",
    PAUSE_BUCKETS,
)
LINES = Definition(
    "lines_total",
    "counter",
    ("verdict",),
    "Lines of job files that were read, counted when the verdict was durable; blank lines are not lines.",
)
JOBS = Definition(
    "jobs_total",
    "counter",
    ("endpoint", "state"),
    "Jobs that came into a state, counted when the change was durable; a job may come into one more than once.",
)
ATTEMPTS = Definition(
    "attempts_total",
    "counter",
    ("transport", "outcome"),
    "Attempts to submit a job, counted when they ended.",
)
RETRIES = Definition(
    "retries_total",
    "counter",
    ("reason",),
    "Attempts after which the job goes back to be sent again, counted by why when that was decided.",
)
REQUESTS = Definition(
    "aws_requests_total",
    "counter",
    ("operation",),
    "Requests to AWS, counted when they ended; what the bill counts.",
)
PUTS_AVOIDED = Definition(
    "s3_puts_avoided_total",
    "counter",
    (),
    "Jobs submitted inline that would otherwise have needed a PutObject, counted at their 202.",
)
LATE_RESULTS = Definition(
    "late_results_total",
    "counter",
    (),
    "Outputs of expired jobs found after the results of their job file were published, counted when found.",
)
OUTSTANDING = Definition(
    "outstanding_jobs",
    "gauge",
    ("endpoint",),
    "Jobs accepted and not final, now.",
)
OLDEST = Definition(
    "outstanding_oldest_age_seconds",
    "gauge",
    ("endpoint",),
    "Seconds since the oldest job file with outstanding jobs was taken up, now; 0 where there is none.",
)
IN_FLIGHT = Definition(
    "in_flight_attempts",
    "gauge",
    ("operation",),
    "Requests on the wire, now.",
)
PAUSED = Definition(
    "lane_paused",
    "gauge",
    ("endpoint", "reason"),
    "1 while the endpoint's lane, its S3 route or the looks for its results are paused for this reason, else 0.",
)
WAL = Definition(
    "ledger_wal_bytes",
    "gauge",
    (),
    "Bytes of the ledger's write-ahead log, as of the last commit.",
)
WINDOW = Definition(
    "in_flight_window",
    "gauge",
    ("endpoint",),
    "Attempts that may be on the wire to the endpoint at once, now; it shrinks while the service throttles.",
)
OUTSTANDING_LIMIT = Definition(
    "outstanding_limit",
    "gauge",
    ("endpoint",),
    "Jobs of the endpoint that may be submitted and not settled, now.",
)
FREE = Definition(
    "disk_free_bytes",
    "gauge",
    (),
    "Bytes free on the spool's disk, as of the last look.",
)
BUILD = Definition(
    "build_info",
    "gauge",
    ("version", "python", "aiobotocore"),
    "Always 1; the labels say what runs.",
)

DEFINITIONS = (
    *(SUBMISSION, ATTEMPT, SLOT_WAIT, QUEUE_WAIT, COMPLETION, LINES, JOBS, ATTEMPTS, RETRIES, OUTSTANDING, OLDEST),
    *(IN_FLIGHT, REQUESTS, PUTS_AVOIDED, LATE_RESULTS, PAUSED, LEDGER_COMMIT, WAL, LOOP_LAG, BUILD),
    *(WINDOW, OUTSTANDING_LIMIT, FREE),
)


def metrics_table() -> str:
    """All metrics as a Markdown table, for the README."""
    rows = [
        f"| `{definition.full_name}` | {definition.kind} | {_code(definition.labels)} | {definition.help} |"
        for definition in DEFINITIONS
    ]
    return "\n".join(["| name | type | labels | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _code(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def this_build() -> dict[str, str]:
    """The labels of `dispatcher_build_info` for the running process."""
    return {
        "version": _version("sagemaker-dispatcher"),
        "python": platform.python_version(),
        "aiobotocore": _version("aiobotocore"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- the object ------------------------------------------------------------------------------------------------------


class EndpointMetrics:
    """The series of one endpoint."""

    def __init__(self, name: EndpointName, families: "_EndpointFamilies") -> None:
        self.outstanding = families.outstanding.labels(name)
        self.oldest_age_seconds = families.oldest.labels(name)
        self.in_flight_window = families.window.labels(name)
        self.outstanding_limit = families.outstanding_limit.labels(name)
        self._jobs = {state: families.jobs.labels(name, state) for state in State}
        self._paused = {reason: families.paused.labels(name, reason) for reason in PAUSE_REASONS}
        # How many parts of the lane stand still for each reason.
        self._pauses: Counter[FailureReason] = Counter()
        self._queue_wait = families.queue_wait.labels(name)

    def entered(self, state: State, jobs: int = 1) -> None:
        """So many jobs came into the state, durably."""
        self._jobs[state].inc(jobs)

    def waited(self, seconds: float) -> None:
        """A job's first attempt began, so long after its job file was taken up."""
        self._queue_wait.observe(seconds)

    def paused(self, reason: FailureReason) -> None:
        """The lane, its S3 route or its looks for results stand still. `reason` is one of PAUSE_REASONS; several may hold at once."""
        self._pauses[reason] += 1
        self._paused[reason].set(1)

    def resumed(self, reason: FailureReason) -> None:
        """This reason holds no longer for one of them."""
        self._pauses[reason] -= 1
        self._paused[reason].set(int(self._pauses[reason] > 0))


class _EndpointFamilies(Struct, frozen=True):
    """The metrics that have an endpoint as a label."""

    outstanding: Family[Level]
    oldest: Family[Level]
    window: Family[Level]
    outstanding_limit: Family[Level]
    jobs: Family[Count]
    paused: Family[Level]
    queue_wait: Family[Spread]


class Metrics:
    """Keeps all metrics of one process in `registry`, which must not hold another such object's.

    `endpoints` is every endpoint that a job may name. `build` is what `this_build()` says.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        endpoints: Iterable[EndpointName] = (),
        build: Mapping[str, str] | None = None,
    ) -> None:
        self._bind_jobs(registry)
        self._bind_requests(registry)
        self._bind_process(registry, build or this_build())
        self._families = _EndpointFamilies(
            outstanding=_gauge(OUTSTANDING, registry),
            oldest=_gauge(OLDEST, registry),
            window=_gauge(WINDOW, registry),
            outstanding_limit=_gauge(OUTSTANDING_LIMIT, registry),
            jobs=_counter(JOBS, registry),
            paused=_gauge(PAUSED, registry),
            queue_wait=_histogram(QUEUE_WAIT, registry),
        )
        self._endpoints: dict[EndpointName, EndpointMetrics] = {}
        for endpoint in endpoints:
            self.add_endpoint(endpoint)

    def _bind_jobs(self, registry: CollectorRegistry) -> None:
        submission = _histogram(SUBMISSION, registry)
        completion = _histogram(COMPLETION, registry)
        lines = _counter(LINES, registry)
        attempts = _counter(ATTEMPTS, registry)
        retries = _counter(RETRIES, registry)
        self._submission = {pair: submission.labels(*pair) for pair in COMPARED}
        self._completion = {transport: completion.labels(transport) for transport in Transport}
        self._lines_accepted = lines.labels("accepted")
        self._lines_rejected = lines.labels("rejected")
        self._attempts = {(way, end): attempts.labels(way, end) for way in Transport for end in Outcome}
        self._retries = {reason: retries.labels(reason) for reason in RETRY_REASONS}
        self._slot_wait = _histogram(SLOT_WAIT, registry).labels()
        self._puts_avoided = _counter(PUTS_AVOIDED, registry).labels()
        self._late_results = _counter(LATE_RESULTS, registry).labels()

    def _bind_requests(self, registry: CollectorRegistry) -> None:
        attempt = _histogram(ATTEMPT, registry)
        in_flight = _gauge(IN_FLIGHT, registry)
        requests = _counter(REQUESTS, registry)
        # By their texts, as which they are told.
        self._attempt = {
            (call.value, end.value): attempt.labels(call, end) for call in HOT_OPERATIONS for end in Outcome
        }
        self._in_flight = {call.value: in_flight.labels(call) for call in HOT_OPERATIONS}
        self._requests = {call.value: requests.labels(call) for call in Operation}

    def _bind_process(self, registry: CollectorRegistry, build: Mapping[str, str]) -> None:
        self._ledger_commit = _histogram(LEDGER_COMMIT, registry).labels()
        self._ledger_wal = _gauge(WAL, registry).labels()
        self._loop_lag = _histogram(LOOP_LAG, registry).labels()
        self._disk_free = _gauge(FREE, registry).labels()
        _gauge(BUILD, registry).labels(*(build[label] for label in BUILD.labels)).set(1)

    def add_endpoint(self, name: EndpointName) -> EndpointMetrics:
        """Makes all series of an endpoint; only at start, from settings, never from what a job says. Idempotent."""
        if name not in self._endpoints:
            self._endpoints[name] = EndpointMetrics(name, self._families)
        return self._endpoints[name]

    def endpoint(self, name: EndpointName) -> EndpointMetrics:
        """The series of an endpoint that was added; KeyError otherwise."""
        return self._endpoints[name]

    def read(self, *, accepted: int, rejected: int) -> None:
        """So many lines got their verdict, durably."""
        self._lines_accepted.inc(accepted)
        self._lines_rejected.inc(rejected)

    def slot_taken(self, waited_seconds: float) -> None:
        """A worker took a claimed job."""
        self._slot_wait.observe(waited_seconds)

    def submitted(self, transport: Transport, size_class: SizeClass, seconds: float) -> None:
        """A job got its 202. By reference there is nothing to compare; inline means one PutObject less."""
        if transport is Transport.REFERENCE:
            return
        self._submission[transport, size_class].observe(seconds)
        if transport is Transport.INLINE:
            self._puts_avoided.inc()

    def attempted(self, transport: Transport, outcome: Outcome) -> None:
        """An attempt ended. `outcome` may be a FaultKind's value as well: `Outcome(kind)`."""
        self._attempts[transport, outcome].inc()

    def retried(self, reason: FailureReason) -> None:
        """A job goes back to be sent again. `reason` is one of RETRY_REASONS."""
        self._retries[reason].inc()

    def request_began(self, operation: str) -> None:
        """A request of this Operation is on the wire; only HOT_OPERATIONS are shown."""
        gauge = self._in_flight.get(operation)
        if gauge is not None:
            gauge.inc()

    def request_over(self, operation: str) -> None:
        """It is no longer, however that came."""
        gauge = self._in_flight.get(operation)
        if gauge is not None:
            gauge.dec()

    def requested(self, operation: str, outcome: str, seconds: float) -> None:
        """A request of this Operation has ended; `outcome` is a word of Outcome or `missing`. Only HOT_OPERATIONS are timed."""
        self._requests[operation].inc()
        timed = self._attempt.get((operation, outcome))
        if timed is not None:
            timed.observe(seconds)

    def completed(self, transport: Transport, seconds: float) -> None:
        """A job's output or failure was found, which the model wrote so long after the 202."""
        self._completion[transport].observe(seconds)

    def late_result(self) -> None:
        """A result came after its job file's results were published."""
        self._late_results.inc()

    def committed(self, seconds: float) -> None:
        """The ledger wrote a batch and fsynced it."""
        self._ledger_commit.observe(seconds)

    def wal_is(self, size_bytes: int) -> None:
        """How large the ledger's write-ahead log is."""
        self._ledger_wal.set(size_bytes)

    def disk_has(self, free_bytes: int) -> None:
        """So much is free on the spool's disk."""
        self._disk_free.set(free_bytes)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop woke so much too late."""
        self._loop_lag.observe(seconds)


def _counter(definition: Definition, registry: CollectorRegistry) -> Family[Count]:
    return _family(definition, registry, Count)


def _gauge(definition: Definition, registry: CollectorRegistry) -> Family[Level]:
    return _family(definition, registry, Level)


def _histogram(definition: Definition, registry: CollectorRegistry) -> Family[Spread]:
    return _family(definition, registry, partial(Spread, definition.buckets))


def _family(definition: Definition, registry: CollectorRegistry, make: Callable[[], C]) -> Family[C]:
    # Writing it out adds `_total` again.
    name = definition.full_name.removesuffix("_total")
    made = Family(name, definition.kind, definition.help, definition.labels, make)
    registry.register(made)
    return made
