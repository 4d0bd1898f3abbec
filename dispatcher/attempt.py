"""One attempt to submit one job: upload if it travels by S3, then invoke. Its outcome is a value.

Nothing here retries, records or counts. A cancel in the middle leaves the job claimed in the ledger, which is what a
crash leaves: at the next start it is looked for before it is sent again.
"""

from msgspec import Struct

from dispatcher.identity import filename, input_key, shard_folder
from dispatcher.interfaces import Clock, Fault, FaultKind, FileSlice, Invocation, Invoker, Stager
from dispatcher.model import Claim, EndpointName, FailureReason, InferenceId, JobKey, Receipt, RunId, Transport


class Origin(Struct, frozen=True, kw_only=True):
    """The job file that a job came with, as far as sending needs it. `folder` is what its shards' folders begin with.

    From `deadline_at` on nothing of it is sent.
    """

    folder: str
    run_id: RunId
    taken_at: float
    deadline_at: float | None = None


class Job(Struct, frozen=True, kw_only=True, gc=False):
    """A claimed job with everything that is sent. Exactly one of `payload` and `input_location` is set.

    `wait_seconds`: how long its result is waited for after the 202. `ready_at`: monotonic time since which it only waits
    for a worker. `spill`: a temporary file that holds the payload and goes when the attempt is over.
    """

    claim: Claim
    origin: Origin
    endpoint: EndpointName
    inference_id: InferenceId
    payload: bytes | FileSlice | None
    input_location: str | None
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    request_ttl_seconds: int
    invocation_timeout_seconds: int
    wait_seconds: float
    ready_at: float
    chosen_key: bool = True
    spill: str | None = None

    @property
    def key(self) -> JobKey:
        return self.claim.key


class Taken(Struct, frozen=True, kw_only=True):
    """202. `seconds` from the start of the attempt, `at` on the wall clock."""

    receipt: Receipt
    seconds: float
    at: float


class Stopped(Struct, frozen=True, kw_only=True):
    """No receipt. `staging`: it was the upload that failed, so that nothing was submitted whatever the fault's kind.

    `sent_at` is when the attempt began (monotonic).
    """

    fault: Fault
    staging: bool
    sent_at: float


class Paths(Struct, frozen=True, kw_only=True):
    """What an attempt travels on. `stager` is None where no staging prefix is set."""

    invoker: Invoker
    stager: Stager | None
    clock: Clock


_NOWHERE_TO_STAGE = Fault(
    kind=FaultKind.REFUSED,
    reason=FailureReason.STAGING_NOT_SET,
    code="StagingNotSet",
    message="the job was accepted to travel by S3, and there is no staging prefix now",
)
"""Intake rejects what cannot be staged; but a run may be gone on with under other settings."""


async def attempt(job: Job, paths: Paths) -> Taken | Stopped:
    """Sends the job once, by the transport of its claim."""
    started = paths.clock.monotonic()
    location = job.input_location
    if job.claim.transport is Transport.S3:
        staged = await _stage(job, paths)
        if isinstance(staged, Fault):
            return Stopped(fault=staged, staging=True, sent_at=started)
        location = staged
    answer = await paths.invoker.invoke(_invocation(job, location))
    if isinstance(answer, Fault):
        return Stopped(fault=answer, staging=False, sent_at=started)
    return Taken(receipt=answer, seconds=paths.clock.monotonic() - started, at=paths.clock.now())


async def _stage(job: Job, paths: Paths) -> str | Fault:
    assert job.payload is not None, "a reference is never routed by S3"
    if paths.stager is None:
        return _NOWHERE_TO_STAGE
    return await paths.stager.stage(input_key(job.inference_id), job.payload, job.content_type)


def _invocation(job: Job, location: str | None) -> Invocation:
    inline = location is None
    assert not inline or isinstance(job.payload, bytes), "what is not held in memory never travels inline"
    return Invocation(
        endpoint=job.endpoint,
        inference_id=job.inference_id,
        filename=filename(job.inference_id) if job.chosen_key else None,
        output_path_extension=shard_folder(job.origin.folder, job.claim.shard) if job.chosen_key else None,
        content_type=job.content_type,
        accept=job.accept,
        custom_attributes=job.custom_attributes,
        request_ttl_seconds=job.request_ttl_seconds,
        invocation_timeout_seconds=job.invocation_timeout_seconds,
        body=job.payload if inline and isinstance(job.payload, bytes) else None,
        input_location=location,
    )
