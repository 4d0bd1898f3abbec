"""The target from the parent's side: started, asked, stopped; and the environment that points a client at it."""

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[1]
ENDPOINT = "bench"
REGION = "us-east-1"
KEY_ID = "sandbox"
SECRET = "sandbox-secret"  # noqa: S105
"""Key and secret are the sandbox's, so that a peer can be shown to it as well."""


class Target(NamedTuple):
    """A target that runs. `ca` is the file that its certificate is to be checked with; None where it speaks plain HTTP."""

    url: str
    ca: Path | None

    def reset(self, delay_seconds: float = 0.0) -> None:
        """Lets it count from nought, and hold back every answer so long."""
        self._ask(f"/_bench/reset?delay={delay_seconds}")

    def counts(self) -> dict[str, Any]:
        """What it has seen since."""
        return self._ask("/_bench/counts")

    def _ask(self, path: str) -> dict[str, Any]:
        where = self.url.partition("://")[2]
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        made = http.client.HTTPSConnection(where, context=context) if context else http.client.HTTPConnection(where)
        with contextlib.closing(made) as connection:
            connection.request("GET", path)
            return cast(dict[str, Any], json.load(connection.getresponse()))


@contextlib.contextmanager
def started(ca: Path | None = None) -> Iterator[Target]:
    """A target in a child process, over TLS with the certificate in `ca`; stopped at the end."""
    command = [sys.executable, "-m", "benchmarks.target", *(["--certificate", str(ca)] if ca else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment()) as child:
        assert child.stdout is not None
        try:
            port = int(child.stdout.readline())
            yield Target(f"{'https' if ca else 'http'}://127.0.0.1:{port}", ca)
        finally:
            child.terminate()


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that AWS SDKs or the dispatcher read. Bytecode is kept, as the image has it."""
    unwanted = ("AWS_", "DISPATCHER_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def environment(url: str, ca: Path | None) -> dict[str, str]:
    """The environment that points any AWS SDK at `url`."""
    trust = {"AWS_CA_BUNDLE": str(ca), "NODE_EXTRA_CA_CERTS": str(ca)} if ca else {}
    return (
        clean_environment()
        | trust
        | {
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url,
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
    )


def make_certificate(path: Path) -> Path:
    """Writes a self-made certificate for this machine, with its key, to `path`; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback target")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path
