"""What a run of the dispatcher costs: `python -m tests.measured COST ARGUMENT...` runs `dispatcher ARGUMENT...` and writes it down."""

import json
import resource
import sys
import time
from pathlib import Path

from msgspec import Struct

from dispatcher.cli import main
from dispatcher.sandbox.process import Sandbox
from tests.programs import SECONDS, Ended, dispatch


class Cost(Struct, frozen=True):
    """What a program cost."""

    peak_bytes: int
    cpu_seconds: float
    wall_seconds: float


def measured(folder: Path, sandbox: Sandbox, *arguments: object, seconds: float = SECONDS) -> tuple[Ended, Cost]:
    """Runs `dispatcher ARGUMENTS` to its end; what it cost."""
    path = folder / "cost.json"
    ended = dispatch(folder, sandbox, path, *arguments, seconds=seconds, module="tests.measured")
    return ended, Cost(**json.loads(path.read_bytes()))


def _measure(path: Path) -> None:
    began = time.monotonic()
    try:
        main()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Not ru_maxrss: it starts with what the parent had.
        status = Path("/proc/self/status").read_text("ascii").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        cost = (peak, used.ru_utime + used.ru_stime, time.monotonic() - began)
        path.write_text(json.dumps(dict(zip(Cost.__struct_fields__, cost, strict=True))))


if __name__ == "__main__":
    _measure(Path(sys.argv.pop(1)))
