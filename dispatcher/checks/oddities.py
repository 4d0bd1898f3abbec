"""Settings that are each right and do not go together."""

from collections.abc import Callable

import msgspec

from dispatcher.checks.findings import Findings, ok, warning
from dispatcher.settings import Settings

_OF_STAGING = ("comparison_share", "staging_kms_key", "staging_tags", "bucket_owner")

RULES: tuple[tuple[Callable[[Settings], bool], str, str], ...] = (
    (
        lambda s: s.staging is None and any(getattr(s, name) not in (None, ()) for name in _OF_STAGING),
        f"one of {', '.join(_OF_STAGING)} is set, and staging is not",
        "set staging, or leave them out",
    ),
    (
        lambda s: not s.collect and s.collect_max_bytes != Settings().collect_max_bytes,
        "collect_max_bytes is set, and collect is off",
        "set collect, or leave it out",
    ),
    (
        lambda s: s.retention_seconds is None and s.spool is not None,
        "retention_seconds is not set: ledger, done/ and results/ grow for ever",
        "set it to how long you need them",
    ),
)


def odd_settings(settings: Settings) -> Findings:
    """What does not go together; one finding that all is well where nothing is odd."""
    found = [warning("settings", text, advice) for holds, text, advice in RULES if holds(settings)]
    return found or [
        ok("settings", f"{changed(settings)} of {len(Settings.__struct_fields__)} are not at their default")
    ]


def changed(settings: Settings) -> int:
    """How many settings are not at their default."""
    default = msgspec.structs.asdict(Settings())
    return sum(value != default[name] for name, value in msgspec.structs.asdict(settings).items())
