"""The service with wrong settings, files that cannot be read, a part that dies, and as the first process of its machine."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, Jobs, accepted, audit, dispatch, numbered, rows
from tests.sandboxes import eventually
from tests.services import LOAD, SLOW, Service, Spool, asked, audit_all, finish, receipts, serving, status

# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_wrong_setting_of_file_and_environment_is_named_at_once_and_nothing_is_touched(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('spool = "spool"\nendpoint = "no such/name"\nmax_in_flight = "many"\nno_such_key = 1\n')
    Spool(tmp_path / "spool").drop("a.jsonl", numbered(1))
    wrong: dict[str, Any] = {
        "DISPATCHER_STAGING": "no-bucket",
        "DISPATCHER_SCAN_SECONDS": "-1",
        "DISPATCHER_NO_SUCH": "1",
    }
    ended = dispatch(tmp_path, sandbox, "serve", "--config", config, **wrong)
    assert ended.status == 2, ended.said
    named = ("endpoint", "max_in_flight", "no_such_key", *wrong)
    assert [name for name in named if name not in ended.err] == [], ended.said
    assert [path.name for path in (tmp_path / "spool").rglob("*")] == ["inbox", "a.jsonl"]


def test_a_service_without_folder_and_endpoint_is_told_both_at_once(tmp_path: Path) -> None:
    both = dispatch(tmp_path, None, "serve")
    assert both.status == 2, both.said
    assert "--spool DIR" in both.err
    assert "--endpoint" in both.err
    no_endpoint = dispatch(tmp_path, None, "serve", "--spool", "spool")
    assert no_endpoint.status == 2, no_endpoint.said
    assert "--spool" not in no_endpoint.err
    assert not (tmp_path / "spool").exists()


AMONG_JOB_FILES = (
    "spool/inbox/l.jsonl",
    "spool/work/l.db",
    "spool/done/l.db",
    "spool/failed/below/l.db",
    "spool/results/l.db",
    "link/l.db",
    "link/../work/l.db",
    "spool/../l.link",
    "spool/inbox/out.link",
)


@pytest.mark.parametrize("ledger", AMONG_JOB_FILES)
def test_a_ledger_among_the_job_files_is_refused_before_anything_is_made(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "spool" / "inbox").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "spool" / "inbox")
    (tmp_path / "l.link").symlink_to("spool/inbox/l.jsonl")
    (tmp_path / "spool" / "inbox" / "out.link").symlink_to(tmp_path / "l.db")
    before = sorted((tmp_path / "spool").rglob("*"))
    for given in (ledger, str(tmp_path / ledger)):
        ended = dispatch(tmp_path, None, "serve", "--spool", "spool", "--endpoint", ENDPOINT, "--ledger", given)
        assert ended.status == 2, ended.said
        assert f"the ledger {given} would lie in {tmp_path}/spool/" in ended.err
        assert f"name another place with --ledger, or leave it out, for {tmp_path}/spool/ledger.db" in ended.err
    assert sorted((tmp_path / "spool").rglob("*")) == before
    assert not list(tmp_path.glob("l.db*"))


@pytest.mark.parametrize("ledger", ["spool/l.db", "spool/inbox.db", "inbox/l.db"])
def test_a_ledger_beside_the_job_files_is_taken(ledger: str, tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "inbox").mkdir()
    with serving(tmp_path, sandbox, *LOAD, "--ledger", tmp_path / ledger) as service:
        service.spool.drop("a.jsonl", numbered(2))
        finish(service, sandbox, {"a.jsonl": numbered(2)})
    assert (tmp_path / ledger).exists()


# --- files ------------------------------------------------------------------------------------------------------------


def obeying_permissions() -> tuple[str, ...]:
    """What to run a program by so that it is refused a file that it may not read, even where the tests are run by root."""
    if os.geteuid():
        return ()
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def test_a_file_that_may_not_be_read_goes_to_failed_and_the_others_are_done(tmp_path: Path, sandbox: Sandbox) -> None:
    files = {"before.jsonl": numbered(3), "beside.jsonl": numbered(4)}
    spool = Spool(tmp_path / "spool")
    for name, jobs in {**files, "locked.jsonl": numbered(5)}.items():
        spool.drop(name, jobs)
    (spool.inbox / "locked.jsonl").chmod(0)
    with serving(tmp_path, sandbox, *LOAD, before=obeying_permissions()) as service:
        spool.until_finished("locked.jsonl", into="failed")
        spool.until_finished(*files)
        service.stop()
    assert "permission" in spool.summary("locked.jsonl")["error"]["message"].lower()
    (said,) = [event for event in service.events() if event["event"].startswith("job file cannot be read;")]
    assert said["name"] == "locked.jsonl"
    assert audit_all(files, spool, sandbox).keys() == files.keys()


def test_what_is_no_text_is_rejected_line_by_line(tmp_path: Path, sandbox: Sandbox) -> None:
    garbage = bytes(range(256)) * 64
    odd = Jobs()
    odd.reject(b'{"payload":"\xff\xfe"}')
    odd.job(b"1")
    odd.reject(b"\x00\x00")
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("garbage.jsonl", garbage)
        service.spool.drop("garbage.jsonl.gz", garbage)
        service.spool.drop("odd.jsonl", odd)
        service.spool.until_finished("garbage.jsonl", "odd.jsonl")
        service.spool.until_finished("garbage.jsonl.gz", into="failed")
        service.stop()
    assert audit(odd, service.spool.results("odd.jsonl"), sandbox).states() == {"succeeded": 1}
    summary = service.spool.summary("garbage.jsonl")
    assert (summary["accepted"], summary["lines"]) == (0, summary["rejected"])
    errors = rows(service.spool.results("garbage.jsonl") / "errors.jsonl")
    assert {row["status"] for row in errors} == {"rejected"}
    assert summary["rejected"] == len(errors) > 0


def test_what_is_no_file_is_left_alone_and_odd_names_are_taken(tmp_path: Path, sandbox: Sandbox) -> None:
    spool = Spool(tmp_path / "spool")
    for name in ("line\nbreak.jsonl", f"{'x' * 249}.jsonl", "ünïcode 🙂.jsonl"):
        spool.drop("tmp", numbered(1))
        (spool.inbox / "tmp").rename(spool.inbox / name)
    spool.drop("tmp", numbered(1))
    os.rename(os.fsencode(spool.inbox / "tmp"), os.fsencode(spool.inbox) + b"/\xff\xfe.jsonl")  # noqa: PTH104
    (spool.inbox / "folder.jsonl").mkdir()
    (spool.inbox / "symlink.jsonl").symlink_to(tmp_path / "record.jsonl")
    os.mkfifo(spool.inbox / "fifo.jsonl")
    with socket.socket(socket.AF_UNIX) as bound, serving(tmp_path, sandbox, *LOAD) as service:
        bound.bind(os.path.relpath(spool.inbox / "socket.jsonl"))
        eventually(lambda: len(spool.names("done")) == 4, 20.0)
        spool.drop("plain.jsonl", numbered(1))
        spool.until_finished("plain.jsonl")
        service.stop()
    assert spool.names("inbox") == ["fifo.jsonl", "folder.jsonl", "socket.jsonl", "symlink.jsonl"]
    assert spool.names("results") == spool.names("done")
    assert all(spool.summary(title)["succeeded"] == 1 for title in spool.names("results"))


def test_a_file_that_is_replaced_or_taken_away_while_it_settles_is_read_as_it_is_in_the_end(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with serving(tmp_path, sandbox, *LOAD, "--settle-seconds", "3") as service:
        for jobs in (20, 15, 10, 3):
            service.spool.drop("gone.jsonl", numbered(jobs))
            service.spool.drop("replaced.jsonl", numbered(jobs))
            time.sleep(0.3)  # a writer's pace: each of them is seen by a scan
        (service.spool.inbox / "gone.jsonl").unlink()
        finish(service, sandbox, {"replaced.jsonl": numbered(3)})
    assert service.spool.names("results") == ["replaced.jsonl"]
    assert [event for event in service.events() if event["level"] == "error"] == []


# --- a job file that is changed after it was taken --------------------------------------------------------------------


def held(service: Service, name: str) -> Path:
    """The job file of this name, where it lies while it is dispatched."""
    (path,) = [path for path in (service.spool.path / "work").iterdir() if path.name.endswith(f"-{name}")]
    return path


def test_of_a_file_that_was_written_on_what_was_read_is_sent_and_the_rest_is_told(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(100)
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("copied.jsonl", jobs)
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        with held(service, "copied.jsonl").open("ab") as late:
            late.write(b'{"payload":1}\n')
        spool.drop("other.jsonl", jobs)
        spool.until_finished("other.jsonl")
        spool.until_finished("copied.jsonl", into="failed")
        service.stop()
    books = audit_all({"copied.jsonl": jobs, "other.jsonl": jobs}, spool, sandbox)
    assert all(one.states() == {"succeeded": 100} and one.repeated == 0 for one in books.values())
    assert (spool.names("done"), spool.names("failed")) == (["other.jsonl"], ["copied.jsonl"])
    error = spool.summary("copied.jsonl")["error"]
    assert error["code"] == "changed_file"
    assert "14 bytes came after it had been read" in error["message"]
    assert [event["name"] for event in service.events() if event["level"] == "error"] == ["copied.jsonl"]


def test_a_file_that_is_only_touched_is_gone_on_with(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(100)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        held(service, "a.jsonl").touch()
        finish(service, sandbox, {"a.jsonl": jobs})
    assert service.spool.names("done") == ["a.jsonl"]


@pytest.mark.parametrize("change", ["overwritten", "cut", "deleted"])
def test_what_was_not_sent_of_a_file_that_was_changed_ends_dead_and_other_files_go_on(
    change: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[SLOW])
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("changed.jsonl", numbered(400))
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        file = held(service, "changed.jsonl")
        if change == "overwritten":
            file.write_bytes(file.read_bytes().replace(b"payload", b"PAYLOAD"))
        elif change == "cut":
            os.truncate(file, 10)
        else:
            file.unlink()
        spool.drop("other.jsonl", numbered(20))
        spool.until_finished("other.jsonl")
        eventually(lambda: "changed.jsonl" in spool.names("results"), 30.0)
        service.stop()
    summary = spool.summary("changed.jsonl")
    assert summary["error"]["code"] == "changed_file"
    assert summary["dead"] > 100
    assert summary["dead"] + summary["succeeded"] == 400
    assert (spool.names("done"), "changed.jsonl" in spool.names("failed")) == (["other.jsonl"], change != "deleted")


def test_a_file_that_was_overwritten_before_any_of_it_was_sent_is_not_sent(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        asked(service.spool, "lane", endpoint=ENDPOINT, held=True, limits={})
        service.spool.drop("a.jsonl", numbered(400))
        eventually(lambda: [file["accepted"] for file in asked(service.spool, "status")["files"]] == [400], 20.0)
        file = held(service, "a.jsonl")
        before = file.stat()
        file.write_bytes(file.read_bytes().replace(b"payload", b"PAYLOAD"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as what preserves times does
        asked(service.spool, "lane", endpoint=ENDPOINT, held=False, limits={})
        service.spool.until_finished("a.jsonl", into="failed")
        service.stop()
    assert accepted(sandbox) == 0
    assert service.spool.summary("a.jsonl")["dead"] == 400


def test_a_file_that_was_exchanged_while_nobody_looked_is_not_sent(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(faults=[SLOW])
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(400))
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        service.stop()
        file = held(service, "a.jsonl")
        file.write_bytes(file.read_bytes().replace(b"payload", b"PAYLOAD"))
    before = accepted(sandbox)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.until_finished("a.jsonl", into="failed")
        service.stop()
    assert accepted(sandbox) == before
    assert service.spool.names("failed") == ["a.jsonl"]
    assert "was changed" in service.spool.summary("a.jsonl")["error"]["message"]


# --- a part that dies -------------------------------------------------------------------------------------------------


def test_when_the_ledgers_disk_fails_the_process_ends_and_the_next_one_goes_on(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[SLOW])
    jobs = numbered(200)
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", jobs)
        eventually(lambda: accepted(sandbox) > 10, 20.0)
        # From here on every write beyond a file's first pages is refused, as by a quota or a broken disk.
        resource.prlimit(service.running.process.pid, resource.RLIMIT_FSIZE, (16_384, 16_384))
        ended = service.running.end(30.0)
    assert ended.status == 4, ended.said
    assert str(service.spool.ledger) in ended.err
    # A tool that measures the tests may fail on the same limit, with a traceback of its own.
    assert not [line for line in ended.err.splitlines() if line.startswith("  File") and "/dispatcher/" in line]
    with serving(tmp_path, sandbox, *LOAD) as service:
        finish(service, sandbox, {"a.jsonl": jobs}, repeated=8)


# --- the life of the process ------------------------------------------------------------------------------------------


def test_before_it_is_ready_it_is_alive_and_says_so(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(3))
        finish(service, sandbox, {"a.jsonl": numbered(3)})
    spool = service.spool
    summary = spool.results("a.jsonl") / "summary.json"
    run, held = spool.summary("a.jsonl")["run_id"], summary.read_bytes()
    # As a crash leaves it after its results stand; what reads them waits until somebody writes.
    (spool.path / "done" / "a.jsonl").rename(spool.path / "work" / f"{run}-a.jsonl")
    summary.unlink()
    os.mkfifo(summary)
    with serving(tmp_path, sandbox, *LOAD, wait=False) as service:
        service.until_said("metrics")
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (503, 200)
        summary.write_bytes(held)
        service.until_said("ready")
        assert (service.get("/readyz")[0], service.get("/healthz")[0]) == (200, 200)
        service.stop()


def may_make_namespaces() -> bool:
    unshare = shutil.which("unshare") or "false"
    return subprocess.run([unshare, "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_make_namespaces(), reason="needs to make a pid namespace")
def test_as_process_1_it_serves_and_drains(tmp_path: Path, sandbox: Sandbox) -> None:
    with serving(tmp_path, sandbox, *LOAD, before=("unshare", "--pid", "--fork", "--kill-child")) as service:
        service.spool.drop("a.jsonl", numbered(5))
        service.spool.until_finished("a.jsonl")
        outer = service.running.process.pid
        (inner,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        (pids,) = [line for line in Path(f"/proc/{inner}/status").read_text().splitlines() if line.startswith("NSpid:")]
        assert pids.split()[-1] == "1"
        os.kill(int(inner), signal.SIGTERM)
        ended = service.running.end(20.0)
    assert (ended.status, service.said("stopped")) == (0, True), ended.said


@pytest.mark.parametrize("metadata", [False, True])
def test_a_file_that_is_gone_half_read_comes_to_the_same_end_however_often_it_is_killed(
    metadata: bool, tmp_path: Path, sandbox: Sandbox
) -> None:
    sandbox.patch(faults=[{**SLOW, "seconds": 0.5}])
    line = b'{"payload":1,"metadata":2}\n' if metadata else b'{"payload":1}\n'
    with serving(tmp_path, sandbox, *LOAD) as service:
        spool = service.spool
        spool.drop("a.jsonl", line * 1_000_000)
        eventually(lambda: any(file["accepted"] > 10_000 for file in asked(spool, "status")["files"]), 20.0)
        eventually(lambda: accepted(sandbox) >= 8 and receipts(spool), 20.0)
        service.kill()
    eventually(lambda: not sandbox.counts()["open_requests"].get("invoke"), 20.0)
    sent, (before,) = accepted(sandbox), status(spool)["files"]
    assert (before["reading"], before["accepted"] > 10_000) == (True, True)
    (job_file,) = (spool.path / "work").glob("*.jsonl")
    job_file.unlink()
    with serving(tmp_path, sandbox, *LOAD, wait=False) as service:
        service.until_said("job file cannot be read to its end")
        service.kill()
    with serving(tmp_path, sandbox, *LOAD) as service:
        eventually(lambda: spool.names("results") == ["a.jsonl"], 70.0)
        service.stop()
    summary, errors = spool.summary("a.jsonl"), rows(spool.results("a.jsonl") / "errors.jsonl")
    assert summary["accepted"] == before["accepted"]
    assert (summary["succeeded"], accepted(sandbox)) == (sent, sent)
    assert {(row["status"], row["error"]["code"]) for row in errors} <= {
        (s, "payload_gone") for s in ("cancelled", "dead")
    }
