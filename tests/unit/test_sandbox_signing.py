"""The sandbox's check of signatures, against botocore's own signer."""

import hashlib
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sandbox.signing import Refusal, Signed, Verifier, _epoch

VERIFIER = Verifier(b"sandbox", b"sandbox-secret", b"us-east-1")
HOST = "127.0.0.1:1234"


def signed(method: str, url: str, body: bytes = b"", service: str = "sagemaker", **more: Any) -> tuple[Signed, float]:
    """A request as botocore signs it, and when it did."""
    request = AWSRequest(method, f"http://{HOST}{url}", data=body, headers=more.get("headers", {}))
    credentials = Credentials(more.get("key_id", "sandbox"), more.get("secret", "sandbox-secret"), more.get("token"))
    signer = (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, more.get("region", "us-east-1"))
    signer.add_auth(request)
    headers = {name.lower().encode(): str(value).encode() for name, value in request.headers.items()}
    headers[b"host"] = HOST.encode()
    parts = urlsplit(url)
    wire = Signed(method.encode(), parts.path.encode(), parts.query.encode(), headers)
    at = _epoch(headers[b"x-amz-date"])
    assert at is not None
    return wire, at


def code(refusal: Refusal | None) -> str:
    return "" if refusal is None else f"{refusal.status} {refusal.code}"


PATH = "/endpoints/a-model/async-invocations"


def check(wire: Signed, now: float, body: bytes = b"") -> Refusal | None:
    return VERIFIER.sagemaker(wire, hashlib.sha256(body).hexdigest(), now)


@given(body=st.binary(max_size=200))
def test_what_botocore_signs_for_sagemaker_is_let_in(body: bytes) -> None:
    wire, now = signed("POST", PATH, body, headers={"X-Amzn-SageMaker-Custom-Attributes": "a  b   c "})
    assert check(wire, now, body) is None


@pytest.mark.parametrize(
    "url",
    [
        "/bucket/key",
        "/bucket/with%20space/and%2Bplus",
        "/bucket/%C3%BC~%21%2A%27%28%29",
        "/bucket?list-type=2&prefix=a%2Fb&encoding-type=url",
        "/bucket?delete",
        "/bucket/a//b/../c",
    ],
)
def test_what_botocore_signs_for_s3_is_let_in(url: str) -> None:
    wire, now = signed("GET", url, service="s3")
    assert VERIFIER.s3(wire, now) is None


def test_a_session_token_is_signed_like_any_header() -> None:
    wire, now = signed("POST", PATH, token="token")
    assert check(wire, now) is None
    spoilt = Signed(wire.method, wire.path, wire.query, {**wire.headers, b"x-amz-security-token": b"other"})
    assert code(check(spoilt, now)) == "403 InvalidSignatureException"


def test_another_body_than_the_signed_one_is_refused() -> None:
    wire, now = signed("POST", PATH, b"one")
    assert code(check(wire, now, b"two")) == "403 InvalidSignatureException"


def test_another_secret_is_refused_by_each_service_in_its_own_words() -> None:
    wire, now = signed("POST", PATH, secret="other")
    assert code(check(wire, now)) == "403 InvalidSignatureException"
    wire, now = signed("GET", "/bucket/key", service="s3", secret="other")
    assert code(VERIFIER.s3(wire, now)) == "403 SignatureDoesNotMatch"


def test_an_unknown_key_is_refused() -> None:
    wire, now = signed("POST", PATH, key_id="nobody")
    assert code(check(wire, now)) == "403 UnrecognizedClientException"
    wire, now = signed("GET", "/bucket/key", service="s3", key_id="nobody")
    assert code(VERIFIER.s3(wire, now)) == "403 InvalidAccessKeyId"


def test_a_key_whose_time_is_up_is_refused_by_each_service_in_its_own_words() -> None:
    later = Verifier(b"new", b"new-secret", b"us-east-1", frozenset({b"sandbox"}))
    wire, now = signed("POST", PATH)
    assert code(later.sagemaker(wire, hashlib.sha256(b"").hexdigest(), now)) == "403 ExpiredTokenException"
    wire, now = signed("GET", "/bucket/key", service="s3")
    assert code(later.s3(wire, now)) == "400 ExpiredToken"
    wire, now = signed("GET", "/bucket/key", service="s3", key_id="new", secret="new-secret")
    assert later.s3(wire, now) is None


@pytest.mark.parametrize(("late", "refused"), [(299, False), (301, True), (-299, False), (-301, True)])
def test_sagemaker_takes_signatures_of_five_minutes(late: int, refused: bool) -> None:
    wire, now = signed("POST", PATH)
    found = check(wire, now + late)
    assert code(found) == ("403 InvalidSignatureException" if refused else "")
    if refused and late > 0:
        assert found is not None
        assert found.message.startswith("Signature expired: ")
        assert found.message.endswith(" - 5 min.)")


@pytest.mark.parametrize(("late", "refused"), [(899, False), (901, True), (-901, True)])
def test_s3_takes_signatures_of_fifteen_minutes(late: int, refused: bool) -> None:
    wire, now = signed("GET", "/bucket/key", service="s3")
    assert code(VERIFIER.s3(wire, now + late)) == ("403 RequestTimeTooSkewed" if refused else "")


def test_a_signature_for_another_region_or_service_is_refused() -> None:
    wire, now = signed("POST", PATH, region="eu-west-1")
    assert code(check(wire, now)) == "403 InvalidSignatureException"
    wire, now = signed("GET", "/bucket/key", service="s3")
    assert code(check(wire, now)) == "403 InvalidSignatureException"
    wire, now = signed("GET", "/bucket/key", service="s3", region="eu-west-1")
    assert code(VERIFIER.s3(wire, now)) == "400 AuthorizationHeaderMalformed"


@pytest.mark.parametrize("authorization", [b"", b"Basic eA==", b"AWS4-HMAC-SHA256 Credential=a/b"])
def test_an_authorization_of_another_form_is_incomplete(authorization: bytes) -> None:
    wire, now = signed("POST", PATH)
    spoilt = Signed(wire.method, wire.path, wire.query, {**wire.headers, b"authorization": authorization})
    assert code(check(spoilt, now)) == "403 IncompleteSignature"


def test_a_request_without_a_signature_is_refused() -> None:
    bare = Signed(b"POST", PATH.encode(), b"", {b"host": b"x"})
    assert code(check(bare, 0.0)) == "403 MissingAuthenticationTokenException"
    assert code(VERIFIER.s3(bare, 0.0)) == "403 AccessDenied"
