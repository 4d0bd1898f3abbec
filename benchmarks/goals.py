"""What the dispatcher must reach, what it aims at, and what was seen. Every figure is from one run on one machine.

A ratio is made in each round by itself, peer and dispatcher having run in turn; its median counts, its extremes are shown.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.contenders import AIOBOTOCORE, BOTO3, RUN, SUBMIT, WIRE
from benchmarks.workloads import INLINE, STAGED

Results = dict[str, Any]
SMALL, LARGE = 10_000, 1_000_000


class Goal(NamedTuple):
    """One figure. `values` are those of its rounds, none where it was not measured; `note` says what was seen in its stead."""

    name: str
    must: float
    aim: float
    at_most: bool
    unit: str
    values: Sequence[float]
    note: str = ""

    @property
    def seen(self) -> float | None:
        """The median; None where nothing was measured."""
        return median(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.seen is None:
            return "not measured"
        if self.note:
            return "not judged"
        good = [self.seen <= limit if self.at_most else self.seen >= limit for limit in (self.aim, self.must)]
        return "reaches the aim" if good[0] else ("holds" if good[1] else "MISSED")


def goals(results: Results) -> list[Goal]:
    """All of them, those that were not measured as well."""
    return [*_of_ratios(results), *_of_scale(results), _start_up(results)]


def ratios(results: Results, work: str, over: str, under: str) -> list[float]:
    """CPU per job of one contender in that of another, round by round; nothing where either did not take part."""
    rounds = results.get("ratios", {}).get(work, {})
    pairs = zip(rounds.get(over, []), rounds.get(under, []), strict=False)
    return [one["cpu_us"] / other["cpu_us"] for one, other in pairs if other["cpu_us"] > 0]


def _of_ratios(results: Results) -> list[Goal]:
    inline, staged = INLINE.name, STAGED.name
    rows = [
        ("`run --no-wait` ÷ bare signed wire loop", 4.0, 3.0, True, inline, SUBMIT, WIRE),
        ("`run` ÷ bare signed wire loop", 6.0, 4.5, True, inline, RUN, WIRE),
        ("boto3 with threads ÷ `run --no-wait`", 12.0, 20.0, False, inline, BOTO3, SUBMIT),
        ("aiobotocore with gather ÷ `run --no-wait`", 6.0, 10.0, False, inline, AIOBOTOCORE, SUBMIT),
        ("aiobotocore ÷ `run --no-wait`, by S3", 10.0, 15.0, False, staged, AIOBOTOCORE, SUBMIT),
    ]
    return [
        Goal(name, must, aim, at_most, "×", ratios(results, work, over, under))
        for name, must, aim, at_most, work, over, under in rows
    ]


def _of_scale(results: Results) -> list[Goal]:
    rows = {row["jobs"]: row for row in results.get("scale", [])}
    whole = SMALL in rows and LARGE in rows
    most = max(rows, default=0)
    note = f"at {most:,} jobs only" if most and most != LARGE else ""
    growth, memory, tracking = [], [], []
    if whole:
        growth = [rows[LARGE]["submit"]["cpu_us"] / rows[SMALL]["submit"]["cpu_us"]]
    if rows:
        memory = [max(rows[most][kind]["memory_mb"] for kind in ("submit", "run"))]
        tracking = [rows[most]["tracking"]["cpu_us"]]
    return [
        Goal("CPU per job at 1,000,000 jobs ÷ at 10,000", 1.1, 1.0, True, "×", growth),
        Goal("peak memory at 1,000,000 jobs", 150.0, 100.0, True, " MB", memory, note),
        Goal("completion tracking per job, 1,000,000 outstanding", 15.0, 8.0, True, " µs", tracking, note),
    ]


def _start_up(results: Results) -> Goal:
    return Goal("start of the process to its first request", 1.0, 0.5, True, " s", results.get("start_up", []))
