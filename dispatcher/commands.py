"""What the owner of a ledger answers over the control socket."""

from math import inf
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import structs

from dispatcher.engine import Engine
from dispatcher.errors import UsageError
from dispatcher.lanes import Lane, Limits
from dispatcher.model import EndpointName
from dispatcher.partials import write_partial
from dispatcher.status import Cancelled, jobs_named, overview, unfinished_named

log = structlog.get_logger(__name__)


async def answer(made: Engine, request: dict[str, Any]) -> Any:
    """Answers one request; UsageError for one that is none."""
    match request:
        case {"command": "status", "job": str(id), **rest}:
            return await jobs_named(made.ledger, id, _file_of(rest))
        case {"command": "status", **rest}:
            return await overview(made.ledger, made.clock.now(), made.work(), _file_of(rest))
        case {"command": "partial", "file": str() | None as name, "folder": str(folder)}:
            return await write_partial(made.ledger, made.results, name, Path(folder))
        case {"command": "cancel", "file": str(name)}:
            return await _cancel(made, name)
        case {"command": "lane", "endpoint": str(endpoint), "held": bool() | None as held, "limits": dict(limits)}:
            return _change(made, _lane(made, endpoint), held, limits)
        case _:
            raise UsageError(f"unknown request {msgspec.json.encode(request)[:200]!r}")


def _file_of(request: dict[str, Any]) -> str | None:
    name = request.get("file")
    return None if name is None else str(name)


async def _cancel(made: Engine, name: str) -> Cancelled:
    file = unfinished_named(await made.ledger.files(), name)
    jobs = await made.ledger.cancel(file.file_id, made.clock.now())
    return Cancelled(jobs, not file.intake_done)


def _lane(made: Engine, endpoint: str) -> Lane:
    lane = made.lanes.get(EndpointName(endpoint))
    if lane is None:
        raise UsageError(f"there is no lane for {endpoint!r}; there are: {', '.join(sorted(made.lanes))}")
    return lane


class LaneLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All limits of a lane. `max_outstanding` None: what the model gets done within the TTL."""

    max_outstanding: int | None


def _change(made: Engine, lane: Lane, held: bool | None, changes: dict[str, Any]) -> LaneLimits:
    """All of it or, where something of it cannot be, nothing; the limits in force."""
    before = _limits(made, lane)
    limits = _checked(structs.asdict(before) | changes, made.settings.max_in_flight)
    if held is not None:
        lane.hold(held=held)
    if limits != before:
        lane.limit(Limits(**{name: getattr(limits, name) for name in Limits.__struct_fields__}))
        made.max_outstanding[lane.endpoint] = limits.max_outstanding
        log.info("lane limits changed", endpoint=lane.endpoint, **structs.asdict(limits))
    return _limits(made, lane)


def _limits(made: Engine, lane: Lane) -> LaneLimits:
    return LaneLimits(**structs.asdict(lane.limits), max_outstanding=made.max_outstanding[lane.endpoint])


def _checked(given: dict[str, Any], most: int) -> LaneLimits:
    try:
        limits = msgspec.convert(given, LaneLimits, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"these limits cannot be: {error}") from error
    problem = _problem(limits, most)
    if problem is not None:
        raise UsageError(f"these limits cannot be: {problem}")
    return limits


def _problem(limits: LaneLimits, most: int) -> str | None:
    """What is wrong with these limits; `most` is how many attempts the lane has workers for."""
    if not 1 <= limits.max_in_flight <= most:
        return f"max_in_flight must be 1 to {most}, which is what the process was started with"
    if not 0 < limits.min_in_flight <= limits.max_in_flight:
        return f"min_in_flight must be above 0 and at most max_in_flight, {limits.max_in_flight:g}"
    rates = (limits.requests_per_second, limits.bytes_per_second)
    if any(rate is not None and not 0 < rate < inf for rate in rates):
        return "a rate must be a number above 0, or none"
    if limits.max_outstanding is not None and limits.max_outstanding < 1:
        return "max_outstanding must be at least 1, or none: then the model's own pace sets it"
    return None
