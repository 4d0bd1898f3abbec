"""A sandbox in a child process: started, awaited, stopped; and its control, from the parent's side.

The child ends when its parent does, however that ends: it watches the pipe that is its stdin.
"""

import asyncio
import contextlib
import http.client
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from dispatcher.errors import DispatcherError
from dispatcher.sandbox.settings import Settings, as_dict

START_SECONDS = 20.0
STOP_SECONDS = 5.0
CONTROL_SECONDS = 10.0


class SandboxFailedError(DispatcherError):
    """The sandbox did not start, or its control refused."""


class Sandbox(Struct, frozen=True, kw_only=True):
    """A sandbox that runs. `env` points any AWS SDK at it, and lets no setting of the user's shine through."""

    url: str
    pid: int
    settings: Settings
    env: dict[str, str]
    record_path: Path | None

    def patch(self, **changes: Any) -> dict[str, Any]:
        """Changes settings (`settings.patched` has the rules); gives all of them. SandboxFailedError if they are refused."""
        return self._control("PATCH", "settings", changes)

    def counts(self) -> dict[str, Any]:
        """What it has seen."""
        return self._control("GET", "counts")

    def reset_counts(self) -> dict[str, Any]:
        """Lets it count from nought."""
        return self._control("DELETE", "counts")

    def record(self) -> list[dict[str, Any]]:
        """The record as it stands now."""
        self._control("GET", "record")
        lines = self.record_path.read_bytes().splitlines() if self.record_path is not None else []
        return [msgspec.json.decode(line) for line in lines]

    def _control(self, method: str, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, answer = _request(self.url, self.settings.tls_certificate, method, f"/_sandbox/{name}", body)
        if status != 200:
            raise SandboxFailedError(f"sandbox: {method} {name}: {answer.get('error', status)}")
        return answer


class SandboxProcess(Struct, frozen=True):
    """A sandbox that runs, for callers in an event loop."""

    sandbox: Sandbox

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.sandbox.url

    @property
    def env(self) -> dict[str, str]:
        """The environment that points any AWS SDK at it."""
        return self.sandbox.env

    @property
    def record_path(self) -> Path | None:
        """Where its record is."""
        return self.sandbox.record_path

    async def patch(self, **changes: Any) -> dict[str, Any]:
        """`Sandbox.patch`."""
        return await asyncio.to_thread(lambda: self.sandbox.patch(**changes))

    async def counts(self) -> dict[str, Any]:
        """`Sandbox.counts`."""
        return await asyncio.to_thread(self.sandbox.counts)

    async def reset_counts(self) -> dict[str, Any]:
        """`Sandbox.reset_counts`."""
        return await asyncio.to_thread(self.sandbox.reset_counts)

    async def record(self) -> list[dict[str, Any]]:
        """`Sandbox.record`."""
        return await asyncio.to_thread(self.sandbox.record)


@contextlib.contextmanager
def start_sandbox(settings: Settings | None = None) -> Iterator[Sandbox]:
    """A sandbox in a child process, stopped at the end. SandboxFailedError if it is not ready in time."""
    settings = Settings() if settings is None else settings
    with tempfile.TemporaryDirectory(prefix="sandbox-home-") as home:
        source, config = Path(home, "settings.json"), Path(home, "config")
        source.write_bytes(msgspec.json.encode(as_dict(settings)))
        config.write_text(f"[default]\nregion = {settings.region}\n", "utf-8")
        with _child(source) as child:
            said = _first_line(child)
            record = Path(settings.record) if settings.record is not None else None
            env = environment(settings, said["url"], config)
            yield Sandbox(url=said["url"], pid=said["pid"], settings=settings, env=env, record_path=record)


@contextlib.asynccontextmanager
async def sandbox_process(settings: Settings | None = None) -> AsyncIterator[SandboxProcess]:
    """`start_sandbox` for an event loop. Starting and stopping take threads of it, for a moment each.

    A cancel while it starts waits until it has, so that no child is left behind.
    """
    stack = contextlib.ExitStack()
    starting = asyncio.create_task(asyncio.to_thread(stack.enter_context, start_sandbox(settings)))
    try:
        sandbox = await asyncio.shield(starting)
        yield SandboxProcess(sandbox)
    finally:
        await asyncio.wait([starting])
        await asyncio.to_thread(stack.close)


@contextlib.contextmanager
def _child(source: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "dispatcher.sandbox", "--settings", str(source), "--die-with-parent"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as child:  # noqa: S603
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def _first_line(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Waits for the child to say where it is; one that does not is killed, which ends the wait."""
    assert child.stdout is not None
    watch = threading.Timer(START_SECONDS, child.kill)
    watch.start()
    try:
        line = child.stdout.readline()
    finally:
        watch.cancel()
        watch.join()
    if not line:
        raise SandboxFailedError("sandbox: the process ended, or took too long, before it was ready")
    return cast(dict[str, Any], msgspec.json.decode(line))


def environment(settings: Settings, url: str, config: Path) -> dict[str, str]:
    """The variables that point any SDK of AWS at a sandbox at `url`, and away from all else that it could find on this machine.

    A profile cannot be blank (botocore looks for one of that name), so it is one of the file `config`, which says next to nothing.
    """
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_ACCESS_KEY_ID": settings.access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.secret_access_key,
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_PROFILE": "default",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _request(
    url: str, ca: str | None, method: str, path: str, body: dict[str, Any] | None
) -> tuple[int, dict[str, Any]]:
    with contextlib.closing(_connection(url, ca)) as connection:
        connection.request(method, path, None if body is None else msgspec.json.encode(body))
        answer = connection.getresponse()
        return answer.status, cast(dict[str, Any], msgspec.json.decode(answer.read()))


def _connection(url: str, ca: str | None) -> http.client.HTTPConnection:
    where = urlsplit(url)
    host, port = where.hostname or "", where.port
    if ca is None:
        return http.client.HTTPConnection(host, port, timeout=CONTROL_SECONDS)
    return http.client.HTTPSConnection(
        host, port, timeout=CONTROL_SECONDS, context=ssl.create_default_context(cafile=ca)
    )
