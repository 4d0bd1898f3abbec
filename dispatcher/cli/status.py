"""`dispatcher status`."""

import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from dispatcher.admin.control import ask
from dispatcher.cli.options import configure_logs, existing_ledger, run_async, settings_from
from dispatcher.errors import UsageError
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.results import Results
from dispatcher.service import SystemClock
from dispatcher.status import FileStatus, JobStatus, Status, jobs_named, overview


@click.command()
@click.argument("file", required=False)
@click.option("--output", help="The output folder of the run to look at.")
@click.option("--ledger", help="The ledger to look at.")
@click.option("--job", "job", metavar="ID", help="Where this job is.")
@click.option("--partial", metavar="DIR", help="Write the results that are final so far to DIR/<name>/.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def status(
    file: str | None, output: str | None, ledger: str | None, job: str | None, partial: str | None, as_json: bool
) -> int:
    """Says where job files and jobs are, whether a process works on them or not."""
    settings = settings_from({"output": output, "ledger": ledger})
    configure_logs(settings, quiet=True)
    path = existing_ledger(settings, file)
    if partial is not None:
        for folder in run_async(_partial(path, Path(partial).absolute())):
            click.echo(folder)
        return 0
    if job is not None:
        return _show_job(job, run_async(_jobs(path, job)), as_json=as_json)
    _show(run_async(_overview(path)), as_json=as_json)
    return 0


async def _overview(ledger: Path) -> Status:
    said = await ask(ledger, {"command": "status"})
    if said is not None:
        return msgspec.convert(said, Status)
    opened = await open_sqlite(ledger)
    try:
        return await overview(opened, time.time(), None)
    finally:
        await opened.aclose()


async def _jobs(ledger: Path, id: str) -> list[JobStatus]:
    said = await ask(ledger, {"command": "status", "job": id})
    if said is not None:
        return msgspec.convert(said, list[JobStatus])
    opened = await open_sqlite(ledger)
    try:
        return await jobs_named(opened, id)
    finally:
        await opened.aclose()


async def _partial(ledger: Path, folder: Path) -> list[str]:
    said = await ask(ledger, {"command": "partial", "folder": str(folder)})
    if said is not None:
        return msgspec.convert(said, list[str])
    opened = await open_sqlite(ledger)
    try:
        results = Results(opened, SystemClock(), None, 0)
        files = await opened.files()
        for file in files:
            await results.write(file, folder / file.name)
        return [str(folder / file.name) for file in files]
    finally:
        await opened.aclose()


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


def _show(status: Status, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(status).decode())
        return
    table = Table(box=None, pad_edge=False)
    for name in ("job file", "lines", "rejected", "accepted", "final", "outstanding", "age", "ETA", "results"):
        table.add_column(name, justify="left" if name in ("job file", "results") else "right")
    for file in status.files:
        table.add_row(*_cells(file))
    console = Console()
    console.print(table)
    for lane in status.lanes:
        paused = f"; paused: {', '.join(lane.paused)}" if lane.paused else ""
        oldest = f", the oldest for {lane.oldest_age_seconds:.0f} s" if lane.outstanding else ""
        console.print(f"{lane.endpoint}: {lane.outstanding} outstanding{oldest}{paused}", highlight=False)
    console.print("a process works on this" if status.owner else "no process works on this", highlight=False)


def _cells(file: FileStatus) -> list[str]:
    final = {state: getattr(file, state) for state in ("succeeded", "failed", "expired", "dead", "cancelled")}
    said = ", ".join(f"{count} {state}" for state, count in final.items() if count) or "0"
    eta = f"{file.eta_seconds:.0f} s" if file.eta_seconds is not None else "–"
    reading = "+" if file.reading else ""
    numbers = [f"{file.lines}{reading}", str(file.rejected), str(file.accepted), said, str(file.outstanding)]
    return [file.name, *numbers, f"{file.age_seconds:.0f} s", eta, "written" if file.published_at else "–"]
