"""`dispatcher check` as it is run: every check failing and passing, against the sandbox."""

import json
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, STAGING, Ended, a_sandbox, dispatch
from tests.sandboxes import free_ports

Said = list[tuple[str, str]]
"""Verdict and text of each finding of one check."""

ENDPOINTS = {
    ENDPOINT: {},
    "broken": {"status": "Failed"},
    "busy": {"status": "Updating"},
    "sync": {"asynchronous": False},
    "quiet": {"failure_path": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("check")


@pytest.fixture(scope="module")
def sandbox(folder: Path) -> Iterator[Sandbox]:
    with a_sandbox(folder, endpoints=ENDPOINTS) as running:
        yield running


class Checked:
    """A check that ran: what it found, by the name of the check."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        self.report: dict[str, Any] = json.loads(ended.out)

    def said(self, check: str) -> Said:
        return [(one["verdict"], one["text"]) for one in self.report["checks"] if one["check"] == check]

    def verdicts(self, check: str) -> set[str]:
        return {verdict for verdict, _ in self.said(check)}

    def has(self, check: str, verdict: str, text: str) -> bool:
        return any(said == verdict and text in words for said, words in self.said(check))

    def advice(self, check: str) -> str:
        return " ".join(one["advice"] for one in self.report["checks"] if one["check"] == check)


def checked(folder: Path, sandbox: Sandbox | None, *flags: object, **variables: Any) -> Checked:
    """Runs `check --json`; its exit status is that of its report."""
    ended = dispatch(folder, sandbox, "check", "--json", *flags, **variables)
    found = Checked(ended)
    failed = any(one["verdict"] == "failed" for one in found.report["checks"])
    assert (ended.status, found.report["passed"]) == (int(failed), not failed), ended.said
    return found


def faults(*operations: str, kind: str = "access_denied") -> list[dict[str, str]]:
    return [{"operation": operation, "kind": kind} for operation in operations]


def told(sandbox: Sandbox, folder: Path, *flags: object, **changes: Any) -> Checked:
    """A check while the sandbox is changed so; then it is as before."""
    before = {name: getattr(sandbox.settings, name) for name in changes}
    sandbox.patch(**changes)
    try:
        return checked(folder, sandbox, "--endpoint", ENDPOINT, "--staging", STAGING, *flags)
    finally:
        sandbox.patch(**before)


def role(folder: Path) -> dict[str, str]:
    """Variables of a process whose credentials come from a program, not from the environment."""
    keys = {"Version": 1, "AccessKeyId": "sandbox", "SecretAccessKey": "sandbox-secret"}
    program = folder / "credentials"
    program.write_text(f"#!{sys.executable}\nprint({json.dumps(keys)!r})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = folder / "config"
    config.write_text(f"[default]\nregion = us-east-1\ncredential_process = {program}\n")
    return {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": str(config)}


# --- all is well ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def well(folder: Path, sandbox: Sandbox) -> Checked:
    (port,) = free_ports(1)
    for name in ("inbox", "work"):
        (folder / "spool" / name).mkdir(parents=True)
    config = folder / "dispatcher.toml"
    config.write_text(f'endpoint = "{ENDPOINT}"\nstaging = "{STAGING}"\nretention_seconds = 86400\n')
    flags = ("--config", config, "--spool", "spool", "--listen", f"127.0.0.1:{port}")
    return checked(folder, sandbox, *flags, DISPATCHER_DISK_RESERVE_BYTES="1", **role(folder))


@pytest.mark.parametrize(
    "check",
    [
        *("settings", "SDK", "region", "credentials", "client", "identity", "URLs", f"endpoint {ENDPOINT}", "staging"),
        *("outputs", "clock", "SQLite", "ledger", "spool", "listen"),
    ],
)
def test_where_all_is_well_every_check_says_so(well: Checked, check: str) -> None:
    assert well.verdicts(check) <= {"ok", "warning"}, well.ended.said
    assert "ok" in well.verdicts(check)
    assert well.ended.status == 0


def test_the_settings_in_force_are_told(well: Checked) -> None:
    settings = well.report["settings"]
    assert (settings["endpoint"], settings["spool"], settings["disk_reserve_bytes"]) == (ENDPOINT, "spool", 1)
    assert settings["max_in_flight"] == 64


def test_nothing_is_left_behind_in_the_spool(well: Checked, folder: Path) -> None:
    assert sorted(path.name for path in (folder / "spool").rglob("*")) == ["inbox", "work"]


def test_one_line_for_each_finding_with_what_to_do(folder: Path, sandbox: Sandbox) -> None:
    ended = dispatch(folder, sandbox, "check", "--endpoint", "absent")
    assert ended.status == 1
    lines = ended.out.splitlines()
    assert all(line.startswith(("ok  ", "warning  ", "failed  ", "not checked  ")) for line in lines), ended.said
    assert [line for line in lines if line.startswith("failed       endpoint absent: is not there") and " — " in line]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_unusable_setting_is_named_at_once(tmp_path: Path) -> None:
    flags = ("--staging", "bucket", "--max-in-flight", "0", "--endpoint", "-")
    ended = dispatch(tmp_path, None, "check", *flags, DISPATCHER_NONE="1")
    assert ended.status == 2, ended.said
    assert [
        name for name in ("--staging", "--max-in-flight", "--endpoint", "DISPATCHER_NONE") if name not in ended.err
    ] == []


# --- the client -------------------------------------------------------------------------------------------------------


def test_what_the_lean_client_sends_is_told(well: Checked, many: Checked) -> None:
    assert well.said("client") == [("ok", "lean: InvokeEndpointAsync and PutObject")]
    assert many.said("client") == [("ok", "lean: InvokeEndpointAsync")]


def test_a_client_that_was_chosen_is_no_warning(folder: Path, sandbox: Sandbox) -> None:
    assert told(sandbox, folder, "--client", "sdk").said("client") == [("ok", "the SDK, as set")]


def test_what_the_sdk_must_send_is_warned_of_for_each_operation_by_itself(folder: Path, sandbox: Sandbox) -> None:
    """TLS to S3 alone, with a bundle that is not there."""
    (port,) = free_ports(1)
    variables = {"AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{port}", "AWS_CA_BUNDLE": "no-such-bundle"}
    found = checked(folder, sandbox, "--endpoint", ENDPOINT, "--staging", STAGING, **variables)
    fit, unfit = found.said("client")
    assert fit == ("ok", "lean: InvokeEndpointAsync")
    assert unfit[0] == "warning"
    assert unfit[1].startswith("the SDK sends PutObject itself: the CA bundle cannot be read")
    assert found.verdicts("staging") == {"failed"}


def test_a_proxy_costs_cpu_and_the_check_says_what_to_do(folder: Path, sandbox: Sandbox) -> None:
    (port,) = free_ports(1)
    proxy: dict[str, Any] = {"http_proxy": f"http://127.0.0.1:{port}", "no_proxy": "", "NO_PROXY": ""}
    ended = dispatch(folder, sandbox, "check", "--endpoint", ENDPOINT, "--staging", STAGING, **proxy)
    lines = [line.split(" — ") for line in ended.out.splitlines() if " client: " in line]
    assert [said for said, _ in lines] == [
        f"warning      client: the SDK sends {operation} itself: a proxy is set for it"
        for operation in ("InvokeEndpointAsync", "PutObject")
    ], ended.said
    assert all("ten times the CPU" in advice and "NO_PROXY" in advice for _, advice in lines)


# --- endpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(folder: Path, sandbox: Sandbox) -> Checked:
    names = [flag for name in (*ENDPOINTS, "absent") for flag in ("--allow-endpoint", name)]
    flags = ("--collect-max-bytes", "9")
    return checked(folder, sandbox, *names, *flags)


@pytest.mark.parametrize(
    ("name", "verdict", "text"),
    [
        (ENDPOINT, "ok", "outputs go to s3://sandbox-out/results"),
        ("absent", "failed", "is not there"),
        ("broken", "failed", "Failed (the sandbox was told so)"),
        ("busy", "ok", "serves meanwhile"),
        ("sync", "failed", "not asynchronous"),
        ("quiet", "warning", "no S3FailurePath"),
    ],
)
def test_an_endpoint_is_there_in_service_and_asynchronous(many: Checked, name: str, verdict: str, text: str) -> None:
    assert many.has(f"endpoint {name}", verdict, text), many.ended.said


def test_settings_that_do_not_go_together_are_told(many: Checked) -> None:
    assert many.has("settings", "warning", "collect_max_bytes is set, and collect is off")


def test_static_keys_in_the_environment_are_warned_of(many: Checked) -> None:
    assert many.has("credentials", "warning", "static keys in the environment")


def test_what_is_not_set_is_not_checked(many: Checked) -> None:
    assert many.verdicts("staging") == many.verdicts("spool") == many.verdicts("ledger") == {"not checked"}


def test_without_any_endpoint_no_job_could_go_anywhere(folder: Path, sandbox: Sandbox) -> None:
    assert checked(folder, sandbox).has("endpoint", "failed", "none is set")


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denied(folder: Path, sandbox: Sandbox) -> Checked:
    return told(sandbox, folder, faults=faults("describe", "identity", "put"), bucket_regions={})


def test_without_permission_to_describe_the_endpoint_is_not_checked(denied: Checked) -> None:
    assert denied.has(f"endpoint {ENDPOINT}", "not checked", "no permission for DescribeEndpoint")
    assert "sagemaker:DescribeEndpoint" in denied.advice(f"endpoint {ENDPOINT}")
    assert denied.verdicts("outputs") == {"not checked"}


def test_credentials_that_are_refused_fail(denied: Checked) -> None:
    assert denied.verdicts("identity") == {"failed"}


def test_a_staging_prefix_that_cannot_be_written_to_fails(denied: Checked) -> None:
    assert denied.verdicts("staging") == {"failed"}
    assert "s3:PutObject" in denied.advice("staging")


@pytest.fixture(scope="module")
def hidden(folder: Path, sandbox: Sandbox) -> Checked:
    elsewhere = {"sandbox-in": "eu-west-1"}
    return told(sandbox, folder, faults=faults("delete"), list_denied=True, bucket_regions=elsewhere)


def test_staged_inputs_that_cannot_be_deleted_fail(hidden: Checked) -> None:
    assert hidden.has("staging", "failed", "cannot delete s3://sandbox-in/inputs/dispatcher-check-")


def test_a_bucket_in_another_region_is_warned_of(hidden: Checked) -> None:
    assert hidden.has("staging", "warning", "is in eu-west-1, the endpoints are in us-east-1")


def test_without_list_permission_reading_does_not_show(hidden: Checked) -> None:
    assert hidden.has("outputs", "warning", "s3://sandbox-out/results cannot be listed")
    assert hidden.has("outputs", "not checked", "whether objects in s3://sandbox-out/results can be read")


def test_outputs_that_cannot_be_read_fail(folder: Path, sandbox: Sandbox) -> None:
    found = told(sandbox, folder, faults=faults("head"))
    assert found.has("outputs", "ok", "s3://sandbox-out/results can be listed")
    assert found.has("outputs", "failed", "objects in s3://sandbox-out/results cannot be read")


def test_a_bucket_that_is_not_there_fails(folder: Path, sandbox: Sandbox) -> None:
    endpoint = {ENDPOINT: {"output_path": "s3://no-such-bucket/x", "failure_path": None}}
    found = told(sandbox, folder, "--staging", "s3://no-such-either", endpoints=endpoint)
    assert found.has("outputs", "failed", "NoSuchBucket")
    assert found.has("staging", "failed", "NoSuchBucket")


# --- AWS as a whole ---------------------------------------------------------------------------------------------------


def test_a_clock_that_is_off_is_told_though_every_request_is_refused(folder: Path, sandbox: Sandbox) -> None:
    found = told(sandbox, folder, clock_offset_seconds=1000.0)
    assert found.verdicts("clock") == {"failed"}
    ((_, text),) = found.said("clock")
    assert text.startswith(("off by 999 s (behind", "off by 1000 s (behind", "off by 1001 s (behind"))


def test_a_clock_that_is_a_little_off_is_warned_of(folder: Path, sandbox: Sandbox) -> None:
    assert told(sandbox, folder, clock_offset_seconds=-60.0).verdicts("clock") == {"warning"}


def test_an_aws_that_cannot_be_reached_fails_what_needs_it_alone(folder: Path, sandbox: Sandbox) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}
    found = checked(folder, sandbox, "--endpoint", ENDPOINT, "--staging", STAGING, **variables)
    assert found.has(f"endpoint {ENDPOINT}", "not checked", "not answered as hoped")
    assert found.has("staging", "failed", "cannot put")
    assert found.verdicts("identity") == found.verdicts("clock") == {"not checked"}
    assert found.has("URLs", "ok", url)
    assert found.verdicts("SQLite") == {"ok"}


def test_an_aws_that_hangs_holds_nothing_up(folder: Path, sandbox: Sandbox) -> None:
    found = told(sandbox, folder, "--attempt-seconds", 0.5, faults=faults("any", kind="hang_before"))
    assert found.has(f"endpoint {ENDPOINT}", "not checked", "no answer within the deadline")
    assert found.has("staging", "failed", "no answer within the deadline")
    assert found.verdicts("identity") == found.verdicts("clock") == {"not checked"}


# --- this machine, without AWS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def astray(folder: Path, taken: int) -> Checked:
    """No region, a ledger where nothing can be written, a spool below a file, an address that is taken."""
    (folder / "file").write_text("")
    flags = ("--ledger", "/proc/ledger.db", "--spool", "file/spool", "--listen", f"127.0.0.1:{taken}")
    nowhere = {"AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_EC2_METADATA_DISABLED": "true"}
    return checked(folder, None, *flags, DISPATCHER_DISK_RESERVE_BYTES=str(10**18), HOME=str(folder), **nowhere)


def test_without_a_region_or_credentials_nothing_is_asked_of_aws(astray: Checked) -> None:
    assert astray.has("region", "failed", "AWS_REGION")
    assert astray.has("credentials", "failed", "AWS_ACCESS_KEY_ID")
    assert astray.verdicts("AWS") == {"not checked"}


def test_a_ledger_that_cannot_be_written_fails(astray: Checked) -> None:
    assert astray.has("ledger", "failed", "cannot write in /proc")


def test_a_spool_below_a_file_fails(astray: Checked) -> None:
    assert astray.has("spool", "failed", "is a file")


def test_a_disk_that_is_nearly_full_takes_no_job_files(astray: Checked) -> None:
    assert astray.has("spool", "failed", "less than disk_reserve_bytes")
    assert astray.has("ledger", "warning", "less than disk_reserve_bytes")


def test_an_address_that_is_taken_fails(astray: Checked, taken: int) -> None:
    assert astray.has("listen", "failed", f"127.0.0.1:{taken}")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
def test_a_spool_in_pieces_fails_and_memory_is_warned_of(tmp_path: Path) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is where the tests are")
    (tmp_path / "spool").mkdir()
    flags = ("--spool", "spool", "--ledger", "/dev/shm/none/ledger.db", "--listen", "198.51.100.1:9464")
    with tempfile.TemporaryDirectory(prefix="dispatcher-", dir="/dev/shm") as elsewhere:
        (tmp_path / "spool" / "results").symlink_to(elsewhere)
        found = checked(tmp_path, None, *flags, HOME=str(tmp_path))
    assert found.has("spool", "failed", "on another file system")
    assert found.has("ledger", "warning", "tmpfs")
    assert found.has("listen", "failed", "198.51.100.1:9464")


def test_a_ledger_among_the_job_files_fails(tmp_path: Path) -> None:
    found = checked(tmp_path, None, "--spool", "spool", "--ledger", "spool/inbox/l.jsonl", HOME=str(tmp_path))
    assert found.has("ledger", "failed", "spool/inbox/l.jsonl would lie in spool/inbox")
    assert "spool/ledger.db" in found.advice("ledger")
    assert not (tmp_path / "spool").exists()
