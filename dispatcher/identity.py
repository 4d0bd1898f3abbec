"""Names by which the service, S3 and the ledger know a job; all follow from the run id and the line number.

    InferenceId = base32(sha256(run id, line))[:26], lower case          the same on every attempt
    input key   = <InferenceId[:2]>/<InferenceId>                        hash first: spreads over S3's partitions
    Filename    = <InferenceId>.out                                      30 of the 32 characters allowed
    extension   = <job file's name, made safe>-<run id>/<shard>          one ListObjectsV2 page per shard

Pure. What is hashed is length-prefixed, so that no two pairs hash the same text.
"""

import hashlib
import re
import struct
from base64 import b32encode

from dispatcher.model import InferenceId, RunId

RUN_ID_BYTES = 10
_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
"""Two digits of base32 for each ten bits: half the cost of the standard library's encoder, once for every job."""
_GROUPS = struct.Struct(">IBIBIBH")
"""Three groups of five bytes, eight digits each, and what the last two digits are of: cut at once, the id costs two thirds."""
_SAFE_NAME_CHARACTERS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def run_id(random: bytes) -> RunId:
    """A run id of RUN_ID_BYTES random bytes: 16 characters of [a-z2-7]."""
    return RunId(b32encode(random).decode().lower())


def inference_id(run: RunId, line: int) -> InferenceId:
    """The job's identity towards the service: 26 characters of [a-z2-7], 130 bits."""
    a, b, c, d, e, f, g = _GROUPS.unpack_from(_digest(run, line))
    pairs = _PAIRS
    return InferenceId(
        f"{pairs[a >> 22]}{pairs[a >> 12 & 1023]}{pairs[a >> 2 & 1023]}{pairs[a << 8 & 768 | b]}"
        f"{pairs[c >> 22]}{pairs[c >> 12 & 1023]}{pairs[c >> 2 & 1023]}{pairs[c << 8 & 768 | d]}"
        f"{pairs[e >> 22]}{pairs[e >> 12 & 1023]}{pairs[e >> 2 & 1023]}{pairs[e << 8 & 768 | f]}"
        f"{pairs[g >> 6]}"
    )


def share_point(run: RunId, line: int) -> float:
    """Where in 0 to 1 (not 1) the job's identity puts it: a share of all jobs are those below it. The first 20 bits decide."""
    return (int.from_bytes(_digest(run, line)[:3]) >> 4) / (1 << 20)


def _digest(run: RunId, line: int) -> bytes:
    number = str(line)
    return hashlib.sha256(f"{len(run)}:{run}{len(number)}:{number}".encode()).digest()


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
    return shard_folder(output_folder(name, run), shard)


def output_folder(name: str, run: RunId) -> str:
    """What the folders of all shards of a run begin with."""
    return f"{safe_name(name)}-{run}"


def shard_folder(folder: str, shard: int) -> str:
    """The folder of a shard, of what `output_folder` says."""
    return f"{folder}/{shard}"
