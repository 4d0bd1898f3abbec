"""What the service has written, read from S3.

An object that is not there is a 404 only for a caller that may LIST its bucket; to others S3 says 403. So after a 403 each
bucket is probed once, by a LIST of one key in the object's folder; a probe and every later listing tell what a 403 means
in that bucket. Where LIST is denied, it means "not there" only while an object of the bucket, the latest one that could be
read, still can be: else all of it may be denied, and nothing was looked for.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from botocore.exceptions import ClientError
from msgspec.structs import replace

from dispatcher.aws.calls import QUIET, Calls, Operation, Request
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.faults import code_of, protocol_fault, status_of
from dispatcher.aws.listings import LISTED, Entry
from dispatcher.aws.locations import BadLocation, Location, parse_folder, parse_location, split_folder
from dispatcher.interfaces import HIDDEN, Fault, FaultKind, Found, Listing
from dispatcher.model import FailureReason

PAGES_MAX = 2
CHUNK_BYTES = 1 << 16
PROOF_SECONDS = 20.0
"""So long after an object could be read, it is believed that objects of its bucket can be."""

T = TypeVar("T")


class S3Completions:
    """Completions on a client of S3 that `dispatcher.aws.clients` has prepared.

    `_list_denied` says of each bucket that was listed or probed whether LIST was denied; only this class reads and
    writes it. `_proofs` has of each bucket whose LIST is denied an object that could be read since, and when (on the loop's
    clock). `_probing` lets one probe run at a time, so that a burst of 403 makes one request.
    """

    def __init__(
        self,
        client: Any,
        *,
        deadline: Deadline = DEFAULT_DEADLINE,
        calls: Calls = QUIET,
        proof_seconds: float = PROOF_SECONDS,
    ) -> None:
        self._proof_seconds = proof_seconds
        self._client = client
        self._deadline = deadline
        self._calls = calls
        self._list_denied: dict[str, bool] = {}
        self._proofs: dict[str, tuple[Location, float]] = {}
        self._probing = asyncio.Lock()

    async def list_folder(self, folder: str) -> Listing | Fault:
        """See Completions. Objects of folders within the folder are not listed."""
        at = parse_folder(folder)
        if isinstance(at, BadLocation):
            return _unreadable(at)
        objects: list[Found] = []
        token: str | None = None
        for _ in range(PAGES_MAX):
            page = await self._list(at, token=token)
            if isinstance(page, Fault):
                return page
            objects += [_found(at.bucket, entry) for entry in page[LISTED]]
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if token is None:
                return Listing(objects, complete=True)
        return Listing(objects, complete=False)

    async def look(self, location: str) -> Found | Fault | None:
        """See Completions."""
        return await self._on_object("HeadObject", location, 0, self._head)

    async def read(self, location: str, max_bytes: int) -> bytes | Fault | None:
        """See Completions."""
        return await self._on_object("GetObject", location, max_bytes, partial(self._get, max_bytes=max_bytes))

    async def _on_object(
        self, operation: Operation, location: str, size_bytes: int, request: Callable[[Location], Awaitable[T | Fault]]
    ) -> T | Fault | None:
        at = parse_location(location)
        if isinstance(at, BadLocation):
            return _unreadable(at)
        bound: Request[T] = partial(request, at)
        missing = partial(self._is_missing, at.bucket)
        outcome = await self._calls.find(operation, self._deadline.seconds(size_bytes), bound, missing)
        if isinstance(outcome, Fault):
            return await self._explained(at, outcome) if outcome.reason is FailureReason.ACCESS_DENIED else outcome
        if outcome is not None and self._list_denied.get(at.bucket, False):
            self._proofs[at.bucket] = at, asyncio.get_running_loop().time()
        return outcome

    async def _explained(self, at: Location, denied: Fault) -> Fault | None:
        """What a 403 means in this bucket: None for "not there"."""
        probe = None if at.bucket in self._list_denied else await self._probe(at)
        if isinstance(probe, Fault) or not self._list_denied[at.bucket]:
            return probe or denied
        return None if await self._is_readable(at.bucket) else replace(denied, code=HIDDEN)

    async def _is_readable(self, bucket: str) -> bool:
        """Whether the latest object of the bucket that could be read still can be."""
        async with self._probing:
            if bucket not in self._proofs or self._is_proven(bucket):
                return bucket in self._proofs
            known, _ = self._proofs[bucket]
            found = await self._calls.send("HeadObject", self._deadline.seconds(0), partial(self._head, known))
            if isinstance(found, Fault):
                self._proofs.pop(bucket, None)
                return False
            self._proofs[bucket] = known, asyncio.get_running_loop().time()
            return True

    def _is_proven(self, bucket: str) -> bool:
        proof = self._proofs.get(bucket)
        return proof is not None and asyncio.get_running_loop().time() - proof[1] < self._proof_seconds

    async def _probe(self, at: Location) -> Fault | None:
        """Finds out whether the bucket's LIST is denied. A Fault where that could not be learnt."""
        async with self._probing:
            if at.bucket in self._list_denied:
                return None
            folder = Location(at.bucket, split_folder(at.key)[0])
            page = await self._list(folder, max_keys=1)
            return page if isinstance(page, Fault) and at.bucket not in self._list_denied else None

    def _is_missing(self, bucket: str, error: ClientError) -> bool:
        if code_of(error) in {"404", "NoSuchKey", "NotFound"}:
            return True
        return code_of(error) in {"403", "AccessDenied", "Forbidden"} and self._is_proven(bucket)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _list(
        self, folder: Location, *, token: str | None = None, max_keys: int = 1_000
    ) -> dict[str, Any] | Fault:
        request = partial(self._page, folder, token, max_keys)
        page = await self._calls.send("ListObjectsV2", self._deadline.seconds(), request)
        if not isinstance(page, Fault):
            self._list_denied[folder.bucket] = False
            self._proofs.pop(folder.bucket, None)
        elif page.reason is FailureReason.ACCESS_DENIED:
            self._list_denied[folder.bucket] = True
        return page

    async def _page(self, folder: Location, token: str | None, max_keys: int) -> dict[str, Any] | Fault:
        more = {} if token is None else {"ContinuationToken": token}
        page: dict[str, Any] = await self._client.list_objects_v2(
            Bucket=folder.bucket, Prefix=folder.key, Delimiter="/", MaxKeys=max_keys, **more
        )
        # A page of somebody else, such as a proxy's, would pass for an empty folder.
        return (
            page
            if "Name" in page and LISTED in page
            else protocol_fault("NoListing", "the answer to a LIST is no listing")
        )

    async def _head(self, at: Location) -> Found:
        answer = await self._client.head_object(Bucket=at.bucket, Key=at.key)
        return Found(at.uri, int(answer["ContentLength"]), answer["LastModified"].timestamp())

    async def _get(self, at: Location, max_bytes: int) -> bytes | Fault:
        body = await self._body(at, max_bytes)
        if isinstance(body, Fault):
            return body
        async with body:
            return b"".join([chunk async for chunk in _bounded(body, max_bytes)])

    async def _body(self, at: Location, max_bytes: int) -> Any | Fault:
        """The open body, at least one byte asked for; whoever gets it closes it."""
        wanted = f"bytes=0-{max(max_bytes, 1) - 1}"
        try:
            answer = await self._client.get_object(Bucket=at.bucket, Key=at.key, Range=wanted)
        except ClientError as error:
            if status_of(error) != 416:
                raise
            return _EmptyBody()
        if "ETag" in answer:
            return answer["Body"]
        answer["Body"].close()
        return protocol_fault("NoObject", "the answer to a GET is no object of S3")


class _EmptyBody:
    """The body of an object of no bytes: S3 has no range of it to give, and answers 416."""

    async def __aenter__(self) -> "_EmptyBody":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read(self, size: int) -> bytes:
        return b""


async def _bounded(body: Any, max_bytes: int) -> AsyncIterator[bytes]:
    """Up to `max_bytes` of the body; the end is read too where it has no more, so that its connection is kept."""
    left = max_bytes
    while chunk := await body.read(min(CHUNK_BYTES, left + 1)):
        yield chunk[:left]
        left -= len(chunk)
        if left < 0:
            return


def _found(bucket: str, entry: Entry) -> Found:
    key, size_bytes, modified_at = entry
    return Found(f"s3://{bucket}/{key}", size_bytes, modified_at)


def _unreadable(bad: BadLocation) -> Fault:
    return Fault(kind=FaultKind.REFUSED, reason=FailureReason.PROTOCOL, code="BadLocation", message=bad.why)
