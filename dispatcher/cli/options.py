"""Settings as flags: every field of Settings that a command takes, with its own words as help."""

import asyncio
import os
import re
import sys
import tomllib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click
import uvloop

from dispatcher import logs
from dispatcher.errors import UsageError
from dispatcher.settings import Settings, describe, load

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

OF_THE_SERVICE = (
    *("payload_root", "file_deadline_seconds", "settle_seconds", "scan_seconds"),
    *("retention_seconds", "disk_reserve_bytes"),
)
"""Settings that say nothing to a command that works through job files once."""


def settings_options(*, without: Iterable[str] = ()) -> Callable[[F], F]:
    """Adds a flag for each setting. They arrive as keyword arguments, None or () where not given."""
    left_out = frozenset(without)

    def add(function: F) -> F:
        for setting in reversed(describe()):
            if setting.name not in left_out:
                function = _option(setting.name, setting.flag, setting.description, setting.default)(function)
        return click.option("--config", help="A TOML file with settings; environment and flags win over it.")(function)

    return add


def _option(name: str, flag: str, description: str, default: str) -> Callable[[F], F]:
    value = getattr(Settings(), name)
    shown = description if default == "–" else f"{description} [default: {default.strip('`')}]"
    if isinstance(value, bool):
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=shown)
    return click.option(flag, name, multiple=isinstance(value, tuple), metavar=_kind(name), help=shown)


def _kind(name: str) -> str:
    """What is expected, for the help text; whether it is good is settled by the settings themselves."""
    text = str(Settings.__annotations__[name])
    choices = re.search(r"Literal\[([^\]]*)\]", text)
    if choices:
        return "[" + choices[1].replace("'", "").replace(", ", "|") + "]"
    return next((kind for word, kind in (("int", "N"), ("float", "X")) if re.search(rf"\b{word}\b", text)), "TEXT")


def settings_from(flags: dict[str, Any]) -> Settings:
    """The settings in force: flags over environment over the settings file that `config` names."""
    config = flags.pop("config", None)
    return load(flags, os.environ, _settings_file(config) if config else None)


def _settings_file(path: str) -> dict[str, Any]:
    try:
        # Some editors begin a text with a byte order mark, which TOML does not know.
        return tomllib.loads(Path(path).read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings file {path} is no TOML: {error}") from error


def configure_logs(settings: Settings, *, quiet: bool = False) -> None:
    """Logs go to stderr: readable on a terminal, JSON elsewhere, unless set. `quiet` leaves warnings only."""
    fmt = settings.log_format or ("text" if sys.stderr.isatty() else "json")
    level = "warning" if quiet and settings.log_level == "info" else settings.log_level
    logs.configure(fmt, level, sys.stderr)


def ledger_in(settings: Settings, output: Path) -> Path:
    """Where the ledger is: as set, else in the output folder."""
    return Path(settings.ledger) if settings.ledger else output / "ledger.db"


def existing_ledger(settings: Settings, file: str | None, flags: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """The ledger that `--ledger`, `--output`, `--spool` or a job file's name points to; UsageError where there is none.

    `flags` are those that were given: what a flag says comes before what a run of the file left beside it.
    """
    if file is None and not (settings.ledger or settings.output or settings.spool):
        raise UsageError("which ledger? Name the job file, or set --output, --spool or --ledger")
    path = ledger_in(settings, _ledger_folder(settings, file, flags))
    if not path.exists():
        raise UsageError(
            f"there is no ledger {path}: nothing was run there yet, or --output, --spool or --ledger points elsewhere"
        )
    return path


def _ledger_folder(settings: Settings, file: str | None, flags: Mapping[str, Any]) -> Path:
    beside = f"{file}.results" if file is not None else None
    left = beside if beside and Path(beside).exists() else None
    folders = (flags.get("output"), flags.get("spool"), settings.output, left, settings.spool, beside)
    return Path(next(filter(None, folders), ""))


def service_ledger(settings: Settings) -> Path:
    """The ledger that `--ledger`, `--output` or `--spool` points to."""
    return existing_ledger(settings, None)


SWITCH_SECONDS = 0.001
"""How long a thread that wants to run waits for one that does. At full load a fifth of the usual value halves the slowest
answers of the admin server, and costs nothing that could be measured."""


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine on uvloop."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
