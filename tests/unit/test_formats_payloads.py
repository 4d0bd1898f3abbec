"""What is sent for a job: the very bytes that were accepted, in memory or on disk, or nothing."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.errors import UnreadableFileError
from dispatcher.formats.disk import DiskFaultError
from dispatcher.formats.faults import LineError
from dispatcher.formats.joblines import JobLine, LineRules, decode
from dispatcher.formats.linesource import open_source
from dispatcher.formats.payloads import Elsewhere, InMemory, Loaded, OnDisk, Place, discard, empty_spill, load
from dispatcher.model import EndpointName, FailureReason

RULES = LineRules(endpoint=EndpointName("e"), staging=True)
LARGE = "x" * 200_000


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("payloads", "spill"):
        (tmp_path / name).mkdir()
    return Place(
        data_path=str(tmp_path / "data"), payload_root=str(tmp_path / "payloads"), spill_folder=str(tmp_path / "spill")
    )


def loaded(members: dict[str, Any], place: Place, size_bytes: int | None = None) -> Loaded | LineError:
    before, line = b"first line\n", json.dumps(members).encode()
    Path(place.data_path).write_bytes(before + line + b"\n")
    job = decode(line, RULES)
    assert isinstance(job, JobLine), job
    expected = size_bytes if size_bytes is not None else job.size_bytes
    return load(job, line, len(before), expected or 0, place)


def on_disk(found: Loaded | LineError) -> bytes:
    assert isinstance(found, OnDisk), found
    with Path(found.slice.path).open("rb") as file:
        file.seek(found.slice.offset)
        data = file.read(found.slice.length)
    assert len(data) == found.slice.length
    return data


def is_gone(found: Loaded | LineError) -> bool:
    return isinstance(found, LineError) and found.reason is FailureReason.PAYLOAD_GONE


def test_a_small_payload_is_in_memory(place: Place) -> None:
    assert loaded({"payload": [1, "a"]}, place) == InMemory(b'[1, "a"]')
    assert loaded({"payload_base64": "AAE="}, place) == InMemory(b"\0\1")
    assert loaded({"payload_base64": ""}, place) == InMemory(b"")


def test_a_location_stays_elsewhere(place: Place) -> None:
    assert loaded({"input_location": "s3://b/k"}, place) == Elsewhere("s3://b/k")


def test_a_large_literal_is_a_slice_of_the_job_file(place: Place) -> None:
    found = loaded({"id": "a", "metadata": {"payload": LARGE}, "payload": LARGE}, place)
    assert on_disk(found) == json.dumps(LARGE).encode()
    assert isinstance(found, OnDisk)
    assert found.slice.path == place.data_path
    assert not found.is_temporary


def test_large_base64_is_spilled_and_can_be_discarded(place: Place) -> None:
    data = os.urandom(150_000)
    found = loaded({"payload_base64": base64.b64encode(data).decode()}, place)
    assert on_disk(found) == data
    assert isinstance(found, OnDisk)
    discard(found)
    discard(found)
    assert list(Path(place.spill_folder).iterdir()) == []


def test_discarding_what_is_not_temporary_leaves_it(place: Place) -> None:
    found = loaded({"payload": LARGE}, place)
    assert isinstance(found, OnDisk)
    discard(found)
    assert Path(place.data_path).exists()


def test_what_an_earlier_process_spilled_is_deleted_and_nothing_else(place: Place) -> None:
    loaded({"payload_base64": base64.b64encode(bytes(150_000)).decode()}, place)
    (Path(place.spill_folder) / "mine").touch()
    empty_spill(place.spill_folder)
    assert [path.name for path in Path(place.spill_folder).iterdir()] == ["mine"]


def test_a_spill_folder_that_is_not_there_is_a_disk_fault(place: Place) -> None:
    Path(place.spill_folder).rmdir()
    with pytest.raises(DiskFaultError, match="spill"):
        loaded({"payload_base64": base64.b64encode(bytes(150_000)).decode()}, place)


@pytest.mark.parametrize("size_bytes", [0, 1, 128_000])
def test_a_small_payload_file_is_read(place: Place, size_bytes: int) -> None:
    (Path(place.payload_root) / "f").write_bytes(bytes(size_bytes))
    assert loaded({"payload_path": "./f"}, place, size_bytes) == InMemory(bytes(size_bytes))


def test_a_large_payload_file_is_a_slice(place: Place) -> None:
    (Path(place.payload_root) / "f").write_bytes(LARGE.encode())
    assert on_disk(loaded({"payload_path": "f"}, place, len(LARGE))) == LARGE.encode()


@pytest.mark.parametrize("now", [None, 0, 9, 11, 200_000])
def test_a_payload_file_that_changed_or_vanished_is_gone(place: Place, now: int | None) -> None:
    if now is not None:
        (Path(place.payload_root) / "f").write_bytes(bytes(now))
    assert is_gone(loaded({"payload_path": "f"}, place, 10))


def test_a_large_payload_file_that_grew_is_gone(place: Place) -> None:
    (Path(place.payload_root) / "f").write_bytes(LARGE.encode())
    assert is_gone(loaded({"payload_path": "f"}, place, len(LARGE) - 1))


def test_a_payload_file_that_became_a_symlink_is_gone(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (Path(place.payload_root) / "f").symlink_to(tmp_path / "secret")
    assert is_gone(loaded({"payload_path": "f"}, place, 6))


def test_a_line_whose_payload_has_another_size_is_gone(place: Place) -> None:
    assert is_gone(loaded({"payload": "abc"}, place, 6))


# --- reading lines again ---------------------------------------------------------------------------------------------


def test_lines_are_read_by_offset_and_length(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"one\ntwo\nthree\n")
    with open_source(str(tmp_path / "data")) as source:
        assert source.read(4, 3) == b"two"
        assert source.read_many([(8, 5), (0, 3), (4, 3)]) == [b"three", b"one", b"two"]
        assert source.read_many([]) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 1_500_000)), max_size=8), st.booleans())
def test_any_spans_are_read_as_they_stand(tmp_path: Path, spans: list[tuple[int, int]], in_order: bool) -> None:
    path = tmp_path / "data"
    if not path.exists():
        path.write_bytes(bytes(range(251)) * 8000)
    data = path.read_bytes()
    with open_source(str(path)) as source:
        found = source.read_many(sorted(spans) if in_order else spans)
    for (offset, length), line in zip(sorted(spans) if in_order else spans, found, strict=True):
        if offset + length > len(data) and length:
            assert isinstance(line, LineError)
            assert line.reason is FailureReason.PAYLOAD_GONE
        else:
            assert line == data[offset : offset + length]


def test_a_source_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot read"):
        open_source(str(tmp_path / "none"))


def test_a_source_that_cannot_be_read_is_a_disk_fault(tmp_path: Path) -> None:
    with open_source(str(tmp_path)) as source, pytest.raises(DiskFaultError, match="cannot read"):
        source.read(0, 1)
