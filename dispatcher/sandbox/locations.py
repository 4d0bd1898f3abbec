"""Where outputs and failures lie, and how S3 locations are written. Pure.

How the service joins path, extension and file name is not documented: `joined` is the obvious way, `flat` one that
ignores both, so that nobody may compute a location instead of storing the one that was told.
"""

import re

from msgspec import Struct

from dispatcher.sandbox.messages import new_id
from dispatcher.sandbox.settings import EndpointSettings

_S3_URI = re.compile(r"s3://([^/]+)/?(.*)", re.DOTALL)
_HTTPS_URI = re.compile(r"https://(.+?)\.s3[.-][^/]*amazonaws\.com/?(.*)", re.DOTALL)


class Locations(Struct, frozen=True, gc=False):
    """What a receipt names."""

    output: str
    failure: str | None


def parse(location: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` or `https://` location; empty strings where it is neither."""
    found = _S3_URI.fullmatch(location) or _HTTPS_URI.fullmatch(location)
    return (found[1], found[2]) if found else ("", "")


def choose(options: EndpointSettings, region: str, extension: str | None, filename: str | None) -> Locations:
    """The locations of a new job."""
    if options.output_layout == "flat":
        extension = filename = None
    stem = new_id() if filename is None else filename
    name = f"{stem}.out" if filename is None else filename
    middle = f"/{extension.strip('/')}/" if extension else "/"
    output = _written(f"{options.output_path.rstrip('/')}{middle}{name}", options, region)
    if options.failure_path is None:
        return Locations(output, None)
    bare = stem.rpartition(".")[0] or stem
    failure = f"{options.failure_path.rstrip('/')}{middle}{bare}-error.out"
    return Locations(output, _written(failure, options, region))


def _written(location: str, options: EndpointSettings, region: str) -> str:
    if options.location_scheme == "s3":
        return location
    bucket, key = parse(location)
    return f"https://{bucket}.s3.{region}.amazonaws.com/{key}"
