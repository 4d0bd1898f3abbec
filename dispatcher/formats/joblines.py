"""One line of a job file, decoded and checked: bytes in, a JobLine or a LineError out; about 3 µs for 1 KB."""

import binascii

import msgspec
from msgspec import Struct

from dispatcher.formats import fields
from dispatcher.formats.faults import LineError, field_error, line_error, shown
from dispatcher.formats.rawlines import RawJob, parse, shape
from dispatcher.model import INLINE_MAX_BYTES, PAYLOAD_MAX_BYTES, EndpointName, FailureReason, Transport


class Literal(Struct, frozen=True, gc=False):
    """`payload`: JSON, byte for byte as it stands in the line."""

    data: bytes


class Decoded(Struct, frozen=True, gc=False):
    """`payload_base64`, decoded."""

    data: bytes


class PathPayload(Struct, frozen=True, gc=False):
    """`payload_path`: a file below the folder of payloads. Not opened here."""

    path: str


class LocationPayload(Struct, frozen=True, gc=False):
    """`input_location`: an object that is in S3 already."""

    uri: str


Payload = Literal | Decoded | PathPayload | LocationPayload


class LineRules(Struct, frozen=True, kw_only=True):
    """What the settings allow a line. `endpoint` is the default, and allowed; `any_endpoint` allows all, and none.

    `allowed_input_prefixes` are folders (`s3://bucket` or `s3://bucket/prefix`); none of them allows all of S3.
    """

    endpoint: EndpointName | None = None
    allowed_endpoints: frozenset[EndpointName] = frozenset()
    staging: bool = False
    any_endpoint: bool = False
    allowed_input_prefixes: tuple[str, ...] = ()
    payload_max_bytes: int = PAYLOAD_MAX_BYTES


class JobLine(Struct, frozen=True, gc=False):
    """A valid line. `transport` is what the line asks for (INLINE or S3); None leaves it to the router.

    `size_bytes` is the payload's size; None where the payload is not in the line.
    """

    id: str | None
    endpoint: EndpointName
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    request_ttl_seconds: int | None
    invocation_timeout_seconds: int | None
    transport: Transport | None
    metadata: bytes | None
    payload: Payload
    size_bytes: int | None


def decode(line: bytes | memoryview, rules: LineRules) -> JobLine | LineError:
    """Decodes and checks one line (without its terminator). Raises nothing, whatever the bytes.

    A payload file is neither opened nor measured: see `opening.measure`, then ask `size_problem`.
    """
    return _checked(parse(line if isinstance(line, bytes) else bytes(line)), rules)


def decode_again(line: bytes, rules: LineRules) -> JobLine | LineError:
    """As `decode`, of a line that it has found valid: keys are not looked for twice."""
    return _checked(shape(line), rules)


def _checked(raw: RawJob | LineError, rules: LineRules) -> JobLine | LineError:
    if isinstance(raw, LineError):
        return raw
    problem = _field_problem(raw)
    job = _job(raw, rules) if problem is None else field_error(*problem)
    if isinstance(job, LineError) and raw.id is not None and fields.id_problem(raw.id) is None:
        return msgspec.structs.replace(job, id=raw.id)
    return job


def size_problem(size_bytes: int, transport: Transport | None, rules: LineRules) -> LineError | None:
    """Says why a payload of this size may not travel as the line asks, or None."""
    fits_inline = 0 < size_bytes <= INLINE_MAX_BYTES
    if size_bytes > rules.payload_max_bytes:
        return line_error(
            FailureReason.PAYLOAD_TOO_LARGE,
            f"the payload has {size_bytes} bytes; at most {rules.payload_max_bytes} are allowed",
        )
    if fits_inline and transport is not Transport.S3:
        return None
    if transport is Transport.INLINE:
        fit = f"the payload has {size_bytes} bytes and inline takes 1 to {INLINE_MAX_BYTES}"
        return field_error("transport", f"is 'inline', but {fit}; leave transport out")
    return None if rules.staging else _staging_not_set(size_bytes, fits_inline)


def _staging_not_set(size_bytes: int, fits_inline: bool) -> LineError:
    why = (
        "transport is 's3'"
        if fits_inline
        else f"the payload has {size_bytes} bytes, inline takes 1 to {INLINE_MAX_BYTES}"
    )
    return line_error(
        FailureReason.STAGING_NOT_SET,
        f"the job must travel by S3 ({why}), but there is no staging prefix; set --staging s3://bucket/prefix",
    )


def _field_problem(raw: RawJob) -> tuple[str, str] | None:
    """The first field that breaks its own rule, and how."""
    if raw.id is not None and (problem := fields.id_problem(raw.id)):
        return "id", problem
    if raw.content_type is not None and (problem := fields.header_problem(raw.content_type)):
        return "content_type", problem
    if raw.accept is not None and (problem := fields.header_problem(raw.accept)):
        return "accept", problem
    if raw.custom_attributes is not None and (problem := fields.header_problem(raw.custom_attributes)):
        return "custom_attributes", problem
    ttl, timeout = raw.request_ttl_seconds, raw.invocation_timeout_seconds
    if ttl is not None and (problem := fields.seconds_problem(ttl, fields.TTL_SECONDS)):
        return "request_ttl_seconds", problem
    if timeout is not None and (problem := fields.seconds_problem(timeout, fields.TIMEOUT_SECONDS)):
        return "invocation_timeout_seconds", problem
    return None


def _job(raw: RawJob, rules: LineRules) -> JobLine | LineError:
    endpoint = _endpoint(raw.endpoint, rules)
    if isinstance(endpoint, LineError):
        return endpoint
    payload = _payload(raw, rules)
    if isinstance(payload, LineError):
        return payload
    transport = None if raw.transport is None else Transport(raw.transport)
    size_bytes = len(payload.data) if isinstance(payload, (Literal, Decoded)) else None
    if size_bytes is not None and (error := size_problem(size_bytes, transport, rules)):
        return error
    return JobLine(
        raw.id,
        endpoint,
        raw.content_type,
        raw.accept,
        raw.custom_attributes,
        _whole(raw.request_ttl_seconds),
        _whole(raw.invocation_timeout_seconds),
        transport,
        bytes(raw.metadata) if raw.metadata else None,
        payload,
        size_bytes,
    )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _endpoint(name: str | None, rules: LineRules) -> EndpointName | LineError:
    if name is None and rules.any_endpoint:
        return EndpointName("")
    if name is None:
        return rules.endpoint or field_error(
            "endpoint", "is missing and there is no default; add it, or set --endpoint"
        )
    endpoint = EndpointName(name)
    if endpoint == rules.endpoint or endpoint in rules.allowed_endpoints:
        return endpoint
    if problem := fields.endpoint_problem(name):
        return field_error("endpoint", problem)
    if rules.any_endpoint:
        return endpoint
    return line_error(
        FailureReason.ENDPOINT_NOT_ALLOWED,
        f"endpoint {shown(name)} is not one that jobs may name; allow it by flag or setting",
    )


def _payload(raw: RawJob, rules: LineRules) -> Payload | LineError:
    encoded, path, uri = raw.payload_base64, raw.payload_path, raw.input_location
    given = bool(raw.payload) + (encoded is not None) + (path is not None) + (uri is not None)
    if given != 1:
        return _not_one_payload(given)
    if raw.payload:
        return Literal(bytes(raw.payload))
    if encoded is not None:
        return _decoded(encoded)
    if path is not None:
        problem = fields.path_problem(path)
        return field_error("payload_path", problem) if problem else PathPayload(path)
    return _location(uri or "", raw.transport, rules)


def _not_one_payload(given: int) -> LineError:
    found = "none is there" if given == 0 else f"{given} are there"
    return line_error(
        FailureReason.INVALID_FIELD,
        f"a job has exactly one of payload, payload_base64, payload_path and input_location; {found}",
    )


def _decoded(encoded: str) -> Decoded | LineError:
    try:
        return Decoded(binascii.a2b_base64(encoded, strict_mode=True))
    except ValueError:  # binascii.Error is one, and so is what a non-ASCII string gives
        return field_error(
            "payload_base64", "is not base64; use the standard alphabet, with padding, without line breaks"
        )


def _location(uri: str, transport: str | None, rules: LineRules) -> LocationPayload | LineError:
    if transport is not None:
        return field_error("transport", "cannot be chosen for input_location, which is in S3 already; leave it out")
    problem = fields.location_problem(uri, rules.allowed_input_prefixes)
    return field_error("input_location", problem) if problem else LocationPayload(uri)
