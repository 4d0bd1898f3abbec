"""Clients for a sandbox, or for any S3, that take nothing from the machine they run on."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from dispatcher.sandbox.process import Sandbox

KEY_ID = "sandbox"
SECRET = "sandbox-secret"
T = TypeVar("T")


@contextlib.contextmanager
def client(service: str, url: str, **config: Any) -> Iterator[Any]:
    """A boto3 client that sends each request once; `secret`, `key_id` and `verify` may be given, the rest is botocore's Config."""
    session = boto3.Session(
        aws_access_key_id=config.pop("key_id", KEY_ID),
        aws_secret_access_key=config.pop("secret", SECRET),
        region_name="us-east-1",
    )
    verify = config.pop("verify", None)
    settings = {"retries": {"total_max_attempts": 1}, "read_timeout": 10, "connect_timeout": 5, "proxies": {}, **config}
    made = session.client(service, endpoint_url=url, config=Config(**settings), verify=verify)
    try:
        yield made
    finally:
        made.close()


def eventually(look: Callable[[], T | None], seconds: float = 10.0) -> T:
    """What `look` finds; asks again until it finds something. AssertionError when the time is up."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"nothing found within {seconds} s")
        time.sleep(0.01)


def finished(sandbox: Sandbox, jobs: int) -> dict[str, int]:
    """Waits until so many jobs have ended since the counts began; how they ended."""

    def look() -> dict[str, int] | None:
        ended: dict[str, int] = sandbox.counts()["jobs"]["finished"]
        return ended if sum(ended.values()) >= jobs else None

    return eventually(look)


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
