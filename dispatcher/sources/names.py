"""Names of job files on their way through the spool. Pure.

    inbox/<name>  →  work/<run id>-<clean name>  →  done/<title>            title = <clean name>, or
                     work/<run id>-<clean name>.lines (uncompressed copy)   <clean name>-<run id> where that is taken
                                                 →  results/<title>/

A clean name is UTF-8 without control characters (what is neither stands as %XX, as in URLs), so that it can go into a
ledger, JSON and a terminal, and short enough for every form above. A longer one loses the end of its stem and gets eight
characters of its hash instead (`<stem>~<hash><suffix>`): the suffix stays, and two long names stay two. The original name
is not kept: nothing needs it, and it stands in the log line that says that it was changed.

A replay's job file is made in `work/` and called `<title of the original>.replay-<number>`.
"""

import hashlib
import re
import unicodedata

from dispatcher.model import RunId

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
COPY_SUFFIX = ".lines"
SCRATCH_PREFIX = ".lines-"
"""Folders in `work/` into which a finished file's lines are unpacked once more, for a replay; none outlives its process."""

_RUN = "[a-z2-7]{16}"
_REPLAY = rf"(?:-{_RUN})?\.replay-\d+"
_TAKEN = re.compile(rf"({_RUN})-(.+\.jsonl(?:\.gz|\.zst)?(?:{_REPLAY})*)", re.DOTALL)
_COPY = re.compile(rf"({_RUN})-.+\.lines(?:\.part)?", re.DOTALL)
_PART = re.compile(rf"\.({_RUN})\.part")
_MARKED = re.compile(rf"(.+)-{_RUN}", re.DOTALL)

NAME_MAX_BYTES = 255 - len("-") - 16 - len(COPY_SUFFIX + ".part")
"""A file name has at most 255 bytes, and the longest form of ours is that of a copy while it is written."""
_HASH_CHARACTERS = 8
_REPLAYS = re.compile(rf"(?:{_REPLAY})+", re.DOTALL)
_LIKE = re.compile(r".*\.(?:jsonl|ndjson)(?:\.(?:gz|gzip|zst|zstd|bz2|xz|zip|lz4))?", re.DOTALL | re.IGNORECASE)
_UNCLEAN = {"Cc", "Cs", "Zl", "Zp"}


def is_job_file(name: str) -> bool:
    """Whether the inbox takes a file of this name."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def is_like_job_file(name: str) -> bool:
    """Whether who gave a file this name meant a job file; not for what is hidden or, by another suffix, still being written."""
    return not name.startswith(".") and _LIKE.fullmatch(name) is not None


def clean(name: str) -> str:
    """The job file's name from now on; the same for the same name. `name` is as `os` gives it, with surrogate escapes."""
    if not name.isprintable():
        name = "".join(_clean_character(character) for character in name)
    return name if len(name.encode()) <= NAME_MAX_BYTES else _cut(name)


def taken_name(run: RunId, name: str) -> str:
    """What a job file is called in `work/`."""
    return f"{run}-{name}"


def parse_taken(filename: str) -> tuple[RunId, str] | None:
    """The run id and the clean name of a job file in `work/`; None for anything else."""
    match = _TAKEN.fullmatch(filename)
    return (RunId(match[1]), match[2]) if match else None


def parse_copy(filename: str) -> RunId | None:
    """The run id of an uncompressed copy in `work/`, whole or half made; None for anything else."""
    match = _COPY.fullmatch(filename)
    return RunId(match[1]) if match else None


def part_name(run: RunId) -> str:
    """What the results of a run are called in `results/` while they are written."""
    return f".{run}.part"


def is_part(filename: str) -> bool:
    """Whether this is such a name."""
    return _PART.fullmatch(filename) is not None


def marked(title: str, run: RunId) -> str:
    """The title that no other run has."""
    return title if title.endswith(f"-{run}") else f"{title}-{run}"


def is_title(filename: str) -> bool:
    """Whether a file in `done/` may be called so."""
    match = _MARKED.fullmatch(filename)
    return is_job_file(_REPLAYS.sub("", match[1] if match else filename))


def _clean_character(character: str) -> str:
    if unicodedata.category(character) not in _UNCLEAN:
        return character
    return "".join(f"%{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def _cut(name: str) -> str:
    suffix = next(suffix for suffix in (*reversed(SUFFIXES), "") if name.endswith(suffix))
    tail = f"~{hashlib.sha256(name.encode()).hexdigest()[:_HASH_CHARACTERS]}{suffix}"
    stem = name.encode()[: NAME_MAX_BYTES - len(tail)].decode(errors="ignore")
    return stem + tail
