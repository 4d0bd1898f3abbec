"""The loopback target: a server in a process of its own that answers like the service, as fast as Python can.

It answers InvokeEndpointAsync, PutObject, DeleteObject(s) and ListObjectsV2, reads no body and checks no signature: the
sandbox is for that. Every output is there at once. What it remembers of a job is its output's name, in one byte string for
each output folder, so that a million jobs fit into some 30 MB. It counts requests and payload bytes by operation, so that
nobody can be measured who does not do the work. What it does not understand is counted as Unknown.

`/_bench/counts` gives what it has seen, `/_bench/reset?delay=SECONDS` lets it begin anew and hold back every answer so long.
"""

import argparse
import asyncio
import json
import ssl
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, quote, urlsplit

import httptools
import uvloop

OUTPUTS = "s3://bench-out/async/"
FAILURES = "s3://bench-out/failed/"
PAGE = 1_000
BACKLOG = 1_024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ENTRY = (
    "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>"
    "<Size>2</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Seen:
    """What the target has seen since the last reset. Written by the connections, in the one event loop."""

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.requests: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.folders: dict[bytes, bytearray] = {}
        self.first_invoke_at: float | None = None
        self.last_invoke_at: float | None = None
        self._cpu = time.process_time()

    def count(self, operation: str, size: int) -> int:
        """Counts one request with a payload of `size` bytes; how many of its operation there are now."""
        number = self.requests[operation] = self.requests.get(operation, 0) + 1
        self.bytes[operation] = self.bytes.get(operation, 0) + size
        return number

    def invoked(self) -> None:
        """Notes when (monotonic, the same for all processes of the machine)."""
        self.last_invoke_at = time.monotonic()
        if self.first_invoke_at is None:
            self.first_invoke_at = self.last_invoke_at

    def told(self) -> dict[str, object]:
        """All of it, and the CPU seconds that this process has used meanwhile."""
        return {
            "requests": self.requests,
            "bytes": self.bytes,
            "first_invoke_at": self.first_invoke_at,
            "last_invoke_at": self.last_invoke_at,
            "cpu_seconds": time.process_time() - self._cpu,
        }


class Target:
    """The one `Seen` that counts."""

    def __init__(self) -> None:
        self.seen = Seen()


class Connection(asyncio.Protocol):
    """One client's connection; requests come one after the other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # No HTTP, or a fault of this program: either way what is measured now is no result.
            self._target.seen.count("Unknown", 0)
            traceback.print_exc()
            self._transport.abort()

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if b"expect" in self._headers:
            self._send(_CONTINUE)

    def on_message_complete(self) -> None:
        method, seen = self._parser.get_method(), self._target.seen
        if method == b"POST" and self._url.endswith(b"/async-invocations"):
            self._send(invoke(seen, self._headers))
        elif self._url.startswith(b"/_bench/"):
            self._transport.write(self._control(seen))
        else:
            self._send(s3(seen, method, self._url.decode("ascii"), self._headers))

    def _send(self, answer: bytes) -> None:
        seconds = self._target.seen.delay_seconds
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._transport.write, answer)
        else:
            self._transport.write(answer)

    def _control(self, seen: Seen) -> bytes:
        asked = urlsplit(self._url.decode("ascii"))
        if asked.path == "/_bench/reset":
            seen = self._target.seen = Seen(float(parse_qs(asked.query).get("delay", ["0"])[0]))
        return reply(b"200 OK", json.dumps(seen.told()).encode(), b"Content-Type: application/json\r\n")


def invoke(seen: Seen, headers: dict[bytes, bytes]) -> bytes:
    """InvokeEndpointAsync; the output has a name of its own where the request chooses one."""
    number = seen.count("InvokeEndpointAsync", int(headers.get(b"content-length", b"0")))
    seen.invoked()
    job = headers.get(b"x-amzn-sagemaker-inference-id") or b"job-%d" % number
    folder = headers.get(b"x-amzn-sagemaker-s3outputpathextension", b"").strip(b"/")
    name = headers.get(b"x-amzn-sagemaker-filename") or b"%b.out" % job
    if folder:
        folder += b"/"
        names = seen.folders.get(folder)
        if names is None:
            names = seen.folders[folder] = bytearray()
        names += name + b"\n"
    body = b'{"InferenceId":"%b"}' % job
    return (
        b"HTTP/1.1 202 Accepted\r\nx-amzn-RequestId: 00000000-0000-4000-8000-%012x\r\n"
        b"X-Amzn-SageMaker-OutputLocation: s3://bench-out/async/%b%b\r\n"
        b"X-Amzn-SageMaker-FailureLocation: s3://bench-out/failed/%b%b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (number, folder, name, folder, name, len(body), body)
    )


def s3(seen: Seen, method: bytes, url: str, headers: dict[bytes, bytes]) -> bytes:
    """As much of S3 as a dispatcher takes. What it does not know is refused, and counted as Unknown."""
    asked = urlsplit(url)
    parameters = parse_qs(asked.query, keep_blank_values=True)
    if method == b"PUT":
        sent = headers.get(b"x-amz-decoded-content-length") or headers.get(b"content-length", b"0")
        seen.count("PutObject", int(sent))
        return reply(b"200 OK", b"", b'ETag: "d41d8cd98f00b204e9800998ecf8427e"\r\n')
    if method == b"GET" and parameters.get("list-type") == ["2"]:
        seen.count("ListObjectsV2", 0)
        return reply(b"200 OK", listing(seen, parameters).encode(), b"Content-Type: application/xml\r\n")
    if method == b"DELETE":
        seen.count("DeleteObject", 0)
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    if method == b"POST" and "delete" in parameters:
        seen.count("DeleteObjects", 0)
        return reply(b"200 OK", f'<DeleteResult xmlns="{_NAMESPACE}"/>'.encode(), b"Content-Type: application/xml\r\n")
    seen.count("Unknown", 0)
    return reply(b"501 Not Implemented", b"", b"")


def listing(seen: Seen, parameters: dict[str, list[str]]) -> str:
    """A page of ListObjectsV2, in the order of keys as S3 has it; one folder is listed, not what lies deeper."""
    prefix, after = parameters.get("prefix", [""])[0], parameters.get("continuation-token", [""])[0]
    limit = min(int(parameters.get("max-keys", ["1000"])[0]), PAGE)
    names = sorted(name for name in _names(seen, prefix) if name > after)
    shown, more = names[:limit], len(names) > limit
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    entries = "".join([_ENTRY % (quote(prefix + name), modified) for name in shown])
    token = f"<NextContinuationToken>{quote(shown[-1])}</NextContinuationToken>" if more else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{_NAMESPACE}"><Name>bench-out</Name>'
        f"<Prefix>{quote(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys><KeyCount>{len(shown)}</KeyCount>"
        f"<EncodingType>url</EncodingType><IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{entries}"
        "</ListBucketResult>"
    )


def _names(seen: Seen, prefix: str) -> Iterator[str]:
    folder = prefix.removeprefix("async/").encode()
    return (name.decode("ascii") for name in set(bytes(seen.folders.get(folder, b"")).split()))


def reply(status: bytes, body: bytes, headers: bytes) -> bytes:
    """An answer with a body."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def main() -> None:
    """Serves until its stdin closes, so that it never outlives who started it; says its port on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.target")
    parser.add_argument("--certificate", type=Path, help="file with certificate and key: speak TLS")
    uvloop.run(_serve(parser.parse_args().certificate))


async def _serve(certificate: Path | None) -> None:
    target, loop = Target(), asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(target), "127.0.0.1", 0, backlog=BACKLOG, ssl=_tls(certificate) if certificate else None
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def _tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


if __name__ == "__main__":
    main()
