"""`dispatcher run`."""

from pathlib import Path
from typing import Any

import click

from dispatcher.cli.display import Display
from dispatcher.cli.options import OF_THE_SERVICE, configure_logs, ledger_in, run_async, settings_from, settings_options
from dispatcher.errors import UsageError
from dispatcher.oneshot import Request, Source
from dispatcher.oneshot import run as run_files
from dispatcher.settings import Settings


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--no-wait", is_flag=True, help="End once every job is submitted; the same command without it collects.")
@settings_options(without=OF_THE_SERVICE)
def run(files: tuple[str, ...], no_wait: bool, **flags: Any) -> int:
    """Sends the jobs of job files (JSON lines, also .gz and .zst; - is stdin), waits, and writes their results.

    The same command again goes on where it stopped, however it stopped.
    """
    settings = settings_from(flags)
    configure_logs(settings, quiet=True)
    if not settings.endpoints():
        raise UsageError("which endpoint? Set --endpoint NAME; or, if every line names one, --allow-endpoint")
    output = output_of(settings, files)
    given, ledger = sources(files, output), ledger_in(settings, output)
    if not ledger.exists():
        _check_exist(files)
    return execute(settings, given, ledger, no_wait=no_wait)


def execute(settings: Settings, given: list[Source], ledger: Path, *, no_wait: bool) -> int:
    """Runs the sources with a display; the exit status."""
    with Display(no_wait=no_wait) as display:
        request = Request(
            settings=settings,
            sources=given,
            ledger=ledger,
            no_wait=no_wait,
            report=display.report,
            stopping=display.stopping,
            abandoned=display.abandoned,
            ended=display.ended,
        )
        return run_async(run_files(request))


def _check_exist(files: tuple[str, ...]) -> None:
    """Before anything is made: a misspelt name shall not leave a folder behind."""
    absent = [file for file in files if file != "-" and not Path(file).exists()]
    if absent:
        raise UsageError(f"no such job file: {', '.join(absent)}")


def output_of(settings: Settings, files: tuple[str, ...]) -> Path:
    """The output folder: as set, else beside the one job file."""
    if settings.output:
        return Path(settings.output)
    if len(files) > 1:
        raise UsageError("several job files need --output DIR; each gets its results in DIR/<name>/")
    return Path("stdin.results" if files[0] == "-" else f"{files[0]}.results")


def sources(files: tuple[str, ...], output: Path) -> list[Source]:
    """Where each file's results go: one alone directly into the output folder, several each into a folder of its name."""
    doubled = {file for file in files if files.count(file) > 1}
    if doubled:
        raise UsageError(f"{', '.join(sorted(doubled))} is given more than once")
    if len(files) == 1:
        return [Source(path=files[0], results=output)]
    names = [Path(file).name if file != "-" else "stdin" for file in files]
    same = {name for name in names if names.count(name) > 1}
    if same:
        raise UsageError(
            f"several job files are named {', '.join(sorted(same))}: run them with an --output each, or rename"
        )
    return [Source(path=file, results=output / name) for file, name in zip(files, names, strict=True)]
