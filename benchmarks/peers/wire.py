"""The bare signed wire loop: a client in Python with nothing around it, the limit that the dispatcher is held against.

A task for each connection sends one signed request after the other and awaits its answer: an asyncio protocol on httptools, a
signer that keeps the day's key. No queue, no record, no retry, no deadline. A request has the same parameters as the
dispatcher's. Inline bodies are hashed into the signature; those for S3 go as SDKs send them over TLS, unsigned and with a
CRC-32. `--by-hand` has the text of the two requests written out, as only a program can that knows them beforehand.
"""

import asyncio
import hmac
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple, Protocol, cast
from urllib.parse import urlsplit
from zlib import crc32

import httptools
import uvloop

from benchmarks.peers.asked import BUCKET, CONTENT_TYPE, ENDPOINT, Asked, asked, done, key_of

REGION = "us-east-1"
KEY_ID = "sandbox"
SECRET = "sandbox-secret"  # noqa: S105
_EMPTY = sha256(b"").hexdigest()
_PREFIX = "x-amzn-sagemaker-"
_NAMES = ("content-type", "filename", "inference-id", "inputlocation", "invocationtimeoutseconds", "requestttlseconds")
_SIGNED_BY_S3 = ";".join(("host", "x-amz-date", *(_PREFIX + name for name in (*_NAMES, "s3outputpathextension"))))
_SIGNED_INVOKE = _SIGNED_BY_S3.replace(f";{_PREFIX}inputlocation", "")
_SIGNED_PUT = "content-type;host;x-amz-checksum-crc32;x-amz-content-sha256;x-amz-date"


class Signer:
    """SigV4 for one service. The day's key and the second's time stamp are kept."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._second = 0
        self._key = b""
        self._scope = ""
        self.stamp = ""

    def tick(self) -> str:
        """The time stamp to sign with now."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self.stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            self._scope = f"{self.stamp[:8]}/{REGION}/{self._service}/aws4_request"
            self._key = f"AWS4{SECRET}".encode()
            for part in self._scope.split("/"):
                self._key = hmac.digest(self._key, part.encode(), "sha256")
        return self.stamp

    def authorization(self, canonical: str, names: str) -> str:
        """The Authorization header for a canonical request, stamped by the last `tick`."""
        digest = sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self.stamp}\n{self._scope}\n{digest}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        return f"AWS4-HMAC-SHA256 Credential={KEY_ID}/{self._scope}, SignedHeaders={names}, Signature={signature}"


class Maker(Protocol):
    """Makes the bytes of every request."""

    def invoke(self, key: str, body: bytes) -> list[bytes]:
        """InvokeEndpointAsync with the payload inline, or, without one, with what was put under the key."""

    def put(self, key: str, body: bytes) -> list[bytes]:
        """PutObject."""


class Requests:
    """Headers in a dict, signed by the rules of SigV4 whatever they are. `endpoint` and `bucket` name whom they are for."""

    def __init__(self, host: str, endpoint: str = ENDPOINT, bucket: str = BUCKET) -> None:
        self._host = host
        self._path = f"/endpoints/{endpoint}/async-invocations"
        self._bucket = bucket
        self._run = f"jobs.jsonl-{int(time.time()):026d}"
        self._runtime = Signer("sagemaker")
        self._s3 = Signer("s3")

    def invoke(self, key: str, body: bytes) -> list[bytes]:
        headers = {
            "X-Amzn-SageMaker-Content-Type": CONTENT_TYPE,
            "X-Amzn-SageMaker-Inference-Id": key,
            "X-Amzn-SageMaker-Filename": f"{key}.out",
            "X-Amzn-SageMaker-S3OutputPathExtension": f"{self._run}/{key[-9:-3]}",
            "X-Amzn-SageMaker-RequestTTLSeconds": "21600",
            "X-Amzn-SageMaker-InvocationTimeoutSeconds": "900",
        }
        if not body:
            headers["X-Amzn-SageMaker-InputLocation"] = f"s3://{self._bucket}/{key}"
        hashed = sha256(body).hexdigest() if body else _EMPTY
        return self._request(self._runtime, "POST", self._path, headers, hashed, body)

    def put(self, key: str, body: bytes) -> list[bytes]:
        headers = {
            "Content-Type": CONTENT_TYPE,
            "x-amz-checksum-crc32": b64encode(crc32(body).to_bytes(4)).decode(),
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        }
        return self._request(self._s3, "PUT", f"/{self._bucket}/{key}", headers, "UNSIGNED-PAYLOAD", body)

    def _request(
        self, signer: Signer, method: str, path: str, headers: dict[str, str], hashed: str, body: bytes
    ) -> list[bytes]:
        headers |= {"Host": self._host, "X-Amz-Date": signer.tick()}
        lower = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
        names = ";".join(sorted(lower))
        canonical = "".join(f"{name}:{lower[name]}\n" for name in sorted(lower))
        headers["Authorization"] = signer.authorization(f"{method}\n{path}\n\n{canonical}\n{names}\n{hashed}", names)
        headers["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return [f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode(), body]


class ByHand:
    """As Requests, with the text of each of the two operations written out, so that nothing is sorted or gathered."""

    def __init__(self, host: str, endpoint: str = ENDPOINT, bucket: str = BUCKET) -> None:
        self._host = host
        self._path = f"/endpoints/{endpoint}/async-invocations"
        self._bucket = bucket
        self._run = f"jobs.jsonl-{int(time.time()):026d}"
        self._runtime = Signer("sagemaker")
        self._s3 = Signer("s3")

    def invoke(self, key: str, body: bytes) -> list[bytes]:
        """InvokeEndpointAsync with the payload inline, or, without one, with what was put under the key."""
        stamp = self._runtime.tick()
        location = "" if body else f"{_PREFIX}inputlocation:s3://{self._bucket}/{key}\n"
        names = _SIGNED_INVOKE if body else _SIGNED_BY_S3
        headers = (
            f"host:{self._host}\nx-amz-date:{stamp}\n{_PREFIX}content-type:{CONTENT_TYPE}\n"
            f"{_PREFIX}filename:{key}.out\n{_PREFIX}inference-id:{key}\n{location}"
            f"{_PREFIX}invocationtimeoutseconds:900\n{_PREFIX}requestttlseconds:21600\n"
            f"{_PREFIX}s3outputpathextension:{self._run}/{key[-9:-3]}\n"
        )
        hashed = sha256(body).hexdigest() if body else _EMPTY
        path = self._path
        sign = self._runtime.authorization(f"POST\n{path}\n\n{headers}\n{names}\n{hashed}", names)
        head = _head("POST", path, headers, sign, len(body))
        # An empty piece would stay in asyncio's buffer for good, and its connection open.
        return [head, body] if body else [head]

    def put(self, key: str, body: bytes) -> list[bytes]:
        """PutObject."""
        path, stamp = f"/{self._bucket}/{key}", self._s3.tick()
        crc = b64encode(crc32(body).to_bytes(4)).decode()
        headers = (
            f"content-type:{CONTENT_TYPE}\nhost:{self._host}\nx-amz-checksum-crc32:{crc}\n"
            f"x-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:{stamp}\n"
        )
        sign = self._s3.authorization(f"PUT\n{path}\n\n{headers}\n{_SIGNED_PUT}\nUNSIGNED-PAYLOAD", _SIGNED_PUT)
        return [_head("PUT", path, headers, sign, len(body)), body]


def _head(method: str, path: str, headers: str, authorization: str, size: int) -> bytes:
    sent = headers.replace("\n", "\r\n")
    return f"{method} {path} HTTP/1.1\r\n{sent}authorization:{authorization}\r\ncontent-length:{size}\r\n\r\n".encode()


class Answer(NamedTuple):
    """Status and headers, names in lower case."""

    status: int
    headers: dict[bytes, bytes]


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._answer: asyncio.Future[Answer] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def send(self, pieces: list[bytes]) -> asyncio.Future[Answer]:
        """Writes a request; its answer."""
        self._answer = self._loop.create_future()
        self._transport.writelines(pieces)
        return self._answer

    async def close(self) -> None:
        """Returns when it is closed."""
        self._transport.abort()
        await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_message_complete(self) -> None:
        waiting, self._answer = self._answer, None
        if waiting is not None:
            waiting.set_result(Answer(self._parser.get_status_code(), self._headers))


async def work_off(work: Asked, requests: Maker, connection: Connection, numbers: Iterator[int]) -> int:
    """Sends one job after the other until none is left; how many receipts came."""
    receipts, payload = 0, work.payload
    for number in numbers:
        key = key_of(number)
        if work.by_s3:
            stored = await connection.send(requests.put(key, payload))
            _check(stored.status == 200, stored.status)
        answer = await connection.send(requests.invoke(key, b"" if work.by_s3 else payload))
        _check(answer.status == 202 and b"x-amzn-sagemaker-outputlocation" in answer.headers, answer.status)
        receipts += 1
    return receipts


def _check(good: bool, status: int) -> None:
    if not good:
        raise RuntimeError(f"status {status}")


async def send(work: Asked, requests: Maker) -> int:
    """Sends all jobs; how many receipts came."""
    loop, numbers, where = asyncio.get_running_loop(), iter(range(work.jobs)), urlsplit(work.url)
    context = ssl.create_default_context(cafile=work.ca) if where.scheme == "https" else None
    made = [
        await loop.create_connection(Connection, where.hostname or "", where.port or 443, ssl=context)
        for _ in range(work.in_flight)
    ]
    try:
        return sum(await asyncio.gather(*(work_off(work, requests, connection, numbers) for _, connection in made)))
    finally:
        await asyncio.gather(*(connection.close() for _, connection in made))


def main() -> None:
    """Sends all jobs."""
    work = asked()
    made = ByHand if work.by_hand else Requests
    done(uvloop.run(send(work, made(urlsplit(work.url).netloc))))


if __name__ == "__main__":
    main()
