"""What the dispatcher relies on in S3, asked of the sandbox and of two S3s that are not ours: moto and SeaweedFS.

A case that passes on all three is how S3 behaves; the sandbox may not have an opinion of its own.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dispatcher.aws.clients import ClientSettings, clients
from dispatcher.transports.choosing import Kind
from tests.sandboxes import KEY_ID, SECRET
from tests.sandboxes import client as sdk_client
from tests.scripted import aws_environment
from tests.servers import moto, sandbox, seaweed
from tests.transports import on_both_kinds, staging

KINDS = {"sandbox": sandbox, "moto": moto, "seaweed": seaweed}


@pytest.fixture(scope="module", params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture(scope="module")
def s3(url: str) -> Iterator[Any]:
    with sdk_client("s3", url) as made:
        yield made


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:16]}"
    s3.create_bucket(Bucket=name)
    return name


def put(s3: Any, bucket: str, *keys: str, body: bytes = b"x") -> None:
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=body)


def read(s3: Any, bucket: str, key: str, **more: Any) -> bytes:
    with s3.get_object(Bucket=bucket, Key=key, **more)["Body"] as body:
        found: bytes = body.read()
        return found


def keys(answer: dict[str, Any]) -> list[str]:
    return [one["Key"] for one in answer.get("Contents", [])]


def error_of(call: Any, **request: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**request)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_what_is_put_can_be_read_back(s3: Any, bucket: str) -> None:
    data = bytes(range(256)) * 8
    etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
    assert s3.put_object(Bucket=bucket, Key="a/b", Body=data, ContentType="text/csv")["ETag"] == etag
    answer = s3.get_object(Bucket=bucket, Key="a/b")
    with answer["Body"] as body:
        assert body.read() == data
    assert (answer["ETag"], answer["ContentType"], answer["ContentLength"]) == (etag, "text/csv", len(data))
    assert answer["LastModified"].tzinfo is not None


def test_a_head_says_what_a_get_would(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345", ContentType="a/b", Metadata={"who": "me"})
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (5, "a/b", {"who": "me"})


def test_an_empty_object_is_an_object(s3: Any, bucket: str) -> None:
    put(s3, bucket, "empty", body=b"")
    assert read(s3, bucket, "empty") == b""
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["Size"] == 0


def test_a_second_put_replaces_the_first(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", body=b"one")
    put(s3, bucket, "k", body=b"two!")
    assert read(s3, bucket, "k") == b"two!"
    assert keys(s3.list_objects_v2(Bucket=bucket)) == ["k"]


def test_what_is_missing_is_told_by_get_and_hidden_by_head(s3: Any, bucket: str) -> None:
    assert error_of(s3.get_object, Bucket=bucket, Key="gone") == (404, "NoSuchKey")
    assert error_of(s3.head_object, Bucket=bucket, Key="gone") == (404, "404")


def test_a_missing_bucket_is_told(s3: Any) -> None:
    assert error_of(s3.get_object, Bucket="no-such-bucket", Key="k") == (404, "NoSuchBucket")
    assert error_of(s3.list_objects_v2, Bucket="no-such-bucket") == (404, "NoSuchBucket")
    assert error_of(s3.head_bucket, Bucket="no-such-bucket") == (404, "404")


def test_a_bucket_can_be_asked_for(s3: Any, bucket: str) -> None:
    assert s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]


def test_a_bucket_goes_away_once_it_is_empty(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k")
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    assert error_of(s3.head_bucket, Bucket=bucket) == (404, "404")


def test_deleting_is_done_once_or_twice_alike(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k")
    for _ in range(2):
        assert s3.delete_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert error_of(s3.head_object, Bucket=bucket, Key="k") == (404, "404")
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_several_keys_are_deleted_at_once(s3: Any, bucket: str) -> None:
    put(s3, bucket, "a", "b", "c&d")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "c&d"}]})
    assert sorted(one["Key"] for one in gone["Deleted"]) == ["a", "c&d"]
    assert keys(s3.list_objects_v2(Bucket=bucket)) == ["b"]


def test_a_key_that_is_not_there_is_no_error_where_several_are_deleted(s3: Any, bucket: str) -> None:
    put(s3, bucket, "a", "b")
    wanted = {"Objects": [{"Key": "a"}, {"Key": "none"}], "Quiet": True}
    assert "Errors" not in s3.delete_objects(Bucket=bucket, Delete=wanted)
    assert keys(s3.list_objects_v2(Bucket=bucket)) == ["b"]


def test_a_thousand_keys_are_deleted_at_once(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k0", "k999")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"k{number}"} for number in range(1_000)]})
    assert "Errors" not in gone
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_listing_is_in_order_and_keeps_to_its_prefix(s3: Any, bucket: str) -> None:
    put(s3, bucket, "run/2", "run/10", "run/1", "ruin", "zoo", "a/b")
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix="run/")) == ["run/1", "run/10", "run/2"]
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix="ru")) == ["ruin", "run/1", "run/10", "run/2"]
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix="none/")) == []


def test_a_listing_comes_in_pages(s3: Any, bucket: str) -> None:
    put(s3, bucket, *[f"run/{number:02}" for number in range(25)])
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="run/", MaxKeys=10))
    assert [page["KeyCount"] for page in pages] == [10, 10, 5]
    assert [page["IsTruncated"] for page in pages] == [True, True, False]
    assert [key for page in pages for key in keys(page)] == [f"run/{number:02}" for number in range(25)]


def test_a_page_that_is_just_full_is_the_last(s3: Any, bucket: str) -> None:
    put(s3, bucket, "a", "b")
    answer = s3.list_objects_v2(Bucket=bucket, MaxKeys=2)
    assert (keys(answer), answer["IsTruncated"]) == (["a", "b"], False)


def test_a_listing_may_start_after_a_key(s3: Any, bucket: str) -> None:
    put(s3, bucket, "run/1", "run/2", "run/3")
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix="run/", StartAfter="run/1")) == ["run/2", "run/3"]
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix="run/", StartAfter="run/15")) == ["run/2", "run/3"]


def test_a_delimiter_shows_folders_as_one(s3: Any, bucket: str) -> None:
    put(s3, bucket, "run/a/1", "run/a/2", "run/b/1", "run/c")
    answer = s3.list_objects_v2(Bucket=bucket, Prefix="run/", Delimiter="/")
    assert keys(answer) == ["run/c"]
    assert [one["Prefix"] for one in answer["CommonPrefixes"]] == ["run/a/", "run/b/"]


@pytest.mark.parametrize("key", ["with space", "a+b", "50%", "ü/é", "a&b<c>", "q?x=1#y", "~!*'()", "a=b"])
def test_a_key_may_hold_any_character(key: str, s3: Any, bucket: str) -> None:
    put(s3, bucket, key, body=key.encode())
    assert read(s3, bucket, key) == key.encode()
    assert keys(s3.list_objects_v2(Bucket=bucket, Prefix=key)) == [key]


@pytest.mark.parametrize(
    ("span", "content", "shown"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=0-0", b"0", "bytes 0-0/10"),
    ],
)
def test_a_part_can_be_read(span: str, content: bytes, shown: str, s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", body=b"0123456789")
    answer = s3.get_object(Bucket=bucket, Key="k", Range=span)
    with answer["Body"] as body:
        assert body.read() == content
    assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["ContentRange"]) == (206, shown)


def test_a_part_beyond_the_end_is_refused(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k", body=b"0123456789")
    assert error_of(s3.get_object, Bucket=bucket, Key="k", Range="bytes=10-")[0] == 416


def test_a_put_may_ask_that_nothing_be_there(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"one", IfNoneMatch="*")
    refused = error_of(s3.put_object, Bucket=bucket, Key="k", Body=b"two", IfNoneMatch="*")
    assert refused == (412, "PreconditionFailed")
    assert read(s3, bucket, "k") == b"one"


def test_a_get_may_ask_for_what_it_knows(s3: Any, bucket: str) -> None:
    put(s3, bucket, "k")
    etag = s3.head_object(Bucket=bucket, Key="k")["ETag"]
    assert read(s3, bucket, "k", IfMatch=etag) == b"x"
    assert error_of(s3.get_object, Bucket=bucket, Key="k", IfMatch='"other"') == (412, "PreconditionFailed")
    assert error_of(s3.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag)[0] == 304


@on_both_kinds
@pytest.mark.parametrize("key", ["plain", "with space/a+b", "50%/ü/~!*'()", "a=b&c"])
@pytest.mark.parametrize("size", [0, 1_000, 3_000_000])
async def test_what_a_stager_puts_can_be_read_back(
    client: Kind, key: str, size: int, url: str, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws_environment(monkeypatch, url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    payload = os.urandom(size)
    async with (
        clients(ClientSettings(max_in_flight=2)) as opened,
        staging(client, opened, f"s3://{bucket}/in", tags={"a b": "c=d"}) as stager,
    ):
        assert await stager.stage(key, payload, "text/plain; charset=utf-8") == f"s3://{bucket}/in/{key}"
    assert read(s3, bucket, f"in/{key}") == payload


def test_a_large_object_travels_whole(s3: Any, bucket: str) -> None:
    data = hashlib.sha256(b"seed").digest() * 100_000
    put(s3, bucket, "large", body=data)
    assert read(s3, bucket, "large") == data
