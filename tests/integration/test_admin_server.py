"""The metrics server, asked over real HTTP."""

import asyncio
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from shutil import which

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dispatcher.admin.server import metrics_server, parse_address
from dispatcher.errors import UsageError
from dispatcher.metrics import Metrics
from dispatcher.model import EndpointName

ANYWHERE = "127.0.0.1:0"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"
)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Metrics(registry, [EndpointName("endpoint-0")])
    return registry


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def test_metrics_are_openmetrics_for_who_asks_for_them(registry: CollectorRegistry, http: ClientSession) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        response = await http.get(f"http://{address}/metrics", headers={"Accept": PROMETHEUS})
        families = {family.name for family in parse_openmetrics(await response.text())}  # type: ignore[no-untyped-call]
    assert (response.status, response.content_type) == (200, "application/openmetrics-text")
    assert "dispatcher_submission_seconds" in families


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "", "application/openmetrics-text;version=x.y", "\u00e4;=,;"])
async def test_metrics_are_text_for_everybody_else(
    registry: CollectorRegistry, http: ClientSession, accept: str
) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        response = await http.get(f"http://{address}/metrics", headers={"Accept": accept})
        families = {family.name for family in parse_text(await response.text())}
    assert (response.status, response.content_type) == (200, "text/plain")
    assert "dispatcher_submission_seconds" in families


async def test_head_answers_without_a_body(registry: CollectorRegistry, http: ClientSession) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        for path in ("metrics", "healthz", "readyz"):
            response = await http.head(f"http://{address}/{path}")
            assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_but_get_and_head_is_allowed(
    registry: CollectorRegistry, http: ClientSession, method: str
) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        response = await http.request(method, f"http://{address}/metrics", data=b"x")
    assert response.status == 405


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/debug", "/../etc/passwd"])
async def test_there_is_nothing_else(registry: CollectorRegistry, http: ClientSession, path: str) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        response = await http.get(f"http://{address}{path}")
    assert response.status == 404


async def test_a_request_that_is_no_http_is_refused_and_not_logged(
    registry: CollectorRegistry, http: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        response = await http.get(f"http://{address}/{'x' * 20_000}")
        again = await http.get(f"http://{address}/healthz")
    assert (response.status, again.status) == (400, 200)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_ready_and_healthy_are_asked_each_time(registry: CollectorRegistry, http: ClientSession) -> None:
    ready, healthy = [False, True], [True, False]
    async with metrics_server(ANYWHERE, registry, lambda: ready.pop(0), lambda: healthy.pop(0)) as address:
        seen = [
            (await http.get(f"http://{address}/{path}")).status for path in ("readyz", "readyz", "healthz", "healthz")
        ]
    assert seen == [503, 200, 200, 503]


async def test_a_scrape_does_not_hold_up_the_loop(registry: CollectorRegistry, http: ClientSession) -> None:
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow() -> float:
        loop.call_soon_threadsafe(entered.set)
        leave.wait(10)
        return 1.0

    Gauge("slow", "Waits until it is let go.", registry=registry).set_function(slow)
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        scrape = asyncio.create_task(http.get(f"http://{address}/metrics"))
        await entered.wait()
        leave.set()
        assert (await scrape).status == 200


def asked(url: str) -> tuple[int, bytes]:
    """Status and body, without a turn of the loop in between."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


async def test_a_loop_that_stands_still_does_not_hold_up_a_scrape(registry: CollectorRegistry) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True, lambda: False) as address:
        status, scraped = asked(f"http://{address}/metrics")
        healthy, _ = asked(f"http://{address}/healthz")
    assert (status, b"dispatcher_submission_seconds" in scraped, healthy) == (200, True, 503)


async def test_the_port_is_free_again_afterwards(registry: CollectorRegistry) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as first:
        pass
    async with metrics_server(first, registry, lambda: True) as second:
        assert second == first


async def test_a_busy_address_is_named(registry: CollectorRegistry) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        with pytest.raises(UsageError, match=rf"cannot listen on {address}: .*--listen"):
            await metrics_server(address, registry, lambda: True).__aenter__()


@pytest.mark.parametrize("address", ["198.51.100.1:9464", "no-such-host.invalid:9464", f"{'a' * 64}:1"])
async def test_an_address_that_is_not_ours_is_a_usage_error(registry: CollectorRegistry, address: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        await metrics_server(address, registry, lambda: True).__aenter__()


@pytest.mark.parametrize(
    "listen", ["", "9464", ":9464", "host", "host:", "host:http", "host:-1", "host:65536", "::1:80", "[]:1"]
)
def test_what_is_no_address_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(listen)


@pytest.mark.parametrize(
    ("listen", "expected"), [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:0", ("::1", 0)), ("a.b:1", ("a.b", 1))]
)
def test_an_address_is_a_host_and_a_port(listen: str, expected: tuple[str, int]) -> None:
    assert parse_address(listen) == expected


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_an_ipv6_address_stands_in_brackets(registry: CollectorRegistry, http: ClientSession) -> None:
    async with metrics_server("[::1]:0", registry, lambda: True) as address:
        assert address.startswith("[::1]:")
        assert (await http.get(f"http://{address}/healthz")).status == 200


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
async def test_promtool_accepts_a_scrape(registry: CollectorRegistry, http: ClientSession) -> None:
    async with metrics_server(ANYWHERE, registry, lambda: True) as address:
        scraped = await (await http.get(f"http://{address}/metrics")).read()
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=scraped, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
