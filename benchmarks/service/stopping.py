"""SIGTERM under load, again and again."""

import random
import statistics
import time
from pathlib import Path

from benchmarks.service.stage import Row, scratch
from dispatcher.sandbox.process import Sandbox
from tests.programs import Jobs, a_sandbox, numbered
from tests.sandboxes import eventually
from tests.services import DRAIN_SECONDS, Spool, audit_all, serving

STOPS = 30
SLOW = {"operation": "invoke", "kind": "slow", "seconds": 0.02}


def stops() -> list[Row]:
    """How long each exit takes, and whether all that was dropped comes back, once."""
    rng, files = random.Random(1), {f"{turn}.jsonl": numbered(300) for turn in range(STOPS)}
    with scratch() as folder, a_sandbox(folder, endpoint={"instances": 64}) as sandbox:
        spool = Spool(folder / "spool")
        sandbox.patch(faults=[SLOW])
        took = [_stop(folder, sandbox, spool, name, jobs, rng.randrange(250)) for name, jobs in files.items()]
        sandbox.patch(faults=[])
        with serving(folder, sandbox) as service:
            spool.until_finished(*files, seconds=120.0)
            service.stop()
        repeated = sum(one.repeated for one in audit_all(files, spool, sandbox).values())
    said = f"median {statistics.median(took):.2f} s, most {max(took):.2f} s"
    return [
        Row(f"{STOPS} stops under load", f"<= {DRAIN_SECONDS:.0f} s each", said, max(took) <= DRAIN_SECONDS),
        Row("jobs sent twice", "0", str(repeated), repeated == 0),
    ]


def _stop(folder: Path, sandbox: Sandbox, spool: Spool, name: str, jobs: Jobs, sent: int) -> float:
    """Seconds from SIGTERM, which comes when so many more jobs were sent, to the exit."""
    goal = _accepted(sandbox) + sent
    spool.drop(name, jobs)
    with serving(folder, sandbox) as service:
        eventually(lambda: _accepted(sandbox) > goal, 30.0)
        began = time.monotonic()
        service.stop()
        return time.monotonic() - began


def _accepted(sandbox: Sandbox) -> int:
    return int(sandbox.counts()["jobs"]["accepted"])
