"""Who is compared: the dispatcher as its users run it, and the peers that are installed here.

A contender is a command line. What cannot run here is named with the reason and the way to get it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.loopback import ENDPOINT, Target
from benchmarks.workloads import Workload, job_file

HERE = Path(__file__).parent
GO_PATH = Path("/usr/share/gocode")
GO_SDK = "src/github.com/aws/aws-sdk-go-v2/service/sagemakerruntime"
STAGING = "s3://bench-in/staged"

WIRE = "bare signed wire loop"
BY_HAND = "the same, written by hand"
BOTO3 = "boto3, threads"
AIOBOTOCORE = "aiobotocore, gather"
GO = "AWS SDK for Go v2"
NODE = "AWS SDK for JavaScript v3"
SUBMIT = "dispatcher run --no-wait"
RUN = "dispatcher run"


class Task(NamedTuple):
    """One run that a contender is to make. `folder` is its own, and is gone afterwards; job files are in `files`."""

    workload: Workload
    jobs: int
    in_flight: int
    target: Target
    folder: Path
    files: Path


class Contender(NamedTuple):
    """`jobs` is how many jobs of 1 KB inline a full round has: a few seconds of work."""

    name: str
    jobs: int
    command: Callable[[Task], list[str]]


class Field(NamedTuple):
    """Who takes part, and why others do not."""

    contenders: list[Contender]
    skipped: dict[str, str]


def dispatcher(*flags: str) -> Callable[[Task], list[str]]:
    """The real command: its ledger on disk and fsynced, its metrics served. Staged inputs are kept, as peers keep theirs."""

    def command(task: Task) -> list[str]:
        file = job_file(task.files, task.workload, task.jobs)
        made = [sys.executable, "-m", "dispatcher", "run", str(file), "--endpoint", ENDPOINT, *flags]
        made += ["--output", str(task.folder / "results"), "--max-in-flight", str(task.in_flight)]
        made += ["--staging", STAGING, "--staged-inputs", "keep", "--comparison-share", "0"]
        return [*made, "--listen", "127.0.0.1:0"]

    return command


OURS = (Contender(SUBMIT, 60_000, dispatcher("--no-wait")), Contender(RUN, 60_000, dispatcher()))


def field(folder: Path, node_modules: Path) -> Field:
    """Everybody who can run here, the wire first; what has to be built is built in `folder`."""
    wire = (sys.executable, "-m", "benchmarks.peers.wire")
    found = [Contender(WIRE, 100_000, _peer(*wire)), Contender(BY_HAND, 100_000, _peer(*wire, "--by-hand"))]
    skipped: dict[str, str] = {}
    if importlib.util.find_spec("boto3"):
        found.append(Contender(BOTO3, 4_000, _peer(sys.executable, "-m", "benchmarks.peers.boto3_threads")))
    else:
        skipped[BOTO3] = "not installed: pip install boto3, or the dependency group bench"
    found.append(Contender(AIOBOTOCORE, 8_000, _peer(sys.executable, "-m", "benchmarks.peers.aiobotocore_gather")))
    for name, jobs, made in ((GO, 30_000, _go(folder)), (NODE, 6_000, _node(node_modules))):
        if isinstance(made, str):
            skipped[name] = made
        else:
            found.append(Contender(name, jobs, _peer(*made)))
    return Field([*found, *OURS], skipped)


def _peer(*program: str) -> Callable[[Task], list[str]]:
    def command(task: Task) -> list[str]:
        made = [*program, "--url", task.target.url, "--jobs", str(task.jobs), "--in-flight", str(task.in_flight)]
        made += ["--size", str(task.workload.size), "--path", task.workload.path]
        return [*made, "--ca", str(task.target.ca)] if task.target.ca else made

    return command


def _go(folder: Path) -> list[str] | str:
    """The built peer; or why there is none."""
    go, built = shutil.which("go"), folder / "go-peer"
    if go is None or not (GO_PATH / GO_SDK).is_dir():
        return "needs Go and the SDK's sources: apt-get install golang-go golang-github-aws-aws-sdk-go-v2-dev"
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOFLAGS": ""}
    command = [go, "build", "-o", str(built), str(HERE / "peers" / "go" / "main.go")]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return [str(built)] if ended.returncode == 0 else f"does not build: {ended.stderr.strip()[-300:]}"


def _node(modules: Path) -> list[str] | str:
    node = shutil.which("node")
    packages = ("client-sagemaker-runtime", "client-s3")
    if node is None or not all((modules / "@aws-sdk" / package).is_dir() for package in packages):
        names = " ".join(f"@aws-sdk/{package}" for package in packages)
        where = modules.parent.relative_to(HERE.parent) if modules.is_relative_to(HERE) else modules.parent
        return f"needs Node 20 or newer and the SDK: npm install --prefix {where} {names}"
    return [node, "--no-warnings", str(HERE / "peers" / "node" / "peer.mjs"), "--modules", str(modules.resolve())]
