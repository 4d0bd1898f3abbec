"""The process of the service: started, scraped, told to stop, killed; and what an operator and a careless hand do to it."""

import contextlib
import http.client
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from benchmarks.day.diary import Diary, Life, scraped
from benchmarks.day.drops import ENDPOINTS, GONE, MAIN, VANISHING
from benchmarks.day.meters import AT_REST
from dispatcher.sandbox.process import Sandbox
from dispatcher.sandbox.settings import Operation
from tests.programs import dispatch, started
from tests.sandboxes import eventually
from tests.services import DRAIN_SECONDS, Service, Spool, status

IN_FLIGHT = 16
ATTEMPT_SECONDS = 4.0
START_SECONDS = 60.0
SCRAPE_SECONDS = 1.0
RUN_CHARACTERS = len("abcdefghijklmnop-")
"""How much of a name in `work/` is the run id and its dash."""


class Keeper:
    """Starts, scrapes, stops and kills the service; one process at a time, and the day goes on meanwhile.

    A process starts, runs, and, told to stop, drains until it is down; `tick` sees how far it is.
    """

    def __init__(self, folder: Path, sandbox: Sandbox, diary: Diary, stack: ExitStack) -> None:
        self.sandbox = sandbox
        self.spool = Spool(folder / "spool")
        self._folder = folder
        self._diary = diary
        self._stack = stack
        self._service: Service | None = None
        self._ready = False
        self._stopped_at: float | None = None  # when it was told to stop
        self._start_wanted = False
        self._scraped_at = 0.0
        self._address: tuple[str, int] = ("", 0)

    def tick(self) -> None:
        """Takes note of what the process has come to, and scrapes one that runs when it is time to."""
        if self._service is None:
            if self._start_wanted:
                self.start()
        elif self._stopped_at is not None:
            self._see_end(self._service, self._stopped_at)
        elif not self._ready:
            self._see_ready(self._service)
        elif time.monotonic() - self._scraped_at >= SCRAPE_SECONDS:
            self.scrape()

    def start(self) -> None:
        """A new process, as soon as the last one is down."""
        self._start_wanted = self._service is not None
        if self._start_wanted:
            return
        self._stack.close()
        # What the last process left open would be counted as this one's.
        eventually(lambda: set(self.sandbox.counts()["open_requests"]) <= {Operation.CONTROL}, START_SECONDS)
        self._diary.lives.append(Life(began_at=time.time(), requests_before=self.sandbox.counts()["requests"]))
        command = ("serve", "--config", self._folder / "service.toml")
        running = self._stack.enter_context(started(self._folder, self.sandbox, *command))
        self._service = Service(running, self.spool)

    def _see_ready(self, service: Service) -> None:
        assert service.running.process.poll() is None, service.running.err.read_text()
        if not service.said("ready"):
            return
        life = self._diary.lives[-1]
        life.ready_seconds = time.time() - life.began_at
        (url,) = [event["url"] for event in service.events() if event["event"] == "metrics"]
        where = urlsplit(url)
        self._address, self._ready = (str(where.hostname), int(where.port or 0)), True
        self._diary.note(f"the service is ready after {life.ready_seconds:.1f} s")

    def stop(self) -> None:
        """SIGTERM, with a scrape just before it."""
        self.scrape()
        self._running()[0].running.signal(signal.SIGTERM)
        self._ready, self._stopped_at = False, time.time()
        self._diary.note("told to stop")

    def _see_end(self, service: Service, since: float) -> None:
        seconds = time.time() - since
        process = service.running.process
        if process.poll() is None and seconds < DRAIN_SECONDS:
            return
        self._diary.lives[-1].drain_seconds = seconds
        if process.poll() != 0:
            self._diary.findings.append(f"told to stop, it ended with {process.poll()} after {seconds:.1f} s")
        self._ended("SIGTERM")
        self._diary.note(f"down: drained in {seconds:.2f} s")

    def kill(self) -> None:
        """SIGKILL, with a scrape just before it."""
        self.scrape()
        process = self._running()[0].running.process
        process.kill()
        process.wait()
        self._ended("SIGKILL")
        self._diary.note("killed")

    def until_ready(self) -> None:
        """Waits until a process runs."""
        if self._ready:
            return
        eventually(lambda: self.tick() or self._ready, START_SECONDS)  # type: ignore[func-returns-value]

    def until_down(self) -> None:
        """Waits until none does, of one that was told to stop."""
        eventually(lambda: self.tick() or self._service is None, 2 * DRAIN_SECONDS)  # type: ignore[func-returns-value]

    def cancel(self) -> None:
        """An operator cancels what is not sent of the largest file at work; if there is none, nothing."""
        self.until_ready()
        held = sorted((path.stat().st_size, path.name) for path in (self.spool.path / "work").glob("*.jsonl"))
        if not held:
            return
        name = held[-1][1][RUN_CHARACTERS:]
        ended = dispatch(self._folder, None, "cancel", name, "--spool", self.spool.path)
        self._diary.note(f"an operator cancels {name}: {ended.err.strip().splitlines()[-1]}")

    def lose_payloads(self) -> None:
        """Deletes the payload files of a job file, once it is read."""
        self.until_ready()
        eventually(
            lambda: any(held["name"] == VANISHING and held["lines"] for held in status(self.spool)["files"]), 20.0
        )
        for path in (self._folder / "stock" / GONE).iterdir():
            path.unlink()
        self._diary.note(f"the payloads of {VANISHING} are deleted")

    def scrape(self) -> None:
        """Asks for /metrics, and for the memory used; first waits for a process if none runs."""
        self.until_ready()
        service, life = self._running()
        self._scraped_at = time.monotonic()
        began_at, before = time.time(), time.perf_counter()
        connection = http.client.HTTPConnection(*self._address, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        life.last = scraped(began_at, time.perf_counter() - before, text)
        life.scrapes += 1
        life.slowest_scrape_seconds = max(life.slowest_scrape_seconds, life.last.seconds)
        life.peak_bytes = max(life.peak_bytes, _peak_bytes(service.running.process.pid))

    def settled(self) -> bool:
        """Whether a scrape says that nothing is outstanding, on the wire or paused."""
        self.scrape()
        last = self._running()[1].last
        assert last is not None
        return not any(last.sum(f"dispatcher_{name}") for name in AT_REST)

    def _running(self) -> tuple[Service, Life]:
        assert self._service is not None, "the service does not run"
        return self._service, self._diary.lives[-1]

    def _ended(self, end: Literal["SIGTERM", "SIGKILL"]) -> None:
        service, life = self._running()
        life.end, life.ended_at = end, time.time()
        if "Traceback" in service.running.err.read_text():
            self._diary.findings.append(f"a traceback in {service.running.err.name}")
        self._service, self._ready, self._stopped_at = None, False, None


@contextlib.contextmanager
def a_service(folder: Path, sandbox: Sandbox, diary: Diary) -> Iterator[Keeper]:
    """The keeper of a service that has not begun; whatever runs at the end is ended."""
    (folder / "service.toml").write_text(_toml(folder), "utf-8")
    with ExitStack() as stack:
        yield Keeper(folder, sandbox, diary, stack)


def _toml(folder: Path) -> str:
    allowed = ", ".join(f'"{name}"' for name in ENDPOINTS if name != MAIN)
    return f"""
spool = "{folder / "spool"}"
payload_root = "{folder / "stock"}"
endpoint = "{MAIN}"
allow_endpoint = [{allowed}]
staging = "s3://sandbox-in/staging"
comparison_share = 0.05
listen = "127.0.0.1:0"
max_in_flight = {IN_FLIGHT}
attempt_seconds = {ATTEMPT_SECONDS}
doubt_cap_seconds = 2.0
result_slack_seconds = 2.0
settle_seconds = 1.0
scan_seconds = 1.0
disk_reserve_bytes = 1000000
log_format = "json"
"""


def _peak_bytes(pid: int) -> int:
    """The most memory that a process had; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
