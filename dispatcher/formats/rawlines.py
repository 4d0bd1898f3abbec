"""The JSON of a job line, with its shape checked: the fields it may have, their types, each at most once.

A line is decoded twice, at intake (`parse`) and again when it is about to be sent (`shape`, since then its keys are known
to be unique), so the good case is the fast one; what only a bad line needs is in `explain`. This relies on three facts:

* msgspec refuses what is not JSON (NaN, Infinity, half surrogate pairs, control characters in strings), also inside
  the bytes that it leaves alone, but does not look at UTF-8 there: that is checked first;
* a Raw that was given is never empty;
* msgspec takes the last of duplicate keys without a word. A line without duplicates has, outside payload and metadata, two
  quotes for each key and each text value, and one with duplicates has more, so counting quotes is enough; a line with more
  (it may have a null field, or an escaped quote in a text) is looked at key by key.
"""

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from dispatcher.formats.explain import duplicate_key, explain
from dispatcher.formats.faults import LineError, field_error, shown


class RawJob(Struct, forbid_unknown_fields=True, gc=False):
    """None is a field that is absent or null; an empty Raw is one that is absent (null is a payload, and metadata).

    Seconds are whole, and may be written `60.0`: to JSON that is the same number, and to a JSON Schema an integer.
    """

    payload: Raw = Raw()
    metadata: Raw = Raw()
    id: str | None = None
    payload_base64: str | None = None
    payload_path: str | None = None
    input_location: str | None = None
    endpoint: str | None = None
    content_type: str | None = None
    accept: str | None = None
    custom_attributes: str | None = None
    transport: Literal["inline", "s3"] | None = None
    request_ttl_seconds: int | float | None = None
    invocation_timeout_seconds: int | float | None = None


_DECODER = msgspec.json.Decoder(RawJob)
_SPACE = ord(" ")


def shape(data: bytes) -> RawJob | LineError:
    """Decodes a line, of which the last of duplicate keys counts; raises nothing, whatever the bytes."""
    try:
        if not data.isascii():
            data.decode()
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return explain(data)


def parse(data: bytes) -> RawJob | LineError:
    """Decodes a line each of whose keys stands once; raises nothing, whatever the bytes."""
    raw = shape(data)
    if isinstance(raw, LineError):
        return raw
    if _quotes(data, raw) == _expected_quotes(raw):
        return raw
    key = duplicate_key(_rest(data, raw))
    return raw if key is None else field_error(shown(key), "stands more than once in the line; keep one")


def _quotes(data: bytes, raw: RawJob) -> int:
    """The quotes outside the values of payload and metadata; those within other texts count as well."""
    payload = bytes(raw.payload)
    start = _begins(data, b'"payload":', payload) if payload else 0
    # Counting is the slow part, so what is large is passed over; where it is not found at once all is counted.
    found = data.count(b'"') if start < 0 else data.count(b'"', 0, start) + data.count(b'"', start + len(payload))
    return found - bytes(raw.metadata).count(b'"') if raw.metadata else found


def _rest(data: bytes, raw: RawJob) -> bytes:
    """The line without the values of payload and metadata; all its keys are still there."""
    rest = _without(data, b'"payload":', bytes(raw.payload)) if raw.payload else data
    return _without(rest, b'"metadata":', bytes(raw.metadata)) if raw.metadata else rest


def _without(data: bytes, key: bytes, value: bytes) -> bytes:
    """Cuts a value out, if it is found at once.

    Where a nested key of the same name has an equal value, that is cut, which leaves the same keys. Where nothing is cut,
    there is more to look at: slower, as exact.
    """
    start = _begins(data, key, value)
    return data if start < 0 else data[:start] + data[start + len(value) :]


def _begins(data: bytes, key: bytes, value: bytes) -> int:
    """Where the first such key has this value; -1 where it has another, or there is none."""
    found = data.find(key)
    if found < 0:
        return -1
    start = found + len(key)
    start += data[start] == _SPACE
    return start if data.startswith(value, start) else -1


def _expected_quotes(raw: RawJob) -> int:
    # Counting what is absent: asking field by field costs three times as much.
    texts = (
        raw.id,
        raw.payload_base64,
        raw.payload_path,
        raw.input_location,
        raw.endpoint,
        raw.content_type,
        raw.accept,
        raw.custom_attributes,
        raw.transport,
    )
    numbers = (raw.request_ttl_seconds, raw.invocation_timeout_seconds)
    keys = 4 * (len(texts) - texts.count(None)) + 2 * (len(numbers) - numbers.count(None))
    return keys + (2 if raw.payload else 0) + (2 if raw.metadata else 0)
