"""Reads the objects out of a LIST's answer: a tenth of what the SDK's own parser takes, which is most of a look at a shard.

The SDK makes the request, and reads what is left of the answer when its objects are taken out: name, page token, errors.
They are under LISTED in its result, as `(key, size in bytes, LastModified)`. An answer that is none is left as it is.
"""

from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from botocore.compat import unquote_str
from botocore.handlers import _handle_200_error as _search_for_an_error

LISTED = "Listed"

Entry = tuple[str, int, float]

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def take_objects(s3: Any) -> None:
    """Lets the client's ListObjectsV2 bring its objects under LISTED."""
    events = s3.meta.events
    # Before the SDK searches the answer for an error, which takes as long as reading it: then there is little to search.
    events.unregister("before-parse.s3.*", _search_for_an_error)
    events.register_first("before-parse.s3.*", _take)
    events.register_first("before-parse.s3.*", _search_for_an_error)


def _take(
    operation_model: Any, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    if operation_model.name != "ListObjectsV2" or response_dict["status_code"] != 200:
        return
    try:
        # As the SDK does, whose libexpat bounds what entities may grow to.
        root = ElementTree.fromstring(response_dict["body"])  # noqa: S314
        customized_response_dict[LISTED] = _objects(root)
    except (ElementTree.ParseError, ValueError, TypeError):
        return  # the SDK says what is wrong with it
    response_dict["body"] = ElementTree.tostring(root)


def _objects(root: ElementTree.Element) -> list[Entry]:
    """The objects, which the listing does not have any more."""
    space = _NAMESPACE if root.tag.startswith(_NAMESPACE) else ""
    contents, key, size, modified = (f"{space}{name}" for name in ("Contents", "Key", "Size", "LastModified"))
    unquoted = unquote_str if root.findtext(f"{space}EncodingType") == "url" else str
    # A folder is filled within seconds, and S3 tells whole ones.
    seconds = _Seconds()
    entries = [
        (unquoted(one.findtext(key, "")), int(one.findtext(size, "")), seconds[one.findtext(modified, "")])
        for one in root.iterfind(contents)
    ]
    root[:] = [one for one in root if one.tag != contents]
    return entries


class _Seconds(dict[str, float]):
    """Times since the epoch by how S3 writes them; each is worked out once."""

    def __missing__(self, text: str) -> float:
        self[text] = seconds = datetime.fromisoformat(text).timestamp()
        return seconds
