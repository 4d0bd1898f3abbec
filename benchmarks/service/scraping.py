"""A scrape while the service dispatches as fast as it can to ten endpoints."""

import statistics
import time

from prometheus_client import CollectorRegistry

from benchmarks.service.stage import FAST, Page, Row, Stage, every, lines, ms, quantile, rate, staged
from dispatcher.admin.exposition import openmetrics
from dispatcher.metrics import Metrics
from dispatcher.model import EndpointName

ENDPOINTS = [f"model-{number}" for number in range(10)]
SCRAPES = 100


def scrape() -> list[Row]:
    """Time of a scrape, of the smallest answer there is beside it, and of the rendering alone."""
    with staged(dict.fromkeys(ENDPOINTS, FAST)) as stage:
        for number in range(4):
            stage.spool.drop(f"{number}.jsonl", lines(100_000, *ENDPOINTS))
        stage.service.until_said("ready")
        time.sleep(5.0)
        return [*_under_load(stage), _rendering()]


def _under_load(stage: Stage) -> list[Row]:
    series = len([line for line in stage.service.get("/metrics")[1].splitlines() if not line.startswith("#")])
    sent = rate(stage.accepted, 5.0)
    page, before = Page(stage.service), stage.accepted()
    began = time.monotonic()
    scrapes = every(0.1, SCRAPES, lambda: page.seconds("/metrics"))
    while_scraped = (stage.accepted() - before) / (time.monotonic() - began)
    turns = every(0.05, 2 * SCRAPES, lambda: page.seconds("/healthz"))
    page.close()
    median = statistics.median(scrapes)
    return [
        Row("series with ten endpoints", "<= 1,500", f"{series:,}", series <= 1_500),
        Row("scrape at full load, median", "<= 20 ms", ms(median), median <= 0.020),
        Row("scrape at full load, p99", "", ms(quantile(scrapes, 0.99))),
        Row(
            "/healthz at full load, median and p99", "", f"{ms(statistics.median(turns))}, {ms(quantile(turns, 0.99))}"
        ),
        Row("jobs/s; while scraped ten times a second", "", f"{sent:,.0f}; {while_scraped:,.0f}"),
    ]


def _rendering() -> Row:
    registry = CollectorRegistry()
    Metrics(registry, [EndpointName(name) for name in ENDPOINTS])

    def render() -> float:
        began = time.process_time()
        openmetrics(registry)
        return time.process_time() - began

    return Row("CPU of one rendering", "", ms(statistics.median(render() for _ in range(50))))
