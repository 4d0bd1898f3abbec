"""What every peer in Python is asked, and how it says that it is done. Standard library alone: it is part of what is measured."""

import argparse
import json
from typing import NamedTuple

ENDPOINT = "bench"
BUCKET = "bench-in"
CONTENT_TYPE = "application/json"


class Asked(NamedTuple):
    """So many jobs of one payload size, so many at once."""

    url: str
    jobs: int
    size: int
    by_s3: bool
    in_flight: int
    ca: str | None
    by_hand: bool = False

    @property
    def payload(self) -> bytes:
        """What the model gets: JSON of exactly that size."""
        return b'"' + b"x" * (self.size - 2) + b'"'


def asked() -> Asked:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--size", type=int, default=1_000)
    parser.add_argument("--path", choices=("inline", "s3"), default="inline")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--ca")
    parser.add_argument("--by-hand", action="store_true")
    given = parser.parse_args()
    return Asked(given.url, given.jobs, given.size, given.path == "s3", given.in_flight, given.ca, given.by_hand)


def key_of(number: int) -> str:
    """The id of a job, as long as the dispatcher's: also the key of its staged input."""
    return f"{number:026d}"


def done(jobs: int) -> None:
    """Says that all have their receipt."""
    print(json.dumps({"jobs": jobs}))
