"""The forms in which a receipt may name an object."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.locations import BadLocation, Location, parse_folder, parse_location, split_folder


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://b-1/k", "b-1", "k"),
        ("s3://b-1/a/b%20c?d#e+f", "b-1", "a/b%20c?d#e+f"),
        ("https://b-1.s3.us-east-1.amazonaws.com/a/b%20c%2Bd", "b-1", "a/b c+d"),
        ("https://b.with.dots.s3.us-east-1.amazonaws.com/k", "b.with.dots", "k"),
        ("https://b-1.s3.amazonaws.com/k", "b-1", "k"),
        ("https://b-1.s3-us-west-2.amazonaws.com/k", "b-1", "k"),
        ("https://b-1.s3.dualstack.us-east-1.amazonaws.com/k", "b-1", "k"),
        ("https://b-1.s3.cn-north-1.amazonaws.com.cn/k", "b-1", "k"),
        ("https://b-1.bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com/k", "b-1", "k"),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com/b-1/k", "b-1", "k"),
        ("https://s3.us-east-1.amazonaws.com/b-1/a/k", "b-1", "a/k"),
        ("https://s3.dualstack.us-east-1.amazonaws.com/b-1/k", "b-1", "k"),
        ("https://s3.amazonaws.com/b-1/k", "b-1", "k"),
        ("http://127.0.0.1:9000/b-1/a/k", "b-1", "a/k"),
    ],
)
def test_a_location_is_taken_apart(uri: str, bucket: str, key: str) -> None:
    assert parse_location(uri) == Location(bucket, key)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///k",
        "s3://b-1",
        "s3://b-1/",
        "s3://b c/k",
        "file:///etc/passwd",
        "b-1/k",
        "https://h",
        "https://[/b/k",
        "s3://b-1/\n",
        "s3://b-1/" + "k" * 5_000,
    ],
)
def test_what_names_no_object_is_a_value_that_says_why(uri: str) -> None:
    parsed = parse_location(uri)
    assert isinstance(parsed, BadLocation)
    assert parsed.why


@pytest.mark.parametrize("uri", ["s3://b-1", "s3://b-1/", "https://b-1.s3.us-east-1.amazonaws.com/"])
def test_a_folder_may_be_the_bucket_itself(uri: str) -> None:
    assert parse_folder(uri) == Location("b-1", "")


def test_a_folder_ends_with_its_last_slash() -> None:
    assert split_folder("s3://b/a/c.out") == ("s3://b/a/", "c.out")
    assert split_folder("c.out") == ("", "c.out")


@given(st.text(max_size=80))
def test_any_text_is_a_location_or_a_reason(text: str) -> None:
    assert isinstance(parse_location(text), Location | BadLocation)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=60))
def test_a_location_survives_its_own_uri(key: str) -> None:
    assert parse_location(Location("b-1", key).uri) == Location("b-1", key)
