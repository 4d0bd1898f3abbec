"""`dispatcher validate`."""

import sys
from typing import Any

import click
import msgspec

from dispatcher.cli.options import OF_THE_SERVICE, configure_logs, run_async, settings_from, settings_options
from dispatcher.model import Rejection
from dispatcher.oneshot import validated
from dispatcher.settings import Settings


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each bad line, and one for each file.")
@settings_options(without=(*OF_THE_SERVICE, "ledger", "output", "listen"))
def validate(files: tuple[str, ...], as_json: bool, **flags: Any) -> int:
    """Names every line of job files that `run` would reject, and why; sends nothing."""
    settings = settings_from(flags)
    configure_logs(settings, quiet=True)
    rejected = sum([run_async(_validate(settings, file, as_json=as_json)) for file in files])
    return 1 if rejected else 0


async def _validate(settings: Settings, file: str, *, as_json: bool) -> int:
    async with validated(settings, file) as (checked, rejections):
        async for rejection in rejections:
            _say(file, rejection, as_json=as_json)
    if as_json:
        click.echo(msgspec.json.encode(checked).decode())
    else:
        sys.stdout.flush()
        good = checked.lines - checked.rejected
        click.echo(f"{file}: {checked.lines} lines, {good} good, {checked.rejected} bad", err=True)
    return checked.rejected


def _say(file: str, rejection: Rejection, *, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{file}:{rejection.line}: {rejection.reason}: {rejection.message}")
        return
    said = {"file": file, "line": rejection.line, "id": rejection.id}
    error = {"code": rejection.reason, "message": rejection.message}
    click.echo(msgspec.json.encode({**said, "status": "rejected", "error": error}).decode())
