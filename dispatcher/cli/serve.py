"""`dispatcher serve`."""

from pathlib import Path
from typing import Any

import click

from dispatcher.cli.options import configure_logs, run_async, settings_from, settings_options
from dispatcher.errors import UsageError
from dispatcher.serving import serve as serve_until_stopped


@click.command()
@settings_options(without=("output",))
def serve(**flags: Any) -> int:
    """Dispatches every job file that is dropped into SPOOL/inbox, and puts its results into SPOOL/results, until SIGTERM."""
    settings = settings_from(flags)
    configure_logs(settings)
    if settings.payload_root and not Path(settings.payload_root).is_dir():
        raise UsageError(
            f"the folder of payloads {settings.payload_root} is no folder that is there: make or mount it, or correct "
            "payload_root (--payload-root)"
        )
    return run_async(serve_until_stopped(settings))
