"""`dispatcher check` hands payloads over as a dispatcher with these settings would, and outlives a client that cannot be had."""

from pathlib import Path
from typing import Any

import pytest

from dispatcher.checks.everything import Report, check_everything
from dispatcher.checks.findings import Finding, Verdict
from dispatcher.checks.selftest import SelfTest
from dispatcher.settings import Settings
from tests.scripted import Heard, answers, aws_environment, scripted_server
from tests.transports import on_both_kinds

PAYLOAD = b"the payload"


async def asked(patch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> tuple[Report, list[Heard]]:
    """A check with its self-test, of a service that refuses everything; and the payloads that it was sent."""
    given = {"endpoint": "e", "staging": "s3://bkt/in", "ledger": str(folder / "ledger.db"), **settings}
    async with scripted_server(answers(403)) as server:
        aws_environment(patch, f"http://127.0.0.1:{server.port}")
        report = await check_everything(Settings(**given), SelfTest(payload=PAYLOAD))
    return report, [heard for heard in server.heard if heard.method == "PUT" or heard.body == PAYLOAD]


def found(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


@on_both_kinds
async def test_payloads_of_a_check_are_sent_by_the_client_that_is_set(
    client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, payloads = await asked(monkeypatch, tmp_path, client=client)
    assert [heard.method for heard in payloads] == ["PUT", "POST", "PUT"]
    # The SDK's HTTP client adds this one header of its own.
    assert {"accept" in heard.headers for heard in payloads} == {client == "sdk"}


async def test_a_check_stages_with_all_that_a_dispatcher_stages_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"staging_tags": ("team=a",), "staging_kms_key": "key", "bucket_owner": "123456789012"}
    _, payloads = await asked(monkeypatch, tmp_path, staged_inputs="lifecycle", **more)
    puts = [heard.headers for heard in payloads if heard.method == "PUT"]
    assert {headers["x-amz-tagging"] for headers in puts} == {"team=a&sagemaker-dispatcher=staged-input"}
    assert {headers["x-amz-server-side-encryption-aws-kms-key-id"] for headers in puts} == {"key"}
    assert {headers["x-amz-expected-bucket-owner"] for headers in puts} == {"123456789012"}


async def test_a_client_that_cannot_be_had_fails_and_hides_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, payloads = await asked(monkeypatch, tmp_path, staging="no-location")
    (client,) = found(report, "client")
    assert (client.verdict, "'no-location' is no s3://" in client.text) == (Verdict.FAILED, True)
    assert client.advice == "set another --staging"
    for check in ("staging", "self-test"):
        assert [finding.verdict for finding in found(report, check)] == [Verdict.NOT_CHECKED]
    for check in ("identity", "URLs", "endpoint e", "outputs", "clock", "SQLite"):
        assert found(report, check), check
    assert payloads == []
