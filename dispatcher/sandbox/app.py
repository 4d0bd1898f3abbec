"""One request from its head to its answer: which operation, which fault, is it signed, what is the answer.

`begin` looks at the head, before any body is asked for; `finish` has the whole body and answers at once. All state that
requests change is owned below: objects by the store, jobs by the runtime, chances by the faults.
"""

import time
from collections.abc import Callable
from pathlib import Path

from dispatcher.sandbox import plane, s3
from dispatcher.sandbox import runtime as sagemaker
from dispatcher.sandbox.blobs import Blob, Spool
from dispatcher.sandbox.chunked import ChunkedDecoder, ChunkedError
from dispatcher.sandbox.counts import Counts
from dispatcher.sandbox.faults import Faults, refused
from dispatcher.sandbox.messages import Answer, Manner, Reply, Request
from dispatcher.sandbox.objects import Bucket, Store
from dispatcher.sandbox.record import Recorder
from dispatcher.sandbox.routing import Target, route
from dispatcher.sandbox.runtime import Runtime
from dispatcher.sandbox.settings import FaultKind, FaultRule, Operation, Settings
from dispatcher.sandbox.signing import Refusal, Signed, Verifier

FRONT_END_MAX_BYTES = 6 << 20

_MANNERS = {
    FaultKind.RESET_AFTER: Manner.RESET,
    FaultKind.RESET_MIDWAY: Manner.MIDWAY,
    FaultKind.HANG_BEFORE: Manner.HANG,
    FaultKind.HANG_AFTER: Manner.HANG,
}
_NOTHING = Reply(500, ())
_TOO_LARGE = Reply(413, (("Content-Type", "text/html"),), b"<html><body>Request Entity Too Large</body></html>")
_BAD_CHUNKS = Refusal("IncompleteBody", 400, "The request body is not aws-chunked as its headers say")


class Exchange:
    """A request under way: its head, what was decided of it, and its body as it comes in."""

    __slots__ = ("_decoder", "_spool", "broken", "counted", "fault", "request", "target", "too_large")

    def __init__(self, request: Request, target: Target, fault: FaultRule | None, folder: Path) -> None:
        self.request = request
        self.target = target
        self.fault = fault
        self.broken = False  # the body is not what its headers say
        self.counted = True  # entered in the counts, and not left yet
        self.too_large = False
        self._spool = Spool(folder)
        coded = request.headers.get(b"x-amz-content-sha256") == b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        self._decoder = ChunkedDecoder() if coded else None

    @property
    def trailers(self) -> dict[bytes, bytes]:
        """The trailers of an aws-chunked body."""
        return {} if self._decoder is None else self._decoder.trailers

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body."""
        if self.broken or self.too_large:
            return
        if self._decoder is None:
            self._spool.feed(data)
        else:
            self._decode(self._decoder, data)
        self.too_large = self.target.operation is Operation.INVOKE and self._spool.size > FRONT_END_MAX_BYTES

    def body(self) -> Blob:
        """The whole body."""
        self.broken = self.broken or (self._decoder is not None and not self._decoder.done)
        return self._spool.finish()

    def discard(self) -> None:
        """Forgets a body that will not come to its end."""
        self._spool.discard()

    def _decode(self, decoder: ChunkedDecoder, data: bytes) -> None:
        try:
            for piece in decoder.feed(data):
                self._spool.feed(piece)
        except ChunkedError:
            self.broken = True


class App:
    """Answers requests. `control` answers those under `/_sandbox/`."""

    def __init__(self, settings: Settings, folder: Path, recorder: Recorder) -> None:
        self.settings = settings
        self.counts = Counts()
        self.recorder = recorder
        self.store = Store(settings.buckets)
        self.runtime = Runtime(settings, self.store, recorder, self.counts)
        self.control: Callable[[Request, str, Blob], Reply] = lambda *_: _NOTHING
        self._faults = Faults(settings)
        self._s3 = s3.S3(self.store, settings)
        self._verifier = _verifier(settings)
        self._folder = folder

    def replace(self, settings: Settings) -> None:
        """Takes new settings, everywhere. Buckets are added, never removed."""
        self.settings = settings
        self.runtime.replace(settings)
        self._faults.replace(settings)
        self._s3.settings = settings
        self._verifier = _verifier(settings)
        for name in set(settings.buckets) - self.store.buckets.keys():
            self.store.buckets[name] = Bucket()

    def begin(self, request: Request) -> Exchange:
        """Takes up a request at its head."""
        target = route(request)
        self.counts.enter(target.operation)
        return Exchange(request, target, self._faults.draw(target.operation, time.monotonic()), self._folder)

    def finish(self, exchange: Exchange) -> Answer:
        """Answers a request whose body has come in."""
        fault, operation = exchange.fault, exchange.target.operation
        if fault is not None and fault.kind is FaultKind.HANG_BEFORE:
            return Answer(_NOTHING, Manner.HANG)
        body = exchange.body()
        answer = self._answer(exchange, body, operation)
        if fault is None:
            return answer
        manner = _MANNERS.get(fault.kind, Manner.SEND)
        return Answer(answer.reply, manner, fault.seconds if fault.kind is FaultKind.SLOW else 0.0)

    def leave(self, exchange: Exchange, result: str) -> None:
        """Says how a request ended; only the first time counts."""
        if exchange.counted:
            exchange.counted = False
            self.counts.leave(exchange.target.operation, result)

    def _answer(self, exchange: Exchange, body: Blob, operation: Operation) -> Answer:
        if operation is Operation.INVOKE:
            return self._invoke(exchange, body)
        if operation is Operation.CONTROL:
            return Answer(self.control(exchange.request, exchange.target.name, body))
        if operation in plane.OPERATIONS:
            return Answer(self._describe(exchange, body))
        return Answer(self._object(exchange, body))

    def _invoke(self, exchange: Exchange, body: Blob) -> Answer:
        request, fault = exchange.request, exchange.fault
        if exchange.too_large:
            return Answer(_TOO_LARGE)
        why = self._verifier.sagemaker(_signed(request), body.sha256(), self._now()) if self._checks else None
        if why is not None:
            return Answer(sagemaker.refusal(why))
        error = refused(fault, Operation.INVOKE) if fault is not None else None
        if error is not None:
            return Answer(sagemaker.refusal(Refusal(error.code, error.status, error.message), error.retry_after_ms))
        return self.runtime.invoke(request, exchange.target.name, body, fault)

    def _object(self, exchange: Exchange, body: Blob) -> Reply:
        request, target, fault = exchange.request, exchange.target, exchange.fault
        why = self._verifier.s3(_signed(request), self._now()) if self._checks else None
        why = why or self._body_why(exchange, body)
        if why is not None:
            return s3.refusal(why, target, request)
        error = refused(fault, target.operation) if fault is not None else None
        by_key = target.operation is Operation.DELETE and not target.key
        denied = by_key and fault is not None and fault.kind is FaultKind.ACCESS_DENIED
        if error is not None and not denied:
            return s3.refusal(Refusal(error.code, error.status, error.message), target, request, error.retry_after_ms)
        return self._s3.answer(s3.Call(target, request, body, exchange.trailers, denied))

    def _describe(self, exchange: Exchange, body: Blob) -> Reply:
        request, target, fault = exchange.request, exchange.target, exchange.fault
        check = self._verifier.sagemaker if target.operation is Operation.DESCRIBE else self._verifier.sts
        why = check(_signed(request), body.sha256(), self._now()) if self._checks else None
        error = refused(fault, target.operation) if fault is not None else None
        if why is None and error is not None:
            why = Refusal(error.code, error.status, error.message)
        return plane.answer(self.settings, target, body, self._now(), why)

    def _now(self) -> float:
        return time.time() + self.settings.clock_offset_seconds

    def _body_why(self, exchange: Exchange, body: Blob) -> Refusal | None:
        if exchange.broken:
            return _BAD_CHUNKS
        return s3.body_mismatch(exchange.request, body) if self._checks else None

    @property
    def _checks(self) -> bool:
        return self.settings.verify_signatures


def _signed(request: Request) -> Signed:
    return Signed(request.method, request.path, request.query, request.headers)


def _verifier(settings: Settings) -> Verifier:
    return Verifier(
        settings.access_key_id.encode(),
        settings.secret_access_key.encode(),
        settings.region.encode(),
        frozenset(key_id.encode() for key_id in settings.expired_key_ids),
    )
