"""The troubles of a day as the sandbox is told of them. Small ones come all day long; the large ones have their times."""

from typing import Any

from msgspec import Struct

from benchmarks.day.drops import COLD, FLAKY, LOSSY, MAIN

Rule = dict[str, Any]

MODELS: dict[str, dict[str, Any]] = {
    MAIN: {"min_seconds": 0.05, "max_seconds": 0.4, "instances": 16, "fail_every": 97},
    FLAKY: {
        "min_seconds": 0.1,
        "max_seconds": 0.6,
        "instances": 8,
        "fail_every": 11,
        "delay_every": 7,
        "delay_seconds": 1.0,
    },
    COLD: {
        "min_seconds": 0.05,
        "max_seconds": 0.2,
        "instances": 4,
        "asleep": True,
        "wake_seconds": 3.0,
        "inline": False,
    },
    LOSSY: {"max_seconds": 0.1, "instances": 4, "lose_every": 4},
}
for _model in MODELS.values():
    _model["model"] = "digest"

DAILY: list[Rule] = [
    {"operation": "invoke", "kind": "throttle", "rate": 0.01},
    {"operation": "invoke", "kind": "internal_failure", "rate": 0.01},
    {"operation": "invoke", "kind": "unavailable", "rate": 0.01},
    {"operation": "invoke", "kind": "reset_before", "rate": 0.004},
    {"operation": "invoke", "kind": "reset_after", "rate": 0.004},
    {"operation": "invoke", "kind": "reset_midway", "rate": 0.003},
    {"operation": "invoke", "kind": "hang_before", "rate": 0.003, "count": 3},
    {"operation": "invoke", "kind": "hang_after", "rate": 0.003, "count": 3},
    {"operation": "invoke", "kind": "slow", "rate": 0.3, "seconds": 0.05},
    {"operation": "put", "kind": "throttle", "rate": 0.03},
    {"operation": "put", "kind": "reset_after", "rate": 0.02},
    {"operation": "list", "kind": "internal_failure", "rate": 0.05},
    {"operation": "list", "kind": "reset_midway", "rate": 0.03},
    {"operation": "head", "kind": "unavailable", "rate": 0.02},
    {"operation": "get", "kind": "throttle", "rate": 0.02},
    {"operation": "delete", "kind": "unavailable", "rate": 0.02},
]


class Front(Struct, frozen=True):
    """A large trouble, from one share of the day to another: rules that go before the daily ones, or a rate limit."""

    name: str
    begins: float
    ends: float
    rules: tuple[Rule, ...] = ()
    per_second: float | None = None


def _away(*operations: str) -> tuple[Rule, ...]:
    """Half of what comes is cut off, half is told to come again."""
    cut = [{"operation": operation, "kind": "reset_before", "rate": 0.5} for operation in operations]
    return (*cut, *({"operation": operation, "kind": "unavailable"} for operation in operations))


NO_SAGEMAKER, NO_S3 = "SageMaker is away", "S3 is away"
FRONTS = (
    Front("throttled to 60 a second", 0.12, 0.20, per_second=60.0),
    Front("throttled to 15 a second", 0.20, 0.25, per_second=15.0),
    Front("throttled to 120 a second", 0.25, 0.30, per_second=120.0),
    Front(NO_SAGEMAKER, 0.38, 0.46, rules=_away("invoke")),
    Front(NO_S3, 0.62, 0.70, rules=_away("put", "get", "head", "list", "delete")),
    Front("throttled to 40 a second", 0.86, 0.92, per_second=40.0),
)
STOP, KILL, CANCEL = 0.53, 0.77, 0.58
"""When the service is stopped, when it is killed, and when an operator cancels what waits of a file."""
VANISH = 0.385
"""When, with SageMaker away, a job file comes whose payload files are deleted before they could be sent."""
DOWN_SHARE = 0.01
"""How long it stays away then."""


def patch(fronts: list[Front]) -> dict[str, Any]:
    """What the sandbox is told while these fronts are overhead."""
    limits = [front.per_second for front in fronts if front.per_second is not None]
    limit = {"per_second": limits[0], "burst": 5.0} if limits else None
    return {"faults": [*(rule for front in fronts for rule in front.rules), *DAILY], "rate_limits": {"invoke": limit}}
