"""An S3 that is not the sandbox's own behind it: inputs are read from there, results are written there.

With it, a dispatcher under test talks to the sandbox for InvokeEndpointAsync and to a real S3 for everything else. Each copy
is a task of its own, a few at a time; a result that cannot be written is lost, as it is when an endpoint's role may not write.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.settings import Settings

AT_ONCE = 32


class Foreign:
    """Copies between the sandbox and the other S3; made by `foreign`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._room = asyncio.Semaphore(AT_ONCE)
        # Kept so that they are not collected in mid-flight; each removes itself.
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, bucket: str, key: str, then: Callable[[Blob | None], None]) -> None:
        """Calls `then` with the object, or None where it is not there."""
        self._start(self._fetch(bucket, key, then))

    def put(self, bucket: str, key: str, blob: Blob, content_type: str) -> None:
        """Writes an object, soon."""
        self._start(self._put(bucket, key, blob, content_type))

    async def close(self) -> None:
        """Ends the copies that are under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, bucket: str, key: str, then: Callable[[Blob | None], None]) -> None:
        async with self._room:
            try:
                answer = await self._client.get_object(Bucket=bucket, Key=key)
                async with answer["Body"] as body:
                    found = Blob(await body.read())
            except (BotoCoreError, ClientError):
                found = None
        then(found)

    async def _put(self, bucket: str, key: str, blob: Blob, content_type: str) -> None:
        async with self._room:
            try:
                body = blob.read(0, blob.size)
                await self._client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)
            except (BotoCoreError, ClientError):
                return


@asynccontextmanager
async def foreign(settings: Settings, url: str) -> AsyncIterator[Foreign]:
    """The S3 at `url`, with the sandbox's own keys."""
    client = get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=AioConfig(max_pool_connections=AT_ONCE, s3={"addressing_style": "path"}),
    )
    async with client as opened:
        made = Foreign(opened)
        try:
            yield made
        finally:
            await made.close()
