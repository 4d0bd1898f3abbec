"""Makes sendable jobs of claims: reads their lines again from the job file, decodes them, finds their payloads.

Nothing but the line's place is kept in the ledger, so a crash costs no payload and memory holds only what is claimed.
The line was valid when it was accepted; if it is not now, somebody changed the file, and the job is dead with
PAYLOAD_GONE rather than sent with another's payload. Runs in a worker thread, one batch at a time.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from dispatcher.attempt import Job, Origin
from dispatcher.errors import ChangedFileError, UnreadableFileError
from dispatcher.formats.disk import check_folder_of
from dispatcher.formats.faults import LineError
from dispatcher.formats.joblines import JobLine, LineRules, decode_again
from dispatcher.formats.lines import verify_prefix
from dispatcher.formats.linesource import LineSource, open_source
from dispatcher.formats.payloads import InMemory, Loaded, OnDisk, Place, load
from dispatcher.identity import inference_id, output_folder
from dispatcher.interfaces import Clock, FileSlice
from dispatcher.model import Claim, EndpointName, Error, FailureReason, FileId, JobFile, Settled, State

TTL_LEAST_SECONDS = 60
Stamp = tuple[int, int, int]
"""Size in bytes, and times of change in ns: of the content, which anybody may set, and of the inode, which nobody can."""
GONE = (-1, -1, -1)
"""The stamp of a file that is not there."""
OPEN_FILES = 64
"""Job files kept open at once; the one used longest ago is closed for another."""


class Defaults(Struct, frozen=True, kw_only=True):
    """What a job line that says nothing gets. `slack_seconds` is waited for a result beyond TTL and timeout."""

    content_type: str | None
    accept: str | None
    request_ttl_seconds: int
    invocation_timeout_seconds: int
    slack_seconds: float
    chosen_keys: bool


class Loader:
    """Owns the open job files. `add` every file before its jobs are claimed."""

    def __init__(self, defaults: Defaults, spill_folder: str, clock: Clock) -> None:
        self._defaults = defaults
        self._spill_folder = spill_folder
        self._clock = clock
        self._files: dict[FileId, JobFile] = {}
        # Least recently used first. Only touched under the lock, in worker threads, and by close.
        self._open: OrderedDict[FileId, LineSource] = OrderedDict()
        self._lock = threading.Lock()
        # What each job file looked like before it was read here, or when last found to be whole. Under the lock.
        self._stamps: dict[FileId, Stamp] = {}

    def add(self, file: JobFile) -> None:
        """Makes the file's jobs loadable."""
        self._files[file.file_id] = file

    def expect(self, file: JobFile) -> None:
        """To be called before the file is read into the ledger: a change that comes from now on is noticed (blocking)."""
        with self._lock:
            self._stamps.setdefault(file.file_id, _stamp(file.data_path))

    def forget(self, file: FileId) -> None:
        """Nothing of the file will be loaded any more."""
        self._files.pop(file, None)
        with self._lock:
            self._stamps.pop(file, None)
            source = self._open.pop(file, None)
        if source is not None:
            source.close()

    def close(self) -> None:
        """Closes every job file. Nothing may be loading."""
        with self._lock:
            for source in self._open.values():
                source.close()
            self._open.clear()

    async def load(self, endpoint: EndpointName, claims: Sequence[Claim]) -> list[Job | Settled]:
        """One entry for each claim, in order; the claims are of one job file. Raises ChangedFileError if that was touched."""
        return await anyio.to_thread.run_sync(self._load, endpoint, claims)

    def verify(self, file: JobFile) -> None:
        """Takes a file that was touched for what it was, if it still holds what was read of it (blocking).

        Raises UnreadableFileError where it does not, MissingFolderError where the folder that it lay in is gone.
        """
        stamp = _stamp(file.data_path)
        check_folder_of(file.data_path)
        if not verify_prefix(file.data_path, file.cursor):
            raise UnreadableFileError(f"{file.data_path} was changed: it does not hold the lines that were read of it")
        with self._lock:
            self._stamps[file.file_id] = stamp
            source = self._open.pop(file.file_id, None)
        if source is not None:
            source.close()

    def _load(self, endpoint: EndpointName, claims: Sequence[Claim]) -> list[Job | Settled]:
        file = self._files[claims[0].file_id]
        with self._lock:
            lines = self._source(file).read_many([(claim.offset, claim.length) for claim in claims])
            self._check_unchanged(file)
        batch = _Batch(
            endpoint=endpoint,
            # What was allowed when the line was accepted stays allowed, whatever the settings say now.
            rules=LineRules(endpoint=endpoint, allowed_endpoints=frozenset([endpoint]), staging=True),
            place=Place(data_path=file.data_path, payload_root=file.payload_root, spill_folder=self._spill_folder),
            origin=Origin(
                folder=output_folder(file.name, file.run_id),
                run_id=file.run_id,
                taken_at=file.taken_at,
                deadline_at=file.deadline_at,
            ),
            ttl_max_seconds=self._ttl_max_seconds(file),
            ready_at=self._clock.monotonic(),
        )
        return [self._job(batch, claim, line) for claim, line in zip(claims, lines, strict=True)]

    def _source(self, file: JobFile) -> LineSource:
        if file.file_id not in self._open:
            self._open[file.file_id] = open_source(file.data_path)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(file.file_id)
        return self._open[file.file_id]

    def _check_unchanged(self, file: JobFile) -> None:
        """What was just read may be another file's lines. Raises ChangedFileError."""
        stamp = _stamp(file.data_path)
        if stamp == GONE:
            check_folder_of(file.data_path)
        if self._stamps.setdefault(file.file_id, stamp) != stamp:
            raise ChangedFileError(
                f"{file.source} was changed while its jobs are being sent: put back what it was, then give the same command again"
            )

    def _ttl_max_seconds(self, file: JobFile) -> float:
        """What is left until the job file's deadline, though the service takes no less than a minute."""
        if file.deadline_at is None:
            return math.inf
        return max(math.ceil(file.deadline_at - self._clock.now()), TTL_LEAST_SECONDS)

    def _job(self, batch: "_Batch", claim: Claim, line: bytes | LineError) -> Job | Settled:
        if isinstance(line, LineError):
            return self._gone(claim, line)
        job = decode_again(line, batch.rules)
        if isinstance(job, LineError):
            return self._gone(claim, job)
        loaded = load(job, line, claim.offset, claim.size_bytes, batch.place)
        if isinstance(loaded, LineError):
            return self._gone(claim, loaded)
        return self._sendable(batch, claim, job, loaded)

    def _gone(self, claim: Claim, problem: LineError) -> Settled:
        return Settled(
            key=claim.key,
            prior=State.CLAIMED,
            state=State.DEAD,
            completed_at=self._clock.now(),
            error=Error(FailureReason.PAYLOAD_GONE, problem.message),
        )

    def _sendable(self, batch: "_Batch", claim: Claim, job: JobLine, loaded: Loaded) -> Job:
        defaults, origin = self._defaults, batch.origin
        ttl = job.request_ttl_seconds or defaults.request_ttl_seconds
        if ttl > batch.ttl_max_seconds:
            ttl = int(batch.ttl_max_seconds)
        timeout = job.invocation_timeout_seconds or defaults.invocation_timeout_seconds
        payload, location, spill = _parts(loaded)
        return Job(
            claim=claim,
            origin=origin,
            endpoint=batch.endpoint,
            inference_id=inference_id(origin.run_id, claim.key.line),
            payload=payload,
            input_location=location,
            content_type=job.content_type or defaults.content_type,
            accept=job.accept or defaults.accept,
            custom_attributes=job.custom_attributes,
            request_ttl_seconds=ttl,
            invocation_timeout_seconds=timeout,
            wait_seconds=ttl + timeout + defaults.slack_seconds,
            ready_at=batch.ready_at,
            chosen_key=defaults.chosen_keys,
            spill=spill,
        )


class _Batch(Struct, frozen=True, kw_only=True):
    """What the jobs of one `load` have in common."""

    endpoint: EndpointName
    rules: LineRules
    place: Place
    origin: Origin
    ttl_max_seconds: float
    ready_at: float


def _stamp(path: str) -> Stamp:
    try:
        found = Path(path).stat()
    except OSError:
        return GONE
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _parts(loaded: Loaded) -> tuple[bytes | FileSlice | None, str | None, str | None]:
    """Payload, input location, file to delete afterwards."""
    if isinstance(loaded, InMemory):
        return loaded.data, None, None
    if isinstance(loaded, OnDisk):
        return loaded.slice, None, loaded.slice.path if loaded.is_temporary else None
    return None, loaded.uri, None
