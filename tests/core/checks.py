"""What must be true of a world when all is over, whatever happened in it. Each finding is one sentence."""

from collections.abc import Iterable
from math import inf

from dispatcher.identity import filename, inference_id
from dispatcher.model import FINAL_STATES, INLINE_MAX_BYTES, InferenceId, JobFile, JobRow, State, Transport
from tests.core.service import STAGING, Acceptance
from tests.core.world import World


async def findings(world: World, *, all_final: bool = True) -> list[str]:
    """All that is wrong, in words; [] is the verdict that everybody wants."""
    found = list(world.violations)
    for file in await world.ledger.files():
        rows = await world.rows(file)
        found += _sums(world, file, rows)
        for row in rows:
            found += _job(world, file, row)
    if all_final:
        found += [f"{world.outstanding()} jobs are not final"] * bool(world.outstanding())
        found += [f"{key} was left behind" for key in world.service.staged if not await _forgotten(world, key)]
    found += [f"{name} came from nowhere" for name in world.service.accepted if name not in world.keys]
    most = world.service.most_on_wire
    return found + [f"{n} on the wire to {to}" for to, n in most.items() if n > world.plan.max_in_flight]


async def _forgotten(world: World, key: str) -> bool:
    """Whether only a ledger that was lost knew that this job's route had changed to S3."""
    row = await world.row(key.rpartition("/")[2])
    return bool(world.lost_ledgers) and row.transport is not Transport.S3


def _sums(world: World, file: JobFile, rows: list[JobRow]) -> list[str]:
    queues = [queue.queue_id for queue in world.ledger.queues() if queue.file_id == file.file_id]
    tallied = sum(sum(world.ledger.tally(queue).values()) for queue in queues)
    if file.lines == file.rejected + len(rows) and tallied == len(rows):
        return []
    return [f"{file.name}: {file.lines} lines, {file.rejected} rejected, {len(rows)} jobs, {tallied} tallied"]


def _job(world: World, file: JobFile, row: JobRow) -> list[str]:
    name = inference_id(file.run_id, row.key.line)
    taken = world.service.accepted.get(name, [])
    found = _end(world, file, row, taken) + _identity(world, name, row, taken)
    explained = 1 + world.ledger.lost[row.key]
    if len(taken) > explained:
        found.append(f"{name} was taken {len(taken)} times, {explained} can be explained")
    if row.state in (State.SUBMITTED, State.FAILED) and not taken:
        found.append(f"{name} is {row.state} and was never taken")
    settled = world.ledger.settled_at.get(row.key, [])
    if len(settled) > 1 + (row.state is State.SUCCEEDED):
        found.append(f"{name} was settled {len(settled)} times")
    return [f"{file.name}, line {row.key.line}: {what}" for what in found]


def _end(world: World, file: JobFile, row: JobRow, taken: list[Acceptance]) -> list[str]:
    """Whether the final state is what the service's record says. Only what the receipt on record names counts."""
    if row.state not in FINAL_STATES:
        return []
    if row.state is State.CANCELLED:
        return [] if (world.cancelled(row) and row.receipt is None) else ["cancelled, and nobody did"]
    if row.state is State.EXPIRED and row.receipt is None and not _overdue(file, row):
        return ["expired unsubmitted, and no deadline of its file had passed"]
    if row.state is State.EXPIRED and row.key not in world.ledger.settled_at:
        return [] if row.receipt is None else ["expired with a receipt, and nobody settled it"]
    at = world.ledger.settled_at[row.key][-1]
    named = [
        one.receipt
        for one in taken
        if row.receipt is None or one.receipt.output_location == row.receipt.output_location
    ]
    output = _first(world.service.visible_since(receipt.output_location) for receipt in named)
    failure = _first(world.service.visible_since(receipt.failure_location) for receipt in named)
    match row.state:
        case State.SUCCEEDED if output > at:
            return ["succeeded without an output"]
        case State.FAILED if failure > at:
            return ["failed without a failure object"]
        case State.FAILED if output < failure:
            return ["failed though its output was there"]
        case State.EXPIRED if at < row.due_at:
            return [f"expired {row.due_at - at} s too early"]
        # Without a receipt nobody knows for sure where its output or failure is; test_doubt has what can be known.
        case State.EXPIRED if row.receipt is not None and min(output, failure) < row.due_at:
            return ["expired though its result was there"]
    return []


def _overdue(file: JobFile, row: JobRow) -> bool:
    """Whether the job ended after its file's deadline, which alone may expire what has no receipt."""
    return file.deadline_at is not None and row.completed_at is not None and file.deadline_at <= row.completed_at


def _first(times: Iterable[float | None]) -> float:
    """The first of these times; never comes after everything."""
    return min((time for time in times if time is not None), default=inf)


def _identity(world: World, id: InferenceId, row: JobRow, taken: list[Acceptance]) -> list[str]:
    """Whether every request for the job had the same name, and its own payload."""
    names = {(one.invocation.filename, one.invocation.output_path_extension) for one in taken}
    found = [f"asked for {len(names)} output keys"] if len(names) > 1 else []
    if world.plan.chosen_keys and any(one.invocation.filename != filename(id) for one in taken):
        found.append("asked for another's output key")
    if row.receipt is not None and row.receipt not in [one.receipt for one in taken]:
        known = {one.receipt.output_location for one in taken}
        if row.receipt.output_location not in known:
            found.append("has a receipt that the service never gave")
    for one in taken:
        body, location = one.invocation.body, one.invocation.input_location
        if (body is None) == (location is None) or (
            body is not None and (body != str(id).encode() or row.size_bytes > INLINE_MAX_BYTES)
        ):
            found.append("was sent with a payload that is not its own")
        if location is not None and location not in (f"{STAGING}{id[:2]}/{id}", f"s3://given/{id}"):
            found.append("was sent with another's input")
    return found
