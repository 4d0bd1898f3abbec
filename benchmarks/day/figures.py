"""The figures of a day, and how they are shown."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from benchmarks.day.books import Book
from benchmarks.day.diary import Diary, Spell, counted
from benchmarks.day.recount import UNTOLD, Repeats, Sent
from benchmarks.day.weather import NO_S3, NO_SAGEMAKER
from tests.programs import FINAL


def figures(diary: Diary, books: Sequence[Book], jobs: Mapping[str, Sent], repeats: Repeats) -> dict[str, Any]:
    """All of them, as JSON values; seconds, bytes and counts."""
    back = {book.returned.title: _back_seconds(book, diary) for book in books}
    dispatched = diary.finished_at - diary.began_at
    states = [sent.row["status"] for sent in jobs.values()]
    taken = [event for event in diary.record if event["event"] == "accepted"]
    return {
        "files": len(diary.drops),
        "jobs": len(jobs),
        "lines_rejected": sum(len(book.drop.rejected) for book in books),
        **{state: states.count(state) for state in FINAL},
        "seconds": round(dispatched, 1),
        "jobs_per_second": round(len(jobs) / dispatched, 1),
        "taken_by_the_service": len(taken),
        "told_202": sum(event["verdict"] not in UNTOLD for event in taken),
        "second_submissions_after_a_lost_answer": repeats.untold,
        "second_submissions_after_a_kill": repeats.killed,
        "second_submissions_unexplained": len(repeats.unexplained),
        "answers_lost_though_taken": sum(event["verdict"] in UNTOLD for event in taken),
        "throttled_answers": counted(diary.requests, ("Throttling", "SlowDown")),
        "answers_5xx": counted(diary.requests, ("500 ", "503 ServiceUnavailable")),
        "connections_cut_or_hung": counted(diary.requests, ("reset", "midway", "hung_up")),
        "huge_file_back_after_seconds": back.get("huge.jsonl"),
        "tiny_files_beside_it_back_after_seconds": max(
            (back[title] for title in back if "beside" in title), default=None
        ),
        "peak_megabytes": round(max(life.peak_bytes for life in diary.lives) / 1e6, 1),
        "slowest_scrape_seconds": round(max(life.slowest_scrape_seconds for life in diary.lives), 3),
        "spells": [_spell(spell, diary) for spell in diary.spells],
        "lives": [
            {
                "end": life.end,
                "ready_seconds": round(life.ready_seconds, 2),
                "drain_seconds": round(life.drain_seconds, 2) if life.end == "SIGTERM" else None,
                "peak_megabytes": round(life.peak_bytes / 1e6, 1),
                "scrapes": life.scrapes,
                "slowest_scrape_seconds": round(life.slowest_scrape_seconds, 3),
            }
            for life in diary.lives
        ],
    }


def _back_seconds(book: Book, diary: Diary) -> float:
    """From the drop of a file until its results stood."""
    published = datetime.fromisoformat(book.returned.summary["published_at"]).timestamp()
    return round(published - diary.dropped_at[book.drop.number], 1)


def _spell(spell: Spell, diary: Diary) -> dict[str, Any]:
    """A spell; of an outage also how long after its end the first 202 came (by S3 where it was S3 that was away)."""
    only_s3 = spell.name == NO_S3
    after = [
        event["time"] - spell.ended_at
        for event in diary.record
        if event["event"] == "accepted"
        and event["verdict"] not in UNTOLD
        and event["time"] >= spell.ended_at
        and (not only_s3 or "/staging/" in (event["input_location"] or ""))
    ]
    outage = spell.name in (NO_SAGEMAKER, NO_S3)
    return {
        "name": spell.name,
        "seconds": round(spell.ended_at - spell.began_at, 1),
        "first_202_after_seconds": round(min(after), 2) if outage and after else None,
    }


def table(said: Mapping[str, Any]) -> str:
    """The figures for a reader."""
    plain = {name.replace("_", " "): value for name, value in said.items() if not isinstance(value, list)}
    lines = [f"  {name:42} {_shown(value):>12}" for name, value in plain.items()]
    for spell in said["spells"]:
        first = spell["first_202_after_seconds"]
        after = "" if first is None else f", first 202 {first} s after its end"
        lines.append(f"  {spell['name']:42} {spell['seconds']:>10} s{after}")
    for number, life in enumerate(said["lives"], 1):
        drained = "" if life["drain_seconds"] is None else f", drained in {life['drain_seconds']} s"
        lines.append(
            f"  process {number}: ready after {life['ready_seconds']} s, ended by {life['end']}{drained}, peak "
            f"{life['peak_megabytes']} MB, slowest of {life['scrapes']} scrapes {life['slowest_scrape_seconds']} s"
        )
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,}"
