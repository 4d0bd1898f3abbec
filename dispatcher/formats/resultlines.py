"""Lines of `results.jsonl` and `errors.jsonl`.

Key order is part of the format. Times are RFC 3339 in UTC with milliseconds. A result's contents stand in `output` as
they are where they are JSON in UTF-8 (only line breaks outside strings become spaces), else as {"base64": "..."}.
"""

import binascii
import time
from functools import lru_cache

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from dispatcher.model import Error, InferenceId, JobRow, Rejection, State, Transport

_ENCODER = msgspec.json.Encoder()
_JSON = msgspec.json.Decoder(Raw)
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class _Result(Struct, frozen=True):
    id: str
    line: int
    status: State
    transport: Transport
    inference_id: str
    output_location: str | None
    failure_location: str | None
    attempts: int
    submitted_at: str | None
    completed_at: str | None
    metadata: Raw | None
    error: Error | None
    output: Raw | UnsetType = UNSET


class _Rejected(Struct, frozen=True):
    line: int
    id: str | UnsetType
    status: str
    error: Error


def encode_result(
    row: JobRow, inference_id: InferenceId, metadata: bytes | None = None, output: bytes | None = None
) -> bytes:
    """The line of an accepted job, with its newline; the same in both files.

    `metadata` is JSON as it stands in the job's line; None gives null. `output` is the result object's contents, None
    where they are not collected.
    """
    receipt = row.receipt
    result = _Result(
        id=row.id,
        line=row.key.line,
        status=row.state,
        transport=row.transport,
        inference_id=inference_id,
        output_location=receipt.output_location if receipt else None,
        failure_location=receipt.failure_location if receipt else None,
        attempts=row.attempts,
        submitted_at=rfc3339(row.submitted_at),
        completed_at=rfc3339(row.completed_at),
        metadata=None if metadata is None else Raw(_on_one_line(metadata)),
        error=row.error,
        output=UNSET if output is None else _output(output),
    )
    return _ENCODER.encode(result) + b"\n"


def encode_rejection(rejection: Rejection) -> bytes:
    """The line of `errors.jsonl` for a line that is no job, with its newline; without an id where none could be read."""
    rejected = _Rejected(
        line=rejection.line,
        id=UNSET if rejection.id is None else rejection.id,
        status="rejected",
        error=Error(rejection.reason.value, rejection.message),
    )
    return _ENCODER.encode(rejected) + b"\n"


def rfc3339(at: float | None) -> str | None:
    """`2026-01-31T23:59:59.123Z`, rounded to the millisecond."""
    if at is None:
        return None
    seconds, milliseconds = divmod(round(at * 1000), 1000)
    return f"{_to_the_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=1024)  # the jobs of a batch share their seconds
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _output(contents: bytes) -> Raw:
    try:
        contents.decode()
        return Raw(_on_one_line(bytes(_JSON.decode(contents))))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return Raw(b'{"base64":"' + binascii.b2a_base64(contents, newline=False) + b'"}')


def _on_one_line(json: bytes) -> bytes:
    """Valid JSON has line breaks only between tokens."""
    return json.translate(_ONE_LINE) if b"\n" in json or b"\r" in json else json
