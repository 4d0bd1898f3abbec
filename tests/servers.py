"""S3 servers that tests start as real processes on loopback: the sandbox's own, moto, and SeaweedFS (which checks signatures)."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dispatcher.sandbox.process import start_sandbox
from tests.sandboxes import KEY_ID, SECRET, client, eventually, free_ports

BIN = Path(sys.executable).parent
START_SECONDS = 60.0


@contextlib.contextmanager
def sandbox(_: Path) -> Iterator[str]:
    with start_sandbox() as running:
        yield running.url


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    with _process([BIN / "moto_server", "-H", "127.0.0.1", "-p", port], folder):
        yield _ready(f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    config = folder / "s3.json"
    keys = [{"accessKey": KEY_ID, "secretKey": SECRET}]
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": ["Admin"]}]}))
    local = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}"]
    small = ["-volume.max=1000", "-master.volumeSizeLimitMB=64"]  # each bucket takes several volumes
    # what would listen on a port of its own, which a second SeaweedFS on this machine could not have
    without = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    listening = [f"-{name}={port}" for name, port in ports.items()]
    with _process([BIN / "weed", "server", *local, *small, *without, *listening], folder):
        yield _ready(f"http://127.0.0.1:{ports['s3.port']}")


@contextlib.contextmanager
def _process(command: list[Any], folder: Path) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen([str(part) for part in command], cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ready(url: str) -> str:
    """Waits until a bucket can be made and written to: SeaweedFS listens some time before that."""
    with client("s3", url) as made:
        eventually(lambda: _writable(made), START_SECONDS)
    return url


def _writable(s3: Any) -> bool:
    try:
        s3.create_bucket(Bucket="is-it-ready")
        s3.put_object(Bucket="is-it-ready", Key="yes", Body=b"yes")
    except (BotoCoreError, ClientError):
        return False
    return True
