"""What a run of the dispatcher does, counted: `python -m tests.counted COUNTS ARGUMENT...` runs `dispatcher ARGUMENT...`.

Counted is what costs most if it comes once for each job: tasks, and commits of the ledger.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from dispatcher.cli import main
from dispatcher.ledger.calls import Commit
from dispatcher.ledger.sqlite import SqliteLedger
from dispatcher.sandbox.process import Sandbox
from tests.programs import Ended, dispatch

_counts: Counter[str] = Counter()


def counted(folder: Path, sandbox: Sandbox, *arguments: object) -> tuple[Ended, dict[str, int]]:
    """Runs `dispatcher ARGUMENTS` to its end; how many tasks it made, and how many commits changed its ledger."""
    path = folder / "counts.json"
    ended = dispatch(folder, sandbox, path, *arguments, module="tests.counted")
    return ended, json.loads(path.read_bytes())


def _counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def count(*arguments: Any, **named: Any) -> Any:
        _counts[name] += 1
        return method(*arguments, **named)

    return count


def _count(path: Path) -> None:
    deliver = SqliteLedger.deliver

    def delivered(ledger: SqliteLedger, commit: Commit) -> None:
        _counts["commits"] += bool(commit.rows)
        deliver(ledger, commit)

    SqliteLedger.deliver = delivered  # type: ignore[assignment,method-assign]
    uvloop.Loop.create_task = _counting("tasks", uvloop.Loop.create_task)  # type: ignore[method-assign]
    try:
        main()
    finally:
        path.write_text(json.dumps(_counts))


if __name__ == "__main__":
    _count(Path(sys.argv.pop(1)))
