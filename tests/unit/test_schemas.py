"""The schemas and the sample in `deploy/` are those of the code, and agree with what the code takes."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from shutil import which
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dispatcher.errors import UsageError
from dispatcher.formats.faults import LineError
from dispatcher.formats.joblines import LineRules, decode
from dispatcher.formats.rawlines import RawJob
from dispatcher.schemas.__main__ import KINDS, main
from dispatcher.schemas.joblines import FIELDS, job_line_schema
from dispatcher.schemas.sample import SET, sample
from dispatcher.schemas.settings import settings_schema
from dispatcher.settings import Settings, describe, load

ROOT = Path(__file__).parents[2]
JOB_LINE = Draft202012Validator(job_line_schema())
SETTINGS = Draft202012Validator(settings_schema())
RULES = LineRules(any_endpoint=True, staging=True)

GOOD = (
    '{"payload": null}',
    '{"payload": {"a": [1, 2]}, "id": "a b", "metadata": null}',
    '{"payload": 1, "payload_path": null, "endpoint": null, "request_ttl_seconds": null}',
    '{"payload_base64": "aGk=", "transport": "s3"}',
    '{"payload_path": "a/..b/c.png", "accept": "image/png, */*"}',
    '{"input_location": "s3://bucket/a key", "transport": null}',
    '{"payload": 1, "request_ttl_seconds": 60, "invocation_timeout_seconds": 3600, "custom_attributes": "a=b"}',
    '{"payload": 1, "endpoint": "a-b--c"}',
    '{"payload": 1, "request_ttl_seconds": 60.0, "invocation_timeout_seconds": 6e1}',
)
BAD = (
    "{}",
    "[]",
    "1",
    '{"payload_base64": null}',
    '{"payload": 1, "payload_path": "a"}',
    '{"payload": null, "input_location": "s3://bucket/key"}',
    '{"payload": 1, "input_location": "s3://bucket/key", "transport": "s3"}',
    '{"input_location": "s3://bucket/key", "transport": "s3"}',
    '{"input_location": "https://bucket/key"}',
    '{"input_location": "s3://bucket/"}',
    '{"input_location": "s3://bucket/key "}',
    '{"payload": 1, "id": ""}',
    '{"payload": 1, "id": 7}',
    '{"payload": 1, "id": "a\\nb"}',
    f'{{"payload": 1, "id": "{"x" * 257}"}}',
    '{"payload": 1, "endpoint": "-a"}',
    f'{{"payload": 1, "endpoint": "{"x" * 64}"}}',
    '{"payload": 1, "content_type": ""}',
    '{"payload": 1, "content_type": " text/plain"}',
    '{"payload": 1, "accept": "\u00e4"}',
    '{"payload": 1, "request_ttl_seconds": 59}',
    '{"payload": 1, "request_ttl_seconds": 21601}',
    '{"payload": 1, "request_ttl_seconds": "60"}',
    '{"payload": 1, "request_ttl_seconds": 60.5}',
    '{"payload_base64": "aGk=\\n"}',
    '{"payload": 1, "endpoint": "a\\n"}',
    '{"payload": 1, "accept": "text/csv\\n"}',
    '{"input_location": "s3://bucket/key\\n"}',
    '{"payload": 1, "request_ttl_seconds": true}',
    '{"payload": 1, "invocation_timeout_seconds": 0}',
    '{"payload": 1, "transport": "fast"}',
    '{"payload": 1, "unknown": 1}',
    '{"payload_base64": "aGk"}',
    '{"payload_base64": "a Gk="}',
    '{"payload_path": ""}',
    '{"payload_path": "/etc/passwd"}',
    '{"payload_path": "a/../b"}',
    '{"payload_path": ".."}',
    '{"payload_path": "a\\u0000b"}',
)


def readme_lines() -> list[str]:
    """The job lines that the README shows."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if '"payload' in line]


def takes(line: str) -> bool:
    """Whether the dispatcher takes the line."""
    return not isinstance(decode(line.encode(), RULES), LineError)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_files_in_deploy_are_what_the_code_writes(kind: str) -> None:
    name, text = KINDS[kind]
    assert (ROOT / "deploy" / name).read_text("utf-8") == text(), "run: python -m dispatcher.schemas --write deploy"


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["job-line"]).output == KINDS["job-line"][1]()
    assert runner.invoke(main, ["--write", str(tmp_path)]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {name for name, _ in KINDS.values()}
    assert runner.invoke(main, []).exit_code == 2


@pytest.mark.parametrize("schema", [job_line_schema(), settings_schema()], ids=["job line", "settings"])
def test_the_schemas_are_schemas(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert all(said.get("description") for said in schema["properties"].values())


def patterns(said: Any) -> list[str]:
    """Every pattern of a schema."""
    if isinstance(said, list):
        return [one for each in said for one in patterns(each)]
    if not isinstance(said, dict):
        return []
    own = [said["pattern"]] if isinstance(said.get("pattern"), str) else []
    return own + [one for each in said.values() for one in patterns(each)]


PATTERNS = sorted({*patterns(job_line_schema()), *patterns(settings_schema())})
PYTHON_ONLY = re.compile(r"\\[AZaGN]|\(\?(?:P|#|[aiLmsux-]+[:)]|\()|\(\?>|[*+?}]\+")
"""What ECMAScript does not have, or reads as something else."""
TEXTS_TO_MATCH = (
    *(
        "a",
        "a-b",
        "-a",
        "a\n",
        "\n",
        "aGk=",
        "aGk",
        "aGk=\n",
        "text/plain",
        " x",
        "a/b",
        "/a",
        "../a",
        "a/..",
        "a/..\n",
        "..",
    ),
    *(
        "s3://bucket/key",
        "s3://bucket/key\n",
        "s3://bucket",
        "s3://bucket/a\nb",
        "s3://b",
        "123456789012",
        "123456789012\n",
    ),
    *(
        "k=v",
        "k=v\n",
        "k",
        "127.0.0.1:9464",
        "[::1]:0",
        "::1:80",
        "host",
        "host:65536",
        "host:80\n",
        "ä",
        "s3://bucket/a\rb",
    ),
)


def test_no_pattern_has_what_only_python_has() -> None:
    assert len(PATTERNS) >= 10
    assert [one for one in PATTERNS if PYTHON_ONLY.search(one)] == []
    assert PYTHON_ONLY.search(r"^a\Z"), "the test would see one"
    # An end that also stands before a last newline, and a dot, mean different things in the two.
    assert [
        one for one in PATTERNS if "$" in one.replace(r"$(?!\n)", "") or re.search(r"(?<![\\[a-z0-9 -])\.", one)
    ] == []


@pytest.mark.skipif(which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("flags", ["", "u"])
def test_ecmascript_reads_every_pattern_as_python_does(flags: str) -> None:
    script = (
        "const [flags, patterns, texts] = JSON.parse(process.argv[1]);"
        "const matched = patterns.map(p => texts.map(t => new RegExp(p, flags).test(t)));"
        "console.log(JSON.stringify(matched));"
    )
    given_all = json.dumps([flags, PATTERNS, TEXTS_TO_MATCH])
    said = subprocess.run(["node", "-e", script, given_all], capture_output=True, check=True, timeout=30).stdout
    assert json.loads(said) == [[bool(re.search(one, text)) for text in TEXTS_TO_MATCH] for one in PATTERNS]


# --- job lines --------------------------------------------------------------------------------------------------------


def test_every_field_of_a_line_is_in_the_schema() -> None:
    assert set(FIELDS) == set(RawJob.__struct_fields__) == set(job_line_schema()["properties"])


@pytest.mark.parametrize("line", [*GOOD, *readme_lines()])
def test_a_good_line_is_valid_and_taken(line: str) -> None:
    assert [error.message for error in JOB_LINE.iter_errors(json.loads(line))] == []
    assert takes(line)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_invalid_and_rejected(line: str) -> None:
    assert not JOB_LINE.is_valid(json.loads(line))
    assert not takes(line)


def test_the_readme_shows_lines() -> None:
    assert len(readme_lines()) >= 2


TEXTS = st.sampled_from(
    ["", "a", "a/b", "s3://b/k", "s3://b/", "text/plain", " x", "..", "/a", "aGk=", "aG", "-", "inline", "s3", "x" * 70]
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 30_000), TEXTS, st.just([]), st.just({}))


@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), VALUES, max_size=4))
def test_schema_and_code_agree(line: dict[str, Any]) -> None:
    assert JOB_LINE.is_valid(line) == takes(json.dumps(line))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_defaults_are_valid_settings() -> None:
    given_values = {
        name: value for name, value in json.loads(msgspec.json.encode(Settings())).items() if value is not None
    }
    assert [error.message for error in SETTINGS.iter_errors(given_values)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint", "-"),
        ("staging", "bucket"),
        ("max_in_flight", 0),
        ("max_in_flight", "many"),
        ("comparison_share", 1.5),
        ("staged_inputs", "burn"),
        ("bucket_owner", "me"),
        ("listen", "9464"),
        ("max_in_flight", "12"),
        ("collect", 1),
        ("staging_tags", ["no"]),
        ("no_such", 1),
    ],
)
def test_a_bad_setting_is_invalid_and_refused(name: str, value: Any) -> None:
    assert not SETTINGS.is_valid({name: value})
    with pytest.raises(UsageError):
        load({}, {}, {name: value})


@pytest.mark.parametrize(("name", "value"), [("max_in_flight", 12.0), ("scan_seconds", 2), ("listen", "[::1]:0")])
def test_a_good_setting_is_valid_and_taken(name: str, value: Any) -> None:
    assert SETTINGS.is_valid({name: value})
    assert getattr(load({}, {}, {name: value}), name) == value


def test_every_setting_has_a_unit_a_reason_and_a_value_to_show() -> None:
    for setting in describe():
        assert setting.unit, setting.name
        assert setting.reason, setting.name
        assert (getattr(Settings(), setting.name) in {None, ()}) == (setting.example is not None), setting.name


def test_the_sample_is_valid_as_it_stands() -> None:
    given_values = tomllib.loads(sample())
    assert set(given_values) == set(SET)
    assert SETTINGS.is_valid(given_values)
    assert load({}, {}, given_values).endpoint == "my-endpoint"


def test_the_sample_shows_every_setting_with_its_default() -> None:
    uncommented = re.sub(r"^# (?=\w+ = )", "", sample(), flags=re.MULTILINE)
    shown = tomllib.loads(uncommented)
    assert list(shown) == list(Settings.__struct_fields__)
    assert SETTINGS.is_valid(shown)
    settings = load({}, {}, shown)
    for name in Settings.__struct_fields__:
        if getattr(Settings(), name) not in {None, ()}:
            assert getattr(settings, name) == getattr(Settings(), name), name
