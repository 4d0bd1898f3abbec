"""One-shot use: job files in, their results out, then the process ends. `run`, `replay` and `validate` are made of this.

A run resumes by being given again: what the ledger knows is gone on with. Ctrl-C (or SIGTERM) stops it so that this
works: no new claims, what is on the wire gets its durable outcome, then the end. A second signal ends it at once, which
costs no more than a crash does.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec
import structlog
from msgspec import Struct
from prometheus_client import CollectorRegistry

from dispatcher.admin.control import control_socket
from dispatcher.admin.server import metrics_server
from dispatcher.clock import SystemClock
from dispatcher.commands import answer
from dispatcher.engine import Engine, line_rules
from dispatcher.errors import UsageError
from dispatcher.intake import IntakeSettings, take_in
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.metrics import Metrics
from dispatcher.model import FINAL_STATES, EndpointName, FailureReason, JobFile, Rejection, State
from dispatcher.results import run_of, whole
from dispatcher.service import engine
from dispatcher.settings import Settings
from dispatcher.signals import Stop, StoppedError, stop_on_signals
from dispatcher.sources.jobfiles import Intaker, take_up

log = structlog.get_logger(__name__)

EXIT_ALL_SUCCEEDED = 0
EXIT_SOME_DID_NOT = 1
EXIT_INTERRUPTED = 130
GIVE_UP_SECONDS = 1.0
"""How long a stopped run waits for a copy to end at its next chunk."""
REPORT_SECONDS = 0.25
PAGE = 500


class Source(Struct, frozen=True, kw_only=True):
    """A job file to run: its path (or `-`) and the folder for its results. The rest is set for replays."""

    path: str
    results: Path
    payload_root: str | None = None
    name: str | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """How far a run is. `states` counts all jobs of its files; `reading` says that more may be accepted."""

    states: dict[State, int]
    reading: bool
    paused: dict[EndpointName, list[FailureReason]]

    @property
    def accepted(self) -> int:
        return sum(self.states.values())

    @property
    def final(self) -> int:
        return sum(self.states[state] for state in FINAL_STATES)


class Request(Struct, frozen=True, kw_only=True):
    """What a one-shot command does. `report` is called a few times a second and at the end, `stopping` once told to
    stop, `abandoned` where it is told so before anything is taken up: the process ends without another word.
    """

    settings: Settings
    sources: Sequence[Source]
    ledger: Path
    no_wait: bool
    report: Callable[[Progress], None]
    stopping: Callable[[], None]
    abandoned: Callable[[], None]
    ended: Callable[[JobFile, dict[State, int], Path], None]


async def run(request: Request) -> int:
    """Runs the job files; returns the exit status. Raises DispatcherError."""
    with stop_on_signals() as stop:
        try:
            return await _run(request, stop)
        except StoppedError:
            request.abandoned()
            return EXIT_INTERRUPTED


async def _run(request: Request, stop: Stop) -> int:
    async with engine(request.settings, request.ledger, registry := CollectorRegistry(), stop) as made:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(control_socket(request.ledger, partial(answer, made)))
            if request.settings.listen:
                address = await stack.enter_async_context(
                    metrics_server(request.settings.listen, registry, ready=lambda: not stop.requested.is_set())
                )
                log.info("metrics", url=f"http://{address}/metrics")
            files = await _take_up(request, made, stop)
            if len(files) < len(request.sources):
                return EXIT_INTERRUPTED
            await _check_places(made, files, request)
            await _dispatch(made, files, request, stop)
        return await _exit_status(made, files, request, stop)


async def _take_up(request: Request, made: Engine, stop: Stop) -> list[JobFile]:
    """The job files in their order; not all of them where it was told to stop."""
    files: list[JobFile] = []
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as taking:
            tasks.start_soon(_give_up, stop, request, taking)
            for one in request.sources:
                file = await take_up(one.path, made.intaker, payload_root=one.payload_root, name=one.name)
                files.append(file)
        tasks.cancel_scope.cancel()
    return files


async def _give_up(stop: Stop, request: Request, taking: anyio.CancelScope) -> None:
    """Ends what is being taken up. A thread that waits for stdin cannot be told: then the process ends, with nothing at stake yet."""
    await stop.requested.wait()
    request.abandoned()
    taking.cancel()
    await anyio.sleep(GIVE_UP_SECONDS)
    os._exit(EXIT_INTERRUPTED)


async def _check_places(made: Engine, files: Sequence[JobFile], request: Request) -> None:
    """Before anything is sent: the results have a folder of their own, and the jobs an endpoint that is allowed."""
    for file, source in zip(files, request.sources, strict=True):
        other = run_of(source.results)
        if other is not None and other != file.run_id:
            raise UsageError(
                f"{source.results} holds the results of another job file (run {other}): give {file.name} another --output"
            )
        bound = {queue.endpoint for queue in made.unsent_queues(file.file_id)}
        strange = sorted(bound - request.settings.endpoints())
        if strange:
            raise UsageError(
                f"{file.name} was begun with jobs for {', '.join(strange)}: go on with --endpoint (or --allow-endpoint) "
                f"{strange[0]}, or begin anew with another --output"
            )


async def _dispatch(made: Engine, files: Sequence[JobFile], request: Request, stop: Stop) -> None:
    async with anyio.create_task_group() as tasks:
        made.start(tasks, look=not request.no_wait)
        for file in files:
            tasks.start_soon(made.add, file, name=f"intake of {file.name}")
        tasks.start_soon(_report, made, files, request, name="report")
        async with anyio.create_task_group() as first:
            first.start_soon(_work, made, files, request, first.cancel_scope)
            first.start_soon(_until_stopped, stop, request, first.cancel_scope)
        made.stop_lanes()
        with anyio.move_on_after(request.settings.drain_seconds):
            await made.drained()
        tasks.cancel_scope.cancel()
    request.report(_progress(made, files))


async def _until_stopped(stop: Stop, request: Request, scope: anyio.CancelScope) -> None:
    await stop.requested.wait()
    log.info("stopping: no new claims; what is on the wire finishes")
    request.stopping()
    scope.cancel()


async def _work(made: Engine, files: Sequence[JobFile], request: Request, scope: anyio.CancelScope) -> None:
    """Waits for each file's end and publishes its results; then cancels what waits beside it."""
    folders = {file.file_id: source.results for file, source in zip(files, request.sources, strict=True)}
    pending = {file.file_id: file for file in files}
    done = made.submitted if request.no_wait else made.finished
    while pending:
        made.progressed.clear()
        for file in [file for file in pending.values() if done(file.file_id)]:
            del pending[file.file_id]
            if not request.no_wait:
                await _publish(made, file, folders[file.file_id])
        if pending:
            await made.progressed.wait()
    scope.cancel()


async def _publish(made: Engine, file: JobFile, folder: Path) -> None:
    """Writes the file's results, once; what stands of them stays as it is, unless contents are still to be collected."""
    published = file.published_at is not None and whole(folder, file) and not made.settings.collect
    await made.tracker.last_look(file.file_id, published=published)
    if not published:
        await made.results.write(await _as_read(made, file), folder)
        await made.ledger.published(file.file_id, made.clock.now())


async def _as_read(made: Engine, file: JobFile) -> JobFile:
    return await made.ledger.file(file.file_id) or file


async def _report(made: Engine, files: Sequence[JobFile], request: Request) -> None:
    while True:
        request.report(_progress(made, files))
        await anyio.sleep(REPORT_SECONDS)


def _progress(made: Engine, files: Sequence[JobFile]) -> Progress:
    states = dict.fromkeys(State, 0)
    for file in files:
        for state, jobs in made.tally(file.file_id).items():
            states[state] += jobs
    return Progress(states=states, reading=any(not made.taken_in(file.file_id) for file in files), paused=made.paused())


async def _exit_status(made: Engine, files: Sequence[JobFile], request: Request, stop: Stop) -> int:
    clean = True
    for file, source in zip(files, request.sources, strict=True):
        read = await _as_read(made, file)
        tally = made.tally(file.file_id)
        request.ended(read, tally, source.results)
        clean &= not read.rejected and (request.no_wait or tally[State.SUCCEEDED] == sum(tally.values()))
    if stop.requested.is_set() and not all(made.settled(file.file_id, submitted=request.no_wait) for file in files):
        return EXIT_INTERRUPTED
    return EXIT_ALL_SUCCEEDED if clean else EXIT_SOME_DID_NOT


# --- validate ----------------------------------------------------------------------------------------------------------


class Checked(Struct, frozen=True, kw_only=True):
    """A job file's verdict: the sums of its lines."""

    path: str
    lines: int
    rejected: int


@asynccontextmanager
async def validated(settings: Settings, path: str) -> AsyncIterator[tuple[Checked, AsyncIterator[Rejection]]]:
    """Reads a job file into a ledger that is thrown away, and yields its rejections: exactly what `run` would reject."""
    rules = msgspec.structs.replace(line_rules(settings), any_endpoint=not settings.endpoints())
    intake = IntakeSettings(rules=rules, share=0.0, line_max_bytes=settings.line_max_bytes)
    with tempfile.TemporaryDirectory(prefix="dispatcher-validate-") as folder:
        ledger = await open_sqlite(Path(folder) / "ledger.db")
        try:
            intaker = Intaker(
                ledger=ledger,
                clock=SystemClock(),
                random=bytes,
                work=Path(folder) / "work",
                work_max_bytes=settings.work_max_bytes,
            )
            file = await take_up(path, intaker)
            await take_in(file, ledger=ledger, settings=intake, metrics=Metrics(CollectorRegistry()))
            read = await ledger.file(file.file_id) or file

            async def rejections() -> AsyncIterator[Rejection]:
                line = 0
                while page := await ledger.rejections(file.file_id, line, PAGE):
                    for rejection in page:
                        yield rejection
                    line = page[-1].line

            yield Checked(path=path, lines=read.lines, rejected=read.rejected), rejections()
        finally:
            await ledger.aclose()
