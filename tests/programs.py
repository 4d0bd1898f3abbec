"""The dispatcher as users run it: real processes, real job files, and a judge who believes neither of them."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load

ROOT = Path(__file__).parents[1]
ENDPOINT = "model"
STAGING = "s3://sandbox-in/inputs"
SECONDS = 60.0
"""After this long a program is ended, and its test fails."""

RESULT_KEYS = (
    *("id", "line", "status", "transport", "inference_id", "output_location", "failure_location", "attempts"),
    *("submitted_at", "completed_at", "metadata", "error"),
)
FINAL = ("succeeded", "failed", "expired", "dead", "cancelled")
Row = dict[str, Any]


# --- the sandbox ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_sandbox(folder: Path, *, endpoint: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[Sandbox]:
    """A sandbox with one endpoint, ENDPOINT, and a record in `folder`."""
    given = {"endpoints": {ENDPOINT: endpoint or {}}, "record": str(folder / "record.jsonl"), **settings}
    with start_sandbox(load(given)) as sandbox:
        yield sandbox


def accepted(sandbox: Sandbox) -> int:
    """How many submissions it has taken."""
    return int(sandbox.counts()["jobs"]["accepted"])


# --- the program ------------------------------------------------------------------------------------------------------


class Ended(Struct, frozen=True):
    """A program that ended: its exit status (minus the signal that killed it) and what it said."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """For the message of an assertion."""
        return f"status {self.status}\n{self.out}\n{self.err}"


class Running(Struct, frozen=True):
    """A program that runs; what it says goes to files, so that it never waits for a reader."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def end(self, seconds: float = SECONDS) -> Ended:
        """Waits for its end."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"still running after {seconds} s\n{self.err.read_text()}") from None
        return Ended(status, self.out.read_text(), self.err.read_text())

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)


def environment(sandbox: Sandbox | None, **more: str) -> dict[str, str]:
    """What a program runs with: nothing of this machine's AWS settings, and the sandbox's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DISPATCHER_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**own, "PYTHONPATH": path, **(sandbox.env if sandbox else {}), **more}


@contextlib.contextmanager
def started(
    folder: Path,
    sandbox: Sandbox | None,
    *arguments: object,
    module: str = "dispatcher",
    file_blocks: int | None = None,
    before: Sequence[str] = (),
    **variables: str,
) -> Iterator[Running]:
    """`dispatcher ARGUMENTS` in `folder`, which runs while the block does at the longest.

    `file_blocks` is how many blocks of 512 bytes any file that it writes may have; `before` is the command that runs it, if any.
    `variables` are environment variables.
    """
    number = len(list(folder.glob("*.stdout")))
    out, err = folder / f"{number}.stdout", folder / f"{number}.stderr"
    command = [*before, sys.executable, "-W", "error::ResourceWarning", "-m", module, *map(str, arguments)]
    if file_blocks is not None:
        command = ["sh", "-c", f'ulimit -f {file_blocks}; exec "$@"', "sh", *command]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(sandbox, **variables),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Running(process, out, err)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        process.kill()
        process.wait()


def dispatch(
    folder: Path, sandbox: Sandbox | None, *arguments: object, stdin: bytes = b"", seconds: float = SECONDS, **more: Any
) -> Ended:
    """Runs `dispatcher ARGUMENTS` to its end. AssertionError if it shows a traceback."""
    with started(folder, sandbox, *arguments, **more) as running:
        assert running.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            running.process.stdin.write(stdin)
            running.process.stdin.close()
        ended = running.end(seconds)
    assert "Traceback" not in ended.err, ended.err
    assert "Warning" not in ended.err, ended.err
    assert '"error"' not in ended.err, ended.err
    return ended


def run(folder: Path, sandbox: Sandbox | None, file: object, *flags: object, **more: Any) -> Ended:
    """`dispatcher run FILE` with the sandbox's endpoint."""
    return dispatch(folder, sandbox, "run", file, "--endpoint", ENDPOINT, *flags, **more)


# --- job files --------------------------------------------------------------------------------------------------------


class Jobs:
    """A job file in the making: its lines, and what each of them must become."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.payloads: dict[int, bytes | None] = {}
        """By line number; None for a payload that is in S3 already."""
        self.bad: set[int] = set()

    def job(self, payload: bytes, *fields: bytes) -> None:
        """A payload as it shall stand in the line, and further fields as JSON."""
        self._add(payload, b'"payload":' + payload, *fields)

    def other(self, payload: bytes | None, *fields: bytes) -> None:
        """A payload that is named by one of the fields."""
        self._add(payload, *fields)

    def reject(self, line: bytes) -> None:
        """A line that is no job."""
        self.lines.append(line)
        self.bad.add(len(self.lines))

    def blank(self, line: bytes = b"") -> None:
        """A line that is none."""
        self.lines.append(line)

    def write(self, path: Path, end: bytes = b"\n") -> Path:
        """Writes the file."""
        path.write_bytes(b"".join(line + end for line in self.lines))
        return path

    def _add(self, payload: bytes | None, *fields: bytes) -> None:
        self.lines.append(b"{" + b",".join(fields) + b"}")
        self.payloads[len(self.lines)] = payload


def numbered(jobs: int, size: int = 0) -> Jobs:
    """So many small jobs, each its own."""
    made = Jobs()
    for number in range(jobs):
        made.job(b'{"n":%d,"x":"%b"}' % (number, b"x" * size))
    return made


# --- results ----------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[Row]:
    """The JSON lines of a file; every line must end."""
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


class Books(Struct, frozen=True):
    """A run's results, found to be in order."""

    results: list[Row]
    errors: list[Row]
    summary: Row
    repeated: int
    """Submissions that the service took beyond the first of each job."""

    def states(self) -> dict[str, int]:
        """How many jobs ended in each state."""
        return dict(Counter(row["status"] for row in self.results))


def audit(jobs: Jobs, results: Path, sandbox: Sandbox, record: list[Row] | None = None) -> Books:
    """Compares job file, results and the sandbox's own record; AssertionError where they do not tell one story.

    `record` is the part of the record that is of this file, where the sandbox served several.
    """
    books = Books(
        rows(results / "results.jsonl"),
        rows(results / "errors.jsonl"),
        json.loads((results / "summary.json").read_bytes()),
        0,
    )
    _check_lines(jobs, books)
    _check_sums(jobs, books)
    of_us = {row["inference_id"]: row for row in books.results}
    assert len(of_us) == len(books.results), "an inference id is used twice"
    repeated = _check_record(jobs, of_us, sandbox.record() if record is None else record)
    return Books(books.results, books.errors, books.summary, repeated)


def _check_lines(jobs: Jobs, books: Books) -> None:
    assert [row["line"] for row in books.results] == sorted(jobs.payloads), "jobs lost, added, or out of order"
    assert all(tuple(row)[: len(RESULT_KEYS)] == RESULT_KEYS for row in books.results)
    unsuccessful = [row for row in books.results if row["status"] != "succeeded"]
    assert [row for row in books.errors if row["status"] != "rejected"] == unsuccessful
    assert {row["line"] for row in books.errors if row["status"] == "rejected"} == jobs.bad
    assert [row["line"] for row in books.errors] == sorted(row["line"] for row in books.errors)


def _check_sums(jobs: Jobs, books: Books) -> None:
    summary, states = books.summary, books.states()
    assert summary["lines"] == summary["rejected"] + summary["accepted"] == len(jobs.payloads) + len(jobs.bad)
    assert summary["accepted"] == sum(summary[state] for state in FINAL) + summary["outstanding"] == len(books.results)
    assert {state: summary[state] for state in FINAL} == {state: states.get(state, 0) for state in FINAL}
    for by in ("by_transport", "by_size_class"):
        assert sum(summary[by].values()) == summary["accepted"]


def _check_record(jobs: Jobs, of_us: Mapping[str, Row], record: list[Row]) -> int:
    """Both events of every job against its result; how many submissions were repeats."""
    taken = [event for event in record if event["event"] == "accepted"]
    ended = {(e["inference_id"], e["output_location"]): e for e in record if e["event"] == "finished"}
    times = Counter(event["inference_id"] for event in taken)
    assert set(times) <= set(of_us), "something was invoked that is no job"
    for event in taken:
        payload = jobs.payloads[of_us[event["inference_id"]]["line"]]
        if event["transport"] == "inline":
            assert event["payload_sha256"] == _sha256(payload)
    for inference_id, row in of_us.items():
        if row["status"] != "succeeded":
            continue
        end = ended[inference_id, row["output_location"]]
        payload = jobs.payloads[row["line"]]
        assert end["result"] == "completed"
        assert payload is None or end["payload_sha256"] == _sha256(payload)
    return times.total() - len(times)


def _sha256(payload: bytes | None) -> str | None:
    return None if payload is None else hashlib.sha256(payload).hexdigest()


def sound(ledger: Path) -> bool:
    """Whether SQLite finds the ledger's file in order."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        return list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
