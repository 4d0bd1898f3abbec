"""The way a payload travels: by its size, by what its line asks for, and for a share by its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.identity import share_point
from dispatcher.model import RunId, SizeClass, Transport
from dispatcher.router import fits_inline, route, size_class

points = st.floats(0, 1, exclude_max=True)
sizes = st.integers(0, 10**9)


def way(size_bytes: int, point: float, share: float) -> Transport:
    return route(size_bytes, None, lambda: point, share=share)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, Transport.S3), (1, Transport.INLINE), (128_000, Transport.INLINE), (128_001, Transport.S3)],
)
def test_one_to_128000_bytes_travel_inline(size: int, expected: Transport) -> None:
    assert way(size, 0.0, share=0.0) is expected
    assert fits_inline(size) == (expected is Transport.INLINE)


@given(sizes, st.sampled_from([Transport.S3, Transport.INLINE]), points, st.floats(0, 1))
def test_a_job_travels_as_its_line_asks(size: int, wanted: Transport, point: float, share: float) -> None:
    assert route(size, wanted, lambda: point, share=share) is wanted


@given(points, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_jobs(point: float, one: float, other: float) -> None:
    small, large = sorted([one, other])
    assert way(100, point, large) is Transport.S3 or way(100, point, small) is Transport.INLINE


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_share_picks_about_that_share(share: float) -> None:
    run = RunId("bbbbbbbbbbbbbbbb")
    picked = sum(way(100, share_point(run, line), share) is Transport.S3 for line in range(20_000))
    assert picked / 20_000 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (0, SizeClass.LE_1K),
        (1_024, SizeClass.LE_1K),
        (1_025, SizeClass.LE_4K),
        (4_096, SizeClass.LE_4K),
        (16_384, SizeClass.LE_16K),
        (65_536, SizeClass.LE_64K),
        (65_537, SizeClass.LE_128K),
        (128_000, SizeClass.LE_128K),
        (128_001, SizeClass.GT_128K),
    ],
)
def test_sizes_are_compared_within_classes(size: int, name: SizeClass) -> None:
    assert size_class(size) is name
