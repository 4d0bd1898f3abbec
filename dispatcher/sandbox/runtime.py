"""InvokeEndpointAsync: a request becomes a job and a 202, and later an object.

A job is recorded before its 202 is written. An endpoint is moved on (`Endpoint.advance`) once for all the requests that
came in one turn of the event loop, and when its next time is due; there is no task and no timer per job.
"""

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING

import msgspec

from dispatcher.sandbox import locations, rules
from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.counts import Counts
from dispatcher.sandbox.inference import Ended, Endpoint, Job, Result
from dispatcher.sandbox.locations import Locations
from dispatcher.sandbox.messages import Answer, Manner, Reply, Request, new_id
from dispatcher.sandbox.objects import Bucket, Store, StoredObject
from dispatcher.sandbox.record import Accepted, Finished, Recorder, Verdict
from dispatcher.sandbox.rules import Asked
from dispatcher.sandbox.settings import EndpointSettings, FaultKind, FaultRule, Settings
from dispatcher.sandbox.signing import Refusal

if TYPE_CHECKING:
    from dispatcher.sandbox.foreign import Foreign

_JSON = ("Content-Type", "application/json")
_VERDICTS: dict[FaultKind, Verdict] = {
    FaultKind.RESET_AFTER: "cut",
    FaultKind.RESET_MIDWAY: "cut",
    FaultKind.HANG_AFTER: "hang",
    FaultKind.SLOW: "slow",
    FaultKind.BARE_202: "bare",
    FaultKind.WRONG_ID: "wrong_id",
}
_MODEL_FAILURES = {
    Result.FAILED: "the sandbox was told to fail this inference",
    Result.INPUT_MISSING: "the input object does not exist or cannot be read",
    Result.EXPIRED: "the request waited longer than its RequestTTLSeconds",
    Result.TIMED_OUT: "the inference ran longer than its InvocationTimeoutSeconds",
}


class Runtime:
    """The operation and the endpoints behind it."""

    def __init__(self, settings: Settings, store: Store, recorder: Recorder, counts: Counts) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._counts = counts
        self._random = Random(settings.seed)
        self._drivers: dict[str, _Driver] = {}
        self._number = 0
        self.foreign: Foreign | None = None
        """Where inputs come from and results go to, if not the sandbox's own store; set once, before the first request."""
        self.replace(settings)

    def replace(self, settings: Settings) -> None:
        """Takes new settings. Jobs of an endpoint that goes away are dropped."""
        self._settings = settings
        for name in self._drivers.keys() - settings.endpoints.keys():
            self._drivers.pop(name).stop()
        for name, options in settings.endpoints.items():
            if name in self._drivers:
                self._drivers[name].replace(options)
            else:
                self._drivers[name] = _Driver(name, Endpoint(options, self._load, self._random), self)

    def stop(self) -> None:
        """Nothing runs any more."""
        for driver in self._drivers.values():
            driver.stop()

    def waiting(self) -> dict[str, dict[str, int]]:
        """How many jobs wait and run, by endpoint."""
        return {
            name: {"waiting": driver.endpoint.waiting, "running": driver.endpoint.running}
            for name, driver in self._drivers.items()
        }

    def invoke(self, request: Request, name: str, body: Blob, fault: FaultRule | None) -> Answer:
        """Answers a request whose signature was checked. `fault` is one that comes after accepting."""
        driver = self._drivers.get(name)
        inline = driver is None or driver.endpoint.settings.inline
        asked = rules.check(name, request.headers, body.size, inline)
        if isinstance(asked, str):
            return Answer(refusal(Refusal("ValidationError", 400, asked)))
        if driver is None:
            text = rules.unknown_endpoint(name, self._settings.account)
            return Answer(refusal(Refusal("ValidationError", 400, text)))
        options = driver.endpoint.settings
        where = locations.choose(options, self._settings.region, asked.extension, asked.filename)
        job = self._job(asked, body, where)
        self._note(name, asked, job, fault)
        self._submit(driver, job)
        return _accepted(job, fault)

    def _submit(self, driver: "_Driver", job: Job) -> None:
        if self.foreign is None or job.input_location is None:
            driver.submit(job)
            return
        bucket, key = locations.parse(job.input_location)

        def fetched(blob: Blob | None) -> None:
            if blob is not None:
                self._keep(bucket, key, StoredObject(blob, time.time(), job.content_type or ""))
            driver.submit(job)

        self.foreign.fetch(bucket, key, fetched)

    def settle(self, endpoint: str, options: EndpointSettings, ended: Ended) -> None:
        """Writes what an ended job leaves behind."""
        result = ended.result
        if result is Result.COMPLETED and ended.blob is not None:
            output = ended.blob if options.model == "echo" else _digest(ended.blob)
            kind = (
                (ended.job.content_type or "application/octet-stream")
                if options.model == "echo"
                else "application/json"
            )
            stored = self._write(ended.job.output_location, output, kind)
            result = Result.COMPLETED if stored else Result.UPLOAD_FAILED
        elif _leaves_failure(result, options) and ended.job.failure_location is not None:
            self._write(ended.job.failure_location, _failure(result), "application/json")
        self._counts.finished(result)
        if self._recorder.kept:
            self._recorder.add(_finished(endpoint, ended, result))

    def _job(self, asked: Asked, body: Blob, where: Locations) -> Job:
        self._number += 1
        ttl = rules.DEFAULT_TTL_SECONDS if asked.ttl_seconds is None else asked.ttl_seconds
        timeout = rules.DEFAULT_TIMEOUT_SECONDS if asked.timeout_seconds is None else asked.timeout_seconds
        scale = self._settings.time_scale
        return Job(
            number=self._number,
            inference_id=new_id() if asked.inference_id is None else asked.inference_id,
            payload=body if asked.input_location is None else None,
            input_location=asked.input_location,
            content_type=asked.content_type,
            expires_at=asyncio.get_running_loop().time() + ttl * scale,
            timeout_seconds=timeout * scale,
            output_location=where.output,
            failure_location=where.failure,
        )

    def _note(self, endpoint: str, asked: Asked, job: Job, fault: FaultRule | None) -> None:
        self._counts.accepted()
        if not self._recorder.kept:
            return
        body = job.payload
        self._recorder.add(
            Accepted(
                time=time.time(),
                endpoint=endpoint,
                inference_id=job.inference_id,
                transport="s3" if body is None else "inline",
                input_location=job.input_location,
                payload_sha256=None if body is None else body.sha256(),
                bytes=0 if body is None else body.size,
                content_type=asked.content_type,
                accept=asked.accept,
                custom_attributes=asked.custom_attributes,
                ttl=asked.ttl_seconds,
                timeout=asked.timeout_seconds,
                output_location=job.output_location,
                failure_location=job.failure_location,
                verdict=_verdict(fault),
            )
        )

    def _load(self, job: Job) -> Blob | None:
        found = self._store.find(*locations.parse(job.input_location or ""))
        return None if found is None else found.blob

    def _write(self, location: str, blob: Blob, content_type: str) -> bool:
        bucket, key = locations.parse(location)
        if self.foreign is not None:
            self.foreign.put(bucket, key, blob, content_type)
            return True
        into = self._store.buckets.get(bucket)
        if into is None:
            return False
        into.put(key, StoredObject(blob, time.time(), content_type))
        return True

    def _keep(self, bucket: str, key: str, stored: StoredObject) -> None:
        self._store.buckets.setdefault(bucket, Bucket()).put(key, stored)


class _Driver:
    """Moves one endpoint on when there is something to do."""

    def __init__(self, name: str, endpoint: Endpoint, runtime: Runtime) -> None:
        self.endpoint = endpoint
        self._name = name
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.Handle | None = None  # set while a move is due in this turn of the loop
        self._timer: asyncio.TimerHandle | None = None  # at `_timer_at`, the endpoint's next time
        self._timer_at: float | None = None

    def submit(self, job: Job) -> None:
        self.endpoint.submit(job)
        self._poke()

    def replace(self, options: EndpointSettings) -> None:
        self.endpoint.replace(options)
        self._poke()

    def stop(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()

    def _poke(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._move)

    def _fire(self) -> None:
        self._timer = self._timer_at = None
        self._move()

    def _move(self) -> None:
        self._soon = None
        for ended in self.endpoint.advance(self._loop.time()):
            self._runtime.settle(self._name, self.endpoint.settings, ended)
        next_at = self.endpoint.next_at()
        if next_at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = next_at
        self._timer = None if next_at is None else self._loop.call_at(next_at, self._fire)


def refusal(why: Refusal, retry_after_ms: int | None = None) -> Reply:
    """An error as the SageMaker runtime writes it."""
    headers = [_JSON, ("x-amzn-RequestId", new_id()), ("x-amzn-ErrorType", why.code)]
    if retry_after_ms is not None:
        headers.append(("x-amz-retry-after", str(retry_after_ms)))
    body = msgspec.json.encode({"message": why.message, "Message": why.message})
    return Reply(why.status, tuple(headers), body, code=why.code)


def _accepted(job: Job, fault: FaultRule | None) -> Answer:
    kind = None if fault is None else fault.kind
    told_id = new_id() if kind is FaultKind.WRONG_ID else job.inference_id
    headers = [_JSON, ("x-amzn-RequestId", new_id())]
    if kind is not FaultKind.BARE_202:
        headers.append(("X-Amzn-SageMaker-OutputLocation", job.output_location))
        if job.failure_location is not None:
            headers.append(("X-Amzn-SageMaker-FailureLocation", job.failure_location))
    return Answer(Reply(202, tuple(headers), msgspec.json.encode({"InferenceId": told_id})), Manner.SEND)


def _verdict(fault: FaultRule | None) -> Verdict:
    return "told" if fault is None else _VERDICTS.get(fault.kind, "told")


def _leaves_failure(result: Result, options: EndpointSettings) -> bool:
    match result:
        case Result.FAILED | Result.INPUT_MISSING:
            return True
        case Result.EXPIRED:
            return options.failure_on_expiry
        case Result.TIMED_OUT:
            return options.failure_on_timeout
        case _:
            return False


def _digest(blob: Blob) -> Blob:
    return Blob(b'{"sha256":"%b","bytes":%d}' % (blob.sha256().encode(), blob.size))


def _failure(result: Result) -> Blob:
    text = _MODEL_FAILURES[result]
    return Blob(msgspec.json.encode({"code": 400, "type": "InternalServerException", "message": text}))


def _finished(endpoint: str, ended: Ended, result: Result) -> Finished:
    blob = ended.blob
    return Finished(
        time=time.time(),
        endpoint=endpoint,
        inference_id=ended.job.inference_id,
        output_location=ended.job.output_location,
        result=result,
        payload_sha256=None if blob is None else blob.sha256(),
        bytes=None if blob is None else blob.size,
    )
