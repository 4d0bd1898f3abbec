"""The small parts of the sandbox: aws-chunked, locations, faults, settings."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import UsageError
from dispatcher.sandbox import locations
from dispatcher.sandbox.chunked import ChunkedDecoder, ChunkedError
from dispatcher.sandbox.faults import Faults
from dispatcher.sandbox.settings import EndpointSettings, FaultKind, Operation, Settings, load, patched


@given(data=st.binary(min_size=1, max_size=300), step=st.integers(1, 80), cut=st.integers(1, 70))
def test_a_chunked_body_is_decoded_however_it_is_cut(data: bytes, step: int, cut: int) -> None:
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    coded += b"0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"
    decoder = ChunkedDecoder()
    decoded = [piece for at in range(0, len(coded), cut) for piece in decoder.feed(coded[at : at + cut])]
    assert b"".join(decoded) == data
    assert decoder.done
    assert decoder.trailers == {b"x-amz-checksum-crc32": b"AAAA"}


@pytest.mark.parametrize("coded", [b"x\r\n", b"1\r\nab\r\n", b"-1\r\n", b"0\r\nno value\r\n", b"1" * 5000])
def test_a_body_that_is_not_chunked_is_found_out(coded: bytes) -> None:
    with pytest.raises(ChunkedError):
        ChunkedDecoder().feed(coded)


@pytest.mark.parametrize(
    ("extension", "filename", "output", "failure"),
    [
        ("run/1", "a.out", "results/run/1/a.out", "failures/run/1/a-error.out"),
        (None, "a.out", "results/a.out", "failures/a-error.out"),
        ("run", "a", "results/run/a", "failures/run/a-error.out"),
    ],
)
def test_locations_join_path_extension_and_name(extension: str, filename: str, output: str, failure: str) -> None:
    found = locations.choose(EndpointSettings(), "us-east-1", extension, filename)
    assert (found.output, found.failure) == (f"s3://sandbox-out/{output}", f"s3://sandbox-out/{failure}")


def test_a_flat_layout_ignores_what_the_request_chose() -> None:
    found = locations.choose(EndpointSettings(output_layout="flat", failure_path=None), "us-east-1", "run", "mine.out")
    assert found.failure is None
    assert "mine" not in found.output
    assert found.output.endswith(".out")


def test_https_locations_lead_to_the_same_object() -> None:
    options = EndpointSettings(location_scheme="https")
    found = locations.choose(options, "eu-west-1", "run", "a.out")
    assert found.output == "https://sandbox-out.s3.eu-west-1.amazonaws.com/results/run/a.out"
    assert locations.parse(found.output) == ("sandbox-out", "results/run/a.out")
    assert locations.parse("ftp://x/y") == ("", "")


def drawn(times: int, **rule: Any) -> list[bool]:
    faults = Faults(load({"faults": [{"operation": "invoke", "kind": "throttle", **rule}]}))
    return [faults.draw(Operation.INVOKE, 0.0) is not None for _ in range(times)]


def test_a_fault_hits_by_count_after_some_that_pass() -> None:
    assert drawn(5, skip=1, count=2) == [False, True, True, False, False]


def test_a_fault_hits_by_rate_and_alike_for_one_seed() -> None:
    hits = drawn(1000, rate=0.2)
    assert 150 < sum(hits) < 250
    assert hits == drawn(1000, rate=0.2)


def test_a_fault_hits_its_own_operation_alone() -> None:
    faults = Faults(load({"faults": [{"operation": "put", "kind": "throttle"}]}))
    assert faults.draw(Operation.INVOKE, 0.0) is None
    assert faults.draw(Operation.PUT, 0.0) is not None


def test_a_token_bucket_lets_its_rate_through() -> None:
    faults = Faults(load({"rate_limits": {"invoke": {"per_second": 10, "burst": 5}}}))
    clock = [at / 100 for at in range(201)]
    passed = [faults.draw(Operation.INVOKE, now) is None for now in clock]
    assert sum(passed) in range(23, 27)


def test_settings_come_from_a_dict_a_text_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"time_scale": 0.5}')
    assert load({"time_scale": 0.5}) == load('{"time_scale": 0.5}') == load(path) == Settings(time_scale=0.5)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"no_such": 1}, "no_such"),
        ({"endpoints": {"a": {"no_such": 1}}}, "no_such"),
        ({"faults": [{"operation": "invoke", "kind": "nonsense"}]}, "nonsense"),
        ({"time_scale": "fast"}, "time_scale"),
    ],
)
def test_settings_that_are_not_known_are_refused_by_name(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load(raw)


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match="not JSON"):
        load("{")


def test_a_patch_changes_what_it_names_and_nothing_else() -> None:
    before = load({"endpoints": {"a": {"instances": 3}, "b": {}}})
    after = patched(before, {"endpoints": {"a": {"failure_path": None}, "b": None}, "list_denied": True})
    assert after == load({"endpoints": {"a": {"instances": 3, "failure_path": None}}, "list_denied": True})
    with pytest.raises(UsageError, match="port"):
        patched(before, {"port": 1})


def test_settings_survive_their_own_json() -> None:
    settings = load(
        {"faults": [{"operation": "any", "kind": FaultKind.SLOW}], "rate_limits": {"invoke": {"per_second": 1}}}
    )
    assert patched(settings, json.loads("{}")) == settings
