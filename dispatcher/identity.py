"""Names by which the service, S3 and the ledger know a job; all follow from the run id and the line number.

    InferenceId = base32(sha256(run id, line))[:26], lower case          the same on every attempt
    input key   = <InferenceId[:2]>/<InferenceId>                        hash first: spreads over S3's partitions
    Filename    = <InferenceId>.out                                      30 of the 32 characters allowed
    extension   = <job file's name, made safe>-<run id>/<shard>          one ListObjectsV2 page per shard

Pure. What is hashed is length-prefixed, so that no two pairs hash the same text.
"""

import hashlib
import re
from base64 import b32encode

from dispatcher.model import InferenceId, RunId

RUN_ID_BYTES = 10
_ID_CHARACTERS = 26
_SAFE_NAME_CHARACTERS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def run_id(random: bytes) -> RunId:
    """A run id of RUN_ID_BYTES random bytes: 16 characters of [a-z2-7]."""
    return RunId(b32encode(random).decode().lower())


def inference_id(run: RunId, line: int) -> InferenceId:
    """The job's identity towards the service: 26 characters of [a-z2-7], 130 bits."""
    number = str(line)
    digest = hashlib.sha256(f"{len(run)}:{run}{len(number)}:{number}".encode()).digest()
    # 20 bytes are whole base32 groups, and their first 26 characters are those of the whole digest.
    return InferenceId(b32encode(digest[:20])[:_ID_CHARACTERS].decode().lower())


def input_key(id: InferenceId) -> str:
    """Where the staged input lies below the staging prefix."""
    return f"{id[:2]}/{id}"


def filename(id: InferenceId) -> str:
    """The Filename asked for: the output's last path segment."""
    return f"{id}.out"


def safe_name(name: str) -> str:
    """`name` cut and cleaned to what S3OutputPathExtension and a folder name allow: never empty, never `.` or `..`."""
    cleaned = _UNSAFE.sub("-", name)[:_SAFE_NAME_CHARACTERS].strip(".-")
    return cleaned or "jobs"


def output_path_extension(name: str, run: RunId, shard: int) -> str:
    """The folder, below the endpoint's S3OutputPath, that a shard's outputs are asked to go to."""
    return f"{safe_name(name)}-{run}/{shard}"
