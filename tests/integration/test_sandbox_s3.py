"""What the S3 half of the sandbox does beyond the common suite: aws-chunked, TLS, 100-continue, large bodies, the AWS CLI."""

import base64
import binascii
import datetime
import hashlib
import http.client
import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.sandbox.process import Sandbox, start_sandbox
from dispatcher.sandbox.settings import load
from tests.sandboxes import KEY_ID, SECRET, client, finished


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with start_sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def s3(sandbox: Sandbox) -> Iterator[Any]:
    with client("s3", sandbox.url) as made:
        yield made


DELETION = b"<Delete><Object><Key>none</Key></Object></Delete>"


class Chunked:
    """A body in aws-chunked form, with the trailer that S3 clients send over TLS."""

    def __init__(self, data: bytes, checksum: str | None = None) -> None:
        self.data = data
        crc = base64.b64encode(binascii.crc32(data).to_bytes(4)).decode()
        middle = len(data) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:middle], data[middle:]) if part)
        self.wire = chunks + f"0\r\nx-amz-checksum-crc32:{checksum or crc}\r\n\r\n".encode()


class KeepsItsHash(S3SigV4Auth):  # type: ignore[misc]
    """botocore's signer, told that the body is signed as unsigned chunks."""

    def payload(self, request: Any) -> str:
        return "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def put_chunked(sandbox: Sandbox, key: str, body: Chunked, length: int | None = None) -> tuple[int, str]:
    """Status and error code of a PUT that goes in chunks, of HTTP and of S3."""
    headers = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        "X-Amz-Decoded-Content-Length": str(len(body.data) if length is None else length),
    }
    request = AWSRequest("PUT", f"{sandbox.url}/sandbox-in/{key}", headers=headers)
    KeepsItsHash(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(request)
    where = urlsplit(sandbox.url)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)) as connection:
        pieces = [body.wire[at : at + 1000] for at in range(0, len(body.wire), 1000)]
        connection.request("PUT", f"/sandbox-in/{key}", iter(pieces), dict(request.headers), encode_chunked=True)
        answer = connection.getresponse()
        code = re.search(rb"<Code>(.*)</Code>", answer.read())
        return answer.status, code[1].decode() if code else ""


@pytest.mark.parametrize("size", [1, 5_000, 3_000_000])
def test_a_body_in_aws_chunks_is_stored_decoded(size: int, sandbox: Sandbox, s3: Any) -> None:
    data = os.urandom(size)
    assert put_chunked(sandbox, f"chunked-{size}", Chunked(data)) == (200, "")
    answer = s3.get_object(Bucket="sandbox-in", Key=f"chunked-{size}")
    with answer["Body"] as body:
        assert body.read() == data
    assert "ContentEncoding" not in answer


def test_a_trailer_that_does_not_fit_is_refused_and_stores_nothing(sandbox: Sandbox, s3: Any) -> None:
    assert put_chunked(sandbox, "spoilt", Chunked(b"data", checksum="AAAAAA==")) == (400, "BadDigest")
    assert put_chunked(sandbox, "short", Chunked(b"data"), length=5) == (400, "IncompleteBody")
    cut = Chunked(b"data")
    cut.wire = cut.wire[:-10]
    assert put_chunked(sandbox, "cut", cut) == (400, "IncompleteBody")
    assert s3.list_objects_v2(Bucket="sandbox-in", Prefix="s")["KeyCount"] == 0


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sandbox")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*form))
    return certificate, private


def test_over_tls_an_sdk_sends_aws_chunks_by_itself(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    settings = load({"tls_certificate": str(certificate), "tls_key": str(key)})
    sent: list[Any] = []
    with start_sandbox(settings) as running, client("s3", running.url, verify=str(certificate)) as s3:
        s3.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(dict(request.headers)))
        s3.put_object(Bucket="sandbox-in", Key="k", Body=b"over tls")
        with s3.get_object(Bucket="sandbox-in", Key="k")["Body"] as body:
            assert body.read() == b"over tls"
        assert running.counts()["jobs"]["accepted"] == 0
    assert sent[0]["X-Amz-Trailer"] == b"x-amz-checksum-crc32"


def test_a_large_body_goes_in_and_comes_out_whole_without_being_held(sandbox: Sandbox, s3: Any, tmp_path: Path) -> None:
    path = tmp_path / "large"
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(block)
    before = memory_bytes(sandbox.pid)
    with path.open("rb") as file:
        s3.put_object(Bucket="sandbox-in", Key="large", Body=file)
    digest = hashlib.sha256()
    with closing(s3.get_object(Bucket="sandbox-in", Key="large")["Body"]) as body:
        for chunk in body.iter_chunks(1 << 20):
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()
    assert memory_bytes(sandbox.pid) - before < 32 << 20


def memory_bytes(pid: int) -> int:
    """The memory that a process holds at the moment."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_bucket_may_stand_in_the_host_name(sandbox: Sandbox, s3: Any) -> None:
    url = sandbox.url.replace("127.0.0.1", "localhost")
    s3.put_object(Bucket="sandbox-in", Key="deep/virtual", Body=b"x")
    request = AWSRequest("GET", url.replace("localhost", "sandbox-in.s3.localhost") + "/deep/virtual")
    S3SigV4Auth(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(request)
    where = urlsplit(sandbox.url)
    with closing(http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)) as connection:
        host = {"Host": f"sandbox-in.s3.localhost:{where.port}"}
        connection.request("GET", "/deep/virtual", headers={**dict(request.headers), **host})
        assert connection.getresponse().read() == b"x"


def test_the_bucket_owner_is_checked_and_what_was_set_comes_back(s3: Any) -> None:
    chosen = {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "arn:aws:kms:us-east-1:000000000000:key/k",
        "ExpectedBucketOwner": "000000000000",
    }
    put = s3.put_object(Bucket="sandbox-in", Key="kms", Body=b"x", Tagging="a=1&b=2", **chosen)
    head = s3.head_object(Bucket="sandbox-in", Key="kms")
    assert (put["SSEKMSKeyId"], head["SSEKMSKeyId"]) == (chosen["SSEKMSKeyId"],) * 2
    assert head["TagCount"] == 2
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.put_object(Bucket="sandbox-in", Key="kms", Body=b"x", ExpectedBucketOwner="111111111111")


@pytest.mark.parametrize("number", [0, 1_001])
def test_no_key_and_more_than_a_thousand_are_not_deleted_at_once(s3: Any, number: int) -> None:
    with pytest.raises(ClientError, match="MalformedXML"):
        s3.delete_objects(Bucket="sandbox-in", Delete={"Objects": [{"Key": "k"}] * number})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"Content-MD5": base64.b64encode(hashlib.md5(DELETION, usedforsecurity=False).digest()).decode()}, 200),
        ({"x-amz-checksum-crc32": base64.b64encode(binascii.crc32(DELETION).to_bytes(4)).decode()}, 200),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, 400),
    ],
    ids=["no digest", "MD5", "CRC-32", "wrong"],
)
def test_several_keys_are_deleted_at_once_only_with_a_digest_of_them(
    sandbox: Sandbox, headers: dict[str, str], status: int
) -> None:
    request = AWSRequest("POST", f"{sandbox.url}/sandbox-in?delete", headers=headers, data=DELETION)
    S3SigV4Auth(Credentials(KEY_ID, SECRET), "s3", "us-east-1").add_auth(request)
    address = urlsplit(sandbox.url)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)) as connection:
        connection.request("POST", "/sandbox-in?delete", DELETION, dict(request.headers))
        assert connection.getresponse().status == status


def test_keys_that_are_deleted_quietly_are_not_told(s3: Any) -> None:
    keys = {"Objects": [{"Key": "none"}]}
    assert s3.delete_objects(Bucket="sandbox-in", Delete=keys)["Deleted"] == [{"Key": "none"}]
    assert "Deleted" not in s3.delete_objects(Bucket="sandbox-in", Delete={**keys, "Quiet": True})


def test_a_denied_deletion_of_several_keys_is_an_answer_that_names_each(sandbox: Sandbox, s3: Any) -> None:
    s3.put_object(Bucket="sandbox-in", Key="denied", Body=b"x")
    before = sandbox.counts()["requests"].get("delete", {})
    sandbox.patch(faults=[{"operation": "delete", "kind": "access_denied"}])
    answer = s3.delete_objects(
        Bucket="sandbox-in", Delete={"Objects": [{"Key": "denied"}, {"Key": "none"}], "Quiet": True}
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket="sandbox-in", Key="denied")
    sandbox.patch(faults=[])
    assert [(error["Key"], error["Code"]) for error in answer["Errors"]] == [
        ("denied", "AccessDenied"),
        ("none", "AccessDenied"),
    ]
    assert s3.head_object(Bucket="sandbox-in", Key="denied")["ContentLength"] == 1
    after = sandbox.counts()["requests"]["delete"]
    assert sum(after.values()) - sum(before.values()) == 2


def test_a_bucket_that_holds_something_stays(s3: Any) -> None:
    s3.put_object(Bucket="sandbox-in", Key="kept", Body=b"x")
    with pytest.raises(ClientError, match="BucketNotEmpty"):
        s3.delete_bucket(Bucket="sandbox-in")


def aws(sandbox: Sandbox, *arguments: str) -> Any:
    """What the AWS CLI prints, with an environment that knows the sandbox alone."""
    command = [str(Path(sys.executable).parent / "aws"), *arguments, "--output", "json"]
    env = {"PATH": os.defpath, "HOME": os.devnull, **sandbox.env}
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout or b"{}")


def test_the_aws_cli_puts_invokes_and_lists(sandbox: Sandbox, tmp_path: Path) -> None:
    payload = tmp_path / "payload.json"
    payload.write_text('{"n": 1}')
    before = sum(sandbox.counts()["jobs"]["finished"].values())
    put = aws(sandbox, "s3api", "put-object", "--bucket", "sandbox-in", "--key", "cli/in.json", "--body", str(payload))
    assert put["ETag"] == f'"{hashlib.md5(payload.read_bytes(), usedforsecurity=False).hexdigest()}"'
    invoke = ("sagemaker-runtime", "invoke-endpoint-async", "--endpoint-name", "sandbox")
    named = ("--s3-output-path-extension", "cli", "--filename")
    by_s3 = aws(sandbox, *invoke, "--input-location", "s3://sandbox-in/cli/in.json", *named, "s3.out")
    inline = aws(sandbox, *invoke, "--body", f"fileb://{payload}", *named, "inline.out")
    assert by_s3["OutputLocation"] == "s3://sandbox-out/results/cli/s3.out"
    assert inline["InferenceId"]
    finished(sandbox, before + 2)
    listed = aws(sandbox, "s3api", "list-objects-v2", "--bucket", "sandbox-out", "--prefix", "results/cli/")
    assert [one["Key"] for one in listed["Contents"]] == ["results/cli/inline.out", "results/cli/s3.out"]
    output = tmp_path / "output.json"
    aws(sandbox, "s3api", "get-object", "--bucket", "sandbox-out", "--key", "results/cli/inline.out", str(output))
    assert output.read_bytes() == payload.read_bytes()
