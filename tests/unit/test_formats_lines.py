"""Reading lines: the same numbers, offsets and bytes however the file is cut."""

import hashlib
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.errors import ChangedFileError, UnreadableFileError
from dispatcher.formats.lines import START, Batch, RawLine, TooLong, open_lines, verify_prefix
from dispatcher.model import Cursor

BOM = b"\xef\xbb\xbf"
CAP = 8
PIECES = st.lists(
    st.tuples(
        st.sampled_from(
            [b"", b" ", b"\t \r", b"{}", b"a\rb", b"\xff\x00", b"x" * CAP, b"x" * (CAP + 1), b"y" * 30, b" " * 20]
        ),
        st.sampled_from([b"\n", b"\r\n"]),
    ),
    max_size=12,
)
sharing_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def read_all(
    path: Path, cursor: Cursor = START, max_lines: int = 1000, max_bytes: int = 1 << 30, read_bytes: int = 4
) -> list[Batch]:
    batches: list[Batch] = []
    with open_lines(str(path), cursor, CAP, read_bytes) as reader:
        while not batches or not batches[-1].done:
            batches.append(reader.read_batch(max_lines, max_bytes))
    return batches


def found(batches: list[Batch]) -> list[RawLine | TooLong]:
    entries: list[RawLine | TooLong] = []
    for batch in batches:
        entries += batch.lines
        entries += batch.too_long
    return sorted(entries, key=lambda entry: entry.number)


def expected(pieces: list[tuple[bytes, bytes]], start: int) -> list[RawLine | TooLong]:
    entries: list[RawLine | TooLong] = []
    for number, (text, terminator) in enumerate(pieces, 1):
        length = len(text) - (terminator == b"\n" and text.endswith(b"\r"))
        if length > CAP:
            entries.append(TooLong(number, start, length))
        elif text.strip():
            entries.append(RawLine(number, start, text[:length]))
        start += len(text) + len(terminator)
    return entries


@sharing_a_folder
@given(
    pieces=PIECES,
    tail=st.sampled_from([b"", b"{}", b"z" * 20, b" ", b"x\r"]),
    bom=st.booleans(),
    max_lines=st.integers(1, 5),
    max_bytes=st.integers(1, 60),
    read_bytes=st.integers(1, 40),
)
def test_any_lines_with_any_terminators_in_any_batches_and_reads_are_the_same(
    tmp_path: Path,
    pieces: list[tuple[bytes, bytes]],
    tail: bytes,
    bom: bool,
    max_lines: int,
    max_bytes: int,
    read_bytes: int,
) -> None:
    whole = (BOM if bom else b"") + b"".join(text + end for text, end in pieces) + tail
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(whole)
    batches = read_all(path, START, max_lines, max_bytes, read_bytes)
    assert found(batches) == expected([*pieces, (tail, b"")], 3 if bom else 0)
    assert batches[-1].cursor == Cursor(len(whole), len(pieces) + bool(tail), hashlib.sha256(whole).hexdigest())
    assert sum(batch.blank for batch in batches) == batches[-1].cursor.line - len(found(batches))


@pytest.mark.parametrize("read_bytes", range(1, 40))
def test_a_line_of_just_the_longest_length_is_taken_wherever_a_read_ends(tmp_path: Path, read_bytes: int) -> None:
    pieces = [(b"x" * CAP, b"\r\n"), (b"y" * (CAP + 1), b"\r\n"), (b"z" * CAP, b"\n")]
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"".join(text + end for text, end in pieces))
    assert found(read_all(path, read_bytes=read_bytes)) == expected(pieces, 0)


@sharing_a_folder
@given(pieces=PIECES, bom=st.booleans())
def test_going_on_at_any_cursor_is_the_same_as_one_pass(
    tmp_path: Path, pieces: list[tuple[bytes, bytes]], bom: bool
) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes((BOM if bom else b"") + b"".join(text + end for text, end in pieces))
    one_pass = read_all(path, START, max_lines=1)
    for done, batch in enumerate(one_pass, 1):
        assert verify_prefix(str(path), batch.cursor)
        rest = read_all(path, batch.cursor)
        assert found(one_pass[:done]) + found(rest) == found(one_pass)
        assert rest[-1].cursor == one_pass[-1].cursor


@pytest.mark.parametrize("content", [b"", BOM, b"\n\n", b"  \r\n"])
def test_a_file_without_lines_is_read_to_its_end_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(content)
    (batch,) = read_all(path)
    assert batch.lines == []
    assert batch.done
    assert batch.cursor.offset == len(content)


def test_a_bom_is_no_bom_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"a\n" + BOM + b"b")
    assert [line.data for line in read_all(path)[0].lines] == [b"a", BOM + b"b"]


def test_lines_that_straddle_reads_are_whole(tmp_path: Path) -> None:
    lines = [str(n).encode() * (n % 700) or b"-" for n in range(3000)]
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    with open_lines(str(path)) as reader:
        assert [line.data for line in reader.read_batch(10_000, 1 << 30).lines] == lines


def test_a_huge_line_is_never_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    with path.open("wb") as file:
        file.write(b"a\n")
        file.truncate(200_000_000)  # a sparse line of zeros
        file.seek(0, 2)
        file.write(b"\r\nb\n")
    tracemalloc.start()
    with open_lines(str(path), START, 1_000_000) as reader:
        batch = reader.read_batch(10, 1 << 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.too_long == [TooLong(2, 2, 200_000_000 - 2)]
    assert [line.number for line in batch.lines] == [1, 3]
    assert peak < 8_000_000


def test_a_changed_prefix_is_found(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"one\ntwo\n")
    cursor = read_all(path, START, max_lines=1)[0].cursor
    path.write_bytes(b"ONE\ntwo\n")
    assert not verify_prefix(str(path), cursor)
    with pytest.raises(ChangedFileError, match="changed"):
        open_lines(str(path), cursor)


def test_a_file_that_became_shorter_is_found(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"one\ntwo\n")
    cursor = read_all(path)[-1].cursor
    path.write_bytes(b"one\n")
    assert not verify_prefix(str(path), cursor)


def test_an_empty_cursor_fits_any_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"one\n")
    assert verify_prefix(str(path), Cursor(0, 0, ""))
    assert read_all(path, Cursor(0, 0, "")) == read_all(path)


def test_a_file_that_is_not_there_or_no_file_is_said_to_be_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot read"):
        open_lines(str(tmp_path / "none"))
    with open_lines(str(tmp_path)) as reader, pytest.raises(UnreadableFileError, match="cannot read"):
        reader.read_batch(1, 1)
