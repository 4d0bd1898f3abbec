"""The text of a scrape, compared with what the library writes."""

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from dispatcher.admin.exposition import encoder, openmetrics, text
from dispatcher.metrics import Metrics, Operation
from dispatcher.model import EndpointName, SizeClass, State, Transport

ODD = 'he said "x"\\\n'
OPENMETRICS = "application/openmetrics-text"


@pytest.fixture
def registry() -> CollectorRegistry:
    """All metrics, some of them moved, and one whose every word must be escaped."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, [EndpointName("a"), EndpointName(ODD)])
    metrics.endpoint(EndpointName(ODD)).entered(State.SUBMITTED, 123_456_789)
    metrics.submitted(Transport.INLINE, SizeClass.LE_1K, 0.0123)
    metrics.requested(Operation.PUT, "ok", 1e-9)
    odd = Gauge("odd", ODD, ["b", "a"], registry=registry)
    for value in (float("nan"), float("inf"), -0.0, 1e300):
        odd.labels(str(value), ODD).set(value)
    return registry


def test_plain_text_is_what_the_library_writes(registry: CollectorRegistry) -> None:
    assert text(registry) == generate_latest(registry)


def test_openmetrics_is_what_the_library_writes(registry: CollectorRegistry) -> None:
    assert openmetrics(registry) == generate_openmetrics(registry)  # type: ignore[no-untyped-call]


def test_a_second_scrape_shows_what_has_changed(registry: CollectorRegistry) -> None:
    before = text(registry)
    Gauge("another", "Comes later.", registry=registry).set(2)
    assert text(registry) == generate_latest(registry) != before


@pytest.mark.parametrize(
    ("accept", "encode"),
    [
        ("", text),
        ("text/plain", text),
        (OPENMETRICS, openmetrics),
        (f"{OPENMETRICS};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5", text),
        (f"text/html , {OPENMETRICS}; version=1.0.0; charset=utf-8;q=0.5", openmetrics),
        (f"{OPENMETRICS};version=2.0.0", text),
        (f"{OPENMETRICS};version=", text),
    ],
)
def test_a_scraper_gets_openmetrics_only_where_it_names_it(accept: str, encode: object) -> None:
    assert encoder(accept)[0] is encode
