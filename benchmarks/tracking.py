"""What it costs to learn the fate of jobs that are submitted: `python -m benchmarks.tracking LEDGER`.

Opens a ledger that `dispatcher run --no-wait` has left and lets the dispatcher's own parts follow every job to its final
state: ListObjectsV2 of each shard, the decision, the durable record, metrics. No job file is read, no result written.
Counted is the CPU of the whole process, all threads, from the moment its parts run until no job is outstanding.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import anyio
import uvloop
from prometheus_client import CollectorRegistry

from dispatcher.engine import Engine
from dispatcher.model import State
from dispatcher.service import engine
from dispatcher.settings import Settings

from benchmarks.loopback import ENDPOINT  # isort: skip


def main() -> None:
    """Prints jobs, CPU and wall seconds as JSON."""
    uvloop.run(_track(Path(sys.argv[1])))


async def _track(ledger: Path) -> None:
    async with engine(Settings(endpoint=ENDPOINT), ledger, CollectorRegistry()) as made:
        jobs, cpu, wall = _submitted(made), time.process_time(), time.monotonic()
        async with anyio.create_task_group() as tasks:
            made.start(tasks, look=True)
            while _submitted(made):
                made.progressed.clear()
                await made.progressed.wait()
            used = {"jobs": jobs, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
            tasks.cancel_scope.cancel()
    await asyncio.to_thread(print, json.dumps(used))


def _submitted(made: Engine) -> int:
    return sum(made.ledger.tally(queue.queue_id)[State.SUBMITTED] for queue in made.ledger.queues())


if __name__ == "__main__":
    main()
