"""Whether the results of an endpoint can be looked for at all. Where they cannot, all its looks wait for one probe.

A look that S3 answered opens an endpoint's gate, one of which nothing was answered may close it (see `limits`). Jobs are
submitted all the same: how many may wait for results is bounded. A refused look settles nothing, and no job expires by one.
"""

from collections.abc import Callable

import structlog

from dispatcher.interfaces import Clock, Fault
from dispatcher.limits import Gate
from dispatcher.metrics import PAUSE_REASONS, Metrics
from dispatcher.model import EndpointName, FailureReason

log = structlog.get_logger(__name__)

HINTS = {
    FailureReason.ACCESS_DENIED: "grant s3:ListBucket and s3:GetObject on the output location; jobs wait for their results",
    FailureReason.CREDENTIALS: "renew the credentials; jobs wait for their results",
    FailureReason.CLOCK_SKEW: "set this machine's clock",
    FailureReason.BUCKET: "check that the bucket of the output location exists",
}

ROUNDING_SECONDS = 0.001
"""A wall time has fewer digits than a monotonic one: whoever comes for a probe must not be too early."""


class Sight:
    """The gates of all endpoints' looks."""

    def __init__(self, *, clock: Clock, metrics: Metrics, chance: Callable[[], float]) -> None:
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        # One for each endpoint that was looked at.
        self._gates: dict[EndpointName, Gate] = {}

    def reason(self, endpoint: EndpointName) -> FailureReason | None:
        """Why the endpoint's results cannot be looked for, if that is so."""
        gate = self._gates.get(endpoint)
        return None if gate is None else gate.reason

    def probe_at(self, endpoint: EndpointName) -> float | None:
        """When (wall clock) one look may be made while the others wait; None: all may be made."""
        gate = self._gates.get(endpoint)
        if gate is None or gate.reason is None:
            return None
        return self._clock.now() + gate.probe_at - self._clock.monotonic() + ROUNDING_SECONDS

    def may_look(self, endpoint: EndpointName) -> bool:
        """Whether a look may be made now; while the gate is closed, this uses up the one probe that is due."""
        gate = self._gates.get(endpoint)
        return gate is None or gate.reason is None or gate.take_probe(self._clock.monotonic())

    def told(self, endpoint: EndpointName, fault: Fault | None, *, answered: bool) -> bool:
        """What came of a look. Returns whether it opened the gate."""
        if not answered:
            if fault is not None:
                self._refused(endpoint, fault)
            return False
        gate = self._gates.get(endpoint)
        was = None if gate is None else gate.success()
        if was is None:
            return False
        self._metrics.endpoint(endpoint).resumed(was)
        log.info("results can be looked for again", endpoint=endpoint, was=was)
        return True

    def _refused(self, endpoint: EndpointName, fault: Fault) -> None:
        gate = self._gates.setdefault(endpoint, Gate(self._chance))
        reason = fault.reason if fault.reason in PAUSE_REASONS else FailureReason.PROTOCOL
        if gate.failure(reason, self._clock.monotonic()):
            self._metrics.endpoint(endpoint).paused(reason)
            hint = HINTS.get(reason, "jobs wait for their results; a probe tries again")
            said = {"reason": reason, "code": fault.code, "message": fault.message, "hint": hint}
            log.warning("results cannot be looked for", endpoint=endpoint, **said)
