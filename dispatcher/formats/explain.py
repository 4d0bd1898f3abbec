"""Why a line is no job line: the slow, careful look that only lines get that the decoder refused.

Nothing here recurses, and every pattern is linear, because the line may be as hostile and as long as its writer likes.
"""

import difflib
import re

import msgspec
from msgspec import Raw

from dispatcher.formats import fields
from dispatcher.formats.faults import LineError, field_error, line_error, shown
from dispatcher.model import FailureReason

_TEXT = (
    "id",
    "payload_base64",
    "payload_path",
    "input_location",
    "endpoint",
    "content_type",
    "accept",
    "custom_attributes",
)
_NUMBERS = ("request_ttl_seconds", "invocation_timeout_seconds")
_ANY = ("payload", "metadata")
FIELDS = frozenset((*_TEXT, *_NUMBERS, *_ANY, "transport"))
_TRANSPORTS = (b'"inline"', b'"s3"')
_KINDS = {ord('"'): "a string", ord("{"): "an object", ord("["): "an array", ord("t"): "true", ord("f"): "false"}

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}:]')
_NOT_A_NUMBER = re.compile(rb"[:\[,\s]-?(?:NaN|Infinity)\b")
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def explain(line: bytes) -> LineError:
    """Says why a line that the decoder refused is no job line."""
    try:
        line.decode()
        members = _OBJECT.decode(line)
    except UnicodeDecodeError as error:
        return line_error(
            FailureReason.INVALID_ENCODING, f"the line is not UTF-8 (byte {error.start}); write it as UTF-8"
        )
    except RecursionError:
        return line_error(FailureReason.INVALID_JSON, "the line is nested too deeply; flatten it")
    except msgspec.ValidationError:
        return line_error(FailureReason.INVALID_JSON, "the line is JSON but not an object; write one {...} a line")
    except msgspec.DecodeError as error:
        return _not_json(line, error)
    error_id = _id_of(members)
    problem = _unknown_field(members) or _wrong_type(members) or _unexplained()
    return msgspec.structs.replace(problem, id=error_id)


def duplicate_key(line: bytes) -> str | None:
    """The first key that stands twice at the top of a line that is known to be a JSON object, or None."""
    seen: set[str] = set()
    depth, last = 0, b""
    for match in _TOKEN.finditer(line):
        token = match.group()
        if token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
        elif token != b":":
            last = token
        elif depth == 1:
            key = msgspec.json.decode(last, type=str)
            if key in seen:
                return key
            seen.add(key)
    return None


def _not_json(line: bytes, error: msgspec.DecodeError) -> LineError:
    hint = "write one JSON object a line"
    if _NOT_A_NUMBER.search(line):
        hint = "NaN and Infinity are not JSON; write null or leave them out"
    elif _HALF_PAIR.search(line):
        hint = r"a \uD800 to \uDFFF escape must be one of a pair"
    elif not line.rstrip().endswith(b"}"):
        hint = "the line does not end in '}'; was it cut off, or is one job spread over several lines?"
    return line_error(FailureReason.INVALID_JSON, f"the line is not JSON ({error}); {hint}")


def _id_of(members: dict[str, Raw]) -> str | None:
    """The id, if it is one that may be shown."""
    try:
        found = msgspec.json.decode(members.get("id", b"null"), type=str | None)
    except msgspec.MsgspecError:
        return None
    return found if found is not None and fields.id_problem(found) is None else None


def _unknown_field(members: dict[str, Raw]) -> LineError | None:
    unknown = next((name for name in members if name not in FIELDS), None)
    if unknown is None:
        return None
    near = difflib.get_close_matches(unknown[:64].lower(), sorted(FIELDS), n=1)
    advice = f"did you mean '{near[0]}'?" if near else "remove it, or put it into metadata"
    return line_error(FailureReason.INVALID_FIELD, f"unknown field {shown(unknown)}; {advice}")


def _wrong_type(members: dict[str, Raw]) -> LineError | None:
    for name, raw in members.items():
        value = bytes(raw)
        problem = None if value == b"null" else _type_problem(name, value)
        if problem:
            return field_error(name, problem)
    return None


def _type_problem(name: str, value: bytes) -> str | None:
    if name in _TEXT and not value.startswith(b'"'):
        quote = "; put it in quotes" if name == "id" and _kind(value) == "a number" else ""
        return f"must be a string, not {_kind(value)}{quote}"
    if name in _NUMBERS and not _is_number(value):
        return "must be a whole number of seconds (not quoted, no fraction), and not a huge one"
    if name == "transport" and value not in _TRANSPORTS:
        return "must be 'inline' or 's3', or left out"
    return None


def _kind(value: bytes) -> str:
    return _KINDS.get(value[0], "a number")


def _is_number(value: bytes) -> bool:
    try:
        msgspec.json.decode(value, type=float)
    except msgspec.MsgspecError:
        return False
    return True


def _unexplained() -> LineError:
    return line_error(FailureReason.INVALID_FIELD, "a field has a value of the wrong type; compare with the job format")
