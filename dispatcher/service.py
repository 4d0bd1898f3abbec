"""The composition root: opens every part in order, wires them, closes them backwards.

    ledger ─ recovered: what was claimed when the last process ended is in doubt
    AWS clients ─ transports, completions
    lanes, one per endpoint ─ claim, send, record          tracker ─ finds results
    observers ─ a durable change of the ledger wakes whoever it concerns: a lane, the tracker, whoever waits for a file

Any part that dies takes the process down: the ledger is made for that, and half a dispatcher loses time, not jobs.
"""

import gc
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import structlog
from prometheus_client import CollectorRegistry

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.aws.deadlines import Deadline
from dispatcher.completions.s3 import S3Completions
from dispatcher.engine import Engine
from dispatcher.formats.payloads import empty_spill
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.metrics import Metrics
from dispatcher.model import (
    EndpointName,
)
from dispatcher.settings import Settings
from dispatcher.signals import Stop, unless_stopped
from dispatcher.transports.choosing import Transports, transports
from dispatcher.transports.staging import SdkStager

log = structlog.get_logger(__name__)

HELD_SECONDS = 2.0
"""How long a start waits for a ledger that another process holds: longer than a `status` that reads it by itself."""


@asynccontextmanager
async def engine(
    settings: Settings, ledger_path: Path, registry: CollectorRegistry, stop: Stop | None = None
) -> AsyncIterator[Engine]:
    """Opens ledger and clients, recovers, and yields the wired parts; they do not run yet.

    Raises StoppedError where a stop is requested while the credentials are still waited for.
    """
    metrics = Metrics(registry, [EndpointName(name) for name in sorted(settings.endpoints())])
    async with AsyncExitStack() as stack:
        ledger = await open_sqlite(
            ledger_path, on_commit=lambda seconds, _: metrics.committed(seconds), patience_seconds=HELD_SECONDS
        )
        stack.push_async_callback(ledger.aclose)
        endpoints = sorted(
            {EndpointName(name) for name in settings.endpoints()} | {q.endpoint for q in ledger.queues()}
        )
        for endpoint in endpoints:
            metrics.add_endpoint(endpoint)
        async with unless_stopped(stop or Stop()):
            opened = await stack.enter_async_context(clients(_client_settings(settings, len(endpoints))))
        log.info("AWS endpoints", region=opened.region, **{k.replace("-", "_"): v for k, v in opened.endpoints.items()})
        work = work_folder(ledger_path)
        await anyio.to_thread.run_sync(_make_work, work, {file.data_path for file in await ledger.files()})
        calls, deadline = _calls(metrics), Deadline(base_seconds=settings.attempt_seconds)
        most = _most_in_flight(settings, len(endpoints))
        chosen = await stack.enter_async_context(
            transports_of(settings, opened, connections=most, deadline=deadline, calls=calls)
        )
        for operation, why in chosen.unfit.items():
            log.warning("the SDK sends these requests itself, at a higher cost", operation=operation, why=why)
        made = Engine(
            settings,
            ledger=ledger,
            wal_bytes=ledger.wal_bytes,
            metrics=metrics,
            invoker=chosen.invoker,
            stager=chosen.stager,
            completions=S3Completions(opened.s3, deadline=deadline, calls=calls),
            endpoints=endpoints,
            work=work,
        )
        stack.callback(made.close)
        await made.recover()
        _spare_the_collector()
        yield made


def _calls(metrics: Metrics) -> Calls:
    return Calls(observe=metrics.requested, began=metrics.request_began, over=metrics.request_over)


def _spare_the_collector() -> None:
    """What was opened stays: a hundred thousand objects, most of them the SDK's models of its services. Looked through twice
    a second at full load, they stopped the event loop for 75 ms each time, up to 100 ms; without them it is under 10 ms."""
    gc.freeze()


def transports_of(
    settings: Settings, opened: Clients, *, connections: int, deadline: Deadline, calls: Calls = QUIET
) -> AbstractAsyncContextManager[Transports]:
    """What hands payloads over under these settings. UsageError for a staging prefix that is none."""
    staging = _staging(settings, opened, deadline, calls)
    return transports(settings.client, opened, staging, connections=connections, deadline=deadline, calls=calls)


def _staging(settings: Settings, opened: Clients, deadline: Deadline, calls: Calls) -> SdkStager | None:
    if settings.staging is None:
        return None
    tags = dict(tag.split("=", 1) for tag in settings.staging_tags)
    if settings.staged_inputs == "lifecycle":
        tags |= {"sagemaker-dispatcher": "staged-input"}
    return SdkStager(
        opened.s3,
        settings.staging,
        sse_kms_key_id=settings.staging_kms_key,
        tags=tags,
        expected_bucket_owner=settings.bucket_owner,
        deadline=deadline,
        calls=calls,
    )


def _client_settings(settings: Settings, endpoints: int) -> ClientSettings:
    most = _most_in_flight(settings, endpoints)
    return ClientSettings(max_in_flight=most, expect_continue=settings.expect_continue)


def _most_in_flight(settings: Settings, endpoints: int) -> int:
    """Every lane may have all its attempts on the wire, and the tracker looks beside them."""
    return settings.max_in_flight * max(1, endpoints) + 64


def work_folder(ledger_path: Path) -> Path:
    """Where a ledger's owner keeps its copies of job files: a folder of this ledger's own, since it is tidied at start."""
    return ledger_path.absolute().with_name(f"{ledger_path.name}.work")


def _make_work(work: Path, copies: Collection[str]) -> None:
    """Makes the folder, without what a process left that did not live to put its copy into the ledger."""
    (work / "spill").mkdir(parents=True, exist_ok=True)
    empty_spill(str(work / "spill"))
    for path in work.iterdir():
        if path.is_file() and str(path) not in copies:
            path.unlink()
