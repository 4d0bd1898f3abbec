"""Many files at once."""

import os
import signal
import time

from benchmarks.service.stage import FAST, Row, scratch, staged, until
from tests.programs import a_sandbox, numbered
from tests.services import Spool, audit_all, serving

FILES, FILE_JOBS = 1_000, 100
RENAMED = 20_000


def thousand_files() -> list[Row]:
    """A thousand files of a hundred jobs dropped at once, and every result compared with what the sandbox saw."""
    files = {f"{number:04}.jsonl": numbered(FILE_JOBS) for number in range(FILES)}
    with scratch() as folder, a_sandbox(folder, endpoint={"instances": 64}) as sandbox:
        spool = Spool(folder / "spool")
        with serving(folder, sandbox) as service:
            began = time.monotonic()
            for name, jobs in files.items():
                spool.drop(name, jobs)
            spool.until_finished(*files, seconds=600.0)
            took = time.monotonic() - began
            service.stop()
        books = audit_all(files, spool, sandbox)
    right = sum(one.states() == {"succeeded": FILE_JOBS} and not one.repeated for one in books.values())
    total = FILES * FILE_JOBS
    return [
        Row(
            f"{FILES:,} files of {FILE_JOBS} jobs at once, audited",
            f"{FILES:,} right",
            f"{right:,} right",
            right == FILES,
        ),
        Row("until the last has its results", "", f"{took:.0f} s, {total / took:,.0f} jobs/s"),
    ]


def stalled_reader() -> list[Row]:
    """Files renamed in while the process is stopped: far more than the kernel keeps events for."""
    with staged({"model": FAST}) as stage:
        os.kill(stage.pid, signal.SIGSTOP)
        for number in range(RENAMED):
            stage.spool.drop(f"{number:05}.jsonl", b'{"payload":1}\n')
        began = time.monotonic()
        os.kill(stage.pid, signal.SIGCONT)
        until(lambda: len(list((stage.spool.path / "done").iterdir())) >= RENAMED, 900.0, 1.0)
        took = time.monotonic() - began
        results = len(stage.spool.names("results"))
    return [
        Row(
            f"{RENAMED:,} files renamed in while it is stopped",
            "none missed",
            f"{results:,} have results",
            results == RENAMED,
        ),
        Row("until the last has its results", "", f"{took:.0f} s, {RENAMED / took:,.0f} files/s"),
    ]
