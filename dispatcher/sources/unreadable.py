"""Job files that could not be read: no ledger knows them, but the spool has them in `failed/`, and why in their results."""

from pathlib import Path

import msgspec
from msgspec import Struct

from dispatcher.results import SUMMARY
from dispatcher.status import Unreadable


class _Error(Struct, frozen=True):
    message: str


class _Summary(Struct, frozen=True):
    run_id: str
    error: _Error | None = None


def unreadable(spool: Path) -> list[Unreadable]:
    """Those of which the results stand, by name. Blocks; what cannot be looked at is passed over: it is for `status`."""
    try:
        names = sorted(path.name for path in (spool / "failed").iterdir())
    except OSError:
        return []
    return [found for name in names if (found := _refused(spool / "results" / name)) is not None]


def _refused(results: Path) -> Unreadable | None:
    try:
        summary = msgspec.json.decode((results / SUMMARY).read_bytes(), type=_Summary)
    except (OSError, msgspec.DecodeError):
        return None
    if summary.error is None:
        return None
    return Unreadable(name=results.name, run_id=summary.run_id, reason=summary.error.message)
