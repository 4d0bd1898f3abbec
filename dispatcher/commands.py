"""What the owner of a ledger answers over the control socket."""

from math import inf
from pathlib import Path
from typing import Any

import msgspec

from dispatcher.engine import Engine
from dispatcher.errors import UsageError
from dispatcher.lanes import Lane, Limits
from dispatcher.model import EndpointName, JobFile
from dispatcher.partials import write_partial
from dispatcher.status import jobs_named, overview


async def answer(made: Engine, request: dict[str, Any]) -> Any:
    """Answers one request; UsageError for one that is none."""
    match request:
        case {"command": "status", "job": str(id)}:
            return await jobs_named(made.ledger, id)
        case {"command": "status"}:
            return await overview(made.ledger, made.clock.now(), made.work())
        case {"command": "partial", "file": str() | None as name, "folder": str(folder)}:
            return await write_partial(made.ledger, made.results, name, Path(folder))
        case {"command": "cancel", "file": str(name)}:
            return await _cancel(made, name)
        case {"command": "lane", "endpoint": str(endpoint), "limits": dict(limits)}:
            return _limit(_lane(made, endpoint), limits, made.settings.max_in_flight)
        case {"command": "lane", "endpoint": str(endpoint), "held": bool(held)}:
            _lane(made, endpoint).hold(held=held)
            return held
        case _:
            raise UsageError(f"unknown request {msgspec.json.encode(request)[:200]!r}")


async def _cancel(made: Engine, name: str) -> int:
    file = await file_named(made, name)
    return await made.ledger.cancel(file.file_id, made.clock.now())


async def file_named(made: Engine, name: str) -> JobFile:
    """The unfinished job file of this name or run id."""
    files = [file for file in await made.ledger.files() if name in (file.name, file.run_id)]
    open_files = [file for file in files if file.published_at is None]
    if len(open_files) != 1:
        raise UsageError(
            f"{len(open_files)} unfinished job files are named {name!r}; give the run id that `status --json` shows"
        )
    return open_files[0]


def _lane(made: Engine, endpoint: str) -> Lane:
    lane = made.lanes.get(EndpointName(endpoint))
    if lane is None:
        raise UsageError(f"there is no lane for {endpoint!r}; there are: {', '.join(sorted(made.lanes))}")
    return lane


def _limit(lane: Lane, changes: dict[str, Any], most: int) -> Limits:
    try:
        limits = msgspec.convert(msgspec.to_builtins(lane.limits) | changes, Limits, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"these limits cannot be: {error}") from error
    problem = _problem(limits, most)
    if problem is not None:
        raise UsageError(f"these limits cannot be: {problem}")
    lane.limit(limits)
    return lane.limits


def _problem(limits: Limits, most: int) -> str | None:
    """What is wrong with these limits; `most` is how many attempts the lane has workers for."""
    if not 1 <= limits.max_in_flight <= most:
        return f"max_in_flight must be 1 to {most}, which is what the process was started with"
    if not 0 < limits.min_in_flight <= limits.max_in_flight:
        return f"min_in_flight must be above 0 and at most max_in_flight, {limits.max_in_flight:g}"
    rates = (limits.requests_per_second, limits.bytes_per_second)
    if any(rate is not None and not 0 < rate < inf for rate in rates):
        return "a rate must be above 0; the flag's 0 takes it away"
    return None
