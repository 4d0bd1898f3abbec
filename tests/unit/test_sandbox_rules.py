"""Every rule of InvokeEndpointAsync that the sandbox enforces."""

import pytest

from dispatcher.sandbox.rules import Asked, check

P = "x-amzn-sagemaker-"


def checked(endpoint: str = "model", body_bytes: int = 1, inline: bool = True, **fields: str) -> Asked | str:
    return check(endpoint, {(P + name).encode(): value.encode() for name, value in fields.items()}, body_bytes, inline)


def checked_one(name: str, value: str) -> Asked | str:
    return check("model", {(P + name).encode(): value.encode()}, 0 if name == "inputlocation" else 1)


def test_a_full_request_keeps_its_fields() -> None:
    headers = {
        b"x-amzn-sagemaker-content-type": b"application/json",
        b"x-amzn-sagemaker-accept": b"text/csv",
        b"x-amzn-sagemaker-custom-attributes": b"c=1",
        b"x-amzn-sagemaker-inference-id": b"id 1",
        b"x-amzn-sagemaker-s3outputpathextension": b"run/1",
        b"x-amzn-sagemaker-filename": b"a.out",
        b"x-amzn-sagemaker-requestttlseconds": b"60",
        b"x-amzn-sagemaker-invocationtimeoutseconds": b"3600",
    }
    assert check("model", headers, 128_000) == Asked(
        input_location=None,
        content_type="application/json",
        accept="text/csv",
        custom_attributes="c=1",
        inference_id="id 1",
        extension="run/1",
        filename="a.out",
        ttl_seconds=60,
        timeout_seconds=3600,
    )


def test_the_text_for_a_body_over_the_limit_names_the_limit() -> None:
    text = "1 validation error detected: Value at 'body' failed to satisfy constraint: Member must have length less than or equal to "
    assert checked(body_bytes=128_001) == text + "128000"
    assert checked(body_bytes=1, inline=False) == text + "0"


def test_exactly_one_of_body_and_location_may_come() -> None:
    text = "Exactly one of Body and InputLocation must be provided."
    assert checked(body_bytes=0) == text
    assert checked(inputlocation="s3://b/k") == text
    assert isinstance(checked(body_bytes=0, inputlocation="s3://b/k"), Asked)
    assert isinstance(checked(body_bytes=0, inline=False, inputlocation="https://b.s3.x.amazonaws.com/k"), Asked)


GOOD = {
    "inputlocation": ["s3://b", "https://b/k"],
    "content-type": ["", "x" * 1024],
    "accept": ["*/*", "x" * 1024],
    "custom-attributes": ["", "~" * 1024],
    "inference-id": ["a", "a b", "~" * 64],
    "s3outputpathextension": ["a", "a/b/c", "!_.*'()-", "x" * 512],
    "filename": ["a", "a.out", "a-b_c.", "x" * 32],
    "requestttlseconds": ["60", "21600"],
    "invocationtimeoutseconds": ["1", "3600"],
}
BAD = {
    "inputlocation": ["", "http://b/k", "s3:///k", "b/k", "s3://" + "x" * 1020],
    "content-type": ["ü", "x" * 1025],
    "accept": ["ü", "x" * 1025],
    "custom-attributes": ["ü", "x" * 1025],
    "inference-id": ["", " a", "ü", "a\tb", "x" * 65],
    "s3outputpathextension": ["", "s3:x", "https:x", "a b", "a+b", "x" * 513],
    "filename": ["", "a.b.c", ".a", "-a", "a/b", "x" * 33],
    "requestttlseconds": ["59", "21601", "", "1e3", "60.0"],
    "invocationtimeoutseconds": ["0", "-1", "3601", "x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_a_value_within_the_rules_is_taken(name: str, value: str) -> None:
    assert isinstance(checked_one(name, value), Asked)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_outside_the_rules_is_refused_by_name(name: str, value: str) -> None:
    said = checked_one(name, value)
    assert isinstance(said, str)
    assert said.startswith("1 validation error detected: Value '")
    assert f"at '{name.replace('-', '')}'" in said.lower()


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a/b", "x" * 64])
def test_an_endpoint_name_outside_the_rules_is_refused(name: str) -> None:
    assert "at 'endpointName'" in str(checked(endpoint=name))


def test_several_faults_are_all_named() -> None:
    said = checked(body_bytes=128_001, filename="a.b.c", requestttlseconds="59")
    assert isinstance(said, str)
    assert said.startswith("3 validation errors detected: ")
