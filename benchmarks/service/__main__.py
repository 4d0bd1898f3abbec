"""`python -m benchmarks.service [NAME…]`: measures all figures, or those named, and prints what each must be and what it was."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.service.deadlane import dead_lane
from benchmarks.service.fairness import fairness
from benchmarks.service.folders import stalled_reader, thousand_files
from benchmarks.service.scraping import scrape
from benchmarks.service.stage import Row
from benchmarks.service.starting import start
from benchmarks.service.stopping import stops
from benchmarks.service.throttling import throttle

FIGURES: Mapping[str, Callable[[], list[Row]]] = {
    "scrape": scrape,
    "start": start,
    "throttle": throttle,
    "dead": dead_lane,
    "fair": fairness,
    "files": thousand_files,
    "stalled": stalled_reader,
    "stops": stops,
}


def main() -> None:
    """Measures and prints; status 1 where a figure falls short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FIGURES], metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or list(FIGURES)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}", flush=True)
    rows = [row for name in names for row in _measured(name)]
    sys.exit(any(row.holds is False for row in rows))


def _measured(name: str) -> list[Row]:
    began = time.monotonic()
    rows = FIGURES[name]()
    print(f"\n{name} ({time.monotonic() - began:.0f} s)")
    for row in rows:
        verdict = {None: "", True: "holds", False: "FALLS SHORT"}[row.holds]
        print(f"  {row.figure:62} {row.must:14} {row.seen:48} {verdict}".rstrip(), flush=True)
    return rows


if __name__ == "__main__":
    main()
