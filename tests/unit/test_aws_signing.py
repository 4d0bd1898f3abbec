"""Signatures, against botocore's own signer."""

from collections.abc import Mapping
from datetime import UTC, datetime

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.signing import Keys, Signer, canonical_headers, signing_key, squeezed

KEYS = Keys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
NOON = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()


def canonical(headers: Mapping[str, str], sha256: str) -> bytes:
    lines, names = canonical_headers(dict(headers))
    return f"GET\n/\n\n{lines}\n{names}\n{sha256}".encode()


def test_the_published_example_gives_the_published_key() -> None:
    assert signing_key(KEYS.secret_key, "20150830", "us-east-1", "iam").hex() == (
        "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    )


def test_the_published_request_gets_the_published_signature() -> None:
    text = (
        "GET\n/\nAction=ListUsers&Version=2010-05-08\n"
        "content-type:application/x-www-form-urlencoded; charset=utf-8\nhost:iam.amazonaws.com\n"
        "x-amz-date:20150830T123600Z\n\ncontent-type;host;x-amz-date\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    moment = Signer(KEYS, "us-east-1", "iam").at(NOON)
    assert moment.stamp == "20150830T123600Z"
    assert moment.credential == "AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request"
    assert moment.signature(text.encode()) == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"


values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1, max_size=30)


@given(
    secret=st.text(min_size=1, max_size=40).filter(lambda text: text.isascii()),
    region=st.sampled_from(["us-east-1", "cn-north-1"]),
    headers=st.dictionaries(st.from_regex(r"\Ax-[a-z]{1,8}\Z"), values, max_size=5),
)
def test_any_headers_are_signed_as_botocore_signs_them(secret: str, region: str, headers: dict[str, str]) -> None:
    request = AWSRequest("GET", "https://h.example/", headers=headers)
    SigV4Auth(TheirCredentials("AKID", secret), "sagemaker", region).add_auth(request)
    stamp = request.headers["X-Amz-Date"]
    moment = Signer(Keys("AKID", secret, None), region, "sagemaker").at(
        datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    )
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ours = moment.signature(canonical({"host": "h.example", "x-amz-date": stamp, **headers}, empty))
    assert request.headers["Authorization"].endswith(f"Signature={ours}")


@given(value=st.text())
def test_a_value_is_squeezed_as_botocore_does_it(value: str) -> None:
    assert squeezed(value) == SigV4Auth(None, "s", "r")._header_value(value)


def test_a_moment_is_kept_for_its_second_and_the_key_for_its_day() -> None:
    signer = Signer(KEYS, "us-east-1", "iam")
    first = signer.at(NOON)
    assert signer.at(NOON + 0.9) is first
    assert signer.at(NOON + 1).outer is first.outer
    assert signer.at(NOON + 86_400).outer is not first.outer
    again = signer.at(NOON)
    assert (again.stamp, again.signature(b"")) == (first.stamp, first.signature(b"")), "a clock may be set back"


def test_keys_are_not_shown() -> None:
    assert "wJalr" not in repr(KEYS)
