"""The names of a job: the same every time, never another's, and within the service's limits whatever a file is called."""

import hashlib
import re
from base64 import b32encode

from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.identity import (
    RUN_ID_BYTES,
    filename,
    inference_id,
    input_key,
    output_path_extension,
    run_id,
    safe_name,
    share_point,
)
from dispatcher.model import RunId

FILENAME = re.compile(r"(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9\-_.]*")
EXTENSION = re.compile(r"(?!s3:|https:)[a-zA-Z0-9!_.*'()/-]+")
INFERENCE_ID = re.compile(r"\S[\x20-\x7e]*")

runs = st.binary(min_size=RUN_ID_BYTES, max_size=RUN_ID_BYTES).map(run_id)
lines = st.integers(1, 10**9)


def test_a_known_job_keeps_its_name_for_ever() -> None:
    digest = hashlib.sha256(b"16:aaaaaaaaaaaaaaaa1:1").digest()
    assert b32encode(digest).decode().lower().startswith("jpe3bto62acskbpv6dkcokgkyd")
    assert inference_id(RunId("aaaaaaaaaaaaaaaa"), 1) == "jpe3bto62acskbpv6dkcokgkyd"


@given(runs, lines)
def test_a_job_s_name_is_the_base32_of_its_hash(run: RunId, line: int) -> None:
    digest = hashlib.sha256(f"{len(run)}:{run}{len(str(line))}:{line}".encode()).digest()
    assert inference_id(run, line) == b32encode(digest).decode().lower()[:26]


@given(runs, lines)
def test_the_first_four_characters_of_the_name_put_a_job_into_the_share_or_not(run: RunId, line: int) -> None:
    number = 0
    for digit in inference_id(run, line)[:4]:
        number = number * 32 + "abcdefghijklmnopqrstuvwxyz234567".index(digit)
    assert share_point(run, line) == number / 2**20


@given(runs, lines)
def test_names_are_within_the_services_limits(run: RunId, line: int) -> None:
    job = inference_id(run, line)
    assert re.fullmatch(r"[a-z2-7]{26}", job)
    assert INFERENCE_ID.fullmatch(job)
    assert FILENAME.fullmatch(filename(job))
    assert len(filename(job)) == 30


@given(st.text(), runs, st.integers(0, 10**9))
@example("s3://bucket/key", RunId("a" * 16), 0)
@example("https://x", RunId("a" * 16), 0)
@example("../../etc/passwd", RunId("a" * 16), 0)
@example("", RunId("a" * 16), 10**9)
def test_an_extension_is_within_the_services_limits_for_any_file_name(name: str, run: RunId, shard: int) -> None:
    extension = output_path_extension(name, run, shard)
    assert EXTENSION.fullmatch(extension)
    assert len(extension) <= 512
    assert extension.count("/") == 1
    assert extension.endswith(f"-{run}/{shard}")


@given(st.text())
def test_a_safe_name_is_a_plain_folder_name(name: str) -> None:
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", safe)
    assert safe.strip(".") == safe


@given(st.text(alphabet="0123456789:ab", min_size=1, max_size=6), lines, st.text(alphabet="0123456789:ab"), lines)
@example("1", 11, "11", 1)
@example("a1:", 1, "a", 11)
def test_two_jobs_share_a_name_only_if_they_are_the_same(run: str, line: int, other: str, other_line: int) -> None:
    same = (run, line) == (other, other_line)
    assert (inference_id(RunId(run), line) == inference_id(RunId(other), other_line)) == same


@given(st.binary(min_size=RUN_ID_BYTES, max_size=RUN_ID_BYTES), st.binary(min_size=RUN_ID_BYTES, max_size=RUN_ID_BYTES))
def test_run_ids_say_all_their_random_bytes_in_sixteen_plain_characters(one: bytes, other: bytes) -> None:
    assert re.fullmatch(r"[a-z2-7]{16}", run_id(one))
    assert (run_id(one) == run_id(other)) == (one == other)


def test_input_keys_begin_with_two_characters_of_the_hash() -> None:
    job = inference_id(RunId("aaaaaaaaaaaaaaaa"), 1)
    assert input_key(job) == f"{job[:2]}/{job}"


def test_input_keys_spread_over_all_prefixes() -> None:
    keys = {input_key(inference_id(RunId("aaaaaaaaaaaaaaaa"), line))[:2] for line in range(1, 20_001)}
    assert len(keys) == 32 * 32
