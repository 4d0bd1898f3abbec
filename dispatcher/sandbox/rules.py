"""The rules of InvokeEndpointAsync, from the service's own model: which fields there are and what each may hold. Pure.

The SDKs check the minimums alone, so everything is checked here. Texts follow the form the service is known to use:
`1 validation error detected: Value 'x' at 'member' failed to satisfy constraint: …`; a value is not repeated for the body.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

INLINE_MAX_BYTES: Final = 128_000
NAME_MAX_CHARS: Final = 63
DEFAULT_TTL_SECONDS: Final = 21_600
DEFAULT_TIMEOUT_SECONDS: Final = 900

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_ASCII = r"[\x00-\x7f]*"


class Asked(Struct, frozen=True, kw_only=True, gc=False):
    """The fields of a request that keeps the rules; None where a header is absent."""

    input_location: str | None
    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    inference_id: str | None
    extension: str | None
    filename: str | None
    ttl_seconds: int | None
    timeout_seconds: int | None


class _Text(NamedTuple):
    header: bytes
    member: str
    least: int
    most: int
    pattern: str
    matches: Callable[[str], object]


class _Whole(NamedTuple):
    header: bytes
    member: str
    least: int
    most: int


def _text(header: bytes, member: str, least: int, most: int, pattern: str) -> _Text:
    return _Text(b"x-amzn-sagemaker-" + header, member, least, most, pattern, re.compile(pattern).fullmatch)


_TEXTS = (
    _text(b"inputlocation", "inputLocation", 1, 1024, "(https|s3)://([^/]+)/?(.*)"),
    _text(b"content-type", "contentType", 0, 1024, _ASCII),
    _text(b"accept", "accept", 0, 1024, _ASCII),
    _text(b"custom-attributes", "customAttributes", 0, 1024, _ASCII),
    _text(b"inference-id", "inferenceId", 1, 64, "[!-~][ -~]*"),
    _text(b"s3outputpathextension", "s3OutputPathExtension", 1, 512, "(?!s3:|https:)[a-zA-Z0-9!_.*'()/-]+"),
    _text(b"filename", "filename", 1, 32, r"(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9-_\.]*"),
)
_WHOLES = (
    _Whole(b"x-amzn-sagemaker-requestttlseconds", "requestTTLSeconds", 60, 21_600),
    _Whole(b"x-amzn-sagemaker-invocationtimeoutseconds", "invocationTimeoutSeconds", 1, 3_600),
)


def check(endpoint: str, headers: Mapping[bytes, bytes], body_bytes: int, inline: bool = True) -> Asked | str:
    """The fields, or the text of the ValidationError. Header names are lower case; `inline` says whether a body may come."""
    faults: list[str] = []
    _check_name(endpoint, faults)
    texts = [_checked_text(rule, headers.get(rule.header), faults) for rule in _TEXTS]
    wholes = [_checked_whole(rule, headers.get(rule.header), faults) for rule in _WHOLES]
    _check_body(body_bytes, inline, faults)
    if faults:
        return _report(faults)
    if (texts[0] is None) == (body_bytes == 0):
        return "Exactly one of Body and InputLocation must be provided."
    location, content_type, accept, attributes, inference_id, extension, filename = texts
    return Asked(
        input_location=location,
        content_type=content_type,
        accept=accept,
        custom_attributes=attributes,
        inference_id=inference_id,
        extension=extension,
        filename=filename,
        ttl_seconds=wholes[0],
        timeout_seconds=wholes[1],
    )


def unknown_endpoint(endpoint: str, account: str) -> str:
    """The text for an endpoint that is not there."""
    return f"Endpoint {endpoint} of account {account} not found."


def _check_name(name: str, faults: list[str]) -> None:
    if len(name) > NAME_MAX_CHARS:
        faults.append(_fault(name, "endpointName", f"have length less than or equal to {NAME_MAX_CHARS}"))
    elif not _NAME.fullmatch(name):
        faults.append(_fault(name, "endpointName", f"satisfy regular expression pattern: {_NAME.pattern}"))


def _checked_text(rule: _Text, raw: bytes | None, faults: list[str]) -> str | None:
    if raw is None:
        return None
    value = raw.decode("utf-8", "replace")
    if len(value) < rule.least:
        faults.append(_fault(value, rule.member, f"have length greater than or equal to {rule.least}"))
    elif len(value) > rule.most:
        faults.append(_fault(value, rule.member, f"have length less than or equal to {rule.most}"))
    elif not rule.matches(value):
        faults.append(_fault(value, rule.member, f"satisfy regular expression pattern: {rule.pattern}"))
    return value


def _checked_whole(rule: _Whole, raw: bytes | None, faults: list[str]) -> int | None:
    if raw is None:
        return None
    text = raw.decode("latin-1")
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        faults.append(_fault(text, rule.member, "be a whole number"))
        return None
    value = int(text)
    if value < rule.least:
        faults.append(_fault(text, rule.member, f"have value greater than or equal to {rule.least}"))
    elif value > rule.most:
        faults.append(_fault(text, rule.member, f"have value less than or equal to {rule.most}"))
    return value


def _check_body(body_bytes: int, inline: bool, faults: list[str]) -> None:
    most = INLINE_MAX_BYTES if inline else 0
    if body_bytes > most:
        faults.append(
            f"Value at 'body' failed to satisfy constraint: Member must have length less than or equal to {most}"
        )


def _fault(value: str, member: str, must: str) -> str:
    return f"Value '{value}' at '{member}' failed to satisfy constraint: Member must {must}"


def _report(faults: list[str]) -> str:
    noun = "error" if len(faults) == 1 else "errors"
    return f"{len(faults)} validation {noun} detected: {'; '.join(faults)}"
