"""The figures as tables of Markdown, which read well on a terminal too, and into the README between its markers."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import SUBMIT, WIRE
from benchmarks.goals import Goal, Results, goals, ratios

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def tables(results: Results) -> str:
    """Everything that was measured."""
    parts = [_machine(results), "What is asked, and what was seen:", _goals(goals(results))]
    for work, rounds in results.get("ratios", {}).items():
        parts += [f"**{work}**", _contenders(results, work, rounds)]
    for title, key, table in _SECTIONS:
        if results.get(key):
            parts += [title, table(results[key])]
    parts += [f"Left out: {name}; {reason}." for name, reason in results.get("skipped", {}).items()]
    return "\n\n".join(parts) + "\n"


def write_readme(path: Path, results: Results, picture: str) -> None:
    """Puts the tables between the markers of the README."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    shown = f"{tables(results)}\n![The same figures as bars and lines]({picture})\n"
    path.write_text(f"{before}{BEGIN}\n{shown}{END}{after}", "utf-8")


def _machine(results: Results) -> str:
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, {versions}; "
        f"ledger on {machine['disk']}; {settings['in_flight']} in flight, {settings['rounds']} rounds."
    )


def _goals(rows: Sequence[Goal]) -> str:
    def limit(goal: Goal, value: float) -> str:
        return f"{'≤' if goal.at_most else '≥'} {value:g}{goal.unit}"

    def seen(goal: Goal) -> str:
        if goal.seen is None:
            return "–"
        note = f", {goal.note}" if goal.note else ""
        return f"{_spread(goal.values, goal.unit)}{note}"

    cells = [[goal.name, limit(goal, goal.must), limit(goal, goal.aim), seen(goal), goal.verdict] for goal in rows]
    return _table(["figure", "must", "aim", "seen (least–most)", "verdict"], cells)


def _contenders(results: Results, work: str, rounds: dict[str, list[dict[str, float]]]) -> str:
    cells = []
    for name, figures in rounds.items():
        cells.append(
            [
                name,
                f"{figures[0]['jobs']:,}",
                _spread([one["cpu_us"] for one in figures], " µs"),
                f"{median(one['jobs_per_second'] for one in figures):,.0f}",
                f"{median(one['memory_mb'] for one in figures):.0f} MB",
                _spread(ratios(results, work, name, WIRE), "×"),
                _spread(ratios(results, work, name, SUBMIT), "×"),
            ]
        )
    head = ["who", "jobs", "CPU per job", "jobs/s", "peak memory", "÷ wire loop", "÷ `run --no-wait`"]
    return _table(head, cells)


def _scale(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            f"{row['jobs']:,}",
            f"{row['submit']['cpu_us']:.0f} µs",
            f"{row['submit']['memory_mb']:.0f} MB",
            f"{row['run']['cpu_us']:.0f} µs",
            f"{row['run']['memory_mb']:.0f} MB",
            f"{row['tracking']['cpu_us']:.1f} µs",
            f"{row['tracking']['memory_mb']:.0f} MB",
            f"{row['after_202_us']:.0f} µs",
            f"{row['lists']:,}",
        ]
        for row in rows
    ]
    head = ["jobs", "`run --no-wait`", "memory", "`run`", "memory", "tracking alone", "memory"]
    return _table([*head, "tracking and results", "ListObjectsV2 of `run`"], cells)


def _trips(rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        figures = row["rounds"]
        cells.append(
            [
                f"{row['round_trip_ms']} ms",
                row["path"],
                f"{row['jobs']:,}",
                f"{median(one['jobs_per_second'] for one in figures):,.0f}",
                f"{median(one['p50_ms'] for one in figures):.1f} ms",
                f"{median(one['p99_ms'] for one in figures):.1f} ms",
            ]
        )
    return _table(["round trip", "way", "jobs", "jobs/s", "submission, p50", "p99"], cells)


def _start_up(seconds: Sequence[float]) -> str:
    return f"{_spread(seconds, ' s')}, {len(seconds)} starts."


_SECTIONS = (
    ("**As job files grow** (inline, 1 KB; all of the jobs are outstanding when tracking begins)", "scale", _scale),
    (
        "**The two ways at a simulated round trip** (1 KB; rate of `run --no-wait`, times of `run`)",
        "round_trips",
        _trips,
    ),
    ("**From the start of the process to its first request**", "start_up", _start_up),
)


def _spread(values: Sequence[float], unit: str) -> str:
    """The median, and the extremes where there is more than one."""
    if not values:
        return "–"
    middle = f"{_number(median(values))}{unit}"
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *(line(row) for row in rows)])
