"""The command `dispatcher`: its subcommands, and the one place where an error becomes a message and an exit status."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import click

from dispatcher.cli.init import go_on_behind_an_init
from dispatcher.errors import DispatcherError

DISTRIBUTION = "sagemaker-dispatcher"

COMMANDS = {
    "demo": "dispatcher.cli.demo:demo",
    "run": "dispatcher.cli.run:run",
    "serve": "dispatcher.cli.serve:serve",
    "validate": "dispatcher.cli.validate:validate",
    "check": "dispatcher.cli.check:check",
    "status": "dispatcher.cli.status:status",
    "replay": "dispatcher.cli.replay:replay",
    "cancel": "dispatcher.cli.operate:cancel",
    "lane": "dispatcher.cli.operate:lane",
    "sandbox": "dispatcher.sandbox.__main__:main",
}
"""Where each command is; only the one that is asked for is imported, which halves the time until it starts."""

EXIT_CODES = """\b
Exit status:
  0    every job succeeded (run --no-wait: every job is submitted)
  1    some jobs did not succeed, or lines were rejected
  2    usage or settings, or a job file that changed or cannot be read
  3    another process holds the ledger, or serves the spool
  4    the ledger or its disk failed
  5    the ledger is damaged
  129  ended at once by a second SIGHUP; the same command goes on
  130  interrupted; the same command goes on
  143  ended at once by a second SIGTERM; the same command goes on
"""


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown (run from a source tree that was never installed)"


class _Commands(click.Group):
    """The group of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found


@click.group(
    cls=_Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(_version(), prog_name="dispatcher")
def cli() -> None:
    """Dispatches inference jobs to Amazon SageMaker AI async endpoints, durably, and brings their results back."""


def main() -> None:
    """Runs the command line."""
    go_on_behind_an_init()
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BaseExceptionGroup as group:
        status = _report(group)
    except DispatcherError as error:
        status = _say(error)
    sys.exit(status if isinstance(status, int) else 0)


def _report(group: BaseExceptionGroup[BaseException]) -> int:
    """Several parts may fail of one cause; what was foreseen is said, anything else is a bug and shown as it is."""
    foreseen, unforeseen = group.split(DispatcherError)
    if foreseen is None or unforeseen is not None:
        raise group
    errors = list(_flat(foreseen))
    return max(_say(error) for error in dict.fromkeys(errors))


def _flat(group: BaseExceptionGroup[DispatcherError]) -> list[DispatcherError]:
    flat: list[DispatcherError] = []
    for error in group.exceptions:
        flat += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return flat


def _say(error: DispatcherError) -> int:
    click.echo(f"dispatcher: {error}", err=True)
    return error.exit_status
