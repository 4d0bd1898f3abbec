"""Three endpoints, one of which is dead: it is not there, so that every request for it is refused."""

import time

from benchmarks.service.stage import FAST, Row, lines, rate, series, staged

LIVING = ("first", "second")
DEAD = "dead"
SECONDS = 10.0
JOBS = 60_000


def dead_lane() -> list[Row]:
    """What two endpoints get alone, and beside the third."""
    return [_row("100/s each", 100.0), _row("as fast as it goes", None)]


def _row(name: str, per_second: float | None) -> Row:
    limit = ("--requests-per-second", per_second) if per_second else ()
    flags = ("--allow-endpoint", DEAD, "--max-outstanding", 10 * JOBS, *limit)
    with staged(dict.fromkeys(LIVING, FAST), *flags) as stage:
        stage.spool.drop("living.jsonl", lines(3 * JOBS, *LIVING))
        time.sleep(5.0)
        before = rate(stage.accepted, SECONDS)
        stage.spool.drop("dead.jsonl", lines(JOBS, DEAD))
        time.sleep(3.0)
        beside = rate(stage.accepted, SECONDS)
        paused = [labels for labels, on in series(stage.service, "dispatcher_lane_paused") if on]
    share = beside / before
    seen = f"{share:.1%} of {before:,.0f}/s; paused: {len(paused)} lane"
    return Row(f"two endpoints beside a dead one, {name}", ">= 95 %", seen, share >= 0.95)
