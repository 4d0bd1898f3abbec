"""Staged inputs: payloads put into S3, for the service to fetch.

The same key is overwritten, so a PUT whose answer is unknown may simply be made again.
"""

import asyncio
import io
from functools import partial
from typing import Any
from urllib.parse import urlencode

from dispatcher.aws.calls import QUIET, Calls
from dispatcher.aws.deadlines import DEFAULT_DEADLINE, Deadline
from dispatcher.aws.faults import clean
from dispatcher.aws.locations import BadLocation, Location, parse_folder
from dispatcher.aws.uploads import PayloadGoneError, SliceReader, open_slice
from dispatcher.errors import UsageError
from dispatcher.interfaces import Fault, FaultKind, FileSlice
from dispatcher.model import FailureReason


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

    async def discard(self, key: str) -> Fault | None:
        """See Stager."""
        outcome = await self._calls.send("DeleteObject", self._deadline.seconds(), partial(self._delete, self.at(key)))
        return outcome if isinstance(outcome, Fault) else None

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

    async def _delete(self, at: Location) -> str:
        await self._client.delete_object(Bucket=at.bucket, Key=at.key, **self._owner)
        return at.uri

    def at(self, key: str) -> Location:
        """Where the payload of that key lies."""
        return Location(self._folder.bucket, self._folder.key + key)


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
