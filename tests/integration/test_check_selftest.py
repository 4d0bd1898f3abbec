"""`dispatcher check --self-test`: real jobs, what they teach, and that nothing of them stays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, STAGING, a_sandbox, dispatch
from tests.sandboxes import client

Report = dict[str, Any]
QUESTIONS = (
    *("how an OutputLocation is composed", "FailureLocation", "Body of 128,001 bytes", "Body of 10,000,000 bytes"),
    *("Body and InputLocation", "neither Body nor InputLocation", "one InferenceId twice"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("selftest")


@pytest.fixture(scope="module")
def sandbox(folder: Path) -> Iterator[Sandbox]:
    flat = {"output_layout": "flat", "failure_path": None, "location_scheme": "https"}
    endpoints = {ENDPOINT: {}, "flat": flat, "asleep": {"asleep": True, "wake_backlog": None}, "ill": {"fail_every": 1}}
    with a_sandbox(folder, endpoints={**endpoints, "old": {"inline": False}}) as running:
        yield running


def report_of(folder: Path, sandbox: Sandbox, *flags: object) -> Report:
    ended = dispatch(folder, sandbox, "check", "--self-test", "--json", *flags)
    report: Report = json.loads(ended.out)
    assert ended.status == (0 if report["passed"] else 1), ended.said
    return report


def verdicts(report: Report, name: str) -> list[tuple[str, str]]:
    return [(one["verdict"], one["text"]) for one in report["checks"] if one["check"] == f"self-test {name}"]


def lessons(report: Report, name: str) -> dict[str, str]:
    return {one["question"]: one["answer"] for one in report["learnt"] if one["endpoint"] == name}


def stored(sandbox: Sandbox, bucket: str) -> list[str]:
    with client("s3", sandbox.url) as s3:
        return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.fixture(scope="module")
def good(folder: Path, sandbox: Sandbox) -> Report:
    return report_of(folder, sandbox, "--endpoint", ENDPOINT, "--allow-endpoint", "flat", "--staging", STAGING)


def test_both_paths_are_timed_to_their_results(good: Report) -> None:
    inline, staged = verdicts(good, ENDPOINT)
    assert inline[0] == staged[0] == "ok"
    assert inline[1].startswith("inline: 202 after ")
    assert staged[1].startswith("by S3 (PutObject ")


def test_every_question_has_an_answer_for_every_endpoint(good: Report) -> None:
    assert tuple(lessons(good, ENDPOINT)) == tuple(lessons(good, "flat")) == QUESTIONS


def test_how_a_location_is_composed_is_learnt(good: Report) -> None:
    asked = "how an OutputLocation is composed"
    assert lessons(good, ENDPOINT)[asked] == (
        "<S3OutputPath>/<S3OutputPathExtension>/<Filename>; S3OutputPathExtension honoured, Filename honoured"
    )
    assert lessons(good, "flat")[asked].endswith("S3OutputPathExtension NOT honoured, Filename NOT honoured")


def test_whether_failures_have_a_location_is_learnt(good: Report) -> None:
    assert lessons(good, ENDPOINT)["FailureLocation"].startswith("given")
    assert lessons(good, "flat")["FailureLocation"] == "not given; the endpoint has none configured"


def test_the_texts_of_refusals_are_learnt(good: Report) -> None:
    learnt = lessons(good, ENDPOINT)
    assert learnt["Body of 128,001 bytes"].startswith("status 400, ValidationError: ")
    assert learnt["Body of 10,000,000 bytes"].startswith("status 413")
    assert "Exactly one" in learnt["Body and InputLocation"]
    assert "Exactly one" in learnt["neither Body nor InputLocation"]


def test_what_a_second_submission_does_is_learnt(good: Report) -> None:
    asked = "one InferenceId twice"
    assert lessons(good, ENDPOINT)[asked] == "taken again (202) with the same OutputLocation, and it ran again"
    assert lessons(good, "flat")[asked] == "taken again (202) with another OutputLocation, and it ran again"


def test_nothing_of_it_stays(good: Report, tmp_path: Path) -> None:
    with a_sandbox(tmp_path) as own:
        assert report_of(tmp_path, own, "--endpoint", ENDPOINT, "--staging", STAGING)["passed"]
        assert stored(own, "sandbox-in") == stored(own, "sandbox-out") == []


@pytest.mark.parametrize(
    ("kind", "advice"), [("access_denied", "allow s3:PutObject there"), ("expired_token", "check the credentials")]
)
def test_of_a_put_that_is_refused_the_advice_is_about_the_bucket_or_the_keys(
    kind: str, advice: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    with a_sandbox(tmp_path, faults=[{"operation": "put", "kind": kind}]) as own:
        report = report_of(tmp_path, own, "--endpoint", ENDPOINT, "--staging", STAGING)
    said = [one["advice"] for one in report["checks"] if one["verdict"] == "failed"]
    assert len(said) == 2
    assert all(one.startswith(advice) for one in said)


@pytest.fixture(scope="module")
def bad(folder: Path, sandbox: Sandbox) -> Report:
    (folder / "payload.json").write_text('{"question": "any"}')
    names = [flag for name in ("asleep", "ill", "old") for flag in ("--allow-endpoint", name)]
    flags = (*names, "--self-test-wait", 1, "--self-test-payload", "payload.json", "--staging", STAGING)
    sandbox.patch(faults=[{"operation": "delete", "kind": "access_denied"}])
    try:
        return report_of(folder, sandbox, *flags)
    finally:
        sandbox.patch(faults=[])


def test_a_result_that_does_not_come_in_time_fails(bad: Report) -> None:
    assert [text for verdict, text in verdicts(bad, "asleep") if verdict == "failed" and "no result within" in text]


def test_a_payload_that_the_model_does_not_take_is_told(bad: Report) -> None:
    assert [text for verdict, text in verdicts(bad, "ill") if verdict == "warning" and "a failure" in text]


def test_inline_that_is_refused_is_no_failure_where_jobs_can_travel_by_s3(bad: Report) -> None:
    first, second = verdicts(bad, "old")[:2]
    assert (first[0], first[1].startswith("inline: ValidationError")) == ("warning", True)
    assert second[1].startswith(("by S3", "left behind"))


def test_what_could_not_be_deleted_is_named(bad: Report, sandbox: Sandbox) -> None:
    left = [text for verdict, text in verdicts(bad, "ill") if "left behind" in text]
    assert any("s3://sandbox-out/failures/" in text for text in left)
    assert any("s3://sandbox-in/inputs/" in text for text in left)


def test_a_payload_that_cannot_be_sent_is_a_usage_error(tmp_path: Path) -> None:
    endless = dispatch(tmp_path, None, "check", "--self-test", "--self-test-payload", "/dev/zero")
    assert (endless.status, "no regular file" in endless.err) == (2, True), endless.said
    ended = dispatch(tmp_path, None, "check", "--self-test", "--self-test-payload", "absent.json")
    assert (ended.status, "absent.json" in ended.err) == (2, True), ended.said
