"""What a run of the dispatcher does, counted: `python -m tests.counted COUNTS ARGUMENT...` runs `dispatcher ARGUMENT...`.

Counted is what costs most if it comes once for each job: tasks, timers, and transactions of the ledger.

A transaction is whatever SQLite begins outside of one, a statement by itself included, so that nothing is saved by writing
`BEGIN` more seldom. A timer of less than a millisecond is none: that is how anyio waits for the rest of a deadline, again and
again, where uvloop, which knows whole milliseconds only, calls it too early. They tell of the machine and not of the work.
"""

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from dispatcher.cli import main
from dispatcher.sandbox.process import Sandbox
from tests.programs import Ended, dispatch

SHORTEST_TIMER_SECONDS = 0.001

_counts: Counter[str] = Counter()


def counted(folder: Path, sandbox: Sandbox, *arguments: object) -> tuple[Ended, dict[str, int]]:
    """Runs `dispatcher ARGUMENTS` to its end; how many tasks, timers and transactions of its ledger it took."""
    path = folder / "counts.json"
    ended = dispatch(folder, sandbox, path, *arguments, module="tests.counted")
    return ended, json.loads(path.read_bytes())


class _Loop(uvloop.Loop):
    def create_task(self, *arguments: Any, **named: Any) -> Any:
        _counts["tasks"] += 1
        return super().create_task(*arguments, **named)

    def call_later(self, delay: float, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        """`call_at` comes here as well."""
        _counts["timers"] += delay >= SHORTEST_TIMER_SECONDS
        return super().call_later(delay, *arguments, **named)


def count_transactions(connection: sqlite3.Connection, counts: Counter[str]) -> sqlite3.Connection:
    """The connection, each transaction of which counts from now on."""

    def count(_: str) -> None:
        counts["transactions"] += not connection.in_transaction

    connection.set_trace_callback(count)
    return connection


def _connecting(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
    def connected(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return count_transactions(connect(*arguments, **named), _counts)

    return connected


def _count(path: Path) -> None:
    sqlite3.connect = _connecting(sqlite3.connect)  # type: ignore[assignment]
    uvloop.Loop = _Loop  # type: ignore[misc]
    try:
        main()
    finally:
        path.write_text(json.dumps(_counts))


if __name__ == "__main__":
    _count(Path(sys.argv.pop(1)))
