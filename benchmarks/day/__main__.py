"""`python -m benchmarks.day`: lives through a day of some minutes, recounts everything; exit status 0 only if all of it holds."""

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.day import books, meters, recount
from benchmarks.day.diary import Diary
from benchmarks.day.drops import ENDPOINTS
from benchmarks.day.figures import figures, table
from benchmarks.day.world import live

SHOWN = 20


class Check(Struct, frozen=True):
    """One thing that must hold, and what speaks against it."""

    name: str
    findings: list[str]


def main() -> None:
    """Runs, prints, judges."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="dispatcher-day-") as folder:
        print(f"A day of {arguments.minutes:g} minutes, seed {arguments.seed}")
        diary = live(Path(folder), arguments.seed, 60.0 * arguments.minutes, partial(print, flush=True))
        checks, said = judged(diary, Path(folder) / "spool")
        if arguments.keep is not None:
            shutil.copytree(folder, arguments.keep)
    _show(checks, said)
    if arguments.json is not None:
        found = {check.name: check.findings for check in checks}
        arguments.json.write_text(json.dumps({"figures": said, "findings": found}, indent=2) + "\n", "utf-8")
    sys.exit(any(check.findings for check in checks))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.day", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="how long files are dropped")
    parser.add_argument("--seed", type=int, default=1, help="decides what is dropped and when")
    parser.add_argument("--json", type=Path, help="where to write figures and findings")
    parser.add_argument("--keep", type=Path, help="where to leave spool, record and logs for a look")
    return parser.parse_args()


def judged(diary: Diary, spool: Path) -> tuple[list[Check], dict[str, Any]]:
    """Every check with its findings, and the figures."""
    matched, unmatched = books.matched(diary.drops, books.read_all(spool / "results"))
    jobs, strange = recount.collate(matched, diary.record)
    again = recount.repeats(jobs.values(), diary.kills, 2 * diary.attempt_seconds)
    rejected = sum(len(book.drop.rejected) for book in matched)
    kills = len(diary.kills)
    checks = [
        Check("the service started and stopped in good order", diary.findings),
        Check("every dropped file has one folder of results", unmatched),
        Check("both sums hold, lines in input order, ids and metadata right", _each(matched)),
        Check("every job ended as the service's record says", strange + recount.job_findings(jobs.values())),
        Check(
            "every second submission has its reason",
            recount.repeat_findings(again, kills, diary.in_flight, len(ENDPOINTS)),
        ),
        Check("the metrics are what a recount says", meters.all_findings(diary, jobs, rejected)),
    ]
    return checks, figures(diary, matched, jobs, again)


def _each(matched: list[books.Book]) -> list[str]:
    return [finding for book in matched for finding in books.file_findings(book)]


def _show(checks: list[Check], said: dict[str, Any]) -> None:
    print(f"\n{table(said)}\n")
    for check in checks:
        print(f"  {'holds' if not check.findings else 'FAILS'}  {check.name}")
        for finding in check.findings[:SHOWN]:
            print(f"         {finding}")
        if len(check.findings) > SHOWN:
            print(f"         and {len(check.findings) - SHOWN} more")
    failed = sum(bool(check.findings) for check in checks)
    print("\nVerdict: all holds" if not failed else f"\nVerdict: {failed} of {len(checks)} checks fail")


if __name__ == "__main__":
    main()
