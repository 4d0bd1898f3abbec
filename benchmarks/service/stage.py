"""Where figures are seen: a sandbox and `dispatcher serve`, each a process of its own, and what can be read of both.

Everything lies in a temporary folder and ends with the block; whatever is waited for has a limit, after which the figure
fails and says what was missing.
"""

import contextlib
import http.client
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load
from tests.services import Service, Spool, serving

FAST = {"model": "digest", "instances": 1_000, "concurrency_per_instance": 1_000}
"""An endpoint that answers at once, however much it gets."""
TICKS = os.sysconf("SC_CLK_TCK")


class Row(Struct, frozen=True):
    """A line of the table: what was measured, what it must be, what it was. `holds` None: a figure that nothing is asked of."""

    figure: str
    must: str
    seen: str
    holds: bool | None = None


class Stage(Struct, frozen=True):
    """A service that runs before a sandbox."""

    sandbox: Sandbox
    service: Service

    @property
    def spool(self) -> Spool:
        """The folders that it serves."""
        return self.service.spool

    @property
    def pid(self) -> int:
        """The service's process."""
        return self.service.running.process.pid

    def accepted(self) -> int:
        """How many jobs the sandbox has taken since its counts began."""
        return int(self.sandbox.counts()["jobs"]["accepted"])


@contextlib.contextmanager
def staged(endpoints: Mapping[str, Mapping[str, Any]], *flags: object, **settings: Any) -> Iterator[Stage]:
    """A stage with these endpoints, the first for lines that name none. `flags` are the service's, `settings` the sandbox's."""
    with scratch() as folder, start_sandbox(load({"endpoints": endpoints, **settings})) as sandbox:
        allowed = [flag for name in endpoints for flag in ("--allow-endpoint", name)]
        with serving(folder, sandbox, *allowed, *flags, endpoint=next(iter(endpoints))) as service:
            yield Stage(sandbox, service)
            assert service.running.process.poll() is None, service.running.err.read_text()[-2_000:]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as folder:
        yield Path(folder)


def lines(jobs: int, *endpoints: str) -> bytes:
    """A job file of so many small jobs, bound for the endpoints in turn."""
    return b"".join(
        b'{"payload":%d,"endpoint":"%b"}\n' % (number, endpoints[number % len(endpoints)].encode())
        for number in range(jobs)
    )


class Page:
    """A connection to the service's admin server that stays open, as a scraper's does."""

    def __init__(self, service: Service) -> None:
        (url,) = [event["url"] for event in service.events() if event["event"] == "metrics"]
        where = urlsplit(url)
        self._connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        self._connection.connect()

    def seconds(self, path: str) -> float:
        """How long this page took."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        return time.perf_counter() - began

    def close(self) -> None:
        """Lets go of the connection."""
        self._connection.close()


def every(seconds: float, times: int, look: Callable[[], float]) -> list[float]:
    """What `look` gives, so many times, at a steady pace."""
    found, due = [], time.monotonic()
    for _ in range(times):
        time.sleep(max(0.0, due - time.monotonic()))
        found.append(look())
        due += seconds
    return found


def until(look: Callable[[], bool], seconds: float, step: float = 0.05) -> float:
    """Waits until it is so; how long that took."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"not within {seconds:.0f} s")
        time.sleep(step)
    return time.monotonic() - began


def rate(count: Callable[[], int], seconds: float) -> float:
    """By how much a second it grows."""
    before, began = count(), time.monotonic()
    time.sleep(seconds)
    return (count() - before) / (time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """What a process, all its threads, has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mb(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def ms(seconds: float) -> str:
    """For the table."""
    return f"{seconds * 1e3:.1f} ms"


def series(service: Service, name: str) -> list[tuple[str, int]]:
    """Labels and value of each series of this name, as scraped now."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", service.get("/metrics")[1], re.MULTILINE)
    return [(labels, int(float(value))) for labels, value in found]


def succeeded(service: Service) -> int:
    """How many jobs it knows to have succeeded."""
    return sum(jobs for labels, jobs in series(service, "dispatcher_jobs_total") if 'state="succeeded"' in labels)
