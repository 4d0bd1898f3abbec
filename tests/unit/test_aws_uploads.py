"""Slices of files as bodies."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.deadlines import Deadline
from dispatcher.aws.uploads import PayloadGoneError, open_slice
from dispatcher.interfaces import FileSlice


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "payloads"
    path.write_bytes(b"0123456789")
    return path


def test_a_slice_gives_its_own_bytes_and_no_others(file: Path) -> None:
    with open_slice(FileSlice(str(file), 2, 5)) as reader:
        assert reader.read(3) + reader.read() == b"23456"
        assert reader.read(3) == b""


@given(offset=st.integers(-20, 20), whence=st.sampled_from([io.SEEK_SET, io.SEEK_END]))
def test_a_seek_stays_within_the_slice(tmp_path_factory: pytest.TempPathFactory, offset: int, whence: int) -> None:
    path = tmp_path_factory.getbasetemp() / "seek"
    path.write_bytes(b"0123456789")
    with open_slice(FileSlice(str(path), 2, 5)) as reader:
        expected = min(max(offset + (5 if whence == io.SEEK_END else 0), 0), 5)
        assert reader.seek(offset, whence) == reader.tell() == expected
        assert reader.read() == b"23456"[expected:]


def test_an_empty_slice_is_empty(file: Path) -> None:
    with open_slice(FileSlice(str(file), 10, 0)) as reader:
        assert reader.read() == b""


def test_a_slice_that_is_not_there_is_gone(file: Path) -> None:
    for piece in (FileSlice(str(file), 8, 3), FileSlice(str(file) + "x", 0, 1), FileSlice(str(file.parent), 0, 1)):
        with pytest.raises(PayloadGoneError):
            open_slice(piece)


def test_a_pipe_in_the_files_place_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PayloadGoneError):
        open_slice(FileSlice(str(tmp_path / "pipe"), 0, 1))


def test_a_file_cut_while_it_is_read_is_gone(file: Path) -> None:
    with open_slice(FileSlice(str(file), 0, 10)) as reader:
        reader.read(4)
        os.truncate(file, 4)
        with pytest.raises(PayloadGoneError):
            reader.read(4)
        assert reader.gone


def test_a_closed_slice_reads_nothing_and_closes_again(file: Path) -> None:
    reader = open_slice(FileSlice(str(file), 0, 10))
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_a_deadline_grows_with_the_payload() -> None:
    deadline = Deadline(base_seconds=10, bytes_per_second=1_000)
    assert (deadline.seconds(), deadline.seconds(5_000)) == (10, 15)
