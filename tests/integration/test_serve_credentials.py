"""The service while its credentials expire, rotate, and while nobody can give it new ones."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import numbered
from tests.sandboxes import eventually
from tests.services import LOAD, Service, audit_all, serving

NO_KEYS: dict[str, Any] = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
"""Instead of the sandbox's own, so that the SDK looks further."""
HOUR = 3_600.0


def keys(name: str, seconds: float | None = None) -> dict[str, Any]:
    """Keys as a provider gives them; they end so many seconds from now."""
    made = {"AccessKeyId": name, "SecretAccessKey": f"{name}-secret"}
    if seconds is None:
        return made
    ends = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**made, "Token": f"{name}-token", "SessionToken": f"{name}-token", "Expiration": ends}


def accept(sandbox: Sandbox, name: str, *expired: str) -> None:
    """From now on these keys are let in, and those are refused as expired."""
    sandbox.patch(access_key_id=name, secret_access_key=f"{name}-secret", expired_key_ids=expired)


def write(path: Path, text: str) -> Path:
    """A file is there as a whole, at once."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)
    return path


def put_profile(path: Path, name: str) -> Path:
    return write(path, f"[default]\naws_access_key_id = {name}\naws_secret_access_key = {name}-secret\n")


def until_paused(service: Service) -> None:
    service.until_said("lane paused")
    assert {event["reason"] for event in service.events() if event["event"] == "lane paused"} == {"credentials"}


def finish(service: Service, sandbox: Sandbox, *names: str, jobs: int) -> None:
    """Everything has its result, and nothing was sent twice."""
    # The pauses between two renewals that brought nothing, and between two probes, grow to half a minute.
    service.spool.until_finished(*names, seconds=80.0)
    service.stop()
    books = audit_all({name: numbered(jobs) for name in names}, service.spool, sandbox)
    assert all(one.states() == {"succeeded": jobs} and one.repeated == 0 for one in books.values())


# --- keys in a file ---------------------------------------------------------------------------------------------------


def test_keys_that_are_changed_in_their_file_are_read_again(tmp_path: Path, sandbox: Sandbox) -> None:
    accept(sandbox, "first")
    file = put_profile(tmp_path / "credentials", "first")
    with serving(tmp_path, sandbox, *LOAD, **NO_KEYS, AWS_SHARED_CREDENTIALS_FILE=str(file)) as service:
        service.spool.drop("a.jsonl", numbered(30))
        service.spool.until_finished("a.jsonl")
        accept(sandbox, "second", "first")
        service.spool.drop("b.jsonl", numbered(30))
        until_paused(service)
        put_profile(file, "second")
        finish(service, sandbox, "a.jsonl", "b.jsonl", jobs=30)
        assert service.said("lane resumed")


# --- a process --------------------------------------------------------------------------------------------------------

PROCESS = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "calls").open("a") as calls:
    calls.write("x")
print((folder / "keys.json").read_text())
"""


class Process:
    """A credential process: what it gives, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self._keys = folder / "keys.json"
        self._calls = folder / "calls"
        script = write(folder / "process.py", PROCESS)
        command = f"credential_process = {sys.executable} {script} {folder}"
        self.env: dict[str, Any] = {
            **NO_KEYS,
            "AWS_CONFIG_FILE": str(write(folder / "process.ini", f"[default]\n{command}\n")),
        }

    def give(self, given: dict[str, Any]) -> None:
        write(self._keys, json.dumps({"Version": 1, **given}))

    @property
    def calls(self) -> int:
        return len(self._calls.read_bytes()) if self._calls.exists() else 0


def test_keys_of_a_process_are_renewed_before_they_end_and_it_is_seldom_asked(tmp_path: Path, sandbox: Sandbox) -> None:
    accept(sandbox, "first")
    process = Process(tmp_path)
    process.give(keys("first", 300))
    with serving(tmp_path, sandbox, *LOAD, **process.env) as service:
        service.spool.drop("a.jsonl", numbered(150))
        service.spool.until_finished("a.jsonl")
        assert process.calls <= 12
        accept(sandbox, "second", "first")
        process.give(keys("second", HOUR))
        service.spool.drop("b.jsonl", numbered(150))
        service.spool.until_finished("b.jsonl")
        asked = process.calls
        service.spool.drop("c.jsonl", numbered(150))
        finish(service, sandbox, "a.jsonl", "b.jsonl", "c.jsonl", jobs=150)
    assert process.calls == asked, "keys that last are not asked for again"


# --- a container's endpoint -------------------------------------------------------------------------------------------


class Provider:
    """What a container asks for its keys: what it gives (None: it is away), and how often it was asked, at once at the most."""

    def __init__(self, url: str) -> None:
        self.env: dict[str, Any] = {**NO_KEYS, "AWS_CONTAINER_CREDENTIALS_FULL_URI": url}
        self.given: Callable[[], dict[str, Any]] | None = None
        self.calls = self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def ask(self) -> dict[str, Any] | None:
        with self._lock:
            self.calls += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(0.05)  # so that whoever asks at the same time would be seen
        with self._lock:
            self._at_once -= 1
            return None if self.given is None else self.given()


@pytest.fixture
def provider() -> Iterator[Provider]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = made.ask()
            body = json.dumps(given).encode()
            self.send_response(503 if given is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Provider(f"http://127.0.0.1:{server.server_port}/keys")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def test_while_nobody_can_renew_them_valid_keys_are_gone_on_with(
    tmp_path: Path, sandbox: Sandbox, provider: Provider
) -> None:
    accept(sandbox, "first")
    provider.given = lambda: keys("first", 120)
    with serving(tmp_path, sandbox, *LOAD, **provider.env) as service:
        provider.given = None
        calls = provider.calls
        names: list[str] = []
        # Keys are renewed by those who use them, and not again at once: there must be jobs until somebody has noticed.
        while not service.said("credentials cannot be renewed") and len(names) < 30:
            names.append(f"{len(names)}.jsonl")
            service.spool.drop(names[-1], numbered(50))
            service.spool.until_finished(names[-1])
        finish(service, sandbox, *names, jobs=50)
        assert service.said("credentials cannot be renewed")
        assert not service.said("lane paused")
    assert provider.most_at_once == 1
    assert provider.calls - calls <= 24


def test_when_keys_have_ended_and_nobody_gives_new_ones_jobs_wait_until_somebody_does(
    tmp_path: Path, sandbox: Sandbox, provider: Provider
) -> None:
    accept(sandbox, "first")
    provider.given = lambda: keys("first", 3)
    with serving(tmp_path, sandbox, *LOAD, **provider.env) as service:
        provider.given = None
        end = time.time() + 3
        eventually(lambda: time.time() > end, 10.0)
        service.spool.drop("a.jsonl", numbered(50))
        until_paused(service)
        assert sandbox.counts()["jobs"]["accepted"] == 0, "keys that have ended are not signed with"
        accept(sandbox, "second", "first")
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (200, 200)
        provider.given = lambda: keys("second", HOUR)
        finish(service, sandbox, "a.jsonl", jobs=50)
        assert service.said("lane resumed")
    assert provider.most_at_once == 1
    assert provider.calls <= 40


def test_of_a_provider_that_hangs_the_lane_says_at_once_what_it_waits_for(tmp_path: Path, sandbox: Sandbox) -> None:
    accept(sandbox, "first")
    given = write(tmp_path / "given.json", json.dumps({"Version": 1, **keys("first", 3)}))
    wait = "import os, sys, time\nos.path.exists(sys.argv[1]) or time.sleep(600)\n"
    script = write(tmp_path / "answer.py", wait + "print(open(sys.argv[1]).read())")
    config = write(tmp_path / "config", f"[default]\ncredential_process = {sys.executable} {script} {given}\n")
    with serving(tmp_path, sandbox, *LOAD, **NO_KEYS, AWS_CONFIG_FILE=str(config)) as service:
        given.unlink()
        end = time.time() + 3
        eventually(lambda: time.time() > end, 10.0)
        service.spool.drop("a.jsonl", numbered(5))
        until_paused(service)
        (pause,) = [event for event in service.events() if event["event"] == "lane paused"]
        assert "custom-process: has not answered for 3 s" in pause["message"]
        service.stop()


def test_keys_that_no_header_may_hold_are_never_signed_with_and_jobs_wait_for_good_ones(
    tmp_path: Path, sandbox: Sandbox, provider: Provider
) -> None:
    accept(sandbox, "first")
    provider.given = lambda: keys("first", HOUR)
    with serving(tmp_path, sandbox, *LOAD, **provider.env) as service:
        provider.given = lambda: {**keys("second", HOUR), "Token": "second-token\r\nX-Other: 1"}
        accept(sandbox, "second", "first")
        service.spool.drop("a.jsonl", numbered(50))
        until_paused(service)
        service.until_said("credentials cannot be renewed")
        assert sandbox.counts()["jobs"]["accepted"] == 0
        assert "second-token" not in service.running.err.read_text()
        provider.given = lambda: keys("second", HOUR)
        finish(service, sandbox, "a.jsonl", jobs=50)


def test_keys_that_end_before_their_time_are_asked_for_anew(
    tmp_path: Path, sandbox: Sandbox, provider: Provider
) -> None:
    accept(sandbox, "first")
    provider.given = lambda: keys("first", HOUR)
    with serving(tmp_path, sandbox, *LOAD, **provider.env) as service:
        provider.given = lambda: keys("second", HOUR)
        accept(sandbox, "second", "first")
        service.spool.drop("a.jsonl", numbered(50))
        finish(service, sandbox, "a.jsonl", jobs=50)
    assert provider.calls <= 4
