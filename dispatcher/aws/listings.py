"""Reads the objects out of a LIST's answer: a tenth of what the SDK's own parser takes, which is most of a look at a shard.

The SDK makes the request, and reads what is left of the answer when its objects are taken out: name, page token, errors.
They are under LISTED in its result, as `(key, size in bytes, LastModified)`. An answer that is none is left as it is.
"""

from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from botocore.compat import unquote_str

LISTED = "Listed"

Entry = tuple[str, int, float]

_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def take_objects(s3: Any) -> None:
    """Lets the client's ListObjectsV2 bring its objects under LISTED."""
    # By this name it comes before the SDK's search for an error in the answer, which then has little to search.
    s3.meta.events.register_first("before-parse.s3.*", _take)


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
    key, size, modified = f"{space}Key", f"{space}Size", f"{space}LastModified"
    found = root.findall(f"{space}Contents")
    encoded = root.findtext(f"{space}EncodingType") == "url"
    entries = [
        (
            unquote_str(one.findtext(key, "")) if encoded else one.findtext(key, ""),
            int(one.findtext(size, "")),
            datetime.fromisoformat(one.findtext(modified, "")).timestamp(),
        )
        for one in found
    ]
    for one in found:
        root.remove(one)
    return entries
