"""Three endpoints, one of which is dead: it is not there, so that every request for it is refused."""

import time

from benchmarks.service.stage import FAST, Row, lines, rate, series, staged

LIVING = ("first", "second")
DEAD = "dead"
SECONDS = 10.0
DEAD_JOBS = 60_000
PACED_JOBS = 12_000
FAST_JOBS = 900_000
"""More than a machine sends while it is measured."""


def dead_lane() -> list[Row]:
    """What two endpoints get alone, and beside the third."""
    return [_row("100/s each", 100.0), _row("as fast as it goes", None)]


def _row(name: str, per_second: float | None) -> Row:
    limit = ("--requests-per-second", per_second) if per_second else ()
    jobs = PACED_JOBS if per_second else FAST_JOBS
    flags = ("--allow-endpoint", DEAD, "--max-outstanding", jobs, *limit)
    with staged(dict.fromkeys(LIVING, FAST), *flags) as stage:
        stage.spool.drop("living.jsonl", lines(jobs, *LIVING))
        time.sleep(5.0)
        before = rate(stage.accepted, SECONDS)
        stage.spool.drop("dead.jsonl", lines(DEAD_JOBS, DEAD))
        time.sleep(3.0)
        beside = rate(stage.accepted, SECONDS)
        assert stage.accepted() < jobs, "there were too few jobs"
        paused = [labels for labels, on in series(stage.service, "dispatcher_lane_paused") if on]
    share = beside / before
    seen = f"{share:.1%} of {before:,.0f}/s; paused: {len(paused)} lane"
    return Row(f"two endpoints beside a dead one, {name}", ">= 95 %", seen, share >= 0.95)
