"""`python -m benchmarks`: peers and dispatcher in turn, against a loopback target in a process of its own.

Prints tables, writes the same as JSON and as a picture; `--write-readme` puts the tables into the README beside this file.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import latency, ratios, report, scale
from benchmarks.contenders import HERE, Field, field
from benchmarks.loopback import Target, make_certificate, started
from benchmarks.measure import Bench, MeasureError, machine
from benchmarks.workloads import QUICK_WORKLOADS, WORKLOADS

SECTIONS = ("ratios", "scale", "start-up", "round-trips")
PACKAGES = ("botocore", "boto3", "aiobotocore", "uvloop")


def main() -> None:
    """Measures, prints, writes."""
    asked = _arguments()
    try:
        results = _measure(asked)
    except MeasureError as error:
        raise SystemExit(f"benchmarks: {error}") from error
    print(report.tables(results))
    if importlib.util.find_spec("matplotlib"):
        from benchmarks.plot import draw

        draw(results, asked.output / f"{_name(asked)}.png")
    else:
        _say("no picture: pip install matplotlib, or the dependency group bench")
    if asked.write_readme:
        report.write_readme(HERE / "README.md", results, f"{_name(asked)}.png")


def _measure(asked: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dispatcher-bench-", dir=asked.work)))
        taking_part = field(folder, asked.node_modules)
        results = _results(asked, folder, taking_part)
        plain = stack.enter_context(started())
        secure = stack.enter_context(started(make_certificate(folder / "ca.pem")))
        bench = Bench(asked.in_flight, folder)
        for section in SECTIONS:
            if section in asked.only:
                results[section.replace("-", "_")] = _section(section, asked, bench, plain, secure, taking_part)
                _write(asked, results)
    return results


def _write(asked: argparse.Namespace, results: dict[str, Any]) -> None:
    """What there is so far: a run takes long, and may be broken off."""
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / f"{_name(asked)}.json").write_text(json.dumps(results, indent=1) + "\n")


def _name(asked: argparse.Namespace) -> str:
    return "quick" if asked.quick else "results"


def _section(
    section: str, asked: argparse.Namespace, bench: Bench, plain: Target, secure: Target, taking_part: Field
) -> Any:
    match section:
        case "ratios":
            workloads = [one for one in WORKLOADS if one.name in asked.kind]
            contenders, rounds = taking_part.contenders, asked.rounds
            return ratios.measure(bench, plain, secure, contenders, workloads, rounds, asked.share, _say)
        case "scale":
            return scale.measure(bench, plain, asked.sizes, asked.rounds, _say)
        case "start-up":
            return latency.start_up(bench, plain, asked.rounds, _say)
        case _:
            rounds = 1 if asked.quick else min(asked.rounds, 3)
            return latency.round_trips(bench, plain, asked.delays, int(8_000 * asked.share), rounds, _say)


def _results(asked: argparse.Namespace, folder: Path, taking_part: Field) -> dict[str, Any]:
    found = {name for name in PACKAGES if importlib.util.find_spec(name)}
    settings = {name: getattr(asked, name) for name in ("rounds", "in_flight", "share", "sizes", "delays", "quick")}
    return {
        "machine": machine(folder),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if name in found},
        "settings": settings,
        "skipped": taking_part.skipped,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="less of everything: two to three minutes, and no judgement to rely on")
    add("--rounds", type=int, help="rounds of the comparison (5; quick: 2)")
    add("--share", type=float, help="this share of the jobs of a full round (1; quick: 0.1)")
    add("--only", type=_words, default=SECTIONS, help=f"some of {','.join(SECTIONS)}")
    kinds = [one.name for one in WORKLOADS]
    add("--kind", action="append", choices=kinds, help=f"compare at this kind of work; may be given again ({kinds})")
    add("--sizes", type=_numbers, help="jobs of the runs that grow (10000,100000,1000000; quick: 2000,10000)")
    add("--delays", type=_numbers, help="simulated round trips in milliseconds (0,5,20,80; quick: 0,20)")
    add("--in-flight", type=int, default=64, help="requests in flight, of everybody")
    add("--node-modules", type=Path, default=HERE / "peers" / "node_modules", help="where the SDK for JavaScript is")
    add("--work", type=Path, help="folder for job files and ledgers, on a disk (default: the system's temporary one)")
    add("--output", type=Path, default=HERE, help="folder for results.json and results.png (quick.json, quick.png)")
    add("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    asked = parser.parse_args()
    for name, full, quick in (
        ("kind", kinds, [one.name for one in QUICK_WORKLOADS]),
        ("rounds", 5, 2),
        ("share", 1.0, 0.1),
        ("sizes", (10_000, 100_000, 1_000_000), (2_000, 10_000)),
        ("delays", (0, 5, 20, 80), (0, 20)),
    ):
        if getattr(asked, name) is None:
            setattr(asked, name, quick if asked.quick else full)
    if unknown := set(asked.only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    return asked


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
