"""From a job file to sendable jobs: read into the ledger, and read again when they are claimed. Threads and real time."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from dispatcher.attempt import Job
from dispatcher.errors import ChangedFileError
from dispatcher.formats.joblines import LineRules
from dispatcher.intake import BATCH_LINES, IntakeSettings, take_in
from dispatcher.interfaces import FileSlice
from dispatcher.ledger.memory import MemoryLedger
from dispatcher.loading import Defaults, Loader
from dispatcher.metrics import Metrics
from dispatcher.model import FailureReason, JobFile, NewFile, Released, RunId, Settled, Transport
from tests.core.service import MISSING, Weather
from tests.core.world import MODEL, Line, World

RULES = LineRules(endpoint=MODEL, allowed_endpoints=frozenset([MODEL]), staging=True)
DEFAULTS = Defaults(
    content_type="application/json",
    accept=None,
    request_ttl_seconds=600,
    invocation_timeout_seconds=60,
    slack_seconds=5.0,
    chosen_keys=True,
)


class Stopped:
    """A clock that may be read from any thread, as the loader's is."""

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0


async def taken(ledger: MemoryLedger, path: Path) -> JobFile:
    new = NewFile(
        run_id=RunId("a" * 16),
        name=path.name,
        source=str(path),
        data_path=str(path),
        payload_root=str(path.parent),
        size_bytes=path.stat().st_size,
        taken_at=0.0,
    )
    return await ledger.add_file(new)


async def read(ledger: MemoryLedger, file: JobFile) -> JobFile:
    settings = IntakeSettings(rules=RULES, share=0.0, line_max_bytes=1_000)
    await take_in(file, ledger=ledger, settings=settings, metrics=Metrics(CollectorRegistry(), [MODEL]))
    return (await ledger.files())[0]


async def loaded(ledger: MemoryLedger, file: JobFile, folder: Path) -> list[Job | Settled]:
    loader = Loader(DEFAULTS, str(folder), Stopped())
    loader.add(file)
    try:
        return await loader.load(MODEL, await ledger.claim(ledger.queues()[0].queue_id, 1_000, 0.0))
    finally:
        loader.close()


async def test_every_line_becomes_a_job_or_a_rejection_and_blank_ones_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n\n{"payload": }\n{"payload": 2}\n' + b"x" * 2_000 + b"\n")
    ledger = MemoryLedger()
    file = await read(ledger, await taken(ledger, path))
    assert (file.lines, file.rejected, file.intake_done) == (4, 2, True)
    assert [row.key.line for row in await ledger.rows(file.file_id, 0, 10)] == [1, 4]
    rejected = [(one.line, one.reason) for one in await ledger.rejections(file.file_id, 0, 10)]
    assert rejected == [(3, FailureReason.INVALID_JSON), (5, FailureReason.LINE_TOO_LONG)]


async def test_a_file_read_in_part_is_read_on_from_its_cursor(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n' * (BATCH_LINES + 10))
    ledger, whole = MemoryLedger(), MemoryLedger()
    first = await read(whole, await taken(whole, path))
    begun = await taken(ledger, path)
    line = b'{"payload": 1}\n'
    cursor = msgspec.structs.replace(begun.cursor, offset=15, line=1, digest=hashlib.sha256(line).hexdigest())
    rest = await read(ledger, msgspec.structs.replace(begun, cursor=cursor))
    assert rest.cursor == first.cursor
    assert (first.lines, rest.lines) == (BATCH_LINES + 10, BATCH_LINES + 9)


async def test_a_file_that_changed_where_it_was_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n{"payload": 2}\n')
    ledger = MemoryLedger()
    begun = await taken(ledger, path)
    cursor = msgspec.structs.replace(begun.cursor, offset=15, line=1, digest="0" * 64)
    with pytest.raises(ChangedFileError):
        await read(ledger, msgspec.structs.replace(begun, cursor=cursor))


async def test_nothing_is_remembered_of_a_file_that_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n{"payload": 2}\n')
    ledger, loader = MemoryLedger(), Loader(DEFAULTS, str(tmp_path), Stopped())
    file = await read(ledger, await taken(ledger, path))
    first, second = await ledger.claim(ledger.queues()[0].queue_id, 2, 0.0)
    loader.add(file)
    await loader.load(MODEL, [first])
    loader.forget(file.file_id)
    path.write_bytes(b'{"payload": 1}\n{"payload": 3}\n\n')
    loader.add(file)
    (job,) = await loader.load(MODEL, [second])
    loader.close()
    assert isinstance(job, Job)
    assert job.payload == b"3"


async def test_a_claimed_job_gets_the_bytes_of_its_line_and_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(
        b'{"payload": {"a":  1}}\n{"payload": "b", "content_type": "text/plain", "request_ttl_seconds": 60}\n'
    )
    ledger = MemoryLedger()
    one, other = await loaded(ledger, await read(ledger, await taken(ledger, path)), tmp_path)
    assert isinstance(one, Job)
    assert isinstance(other, Job)
    assert (one.payload, one.content_type, one.wait_seconds) == (b'{"a":  1}', "application/json", 665.0)
    assert (other.payload, other.content_type, other.wait_seconds) == (b'"b"', "text/plain", 125.0)


async def test_a_large_payload_is_a_slice_of_its_file_and_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload_path": "large.bin"}\n')
    (tmp_path / "large.bin").write_bytes(b"x" * 200_000)
    ledger = MemoryLedger()
    (job,) = await loaded(ledger, await read(ledger, await taken(ledger, path)), tmp_path)
    assert isinstance(job, Job)
    assert isinstance(job.payload, FileSlice)
    assert (job.payload.length, job.claim.transport) == (200_000, Transport.S3)


@pytest.mark.parametrize("now", [b"", b'{"payload": 1', b'{"paxload": 1}\n'])
async def test_a_job_whose_line_is_not_what_was_accepted_is_dead_and_not_sent(tmp_path: Path, now: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'{"payload": 1}\n')
    ledger = MemoryLedger()
    file = await read(ledger, await taken(ledger, path))
    path.write_bytes(now)
    (job,) = await loaded(ledger, file, tmp_path)
    assert isinstance(job, Settled)
    assert job.error is not None
    assert job.error.code == FailureReason.PAYLOAD_GONE


async def test_a_job_that_goes_back_unsent_leaves_no_temporary_file(tmp_path: Path) -> None:
    spills = [tmp_path / str(n) for n in range(16)]
    for spill in spills:
        spill.touch()
    world = World(weather=Weather(invoke=lambda _: MISSING))
    await world.add("jobs.jsonl", [Line(spill=str(spill)) for spill in spills])
    async with world.process() as process:
        await process.until(lambda: any(isinstance(move, Released) and move.unsent for move in world.ledger.moves))
        await process.drain()
    assert list(tmp_path.iterdir()) == []
