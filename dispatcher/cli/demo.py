"""`dispatcher demo`: the whole path on this machine, without an AWS account.

A sandbox in a child process plays the service and S3; everything else is what `run` does: real job files, a real ledger,
real requests, results, and at the end the comparison of the two ways a payload can travel.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dispatcher.cli.options import configure_logs, ledger_in, run_async, settings_from
from dispatcher.cli.run import execute
from dispatcher.errors import UsageError
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.model import SizeClass, Transport
from dispatcher.oneshot import Source
from dispatcher.router import size_class
from dispatcher.sandbox.process import start_sandbox
from dispatcher.sandbox.settings import load
from dispatcher.settings import Settings
from dispatcher.sketch import Sketch

ENDPOINT = "demo"
FILES = (
    ("reviews.jsonl", 3_000, (20, 1_000)),
    ("documents.jsonl", 2_000, (1_000, 60_000)),
    ("scans.jsonl", 400, (40_000, 400_000)),
)
"""Name, jobs, and least and greatest payload of each job file."""
PAGE = 1_000
IN_FLIGHT = 8
"""Few, so that the times show the two ways and not a busy processor."""
SHARE = 0.3
"""Of the inline-eligible jobs, this many travel by S3: more than one would choose for work, enough for a table."""


@click.command()
@click.option("--keep", metavar="DIR", help="Keep job files, ledger and results in DIR.")
@click.option("--jobs", "scale", type=click.IntRange(1, 1000), default=100, help="Jobs in percent of the usual 5,400.")
def demo(keep: str | None, scale: int) -> int:
    """Shows the dispatcher at work on this machine: sandbox, job files, results, and inline against S3. No AWS needed."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as temporary:
        folder = Path(keep or temporary)
        _make(folder)
        with start_sandbox(load({"endpoints": {ENDPOINT: _endpoint()}})) as sandbox:
            os.environ.update(sandbox.env)
            click.echo(f"sandbox: {sandbox.url}", err=True)
            settings = _settings()
            configure_logs(settings, quiet=True)
            sources = [_write(folder, name, jobs * scale // 100, sizes) for name, jobs, sizes in FILES]
            ledger = ledger_in(settings, folder)
            status = execute(settings, sources, ledger, no_wait=False)
        show(run_async(compared(ledger)))
    click.echo(f"kept: {folder}" if keep else "deleted: --keep DIR keeps job files, ledger and results", err=True)
    return status


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--keep: cannot make {folder}: {error.strerror}") from error


def _endpoint() -> dict[str, Any]:
    return {"model": "digest", "min_seconds": 0.05, "max_seconds": 0.3, "instances": 64}


def _settings() -> Settings:
    flags = {
        "endpoint": ENDPOINT,
        "staging": "s3://sandbox-in/inputs",
        "comparison_share": SHARE,
        "max_in_flight": IN_FLIGHT,
    }
    return settings_from(flags)


def _write(folder: Path, name: str, jobs: int, sizes: tuple[int, int]) -> Source:
    path = folder / name
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"payload": payload}) + "\n" for payload in _payloads(jobs, sizes))
    return Source(path=str(path), results=folder / "results" / name)


def _payloads(jobs: int, sizes: tuple[int, int]) -> Iterator[dict[str, str]]:
    rng = random.Random(jobs)
    for number in range(jobs):
        size = int(sizes[0] * (sizes[1] / sizes[0]) ** rng.random())
        yield {"text": f"{number} " + "x" * max(0, size - 20)}


Comparison = dict[tuple[Transport, SizeClass], Sketch]
"""Submission times in seconds, by transport and size class."""


async def compared(ledger_path: Path) -> Comparison:
    """The submission times of all jobs in a ledger."""
    times: Comparison = {}
    ledger = await open_sqlite(ledger_path)
    try:
        for file in await ledger.files():
            line = 0
            while rows := await ledger.rows(file.file_id, line, PAGE):
                line = rows[-1].key.line
                for row in rows:
                    if row.submission_seconds is not None:
                        way = (row.transport, size_class(row.size_bytes))
                        times.setdefault(way, Sketch()).add(row.submission_seconds)
    finally:
        await ledger.aclose()
    return times


def show(times: Comparison) -> None:
    """Prints the comparison: one row for each size class."""
    console = Console()
    table = Table(title="From a worker's taking a job until its 202, in milliseconds", title_justify="left", box=None)
    table.add_column("payload")
    for name in ("inline", "p50", "p95", "p99", "S3", "p50", "p95", "p99", "S3 takes longer, p50"):
        table.add_column(name, justify="right")
    for size in SizeClass:
        inline, staged = times.get((Transport.INLINE, size)), times.get((Transport.S3, size))
        table.add_row(size, *_cells(inline), *_cells(staged), _difference(inline, staged))
    console.print(table)
    saved = sum(sketch.count for (transport, _), sketch in times.items() if transport is Transport.INLINE)
    console.print(f"PutObject requests saved by going inline: {saved}", highlight=False)


def _cells(times: Sketch | None) -> list[str]:
    if times is None:
        return ["–"] * 4
    return [str(times.count), *(f"{1000 * (times.quantile(fraction) or 0):.1f}" for fraction in (0.5, 0.95, 0.99))]


def _difference(inline: Sketch | None, staged: Sketch | None) -> str:
    if inline is None or staged is None:
        return "–"
    fast, slow = inline.quantile(0.5) or 0.0, staged.quantile(0.5) or 0.0
    return f"{1000 * (slow - fast):+.1f} ms, {slow / fast:.1f}x"
