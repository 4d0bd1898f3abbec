"""The comparison: every contender at every kind of work, in turn, round after round, so that a slow hour hits all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.loopback import Target
from benchmarks.measure import Bench
from benchmarks.workloads import Workload

Say = Callable[[str], None]


def measure(
    bench: Bench,
    plain: Target,
    secure: Target,
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    rounds: int,
    share: float,
    say: Say,
) -> dict[str, Any]:
    """{workload: {contender: [round]}}. `share` scales the number of jobs."""
    found: dict[str, Any] = {}
    for workload in workloads:
        target = secure if workload.tls else plain
        for contender in contenders:
            # Before it counts: compiles what Python compiles once, and shows at once who cannot do this work.
            bench.run(contender, workload, bench.in_flight, target)
        kinds: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
        for number in range(rounds):
            say(f"{workload.name}: round {number + 1} of {rounds}")
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                jobs = workload.jobs(int(contender.jobs * share))
                kinds[contender.name].append(bench.round(contender, workload, jobs, target)._asdict())
        found[workload.name] = kinds
        _tidy(bench.folder)
    return found


def _tidy(folder: Path) -> None:
    """Job files of large payloads are large."""
    for path in folder.glob("*.jsonl"):
        path.unlink()
