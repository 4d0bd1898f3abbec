"""`dispatcher cancel`, `dispatcher lane`: an operator's hand on what is dispatched; a cancel needs no process that works."""

import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from dispatcher.admin.control import ask
from dispatcher.cli.options import configure_logs, run_async, service_ledger, settings_from
from dispatcher.errors import UsageError
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.service import HELD_SECONDS
from dispatcher.status import Cancelled, unfinished_named

F = TypeVar("F", bound=Callable[..., Any])

NONE = "none"
"""Stands for a limit that is taken away, since None is a flag that was not given."""


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
    done = run_async(_cancel(service_ledger(settings), file))
    rest = " so far; what is still read of it ends cancelled as well" if done.reading else ""
    click.echo(f"{done.jobs} jobs cancelled{rest}", err=True)
    return 0


def _above_0(word: str | None = None, *, whole: bool = False) -> Callable[[str], Any]:
    """Reads a finite number above 0; `word`, if any, takes the limit away."""
    kind = "a whole number above 0" if whole else "a number above 0"
    wanted = f"{kind}, or `{word}`" if word else kind

    def read(text: str) -> Any:
        if text == word:
            return NONE
        try:
            number = int(text) if whole else float(text)
        except ValueError:
            number = 0
        if not 0 < number < inf:
            raise click.BadParameter(f"{text!r} is not {wanted}")
        return number

    return read


def _limit(flag: str, metavar: str, read: Callable[[str], Any], text: str) -> Callable[[F], F]:
    return click.option(flag, type=read, metavar=metavar, help=text)


@click.command()
@click.argument("endpoint")
@click.option("--pause/--resume", "held", default=None, help="Claim nothing more for it until it is resumed; or go on.")
@_limit("--max-in-flight", "N", _above_0(), "Attempts on the wire at once; not above what it was started with.")
@_limit("--min-in-flight", "N", _above_0(), "The window never shrinks below this.")
@_limit(
    "--max-outstanding",
    "N|auto",
    _above_0("auto", whole=True),
    "Jobs that may wait for a result; `auto`: as many as the model gets done within the TTL.",
)
@_limit("--requests-per-second", "X|none", _above_0("none"), "`none` takes the limit away.")
@_limit("--bytes-per-second", "X|none", _above_0("none"), "`none` takes the limit away.")
@_where
def lane(endpoint: str, held: bool | None, **given: Any) -> int:
    """Pauses or resumes the lane of ENDPOINT, or changes its limits, while the service runs. Prints the limits in force.

    Either all that is asked for is done or nothing. It lasts as long as the process: a restart begins with its settings, and
    with no lane paused.
    """
    where = {name: given.pop(name) for name in ("config", "spool", "output", "ledger")}
    settings = settings_from(where)
    configure_logs(settings, quiet=True)
    limits = {name: (None if value == NONE else value) for name, value in given.items() if value is not None}
    request = {"command": "lane", "endpoint": endpoint, "held": held, "limits": limits}
    click.echo(msgspec.json.encode(run_async(_told(service_ledger(settings), request))).decode())
    return 0


async def _told(ledger: Path, request: dict[str, Any]) -> Any:
    said = await ask(ledger, request)
    if said is None:
        raise UsageError(f"no process works on {ledger}")
    return said


async def _cancel(ledger: Path, file: str) -> Cancelled:
    said = await ask(ledger, {"command": "cancel", "file": file})
    if said is not None:
        return msgspec.convert(said, Cancelled)
    opened = await open_sqlite(ledger, patience_seconds=HELD_SECONDS)
    try:
        found = unfinished_named(await opened.files(), file)
        return Cancelled(await opened.cancel(found.file_id, time.time()), not found.intake_done)
    finally:
        await opened.aclose()
