"""Decoding of job lines: what is taken, byte for byte, and what is refused, with which words."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.formats.faults import MESSAGE_MAX_CHARS, LineError
from dispatcher.formats.joblines import (
    Decoded,
    JobLine,
    LineRules,
    Literal,
    LocationPayload,
    PathPayload,
    decode,
    size_problem,
)
from dispatcher.model import EndpointName, FailureReason, Transport

RULES = LineRules(endpoint=EndpointName("default"), allowed_endpoints=frozenset([EndpointName("other")]), staging=True)
NO_STAGING = LineRules(endpoint=EndpointName("default"))
INVALID_FIELD = FailureReason.INVALID_FIELD


def job(line: bytes | str | dict[str, Any], rules: LineRules = RULES) -> JobLine:
    decoded = decode(_bytes(line), rules)
    assert isinstance(decoded, JobLine), decoded
    return decoded


def error(line: bytes | str | dict[str, Any], rules: LineRules = RULES) -> LineError:
    decoded = decode(_bytes(line), rules)
    assert isinstance(decoded, LineError), decoded
    assert decoded.message.isprintable()
    assert 0 < len(decoded.message) <= MESSAGE_MAX_CHARS
    return decoded


def _bytes(line: bytes | str | dict[str, Any]) -> bytes:
    if isinstance(line, dict):
        line = json.dumps(line)
    return line.encode() if isinstance(line, str) else line


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        "null",
        "0",
        "-1.50e+07",
        "1e999",
        "9" * 5000,
        '""',
        r'"\u00e9\ud83d\ude00\/"',
        '{"b":1,  "a":1.0}',
        "[ ]",
        '"é"',
        '{"a":1,"a":2}',
    ],
)
def test_a_payload_is_the_bytes_that_stand_in_the_line(payload: str) -> None:
    assert job(f' {{ "payload" :\t{payload}  , "id": "x"}} ').payload == Literal(payload.encode())


def test_all_fields_of_a_line_arrive() -> None:
    decoded = job(
        '{"id":"a","payload":{},"endpoint":"other","content_type":"text/csv","accept":"*/*","custom_attributes":"a=\\"b\\"",'
        '"request_ttl_seconds":60,"invocation_timeout_seconds":3600,"transport":"s3","metadata":{"payload": {}}}'
    )
    assert decoded == JobLine(
        "a",
        EndpointName("other"),
        "text/csv",
        "*/*",
        'a="b"',
        60,
        3600,
        Transport.S3,
        b'{"payload": {}}',
        Literal(b"{}"),
        2,
    )


def test_a_line_needs_only_a_payload() -> None:
    decoded = job('{"payload":1}')
    assert (decoded.id, decoded.endpoint, decoded.transport, decoded.metadata) == (None, "default", None, None)


def test_metadata_null_is_kept_apart_from_no_metadata() -> None:
    assert job('{"payload":1,"metadata":null}').metadata == b"null"


def test_null_stands_for_an_absent_optional_field() -> None:
    decoded = job(
        '{"id":null,"endpoint":null,"payload_path":null,"request_ttl_seconds":null,"transport":null,"payload":1}'
    )
    assert (decoded.id, decoded.endpoint, decoded.payload) == (None, "default", Literal(b"1"))


def test_base64_is_decoded() -> None:
    assert job({"payload_base64": base64.b64encode(bytes(range(256))).decode()}).payload == Decoded(bytes(range(256)))


def test_an_empty_base64_payload_is_legal_where_s3_is() -> None:
    decoded = job('{"payload_base64":""}')
    assert (decoded.payload, decoded.size_bytes) == (Decoded(b""), 0)


@pytest.mark.parametrize("path", ["a.bin", "a/b c.bin", "./a", "~", "~root/x", "..a", "a..", "C:\\x"])
def test_a_relative_path_is_taken(path: str) -> None:
    decoded = job({"payload_path": path})
    assert (decoded.payload, decoded.size_bytes) == (PathPayload(path), None)


def test_a_location_is_taken() -> None:
    assert job('{"input_location":"s3://bucket/a/../b?c=d"}').payload == LocationPayload("s3://bucket/a/../b?c=d")


def test_a_memoryview_is_decoded_like_bytes() -> None:
    line = b'{"payload":"x"}'
    assert decode(memoryview(line), RULES) == decode(line, RULES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["payload", "metadata", "id"]), inner)
    ),
    max_leaves=12,
)
IDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(str.isprintable)


@given(payload=JSON, metadata=JSON, id=IDS, ascii=st.booleans(), indent=st.booleans(), order=st.permutations(range(4)))
def test_a_valid_job_round_trips_byte_for_byte(
    payload: object, metadata: object, id: str, ascii: bool, indent: bool, order: list[int]
) -> None:
    separators = (" ,\t", "\r :  ") if indent else (",", ":")

    def dumped(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii, separators=separators)

    members = [
        f'"payload":{dumped(payload)}',
        f'"metadata": {dumped(metadata)}',
        f'"id" : {dumped(id)}',
        '"custom_attributes":"\\\\\\"payload\\": 1"',
    ]
    try:
        line = ("{" + ",".join(members[index] for index in order) + "}").encode()
    except UnicodeEncodeError:
        return
    decoded = decode(line, RULES)
    if isinstance(decoded, LineError):  # half of a surrogate pair, escaped
        assert decoded.reason is FailureReason.INVALID_JSON
        return
    assert decoded.payload == Literal(dumped(payload).encode())
    assert decoded.metadata == dumped(metadata).encode()
    assert (decoded.id, decoded.custom_attributes) == (id, '\\"payload": 1')


# --- bytes that are no JSON object -----------------------------------------------------------------------------------


@given(st.binary() | st.text().map(str.encode) | JSON.map(json.dumps).map(str.encode))
def test_no_bytes_make_decode_raise(line: bytes) -> None:
    decoded = decode(line, RULES)
    assert isinstance(decoded, JobLine) or decoded.message.isprintable()


@given(st.dictionaries(st.sampled_from(["id", "payload", "endpoint", "transport", "request_ttl_seconds", "x\n"]), JSON))
def test_no_object_makes_decode_raise(line: dict[str, Any]) -> None:
    decode(json.dumps(line).encode(), RULES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not JSON"),
        (b"{", "cut off"),
        (b'{"payload":1', "cut off"),
        (b'{"payload":1}{', "not JSON"),
        (b'{"payload":NaN}', "NaN and Infinity"),
        (b'{"payload":[1,-Infinity]}', "NaN and Infinity"),
        (b"{'payload':1}", "not JSON"),
        (b'{"payload":"a\x01"}', "not JSON"),
        (b'{"payload":"\\ud800"}', "pair"),
        (b'{"id":"\\udc00","payload":1}', "pair"),
        (b"[1]", "not an object"),
        (b'"payload"', "not an object"),
        (b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
        (b'{"nonsense":' + b'{"a":' * 100_000, "too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused(line: bytes, words: str) -> None:
    refused = error(line)
    assert refused.reason is FailureReason.INVALID_JSON
    assert words in refused.message


@pytest.mark.parametrize(
    "line", [b'{"payload":"\xff"}', b'{"payload":"\xed\xa0\x80"}', b'{"\xff":1}', b'{"id":"\xc3","payload":1}']
)
def test_what_is_not_utf8_is_refused(line: bytes) -> None:
    assert error(line).reason is FailureReason.INVALID_ENCODING


# --- shape -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"payload":1,"payload":1}',
        '{"payload":"a","payload":"b"}',
        '{"payload":{"payload":1},"payload":{"payload":1}}',
        '{"metadata":{"payload":1},"payload":1,"metadata":2}',
        '{"payload":1,"payl\\u006fad":2}',
        '{"id":"a","payload":1,"id":"b"}',
        '{"id":null,"payload":1,"id":null}',
        '{"id":"a","payload":1,"id":null}',
        '{"request_ttl_seconds":60,"payload":1,"request_ttl_seconds":60}',
        '{"id":"\\"","id":"\\\\","payload":1}',
        '{"payload":1 ,  "payload" : 1}',
        r'{"payload":1,"id":"\\","accept":"\\","content_type":"\\","id":"\\"}',
    ],
)
def test_a_key_that_stands_twice_is_refused(line: str) -> None:
    assert "more than once" in error(line).message


@pytest.mark.parametrize(
    "line",
    [
        '{"id":"payload","payload":"payload"}',
        '{"metadata":{"payload":1},"payload":1}',
        '{"metadata":{"payload":12},"payload":1}',
        '{"metadata":{"payload":"","b":1},"payload":",","id":"a"}',
        '{"metadata":{"metadata":1},"payload":{"payload":2,"metadata":1}}',
        '{"id":"\\"payload\\":1","payload":1}',
        '{"id":"\\\\","payload":1}',
        '{"payl\\u006fad":"a"}',
        '{"id":"a","payload":{"id":1,"id":2}}',
    ],
)
def test_a_key_that_only_seems_to_stand_twice_is_taken(line: str) -> None:
    assert job(line)


@pytest.mark.parametrize(
    ("field", "advice"),
    [("payloads", "'payload'"), ("Endpoint", "'endpoint'"), ("ttl", "metadata"), ("contentType", "'content_type'")],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(field: str, advice: str) -> None:
    message = error({"payload": 1, field: 2}).message
    assert f"'{field}'" in message
    assert advice in message


def test_a_message_is_bounded_and_printable_whatever_the_field_is_called() -> None:
    assert "\n" not in error({"\n\x1b[31m" + "x" * 10_000: 1}).message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"payload":1,"id":5}', "id must be a string, not a number; put it in quotes"),
        ('{"payload":1,"id":' + "9" * 5000 + "}", "put it in quotes"),
        ('{"payload":1,"id":["a"]}', "id must be a string, not an array"),
        ('{"payload":1,"endpoint":true}', "endpoint must be a string"),
        ('{"payload_path":{}}', "payload_path must be a string, not an object"),
        ('{"payload":1,"request_ttl_seconds":"60"}', "request_ttl_seconds must be a whole number"),
        ('{"payload":1,"request_ttl_seconds":60.5}', "request_ttl_seconds must be a whole number"),
        ('{"payload":1,"invocation_timeout_seconds":true}', "invocation_timeout_seconds must be a whole number"),
        ('{"payload":1,"request_ttl_seconds":' + "9" * 5000 + "}", "request_ttl_seconds"),
        ('{"payload":1,"transport":"http"}', "transport must be 'inline' or 's3'"),
        ('{"payload":1,"transport":1}', "transport must be 'inline' or 's3'"),
        ('{"payload":1,"transport":"reference"}', "transport must be 'inline' or 's3'"),
    ],
)
def test_a_wrong_type_is_said_with_its_field(line: str, words: str) -> None:
    refused = error(line)
    assert refused.reason is INVALID_FIELD
    assert words in refused.message


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"id":"x"}',
        '{"payload":null,"payload_path":"x"}',
        '{"payload_base64":"","input_location":"s3://b/k"}',
        '{"payload_path":null}',
    ],
)
def test_a_job_has_exactly_one_payload(line: str) -> None:
    assert "exactly one of" in error(line).message


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * 257),
        ("id", "a\nb"),
        ("id", "\x7f"),
        ("id", "\u202e"),
        ("endpoint", ""),
        ("endpoint", "a/b"),
        ("endpoint", "-a"),
        ("endpoint", "a-"),
        ("endpoint", "a\n"),
        ("endpoint", "a" * 64),
        ("endpoint", "-" * 100_000),
        ("content_type", ""),
        ("content_type", "a\r\nX-Evil: 1"),
        ("content_type", "é"),
        ("accept", "x" * 1025),
        ("accept", " "),
        ("custom_attributes", "a "),
        ("custom_attributes", "\x00"),
        ("request_ttl_seconds", 59),
        ("request_ttl_seconds", 21_601),
        ("invocation_timeout_seconds", 0),
        ("invocation_timeout_seconds", 3601),
        ("invocation_timeout_seconds", -1),
    ],
)
def test_a_field_outside_the_limits_of_the_service_is_refused(field: str, value: object) -> None:
    refused = error({"payload": 1, field: value})
    assert refused.reason is INVALID_FIELD
    assert refused.message.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x" * 256),
        ("id", "é 日本"),
        ("content_type", "x" * 1024),
        ("accept", "~"),
        ("request_ttl_seconds", 21_600),
        ("invocation_timeout_seconds", 1),
    ],
)
def test_a_field_at_its_limit_is_taken(field: str, value: object) -> None:
    assert getattr(job({"payload": 1, field: value}), field) == value


@pytest.mark.parametrize("field", ["content_type", "accept", "custom_attributes", "input_location"])
@pytest.mark.parametrize("code", [*range(32), *range(127, 256)])
def test_no_byte_that_could_break_a_header_passes(field: str, code: int) -> None:
    value = f"s3://b/k{chr(code)}k"
    assert error({field: value} if field == "input_location" else {"payload": 1, field: value})


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///key",
        "https://b.s3.amazonaws.com/k",
        "S3://b/k",
        "file:///k",
        "s3://b/" + "k" * 1020,
    ],
)
def test_what_is_no_s3_location_is_refused(uri: str) -> None:
    assert error({"input_location": uri}).message.startswith("input_location")


@pytest.mark.parametrize(
    ("uri", "is_allowed"),
    [
        ("s3://a/x", True),
        ("s3://ab/x", False),
        ("s3://b/p/x", True),
        ("s3://b/px", False),
        ("s3://b/q/x", True),
        ("s3://b/x", False),
    ],
)
def test_allowed_prefixes_are_folders(uri: str, is_allowed: bool) -> None:
    rules = LineRules(endpoint=EndpointName("e"), allowed_input_prefixes=("s3://a", "s3://b/p", "s3://b/q/"))
    assert isinstance(decode(_bytes({"input_location": uri}), rules), JobLine) is is_allowed


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "a/..", "a\0b", "x" * 5000])
def test_a_path_that_could_lead_out_is_refused(path: str) -> None:
    assert error({"payload_path": path}).message.startswith("payload_path")


@pytest.mark.parametrize("text", ["QQ", "QQ=", "QQ==\n", " QQ==", "Q-_=", "====", "Q", "é", "QQ==QQ=="])
def test_base64_is_strict(text: str) -> None:
    refused = error({"payload_base64": text})
    assert refused.message.startswith("payload_base64")
    assert text.strip() not in refused.message


@given(st.binary(max_size=300))
def test_any_bytes_travel_in_base64(data: bytes) -> None:
    assert job({"payload_base64": base64.b64encode(data).decode()}).payload == Decoded(data)


def test_an_endpoint_that_is_not_allowed_is_refused_as_such() -> None:
    assert error({"payload": 1, "endpoint": "third"}).reason is FailureReason.ENDPOINT_NOT_ALLOWED


def test_a_line_without_endpoint_needs_a_default() -> None:
    assert "--endpoint" in error('{"payload":1}', LineRules()).message


def test_an_error_carries_the_id_where_it_can_be_read() -> None:
    assert error('{"id":"a","payload":1,"endpoint":"no/"}').id == "a"
    assert error('{"id":"a","payload":1,"oops":1}').id == "a"
    assert error('{"id":"a\\n","payload":1,"oops":1}').id is None


# --- sizes -----------------------------------------------------------------------------------------------------------


def literal(size_bytes: int, **more: object) -> dict[str, Any]:
    return {"payload": "x" * (size_bytes - 2), **more}


def test_inline_ends_at_128000_bytes() -> None:
    assert job(literal(128_000), NO_STAGING).size_bytes == 128_000
    assert error(literal(128_001), NO_STAGING).reason is FailureReason.STAGING_NOT_SET


@pytest.mark.parametrize("line", [literal(10, transport="s3"), {"payload_base64": ""}, literal(200_000)])
def test_a_job_that_needs_s3_is_refused_without_staging(line: dict[str, Any]) -> None:
    refused = error(line, NO_STAGING)
    assert refused.reason is FailureReason.STAGING_NOT_SET
    assert "--staging" in refused.message


@pytest.mark.parametrize("line", [literal(128_001, transport="inline"), {"payload_base64": "", "transport": "inline"}])
def test_inline_is_refused_for_what_does_not_fit(line: dict[str, Any]) -> None:
    assert error(line).message.startswith("transport")


@pytest.mark.parametrize("transport", ["inline", "s3"])
def test_the_transport_of_a_location_cannot_be_chosen(transport: str) -> None:
    assert error({"input_location": "s3://b/k", "transport": transport}).message.startswith("transport")


def test_a_payload_over_the_limit_is_refused() -> None:
    rules = LineRules(endpoint=EndpointName("e"), staging=True, payload_max_bytes=10)
    assert error(literal(11), rules).reason is FailureReason.PAYLOAD_TOO_LARGE
    assert job(literal(10), rules)


def test_a_measured_file_is_judged_by_the_same_rule() -> None:
    assert size_problem(128_000, None, NO_STAGING) is None
    problem = size_problem(0, None, NO_STAGING)
    assert problem is not None
    assert problem.reason is FailureReason.STAGING_NOT_SET
