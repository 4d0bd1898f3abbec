"""Opening payload files: nothing outside the root, nothing that is no regular file, whatever the name."""

import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.formats.disk import DiskFaultError
from dispatcher.formats.faults import LineError
from dispatcher.formats.opening import measure, open_below
from dispatcher.model import FailureReason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.bin").write_bytes(b"inside")
    (inside / "sub" / "b.bin").write_bytes(b"deeper")
    (inside / "~").write_bytes(b"tilde")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "inner_link").symlink_to("a.bin")
    (inside / "folder_link").symlink_to(tmp_path)
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "fifo")
    return inside


def content(root: Path, relative: str) -> bytes | LineError:
    opened = open_below(str(root), relative)
    if isinstance(opened, LineError):
        return opened
    with os.fdopen(opened, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.bin", b"inside"), ("sub/b.bin", b"deeper"), ("./sub//./b.bin", b"deeper"), ("~", b"tilde")],
)
def test_a_regular_file_below_the_root_is_opened(root: Path, path: str, expected: bytes) -> None:
    assert content(root, path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "./", "/", "..", "../secret", "sub/../../secret", "sub/../a.bin", "/etc/passwd", "//etc/passwd",
        "/proc/self/environ", "/dev/stdin", "a.bin/", "a.bin/.", "a.bin/x", "sub", "sub/", "link", "inner_link",
        "folder_link/secret", "folder_link/root/a.bin", "loop", "loop/x", "fifo", "none", "sub/none", "a.bin\0", "\0",
        "x" * 300, "x/" * 2000, "y" * 5000, "~root/x", "file:///etc/passwd", "\ud800", "..\\secret", "%2e%2e/secret",
        "a.bin\n", "...", ".../secret", "sub/./../../secret",
    ],
)  # fmt: skip
def test_anything_else_is_refused(root: Path, path: str) -> None:
    refused = content(root, path)
    assert isinstance(refused, LineError), refused
    assert refused.reason in {FailureReason.INVALID_FIELD, FailureReason.PAYLOAD_UNREADABLE}
    assert refused.message.isprintable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(["..", ".", "", "/", "sub", "a.bin", "link", "folder_link", "root", "secret", "~", "\0", "é"])
    )
)
def test_no_path_leads_out(root: Path, parts: list[str]) -> None:
    assert content(root, "/".join(parts)) != b"secret"


def test_a_device_and_a_socket_are_refused(root: Path) -> None:
    assert isinstance(content(Path("/dev"), "null"), LineError)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
        assert isinstance(content(root, "s"), LineError)


def test_swapping_names_while_the_walk_runs_does_not_lead_out(root: Path, tmp_path: Path) -> None:
    outside, good, evil = tmp_path / "outside", root / "good", root / "evil"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    good.mkdir()
    (good / "f").write_bytes(b"inside")
    evil.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        spare, target = root / "spare", root / "target"
        while not stop.is_set():
            good.rename(target)
            target.rename(good)
            evil.rename(target)
            target.rename(evil)
        assert not spare.exists()

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = {found if isinstance(found := content(root, "target/f"), bytes) else b"refused" for _ in range(5000)}
    finally:
        stop.set()
        swapper.join()
    assert seen <= {b"inside", b"refused"}


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert content(tmp_path / "alias", "a.bin") == b"inside"


def test_a_root_that_is_not_there_is_not_the_fault_of_a_job(tmp_path: Path) -> None:
    with pytest.raises(DiskFaultError, match="folder of payloads"):
        open_below(str(tmp_path / "none"), "a")


def test_no_descriptor_is_left_open(root: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("no list of open descriptors")
    before = count()
    for path in ("a.bin", "sub/b.bin", "sub/none", "fifo", "folder_link/x", "sub"):
        content(root, path)
        measure(str(root), path)
    assert count() == before


def test_a_file_is_measured(root: Path) -> None:
    assert measure(str(root), "sub/b.bin") == 6
    assert measure(str(root), "a.bin", 6) == 6


def test_a_file_over_the_limit_is_too_large(root: Path) -> None:
    os.truncate(root / "a.bin", 1_000_000_001)
    refused = measure(str(root), "a.bin")
    assert isinstance(refused, LineError)
    assert refused.reason is FailureReason.PAYLOAD_TOO_LARGE
