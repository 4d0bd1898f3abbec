"""Spooling: whole and durable, or not there at all."""

import gzip
import io
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import DiskFaultError
from dispatcher.formats.spool import is_compressed, spool_compressed, spool_stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLENTY = 1 << 30
TEXT = b"".join(b'{"payload": %d}\n' % random.Random(n).getrandbits(64) for n in range(300))
KINDS: list[tuple[str, Callable[[bytes], bytes]]] = [(".gz", gzip.compress), (".zst", zstd.compress)]
both_kinds = pytest.mark.parametrize(("suffix", "pack"), KINDS)


def spool(folder: Path, suffix: str, packed: bytes, budget_bytes: int = PLENTY) -> bytes:
    source, destination = folder / f"jobs.jsonl{suffix}", folder / "spooled"
    source.write_bytes(packed)
    size = spool_compressed(str(source), str(destination), budget_bytes)
    assert size == destination.stat().st_size
    return destination.read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@both_kinds
@pytest.mark.parametrize("text", [TEXT, b""])
def test_an_archive_is_uncompressed(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], text: bytes) -> None:
    assert spool(tmp_path, suffix, pack(text)) == text
    assert names(tmp_path) == {f"jobs.jsonl{suffix}", "spooled"}


@both_kinds
def test_several_members_are_one_file(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    assert spool(tmp_path, suffix, pack(TEXT) + pack(b"") + pack(b"more\n")) == TEXT + b"more\n"


@both_kinds
def test_an_archive_cut_off_anywhere_leaves_nothing(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(TEXT)
    for end in {*range(0, len(packed), 97), *range(12), len(packed) - 1}:
        with pytest.raises(UnreadableFileError, match=r"jobs\.jsonl.*write it again"):
            spool(tmp_path, suffix, packed[:end])
        assert names(tmp_path) == {f"jobs.jsonl{suffix}"}


@both_kinds
def test_a_damaged_archive_leaves_nothing_wrong(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(TEXT)
    for at in range(0, len(packed), 211):
        damaged = packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :]
        try:
            spool(tmp_path, suffix, damaged)
        except UnreadableFileError:
            assert names(tmp_path) == {f"jobs.jsonl{suffix}"}
        (tmp_path / "spooled").unlink(missing_ok=True)


@both_kinds
def test_a_bomb_stops_at_the_budget(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(50_000_000))
    with pytest.raises(UnreadableFileError, match="more than the 1000000 bytes"):
        spool(tmp_path, suffix, bomb, 1_000_000)
    assert names(tmp_path) == {f"jobs.jsonl{suffix}"}


def test_a_zstd_frame_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 28,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    packed = compressor.compress(b"x" * 1000) + compressor.flush()
    with pytest.raises(UnreadableFileError, match="damaged"):
        spool(tmp_path, ".zst", packed)


def test_exactly_the_budget_fits(tmp_path: Path) -> None:
    assert spool(tmp_path, ".gz", gzip.compress(TEXT, mtime=0), len(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", b"{}"),
        ("a.jsonl.gz", zstd.compress(b"{}")),
        ("a.jsonl.zst", gzip.compress(b"{}", mtime=0)),
        ("a.jsonl.gz", b""),
        ("a.jsonl", gzip.compress(b"{}", mtime=0)),
        ("a.jsonl", zstd.compress(b"{}")),
    ],
)
def test_a_name_that_belies_the_bytes_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFileError, match=name):
        is_compressed(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [("a.jsonl", b"{}", False), ("a.jsonl", b"", False), ("A.GZ", gzip.compress(b"", mtime=0), True)],
)
def test_a_kind_is_known_by_name_and_bytes(tmp_path: Path, name: str, content: bytes, answer: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_compressed(str(tmp_path / name)) is answer


def test_a_stream_is_copied_to_its_end(tmp_path: Path) -> None:
    assert spool_stream(io.BytesIO(TEXT), "standard input", str(tmp_path / "spooled"), PLENTY) == len(TEXT)
    assert (tmp_path / "spooled").read_bytes() == TEXT


def test_a_stream_over_the_budget_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="standard input"):
        spool_stream(io.BytesIO(TEXT), "standard input", str(tmp_path / "spooled"), 100)
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_a_disk_fault(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="cannot write"):
        spool_stream(io.BytesIO(TEXT), "-", str(tmp_path / "none" / "spooled"), PLENTY)


def test_a_link_that_someone_planted_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "spooled.part").symlink_to(tmp_path / "precious")
    with pytest.raises(DiskFaultError, match="cannot write"):
        spool_stream(io.BytesIO(TEXT), "-", str(tmp_path / "spooled"), PLENTY)
    assert (tmp_path / "precious").read_bytes() == b"keep"


@pytest.fixture
def small_files_only() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files_only")
def test_a_disk_that_takes_no_more_is_a_disk_fault_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="cannot write"):
        spool_stream(io.BytesIO(bytes(1_000_000)), "-", str(tmp_path / "spooled"), PLENTY)
    assert names(tmp_path) == set()


class BrokenPipe(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


def test_a_stream_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="to its end"):
        spool_stream(BrokenPipe(), "standard input", str(tmp_path / "spooled"), PLENTY)
    assert names(tmp_path) == set()


def test_an_archive_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot read"):
        spool_compressed(str(tmp_path / "none.gz"), str(tmp_path / "spooled"), PLENTY)


def test_the_spooled_file_is_for_its_owner_only(tmp_path: Path) -> None:
    spool_stream(io.BytesIO(TEXT), "-", str(tmp_path / "spooled"), PLENTY)
    assert os.stat(tmp_path / "spooled").st_mode & 0o777 == 0o600  # noqa: PTH116


class UnwantedError(Exception):
    """What a check raises."""


@both_kinds
def test_a_copy_that_is_not_wanted_any_more_ends_at_the_next_chunk_and_leaves_nothing(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    source, part = tmp_path / f"jobs.jsonl{suffix}", tmp_path / "spooled.part"
    source.write_bytes(pack(bytes(4_000_000)))
    written: list[int] = []

    def check() -> None:
        written.append(part.stat().st_size)
        if len(written) == 3:
            raise UnwantedError

    with pytest.raises(UnwantedError):
        spool_compressed(str(source), str(tmp_path / "spooled"), PLENTY, check)
    assert written[-1] < 1_000_000
    assert names(tmp_path) == {source.name}


def test_a_stream_is_left_where_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    def check() -> None:
        raise UnwantedError

    stream = io.BytesIO(bytes(4_000_000))
    with pytest.raises(UnwantedError):
        spool_stream(stream, "standard input", str(tmp_path / "spooled"), PLENTY, check)
    assert stream.tell() < 1_000_000
    assert names(tmp_path) == set()
