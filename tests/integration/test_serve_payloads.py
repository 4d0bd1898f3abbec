"""The service and its folder of payloads: wrong, corrected, gone, cancelled; and a ledger that is lost meanwhile."""

import shutil
from pathlib import Path

import pytest

from dispatcher.sandbox.process import Sandbox
from tests.programs import ENDPOINT, dispatch, numbered, rows
from tests.sandboxes import eventually
from tests.services import LOAD, Spool, serving, status

LINES = b'{"payload_path": "a.json"}\n{"payload_path": "b.json"}\n'


@pytest.fixture
def payloads(tmp_path: Path) -> Path:
    folder = tmp_path / "payloads"
    folder.mkdir()
    for name in ("a.json", "b.json"):
        (folder / name).write_text("{}")
    return folder


LOST = {"gone": "a folder is missing", "a file": "a folder cannot be used"}


def lose(folder: Path, how: str) -> None:
    """The folder is gone, or a file lies in its place."""
    shutil.rmtree(folder)
    if how == "a file":
        folder.write_text("")


def states(spool: Spool, name: str) -> list[str]:
    return [row["status"] for row in rows(spool.results(name) / "results.jsonl")]


def test_a_service_does_not_start_with_a_folder_of_payloads_that_is_none(tmp_path: Path) -> None:
    flags = ("--spool", tmp_path / "spool", "--endpoint", ENDPOINT, "--payload-root", "/nope")
    ended = dispatch(tmp_path, None, "serve", *flags)
    assert (ended.status, "the folder of payloads /nope is no folder" in ended.err) == (2, True), ended.said
    assert not (tmp_path / "spool").exists()


def test_files_that_wait_for_payloads_get_them_where_the_setting_is_corrected(
    tmp_path: Path, sandbox: Sandbox, payloads: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    with serving(tmp_path, sandbox, *LOAD, "--payload-root", wrong) as service:
        wrong.rmdir()
        service.spool.drop("a.jsonl", LINES)
        service.until_said("a folder is missing")
        service.stop()
    with serving(tmp_path, sandbox, *LOAD, "--payload-root", payloads) as service:
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert states(service.spool, "a.jsonl") == ["succeeded", "succeeded"]


@pytest.mark.parametrize("how", LOST)
def test_a_file_that_waits_for_a_folder_of_payloads_ends_when_it_is_cancelled(
    how: str, tmp_path: Path, sandbox: Sandbox, payloads: Path
) -> None:
    with serving(tmp_path, sandbox, *LOAD, "--payload-root", payloads) as service:
        lose(payloads, how)
        service.spool.drop("a.jsonl", LINES)
        service.until_said(LOST[how])
        assert dispatch(tmp_path, None, "cancel", "a.jsonl", "--spool", service.spool.path).status == 0
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert states(service.spool, "a.jsonl") == ["cancelled", "cancelled"]


@pytest.mark.parametrize("how", LOST)
def test_what_was_claimed_when_its_payloads_went_away_ends_when_it_is_cancelled(
    how: str, tmp_path: Path, sandbox: Sandbox, payloads: Path
) -> None:
    with serving(tmp_path, sandbox, *LOAD, "--payload-root", payloads) as service:
        hold = ("lane", ENDPOINT, "--spool", service.spool.path)
        assert dispatch(tmp_path, None, *hold, "--pause").status == 0
        service.spool.drop("a.jsonl", LINES)
        eventually(lambda: any(file["lines"] == 2 for file in status(service.spool)["files"]), 20.0)
        lose(payloads, how)
        assert dispatch(tmp_path, None, *hold, "--resume").status == 0
        service.until_said(LOST[how])
        assert dispatch(tmp_path, None, "cancel", "a.jsonl", "--spool", service.spool.path).status == 0
        service.spool.until_finished("a.jsonl")
        service.stop()
    assert set(states(service.spool, "a.jsonl")) <= {"dead", "cancelled"}


def test_a_lost_ledger_is_told_and_how_much_was_found(tmp_path: Path, sandbox: Sandbox) -> None:
    sandbox.patch(endpoints={ENDPOINT: {"asleep": True, "wake_backlog": None}})
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.drop("a.jsonl", numbered(20))
        eventually(lambda: sandbox.counts()["jobs"]["accepted"] == 20, 20.0)
        service.stop()
    service.spool.lose_ledger()
    sandbox.patch(endpoints={ENDPOINT: {"asleep": False}})
    with serving(tmp_path, sandbox, *LOAD) as service:
        service.spool.until_finished("a.jsonl")
        service.until_said("rebuilt job file is through")
        service.stop()
    (lying,) = [event for event in service.events() if event["event"].startswith("job files lie in work/")]
    (through,) = [event for event in service.events() if event["event"].startswith("rebuilt job file")]
    assert (lying["files"], through["jobs"], through["name"]) == (1, 20, "a.jsonl")
    assert through["outputs_found"] >= 10
