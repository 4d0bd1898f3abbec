"""The values that travel through the dispatcher; frozen, without behaviour beyond what they can derive of themselves.

Units stand in the names: `_at` is seconds since the epoch (wall clock, because it outlives the process), `_seconds` a
duration, `_bytes` a size. Structs of msgspec, not dataclasses: making one costs a fifth, and the hot path makes several
for every job. Over 300 lines because it is the whole vocabulary, and nothing but that.
"""

from enum import StrEnum
from typing import NamedTuple, NewType

from msgspec import Struct

RunId = NewType("RunId", str)
EndpointName = NewType("EndpointName", str)
InferenceId = NewType("InferenceId", str)
FileId = NewType("FileId", int)
QueueId = NewType("QueueId", int)

INLINE_MAX_BYTES = 128_000
PAYLOAD_MAX_BYTES = 1_000_000_000
SHARD_JOBS = 1_000


class State(StrEnum):
    """Where a job stands; `dispatcher.lifecycle` holds the moves."""

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    AMBIGUOUS = "ambiguous"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    DEAD = "dead"
    CANCELLED = "cancelled"


FINAL_STATES = (State.SUCCEEDED, State.FAILED, State.EXPIRED, State.DEAD, State.CANCELLED)
OUTSTANDING_STATES = (State.ACCEPTED, State.CLAIMED, State.AMBIGUOUS, State.SUBMITTED)


class Transport(StrEnum):
    """How a payload travels."""

    INLINE = "inline"
    S3 = "s3"
    REFERENCE = "reference"


class SizeClass(StrEnum):
    """Payload sizes that are compared with each other."""

    LE_1K = "le_1k"
    LE_4K = "le_4k"
    LE_16K = "le_16k"
    LE_64K = "le_64k"
    LE_128K = "le_128k"
    GT_128K = "gt_128k"


class FailureReason(StrEnum):
    """Why a line, an attempt or a job did not succeed: error code, metric label and log field at once."""

    # of a line
    INVALID_JSON = "invalid_json"
    INVALID_FIELD = "invalid_field"
    INVALID_ENCODING = "invalid_encoding"
    LINE_TOO_LONG = "line_too_long"
    DUPLICATE_ID = "duplicate_id"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    PAYLOAD_UNREADABLE = "payload_unreadable"
    ENDPOINT_NOT_ALLOWED = "endpoint_not_allowed"
    STAGING_NOT_SET = "staging_not_set"
    # of a job
    VALIDATION_ERROR = "validation_error"
    PAYLOAD_GONE = "payload_gone"
    MODEL_ERROR = "model_error"
    RESULT_MISSING = "result_missing"
    CANCELLED = "cancelled"
    # of the lane
    THROTTLED = "throttled"
    SERVICE_ERROR = "service_error"
    NETWORK = "network"
    TIMEOUT = "timeout"
    CREDENTIALS = "credentials"
    ACCESS_DENIED = "access_denied"
    CLOCK_SKEW = "clock_skew"
    ENDPOINT_MISSING = "endpoint_missing"
    BUCKET = "bucket"
    PROTOCOL = "protocol"
    INLINE_REFUSED = "inline_refused"
    OPERATOR = "operator"
    # of the process
    SHUTDOWN = "shutdown"


class JobKey(NamedTuple):
    """A job's place: its queue (one job file's jobs for one endpoint) and its line in the file (from 1)."""

    queue: QueueId
    line: int


class Error(Struct, frozen=True):
    """The `error` of a result line. `message` is bounded and printable."""

    code: str
    message: str


class Receipt(Struct, frozen=True):
    """What a 202 says. The locations are URIs as the service gave them (`s3://` or `https://`): stored, never computed."""

    output_location: str
    failure_location: str | None


# --- intake ----------------------------------------------------------------------------------------------------------


class Cursor(Struct, frozen=True):
    """How far a job file is read: bytes, lines (blank ones counted) and the SHA-256 (hex) of those bytes."""

    offset: int
    line: int
    digest: str


class NewFile(Struct, frozen=True, kw_only=True):
    """A job file at the moment it is taken up.

    `source` is the path the user named (absolute) or `-`; `data_path` is where its uncompressed lines are read from;
    `payload_root` is the folder that `payload_path` is relative to; `size_bytes` is the size of `data_path`. What is not
    submitted by `deadline_at` expires. `rebuilt`: the file was dispatched before by a ledger that was lost, so that any of
    its jobs may have been sent.
    """

    run_id: RunId
    name: str
    source: str
    data_path: str
    payload_root: str
    size_bytes: int
    taken_at: float
    deadline_at: float | None = None
    rebuilt: bool = False


class JobFile(NewFile, frozen=True, kw_only=True):
    """A job file in the ledger. `lines` counts lines that are not blank: `lines = rejected + accepted`.

    Once it is cancelled, at `cancelled_at`, nothing more of it is sent.
    """

    file_id: FileId
    cursor: Cursor
    intake_done: bool
    lines: int
    rejected: int
    published_at: float | None
    cancelled_at: float | None = None


class NewJob(Struct, frozen=True, kw_only=True, gc=False):
    """A valid line. `offset` and `length` (bytes) delimit the line in the job file's data; `size_bytes` is the payload's."""

    line: int
    id: str
    endpoint: EndpointName
    offset: int
    length: int
    size_bytes: int
    transport: Transport
    has_metadata: bool


class Rejection(Struct, frozen=True, gc=False):
    """A line that is no job."""

    line: int
    id: str | None
    reason: FailureReason
    message: str


class Intake(Struct, frozen=True, kw_only=True):
    """One batch of a job file's lines, in order. `lines` counts those that are not blank; `final` says that no more come."""

    file_id: FileId
    jobs: list[NewJob]
    rejections: list[Rejection]
    lines: int
    cursor: Cursor
    final: bool


class Queue(Struct, frozen=True):
    """All jobs of one job file that are bound for one endpoint."""

    queue_id: QueueId
    file_id: FileId
    endpoint: EndpointName


# --- dispatch --------------------------------------------------------------------------------------------------------


class Claim(Struct, frozen=True, kw_only=True, gc=False):
    """A job that may be sent now: the claim is durable.

    `attempt` counts from 1. `faults` are the attempts that were the job's own fault. `maybe_sent` says that an earlier
    attempt may have been taken by the service without our knowing.
    """

    key: JobKey
    file_id: FileId
    shard: int
    offset: int
    length: int
    size_bytes: int
    transport: Transport
    attempt: int
    faults: int
    maybe_sent: bool


# --- moves: one for each event of `dispatcher.lifecycle` that is recorded job by job ---------------------------------


class Submitted(Struct, frozen=True, kw_only=True, gc=False):
    """claimed → submitted. `seconds` is the time from the worker's taking the job to the 202; `deadline_at` its end of waiting."""

    key: JobKey
    receipt: Receipt
    submitted_at: float
    deadline_at: float
    seconds: float


class Released(Struct, frozen=True, kw_only=True, gc=False):
    """claimed → accepted, to be tried again from `due_at` on.

    `fault` counts against the job's budget. `unsent` says that the attempt never began, so that its number is given
    back. `transport` is set where a definite refusal changes the route.
    """

    key: JobKey
    due_at: float
    reason: FailureReason
    fault: bool = False
    unsent: bool = False
    transport: Transport | None = None


class Lost(Struct, frozen=True, kw_only=True, gc=False):
    """claimed → ambiguous; its output is looked for from `due_at` on."""

    key: JobKey
    due_at: float
    reason: FailureReason


class Reopened(Struct, frozen=True, kw_only=True, gc=False):
    """ambiguous → accepted: no output was found."""

    key: JobKey
    due_at: float


class Settled(Struct, frozen=True, kw_only=True, gc=False):
    """`prior` → `state`, which is final. `output_location` is set only where the ledger does not know it yet."""

    key: JobKey
    prior: State
    state: State
    completed_at: float
    error: Error | None = None
    output_location: str | None = None


Move = Submitted | Released | Lost | Reopened | Settled


class Change(NamedTuple):
    """`jobs` jobs of `queue` went from `prior` (None: they are new) to `state`, durably."""

    queue: Queue
    prior: State | None
    state: State
    jobs: int


# --- tracking --------------------------------------------------------------------------------------------------------


class Submission(Struct, frozen=True, kw_only=True):
    """Jobs of one shard whose receipts have just become durable."""

    queue: QueueId
    shard: int
    jobs: int
    submitted_at: float
    deadline_at: float


class Shard(Struct, frozen=True, kw_only=True):
    """A shard with jobs that wait for a result. Folders end in `/` and are None until a receipt names one.

    `jobs` is how many jobs the shard has, `waiting` how many are submitted and not settled, `unsent` how many are accepted,
    claimed or ambiguous.
    """

    queue: QueueId
    shard: int
    folder: str | None
    failure_folder: str | None
    jobs: int
    waiting: int
    unsent: int
    first_submitted_at: float
    last_submitted_at: float
    last_deadline_at: float


class OpenJob(Struct, frozen=True, kw_only=True, gc=False):
    """A job that is submitted, ambiguous or expired. The receipt is None where none was recorded.

    `due_at` is the deadline of a submitted job and the time to look of an ambiguous one.
    """

    key: JobKey
    state: State
    shard: int
    transport: Transport
    receipt: Receipt | None
    submitted_at: float | None
    due_at: float
    maybe_sent: bool


class JobRow(Struct, frozen=True, kw_only=True, gc=False):
    """Everything the ledger knows of a job, for results and `status --job`."""

    key: JobKey
    id: str
    endpoint: EndpointName
    state: State
    shard: int
    offset: int
    length: int
    size_bytes: int
    transport: Transport
    has_metadata: bool
    attempts: int
    receipt: Receipt | None
    submitted_at: float | None
    submission_seconds: float | None
    completed_at: float | None
    due_at: float
    error: Error | None
