"""The JSON Schema of a job line. It says all that a line alone can show; `dispatcher validate` knows more.

What it cannot say: an id stands once in its file, a payload's size in bytes, which endpoints and prefixes the settings
allow, whether a payload's file is there. `dispatcher.formats` is what counts; a test holds the two together.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dispatcher.formats import fields
from dispatcher.model import Transport
from dispatcher.schemas.settings import DIALECT, plain
from dispatcher.settings import END, EndpointText, HeaderText

PAYLOADS = ("payload", "payload_base64", "payload_path", "input_location")

_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?" + END
_ID = r"^[^\u0000-\u001f\u007f-\u009f]*" + END
_LOCATION = r"^s3://[ -.0-~]+/[ -~]*[!-~]" + END
_PATH = rf"^(?!/)(?!(?:[^\u0000]*/)?\.\.(?:/|{END}))[^\u0000]+" + END

_Id = Annotated[str, Meta(min_length=1, max_length=fields.ID_MAX_CHARS, pattern=_ID)]
_Location = Annotated[str, Meta(max_length=fields.HEADER_MAX_CHARS, pattern=_LOCATION)]
_Path = Annotated[str, Meta(min_length=1, max_length=fields.PATH_MAX_CHARS, pattern=_PATH)]
_Ttl = Annotated[int, Meta(ge=fields.TTL_SECONDS[0], le=fields.TTL_SECONDS[-1])]
_Timeout = Annotated[int, Meta(ge=fields.TIMEOUT_SECONDS[0], le=fields.TIMEOUT_SECONDS[-1])]

FIELDS: dict[str, tuple[Any, str]] = {
    "payload": (Any, "Any JSON, null too; its bytes travel as they stand in the line."),
    "payload_base64": (Annotated[str, Meta(pattern=_BASE64)] | None, "Any bytes, in base64 with padding."),
    "payload_path": (_Path | None, "A file, relative to the folder of payloads; nothing above it."),
    "input_location": (_Location | None, "s3://bucket/key: an object that is there already."),
    "id": (_Id | None, "Unique in the file; by default the line's number."),
    "endpoint": (EndpointText | None, "By default the endpoint of the settings, which must allow any other."),
    "content_type": (HeaderText | None, "The payload's media type."),
    "accept": (HeaderText | None, "The media type wanted of the output."),
    "custom_attributes": (HeaderText | None, "Passed on to the model as it is."),
    "request_ttl_seconds": (_Ttl | None, "How long the job may wait in the service's queue."),
    "invocation_timeout_seconds": (_Timeout | None, "How long the model may take."),
    "transport": (Transport | None, "How the payload travels; by default as its size asks for."),
    "metadata": (Any, "Any JSON; comes back with the result."),
}
"""Type and meaning of every field. Null is as good as absent, except for a payload."""


def job_line_schema() -> dict[str, Any]:
    """The schema of one line of a job file."""
    line = msgspec.defstruct("JobLine", [_field(name) for name in FIELDS], forbid_unknown_fields=True)
    made = plain(line)
    for said in made["properties"].values():
        said.pop("default", None)
    made["properties"]["transport"] = _transport(made["properties"].get("transport", {}))
    return {
        "$schema": DIALECT,
        **made,
        "title": "A job line of the dispatcher",
        "description": "One line of a job file (JSON lines, UTF-8). Exactly one of the four payload fields is there.",
        "oneOf": [_given(name) for name in PAYLOADS],
        "if": _given("input_location"),
        "then": {"properties": {"transport": {"type": "null"}}},
    }


def _field(name: str) -> tuple[str, Any, Any]:
    kind, description = FIELDS[name]
    if name == "transport":
        kind = str | None  # an enum would become a schema of its own; see `_transport`
    return name, Annotated[kind, Meta(description=description)], None


def _transport(said: dict[str, Any]) -> dict[str, Any]:
    """What the enum says, in place, without `reference`: that is what an input_location is."""
    return {"description": said["description"], "enum": [Transport.INLINE.value, Transport.S3.value, None]}


def _given(name: str) -> dict[str, Any]:
    """That a field is there; null counts for a payload alone."""
    there: dict[str, Any] = {"required": [name]}
    return there if name == "payload" else {**there, "properties": {name: {"type": "string"}}}
