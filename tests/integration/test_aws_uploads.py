"""Uploads as production makes them, over https; and big ones, which must neither be held in memory nor hold the loop up."""

import datetime
import hashlib
import os
import resource
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.aws.clients import Clients, ClientSettings, clients
from dispatcher.aws.uploads import SliceReader
from dispatcher.interfaces import FileSlice
from dispatcher.sandbox.process import sandbox_process
from dispatcher.sandbox.settings import Settings
from dispatcher.transports.choosing import Kind
from tests.scripted import aws_environment
from tests.transports import on_both_kinds, staging

BIG_BYTES = 150_000_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate").write_bytes(certificate.public_bytes(pem))
    form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(pem, form, bare))
    return str(folder / "certificate"), str(folder / "key")


@pytest.fixture(params=["http", "https"])
async def sdk(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, certificate: tuple[str, str], tmp_path: Path
) -> AsyncIterator[Clients]:
    chain, key = certificate if request.param == "https" else (None, None)
    settings = Settings(tls_certificate=chain, tls_key=key, host="localhost", work_dir=str(tmp_path))
    async with sandbox_process(settings) as sandbox:
        aws_environment(monkeypatch, None)
        for name, value in sandbox.env.items():
            monkeypatch.setenv(name, value)
        if chain is not None:
            monkeypatch.setenv("AWS_CA_BUNDLE", chain)
        async with clients(ClientSettings(max_in_flight=4)) as opened:
            assert opened.endpoints["s3"].startswith(f"{request.param}://")
            yield opened


async def digest(sdk: Clients, key: str) -> str:
    found = hashlib.sha256()
    answer = await sdk.s3.get_object(Bucket="sandbox-in", Key=key)
    async with answer["Body"] as body:
        async for chunk in body.iter_chunks(1 << 20):
            found.update(chunk)
    return found.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1_000_000, (1 << 20) + 1, 5_000_000])
@on_both_kinds
async def test_a_slice_arrives_as_it_is(sdk: Clients, client: Kind, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "payload").write_bytes(b"before" + data + b"after")
    piece = FileSlice(str(tmp_path / "payload"), 6, size)
    async with staging(client, sdk, "s3://sandbox-in") as stager:
        assert await stager.stage("k", piece, None) == "s3://sandbox-in/k"
    assert await digest(sdk, "k") == hashlib.sha256(data).hexdigest()


class Witness(SliceReader):
    """Notes the threads that it is read in."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        super().__init__(os.open(path, os.O_RDONLY), FileSlice(str(path), 0, size))
        self.threads: set[int] = set()

    def readinto(self, buffer: Any) -> int:
        self.threads.add(threading.get_ident())
        return super().readinto(buffer)


async def test_a_big_file_is_never_read_on_the_event_loop(sdk: Clients, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(os.urandom(5_000_000))
    with Witness(tmp_path / "payload") as body:
        await sdk.s3.put_object(Bucket="sandbox-in", Key="k", Body=body)
    assert body.threads
    assert threading.get_ident() not in body.threads


@on_both_kinds
async def test_a_big_file_is_never_held_in_memory(sdk: Clients, client: Kind, tmp_path: Path) -> None:
    path = tmp_path / "payload"
    chunk = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.writelines(chunk for _ in range(BIG_BYTES >> 20))
    async with staging(client, sdk, "s3://sandbox-in") as stager:
        await stager.stage("warm", FileSlice(str(path), 0, 3_000_000), None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await stager.stage("k", FileSlice(str(path), 0, path.stat().st_size), None) == "s3://sandbox-in/k"
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < BIG_BYTES / 4
