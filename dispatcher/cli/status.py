"""`dispatcher status`."""

import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial as partial_of
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import click
import msgspec
from msgspec import structs
from rich.console import Console
from rich.table import Table

from dispatcher.admin.control import ask
from dispatcher.cli.options import configure_logs, existing_ledger, run_async, settings_from
from dispatcher.clock import SystemClock
from dispatcher.errors import LedgerHeldError, UsageError
from dispatcher.interfaces import Ledger
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.model import RunId
from dispatcher.partials import Partial, write_partial
from dispatcher.results import Results, run_of
from dispatcher.settings import Settings
from dispatcher.sources.names import marked
from dispatcher.sources.unreadable import unreadable
from dispatcher.status import DiskLow, FileStatus, JobStatus, LaneBounds, PausedParts, Status, jobs_named, overview

T = TypeVar("T")

PLAIN_WIDTH = 200
"""Characters in a line where no terminal says how many there are: enough to cut nothing off."""
OWNER_SECONDS = 5.0
"""How long a process may own the ledger without answering: it starts, recovers, or ends."""
FINISHED_SHOWN = 20
"""As text, so many of the job files whose results stand: a table of 21,000 rows takes 10 s to set, and nobody reads it."""


@click.command()
@click.argument("file", required=False)
@click.option("--output", help="The output folder of the run to look at.")
@click.option("--ledger", help="The ledger to look at.")
@click.option("--spool", help="The service's folder to look at.")
@click.option("--job", "job", metavar="ID", help="Where this job is.")
@click.option("--partial", metavar="DIR", help="Write the results that are final so far to DIR/<name>/.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, of every job file.")
@click.option("--watch", is_flag=True, help="Again every --interval seconds, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds, for --watch.")
def status(
    file: str | None,
    output: str | None,
    ledger: str | None,
    spool: str | None,
    job: str | None,
    partial: str | None,
    as_json: bool,
    watch: bool,
    interval: float,
) -> int:
    """Says where job files and jobs are, whether a process works on them or not: all, or FILE (its name or run id) alone."""
    where = {"output": output, "ledger": ledger, "spool": spool}
    settings = settings_from(where)
    configure_logs(settings, quiet=True)
    path = existing_ledger(settings, file, where)
    name = None if file is None else "stdin" if file == "-" else Path(file).name
    if partial is not None:
        _show_partial(settings, run_async(_partial(path, name, Path(partial).absolute())))
        return 0
    if job is not None:
        return _show_job(job, run_async(_jobs(path, job, name)), as_json=as_json)
    look = partial_of(_overview, path, name, Path(settings.spool) if settings.spool else None)
    show = _show_json if as_json else partial_of(_show, every_file=name is not None, clear=watch)
    run_async(_watch(look, show, interval if watch else None))
    return 0


async def _watch(look: Callable[[], Awaitable[Status]], show: Callable[[Status], None], interval: float | None) -> None:
    """Shows it once; with an interval for ever."""
    while True:
        show(await look())
        if interval is None:
            return
        await anyio.sleep(interval)


async def _overview(ledger: Path, name: str | None, spool: Path | None) -> Status:
    """Of one file, if it is named, and what the spool alone knows."""
    failed = await anyio.to_thread.run_sync(unreadable, spool) if spool else []
    asked = [one for one in failed if name in (one.name, one.run_id)]
    request = {"command": "status", "file": None if asked else name}
    said = await _asked(
        ledger, request, Status, lambda opened: overview(opened, time.time(), None, None if asked else name)
    )
    if asked:
        return structs.replace(said, files=[], lanes=[], unreadable=asked)
    known = {file.run_id for file in said.files}
    return structs.replace(said, unreadable=[one for one in failed if name is None and one.run_id not in known])


async def _jobs(ledger: Path, id: str, name: str | None) -> list[JobStatus]:
    request = {"command": "status", "job": id, "file": name}
    return await _asked(ledger, request, list[JobStatus], lambda opened: jobs_named(opened, id, name))


async def _partial(ledger: Path, name: str | None, folder: Path) -> list[Partial]:
    async def write(opened: Ledger) -> list[Partial]:
        return await write_partial(opened, Results(opened, SystemClock(), None, 0), name, folder)

    return await _asked(ledger, {"command": "partial", "file": name, "folder": str(folder)}, list[Partial], write)


def _show_partial(settings: Settings, written: list[Partial]) -> None:
    for one in written:
        if one.folder is not None:
            click.echo(one.folder)
        else:
            click.echo(f"{one.name} (run {one.run_id}) is finished: {_where(settings, one)}", err=True)


def _where(settings: Settings, finished: Partial) -> str:
    titles = (finished.name, marked(finished.name, RunId(finished.run_id)))
    folders = [Path(settings.spool) / "results" / title for title in titles] if settings.spool else []
    standing = next((folder for folder in folders if run_of(folder) == finished.run_id), None)
    return f"its results stand in {standing}" if standing else "its results stand in its output folder"


async def _asked(path: Path, request: dict[str, Any], kind: type[T], read: Callable[[Ledger], Awaitable[T]]) -> T:
    """The owner's answer, or what the ledger itself says. An owner that starts or ends does not answer: it is asked again."""
    end = time.monotonic() + OWNER_SECONDS
    while True:
        said = await ask(path, request)
        if said is not None:
            return msgspec.convert(said, kind)
        try:
            ledger = await open_sqlite(path)
        except LedgerHeldError:
            if time.monotonic() > end:
                raise
            await anyio.sleep(0.1)
            continue
        try:
            return await read(ledger)
        finally:
            await ledger.aclose()


def _show_job(id: str, found: list[JobStatus], *, as_json: bool) -> int:
    if not found:
        raise UsageError(f"no job has the id {id!r} here")
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return 0
    for job in found:
        for name, value in msgspec.to_builtins(job).items():
            if value is not None:
                click.echo(f"{name + ':':18} {value}")
        click.echo()
    return 0


def _show_json(status: Status) -> None:
    click.echo(msgspec.json.encode(status).decode())  # flushes, for whoever reads a --watch


def _show(status: Status, *, every_file: bool, clear: bool) -> None:
    if clear:
        click.clear()  # on a terminal alone
    files = status.files if every_file else _unfinished_and_latest(status.files)
    table = Table(box=None, pad_edge=False)
    for name in (
        "job file",
        "lines",
        "rejected",
        "accepted",
        "final",
        "outstanding",
        "age",
        "jobs/s",
        "ETA",
        "results",
    ):
        table.add_column(name, justify="left" if name in ("job file", "results") else "right")
    for file in files:
        table.add_row(*_cells(file))
    # A file is named as its owner likes: brackets and colons in it are no orders to the console.
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, emoji=False)
    console.print(table)
    if len(files) < len(status.files):
        console.print(_left_out(len(status.files) - len(files)), highlight=False)
    for lane in status.lanes:
        paused = f"; paused: {_paused(lane.paused_parts)}" if lane.paused and lane.paused_parts else ""
        oldest = f", the oldest for {lane.oldest_age_seconds:.0f} s" if lane.outstanding else ""
        bounds = f"; {_bounds(lane.bounds)}" if lane.bounds else ""
        console.print(f"{lane.endpoint}: {lane.outstanding} outstanding{oldest}{paused}{bounds}", highlight=False)
    for one in status.unreadable:
        console.print(f"{one.name} could not be read, see failed/: {one.reason}", highlight=False)
    if status.disk_low is not None:
        console.print(_low(status.disk_low), highlight=False)
    console.print("a process works on this" if status.owner else "no process works on this", highlight=False)


def _unfinished_and_latest(files: list[FileStatus]) -> list[FileStatus]:
    """All whose results do not stand yet, and those whose results stand since the shortest time, in their order."""
    finished = sorted((file.published_at, place) for place, file in enumerate(files) if file.published_at is not None)
    left_out = {place for _, place in finished[:-FINISHED_SHOWN]}
    return [file for place, file in enumerate(files) if place not in left_out]


def _left_out(files: int) -> str:
    return f"finished job files left out: {files}; `--json` shows them all, `status FILE` one"


def _low(disk: DiskLow) -> str:
    return (
        f"nothing is taken from the inbox: {disk.free_bytes} bytes are free on the spool's disk, less than "
        f"disk_reserve_bytes, {disk.reserve_bytes}; it goes on at {disk.resume_bytes}"
    )


def _paused(parts: PausedParts) -> str:
    by_s3 = [f"{reason} (by S3)" for reason in parts.s3_route]
    looks = [f"{reason} (looks for results)" for reason in parts.results]
    return ", ".join([*parts.lane, *by_s3, *looks])


def _bounds(now: LaneBounds) -> str:
    window = (
        f"{now.in_flight} in flight, window {now.in_flight_window:g} ({now.min_in_flight:g} to {now.max_in_flight:g})"
    )
    requests = f"{_rate(now.requests_per_second)} requests/s, {_rate(now.bytes_per_second)} bytes/s"
    most = "auto" if now.max_outstanding is None else "set"
    return f"{window}; {requests}; {now.submitted} wait for a result, limit {now.outstanding_limit} ({most})"


def _rate(limit: float | None) -> str:
    return "any number of" if limit is None else f"at most {limit:g}"


def _cells(file: FileStatus) -> list[str]:
    final = {state: getattr(file, state) for state in ("succeeded", "failed", "expired", "dead", "cancelled")}
    said = ", ".join(f"{count} {state}" for state, count in final.items() if count) or "0"
    rate = f"{file.jobs_per_second:.1f}" if file.jobs_per_second is not None else "–"
    eta = f"{file.eta_seconds:.0f} s" if file.eta_seconds is not None else "–"
    reading = "+" if file.reading else ""
    numbers = [f"{file.lines}{reading}", str(file.rejected), str(file.accepted), said, str(file.outstanding)]
    return [file.name, *numbers, f"{file.age_seconds:.0f} s", rate, eta, "written" if file.published_at else "–"]
