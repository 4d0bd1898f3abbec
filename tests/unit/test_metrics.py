"""The metrics: what exists from the start, how much of it, and that each fact moves the series it should."""

import subprocess
from collections.abc import Callable
from itertools import pairwise
from shutil import which

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dispatcher import metrics as m
from dispatcher.interfaces import FaultKind
from dispatcher.metrics import Metrics, Operation, Outcome, metrics_table
from dispatcher.model import EndpointName, FailureReason, SizeClass, State, Transport

ENDPOINT = EndpointName("endpoint-0")
TEN = [EndpointName(f"endpoint-{number}") for number in range(10)]
BUILD = {"version": "1", "python": "3", "aiobotocore": "3"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, TEN, BUILD)


def series(registry: CollectorRegistry) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in registry.collect()
        for sample in family.samples
    }


def every_fact(metrics: Metrics) -> None:
    """Tells every fact with every value it can have."""
    for transport, size in m.COMPARED:
        metrics.submitted(transport, size, 0.1)
    for transport in Transport:
        metrics.completed(transport, 1.0)
        for outcome in Outcome:
            metrics.attempted(transport, outcome)
    for operation in Operation:
        for outcome in Outcome:
            metrics.request_began(operation)
            metrics.requested(operation, outcome, 0.1)
            metrics.request_over(operation)
    for reason in m.RETRY_REASONS:
        metrics.retried(reason)
    metrics.read(accepted=2, rejected=1)
    metrics.slot_taken(0.1)
    metrics.late_result()
    metrics.committed(0.1)
    metrics.wal_is(4096)
    metrics.loop_lagged(0.1)
    for endpoint in map(metrics.endpoint, TEN):
        endpoint.waited(0.1)
        endpoint.outstanding.set(1)
        endpoint.oldest_age_seconds.set(1)
        for state in State:
            endpoint.entered(state, 3)
        for reason in m.PAUSE_REASONS:
            endpoint.paused(reason)


def test_ten_endpoints_make_at_most_1500_series(registry: CollectorRegistry, metrics: Metrics) -> None:
    assert 1_000 < len(series(registry)) <= 1_500


def test_every_possible_series_exists_from_the_start(registry: CollectorRegistry, metrics: Metrics) -> None:
    before = series(registry)
    every_fact(metrics)
    assert series(registry) == before


def test_the_table_and_the_registry_say_the_same(registry: CollectorRegistry, metrics: Metrics) -> None:
    held = {
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} |": family.documentation
        for family in registry.collect()
    }
    table = metrics_table().splitlines()[2:]
    assert len(table) == len(held)
    for start, meaning in held.items():
        assert [row for row in table if row.startswith(start) and row.endswith(f"| {meaning} |")], start


def test_the_table_names_the_labels_that_series_have(registry: CollectorRegistry, metrics: Metrics) -> None:
    labels = {
        family.name: {label for sample in family.samples for label in sample.labels if label != "le"}
        for family in registry.collect()
    }
    assert labels == {
        definition.full_name.removesuffix("_total"): set(definition.labels) for definition in m.DEFINITIONS
    }


@pytest.mark.parametrize("definition", m.DEFINITIONS, ids=lambda definition: definition.name)
def test_a_help_text_is_one_sentence(definition: m.Definition) -> None:
    assert definition.help.endswith(".")
    assert "\n" not in definition.help
    assert len(definition.help) <= 120


@pytest.mark.parametrize("buckets", [m.CALL_BUCKETS, m.WAIT_BUCKETS, m.PAUSE_BUCKETS])
def test_buckets_rise_from_a_millisecond_to_at_most_six_hours(buckets: tuple[float, ...]) -> None:
    assert buckets[0] == 0.001
    assert buckets[-1] <= 6 * 3600
    assert all(low < high for low, high in pairwise(buckets))


def test_an_outcome_is_ok_or_a_kind_of_fault() -> None:
    assert {*Outcome} == {Outcome.OK, *(Outcome(kind) for kind in FaultKind)}


Fact = tuple[Callable[[Metrics], None], str, dict[str, str]]
FACTS: list[Fact] = [
    (lambda it: it.read(accepted=1, rejected=0), "lines_total", {"verdict": "accepted"}),
    (lambda it: it.read(accepted=0, rejected=1), "lines_total", {"verdict": "rejected"}),
    (lambda it: it.slot_taken(1), "slot_wait_seconds_sum", {}),
    (
        lambda it: it.submitted(Transport.S3, SizeClass.GT_128K, 1),
        "submission_seconds_sum",
        {"transport": "s3", "size_class": "gt_128k"},
    ),
    (lambda it: it.submitted(Transport.INLINE, SizeClass.LE_1K, 1), "s3_puts_avoided_total", {}),
    (
        lambda it: it.attempted(Transport.REFERENCE, Outcome.REFUSED),
        "attempts_total",
        {"transport": "reference", "outcome": "refused"},
    ),
    (lambda it: it.retried(FailureReason.THROTTLED), "retries_total", {"reason": "throttled"}),
    (lambda it: it.requested(Operation.LIST, "missing", 1), "aws_requests_total", {"operation": "ListObjectsV2"}),
    (lambda it: it.requested(Operation.INVOKE, "ok", 1), "aws_requests_total", {"operation": "InvokeEndpointAsync"}),
    (
        lambda it: it.requested(Operation.INVOKE, Outcome.OK, 1),
        "attempt_seconds_sum",
        {"operation": "InvokeEndpointAsync", "outcome": "ok"},
    ),
    (lambda it: it.completed(Transport.INLINE, 1), "completion_seconds_sum", {"transport": "inline"}),
    (lambda it: it.late_result(), "late_results_total", {}),
    (lambda it: it.committed(1), "ledger_commit_seconds_sum", {}),
    (lambda it: it.wal_is(1), "ledger_wal_bytes", {}),
    (lambda it: it.loop_lagged(1), "event_loop_lag_seconds_sum", {}),
    (
        lambda it: it.endpoint(ENDPOINT).entered(State.SUBMITTED),
        "jobs_total",
        {"endpoint": "endpoint-0", "state": "submitted"},
    ),
    (lambda it: it.endpoint(ENDPOINT).waited(1), "queue_wait_seconds_sum", {"endpoint": "endpoint-0"}),
    (
        lambda it: it.endpoint(ENDPOINT).paused(FailureReason.NETWORK),
        "lane_paused",
        {"endpoint": "endpoint-0", "reason": "network"},
    ),
]


@pytest.mark.parametrize(
    ("tell", "name", "labels"), FACTS, ids=[f"{fact[1]}-{number}" for number, fact in enumerate(FACTS)]
)
def test_a_fact_moves_its_series(
    registry: CollectorRegistry, metrics: Metrics, tell: Callable[[Metrics], None], name: str, labels: dict[str, str]
) -> None:
    assert registry.get_sample_value(f"dispatcher_{name}", labels) == 0
    tell(metrics)
    assert registry.get_sample_value(f"dispatcher_{name}", labels) == 1


def test_a_job_by_reference_is_not_compared(registry: CollectorRegistry, metrics: Metrics) -> None:
    before = generate_latest(registry)
    metrics.submitted(Transport.REFERENCE, SizeClass.LE_1K, 1)
    assert generate_latest(registry) == before


def test_a_request_is_in_flight_until_it_is_over(registry: CollectorRegistry, metrics: Metrics) -> None:
    def in_flight() -> float | None:
        return registry.get_sample_value("dispatcher_in_flight_attempts", {"operation": "PutObject"})

    metrics.request_began(Operation.PUT)
    assert in_flight() == 1
    metrics.request_over(Operation.PUT)
    assert in_flight() == 0


def test_one_reason_to_pause_may_end_while_another_holds(registry: CollectorRegistry, metrics: Metrics) -> None:
    lane = metrics.endpoint(ENDPOINT)
    lane.paused(FailureReason.THROTTLED)
    lane.paused(FailureReason.BUCKET)
    lane.resumed(FailureReason.THROTTLED)
    held = {
        reason: registry.get_sample_value("dispatcher_lane_paused", {"endpoint": ENDPOINT, "reason": reason})
        for reason in m.PAUSE_REASONS
    }
    assert [reason for reason, value in held.items() if value] == [FailureReason.BUCKET]


def test_a_reason_holds_while_any_part_of_the_lane_stands_still_for_it(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    lane, held = metrics.endpoint(ENDPOINT), []
    for step in (lane.paused, lane.paused, lane.resumed, lane.resumed):
        step(FailureReason.ACCESS_DENIED)
        labels = {"endpoint": ENDPOINT, "reason": "access_denied"}
        held.append(registry.get_sample_value("dispatcher_lane_paused", labels))
    assert held == [1, 1, 1, 0]


def test_an_endpoint_is_added_once(registry: CollectorRegistry, metrics: Metrics) -> None:
    before = series(registry)
    assert metrics.add_endpoint(ENDPOINT) is metrics.endpoint(ENDPOINT)
    assert series(registry) == before


def test_an_endpoint_that_was_not_added_has_no_metrics(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.endpoint(EndpointName("from-a-job"))


def test_the_build_is_told(registry: CollectorRegistry, metrics: Metrics) -> None:
    assert registry.get_sample_value("dispatcher_build_info", BUILD) == 1
    assert set(m.this_build()) == set(BUILD)


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say(registry: CollectorRegistry, metrics: Metrics) -> None:
    every_fact(metrics)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
