"""What came back of each dropped file, and whether it is what must: lines, ids, metadata, both sums. Findings are sentences."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from benchmarks.day.diary import Row
from benchmarks.day.drops import Drop
from tests.programs import FINAL, rows


class Returned(Struct, frozen=True):
    """A folder of results."""

    title: str
    results: list[Row]
    errors: list[Row]
    summary: Row

    @property
    def drop(self) -> int | None:
        """Whose results these are, as the metadata of its first job says."""
        return next((row["metadata"]["drop"] for row in self.results if row["metadata"]), None)


def read_all(folder: Path) -> list[Returned]:
    """All that stand."""
    return [
        Returned(
            path.name,
            rows(path / "results.jsonl"),
            rows(path / "errors.jsonl"),
            json.loads((path / "summary.json").read_bytes()),
        )
        for path in sorted(folder.iterdir())
    ]


class Book(Struct, frozen=True):
    """A dropped file and what came back of it."""

    drop: Drop
    returned: Returned


def matched(drops: Iterable[Drop], returned: Iterable[Returned]) -> tuple[list[Book], list[str]]:
    """Each file with its results; what has none, or too many, is found."""
    by_number: dict[int | None, list[Returned]] = {}
    for one in returned:
        by_number.setdefault(one.drop, []).append(one)
    unnamed = by_number.pop(None, [])
    books, findings = [], []
    for drop in drops:
        own = by_number.pop(drop.number, []) if drop.jobs else [one for one in unnamed if one.title == drop.name]
        if len(own) == 1 and own[0].title.startswith(drop.name):
            books.append(Book(drop, own[0]))
        else:
            findings.append(f"{drop.name} (drop {drop.number}) has results in {[one.title for one in own]}")
    known = {id(book.returned) for book in books}
    strange = [one.title for group in (*by_number.values(), unnamed) for one in group if id(one) not in known]
    return books, findings + [f"results/{title} belongs to no file" for title in strange]


def file_findings(book: Book) -> list[str]:
    """What is wrong with the results of one file."""
    found = _unreadable(book) if not book.drop.readable else [*_lines(book), *_errors(book), *_sums(book)]
    return [f"{book.returned.title}: {what}" for what in found]


def _unreadable(book: Book) -> list[str]:
    told = [row["status"] for row in book.returned.errors]
    fine = told == ["unreadable_file"] and not book.returned.results and book.returned.summary["lines"] == 0
    return [] if fine else ["it could not be read, and the results do not say so"]


def _lines(book: Book) -> Iterator[str]:
    """Every accepted line once, in input order, with its own id and metadata."""
    came, wanted = [row["line"] for row in book.returned.results], sorted(book.drop.jobs)
    if came != wanted:
        times = Counter(came)
        lost = [line for line in wanted if line not in times]
        more = [line for line in times if times[line] > 1 or line not in book.drop.jobs]
        yield f"results of {len(came)} lines, not {len(wanted)}: lost {lost[:5]}, too many {more[:5]}, or out of order"
    for row in book.returned.results:
        job = book.drop.jobs.get(row["line"])
        if job is not None and (row["id"], row["metadata"]) != (job.id, job.metadata):
            yield f"line {row['line']} came back as {row['id']!r} with {row['metadata']}"


def _errors(book: Book) -> Iterator[str]:
    errors = book.returned.errors
    if [row for row in errors if row["status"] != "rejected"] != _unsuccessful(book):
        yield "errors.jsonl and results.jsonl differ on what did not succeed"
    if [row["line"] for row in errors if row["status"] == "rejected"] != sorted(book.drop.rejected):
        yield "the rejected lines are not the bad ones"
    if [row["line"] for row in errors] != sorted(row["line"] for row in errors):
        yield "errors.jsonl is out of order"


def _unsuccessful(book: Book) -> list[Row]:
    return [row for row in book.returned.results if row["status"] != "succeeded"]


def _sums(book: Book) -> Iterator[str]:
    """Both sums as the summary states them, against the lines that were dropped and the lines that came back."""
    summary = book.returned.summary
    states = Counter(row["status"] for row in book.returned.results)
    jobs, bad = len(book.drop.jobs), len(book.drop.rejected)
    if (summary["lines"], summary["rejected"], summary["accepted"]) != (jobs + bad, bad, jobs):
        yield f"the summary has {summary['lines']} = {summary['rejected']} + {summary['accepted']} lines, not {bad} + {jobs}"
    if {state: summary[state] for state in FINAL} != {state: states[state] for state in FINAL}:
        yield "the summary's states are not those of the lines"
    if summary["outstanding"] or states.total() != jobs:
        yield f"{jobs} accepted, {states.total()} final, {summary['outstanding']} outstanding"
