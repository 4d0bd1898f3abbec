"""A service that throttles at a limit which moves."""

import time

from benchmarks.service.stage import FAST, Row, Stage, lines, staged

LOW, HIGH = 200.0, 2_000.0
HOLD_SECONDS = 10.0
BURST_SECONDS = 0.1
"""How much a service that counts by the second lets through at once: a loop that turns every 30 ms cannot send evenly."""
TURNS = 2
JOBS = 300_000


def throttle() -> list[Row]:
    """How much of a limit is used that goes up and down every few seconds."""
    flags = ("--max-outstanding", JOBS)
    with staged(
        {"model": FAST}, *flags, rate_limits={"invoke": {"per_second": HIGH, "burst": HIGH * BURST_SECONDS}}
    ) as stage:
        stage.spool.drop("a.jsonl", lines(JOBS, "model"))
        time.sleep(5.0)
        alone = _most(stage)
        # What a machine cannot send nobody can use: the upper limit is one that it could hold by itself.
        high = min(HIGH, 0.8 * alone)
        parts = [_part(stage, limit) for _ in range(TURNS) for limit in (LOW, high)]
    allowed, taken, sent = (sum(part[index] for part in parts) for index in range(3))
    share = taken / allowed
    return [
        Row("most that this machine sends", "", f"{alone:,.0f}/s"),
        Row(f"used of a limit between {LOW:.0f} and {high:,.0f}/s", ">= 90 %", f"{share:.1%}", share >= 0.9),
        Row("sends per success meanwhile", "", f"{sent / taken:.3f}"),
        Row("used part by part", "", " ".join(f"{part[1] / part[0]:.0%}" for part in parts)),
    ]


def _most(stage: Stage) -> float:
    """What it sends a second where nothing is throttled."""
    stage.sandbox.patch(rate_limits={"invoke": None})
    time.sleep(3.0)
    before, began = stage.accepted(), time.monotonic()
    time.sleep(5.0)
    return (stage.accepted() - before) / (time.monotonic() - began)


def _part(stage: Stage, limit: float) -> tuple[float, int, int]:
    """Allowed, taken and sent while one limit holds."""
    stage.sandbox.patch(rate_limits={"invoke": {"per_second": limit, "burst": limit * BURST_SECONDS}})
    before, began = _sent(stage), time.monotonic()
    time.sleep(HOLD_SECONDS)
    after = _sent(stage)
    seconds = time.monotonic() - began
    return limit * seconds, after[0] - before[0], after[1] - before[1]


def _sent(stage: Stage) -> tuple[int, int]:
    """Jobs taken, requests sent."""
    counts = stage.sandbox.counts()
    return int(counts["jobs"]["accepted"]), sum(counts["requests"].get("invoke", {}).values())
