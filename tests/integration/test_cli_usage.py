"""The command line as a stranger meets it: help, mistakes, and what the exit status says of them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ENDPOINT, a_sandbox, dispatch, numbered, run, started
from tests.sandboxes import eventually

COMMANDS = ("demo", "run", "validate", "status", "replay", "sandbox")


def test_help_names_every_command_and_exit_status(tmp_path: Path) -> None:
    ended = dispatch(tmp_path, None, "--help")
    assert ended.status == 0, ended.said
    for command in COMMANDS:
        assert f"\n  {command} " in ended.out
    for status in ("0", "1", "2", "3", "4", "5", "130"):
        assert f"\n    {status} " in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    ended = dispatch(tmp_path, None, command, "-h")
    assert ended.status == 0, ended.said
    assert ended.out.startswith(f"Usage: python -m dispatcher {command}")
    assert ended.err == ""


def test_the_version_is_told(tmp_path: Path) -> None:
    ended = dispatch(tmp_path, None, "--version")
    assert ended.status == 0, ended.said
    assert ended.out.startswith("dispatcher, version ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run",), "FILE"),
        (("run", "jobs.jsonl"), "--endpoint NAME"),
        (("run", "jobs.jsonl", "--no-such-flag"), "--no-such-flag"),
        (("run", "jobs.jsonl", "--endpoint", ENDPOINT, "--retention-seconds", "60"), "--retention-seconds"),
        (("ran", "jobs.jsonl"), "ran"),
        (("run", "absent.jsonl", "--endpoint", ENDPOINT), "absent.jsonl"),
        (("run", ".", "--endpoint", ENDPOINT, "--output", "out"), "is a folder"),
        (("run", "jobs.jsonl", "jobs.jsonl", "--endpoint", ENDPOINT, "--output", "out"), "more than once"),
        (("run", "jobs.jsonl", "in/jobs.jsonl", "--endpoint", ENDPOINT, "--output", "out"), "are named jobs.jsonl"),
        (("run", "jobs.jsonl", "other.jsonl", "--endpoint", ENDPOINT), "--output"),
        (("run", "jobs.jsonl", "--endpoint", ENDPOINT, "--listen", "nowhere"), "HOST:PORT"),
        (("validate", "absent.jsonl"), "absent.jsonl"),
        (("status",), "which ledger"),
        (("status", "jobs.jsonl"), "there is no ledger"),
        (("replay", "jobs.jsonl"), "there is no ledger"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_ends_with_2(arguments: tuple[str, ...], word: str, tmp_path: Path) -> None:
    numbered(1).write(tmp_path / "jobs.jsonl")
    keys: dict[str, Any] = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    ended = dispatch(tmp_path, None, *arguments, **keys)
    assert ended.status == 2, ended.said
    assert word in ended.err, ended.said
    assert not (tmp_path / "absent.jsonl.results").exists()


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    flags = (
        "--endpoint",
        "-bad-",
        "--max-in-flight",
        "many",
        "--staging",
        "bucket/prefix",
        "--request-ttl-seconds",
        "5",
    )
    variables: dict[str, Any] = {
        "DISPATCHER_NO_SUCH": "1",
        "DISPATCHER_LOG_LEVEL": "loud",
        "DISPATCHER_STAGED_INPUTS": "burn",
    }
    ended = dispatch(tmp_path, None, "run", "jobs.jsonl", *flags, **variables)
    assert ended.status == 2, ended.said
    named = ("--endpoint", "--max-in-flight", "--staging", "--request-ttl-seconds", *variables)
    assert [name for name in named if name not in ended.err] == []


def test_settings_come_from_the_environment_and_flags_win(tmp_path: Path) -> None:
    jobs = numbered(3)
    jobs.job(b"1", b'"endpoint":"second"')
    jobs.write(tmp_path / "jobs.jsonl")
    variables = {
        "DISPATCHER_ENDPOINT": "from-the-environment",
        "DISPATCHER_ALLOW_ENDPOINT": "second, third",
        "DISPATCHER_OUTPUT": "out",
        "DISPATCHER_LEDGER": "elsewhere/ledger.db",
        "DISPATCHER_COLLECT": "true",
    }
    with a_sandbox(tmp_path, endpoints={ENDPOINT: {}, "second": {}}) as sandbox:
        ended = run(tmp_path, sandbox, "jobs.jsonl", "--no-collect", **variables)
        assert ended.status == 0, ended.said
        assert {event["endpoint"] for event in sandbox.record()} == {ENDPOINT, "second"}
    assert (tmp_path / "elsewhere" / "ledger.db").exists()
    assert "output" not in (tmp_path / "out" / "results.jsonl").read_text().replace("output_location", "")


def test_without_a_region_or_credentials_nothing_begins(tmp_path: Path) -> None:
    numbered(1).write(tmp_path / "jobs.jsonl")
    nowhere = {
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    no_region = run(tmp_path, None, "jobs.jsonl", **nowhere)
    assert (no_region.status, "AWS_REGION" in no_region.err) == (2, True), no_region.said
    no_keys = run(tmp_path, None, "jobs.jsonl", **nowhere, AWS_REGION="eu-central-1")
    assert (no_keys.status, "AWS_ACCESS_KEY_ID" in no_keys.err) == (2, True), no_keys.said
    no_profile = run(tmp_path, None, "jobs.jsonl", **nowhere, AWS_PROFILE="absent")
    assert (no_profile.status, "absent" in no_profile.err) == (2, True), no_profile.said


def test_the_sandbox_says_where_it_is_and_ends_when_told(tmp_path: Path) -> None:
    with started(tmp_path, None, "sandbox", "--record", "record.jsonl") as running:
        said = json.loads(eventually(running.out.read_text, 20.0))
        assert said["url"].startswith("http://127.0.0.1:")
        running.signal(signal.SIGTERM)
        assert running.end(10.0).status == 0


def test_the_demo_shows_the_comparison(tmp_path: Path) -> None:
    ended = dispatch(tmp_path, None, "demo", "--jobs", "2", "--keep", "kept")
    assert ended.status == 0, ended.said
    assert "le_1k" in ended.out
    assert "PutObject requests saved" in ended.out
    assert len(list((tmp_path / "kept" / "results").glob("*/summary.json"))) == 3
