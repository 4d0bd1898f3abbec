"""The sandbox's buckets against the plain idea of one: a dict, sorted."""

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sandbox.blobs import MEMORY_MAX_BYTES, Blob, Spool
from dispatcher.sandbox.objects import Bucket, StoredObject, page

ENTRY = StoredObject(Blob(b""), 0.0, "text/plain")
KEYS = st.text(alphabet="ab/.0\u00fc", min_size=1, max_size=6)


def expected(keys: set[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """Keys and common prefixes, in order, by going through all of them."""
    found: list[str] = []
    for key in sorted(keys):
        if not key.startswith(prefix) or key <= after:
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        shown = key if cut < 0 else key[: cut + len(delimiter)]
        if shown not in found[-1:]:
            found.append(shown)
    return found


@given(
    changes=st.lists(st.tuples(st.booleans(), KEYS), max_size=40),
    prefix=st.text(alphabet="ab/.", max_size=3),
    delimiter=st.sampled_from(["", "/", "a"]),
    after=st.one_of(st.just(""), KEYS),
    limit=st.integers(1, 4),
)
def test_a_listing_shows_what_a_full_scan_would(
    changes: list[tuple[bool, str]], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    bucket, keys = Bucket(), set[str]()
    for adds, key in changes:
        if adds:
            bucket.put(key, ENTRY)
            keys.add(key)
        else:
            assert bucket.delete(key) == (key in keys)
            keys.discard(key)
    assert {key for key, _ in bucket.walk("", "")} == keys
    assert all(bucket.get(key) is not None for key in keys)
    shown: list[str] = []
    last: str | None = after
    while last is not None:
        found = page(bucket, prefix, delimiter, last, limit)
        assert len(found.objects) + len(found.folders) <= limit
        shown += sorted([key for key, _ in found.objects] + found.folders)
        last = found.last
    assert shown == expected(keys, prefix, delimiter, after)


def test_a_page_costs_what_it_shows_and_not_what_the_bucket_holds() -> None:
    bucket = Bucket()
    for number in range(300_000):
        bucket.put(f"run/{number // 1000:04}/{number:08}.out", ENTRY)
    began = time.process_time()
    for shard in range(100):
        bucket.put(f"run/{shard:04}/more.out", ENTRY)
        assert len(page(bucket, f"run/{shard:04}/", "", "", 1000).objects) == 1000
    assert time.process_time() - began < 5.0


def test_a_large_body_goes_to_a_file_that_ends_with_its_blob(tmp_path: Path) -> None:
    small, large = Spool(tmp_path), Spool(tmp_path)
    for spool, times in ((small, 1), (large, 40)):
        for _ in range(times):
            spool.feed(b"x" * (MEMORY_MAX_BYTES // 20))
    in_memory, on_disk = small.finish(), large.finish()
    assert (in_memory.path, on_disk.data) == (None, None)
    whole = Blob(b"x" * on_disk.size)
    assert (on_disk.md5(), on_disk.sha256(), on_disk.crc32()) == (whole.md5(), whole.sha256(), whole.crc32())
    assert on_disk.read(5, 10) == b"x" * 10
    del on_disk, large
    assert list(tmp_path.iterdir()) == []
