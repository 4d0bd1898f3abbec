"""The rules for single fields of a job line: each takes the value and says what is wrong with it, or None.

Limits are those of InvokeEndpointAsync (botocore's service model, 1.43), which the SDK itself does not check. Lengths
are checked first and the patterns are linear, so that no value is slow to refuse.
"""

import re
from collections.abc import Sequence

ID_MAX_CHARS = 256
HEADER_MAX_CHARS = 1024
ENDPOINT_MAX_CHARS = 63
PATH_MAX_CHARS = 4096
TTL_SECONDS = range(60, 21_600 + 1)
TIMEOUT_SECONDS = range(1, 3_600 + 1)

# The service's own pattern, [a-zA-Z0-9](-*[a-zA-Z0-9])*, without its nested repeats: no hyphen first or last.
_ENDPOINT = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?")
_LOCATION = re.compile(r"s3://[^/]+/.+")


def id_problem(id: str) -> str | None:
    if 0 < len(id) <= ID_MAX_CHARS and id.isprintable():
        return None
    if not id:
        return "is empty; give it a value, or leave it out to get the line number"
    if len(id) > ID_MAX_CHARS:
        return f"has {len(id)} characters; at most {ID_MAX_CHARS} are allowed"
    return "has characters that cannot be printed; use letters, digits and punctuation"


def endpoint_problem(name: str) -> str | None:
    if len(name) <= ENDPOINT_MAX_CHARS and _ENDPOINT.fullmatch(name):
        return None
    return f"is not an endpoint name; use 1 to {ENDPOINT_MAX_CHARS} letters, digits and inner hyphens"


def header_problem(value: str) -> str | None:
    """For what travels as a request header: other characters could not, and outer spaces would be lost on the way."""
    if not value:
        return "is empty; give it a value or leave it out"
    if len(value) > HEADER_MAX_CHARS:
        return f"has {len(value)} characters; at most {HEADER_MAX_CHARS} are allowed"
    if value.isascii() and value.isprintable() and value[0] != " " and value[-1] != " ":
        return None
    return "travels in a request header; use printable ASCII characters, without a space at either end"


def seconds_problem(value: float, allowed: range) -> str | None:
    if allowed[0] <= value <= allowed[-1]:
        return None if value == int(value) else "must be a whole number of seconds"
    return f"is out of range; use a whole number from {allowed[0]} to {allowed[-1]}"


def location_problem(uri: str, allowed_prefixes: Sequence[str]) -> str | None:
    problem = header_problem(uri)
    if problem:
        return problem
    if not _LOCATION.fullmatch(uri):
        return "is not an S3 location; write s3://bucket/key"
    if allowed_prefixes and not any(_is_below(uri, prefix) for prefix in allowed_prefixes):
        return "is outside the S3 prefixes that jobs may name; allow its prefix in the settings"
    return None


def path_problem(path: str) -> str | None:
    """For the relative path of a payload file. Whether the file is there and safe to open is not known here."""
    if not path:
        return "is empty; name a file relative to the folder of payloads"
    if len(path) > PATH_MAX_CHARS:
        return f"has {len(path)} characters; at most {PATH_MAX_CHARS} are allowed"
    if "\0" in path:
        return "holds a NUL character; no file has such a name"
    if path.startswith("/"):
        return "is absolute; name a file relative to the folder of payloads"
    if ".." in path.split("/"):
        return "leads upwards ('..'); payload files must lie below the folder of payloads"
    return None


def _is_below(uri: str, prefix: str) -> bool:
    """A prefix is a folder: `s3://bucket/a` allows `s3://bucket/a/b`, not `s3://bucket/abc`."""
    return uri.startswith(prefix if prefix.endswith("/") else prefix + "/")
