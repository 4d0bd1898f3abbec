"""Staged inputs: payloads put into S3, for the service to fetch.

The same key is overwritten, so a PUT whose answer is unknown may simply be made again. Many are deleted by one request; an
S3 that has none for that is asked once, and then for each.
"""

import asyncio
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import structlog
from botocore.exceptions import ClientError

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.faults import clean, code_of, fault_of_part, not_offered
from dispatcher.aws.locations import BadLocation, Location, parse_folder
from dispatcher.aws.uploads import PayloadGoneError, SliceReader, open_slice
from dispatcher.errors import UsageError
from dispatcher.interfaces import Fault, FaultKind, FileSlice
from dispatcher.model import FailureReason
from dispatcher.search import side_by_side

log = structlog.get_logger(__name__)

DELETE_MAX_KEYS = 1_000
"""The most that DeleteObjects takes."""
DELETE_KEY_SECONDS = 0.01
"""What each key adds to the deadline: not every S3 is as fast as AWS's, and what came too late would be deleted once more."""
NO_SUCH_KEY = "NoSuchKey"


class SdkStager:
    """A Stager on a client of S3 that `dispatcher.aws.clients` has prepared.

    `staging_uri` is `s3://bucket` or `s3://bucket/prefix`; UsageError if it is neither. `tags` become object tags.
    """

    def __init__(
        self,
        client: Any,
        staging_uri: str,
        *,
        sse_kms_key_id: str | None = None,
        tags: dict[str, str] | None = None,
        expected_bucket_owner: str | None = None,
        deadline: Deadline = DEFAULT_DEADLINE,
        calls: Calls = QUIET,
    ) -> None:
        self._client = client
        self._folder = staging_folder(staging_uri)
        self._owner = {"ExpectedBucketOwner": expected_bucket_owner} if expected_bucket_owner else {}
        self._extra = self._owner | _encryption(sse_kms_key_id) | _tagging(tags)
        self._deadline = deadline
        self._calls = calls
        # Set for good by the first answer that says that there is no DeleteObjects here.
        self._one_by_one = False

    async def stage(self, key: str, payload: bytes | FileSlice, content_type: str | None) -> str | Fault:
        """See Stager."""
        if isinstance(payload, bytes):
            return await self._put(key, io.BytesIO(payload), len(payload), content_type)
        try:
            reader = await asyncio.to_thread(open_slice, payload)
        except PayloadGoneError as error:
            return gone(str(error))
        with reader:
            outcome = await self._put(key, reader, payload.length, content_type)
            return gone("it became shorter while it was being sent") if reader.gone else outcome

    async def discard(self, keys: Sequence[str]) -> dict[str, Fault]:
        """See Stager."""
        left: dict[str, Fault] = {}
        for start in range(0, len(keys), DELETE_MAX_KEYS):
            left |= await self._discard(keys[start : start + DELETE_MAX_KEYS])
        return left

    async def _discard(self, keys: Sequence[str]) -> dict[str, Fault]:
        if not self._one_by_one:
            staged = {self.at(key).key: key for key in keys}
            request = partial(self._delete_all, list(staged))
            seconds = self._deadline.seconds() + DELETE_KEY_SECONDS * len(staged)
            errors = await self._calls.find("DeleteObjects", seconds, request, self._lacks_delete_objects)
            if isinstance(errors, Fault):
                return dict.fromkeys(keys, errors)
            if errors is not None:
                return _left(errors, staged)
        return await self._discard_one_by_one(keys)

    async def _discard_one_by_one(self, keys: Sequence[str]) -> dict[str, Fault]:
        left: dict[str, Fault] = {}

        async def discard(key: str) -> None:
            request, seconds = partial(self._delete, self.at(key)), self._deadline.seconds()
            outcome = await self._calls.find("DeleteObject", seconds, request, _is_no_such_key)
            if isinstance(outcome, Fault):
                left[key] = outcome

        await side_by_side(discard, list(keys))
        return left

    def _lacks_delete_objects(self, error: ClientError) -> bool:
        lacks = not_offered(error, "DeleteObjects")
        if lacks and not self._one_by_one:
            self._one_by_one = True
            log.warning(
                "S3 takes no DeleteObjects; staged inputs are deleted one by one", code=clean(code_of(error), 100)
            )
        return lacks

    async def _put(
        self, key: str, body: io.BytesIO | SliceReader, size_bytes: int, content_type: str | None
    ) -> str | Fault:
        request = partial(self.upload, self.at(key), body, content_type)
        return await self._calls.send("PutObject", self._deadline.seconds(size_bytes), request)

    async def upload(self, at: Location, body: io.BytesIO | SliceReader, content_type: str | None) -> str:
        """The call of the SDK, with what it raises."""
        typed = {} if content_type is None else {"ContentType": content_type}
        await self._client.put_object(Bucket=at.bucket, Key=at.key, Body=body, **typed, **self._extra)
        return at.uri

    async def _delete_all(self, keys: list[str]) -> list[dict[str, str]]:
        """What the answer says of those that were not deleted."""
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await self._client.delete_objects(Bucket=self._folder.bucket, Delete=wanted, **self._owner)
        return answer.get("Errors") or []

    async def _delete(self, at: Location) -> str:
        await self._client.delete_object(Bucket=at.bucket, Key=at.key, **self._owner)
        return at.uri

    def at(self, key: str) -> Location:
        """Where the payload of that key lies."""
        return Location(self._folder.bucket, self._folder.key + key)


def _left(errors: Iterable[Mapping[str, str]], staged: Mapping[str, str]) -> dict[str, Fault]:
    """The keys that these errors are of, each with its fault. An error that names none of them may be any one's: all are left."""
    left: dict[str, Fault] = {}
    for said in errors:
        if said.get("Code") == NO_SUCH_KEY:
            continue
        fault, named = fault_of_part(said, "DeleteObjects"), staged.get(said.get("Key", ""))
        left |= dict.fromkeys(staged.values(), fault) if named is None else {named: fault}
    return left


def _is_no_such_key(error: ClientError) -> bool:
    return code_of(error) == NO_SUCH_KEY


def staging_folder(uri: str) -> Location:
    """The folder that keys are put under, its own key empty or ending in `/`. UsageError if `uri` is no `s3://` URI."""
    folder = parse_folder(uri) if uri.startswith("s3://") else BadLocation("it does not begin with s3://")
    if isinstance(folder, BadLocation):
        raise UsageError(f"the staging prefix {clean(uri, 200)!r} is no s3://bucket/prefix: {folder.why}")
    prefix = folder.key.rstrip("/")
    return Location(folder.bucket, f"{prefix}/" if prefix else "")


def _encryption(sse_kms_key_id: str | None) -> dict[str, str]:
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": sse_kms_key_id} if sse_kms_key_id else {}


def _tagging(tags: dict[str, str] | None) -> dict[str, str]:
    return {"Tagging": urlencode(tags)} if tags else {}


def gone(why: str) -> Fault:
    """The payload's file is not what the job said."""
    return Fault(
        kind=FaultKind.REFUSED,
        reason=FailureReason.PAYLOAD_GONE,
        code="PayloadGone",
        message=clean(f"the payload's file cannot be sent: {why}"),
    )
