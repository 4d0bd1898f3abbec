"""The sample of a settings file: every setting with what it means, its unit, and the reason for its default."""

import textwrap
from typing import Any

import msgspec

from dispatcher.settings import Described, Settings, describe

WIDTH = 118
SET = ("endpoint", "spool", "staging")
"""What a service is hardly started without: these stand in the sample with an example, the rest behind a `#`."""

_HEAD = """\
#:schema ./settings.schema.json
# Settings for `dispatcher serve --config dispatcher.toml`. Every setting there is; a line that begins with `# name =`
# shows the default, or an example where there is none. Environment variables (DISPATCHER_MAX_IN_FLIGHT) and flags
# (--max-in-flight) win over this file. Keys of AWS never stand here: they come by the SDK's own chain.
# `dispatcher check --config dispatcher.toml` says whether all of it works.
#
# Written by `python -m dispatcher.schemas sample`.
"""


def sample() -> str:
    """The text of `deploy/dispatcher.toml`."""
    return _HEAD + "".join(f"\n{_entry(setting)}" for setting in describe())


def _entry(setting: Described) -> str:
    default = getattr(Settings(), setting.name)
    given = setting.example if default in (None, ()) else default
    what = f"{setting.description} Unit: {setting.unit}. {_reason(setting, default)}"
    comment = textwrap.fill(what, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    line = f"{setting.name} = {toml_value(given)}"
    return f"{comment}\n{line}\n" if setting.name in SET else f"{comment}\n# {line}\n"


def _reason(setting: Described, default: Any) -> str:
    why = f"Why {'none by default' if default in (None, ()) else 'this default'}: {setting.reason}"
    return why if why.endswith(".") else why + "."


def toml_value(value: Any) -> str:
    """A setting's value in TOML; its strings, numbers, booleans and lists are written as in JSON."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return msgspec.json.encode(value).decode()
