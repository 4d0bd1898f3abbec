"""The seams: what the core asks of the outside, with the contract of each call. No module above may see further.

Every implementation of a Protocol passes the same suite in `tests/contract/`.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from dispatcher.model import (
    Change,
    Claim,
    EndpointName,
    Error,
    FailureReason,
    FileId,
    InferenceId,
    Intake,
    JobFile,
    JobRow,
    Move,
    NewFile,
    OpenJob,
    Queue,
    QueueId,
    Receipt,
    Rejection,
    Shard,
    State,
    Transport,
)


class Clock(Protocol):
    """Time as the logic sees it; virtual in tests."""

    def now(self) -> float:
        """Seconds since the epoch (wall clock): for what is recorded and compared after a restart."""

    def monotonic(self) -> float:
        """Seconds that never go back: for durations and timers within this process."""


class Ledger(Protocol):
    """The durable record of job files and jobs; the queue that lanes claim from.

    Every method that changes something returns only after the change is durable (group commit); a cancelled call may
    or may not have happened, so callers shield a call whose effect they must know. Changes are all or nothing per call.
    Any disk fault raises LedgerFaultError from this and every later call.
    """

    async def add_file(self, new: NewFile) -> JobFile:
        """Records a job file with an empty cursor. A run id is unique; a second one is a programming error."""

    async def files(self) -> list[JobFile]:
        """All job files, in the order they were added."""

    async def file(self, file: FileId) -> JobFile | None:
        """One job file as it is now; None if there is none."""

    async def accept(self, batch: Intake) -> list[Rejection]:
        """Adds the batch's jobs and rejections, moves the file's cursor. Returns the rejections made here.

        A job whose id is already in the file (or earlier in the batch) is not added but recorded as a rejection with
        DUPLICATE_ID, and returned. The jobs of a `rebuilt` file start ambiguous (`maybe_sent`, due at once, no attempts; the
        Change has no prior), all others accepted, and cancelled in the same change where the file is (see `cancel`). Queues are
        made on first use; shards of up to SHARD_JOBS jobs are filled in line order for each queue, their numbers unique within
        the file. `lines` and `rejected` of the file grow accordingly. A batch whose cursor lies at or before the file's own was
        accepted already: nothing changes, [] is returned; but a final one that brings nothing ends the intake.
        """

    def queues(self, file: FileId | None = None) -> list[Queue]:
        """All queues known, or those of one file, in the order they were made. Does not wait."""

    def queue(self, id: QueueId) -> Queue:
        """The queue of this id, which must be known. Does not wait."""

    def tally(self, queue: QueueId) -> dict[State, int]:
        """How many jobs of the queue are in each state, all states present, as of the last durable change. Does not wait."""

    def subscribe(self, observer: Callable[[Sequence[Change]], None]) -> None:
        """Calls `observer` on the event loop after each durable change, when `tally` shows it and before the call returns."""

    async def claim(self, queue: QueueId, limit: int, now: float, redirect: Transport | None = None) -> list[Claim]:
        """Claims up to `limit` accepted jobs: first those due again (`due_at <= now`, oldest due first), then new ones in line order.

        `redirect` changes the route of what it claims from INLINE to the given transport, for good. [] if nothing is due, and of a
        cancelled file.
        """

    async def next_due_at(self, queue: QueueId) -> float | None:
        """When the queue's next accepted job may be claimed: 0.0 where a new one waits, None where it has none to claim."""

    async def record(self, moves: Sequence[Move]) -> None:
        """Applies the moves. Each must start from the state that the ledger holds, else IllegalMoveError and nothing changes.

        Submitted, Released and Lost start from claimed, Reopened from ambiguous, Settled from its `prior`, and the pair
        must be in `lifecycle.TABLE`. What a move leaves accepted is cancelled in the same change where its file is (see
        `cancel`), after all moves of the call. Released(unsent) takes one from `attempts`; Released(fault) adds one to `faults`;
        Lost sets `maybe_sent`; Settled keeps what a receipt said unless it brings an output location itself.
        """

    async def recover(self, due_at: float) -> int:
        """At start, before anything is claimed: every claimed job becomes ambiguous (and `maybe_sent`), to be looked for at `due_at`.

        What waits already waits no longer than that: its due time may be of a clock that was ahead. Returns how many became
        ambiguous. A cancel that was broken off is brought to its end. Idempotent.
        """

    async def shards(self) -> list[Shard]:
        """Every shard that has submitted jobs."""

    async def shard(self, queue: QueueId, shard: int) -> Shard | None:
        """One shard, also when nothing of it waits (then the times are 0.0); None if there is no such shard.

        The folders are those of any receipt in the shard (the part up to and with the last `/`).
        """

    async def open_jobs(self, queue: QueueId, shard: int) -> list[OpenJob]:
        """The shard's jobs that are submitted, ambiguous or expired, in line order."""

    async def expired_shards(self, file: FileId) -> list[tuple[QueueId, int]]:
        """The file's shards that hold expired jobs with a receipt: a last look may find their output."""

    async def ambiguous(self, now: float, limit: int) -> list[OpenJob]:
        """Ambiguous jobs with `due_at <= now`, oldest first."""

    async def next_ambiguous_at(self) -> float | None:
        """The least `due_at` of all ambiguous jobs."""

    async def rows(self, file: FileId, after_line: int, limit: int) -> list[JobRow]:
        """Up to `limit` accepted jobs of the file with `line > after_line`, in line order over all its queues."""

    async def rejections(self, file: FileId, after_line: int, limit: int) -> list[Rejection]:
        """Up to `limit` rejections with `line > after_line`, in line order."""

    async def find(self, id: str) -> list[tuple[FileId, JobRow]]:
        """Every job with this id, over all files."""

    async def cancel(self, file: FileId, at: float) -> int:
        """Cancels the file for good: its accepted jobs become CANCELLED, now and whenever one would be accepted again.

        So one rule holds from here on, over restarts: no job of the file is claimed, what intake adds and what comes back
        (Released, or Reopened because no output was found) ends cancelled in the very change that brings it, and what is
        claimed, ambiguous or submitted goes its way to a receipt or a result. All of them end at the time of the cancel, with
        the same error. Returns how many jobs ended in this call. Idempotent: the first time stays. A call that is broken off
        has cancelled the file or not; made again, or by `recover`, it ends the rest.
        """

    async def end_unsent(self, file: FileId, state: State, at: float, error: Error) -> int:
        """Ends what is not on its way: the file's accepted jobs become `state`, CANCELLED or EXPIRED; returns how many.

        Claimed, ambiguous and submitted jobs are left alone: whoever holds them moves them on. Idempotent.
        Jobs that are accepted later (intake goes on) are not touched by an earlier call.
        """

    async def prune(self, published_before: float, limit: int) -> int:
        """Forgets up to `limit` jobs and rejections of files whose results were published before then, oldest first.

        A file with nothing left is forgotten as well. Returns how many rows went; 0 says that nothing is left to prune.
        `totals` do not change; `tally` of a forgotten queue is gone and its queue is no longer in `queues`.
        """

    def totals(self) -> dict[tuple[EndpointName, State], int]:
        """How many jobs ever came into each state, by endpoint, over all processes and pruned files; for counters. Does not wait."""

    def lines(self) -> tuple[int, int]:
        """How many lines were ever accepted and rejected, likewise. Does not wait."""

    async def published(self, file: FileId, at: float) -> None:
        """The file's results stand; idempotent."""

    async def aclose(self) -> None:
        """Finishes what was handed in, checkpoints, lets go of the lock. Idempotent."""


class FaultKind(StrEnum):
    """What a call that did not succeed means for the job."""

    REFUSED = "refused"
    """Answered: this request is not acceptable. Whether that is the job or the lane, behaviour decides."""
    THROTTLED = "throttled"
    """Answered: too fast."""
    TROUBLE = "trouble"
    """Answered, and not taken, for a reason that is not the job's: 5xx, credentials, permission, clock, bucket."""
    NOT_SENT = "not_sent"
    """For sure no byte of the request reached the service."""
    UNKNOWN = "unknown"
    """Sent at least in part, and no answer that can be trusted."""


class Fault(Struct, frozen=True, kw_only=True):
    """A call that did not succeed. `message` is printable, at most 500 characters, without payload or credential."""

    kind: FaultKind
    reason: FailureReason
    code: str
    message: str
    retry_after_seconds: float | None = None


HIDDEN = "ListAndHeadDenied"
"""A Fault's code: LIST is denied in this bucket, and nothing shows that objects may be read, so that a 403 says nothing."""


class FileSlice(Struct, frozen=True):
    """Payload bytes on disk: `length` bytes of `path` from `offset`. Opened at the moment it is sent, never held in memory."""

    path: str
    offset: int
    length: int


class Invocation(Struct, frozen=True, kw_only=True, gc=False):
    """One InvokeEndpointAsync request, all fields already within the service's limits.

    Exactly one of `body` (1 to 128,000 bytes) and `input_location` is set. None leaves a header out.
    """

    endpoint: EndpointName
    inference_id: InferenceId
    filename: str | None
    output_path_extension: str | None
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    request_ttl_seconds: int | None
    invocation_timeout_seconds: int | None
    body: bytes | None
    input_location: str | None


class Invoker(Protocol):
    """InvokeEndpointAsync."""

    async def invoke(self, invocation: Invocation) -> Receipt | Fault:
        """Sends exactly one request, within a deadline of its own. Raises nothing but cancellation.

        A 202 without an output location, or one that names another inference id, is UNKNOWN with PROTOCOL.
        """


class Stager(Protocol):
    """Staged inputs in S3."""

    async def stage(self, key: str, payload: bytes | FileSlice, content_type: str | None) -> str | Fault:
        """Puts the payload (also an empty one) under `<staging prefix>/<key>`; returns its `s3://` location.

        One request, within a deadline that grows with the size; idempotent (the same key is overwritten). A slice that is
        gone or shorter than it says is REFUSED with PAYLOAD_GONE.
        """

    async def discard(self, keys: Sequence[str]) -> dict[str, Fault]:
        """Deletes staged inputs; one that is not there counts as deleted. Returns the keys that were not, each with its fault.

        One request for each 1,000 keys where S3 takes several in one, none for no keys; each within a deadline of its own.
        """


class Found(Struct, frozen=True):
    """An object that exists. `uri` is `s3://bucket/key`; `modified_at` its LastModified (whole seconds, S3's clock)."""

    uri: str
    size_bytes: int
    modified_at: float


class Listing(Struct, frozen=True):
    """The objects of a folder. `complete` is False where the folder holds more than was asked for."""

    objects: list[Found]
    complete: bool


class Completions(Protocol):
    """What the service has written to S3. Every call has a deadline of its own and raises nothing but cancellation."""

    async def list_folder(self, folder: str) -> Listing | Fault:
        """Lists a folder (a URI that ends in `/`; `s3://` or `https://` as receipts have it), at most 2 pages of 1,000."""

    async def look(self, location: str) -> Found | Fault | None:
        """HEAD. None: not there. S3 hides a 404 in a 403 where LIST is denied: this is None where another object of the bucket
        could be read of late, else a Fault with the code HIDDEN.
        """

    async def read(self, location: str, max_bytes: int) -> bytes | Fault | None:
        """GET of at most the first `max_bytes` bytes. None: not there."""
