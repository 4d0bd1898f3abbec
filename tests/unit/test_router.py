"""The way a payload travels: by its size, by what its line asks for, and for a share by its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.identity import inference_id
from dispatcher.model import InferenceId, RunId, SizeClass, Transport
from dispatcher.router import fits_inline, in_share, route, size_class

ANY = inference_id(RunId("aaaaaaaaaaaaaaaa"), 1)
ids = st.integers(1, 10**6).map(lambda line: inference_id(RunId("aaaaaaaaaaaaaaaa"), line))


@pytest.mark.parametrize(
    ("size", "way"),
    [(0, Transport.S3), (1, Transport.INLINE), (128_000, Transport.INLINE), (128_001, Transport.S3)],
)
def test_one_to_128000_bytes_travel_inline(size: int, way: Transport) -> None:
    assert route(size, None, ANY, share=0.0) is way
    assert fits_inline(size) == (way is Transport.INLINE)


@given(st.integers(0, 10**9), st.sampled_from([Transport.S3, Transport.INLINE]), ids, st.floats(0, 1))
def test_a_job_travels_as_its_line_asks(size: int, wanted: Transport, id: InferenceId, share: float) -> None:
    assert route(size, wanted, id, share=share) is wanted


@given(st.integers(0, 10**9), ids, st.floats(0, 1))
def test_the_same_job_takes_the_same_way_every_time(size: int, id: InferenceId, share: float) -> None:
    assert route(size, None, id, share=share) is route(size, None, id, share=share)


@given(ids, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_jobs(id: InferenceId, one: float, other: float) -> None:
    small, large = sorted([one, other])
    assert in_share(id, large) or not in_share(id, small)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_share_picks_about_that_share(share: float) -> None:
    run = RunId("bbbbbbbbbbbbbbbb")
    picked = sum(route(100, None, inference_id(run, n), share=share) is Transport.S3 for n in range(20_000))
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
