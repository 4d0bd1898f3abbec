"""`dispatcher replay`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import msgspec

from dispatcher.admin.control import ask
from dispatcher.cli.options import (
    OF_THE_SERVICE,
    configure_logs,
    existing_ledger,
    ledger_in,
    run_async,
    settings_from,
    settings_options,
)
from dispatcher.cli.run import execute
from dispatcher.errors import UsageError
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.model import State
from dispatcher.oneshot import Source
from dispatcher.replays import REPLAYABLE, make_replay, original, unfinished
from dispatcher.settings import Settings
from dispatcher.sources.folder import Folder
from dispatcher.sources.originals import original_lines

FRONT_BYTES = 1024
"""What a replayed line may be longer than the original: an id and an endpoint put in front."""


@click.command()
@click.argument("file", required=False)
@click.option(
    "--status",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in REPLAYABLE]),
    help="Replay only jobs that ended so; may be given several times. Default: all three.",
)
@click.option("--no-wait", is_flag=True, help="End once every job is submitted; the same command again goes on.")
@settings_options(without=OF_THE_SERVICE)
def replay(file: str | None, states: tuple[str, ...], no_wait: bool, **flags: Any) -> int:
    """Runs the jobs of a finished job file that are dead, failed or expired once more, as FILE.replay-N.

    Results go to OUTPUT/FILE.replay-N/; those of FILE stay as they are. A replay that was interrupted is gone on with.
    With --spool, a service that runs takes the replay up itself; without one it is done here, with results in the spool.
    """
    settings = settings_from(flags)
    configure_logs(settings, quiet=True)
    ledger = existing_ledger(settings, file, flags)
    wanted = [State(state) for state in states] or list(REPLAYABLE)
    spool = _spool(settings, ledger)
    if spool is not None and (said := run_async(_told(ledger, file, wanted))) is not None:
        click.echo(said, err=True)
        return 0
    output = Path(settings.output) if settings.output else (spool.results if spool else ledger.parent)
    source, endpoints = run_async(_prepare(settings, ledger, file, wanted, output))
    if source is None:
        click.echo("nothing to replay", err=True)
        return 0
    widened = msgspec.structs.replace(
        settings,
        allow_endpoint=(*settings.allow_endpoint, *endpoints),
        line_max_bytes=settings.line_max_bytes + FRONT_BYTES,
    )
    return execute(widened, [source], ledger, no_wait=no_wait)


def _spool(settings: Settings, ledger: Path) -> Folder | None:
    """The spool, if the ledger is its service's."""
    ours = settings.spool is not None and ledger == ledger_in(settings, Path(settings.spool))
    return Folder(Path(settings.spool).absolute()) if ours and settings.spool else None


async def _told(ledger: Path, file: str | None, states: list[State]) -> str | None:
    """What the service that owns the ledger did; None where none runs."""
    said = await ask(ledger, {"command": "replay", "file": file, "states": states})
    if said is None:
        return None
    return f"{said['name']}: {said['jobs']} jobs, taken up by the service" if said["name"] else "nothing to replay"


async def _prepare(
    settings: Settings, path: Path, file: str | None, states: list[State], output: Path
) -> tuple[Source | None, list[str]]:
    """The replay's source, and the endpoints that its original's jobs went to."""
    ledger = await open_sqlite(path)
    try:
        of = await original(ledger, file)
        endpoints = sorted({str(queue.endpoint) for queue in ledger.queues() if queue.file_id == of.file_id})
        begun = await unfinished(ledger, of)
        if begun is not None:
            return Source(path=begun.source, results=output / begun.name), endpoints
        if of.published_at is None:
            raise UsageError(f"{of.name} is not finished: give its run command again, then replay what did not succeed")
        spool = _spool(settings, path)
        keep, folder = settings.endpoint is None, path.parent / "replays"
        found = original_lines(spool, of, settings.work_max_bytes) if spool is not None else nullcontext()
        with found as lines:
            made = await make_replay(ledger, of, states, folder, keep_endpoint=keep, lines=lines)
        if not made.jobs:
            made.path.unlink()
            return None, endpoints
        return (
            Source(path=str(made.path), results=output / made.name, payload_root=made.payload_root, name=made.name),
            endpoints,
        )
    finally:
        await ledger.aclose()
