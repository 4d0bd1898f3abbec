"""`dispatcher cancel`, `dispatcher lane`: an operator's hand on a process that works."""

import time
from pathlib import Path
from typing import Any

import click
import msgspec

from dispatcher.admin.control import ask
from dispatcher.cli.options import configure_logs, run_async, service_ledger, settings_from
from dispatcher.errors import UsageError
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.service import HELD_SECONDS


def _where(function: Any) -> Any:
    for flag, text in (
        ("--config", "The service's settings file."),
        ("--spool", "The service's folder."),
        ("--output", "The output folder of a run."),
        ("--ledger", "The ledger."),
    ):
        function = click.option(flag, help=text)(function)
    return function


@click.command()
@click.argument("file")
@_where
def cancel(file: str, **where: Any) -> int:
    """Ends what is not yet submitted of the job file FILE (its name or run id) as `cancelled`; the rest gets its results."""
    settings = settings_from(where)
    configure_logs(settings, quiet=True)
    jobs = run_async(_cancel(service_ledger(settings), file))
    click.echo(f"{jobs} jobs cancelled", err=True)
    return 0


@click.command()
@click.argument("endpoint")
@click.option("--pause/--resume", "held", default=None, help="Claim nothing more for it until it is resumed; or go on.")
@click.option("--max-in-flight", type=float, help="Attempts on the wire at once; not above what it was started with.")
@click.option("--min-in-flight", type=float, help="The window never shrinks below this.")
@click.option("--requests-per-second", type=float, help="0 takes the limit away.")
@click.option("--bytes-per-second", type=float, help="0 takes the limit away.")
@_where
def lane(endpoint: str, held: bool | None, **given: Any) -> int:
    """Pauses or resumes the lane of ENDPOINT, or changes its limits, while the service runs. Prints the limits in force."""
    where = {name: given.pop(name) for name in ("config", "spool", "output", "ledger")}
    settings = settings_from(where)
    configure_logs(settings, quiet=True)
    ledger = service_ledger(settings)
    limits = {name: (None if value == 0 else value) for name, value in given.items() if value is not None}
    if held is not None:
        run_async(_told(ledger, {"command": "lane", "endpoint": endpoint, "held": held}))
    said = run_async(_told(ledger, {"command": "lane", "endpoint": endpoint, "limits": limits}))
    click.echo(msgspec.json.encode(said).decode())
    return 0


async def _told(ledger: Path, request: dict[str, Any]) -> Any:
    said = await ask(ledger, request)
    if said is None:
        raise UsageError(f"no process works on {ledger}")
    return said


async def _cancel(ledger: Path, file: str) -> int:
    said = await ask(ledger, {"command": "cancel", "file": file})
    if said is not None:
        return int(said)
    opened = await open_sqlite(ledger, patience_seconds=HELD_SECONDS)
    try:
        found = [
            known for known in await opened.files() if file in (known.name, known.run_id) and not known.published_at
        ]
        if len(found) != 1:
            raise UsageError(f"{len(found)} unfinished job files are named {file!r} in {ledger}")
        return await opened.cancel(found[0].file_id, time.time())
    finally:
        await opened.aclose()
