"""What checks make of what they see, and that none of them can hold up the others."""

import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.admin.server import metrics_server
from dispatcher.aws.probes import Answer, Sdk
from dispatcher.checks import account, lessons
from dispatcher.checks.disk import OLDEST_SQLITE, listen, payloads, spool, sqlite_version, system_finding
from dispatcher.checks.everything import Report
from dispatcher.checks.findings import Finding, Findings, Verdict, bounded, failed, in_thread, ok, unknown, warning
from dispatcher.checks.lessons import composition, duplicate, refusal
from dispatcher.checks.mounts import Mount, Place, holding, parse, place
from dispatcher.checks.oddities import odd_settings
from dispatcher.interfaces import Fault, FaultKind
from dispatcher.model import FailureReason, Receipt
from dispatcher.settings import Settings

MOUNTINFO = """\
22 28 0:20 / / rw,relatime shared:7 - overlay overlay rw,lowerdir=/a
23 22 8:1 / /data rw,noatime - ext4 /dev/sda1 rw
24 23 0:44 / /data/in\\040box rw shared:9 master:1 - nfs4 server:/x rw
25 23 8:2 / /data/over rw - ext4 /dev/sdb1 rw
26 25 0:45 / /data/over rw - fuse.sshfs host:/y rw
nonsense
"""

# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "overlay"),
        ("/data", "ext4"),
        ("/data/ledger", "ext4"),
        ("/database", "overlay"),
        ("/data/in box/jobs", "nfs4"),
        ("/data/over/x", "fuse.sshfs"),
    ],
)
def test_a_path_lies_on_its_deepest_and_last_mount(path: str, kind: str) -> None:
    mount = holding(Path(path), parse(MOUNTINFO.splitlines()))
    assert mount is not None
    assert mount.kind == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.s3fs", "fuseblk", "9p", "ceph", "lustre"])
def test_a_ledger_on_a_network_file_system_is_refused_and_a_spool_warned_of(kind: str) -> None:
    mount = Mount("/mnt", kind)
    assert system_finding("ledger", Path("/mnt/x"), mount).verdict is Verdict.FAILED
    assert system_finding("spool", Path("/mnt/x"), mount).verdict is Verdict.WARNING


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "ramfs"])
def test_a_file_system_that_passes_away_is_warned_of(kind: str) -> None:
    assert system_finding("ledger", Path("/x"), Mount("/", kind)).verdict is Verdict.WARNING


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs"])
def test_a_local_disk_is_well(kind: str) -> None:
    assert place(kind) is Place.LOCAL
    assert system_finding("ledger", Path("/x"), Mount("/", kind)).verdict is Verdict.OK


# --- versions, clocks, settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "verdict"), [((3, 36, 9), Verdict.FAILED), (OLDEST_SQLITE, Verdict.OK)])
def test_sqlite_must_be_new_enough(version: tuple[int, ...], verdict: Verdict) -> None:
    assert sqlite_version(version).verdict is verdict


@pytest.mark.parametrize(("knows", "verdict"), [(True, Verdict.OK), (False, Verdict.FAILED)])
def test_the_sdk_must_know_inline_payloads(knows: bool, verdict: Verdict) -> None:
    assert account.sdk_finding(Sdk("3", "1", "3", knows)).verdict is verdict


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [
        ([], Verdict.NOT_CHECKED),
        ([0.4, 55.0], Verdict.OK),
        ([-31.0], Verdict.WARNING),
        ([300.0, 241.0], Verdict.FAILED),
        ([-299.0], Verdict.FAILED),
    ],
)
def test_the_clock_is_judged_by_the_best_answer(ahead: list[float], verdict: Verdict) -> None:
    (finding,) = account.clock(ahead)
    assert finding.verdict is verdict


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        (Settings(), Verdict.OK),
        (Settings(bucket_owner="123456789012"), Verdict.WARNING),
        (Settings(collect_max_bytes=1), Verdict.WARNING),
        (Settings(spool="spool"), Verdict.WARNING),
        (Settings(spool="spool", retention_seconds=1.0), Verdict.OK),
    ],
)
def test_settings_that_do_not_go_together(settings: Settings, verdict: Verdict) -> None:
    assert {finding.verdict for finding in odd_settings(settings)} == {verdict}


def test_a_folder_of_payloads_that_is_none_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in ("/nope", str(tmp_path / "file")):
        (finding,) = payloads(Settings(payload_root=root))
        assert (finding.verdict, root in finding.text) == (Verdict.FAILED, True)
    assert [one.verdict for one in payloads(Settings(payload_root=str(tmp_path)))] == [Verdict.OK]


def test_a_folder_that_is_there_is_not_said_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = [finding.text for finding in spool(Settings(spool="sp"))]
    assert "sp can be made in" in said[0]
    (tmp_path / "sp").mkdir()
    said = [finding.text for finding in spool(Settings(spool="sp"))]
    assert said[0] == "sp is there and can be written to"


async def test_an_address_where_a_dispatcher_runs_is_no_failure() -> None:
    async with metrics_server("127.0.0.1:0", CollectorRegistry(), lambda: False) as address:
        (finding,) = await in_thread(listen, Settings(listen=address))
    assert (finding.verdict, "a dispatcher runs there" in finding.text) == (Verdict.WARNING, True)


# --- none holds up the others -----------------------------------------------------------------------------------------


async def test_a_check_that_hangs_fails_when_its_time_is_up() -> None:
    leave = threading.Event()

    def hang() -> Findings:
        leave.wait()
        return [ok("disk", "after all")]

    (finding,) = await bounded("disk", in_thread(hang), seconds=0.05)
    leave.set()
    assert (finding.check, finding.verdict) == ("disk", Verdict.FAILED)
    assert "no answer within 0.05 s" in finding.text


async def test_a_check_that_breaks_fails_alone() -> None:
    def break_down() -> Findings:
        raise ZeroDivisionError("oh")

    (finding,) = await bounded("disk", in_thread(break_down))
    assert (finding.verdict, "ZeroDivisionError: oh" in finding.text) == (Verdict.FAILED, True)


@pytest.mark.parametrize(
    ("finding", "passed"),
    [(ok("x", "y"), True), (warning("x", "y", "z"), True), (unknown("x", "y"), True), (failed("x", "y", "z"), False)],
    ids=lambda value: getattr(value, "verdict", ""),
)
def test_only_a_failure_fails(finding: Finding, passed: bool) -> None:
    assert Report([ok("a", "b"), finding], []).passed is passed


# --- what a self-test learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "composed"),
    [
        (
            "s3://out/base/e/1/f.out",
            "<S3OutputPath>/<S3OutputPathExtension>/<Filename>; S3OutputPathExtension honoured",
        ),
        (
            "https://out.s3.eu-west-1.amazonaws.com/base/f.out.out",
            "<S3OutputPath>/<Filename>.out; S3OutputPathExtension NOT",
        ),
        ("s3://out/base/123.out", "<S3OutputPath>/123.out; S3OutputPathExtension NOT honoured, Filename NOT honoured"),
        ("s3://else/e/1/f.out", "not below S3OutputPath: s3://else/<S3OutputPathExtension>/<Filename>"),
    ],
)
def test_the_composition_of_a_location_is_told(location: str, composed: str) -> None:
    assert composition(Receipt(location, None), "s3://out/base/", "e/1", "f.out").startswith(composed)


def test_keys_that_were_not_asked_for_are_not_said_to_be_refused() -> None:
    assert composition(Receipt("s3://out/x.out", None), None, None, None) == (
        "s3://out/x.out; S3OutputPathExtension not asked for, Filename not asked for"
    )


def test_a_failure_location_that_is_given_unasked_is_told() -> None:
    told = lessons.failure(Receipt("s3://a/b", "s3://a/c"), None, known=True)
    assert told == "given; the endpoint has none configured"


def test_a_bad_request_that_is_taken_is_told_loudly() -> None:
    fault = Fault(kind=FaultKind.REFUSED, reason=FailureReason.VALIDATION_ERROR, code="ValidationError", message="no")
    refused = Answer(fault=fault, status=400, data={}, seconds=0.1, ahead_seconds=None)
    taken = Answer(fault=None, status=202, data={}, seconds=0.1, ahead_seconds=None)
    assert refusal(refused) == "status 400, ValidationError: no"
    assert refusal(taken).startswith("TAKEN: status 202")


@pytest.mark.parametrize(("again", "word"), [(True, "ran again"), (False, "no second run"), (None, "does not show")])
def test_a_second_submission_is_told(again: bool | None, word: str) -> None:
    assert word in duplicate(same_location=True, again=again)
