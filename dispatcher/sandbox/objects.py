"""Buckets: a tree of folders, so that a page of a listing costs what it shows and not what the bucket holds.

A folder's labels are its objects' names and its sub-folders' names with their closing slash. Sorted so, a walk in depth
meets the keys in S3's order (UTF-8 bytes): whatever lies in `b/` begins with `b/`, and no sibling does. The order of a
folder is made when it is first listed after a change: few new labels are put in place one by one, many by sorting.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from msgspec import Struct

from dispatcher.sandbox.blobs import Blob

INSORT_MAX = 32


class StoredObject(Struct, frozen=True, gc=False):
    """An object. `headers` is what GET and HEAD give back beside its size, ETag and date; `tags` how many tags it has."""

    blob: Blob
    modified_at: float
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()
    tags: int = 0

    @property
    def etag(self) -> str:
        """The ETag with its quotes."""
        return f'"{self.blob.md5().hex()}"'


class _Folder:
    """One level of the tree."""

    __slots__ = ("_fresh", "_order", "labels")

    def __init__(self) -> None:
        self.labels: dict[str, StoredObject | _Folder] = {}
        self._order: list[str] = []
        self._fresh: list[str] = []  # labels that are not in `_order` yet

    def add(self, label: str, entry: "StoredObject | _Folder") -> None:
        if label not in self.labels:
            self._fresh.append(label)
        self.labels[label] = entry

    def remove(self, label: str) -> None:
        order = self.order()
        del order[bisect_left(order, label)]
        del self.labels[label]

    def order(self) -> list[str]:
        if len(self._fresh) > INSORT_MAX:
            self._order += self._fresh
            self._order.sort()
        else:
            for label in self._fresh:
                insort(self._order, label)
        self._fresh = []
        return self._order


class Bucket:
    """The objects of one bucket, by key."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root = _Folder()

    def get(self, key: str) -> StoredObject | None:
        """The object, or None."""
        *folders, name = key.split("/")
        folder = self._descend(folders)
        found = folder.labels.get(name) if folder is not None else None
        return found if isinstance(found, StoredObject) else None

    def put(self, key: str, entry: StoredObject) -> None:
        """Stores or replaces an object."""
        *folders, name = key.split("/")
        folder = self._root
        for part in folders:
            label = part + "/"
            below = folder.labels.get(label)
            if not isinstance(below, _Folder):
                below = _Folder()
                folder.add(label, below)
            folder = below
        folder.add(name, entry)

    def delete(self, key: str) -> bool:
        """Removes an object and the folders it leaves empty; whether it was there."""
        *folders, name = key.split("/")
        trail = [self._root]
        for part in folders:
            below = trail[-1].labels.get(part + "/")
            if not isinstance(below, _Folder):
                return False
            trail.append(below)
        if name not in trail[-1].labels:
            return False
        trail[-1].remove(name)
        _prune(trail, folders)
        return True

    def walk(self, prefix: str, after: str) -> Iterator[tuple[str, StoredObject]]:
        """Keys that begin with `prefix` and come after `after`, in order. The bucket must not change meanwhile."""
        head, _, start = prefix.rpartition("/")
        folders = head.split("/") if "/" in prefix else []
        folder = self._descend(folders)
        if folder is not None:
            yield from _walk(folder, "".join(part + "/" for part in folders), start, after)

    def _descend(self, folders: list[str]) -> _Folder | None:
        folder = self._root
        for part in folders:
            below = folder.labels.get(part + "/")
            if not isinstance(below, _Folder):
                return None
            folder = below
        return folder


def _prune(trail: list[_Folder], names: list[str]) -> None:
    for depth in range(len(trail) - 1, 0, -1):
        if trail[depth].labels:
            return
        trail[depth - 1].remove(names[depth - 1] + "/")


def _walk(folder: _Folder, path: str, start: str, after: str) -> Iterator[tuple[str, StoredObject]]:
    order = folder.order()
    index = max(bisect_left(order, start), _first_after(order, path, after))
    while index < len(order) and (label := order[index]).startswith(start):
        entry = folder.labels[label]
        if isinstance(entry, StoredObject):
            yield path + label, entry
        else:
            yield from _walk(entry, path + label, "", after)
        index += 1


def _first_after(order: list[str], path: str, after: str) -> int:
    """The first label under which a key may come after `after`."""
    if not after.startswith(path):
        return 0 if after < path else len(order)
    head, slash, _ = after[len(path) :].partition("/")
    if slash:
        return bisect_left(order, head + slash)
    return bisect_right(order, head) if after != path else bisect_right(order, "")


class Page(Struct, frozen=True):
    """One page of a listing. `last` is where the next one begins (exclusive); None if there is none."""

    objects: list[tuple[str, StoredObject]]
    folders: list[str]
    last: str | None


def page(bucket: Bucket, prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """Up to `limit` keys and common prefixes after `after`."""
    objects: list[tuple[str, StoredObject]] = []
    folders: list[str] = []
    last = after
    while limit > 0:
        folder = None
        for key, entry in bucket.walk(prefix, last):
            if len(objects) + len(folders) == limit:
                return Page(objects, folders, last)
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                folder = key[: cut + len(delimiter)]
                break
            objects.append((key, entry))
            last = key
        if folder is None:
            break
        folders.append(folder)
        last = folder + "\U0010ffff"
    return Page(objects, folders, None)


class Store:
    """All buckets, by name."""

    __slots__ = ("buckets",)

    def __init__(self, names: tuple[str, ...]) -> None:
        self.buckets = {name: Bucket() for name in names}

    def find(self, bucket: str, key: str) -> StoredObject | None:
        """The object, or None where object or bucket is missing."""
        found = self.buckets.get(bucket)
        return found.get(key) if found is not None else None
