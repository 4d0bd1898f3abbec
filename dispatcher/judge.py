"""What the outcome of an attempt means: for the job a move, for its lane a gate that closes or opens.

The judge owns the lane's two gates (the lane itself and its S3 route) and what is known of inline being offered there.
Text never decides alone: a refusal of Body is believed when the same job, sent once more by S3, is taken.
"""

from collections.abc import Callable

import msgspec
import structlog

from dispatcher.attempt import Job, Paths, Stopped, Taken
from dispatcher.identity import input_key
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.limits import Gate
from dispatcher.metrics import Metrics, Outcome
from dispatcher.model import (
    EndpointName,
    Error,
    FailureReason,
    JobKey,
    Lost,
    Move,
    Released,
    Settled,
    State,
    Submitted,
    Transport,
)
from dispatcher.retry import Again, Dead, Doubt, Reroute, RetryPolicy, Standing, Verdict, verdict
from dispatcher.router import size_class
from dispatcher.windows import Window

log = structlog.get_logger(__name__)

INLINE_RETRY_SECONDS = 600.0
"""How long an endpoint that refused inline as a feature is spared before inline is tried again."""

HINTS = {
    FailureReason.ENDPOINT_MISSING: "create the endpoint or correct --endpoint; jobs wait and a probe looks for it",
    FailureReason.ACCESS_DENIED: "grant sagemaker:InvokeEndpointAsync on the endpoint, s3:PutObject on the staging prefix",
    FailureReason.CREDENTIALS: "renew the credentials; jobs wait meanwhile",
    FailureReason.CLOCK_SKEW: "set this machine's clock",
    FailureReason.BUCKET: "check that the staging bucket exists and its key may be used",
    FailureReason.STAGING_NOT_SET: "jobs wait that can only go by S3: set --staging s3://bucket/prefix",
}
STAGING_HINTS = HINTS | {
    FailureReason.ACCESS_DENIED: "grant s3:PutObject on the staging prefix, with tags s3:PutObjectTagging, and the use of its key",
}


class Judge:
    """Turns outcomes into moves for one endpoint's lane. Not to be shared between lanes."""

    def __init__(
        self,
        endpoint: EndpointName,
        *,
        paths: Paths,
        policy: RetryPolicy,
        discard_staged: bool,
        metrics: Metrics,
        chance: Callable[[], float],
        doubt_seconds: Callable[[EndpointName], float],
        window: Window,
    ) -> None:
        """`chance` gives 0 to 1; `doubt_seconds` says how long to wait before an attempt in doubt is looked for."""
        self.gate = Gate(chance)
        self.staging_gate = Gate(chance)
        self.parked = 0
        """Jobs sent back since the last probe of the closed S3 route; the worker that sends one back counts it."""
        self._endpoint = endpoint
        self._paths = paths
        self._policy = policy
        self._discard_staged = discard_staged
        self._metrics = metrics
        self._series = metrics.endpoint(endpoint)
        self._chance = chance
        self._doubt_seconds = doubt_seconds
        self._window = window
        # Jobs refused inline that are tried by S3: if that is taken, inline was what was refused.
        self._suspects: set[JobKey] = set()
        self._inline_spared_until: float | None = None

    def redirect(self) -> Transport | None:
        """S3 while this endpoint is known to refuse inline as a feature."""
        if self._inline_spared_until is None:
            return None
        if self._paths.clock.monotonic() < self._inline_spared_until:
            return Transport.S3
        self._inline_spared_until = None
        return None

    def taken(self, job: Job, taken: Taken) -> Submitted:
        """The job has its receipt: the lane is well."""
        self._window.taken(taken.seconds, self._paths.clock.monotonic())
        self._opened("lane", self.gate.success())
        if job.claim.transport is Transport.S3:
            self._opened("s3 route", self.staging_gate.success())
            self.parked = 0
            self._learn(job.key)
        self._metrics.attempted(job.claim.transport, Outcome.OK)
        self._metrics.submitted(job.claim.transport, size_class(job.claim.size_bytes), taken.seconds)
        return Submitted(
            key=job.key,
            receipt=taken.receipt,
            submitted_at=taken.at,
            deadline_at=taken.at + job.wait_seconds,
            seconds=taken.seconds,
        )

    def _learn(self, key: JobKey) -> None:
        """A job refused inline was taken by S3: this endpoint does not offer inline."""
        if key not in self._suspects:
            return
        self._suspects.clear()
        if self.redirect() is not None:
            # It was refused at the same time as the one from which this was learnt.
            return
        self._inline_spared_until = self._paths.clock.monotonic() + INLINE_RETRY_SECONDS
        log.warning(
            "endpoint refuses inline payloads; falling back to S3",
            endpoint=self._endpoint,
            for_seconds=INLINE_RETRY_SECONDS,
        )

    async def stopped(self, job: Job, stopped: Stopped) -> Move:
        """The job has none: what becomes of it, and what that says of the lane."""
        fault = _as_not_submitted(stopped.fault) if stopped.staging else self._explained(job, stopped.fault)
        decided = verdict(fault, self._standing(job, stopped), self._policy, self._chance())
        self._metrics.attempted(job.claim.transport, Outcome(fault.kind))
        if self._is_news(stopped):
            self._trouble(job, fault, decided, staging=stopped.staging)
        return await self._move(job, fault, decided)

    def _is_news(self, stopped: Stopped) -> bool:
        """All that were throttled in one round trip count once: the window answers to it before the gate does."""
        if stopped.fault.kind is not FaultKind.THROTTLED or stopped.staging:
            return True
        return self._window.throttled(stopped.sent_at, self._paths.clock.monotonic())

    def _explained(self, job: Job, fault: Fault) -> Fault:
        """What a refusal of Body as a feature means for this job: a prefix to set, or, where no Body was sent, a bad request."""
        if fault.reason is not FailureReason.INLINE_REFUSED or self._can_stage(job):
            return fault
        inline = job.claim.transport is Transport.INLINE
        reason = FailureReason.STAGING_NOT_SET if inline else FailureReason.VALIDATION_ERROR
        return msgspec.structs.replace(fault, reason=reason)

    def _can_stage(self, job: Job) -> bool:
        return job.claim.transport is Transport.INLINE and self._paths.stager is not None

    def _standing(self, job: Job, stopped: Stopped) -> Standing:
        gate = self.staging_gate if stopped.staging else self.gate
        return Standing(
            attempt=job.claim.attempt,
            faults=job.claim.faults,
            can_stage=self._can_stage(job),
            lane_proven=gate.proven,
        )

    def _trouble(self, job: Job, fault: Fault, decided: Verdict, *, staging: bool) -> None:
        """What the fault says of the lane or of its S3 route."""
        if isinstance(decided, Reroute):
            self._suspects.add(job.key)
            return
        if fault.reason is FailureReason.PAYLOAD_GONE:
            return
        gate, what = (self.staging_gate, "s3 route") if staging else (self.gate, "lane")
        if gate.failure(fault.reason, self._paths.clock.monotonic()):
            self._series.paused(fault.reason)
            hint = (STAGING_HINTS if staging else HINTS).get(fault.reason, "jobs wait; a probe tries again")
            said = {"reason": fault.reason, "code": fault.code, "message": fault.message, "hint": hint}
            log.warning(f"{what} paused", endpoint=self._endpoint, **said)

    def _opened(self, what: str, reason: FailureReason | None) -> None:
        if reason is not None:
            self._series.resumed(reason)
            self._window.restart()
            log.info(f"{what} resumed", endpoint=self._endpoint, was=reason)

    async def _move(self, job: Job, fault: Fault, decided: Verdict) -> Move:
        now = self._paths.clock.now()
        match decided:
            case Again(after_seconds=after, fault=counted):
                self._metrics.retried(fault.reason)
                return Released(key=job.key, due_at=now + after, reason=fault.reason, fault=counted)
            case Reroute():
                self._metrics.retried(FailureReason.INLINE_REFUSED)
                return Released(
                    key=job.key, due_at=now, reason=FailureReason.INLINE_REFUSED, fault=True, transport=Transport.S3
                )
            case Doubt():
                return Lost(key=job.key, due_at=now + self._doubt_seconds(self._endpoint), reason=fault.reason)
            case Dead():
                self._suspects.discard(job.key)
                await self._discard(job)
                return Settled(
                    key=job.key,
                    prior=State.CLAIMED,
                    state=State.DEAD,
                    completed_at=now,
                    error=Error(code=fault.code or fault.reason, message=fault.message),
                )

    async def _discard(self, job: Job) -> None:
        """Deletes the staged input before the end is recorded, so that a crash between leaves no orphan."""
        if job.claim.transport is Transport.S3 and self._discard_staged and self._paths.stager is not None:
            await self._paths.stager.discard([input_key(job.inference_id)])


def _as_not_submitted(fault: Fault) -> Fault:
    """Staging is idempotent and submits nothing: an upload whose answer is unknown is simply made again."""
    if fault.kind is not FaultKind.UNKNOWN:
        return fault
    return Fault(kind=FaultKind.TROUBLE, reason=fault.reason, code=fault.code, message=fault.message)
