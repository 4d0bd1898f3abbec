"""boto3 with a thread pool: what most users write today."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.peers.asked import BUCKET, CONTENT_TYPE, ENDPOINT, Asked, asked, done, key_of


def main() -> None:
    """Sends all jobs."""
    work = asked()
    with ThreadPoolExecutor(work.in_flight) as pool:
        done(sum(pool.map(_sender(work), range(work.jobs))))


def _sender(work: Asked) -> Any:
    session, config = boto3.Session(), Config(max_pool_connections=work.in_flight)
    runtime = session.client("sagemaker-runtime", endpoint_url=work.url, verify=work.ca, config=config)
    s3 = session.client("s3", endpoint_url=work.url, verify=work.ca, config=config)
    payload = work.payload

    def inline(number: int) -> bool:
        answer = runtime.invoke_endpoint_async(
            EndpointName=ENDPOINT, Body=payload, ContentType=CONTENT_TYPE, InferenceId=key_of(number)
        )
        return bool(answer["OutputLocation"])

    def by_s3(number: int) -> bool:
        key = key_of(number)
        s3.put_object(Bucket=BUCKET, Key=key, Body=payload, ContentType=CONTENT_TYPE)
        answer = runtime.invoke_endpoint_async(
            EndpointName=ENDPOINT, InputLocation=f"s3://{BUCKET}/{key}", ContentType=CONTENT_TYPE, InferenceId=key
        )
        return bool(answer["OutputLocation"])

    return by_s3 if work.by_s3 else inline


if __name__ == "__main__":
    main()
