"""A start with a million jobs submitted and not settled, and then their outputs all at once."""

import asyncio
import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.service.filled import BUCKET, key
from benchmarks.service.stage import Row, cpu_seconds, lines, peak_mb, scratch, series, succeeded, until
from dispatcher.formats.joblines import LineRules
from dispatcher.identity import RUN_ID_BYTES, run_id
from dispatcher.intake import IntakeSettings, take_in
from dispatcher.ledger.sqlite import open_sqlite
from dispatcher.metrics import Metrics
from dispatcher.model import Claim, EndpointName, NewFile, Receipt, RunId, Submitted
from dispatcher.sandbox.process import Sandbox, environment
from dispatcher.sandbox.settings import Settings
from tests.sandboxes import free_ports
from tests.services import Service, Spool, serving

JOBS = int(os.environ.get("BENCH_OUTSTANDING", "1000000"))
NAME = "million.jsonl"
ENDPOINT = EndpointName("model")
SECONDS_AGO = 60.0


def start() -> list[Row]:
    """Until /readyz says so, its memory, and what following the jobs to their end costs."""
    run = run_id(os.urandom(RUN_ID_BYTES))
    with scratch() as folder, _filled(folder, run) as (sandbox, child):
        spool = Spool(folder / "spool")
        began = time.monotonic()
        asyncio.run(_outstanding(spool, run))
        print(f"  a ledger with {JOBS:,} jobs outstanding made in {time.monotonic() - began:.0f} s", flush=True)
        (port,) = free_ports(1)
        began = time.monotonic()
        with serving(folder, sandbox, "--listen", f"127.0.0.1:{port}", wait=False, endpoint=ENDPOINT) as service:
            until(lambda: _is_ready(port), 120.0, 0.01)
            return [*_started(service, time.monotonic() - began), *_followed(service, child)]


def _started(service: Service, since_exec: float) -> list[Row]:
    pid = service.running.process.pid
    return [
        Row(f"ready with {JOBS:,} outstanding", "<= 10 s", f"{since_exec:.1f} s", since_exec <= 10.0),
        Row("its CPU and peak memory until then", "", f"{cpu_seconds(pid):.1f} s, {peak_mb(pid):.0f} MB"),
    ]


def _followed(service: Service, child: subprocess.Popen[bytes]) -> list[Row]:
    """From the moment on from which outputs appear."""
    pid = service.running.process.pid
    time.sleep(10.0)
    used, began = cpu_seconds(pid), time.monotonic()
    child.send_signal(signal.SIGUSR1)
    until(lambda: succeeded(service) >= JOBS, 1_800.0, 1.0)
    took, cpu = time.monotonic() - began, cpu_seconds(pid) - used
    service.spool.until_finished(NAME, seconds=600.0)
    published = time.monotonic() - began
    calls = {labels: number for labels, number in series(service, "dispatcher_aws_requests_total") if number}
    return [
        Row("all settled after their outputs began to appear", "", f"{took:.0f} s"),
        Row("CPU of following a job", "", f"{1e6 * cpu / JOBS:.0f} µs"),
        Row("S3 calls for all of them", "", ", ".join(f"{label} {number:,}" for label, number in calls.items())),
        Row("results published, peak memory then", "", f"after {published:.0f} s, {peak_mb(pid):.0f} MB"),
    ]


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _filled(folder: Path, run: RunId) -> Iterator[tuple[Sandbox, subprocess.Popen[bytes]]]:
    """A sandbox that gets the outputs when it is told to."""
    command = [sys.executable, "-m", "benchmarks.service.filled", NAME, run, str(JOBS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            url = f"http://127.0.0.1:{int(child.stdout.readline())}"
            (folder / "config").write_text("[default]\n")
            env = environment(Settings(), url, folder / "config")
            yield Sandbox(url=url, pid=child.pid, settings=Settings(), env=env, record_path=None), child
        finally:
            child.kill()


# --- the ledger ------------------------------------------------------------------------------------------------------


async def _outstanding(spool: Spool, run: RunId) -> None:
    """A ledger, and the file in `work/`, as a process leaves them that has sent everything."""
    (spool.path / "work").mkdir()
    path = spool.path / "work" / f"{run}-{NAME}"
    path.write_bytes(lines(JOBS, ENDPOINT))
    ledger = await open_sqlite(spool.ledger)
    file = await ledger.add_file(
        NewFile(
            run_id=run,
            name=NAME,
            source=str(path),
            data_path=str(path),
            payload_root=str(spool.inbox),
            size_bytes=path.stat().st_size,
            taken_at=time.time() - SECONDS_AGO,
        )
    )
    rules = LineRules(endpoint=ENDPOINT, allowed_endpoints=frozenset([ENDPOINT]))
    settings = IntakeSettings(rules=rules, share=0.0, line_max_bytes=1 << 20)
    await take_in(file, ledger=ledger, settings=settings, metrics=Metrics(CollectorRegistry()))
    (queue,) = ledger.queues()
    while claims := await ledger.claim(queue.queue_id, 5_000, time.time()):
        await ledger.record([_submitted(run, claim) for claim in claims])
    await ledger.aclose()


def _submitted(run: RunId, claim: Claim) -> Submitted:
    at = time.time() - SECONDS_AGO
    output = f"s3://{BUCKET}/{key(NAME, run, claim.key.line)}"
    failure = output.replace("/results/", "/failures/").replace(".out", "-error.out")
    return Submitted(
        key=claim.key, receipt=Receipt(output, failure), submitted_at=at, deadline_at=at + 6 * 3600.0, seconds=0.005
    )
