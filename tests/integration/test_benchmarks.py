"""The benchmarks measure what they say: peers do the whole work, the target answers as S3 does, the figures add up."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from benchmarks import report
from benchmarks.contenders import AIOBOTOCORE, BOTO3, BY_HAND, GO, NODE, RUN, SUBMIT, WIRE, Contender, Task
from benchmarks.goals import goals
from benchmarks.loopback import Target, make_certificate, started
from benchmarks.measure import Bench, MeasureError
from benchmarks.peers import wire
from benchmarks.peers.asked import Asked
from benchmarks.workloads import INLINE, STAGED, Workload
from tests.programs import ENDPOINT, ROOT, a_sandbox
from tests.sandboxes import client, finished

FOLDER = "async/jobs.jsonl-abc/0/"


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with started() as running:
        yield running


def submit(url: str, jobs: int) -> None:
    with client("sagemaker-runtime", url) as runtime:
        for number in reversed(range(jobs)):
            answer = runtime.invoke_endpoint_async(
                EndpointName="bench",
                Body=b"{}",
                InferenceId=f"job-{number}",
                S3OutputPathExtension=FOLDER.removeprefix("async/").strip("/"),
                Filename=f"{number}.out",
            )
            assert answer["InferenceId"] == f"job-{number}"
            assert answer["OutputLocation"] == f"s3://bench-out/{FOLDER}{number}.out"


# --- the target -------------------------------------------------------------------------------------------------------


def test_the_target_lists_outputs_in_the_order_of_keys_page_by_page(target: Target) -> None:
    target.reset()
    submit(target.url, 5)
    with client("s3", target.url) as s3:
        pages = list(
            s3.get_paginator("list_objects_v2").paginate(
                Bucket="bench-out", Prefix=FOLDER, Delimiter="/", PaginationConfig={"PageSize": 2}
            )
        )
    assert [page["IsTruncated"] for page in pages] == [True, True, False]
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    assert keys == [f"{FOLDER}{number}.out" for number in range(5)]


def test_the_target_lists_only_the_folder_that_is_asked_for(target: Target) -> None:
    target.reset()
    submit(target.url, 1)
    with client("s3", target.url) as s3:
        page = s3.list_objects_v2(Bucket="bench-out", Prefix="async/jobs.jsonl-abc/1/", Delimiter="/")
    assert page["KeyCount"] == 0
    assert not page["IsTruncated"]


def test_the_target_counts_requests_and_payload_bytes(target: Target) -> None:
    target.reset()
    submit(target.url, 2)
    with client("s3", target.url) as s3:
        s3.put_object(Bucket="bench-in", Key="one", Body=b"x" * 100)
        s3.delete_object(Bucket="bench-in", Key="one")
    counts = target.counts()
    assert counts["requests"] == {"InvokeEndpointAsync": 2, "PutObject": 1, "DeleteObject": 1}
    assert counts["bytes"] == {"InvokeEndpointAsync": 4, "PutObject": 100, "DeleteObject": 0}
    assert counts["first_invoke_at"] <= counts["last_invoke_at"]


def test_what_the_target_does_not_know_is_counted_as_unknown(target: Target) -> None:
    target.reset()
    with client("s3", target.url) as s3, pytest.raises(ClientError):
        s3.get_object(Bucket="bench-out", Key="one")
    assert target.counts()["requests"] == {"Unknown": 1}


# --- the peers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [wire.Requests, wire.ByHand])
@pytest.mark.parametrize("by_s3", [False, True])
def test_the_sandbox_lets_the_wire_loop_in(
    tmp_path: Path, by_s3: bool, made: type[wire.Requests] | type[wire.ByHand]
) -> None:
    with a_sandbox(tmp_path) as sandbox:
        work = Asked(sandbox.url, 70, 1_000, by_s3, 8, None)
        requests = made(sandbox.url.partition("://")[2], ENDPOINT, "sandbox-in")
        assert asyncio.run(wire.send(work, requests)) == 70
        assert finished(sandbox, 70) == {"completed": 70}


def test_the_wire_loop_fails_where_a_request_is_refused(tmp_path: Path) -> None:
    with a_sandbox(tmp_path) as sandbox:
        work = Asked(sandbox.url, 1, 1_000, False, 1, None)
        with pytest.raises(RuntimeError, match="status 400"):
            asyncio.run(wire.send(work, wire.Requests(sandbox.url.partition("://")[2], "no-such-endpoint")))


def test_the_wire_loop_speaks_tls(tmp_path: Path) -> None:
    ca = make_certificate(tmp_path / "ca.pem")
    with started(ca) as secure:
        work = Asked(secure.url, 20, 1_000, True, 4, str(ca))
        assert asyncio.run(wire.send(work, wire.Requests(secure.url.partition("://")[2]))) == 20
        assert secure.counts()["requests"] == {"PutObject": 20, "InvokeEndpointAsync": 20}


# --- measuring --------------------------------------------------------------------------------------------------------


def sends(jobs: int, size: int, task: Task) -> list[str]:
    program = [sys.executable, "-m", "benchmarks.peers.wire", "--url", task.target.url]
    return [*program, "--jobs", str(jobs), "--size", str(size), "--path", task.workload.path]


@pytest.mark.parametrize("workload", [INLINE, STAGED], ids=lambda workload: str(workload.name))
@pytest.mark.parametrize(("jobs", "size"), [(9, 1_000), (10, 100), (20, 500)])
def test_a_peer_that_sends_other_work_than_it_is_asked_is_no_result(
    target: Target, tmp_path: Path, jobs: int, size: int, workload: Workload
) -> None:
    with pytest.raises(MeasureError, match="did not do the work"):
        Bench(8, tmp_path).run(Contender("lazy", 10, partial(sends, jobs, size)), workload, 10, target)


def test_a_peer_that_goes_the_other_way_is_no_result(target: Target, tmp_path: Path) -> None:
    inline = Contender("inline", 10, lambda task: sends(10, 1_000, task._replace(workload=INLINE)))
    with pytest.raises(MeasureError, match="did not do the work"):
        Bench(8, tmp_path).run(inline, STAGED, 10, target)


def test_a_program_that_fails_is_no_result(target: Target, tmp_path: Path) -> None:
    broken = Contender("broken", 10, lambda task: [sys.executable, "-c", "raise SystemExit('no luck')"])
    with pytest.raises(MeasureError, match="no luck"):
        Bench(8, tmp_path).run(broken, INLINE, 10, target)


def test_cpu_and_memory_of_children_that_were_waited_for_count(target: Target, tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    peer = Contender("parent", 0, lambda task: [sys.executable, "-c", f"{parent}; {SEND}", *wire_arguments(task)])
    used, _ = Bench(8, tmp_path).run(peer, INLINE, 10, target)
    assert used.cpu > 0.3
    assert used.memory > 5


SEND = "from benchmarks.peers.wire import main; main()"


def wire_arguments(task: Task) -> list[str]:
    return ["--url", task.target.url, "--jobs", str(task.jobs)]


def rounds(*cpu_us: float) -> list[dict[str, float]]:
    return [{"jobs": 10, "cpu_us": cpu, "jobs_per_second": 1.0, "memory_mb": 1.0, "target_us": 1.0} for cpu in cpu_us]


def test_a_ratio_is_made_in_each_round_and_its_median_counts() -> None:
    results = {"ratios": {INLINE.name: {WIRE: rounds(10, 20, 30), SUBMIT: rounds(30, 100, 135)}}}
    goal = goals(results)[0]
    assert list(goal.values) == [3.0, 5.0, 4.5]
    assert goal.seen == 4.5
    assert goal.verdict == "MISSED"


def test_what_was_not_measured_is_said_to_be_so() -> None:
    assert {goal.verdict for goal in goals({})} == {"not measured"}


# --- all of it --------------------------------------------------------------------------------------------------------


def test_one_command_measures_and_reports_everything(tmp_path: Path) -> None:
    python_alone = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    sizes = ["--rounds", "1", "--share", "0.001", "--sizes", "200,400", "--delays", "0", "--in-flight", "16"]
    places = ["--work", str(tmp_path), "--output", str(tmp_path / "out"), "--node-modules", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", "--quick", *sizes, *places, "--kind", INLINE.name]
    ended = subprocess.run(command, cwd=ROOT, env=python_alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "out" / "quick.json").read_bytes())
    compared = results["ratios"][INLINE.name]
    assert set(compared) == {WIRE, BY_HAND, BOTO3, AIOBOTOCORE, SUBMIT, RUN}
    assert {one["jobs"] for figures in compared.values() for one in figures} == {200}
    assert set(results["skipped"]) == {GO, NODE}
    assert [row["jobs"] for row in results["scale"]] == [200, 400]
    assert [(row["round_trip_ms"], row["path"]) for row in results["round_trips"]] == [(0, "inline"), (0, "s3")]
    assert all(seconds > 0 for seconds in results["start_up"])
    for text in (WIRE, SUBMIT, "peak memory at 1,000,000 jobs", "round trip", "apt-get install golang-go"):
        assert text in ended.stdout
    assert not list(tmp_path.glob("dispatcher-bench-*"))


def test_the_readme_gets_its_tables_between_the_markers_and_keeps_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "benchmarks" / "README.md", readme)
    before = readme.read_text("utf-8")
    machine = {"processor": "P", "cores": 2, "system": "S", "python": "3", "disk": "ext4"}
    results = {"machine": machine, "versions": {}, "settings": {"in_flight": 64, "rounds": 1}}
    report.write_readme(readme, results, "results.png")
    after = readme.read_text("utf-8")
    assert after.partition(report.BEGIN)[0] == before.partition(report.BEGIN)[0]
    assert after.partition(report.END)[2] == before.partition(report.END)[2]
    assert "not measured" in after
    assert report.tables(results) in after
