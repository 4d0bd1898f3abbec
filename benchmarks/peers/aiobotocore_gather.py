"""aiobotocore with a semaphore and gather, on uvloop: what users write who care for speed."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from benchmarks.peers.asked import BUCKET, CONTENT_TYPE, ENDPOINT, Asked, asked, done, key_of


def main() -> None:
    """Sends all jobs."""
    uvloop.run(_all(asked()))


async def _all(work: Asked) -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(_client("sagemaker-runtime", work))
        s3 = await stack.enter_async_context(_client("s3", work)) if work.by_s3 else None
        limit, payload = asyncio.Semaphore(work.in_flight), work.payload

        async def send(number: int) -> bool:
            async with limit:
                return await (_by_s3(runtime, s3, payload, number) if work.by_s3 else _inline(runtime, payload, number))

        done(sum(await asyncio.gather(*[send(number) for number in range(work.jobs)])))


def _client(service: str, work: Asked) -> Any:
    config = AioConfig(max_pool_connections=work.in_flight)
    return get_session().create_client(service, endpoint_url=work.url, verify=work.ca, config=config)


async def _inline(runtime: Any, payload: bytes, number: int) -> bool:
    answer = await runtime.invoke_endpoint_async(
        EndpointName=ENDPOINT, Body=payload, ContentType=CONTENT_TYPE, InferenceId=key_of(number)
    )
    return bool(answer["OutputLocation"])


async def _by_s3(runtime: Any, s3: Any, payload: bytes, number: int) -> bool:
    key = key_of(number)
    await s3.put_object(Bucket=BUCKET, Key=key, Body=payload, ContentType=CONTENT_TYPE)
    answer = await runtime.invoke_endpoint_async(
        EndpointName=ENDPOINT, InputLocation=f"s3://{BUCKET}/{key}", ContentType=CONTENT_TYPE, InferenceId=key
    )
    return bool(answer["OutputLocation"])


if __name__ == "__main__":
    main()
