"""The service as a container runs it: a spool, a process that serves it, files dropped in, and what is asked from outside."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from dispatcher.admin.control import ask
from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Books, Ended, Jobs, Running, audit, dispatch, rows, started
from tests.sandboxes import eventually

READY_SECONDS = 20.0
DRAIN_SECONDS = 30.0
"""What an orchestrator gives a process between SIGTERM and SIGKILL."""
QUICK = ("--scan-seconds", "0.2", "--settle-seconds", "0.2")
"""So that a test waits no longer than it must for a file that nobody told of."""
LOAD = ("--max-in-flight", "4", "--doubt-cap-seconds", "0.5")
"""A few requests at a time, and doubts that are soon looked into."""
SLOW = {"operation": "invoke", "kind": "slow", "seconds": 0.05}
"""A fault of the sandbox that leaves time to do something while jobs are sent."""


class Spool:
    """A spool's folders, from the side of those who feed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inbox = path / "inbox"
        self.inbox.mkdir(parents=True, exist_ok=True)

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.db"

    def drop(self, name: str, content: Jobs | bytes) -> None:
        """A job file appears in the inbox by one rename."""
        whole = content if isinstance(content, bytes) else b"".join(line + b"\n" for line in content.lines)
        part = self.inbox / f".{name}.part"
        part.write_bytes(whole)
        part.rename(self.inbox / name)

    def results(self, name: str) -> Path:
        """The folder of results that this title has, or will have."""
        return self.path / "results" / name

    def names(self, folder: str) -> list[str]:
        """What lies in one of the folders, without what is hidden."""
        return sorted(path.name for path in (self.path / folder).iterdir() if not path.name.startswith("."))

    def finished(self, names: Iterable[str], into: str = "done") -> bool:
        """Whether every one of these files has results and left `work/`."""
        return all((self.path / into / name).exists() and self.results(name).exists() for name in names)

    def until_finished(self, *names: str, seconds: float = 30.0, into: str = "done") -> None:
        """Waits for that."""
        try:
            eventually(lambda: self.finished(names, into), seconds)
        except AssertionError:
            missing = [name for name in names if not self.finished([name], into)]
            raise AssertionError(f"not finished within {seconds} s: {missing[:10]}") from None

    def run_ids(self) -> dict[str, str]:
        """The run id of each file in `work/`, by its name."""
        return {path.name[17:]: path.name[:16] for path in (self.path / "work").glob("*.jsonl*")}

    def lose_ledger(self) -> None:
        """The ledger is gone, with all that lies beside it."""
        for path in self.path.glob("ledger.db*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def summary(self, name: str) -> dict[str, Any]:
        """The summary of these results."""
        said: dict[str, Any] = json.loads((self.results(name) / "summary.json").read_bytes())
        return said


class Service(Struct, frozen=True):
    """A process that serves a spool."""

    running: Running
    spool: Spool

    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        lines = self.running.err.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, text: str) -> bool:
        """Whether it has logged an event that begins so."""
        return any(str(event.get("event")).startswith(text) for event in self.events())

    def until_said(self, text: str, seconds: float = READY_SECONDS) -> None:
        """Waits for such an event, as long as it lives."""
        eventually(lambda: self.said(text) or self.running.process.poll() is not None, seconds)
        assert self.said(text), self.running.err.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Ends it as an orchestrator does; it must have drained, with nothing to complain of."""
        self.running.signal(number)
        ended = self.running.end(DRAIN_SECONDS)
        assert ended.status == 0, ended.said
        assert "Traceback" not in ended.err, ended.err
        return ended

    def kill(self) -> None:
        """Ends it as a crash does."""
        self.running.process.kill()
        self.running.process.wait()
        assert "Traceback" not in self.running.err.read_text(), self.running.err.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of its admin server."""
        (url,) = [event["url"] for event in self.events() if event["event"] == "metrics"]
        try:
            with urllib.request.urlopen(url.removesuffix("/metrics") + path, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


@contextlib.contextmanager
def serving(
    folder: Path,
    sandbox: Sandbox | None,
    *flags: object,
    wait: bool = True,
    endpoint: str | None = ENDPOINT,
    **more: Any,
) -> Iterator[Service]:
    """`dispatcher serve` of `folder/spool`, ready unless told not to wait for that."""
    spool = Spool(folder / "spool")
    own = ("--endpoint", endpoint) if endpoint else ()
    command = ("serve", "--spool", spool.path, "--listen", "127.0.0.1:0", "--log-format", "json", *own, *QUICK, *flags)
    with started(folder, sandbox, *command, **more) as running:
        service = Service(running, spool)
        if wait:
            service.until_said("ready")
        yield service


def audit_all(files: Mapping[str, Jobs], spool: Spool, sandbox: Sandbox) -> dict[str, Books]:
    """`audit` of several job files that shared a sandbox."""
    ids = {name: {row["inference_id"] for row in rows(spool.results(name) / "results.jsonl")} for name in files}
    assert len(set().union(*ids.values())) == sum(map(len, ids.values())), "an inference id is used twice"
    record = sandbox.record()
    taken = {event["inference_id"] for event in record if event["event"] == "accepted"}
    assert taken <= set().union(*ids.values()), "something was invoked that is no job"
    by_file: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
    owner = {inference_id: name for name, own in ids.items() for inference_id in own}
    for event in record:
        if event.get("inference_id") in owner:
            by_file[owner[event["inference_id"]]].append(event)
    return {name: audit(jobs, spool.results(name), sandbox, by_file[name]) for name, jobs in files.items()}


def finish(service: Service, sandbox: Sandbox, files: Mapping[str, Jobs], repeated: int = 0) -> None:
    """All of these have results, every job succeeded, and no more than so many were sent twice."""
    service.spool.until_finished(*files)
    service.stop()
    books = audit_all(files, service.spool, sandbox)
    assert all(set(one.states()) <= {"succeeded"} for one in books.values())
    assert sum(one.repeated for one in books.values()) <= repeated


def status(spool: Spool, *flags: str) -> Any:
    """What `status --json` says."""
    ended = dispatch(spool.path.parent, None, "status", "--spool", spool.path, "--json", *flags)
    assert ended.status == 0, ended.said
    return json.loads(ended.out)


def asked(spool: Spool, command: str, **more: Any) -> Any:
    """What the process that serves the spool answers to a command, at once: no program has to start in between."""
    return asyncio.run(ask(spool.ledger, {"command": command, **more}))


def receipts(spool: Spool) -> int:
    """How many jobs have a receipt on record. One shows where the outputs of the others are; that jobs were taken does not."""
    files = asked(spool, "status")["files"]
    return sum(file["succeeded"] + file["outstanding_by_state"]["submitted"] for file in files)


def number(name: str, default: int) -> int:
    """A figure of a test, as the environment sets it."""
    return int(os.environ.get(name, default))
