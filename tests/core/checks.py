"""What must be true of a world when all is over, whatever happened in it. Each finding is one sentence."""

from dispatcher.identity import filename, inference_id
from dispatcher.model import FINAL_STATES, INLINE_MAX_BYTES, InferenceId, JobFile, JobRow, State
from tests.core.service import STAGING, Acceptance
from tests.core.world import World

LOOK_SECONDS = 5.0
"""A look that settles a job began at most so long before."""


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
        found += [f"{key} was left behind" for key in world.service.staged]
    found += [f"{id} came from nowhere" for id in world.service.accepted if id not in world.keys]
    most = world.service.most_on_wire
    return found + [f"{n} on the wire to {to}" for to, n in most.items() if n > world.plan.max_in_flight]


def _sums(world: World, file: JobFile, rows: list[JobRow]) -> list[str]:
    queues = [queue.queue_id for queue in world.ledger.queues() if queue.file_id == file.file_id]
    tallied = sum(sum(world.ledger.tally(queue).values()) for queue in queues)
    if file.lines == file.rejected + len(rows) and tallied == len(rows):
        return []
    return [f"{file.name}: {file.lines} lines, {file.rejected} rejected, {len(rows)} jobs, {tallied} tallied"]


def _job(world: World, file: JobFile, row: JobRow) -> list[str]:
    id = inference_id(file.run_id, row.key.line)
    taken = world.service.accepted.get(id, [])
    found = _end(world, row, taken) + _identity(world, id, row, taken)
    explained = 1 + world.ledger.lost[row.key]
    if len(taken) > explained:
        found.append(f"{id} was taken {len(taken)} times, {explained} can be explained")
    if row.state in (State.SUBMITTED, State.FAILED) and not taken:
        found.append(f"{id} is {row.state} and was never taken")
    settled = world.ledger.settled_at.get(row.key, [])
    if len(settled) > 1 + (row.state is State.SUCCEEDED):
        found.append(f"{id} was settled {len(settled)} times")
    return [f"{file.name}, line {row.key.line}: {what}" for what in found]


def _end(world: World, row: JobRow, taken: list[Acceptance]) -> list[str]:
    """Whether the final state is what the service's record says."""
    if row.state not in FINAL_STATES:
        return []
    at = world.ledger.settled_at[row.key][-1]
    output = min(
        (since for one in taken if (since := world.service.visible_since(one.receipt.output_location))), default=None
    )
    failure = min(
        (since for one in taken if (since := world.service.visible_since(one.receipt.failure_location))), default=None
    )
    there = output is not None and output <= at
    if row.state is State.SUCCEEDED and not there:
        return ["succeeded without an output"]
    if row.state in (State.FAILED, State.EXPIRED) and output is not None and output < at - LOOK_SECONDS:
        return [f"{row.state} though its output was there"]
    if row.state is State.FAILED and (failure is None or failure > at):
        return ["failed without a failure object"]
    if row.state is State.EXPIRED and at < row.due_at:
        return [f"expired {row.due_at - at} s too early"]
    return []


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
