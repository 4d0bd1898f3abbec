"""The figures as a picture. Imported once everything is measured: what it brings must not be in anybody's way before."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

from benchmarks.contenders import RUN, SUBMIT
from benchmarks.goals import Results
from benchmarks.workloads import INLINE, STAGED

OURS, THEIRS = "#1f6fb4", "#b8b8b8"


def draw(results: Results, path: Path) -> None:
    """Writes a PNG with as many panels as there are kinds of figures; none where there are no figures."""
    mpl.use("Agg")
    from matplotlib import pyplot

    panels = _panels(results)
    if not panels:
        return
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 3.2 * len(panels)), squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        panel(axis)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panels(results: Results) -> list[Callable[[Any], None]]:
    ratios = results.get("ratios", {})
    panels: list[Callable[[Any], None]] = [
        partial(_bars, work=work, rounds=ratios[work]) for work in (INLINE.name, STAGED.name) if work in ratios
    ]
    if results.get("scale"):
        panels.append(partial(_growth, rows=results["scale"]))
    if results.get("round_trips"):
        panels.append(partial(_trips, rows=results["round_trips"]))
    return panels


def _bars(axis: Any, work: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    """One bar a contender: the median, with a whisker from the least to the most."""
    names = list(rounds)[::-1]
    values = [[one["cpu_us"] for one in rounds[name]] for name in names]
    middles = [median(one) for one in values]
    whiskers = [
        [middle - min(one) for middle, one in zip(middles, values, strict=True)],
        [max(one) - middle for middle, one in zip(middles, values, strict=True)],
    ]
    colours = [OURS if name in {SUBMIT, RUN} else THEIRS for name in names]
    bars = axis.barh(names, middles, xerr=whiskers, color=colours, ecolor="#555555")
    axis.bar_label(bars, [f"{middle:,.0f} µs" for middle in middles], padding=8)
    axis.set_xscale("log")
    axis.set_xlim(1, max(middles) * 4)
    axis.set_title(f"CPU per job, {work}")


def _growth(axis: Any, rows: list[dict[str, Any]]) -> None:
    jobs = [row["jobs"] for row in rows]
    axis.plot(jobs, [row["submit"]["cpu_us"] for row in rows], "o-", color=OURS, label="CPU µs per job, run --no-wait")
    axis.plot(jobs, [row["run"]["cpu_us"] for row in rows], "s-", color="#d95f02", label="CPU µs per job, run")
    axis.plot(jobs, [row["run"]["memory_mb"] for row in rows], "^--", color="#666666", label="peak memory of run, MB")
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_title("As job files grow")
    axis.legend()


def _trips(axis: Any, rows: list[dict[str, Any]]) -> None:
    for way, colour in (("inline", OURS), ("s3", "#d95f02")):
        mine = [row for row in rows if row["path"] == way]
        times = [median(one["p50_ms"] for one in row["rounds"]) for row in mine]
        axis.plot([row["round_trip_ms"] for row in mine], times, "o-", color=colour, label=way)
    axis.set_xlabel("simulated round trip, ms")
    axis.set_title("Submission of a job, median, ms")
    axis.legend()
