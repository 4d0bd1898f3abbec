"""What an endpoint of the sandbox does with its jobs, in virtual time."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sandbox.blobs import Blob
from dispatcher.sandbox.inference import Endpoint, Job
from dispatcher.sandbox.settings import EndpointSettings


class Bench:
    """An endpoint with a clock of its own; `log` is (time, job, result) of all that ended."""

    def __init__(self, **options: Any) -> None:
        self.stored: dict[str, Blob] = {}
        self.endpoint = Endpoint(
            EndpointSettings(**options), lambda job: self.stored.get(job.input_location or ""), Random(1)
        )
        self.now = 0.0
        self.log: list[tuple[float, str, str]] = []
        self.numbers = 0

    def submit(self, *names: str, ttl: float = 1000.0, timeout: float = 100.0, location: str | None = None) -> None:
        for name in names:
            self.numbers += 1
            self.endpoint.submit(
                Job(
                    number=self.numbers,
                    inference_id=name,
                    payload=Blob(b"x") if location is None else None,
                    input_location=location,
                    content_type=None,
                    expires_at=self.now + ttl,
                    timeout_seconds=timeout,
                    output_location="s3://b/k",
                    failure_location=None,
                )
            )
        self.advance()

    def advance(self) -> None:
        self.log += [(self.now, one.job.inference_id, one.result) for one in self.endpoint.advance(self.now)]

    def until(self, end: float) -> None:
        """Moves on from one time to the next, as the server does."""
        while (at := self.endpoint.next_at()) is not None and at <= end:
            self.now = max(self.now, at)
            self.advance()
        self.now = end
        self.advance()


def test_a_model_that_takes_no_time_ends_at_once() -> None:
    bench = Bench()
    bench.submit("a", "b")
    assert bench.log == [(0.0, "a", "completed"), (0.0, "b", "completed")]
    assert bench.endpoint.next_at() is None


def test_as_many_run_at_once_as_there_are_places() -> None:
    bench = Bench(min_seconds=1.0, instances=2, concurrency_per_instance=1)
    bench.submit("a", "b", "c")
    assert (bench.endpoint.running, bench.endpoint.waiting) == (2, 1)
    bench.until(5.0)
    assert bench.log == [(1.0, "a", "completed"), (1.0, "b", "completed"), (2.0, "c", "completed")]


def test_a_job_that_waits_longer_than_its_ttl_expires_then_and_there() -> None:
    bench = Bench(min_seconds=10.0, concurrency_per_instance=1)
    bench.submit("a")
    bench.submit("b", ttl=3.0)
    bench.submit("c")
    bench.until(20.0)
    assert bench.log == [(3.0, "b", "expired"), (10.0, "a", "completed"), (20.0, "c", "completed")]


def test_a_job_that_runs_longer_than_its_timeout_ends_there() -> None:
    bench = Bench(min_seconds=10.0, concurrency_per_instance=1)
    bench.submit("a", timeout=4.0)
    bench.submit("b")
    bench.until(20.0)
    assert bench.log == [(4.0, "a", "timed_out"), (14.0, "b", "completed")]


def test_an_endpoint_that_sleeps_wakes_when_enough_waits() -> None:
    bench = Bench(asleep=True, wake_backlog=2, wake_seconds=30.0)
    bench.submit("a")
    bench.until(100.0)
    assert bench.log == []
    bench.submit("b")
    bench.until(200.0)
    assert bench.log == [(130.0, "a", "completed"), (130.0, "b", "completed")]


def test_a_backlog_too_small_to_wake_an_endpoint_expires() -> None:
    bench = Bench(asleep=True, wake_backlog=None)
    bench.submit("a", "b", ttl=60.0)
    bench.until(100.0)
    assert bench.log == [(60.0, "a", "expired"), (60.0, "b", "expired")]
    assert (bench.endpoint.waiting, bench.endpoint.next_at()) == (0, None)


def test_a_sleeping_endpoint_can_be_woken_by_its_settings() -> None:
    bench = Bench(asleep=True, wake_backlog=None)
    bench.submit("a")
    bench.endpoint.replace(EndpointSettings())
    bench.advance()
    assert bench.log == [(0.0, "a", "completed")]


def test_a_missing_input_is_found_when_the_job_starts() -> None:
    bench = Bench(min_seconds=1.0, concurrency_per_instance=1)
    bench.submit("a")
    bench.submit("there", "gone", location="s3://b/in")
    bench.stored["s3://b/in"] = Blob(b"x")
    bench.until(1.0)
    bench.stored.clear()
    bench.until(5.0)
    assert bench.log == [(1.0, "a", "completed"), (2.0, "there", "completed"), (2.0, "gone", "input_missing")]


@pytest.mark.parametrize(("option", "result"), [("fail_every", "failed"), ("lose_every", "lost")])
def test_each_nth_inference_goes_wrong(option: str, result: str) -> None:
    bench = Bench(**{option: 3})
    bench.submit(*"abcdef")
    assert [name for _, name, how in bench.log if how == result] == ["c", "f"]


def test_a_delayed_result_takes_no_place() -> None:
    bench = Bench(min_seconds=1.0, concurrency_per_instance=1, delay_every=2, delay_seconds=10.0)
    bench.submit("a", "b", "c")
    bench.until(20.0)
    assert bench.log == [(1.0, "a", "completed"), (3.0, "c", "completed"), (12.0, "b", "completed")]


@given(
    jobs=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 20), st.floats(0.1, 5)), max_size=30),
    options=st.fixed_dictionaries(
        {
            "min_seconds": st.sampled_from([0.0, 0.5, 2.0]),
            "max_seconds": st.sampled_from([0.0, 3.0]),
            "concurrency_per_instance": st.integers(1, 3),
            "fail_every": st.integers(0, 3),
            "delay_every": st.integers(0, 3),
            "delay_seconds": st.sampled_from([0.0, 1.0]),
            "asleep": st.booleans(),
            "wake_backlog": st.sampled_from([None, 1, 5]),
            "wake_seconds": st.sampled_from([0.0, 4.0]),
        }
    ),
)
def test_every_job_ends_exactly_once(jobs: list[tuple[float, float, float]], options: dict[str, Any]) -> None:
    bench = Bench(**options)
    for index, (after, ttl, timeout) in enumerate(jobs):
        bench.until(bench.now + after)
        bench.submit(str(index), ttl=ttl, timeout=timeout)
        assert bench.endpoint.running <= options["concurrency_per_instance"]
    bench.until(bench.now + 1000.0)
    assert sorted(name for _, name, _ in bench.log) == sorted(map(str, range(len(jobs))))
    assert (bench.endpoint.running, bench.endpoint.waiting, bench.endpoint.next_at()) == (0, 0, None)
