"""What tests of the HTTP client need: both event loops, a certificate authority of their own, a pool before a scripted server."""

import asyncio
import datetime
import functools
import gc
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.aws.http import Answer, Body, Origin, Pool, Request
from dispatcher.interfaces import Fault, FaultKind
from tests.scripted import Act, ScriptedServer, Stage, response, scripted_server

NAME = "localhost"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs an async test on either event loop; it may leave no task and no descriptor behind."""

    async def watched(**arguments: Any) -> None:
        await test(**arguments)
        # A server's tasks for connections that failed may be a turn of the loop behind.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        left = (await asyncio.wait(others, timeout=1.0))[1] if others else set()
        assert not left, left

    def run(loop: str, **arguments: Any) -> None:
        before = _descriptors()
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(watched(**arguments))
        gc.collect()  # so that what was left open is told now
        assert _descriptors() == before

    functools.update_wrapper(run, test)
    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return both


def _descriptors() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own is gone by now
            found.add(f"{entry.name} {entry.readlink()}")
    return {entry for entry in found if "socket:" in entry}


# --- TLS -------------------------------------------------------------------------------------------------------------


class Authority(NamedTuple):
    """A certificate authority; `path` is a file with its certificate."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    path: Path

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.path)

    def serving(self, name: str = NAME, days: int = 1) -> ssl.SSLContext:
        """A server's context with a certificate for `name` that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _certificate(name, days, key, self.key, self.certificate.subject, is_ca=False)
        both = self.path.with_name(f"{name}{days}.pem")
        both.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + _bare(key))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(both)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    made = _certificate("authority", 10, key, key, _named("authority"), is_ca=True)
    path = folder / "authority.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return Authority(made, key, path)


def _certificate(
    name: str,
    days: int,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    *,
    is_ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    made = (
        x509.CertificateBuilder(issuer, _named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(public, critical=False)
        .add_extension(by, critical=False)
    )
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    return made.add_extension(usage, critical=True).sign(signer, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _bare(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


# --- a pool before a server ------------------------------------------------------------------------------------------


@asynccontextmanager
async def against(
    *acts: Act, tls: Authority | None = None, connections: int = 1, **options: Any
) -> AsyncIterator[tuple[Pool, ScriptedServer]]:
    """A pool, and the server that it sends to."""
    async with scripted_server(*acts, tls=tls.serving() if tls else None) as server:
        origin = Origin("127.0.0.1", server.port, tls.trusting() if tls else None, NAME if tls else None)
        pool = Pool(origin, connections=connections, **options)
        try:
            yield pool, server
        finally:
            await pool.aclose()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server that gives each connection to the handler, for what is less than HTTP."""
    running: set[asyncio.Task[None]] = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with suppress(OSError):
            await handler(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        running.discard(task)

    server = await asyncio.start_server(handled, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*running)
        await server.wait_closed()


def post(body: Body = b"payload", length: int = 0, *, expects_continue: bool = False) -> Callable[[], Request]:
    """Makes a request with this body, `length` bytes long where it is streamed."""
    size = len(body) if isinstance(body, bytes) else length
    more = b"Expect: 100-continue\r\n" if expects_continue else b""
    head = b"POST /path HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (size, more)
    return lambda: Request(head, body, expects_continue)


def told(outcome: Answer | Fault) -> tuple[FaultKind, str]:
    """Kind and reason of what has to be a fault, and has to say something."""
    assert isinstance(outcome, Fault), outcome
    assert outcome.message
    assert outcome.code
    return outcome.kind, outcome.reason.value


def writes(*pieces: bytes, then_closes: bool = False) -> Act:
    """Hears the request and writes these pieces, each in a write of its own."""

    async def act(stage: Stage) -> bool:
        await stage.hear()
        for piece in pieces:
            stage.writer.write(piece)
            await asyncio.sleep(0)
        return not then_closes

    return act


OK = response(200, b"ok")
