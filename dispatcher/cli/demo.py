"""`dispatcher demo`: the whole path on this machine, without an AWS account.

A sandbox in a child process plays the service and S3; everything else is what `run` does: real job files, a real ledger,
real requests, results, and at the end the comparison of the two ways a payload can travel.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from dispatcher.cli.options import configure_logs, ledger_in, settings_from
from dispatcher.cli.run import execute
from dispatcher.oneshot import Source
from dispatcher.sandbox.process import start_sandbox
from dispatcher.sandbox.settings import load
from dispatcher.settings import Settings

ENDPOINT = "demo"
FILES = (
    ("reviews.jsonl", 3_000, (20, 1_000)),
    ("documents.jsonl", 2_000, (1_000, 60_000)),
    ("scans.jsonl", 400, (40_000, 400_000)),
)
"""Name, jobs, and least and greatest payload of each job file."""
SHARE = 0.3
"""Of the inline-eligible jobs, this many travel by S3: more than one would choose for work, enough for a table."""


@click.command()
@click.option("--keep", metavar="DIR", help="Keep job files, ledger and results in DIR.")
@click.option("--jobs", "scale", type=click.IntRange(1, 1000), default=100, help="Jobs in percent of the usual 5,400.")
def demo(keep: str | None, scale: int) -> int:
    """Shows the dispatcher at work on this machine: sandbox, job files, results, and inline against S3. No AWS needed."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with start_sandbox(load({"endpoints": {ENDPOINT: _endpoint()}})) as sandbox:
            os.environ.update(sandbox.env)
            click.echo(f"sandbox: {sandbox.url}", err=True)
            settings = _settings()
            configure_logs(settings, quiet=True)
            sources = [_write(folder, name, jobs * scale // 100, sizes) for name, jobs, sizes in FILES]
            status = execute(settings, sources, ledger_in(settings, folder), no_wait=False)
        show([Summary.read(source.results) for source in sources])
    return status


def _endpoint() -> dict[str, Any]:
    return {"model": "digest", "min_seconds": 0.05, "max_seconds": 0.3, "instances": 64}


def _settings() -> Settings:
    flags = {"endpoint": ENDPOINT, "staging": "s3://sandbox-in/inputs", "comparison_share": SHARE, "max_in_flight": 8}
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


class Quantiles(Struct, frozen=True):
    """Submission times of one transport and size class, in seconds."""

    transport: str
    size_class: str
    count: int
    p50: float
    p95: float
    p99: float


class Summary(Struct, frozen=True):
    """What the comparison needs of a `summary.json`."""

    name: str
    submission_seconds: list[Quantiles]
    s3_puts_avoided: int

    @classmethod
    def read(cls, results: Path) -> "Summary":
        """The summary in a results folder."""
        return msgspec.json.decode((results / "summary.json").read_bytes(), type=cls)


def show(summaries: Iterable[Summary]) -> None:
    """Prints the comparison: one row for each job file and size class."""
    console = Console()
    table = Table(title="From a worker's taking a job until its 202 (milliseconds)", title_justify="left", box=None)
    table.add_column("job file")
    table.add_column("payload")
    for name in ("inline", "p50", "p95", "p99", "S3", "p50", "p95", "p99", "S3 takes, p50"):
        table.add_column(name, justify="right")
    avoided = 0
    for summary in summaries:
        avoided += summary.s3_puts_avoided
        ways = {(one.transport, one.size_class): one for one in summary.submission_seconds}
        for size in _sizes(summary):
            inline, staged = ways.get(("inline", size)), ways.get(("s3", size))
            table.add_row(summary.name, size, *_cells(inline), *_cells(staged), _difference(inline, staged))
    console.print(table)
    console.print(f"PutObject requests saved by going inline: {avoided}", highlight=False)


def _sizes(summary: Summary) -> list[str]:
    order = ["le_1k", "le_4k", "le_16k", "le_64k", "le_128k", "gt_128k"]
    return sorted({one.size_class for one in summary.submission_seconds}, key=order.index)


def _cells(one: Quantiles | None) -> list[str]:
    if one is None:
        return ["–"] * 4
    return [str(one.count), *(f"{seconds * 1000:.1f}" for seconds in (one.p50, one.p95, one.p99))]


def _difference(inline: Quantiles | None, staged: Quantiles | None) -> str:
    if inline is None or staged is None:
        return "–"
    return f"+{(staged.p50 - inline.p50) * 1000:.1f} ms, {staged.p50 / inline.p50:.1f}x"
