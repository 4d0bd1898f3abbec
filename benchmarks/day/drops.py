"""What is dropped on a day: which job files, when, and what each of their lines must become.

The seed alone decides. A file is made when its time has come and its bytes are not kept: what is kept of a line is what
the recount needs. The first job of each file says in its metadata which drop it belongs to, since names may come again.
"""

import base64
import gzip
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, Literal

from msgspec import Struct

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAIN, FLAKY, COLD, LOSSY = "main", "flaky", "cold", "lossy"
"""Endpoints: the default; one whose model fails now and then; one that starts asleep and takes no inline; one that loses
results."""
ENDPOINTS = (MAIN, FLAKY, COLD, LOSSY)
LONG_SECONDS = 120.0
"""A lost result is known as such after its TTL of at least a minute: only a longer day has some."""
BUCKET = "sandbox-in"
FULL_SECONDS = 240.0
"""The length of day that the numbers of files and lines below are meant for."""
BAD = (
    b"{",
    b'{"id":"without a payload"}',
    b'{"payload":1,"unknown":2}',
    b'{"payload":1,"payload_base64":"AA=="}',
    b'{"payload":1,"endpoint":"not-allowed"}',
    b'{"payload":1,"request_ttl_seconds":5}',
    b'{"payload_path":"there/is/none"}',
    b'\xff\xfe{"payload":1}',
)
Kind = Literal["jobs", "bad", "blank", "truncated", "vanishing"]
VANISHING = "vanishing.jsonl"
"""The job file whose payloads are in GONE, one a line, until somebody deletes them."""
GONE, GONE_FILES = "gone", 12


class Planned(Struct, frozen=True, kw_only=True):
    """A job file that will be dropped at a time of the day, in seconds.

    `slowly`: it is written where it will be taken. `simple`: small payloads for the default endpoint, nothing else.
    """

    number: int
    at: float
    name: str
    lines: int
    kind: Kind = "jobs"
    slowly: bool = False
    simple: bool = False


class Wanted(Struct, frozen=True):
    """What an accepted line must come back as. `sha256` is of the payload; None for an object that does not exist."""

    id: str
    endpoint: str
    sha256: str | None
    metadata: Any


class Drop(Struct, frozen=True):
    """A job file that was dropped: what must become of its lines, by number."""

    number: int
    name: str
    readable: bool
    jobs: dict[int, Wanted]
    rejected: frozenset[int]


def plan(seed: int, seconds: float, busy: Iterable[float], vanish: float) -> list[Planned]:
    """All of a day's files in their order; at each of the times in `busy` one comes that takes a while."""
    rng, scale = Random(seed), seconds / FULL_SECONDS
    times: list[tuple[float, str, int, Kind]] = []

    def some(number: int, least: int, most: int, stem: str) -> None:
        for n in range(number):
            lines = round(rng.uniform(least, most) * rng.uniform(0.2, 1.0))
            times.append((rng.uniform(0.0, seconds), f"{stem}-{n:03}{_suffix(rng)}", max(1, lines), "jobs"))

    some(max(14, round(90 * scale)), 1, 40, "small")
    some(max(4, round(14 * scale)), 100, round(700 * max(scale, 0.4)), "medium")
    some(max(1, round(4 * scale)), 1_000, round(4_000 * max(scale, 0.3)), "large")
    huge_at = 0.3 * seconds
    times.append((huge_at, "huge.jsonl", max(700, round(12_000 * scale)), "jobs"))
    times += [(huge_at + 0.2 + 0.2 * n, f"beside-{n}.jsonl", rng.randrange(1, 6), "jobs") for n in range(5)]
    times += [(at, f"before-{n}.jsonl", max(200, round(1_500 * scale)), "jobs") for n, at in enumerate(busy)]
    times += [(share * seconds, "daily.jsonl", rng.randrange(5, 60), "jobs") for share in (0.1, 0.12, 0.55, 0.9)]
    times.append((rng.uniform(0.1, 0.9) * seconds, "truncated.jsonl.gz", 500, "truncated"))
    times.append((rng.uniform(0.1, 0.9) * seconds, "bad.jsonl", 7, "bad"))
    times.append((rng.uniform(0.1, 0.9) * seconds, "blank.jsonl", 3, "blank"))
    times.append((vanish, VANISHING, GONE_FILES, "vanishing"))
    return [
        Planned(
            number=number,
            at=at,
            name=name,
            lines=lines,
            kind=kind,
            slowly=name.startswith("medium") and name.endswith(".jsonl") and number % 2 == 0,
            simple=name.startswith(("huge", "beside")),
        )
        for number, (at, name, lines, kind) in enumerate(sorted(times))
    ]


def _suffix(rng: Random) -> str:
    return rng.choices((".jsonl", ".jsonl.gz", ".jsonl.zst"), (70, 15, 15))[0]


class Stock(Struct, frozen=True):
    """Payloads that lie ready: files by their relative path, objects by their URI, each with what is in it."""

    files: dict[str, bytes]
    objects: dict[str, bytes]

    def lay_out(self, root: Path) -> None:
        """Writes the files."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def stock(seed: int) -> Stock:
    """A few files and objects, from nothing to some hundred thousand bytes."""
    rng = Random(~seed)
    sizes = (0, 1, 900, 20_000, 128_000, 128_001, 300_000)
    return Stock(
        files={
            **{f"payloads/{size}.bin": rng.randbytes(size) for size in sizes},
            **{f"{GONE}/{line}.bin": rng.randbytes(100) for line in range(1, GONE_FILES + 1)},
        },
        objects={f"s3://{BUCKET}/there/{size}": rng.randbytes(size) for size in sizes},
    )


def make(planned: Planned, seed: int, stocked: Stock, *, lossy: bool) -> tuple[Drop, bytes]:
    """The file as it will be dropped, and what must become of it."""
    lines = _Lines(Random(f"{seed} {planned.number}"), planned, stocked, lossy=lossy)
    for _ in range(planned.lines):
        lines.add()
    whole = b"".join(line + b"\n" for line in lines.lines)
    drop = Drop(planned.number, planned.name, planned.kind != "truncated", lines.jobs, frozenset(lines.rejected))
    if planned.kind == "truncated":
        cut = gzip.compress(whole, mtime=0)
        return Drop(planned.number, planned.name, False, {}, frozenset()), cut[: len(cut) // 2]
    if planned.name.endswith(".gz"):
        return drop, gzip.compress(whole, 1, mtime=0)
    return drop, zstd.compress(whole) if planned.name.endswith(".zst") else whole


class _Lines:
    """The lines of one file in the making."""

    def __init__(self, rng: Random, planned: Planned, stocked: Stock, *, lossy: bool) -> None:
        self.lines: list[bytes] = []
        self.jobs: dict[int, Wanted] = {}
        self.rejected: list[int] = []
        self._rng = rng
        self._planned = planned
        self._stock = stocked
        self._named: list[str] = []
        self._weights = (78, 13, 6, 3) if lossy else (80, 14, 6, 0)

    def add(self) -> None:
        """The next line, now and then after one that is none or is bad."""
        kind, rng = self._planned.kind, self._rng
        if kind == "blank":
            self.lines.append(b"")
        elif kind == "vanishing":
            self._job()
        elif kind == "bad":
            self._reject(rng.choice(BAD))
        else:
            if rng.random() < 0.01:
                self.lines.append(b"")
            if rng.random() < 0.01:
                self._reject(rng.choice(BAD))
            if self._named and rng.random() < 0.01:
                again = {"id": rng.choice(self._named), "payload": "a second of this id"}
                self._reject(json.dumps(again).encode())
            self._job()

    def _reject(self, line: bytes) -> None:
        self.lines.append(line)
        self.rejected.append(len(self.lines))

    def _job(self) -> None:
        rng, line = self._rng, len(self.lines) + 1
        fields, sha256 = self._payload(line)
        name, metadata = str(line), None
        endpoint = MAIN if self._planned.simple else rng.choices(ENDPOINTS, self._weights)[0]
        if rng.random() < 0.5:
            name = fields["id"] = f"{self._planned.number}-{line} ü"
            self._named.append(name)
        if endpoint != MAIN:
            fields["endpoint"] = endpoint
        if endpoint == LOSSY:
            fields |= {"request_ttl_seconds": 60, "invocation_timeout_seconds": 1}
        if not self.jobs or rng.random() < 0.3:
            metadata = fields["metadata"] = {"drop": self._planned.number, "line": line, "ß": [1.5, None, "\u2028"]}
        self.lines.append(json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode())
        self.jobs[line] = Wanted(name, endpoint, sha256, metadata)

    def _payload(self, line: int) -> tuple[dict[str, Any], str | None]:
        """The fields that name a payload, and its digest."""
        rng = self._rng
        if self._planned.kind == "vanishing":
            return self._in_file(f"{GONE}/{line}.bin")
        chance = 0.0 if self._planned.simple else rng.random()
        if chance < 0.90:
            return self._written(line, self._size(chance))
        if chance < 0.95:
            content = rng.randbytes(rng.randrange(1, 3_000))
            return {"payload_base64": base64.b64encode(content).decode()}, _sha256(content)
        if chance < 0.98:
            return self._in_file(rng.choice([name for name in self._stock.files if not name.startswith(GONE)]))
        if chance < 0.998:
            uri = rng.choice(list(self._stock.objects))
            return {"input_location": uri}, _sha256(self._stock.objects[uri])
        return {"input_location": f"s3://{BUCKET}/there/is/none"}, None

    def _in_file(self, name: str) -> tuple[dict[str, Any], str]:
        return {"payload_path": name}, _sha256(self._stock.files[name])

    def _size(self, chance: float) -> int:
        """Most are small, some need S3."""
        rng = self._rng
        if chance < 0.80:
            return rng.randrange(10, 900)
        if chance < 0.89:
            return rng.randrange(900, 9_000)
        return rng.randrange(60_000, 128_000) if chance < 0.895 else rng.randrange(128_001, 300_000)

    def _written(self, line: int, size: int) -> tuple[dict[str, Any], str]:
        """A payload that stands in the line."""
        payload = {"n": f"{self._planned.number}-{line}", "x": "x" * size}
        fields: dict[str, Any] = {"payload": payload}
        if self._rng.random() < 0.04:
            fields["transport"] = "s3"
        return fields, _sha256(json.dumps(payload).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
