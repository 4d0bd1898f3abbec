"""Names in the spool: which files are taken, and what becomes of a name that is odd or long."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import RunId
from dispatcher.sources.names import (
    COPY_SUFFIX,
    NAME_MAX_BYTES,
    clean,
    is_job_file,
    is_part,
    is_title,
    marked,
    parse_copy,
    parse_taken,
    part_name,
    taken_name,
)

RUN = RunId("abcdefghij234567")
BYTES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0x2F, 0x00} & {*name} and name[0] != 0x2E)
SUFFIXES = st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.b.jsonl.zst", "-rf.jsonl", "a b.jsonl", "é.jsonl"])
def test_a_job_file_is_known_by_its_suffix(name: str) -> None:
    assert is_job_file(name)


@pytest.mark.parametrize(
    "name", [".jsonl", ".a.jsonl", "a.jsonl.tmp", "a.json", "a.JSONL", "a.gz", "a.jsonl.bz2", "jsonl", "a.jsonl.", ""]
)
def test_every_other_name_is_left_alone(name: str) -> None:
    assert not is_job_file(name)


def test_an_ordinary_name_stays_as_it_is() -> None:
    for name in ("jobs.jsonl", "2025 年.jsonl.gz", "a-b_c~d%.jsonl.zst"):
        assert clean(name) == name


def test_bytes_that_are_no_text_and_control_characters_stand_as_escapes() -> None:
    assert clean(os.fsdecode(b"caf\xe9.jsonl")) == "caf%e9.jsonl"
    assert clean("two\nlines\x1b[31m.jsonl") == "two%0alines%1b[31m.jsonl"


@given(stem=BYTES, suffix=SUFFIXES)
def test_a_clean_name_is_a_job_file_that_fits_in_every_form(stem: bytes, suffix: str) -> None:
    name = clean(os.fsdecode(stem) + suffix)
    assert name.endswith(suffix)
    assert len(name.encode()) <= NAME_MAX_BYTES
    assert clean(name) == name
    assert not any(ord(character) < 32 for character in name)
    taken = taken_name(RUN, name)
    assert parse_taken(taken) == (RUN, name)
    assert parse_copy(taken) is None
    for form in (taken + COPY_SUFFIX, taken + COPY_SUFFIX + ".part"):
        assert len(form.encode()) <= 255
        assert parse_copy(form) == RUN
        assert parse_taken(form) is None
    assert is_title(name)
    assert is_title(marked(name, RUN))


def test_long_names_that_begin_alike_stay_two() -> None:
    one, two = (clean("é" * 120 + tail + ".jsonl.gz") for tail in ("1", "2"))
    assert one != two
    assert one.endswith(".jsonl.gz")


def test_a_title_is_marked_once() -> None:
    assert marked(marked("a.jsonl", RUN), RUN) == f"a.jsonl-{RUN}"


@pytest.mark.parametrize(
    "name", ["a.jsonl", f"{RUN}-a.txt", f"{RUN}a.jsonl", "SHORT-a.jsonl", f"{RUN}-.jsonl.lines", "spill"]
)
def test_other_files_in_work_are_told_apart(name: str) -> None:
    assert parse_taken(name) is None


def test_results_in_the_making_are_told_apart() -> None:
    assert is_part(part_name(RUN))
    assert not is_part("a.jsonl")
    assert not is_part(".hidden.part")
