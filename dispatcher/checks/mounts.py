"""Which file system a path lies on, and whether a ledger may lie there. Reads the kernel's list; touches no disk."""

import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from msgspec import Struct

MOUNTS = Path("/proc/self/mountinfo")

_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "davfs", "9p", "vboxsf", "prl_fs"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "orangefs", "fuse", "fuseblk"),
    }
)
_PASSING = frozenset({"tmpfs", "ramfs", "overlay", "aufs", "virtiofs"})


class Place(Enum):
    """What a kind of file system means for files that must last."""

    LOCAL = "local"
    NETWORK = "network"
    PASSING = "passing"


class Mount(Struct, frozen=True):
    """A mounted file system."""

    point: str
    kind: str


def place(kind: str) -> Place:
    """What this kind of file system is."""
    if kind in _NETWORK or kind.startswith("fuse."):
        return Place.NETWORK
    return Place.PASSING if kind in _PASSING else Place.LOCAL


def mounts() -> list[Mount]:
    """What is mounted, in order; [] where the system does not tell."""
    try:
        return list(parse(MOUNTS.read_text("utf-8", "surrogateescape").splitlines()))
    except OSError:
        return []


def parse(lines: Iterable[str]) -> Iterable[Mount]:
    """The lines of mountinfo: the mount point is the fifth field, the kind the first after a lone dash."""
    for line in lines:
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) >= 5:
            yield Mount(_unescaped(fields[4]), after.split(" ")[0])


def holding(path: Path, among: Iterable[Mount]) -> Mount | None:
    """The mount that an absolute path lies on: the deepest, and of several on one point the last."""
    found: Mount | None = None
    for mount in among:
        if path.is_relative_to(mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
